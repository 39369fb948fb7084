"""Order, errors and limits of a pool, with sessions that only look like ours."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import as_completed
from types import SimpleNamespace

import numpy as np
import pytest

from trt_native.errors import ClosedError, CudaError, PlanError, SpecError
from trt_native.plans.plan import Plan
from trt_native.runtime import SessionPool, session_pool


class Machine:
    """Sessions that return their input and their GPU, and what was asked of them."""

    def __init__(self):
        self.used, self.closed, self.engines = [], [], []
        self.in_flight, self.most_in_flight = {}, {}
        self.gates = {}
        self.broken = frozenset()
        self.lock = threading.Lock()

    def engine(self, plan, *, ordinal, **options):
        if ordinal in self.broken:
            raise CudaError("no such GPU")
        self.engines.append(ordinal)
        return SimpleNamespace(ordinal=ordinal, close=lambda: self.closed.append(ordinal))

    def session(self, engine, *, cuda_graphs):
        return FakeSession(self, engine.ordinal)

    def count(self, ordinal, by):
        with self.lock:
            now = self.in_flight[ordinal] = self.in_flight.get(ordinal, 0) + by
            self.most_in_flight[ordinal] = max(self.most_in_flight.get(ordinal, 0), now)


class FakeSession:
    inputs, outputs = ("x",), ("y",)

    def __init__(self, machine, ordinal):
        self.machine, self.ordinal, self.thread = machine, ordinal, threading.current_thread()

    def submit(self, inputs):
        assert threading.current_thread() is self.thread
        if "error" in inputs:
            raise inputs["error"]
        self.machine.used.append((self.ordinal, inputs["i"]))
        self.machine.count(self.ordinal, 1)
        return SimpleNamespace(result=lambda: self.result(inputs))

    def result(self, inputs):
        gate = self.machine.gates.get(self.ordinal)
        if gate is not None:
            assert gate.wait(30)
        self.machine.count(self.ordinal, -1)
        if "late" in inputs:
            raise inputs["late"]
        return {"i": inputs["i"], "gpu": self.ordinal}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        assert not self.machine.in_flight.get(self.ordinal)


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(session_pool, "Engine", machine.engine)
    monkeypatch.setattr(session_pool, "Session", machine.session)
    return machine


PLAN = Plan(b"")


def wait_until(reached):
    while not reached():
        time.sleep(0.001)


def numbers(count):
    return ({"i": i} for i in range(count))


def test_every_input_gives_one_result_in_order(machine):
    with SessionPool(["cuda:0", "1", 2], PLAN) as pool:
        assert pool.devices == ("cuda:0", "cuda:1", "cuda:2")
        assert (pool.inputs, pool.outputs) == (("x",), ("y",))
        assert [found["i"] for found in pool.map(numbers(1000))] == list(range(1000))
        assert pool.run({"i": 5})["i"] == 5
        assert asyncio.run(_awaited(pool))["i"] == 6
    assert sorted(i for _, i in machine.used)[:7] == [0, 1, 2, 3, 4, 5, 5]
    assert len(machine.used) == 1002
    assert sorted(machine.engines) == sorted(machine.closed) == [0, 1, 2]
    assert max(machine.most_in_flight.values()) <= 3


async def _awaited(pool):
    return await asyncio.wrap_future(pool.submit({"i": 6}))


@pytest.mark.parametrize("depth", [0, 2])
def test_a_gpu_with_nothing_to_do_comes_before_a_busy_one(machine, depth):
    machine.gates.update({0: threading.Event(), 1: threading.Event()})
    with SessionPool([0, 1], PLAN, depth=depth) as pool:
        futures = [pool.submit({"i": i}) for i in range(2)]
        wait_until(lambda: len(machine.used) == 2)
        for gate in machine.gates.values():
            gate.set()
        assert {future.result()["gpu"] for future in futures} == {0, 1}


def test_a_slow_gpu_holds_only_what_it_took(machine):
    machine.gates.update({0: threading.Event(), 1: threading.Event()})
    with SessionPool([0, 1], PLAN, depth=0) as pool:
        futures = [pool.submit({"i": i}) for i in range(50)]
        wait_until(lambda: len(machine.used) == 2)
        machine.gates[1].set()
        finished = as_completed(futures, timeout=30)
        assert {next(finished).result()["gpu"] for _ in range(49)} == {1}
        machine.gates[0].set()
        assert next(finished).result()["gpu"] == 0
        assert [future.result()["i"] for future in futures] == list(range(50))


def test_sessions_of_one_gpu_share_its_engine(machine):
    with SessionPool(["cuda:1", "cuda:1"], PLAN) as pool:
        assert len(list(pool.map(numbers(20)))) == 20
    assert machine.engines == machine.closed == [1]


def test_inputs_are_read_only_so_far_ahead(machine):
    read = []

    def inputs():
        for i in range(1000):
            read.append(i)
            yield {"i": i}

    with SessionPool([0, 1], PLAN, depth=1) as pool:
        results = pool.map(inputs())
        for i in range(5):
            assert next(results)["i"] == i
            assert len(read) <= i + 8
        results.close()
        assert pool.run({"i": 1})["i"] == 1
    assert len(machine.used) <= len(read) + 1 < 20


@pytest.mark.parametrize("kind", ["error", "late"])
def test_an_error_comes_in_its_place_with_its_device(machine, kind):
    inputs = list(numbers(100))
    inputs[40] = {"i": 40, kind: SpecError("x: bad", options=("x",))}
    with SessionPool([3], PLAN) as pool:
        with pytest.raises(SpecError, match=r"^cuda:3: x: bad") as raised:
            list(pool.map(inputs))
        assert raised.value.options == ("x",)
        results = pool.map(inputs)
        assert [next(results)["i"] for _ in range(40)] == list(range(40))
        with pytest.raises(SpecError, match="cuda:3"):
            next(results)
        found = list(pool.map(inputs, return_exceptions=True))
    assert [f["i"] for f in found if not isinstance(f, Exception)] == [
        *range(40),
        *range(41, 100),
    ]
    assert isinstance(found[40], SpecError)


def test_an_error_of_the_iterable_comes_after_the_results_before_it(machine):
    def inputs():
        yield from numbers(10)
        raise OSError("disk")

    with SessionPool([0, 1], PLAN) as pool:
        results = pool.map(inputs(), return_exceptions=True)
        assert [next(results)["i"] for _ in range(10)] == list(range(10))
        with pytest.raises(OSError, match="disk"):
            next(results)


def test_a_lost_gpu_gets_no_more_inputs(machine):
    inputs = list(numbers(200))
    inputs[50]["late"] = CudaError("the kernel failed", code=700)
    with SessionPool([0, 1], PLAN) as pool:
        found = list(pool.map(inputs, return_exceptions=True))
        assert [i for i, f in enumerate(found) if isinstance(f, Exception)] == [50]
        lost = int(str(found[50])[5])
        assert str(found[50]).startswith(f"cuda:{lost}: ")
        assert found[50].sticky
        assert {f["gpu"] for f in pool.map(numbers(50))} == {1 - lost}


def test_without_a_gpu_left_everything_else_fails(machine):
    inputs = list(numbers(20))
    inputs[0]["late"] = CudaError("the kernel failed", code=700)
    with SessionPool([0], PLAN) as pool:
        with pytest.raises(CudaError, match=r"^cuda:0: the kernel failed"):
            list(pool.map(inputs))
        with pytest.raises(CudaError, match="no GPU left"):
            pool.run({"i": 0})


def test_close_completes_what_runs_and_fails_what_waits(machine):
    machine.gates[0] = gate = threading.Event()
    pool = SessionPool([0], PLAN, depth=0)
    first, second = pool.submit({"i": 0}), pool.submit({"i": 1})
    wait_until(lambda: machine.used)
    closing = threading.Thread(target=pool.close)
    closing.start()
    with pytest.raises(ClosedError, match="pool is closed"):
        second.result(30)
    gate.set()
    closing.join()
    assert first.result(0)["i"] == 0
    pool.close()
    with pytest.raises(ClosedError, match="pool is closed"):
        pool.run({"i": 0})
    assert machine.closed == [0]


def test_a_gpu_that_is_not_there_closes_the_others(machine):
    machine.broken = {7}
    with pytest.raises(CudaError, match=r"^cuda:7: no such GPU"):
        SessionPool([0, 7], PLAN)
    assert machine.engines == machine.closed == [0]


def test_a_forgotten_pool_is_closed(machine):
    pool = SessionPool([0], PLAN)
    pool.run({"i": 0})
    del pool
    assert machine.closed == [0]


def test_arrays_on_a_gpu_are_refused(machine):
    interface = {"shape": (1,), "typestr": "<f4", "data": (256, False), "version": 3}
    on_gpu = SimpleNamespace(__cuda_array_interface__=interface)
    refused = pytest.raises(SpecError, match=r"^cuda:0: 'x': on a GPU")
    with SessionPool([0], PLAN) as pool, refused:
        pool.run({"i": np.int64(0), "x": on_gpu})


@pytest.mark.parametrize(
    ("devices", "options", "message"),
    [
        ([], {}, "give a list"),
        ("cuda:0", {}, "give a list"),
        (["gpu0"], {}, "'gpu0': give cuda:N or N"),
        ([-1], {}, "-1: give cuda:N or N"),
        ([True], {}, "True: give cuda:N or N"),
        ([0], {"depth": -1}, "depth=-1: must be 0 or more"),
    ],
)
def test_bad_arguments(machine, devices, options, message):
    with pytest.raises(SpecError, match=message):
        SessionPool(devices, PLAN, **options)
    assert not machine.engines


def test_a_missing_plan(machine, tmp_path):
    with pytest.raises(PlanError):
        SessionPool([0], tmp_path / "none.plan")
