"""Outputs in the memory of inputs, by an engine that adds to a cache in place."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.fake_gpu import ALIGNMENT, FakeEngine, FakeTensor, array_at

from trt_native.errors import SpecError
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime import Session

SHAPE = (2, 3)


class AddingContext:
    """Adds ``x`` to ``cache`` in place; ``y`` is twice the sum."""

    active_optimization_profile = 0

    def __init__(self, driver):
        self._driver = driver
        self._addresses = {}

    def set_input_shape(self, name, shape):
        return True

    def get_tensor_shape(self, name):
        return SHAPE

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        at = dict(self._addresses)
        assert at["present"] == at["cache"]

        def add():
            cache = array_at(at["cache"], SHAPE)
            cache += array_at(at["x"], SHAPE)
            array_at(at["y"], SHAPE)[...] = 2 * cache

        self._driver.work("enqueue", stream, add)
        return True


class AddingEngine(FakeEngine):
    def __init__(self, driver):
        super().__init__(driver)
        self.tensors = (
            PlanTensor("cache", "input", "float32", SHAPE),
            PlanTensor("x", "input", "float32", SHAPE),
            PlanTensor("y", "output", "float32", SHAPE),
            PlanTensor("present", "output", "float32", SHAPE, alias="cache"),
        )

    def create_context(self, *, user_managed=False):
        return AddingContext(self._driver)


@pytest.fixture
def session(gpu):
    with Session(AddingEngine(gpu)) as session:
        yield session


@pytest.fixture
def arrays(rng):
    return {name: rng.standard_normal(SHAPE, np.float32) for name in ("cache", "x")}


def test_arrays_on_the_host_stay_as_they_are(session, arrays):
    before = arrays["cache"].copy()
    for _ in range(4):  # the checked run, then known ones, and a replay
        found = session.run(arrays)
        np.testing.assert_array_equal(found["present"], before + arrays["x"])
        np.testing.assert_array_equal(found["y"], 2 * (before + arrays["x"]))
        np.testing.assert_array_equal(arrays["cache"], before)
    assert session.graph_count == 1


def test_an_array_on_the_gpu_is_updated_and_returned(session, arrays, torch_cuda):
    cache, x = FakeTensor(arrays["cache"]), FakeTensor(arrays["x"])
    expected = arrays["cache"].copy()
    for _ in range(5):
        found = session.run({"cache": cache, "x": x})
        expected += arrays["x"]
        assert found["present"] is cache
        np.testing.assert_array_equal(cache.array, expected)
        np.testing.assert_array_equal(found["y"].array, 2 * expected)
    assert list(found) == ["y", "present"]


def test_each_run_is_done_once_when_graphs_replay(session, arrays, torch_cuda, gpu):
    inputs = {"cache": FakeTensor(arrays["cache"]), "x": FakeTensor(arrays["x"])}
    out = {"y": FakeTensor(np.zeros(SHAPE, np.float32))}
    for _ in range(6):
        session.run(inputs, out=out)
    assert [what for what, _ in gpu.log].count("replay") >= 4
    np.testing.assert_allclose(
        inputs["cache"].array, arrays["cache"] + 6 * arrays["x"], rtol=1e-6, atol=1e-6
    )


def test_a_cache_on_the_gpu_with_inputs_on_the_host(session, arrays, torch_cuda):
    cache = FakeTensor(arrays["cache"])
    found = session.run({"cache": cache, "x": arrays["x"]})
    assert found["present"] is cache
    np.testing.assert_array_equal(cache.array, arrays["cache"] + arrays["x"])


def test_buffers(session, arrays, torch_cuda):
    cache, x = FakeTensor(arrays["cache"]), FakeTensor(arrays["x"])
    other = FakeTensor(arrays["cache"])
    with pytest.raises(SpecError, match="'present' is written in the memory of 'cache': give that"):
        session.run({"cache": cache, "x": x}, out={"present": other})
    assert session.run({"cache": cache, "x": x}, out={"present": cache})["present"] is cache
    host = np.empty(SHAPE, np.float32)
    session.run(arrays, out={"present": host})
    np.testing.assert_array_equal(host, arrays["cache"] + arrays["x"])


def test_a_result_on_the_gpu_needs_its_input_there(session, arrays, torch_cuda):
    with pytest.raises(SpecError, match="memory of 'cache', which is on the host: give it on the"):
        session.run({"cache": arrays["cache"], "x": FakeTensor(arrays["x"])})


@pytest.mark.parametrize("runs_before", [0, 1])
def test_shared_memory_is_refused(session, arrays, torch_cuda, runs_before):
    cache, x = FakeTensor(arrays["cache"]), FakeTensor(arrays["x"])
    for _ in range(runs_before):
        session.run({"cache": cache, "x": x})
    with pytest.raises(SpecError, match="'cache' and 'x' share memory that is written"):
        session.run({"cache": cache, "x": cache})


def test_no_copy_is_taken_of_what_is_written(session, arrays, torch_cuda):
    unaligned = FakeTensor(arrays["cache"], offset=ALIGNMENT // 2)
    with pytest.raises(SpecError, match="'cache' is written in place, so no copy of it can be"):
        session.run({"cache": unaligned, "x": FakeTensor(arrays["x"])}, cast=True)
    found = session.run({**arrays, "cache": arrays["cache"].astype(np.float64)}, cast=True)
    np.testing.assert_allclose(found["present"], arrays["cache"] + arrays["x"], rtol=1e-6)
