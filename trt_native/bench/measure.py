"""The measurement loops."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from trt_native.bench.machine import (
    CudaMachine,
    Inputs,
    Machine,
    MeasurableSession,
    TimedExecution,
    TimingEvent,
    TimingStream,
)
from trt_native.bench.report import PHASES, BenchOptions, BenchReport, Memory, PlanComparison, Span
from trt_native.bench.statistics import PAIRS, Ratio, ratio_of, slowest_first
from trt_native.errors import SpecError
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan

__all__ = ["bench_plan"]

_ROUNDS = 5  # how often each phase is measured
_WINDOW = 8  # executions in the queue: enough that the GPU never waits, few enough to stop soon
_PREFILL = 2  # executions before the clock runs, so that the queue is not empty when it starts
_LAYER_ITERATIONS = 20
_MIN_WARM_UPS = 3


def bench_plan(
    plan: Plan,
    inputs_for: Callable[[Sequence[PlanTensor]], Inputs],
    options: BenchOptions | None = None,
    *,
    other: Plan | None = None,
    machine: Machine | None = None,
) -> BenchReport:
    """Measure a plan.

    Args:
        plan: The plan.
        inputs_for: Gives an array for each of these inputs. Called once with the plan's inputs and
            once with those of ``other``.
        options: How to measure.
        other: A plan to compare it with, which must have inputs of the same names.
        machine: What to measure on; the first GPU by default.

    Raises:
        SpecError: the inputs do not fit, or the plans do not have the same inputs.
        PlanError, UnsupportedError: a plan cannot be loaded here.
        CudaError: no GPU is available, it has too little memory, or it failed.
    """
    options = options or BenchOptions()
    machine = machine or CudaMachine()
    gpu = machine.describe()
    with contextlib.ExitStack() as stack:
        loaded_plan = _LoadedPlan(machine, plan, inputs_for, stack)
        recorder = _Recorder(machine, loaded_plan, options)
        recorder.measure()
        throughput = {
            **recorder.throughput,
            "synchronous": 1e3 / float(np.mean(recorder.samples["end_to_end"])),
            "pipelined": _pipelined(machine, loaded_plan.session, loaded_plan.inputs, options),
        }
        loaded_plan.update_peak_memory()
        if options.streams > 1:
            throughput["streams"] = _streams(machine, loaded_plan, options)
        layers = None
        if options.layers:
            times = loaded_plan.session.profile_layers(
                loaded_plan.inputs, iterations=_LAYER_ITERATIONS
            )
            layers = slowest_first(times)
        memory = loaded_plan.memory()
        comparison = None
        if other is not None:
            other_plan = _LoadedPlan(machine, other, inputs_for, stack, like=loaded_plan)
            comparison = PlanComparison(
                str(other.path or ""), _compare(machine, loaded_plan, other_plan, options)
            )
    return BenchReport(
        plan={
            "path": str(plan.path or ""),
            "product": plan.header.product,
            "version": plan.manifest.backend_version if plan.manifest else plan.header.version_text,
            "bytes": plan.size,
        },
        gpu=gpu,
        options=options,
        inputs=tuple(
            {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
            for name, array in loaded_plan.inputs.items()
        ),
        samples={name: np.asarray(recorder.samples[name]) for name in PHASES},
        throughput=throughput,
        load_ms=loaded_plan.load_ms,
        memory=memory,
        timeline=recorder.timeline(),
        layers=layers,
        comparison=comparison,
    )


class _LoadedPlan:
    """A plan that is loaded and has run once, with the time and memory that this took."""

    def __init__(
        self,
        machine: Machine,
        plan: Plan,
        inputs_for: Callable[[Sequence[PlanTensor]], Inputs],
        stack: contextlib.ExitStack,
        like: _LoadedPlan | None = None,
    ) -> None:
        self._machine = machine
        self._before = machine.used_bytes()
        start = machine.now()
        self.engine = machine.load(plan)
        stack.callback(self.engine.close)
        loaded, self._weights = machine.now(), machine.used_bytes() - self._before
        if like is not None:
            _check_same_inputs(plan, self.engine.inputs, like.engine.inputs)
        self.inputs = inputs_for(self.engine.inputs)
        before = machine.now()
        self.session = machine.session(self.engine)
        stack.callback(self.session.close)
        made = machine.now()
        self._context = machine.used_bytes() - self._before - self._weights
        self._peak = 0
        calling = machine.now()
        self.session.run(self.inputs)
        self.load_ms = {
            "load": (loaded - start) * 1e3,
            "session": (made - before) * 1e3,
            "first_call": (machine.now() - calling) * 1e3,
        }
        self.call: TimedExecution = self.session.create_execution(self.inputs)
        stack.callback(self.call.close)
        self.update_peak_memory()

    def update_peak_memory(self) -> None:
        """Update the peak with the memory in use now."""
        self._peak = max(self._peak, self._machine.used_bytes() - self._before)

    def memory(self) -> Memory:
        """Device memory used so far."""
        return Memory(
            weights=max(0, self._weights),
            context=max(0, self._context),
            activations=self.engine.activation_bytes,
            peak=self._peak,
            inputs=self.call.input_bytes,
            outputs=self.call.output_bytes,
        )


def _check_same_inputs(
    plan: Plan, found: Sequence[PlanTensor], wanted: Sequence[PlanTensor]
) -> None:
    names, expected = ({tensor.name for tensor in tensors} for tensors in (found, wanted))
    if names != expected:
        raise SpecError(
            f"{plan.path or 'the other plan'}: its inputs are {', '.join(sorted(names))}, those of"
            f" the plan to compare with are {', '.join(sorted(expected))}"
        )


@dataclass(frozen=True, slots=True)
class _BurstTimes:
    """Executions back to back: milliseconds of each on the GPU, on the host, and of all."""

    gpu_ms: list[float]
    host_ms: list[float]
    total_ms: float


def _back_to_back(
    machine: Machine,
    stream: TimingStream,
    action: Callable[[], object],
    least: int,
    seconds: float,
    before: Callable[[], object] = lambda: None,
) -> _BurstTimes:
    """Repeat an action on a stream, with a few executions in its queue at any time.

    Work that ``before`` enqueues ahead of each is not timed.
    """
    for _ in range(_PREFILL):
        before()
        action()
    first = machine.event()
    stream.record(first)
    ring = [(machine.event(), machine.event()) for _ in range(_WINDOW)]
    gpu_ms: list[float] = []
    host_ms: list[float] = []

    def collect(index: int) -> TimingEvent:
        begin, end = ring[index % _WINDOW]
        end.synchronize()
        gpu_ms.append(end.elapsed_ms(begin))
        return end

    start = machine.now()
    count = 0
    while count < least or machine.now() - start < seconds:
        if count >= _WINDOW:
            collect(count)
        begin, end = ring[count % _WINDOW]
        before()
        stream.record(begin)
        asked = machine.now()
        action()
        host_ms.append((machine.now() - asked) * 1e3)
        stream.record(end)
        count += 1
    last = [collect(index) for index in range(max(0, count - _WINDOW), count)][-1]
    return _BurstTimes(gpu_ms, host_ms, last.elapsed_ms(first))


class _Recorder:
    """Measures the phases of one plan, round by round."""

    def __init__(self, machine: Machine, loaded_plan: _LoadedPlan, options: BenchOptions) -> None:
        self._machine, self._loaded_plan, self._options = machine, loaded_plan, options
        self._stream: TimingStream = loaded_plan.session.compute_stream
        self._least = math.ceil(options.iterations / _ROUNDS)
        self._seconds = options.duration_s / _ROUNDS
        self._queued_ms = dict.fromkeys(("compute", "compute_no_graph"), 0.0)
        self._host_stamps: list[list[float]] = []
        self._gpu_stamps: list[list[float]] = []
        self.samples: dict[str, list[float]] = {name: [] for name in PHASES}

    def measure(self) -> None:
        """Warm up, then all phases, several times over."""
        self.warm_up()
        for _ in range(_ROUNDS):
            self._compute("", graph=True)
            self._compute("_no_graph", graph=False)
            self._copies()
            self._calls()
            self._runs()
            self._loaded_plan.update_peak_memory()

    @property
    def throughput(self) -> dict[str, float]:
        """Executions per second with tensors on the GPU."""
        return {
            name: len(self.samples[f"gpu_{name}"]) * 1e3 / total
            for name, total in self._queued_ms.items()
        }

    def timeline(self) -> tuple[Span, ...]:
        """Timeline of the median call.

        An event on an idle stream happens when it is recorded, so both lanes start at one time.
        """
        lanes = (
            ("host", ("upload", "enqueue", "download", "wait"), self._host_stamps),
            ("GPU", ("H2D", "compute", "D2H"), self._gpu_stamps),
        )
        spans = []
        for lane, names, stamps in lanes:
            start = 0.0
            for name, stop in zip(names, np.median(np.asarray(stamps), axis=0), strict=True):
                spans.append(Span(lane, name, start, float(stop)))
                start = float(stop)
        return tuple(spans)

    def warm_up(self) -> None:
        """Run for a while, and often enough that a graph is captured and replayed."""
        for _ in _until(self._machine, _MIN_WARM_UPS, self._options.warmup_s):
            self._loaded_plan.session.run(self._loaded_plan.inputs)
            for graph in (False, True):
                self._loaded_plan.call.upload(self._stream)
                self._loaded_plan.call.enqueue(self._stream, graph=graph)
                self._loaded_plan.call.download(self._stream)
            self._stream.synchronize()

    def _repeat(
        self, action: Callable[[], object], before: Callable[[], object] = lambda: None
    ) -> _BurstTimes:
        least, seconds = self._least, self._seconds
        return _back_to_back(self._machine, self._stream, action, least, seconds, before)

    def _compute(self, suffix: str, *, graph: bool) -> None:
        burst = self._repeat(lambda: self._loaded_plan.call.enqueue(self._stream, graph=graph))
        self.samples[f"gpu_compute{suffix}"] += burst.gpu_ms
        self.samples[f"enqueue{suffix}"] += burst.host_ms
        self._queued_ms[f"compute{suffix}"] += burst.total_ms

    def _copies(self) -> None:
        call, stream = self._loaded_plan.call, self._stream
        self.samples["h2d"] += self._repeat(lambda: call.upload(stream)).gpu_ms
        # An output whose shape depends on data is there only once after each execution.
        fresh = functools.partial(call.enqueue, stream, graph=True)
        self.samples["d2h"] += self._repeat(lambda: call.download(stream), fresh).gpu_ms

    def _calls(self) -> None:
        events = [self._machine.event() for _ in range(4)]
        for _ in self._iterations():
            self._one_call(events)

    def _one_call(self, events: Sequence[TimingEvent]) -> None:
        call, stream, now = self._loaded_plan.call, self._stream, self._machine.now
        actions: tuple[Callable[[TimingStream], object], ...] = (
            call.upload,
            functools.partial(call.enqueue, graph=True),
            call.download,
        )
        stamps = [now()]
        stream.record(events[0])
        for event, action in zip(events[1:], actions, strict=True):
            action(stream)
            stream.record(event)
            stamps.append(now())
        stream.synchronize()
        stamps.append(now())
        self.samples["latency"].append((stamps[-1] - stamps[0]) * 1e3)
        self._host_stamps.append([(stamp - stamps[0]) * 1e3 for stamp in stamps[1:]])
        self._gpu_stamps.append([event.elapsed_ms(events[0]) for event in events[1:]])

    def _runs(self) -> None:
        for _ in self._iterations():
            before = self._machine.now()
            self._loaded_plan.session.run(self._loaded_plan.inputs)
            self.samples["end_to_end"].append((self._machine.now() - before) * 1e3)

    def _iterations(self) -> Iterator[int]:
        return _until(self._machine, self._least, self._seconds)


def _until(machine: Machine, least: int, seconds: float) -> Iterator[int]:
    """Count until there are enough and the time is over."""
    start = machine.now()
    for index in itertools.count():
        if index >= least and machine.now() - start >= seconds:
            return
        yield index


def _pipelined(
    machine: Machine, session: MeasurableSession, inputs: Inputs, options: BenchOptions
) -> float:
    """Calls per second of ``Session.map``, after the pipeline has been filled once."""
    for _ in session.map(itertools.repeat(inputs, 2 * options.depth), depth=options.depth):
        pass
    start = machine.now()
    supply = (inputs for _ in _until(machine, options.iterations, options.duration_s))
    count = sum(1 for _ in session.map(supply, depth=options.depth))
    return count / (machine.now() - start)


def _streams(machine: Machine, loaded_plan: _LoadedPlan, options: BenchOptions) -> float:
    """Calls per second of several sessions on one engine, each in its thread."""
    barrier = threading.Barrier(options.streams)

    def work() -> float:
        try:
            machine.describe()  # makes the GPU's context current on this thread
            session = machine.session(loaded_plan.engine)
            with contextlib.closing(cast("Any", session)):
                session.run(loaded_plan.inputs)
                barrier.wait()
                rate = _pipelined(machine, session, loaded_plan.inputs, options)
                barrier.wait()  # no session is freed while another is measured
                loaded_plan.update_peak_memory()
                return rate
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(options.streams) as pool:
        futures = [pool.submit(work) for _ in range(options.streams)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda f: isinstance(f, threading.BrokenBarrierError)):
        raise error
    return sum(future.result() for future in futures)


def _compare(
    machine: Machine, loaded_plan: _LoadedPlan, other_plan: _LoadedPlan, options: BenchOptions
) -> tuple[Ratio, ...]:
    """Alternate between both, A B B A, so that steady drift favours neither."""
    least = max(1, math.ceil(options.iterations / PAIRS))
    seconds = options.duration_s / PAIRS
    for one in (loaded_plan, other_plan):
        _Recorder(machine, one, options).warm_up()
    times: dict[str, tuple[list[float], list[float]]] = {
        "gpu_compute": ([], []),
        "end_to_end": ([], []),
    }
    for pair in range(PAIRS):
        order = ((0, loaded_plan), (1, other_plan))
        for side, one in order if pair % 2 == 0 else order[::-1]:
            times["gpu_compute"][side].append(_compute_ms(machine, one, least, seconds))
            times["end_to_end"][side].append(_run_ms(machine, one, least, seconds))
    return tuple(ratio_of(phase, *sides) for phase, sides in times.items())


def _compute_ms(machine: Machine, loaded_plan: _LoadedPlan, least: int, seconds: float) -> float:
    stream = loaded_plan.session.compute_stream
    burst = _back_to_back(
        machine, stream, lambda: loaded_plan.call.enqueue(stream, graph=True), least, seconds
    )
    return float(np.median(burst.gpu_ms))


def _run_ms(machine: Machine, loaded_plan: _LoadedPlan, least: int, seconds: float) -> float:
    times = []
    for _ in _until(machine, least, seconds):
        before = machine.now()
        loaded_plan.session.run(loaded_plan.inputs)
        times.append((machine.now() - before) * 1e3)
    return float(np.median(times))
