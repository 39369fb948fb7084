"""A machine whose clock is a number: streams, events and sessions that take a given time.

It has the rules of a GPU that matter to those who measure: work on a stream starts when the work
before it is done, and not before the host has asked for it; the host waits only where it says so.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field, replace

import numpy as np

from trt_native.cuda import GpuInfo
from trt_native.errors import SpecError

GIB = 1 << 30
GPU = GpuInfo("Fake GPU", "9.0", "13.0", 80 * GIB, 70 * GIB)


@dataclass(frozen=True)
class Speed:
    """Milliseconds; ``factor`` says by how much the n-th execution takes longer."""

    compute: float = 0.5
    enqueue: float = 0.2
    enqueue_graph: float = 0.01
    h2d: float = 0.1
    d2h: float = 0.05
    host_copy: float = 0.03
    load: float = 40.0
    session: float = 5.0
    compile: float = 300.0
    factor: object = field(default=lambda _: 1.0)
    layers: dict[str, list[float]] = field(
        default_factory=lambda: {"fast": [0.1, 0.1, 0.4], "slow <b>": [0.4, 0.3, 0.35]}
    )
    fails_in: str | None = None

    def but(self, **changes):
        return replace(self, **changes)


class FakeMachine:
    def __init__(self, speeds):
        self.speeds = speeds
        self.time = threading.local()
        self.used = GIB
        self.open = []

    def spend(self, milliseconds):
        self.time.ms = self.ms + milliseconds

    @property
    def ms(self):
        return getattr(self.time, "ms", 0.0)

    def wait_until(self, ms):
        self.time.ms = max(self.ms, ms)

    def describe(self):
        return GPU

    def now(self):
        return self.ms / 1e3

    def used_bytes(self):
        return self.used

    def event(self):
        return FakeEvent(self)

    def load(self, plan):
        return FakeEngine(self, plan, self.speeds[plan.path.name])

    def session(self, engine):
        return FakeSession(self, engine)


class FakeEvent:
    def __init__(self, machine):
        self.machine, self.at = machine, None

    def synchronize(self):
        self.machine.wait_until(self.at)

    def elapsed_ms(self, since):
        assert max(self.at, since.at) <= self.machine.ms, "the event has not happened yet"
        return self.at - since.at


class FakeStream:
    def __init__(self, machine):
        self.machine, self.ready = machine, 0.0

    def put(self, ms):
        self.ready = max(self.ready, self.machine.ms) + ms

    def record(self, event):
        self.put(0.0)
        event.at = self.ready

    def synchronize(self):
        self.machine.wait_until(self.ready)


class FakeEngine:
    activation_bytes = 3 << 20

    def __init__(self, machine, plan, speed):
        self.machine, self.speed = machine, speed
        self.inputs = tuple(t for t in plan.manifest.tensors if t.mode == "input")
        machine.open.append(self)
        machine.spend(speed.load)
        machine.used += 10 << 20

    def close(self):
        self.machine.open.remove(self)
        self.machine.used -= 10 << 20


class FakeSession:
    def __init__(self, machine, engine):
        self.machine, self.engine, self.speed = machine, engine, engine.speed
        self.compute_stream = FakeStream(machine)
        self.compiled = False
        self.executions = itertools.count()
        machine.open.append(self)
        machine.spend(self.speed.session)
        machine.used += 4 << 20

    def factor(self):
        return self.speed.factor(next(self.executions))

    def check(self, inputs, step):
        if self.speed.fails_in == step:
            raise SpecError(f"refused in {step}")
        for tensor in self.engine.inputs:
            array = inputs[tensor.name]
            assert array.dtype == np.dtype(tensor.dtype)
            allowed = tensor.profiles or ()
            assert any(r.contains(array.shape) for r in allowed) or array.shape == tensor.shape

    def create_execution(self, inputs):
        self.check(inputs, "create_execution")
        return FakeCall(self, sum(array.nbytes for array in inputs.values()))

    def run(self, inputs):
        self.check(inputs, "run")
        s = self.speed
        if not self.compiled:
            self.machine.spend(s.compile)
            self.compiled = True
        self.machine.spend(2 * s.host_copy + s.h2d + s.compute * self.factor() + s.d2h)

    def map(self, iterable, *, depth):
        s = self.speed
        for number, inputs in enumerate(iterable):
            self.check(inputs, "map")
            slowest = max(s.h2d, s.compute, s.d2h) if depth > 1 else s.h2d + s.compute + s.d2h
            self.machine.spend(slowest)
            yield number

    def profile_layers(self, inputs, *, iterations):
        self.check(inputs, "profile_layers")
        return self.speed.layers

    def close(self):
        self.machine.open.remove(self)
        self.machine.used -= 4 << 20


class FakeCall:
    output_bytes = 1024

    def __init__(self, session, input_bytes):
        self.session, self.input_bytes = session, input_bytes
        self.fresh = False
        session.machine.open.append(self)

    def close(self):
        assert self.session in self.session.machine.open, "a call is closed before its session"
        self.session.machine.open.remove(self)

    def upload(self, stream):
        self.session.machine.spend(0.002)
        stream.put(self.session.speed.h2d)

    def enqueue(self, stream, *, graph):
        s = self.session.speed
        self.fresh = True
        self.session.machine.spend(s.enqueue_graph if graph else s.enqueue)
        stream.put(s.compute * self.session.factor())

    def download(self, stream):
        assert self.fresh, "nothing was executed since the last download"
        self.fresh = False
        self.session.machine.spend(0.002)
        stream.put(self.session.speed.d2h)
