"""Calls with arrays on the host: what is copied where, and what an error leaves behind."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from helpers.fake_gpu import array_at

from trt_native.cuda import DeviceBuffer, Event, PinnedPool
from trt_native.errors import CudaError
from trt_native.runtime import staging
from trt_native.runtime.execution import BoundShapes
from trt_native.runtime.staging import HostExecution, StagingPipeline
from trt_native.runtime.tensor_views import read

SMALL, LARGE = (2, 3), (4, 1000)


class Doubling:
    """An execution context that doubles, at once, and device memory that is the host's."""

    host_names = frozenset()
    aliases: ClassVar[dict[str, str]] = {}

    def __init__(self):
        x, y = (SimpleNamespace(name=name, dtype="float32") for name in "xy")
        self.device_inputs = (x,)
        self.engine = SimpleNamespace(outputs=(y,), ordinal=0)
        self.stream = SimpleNamespace(handle=5, synchronize=lambda: None)
        self.launched = []

    def launch(self, bound, addresses, stream, *, graph):
        self.launched.append((bound, stream))
        x, y = (array_at(address, bound.inputs[0]) for address in addresses)
        np.multiply(x, 2, out=y)


def shapes_of(shape):
    return BoundShapes(0, (shape,), {"y": shape})


@pytest.fixture
def memory(driver, blocks, monkeypatch):
    """Device memory on the host, of which there may be none left."""
    left = SimpleNamespace(bytes=1 << 30)

    def reserve(self, nbytes, stream):
        if nbytes > left.bytes:
            raise CudaError("cannot allocate", code=2)
        if self._nbytes < nbytes:
            self._buffer = SimpleNamespace(memory=bytearray(nbytes), close=lambda: None)
            self._pointer = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer.memory))
            self._nbytes = nbytes
        return self._pointer

    def copied(target, source, nbytes, stream):
        ctypes.memmove(target, source, nbytes)
        return (0,)

    monkeypatch.setattr(DeviceBuffer, "reserve", reserve)
    driver.cuMemcpyHtoDAsync = driver.cuMemcpyDtoHAsync = copied
    return left


@pytest.fixture
def pool(blocks):
    return PinnedPool()


@pytest.fixture
def execution(memory, pool):
    return HostExecution(Doubling(), pool)


def filled(execution, bound, value):
    execution.fill(bound, {"x": read(np.full(bound.inputs[0], value, np.float32))}, {})


def outcome(execution):
    execution.upload(1)
    execution.enqueue(2)
    execution.download(3)
    return execution.results()["y"]


def test_other_values_of_the_same_shapes(execution):
    bound = shapes_of(SMALL)
    filled(execution, bound, 1)
    first = outcome(execution)
    assert execution.refill(bound, {"x": np.full(SMALL, 4, np.float32)})
    second = outcome(execution)
    np.testing.assert_array_equal(first, np.full(SMALL, 2, np.float32))
    np.testing.assert_array_equal(second, np.full(SMALL, 8, np.float32))
    assert execution._context.launched == [(bound, 2)] * 2


def test_what_is_not_filled_again(execution):
    bound = shapes_of(SMALL)
    x = {"x": np.zeros(SMALL, np.float32)}
    assert not execution.refill(bound, x), "never filled"
    filled(execution, bound, 1)
    assert not execution.refill(shapes_of(SMALL), x), "other shapes"
    execution.fill(bound, {"x": read(x["x"])}, {"y": 512})
    assert not execution.refill(bound, x), "the output's address is the caller's"
    filled(execution, bound, 1)
    assert execution.refill(bound, x)
    execution.close()
    assert not execution.refill(bound, x), "closed"


@pytest.mark.parametrize("known", [False, True])
def test_a_fill_that_fails_is_not_taken_for_one(execution, memory, known):
    if known:
        filled(execution, shapes_of(SMALL), 1)
    bound = shapes_of(LARGE)
    memory.bytes = 1000
    with pytest.raises(CudaError, match="cannot allocate"):
        filled(execution, bound, 1)
    memory.bytes = 1 << 30
    x = {"x": np.full(LARGE, 3, np.float32)}
    assert not execution.refill(bound, x)
    execution.fill(bound, {"x": read(x["x"])}, {})
    np.testing.assert_array_equal(outcome(execution), np.full(LARGE, 6, np.float32))


def test_a_closed_call_gives_its_memory_back(execution, pool):
    filled(execution, shapes_of(LARGE), 1)
    assert pool.lent_bytes >= 16000
    execution.close()
    execution.close()
    assert pool.lent_bytes == 0


def test_an_event_that_stands_for_a_later_run_says_nothing_of_an_earlier_one(memory, pool, driver):
    first, second = HostExecution(Doubling(), pool), HostExecution(Doubling(), pool)
    event = Event()
    assert not first.busy
    first.record_end(event, 3)
    assert first.busy
    assert not first.done()
    event.synchronize()
    assert not first.busy
    second.record_end(event, 3)
    assert not first.busy, "its run is done, and the event another's"
    assert second.busy
    driver.reached = True
    assert second.done()


def test_staging_memory_is_waited_for_while_it_may_be_read(execution, driver):
    bound = shapes_of(SMALL)
    x = {"x": np.zeros(SMALL, np.float32)}
    filled(execution, bound, 1)
    event = Event()
    execution.uploaded.record(1)
    execution.record_end(event, 3)
    driver.log.clear()
    execution.refill(bound, x)
    assert driver.log == ["wait"]
    execution.uploaded.record(1)
    event.synchronize()
    driver.log.clear()
    execution.refill(bound, x)
    assert driver.log == []


def test_a_run_that_fails_halfway_is_waited_for(execution, monkeypatch):
    waited = []
    monkeypatch.setattr(
        staging.Stream,
        "borrowed",
        lambda handle: SimpleNamespace(synchronize=lambda: waited.append(handle)),
    )

    def refused(*_, **options):
        raise CudaError("TensorRT failed to run the engine")

    execution._context.launch = refused
    filled(execution, shapes_of(SMALL), 1)
    pipeline = SimpleNamespace(streams=(SimpleNamespace(handle=1), SimpleNamespace(handle=3)))
    with pytest.raises(CudaError, match="failed to run"):
        StagingPipeline.run(pipeline, execution, 2, Event(), spread=True)
    assert sorted(waited) == [1, 2, 3]
