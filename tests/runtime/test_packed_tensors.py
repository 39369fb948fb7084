"""Engines that read and write other layouts than C order, through sessions that do not."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from helpers.fake_gpu import FakeEngine, FakeTensor, array_at

from trt_native.errors import UnsupportedError
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime import Session
from trt_native.shapes import ShapeRange

# Of 5 channels: two vectors of CHW4, of which the second is filled up, and 8 channels in HWC8.
CHANNELS = 5


class PackingContext:
    """Doubles ``x`` in CHW4 into ``y`` in HWC8; gaps in ``x`` must be 0, those in ``y`` are NaN."""

    active_optimization_profile = 0

    def __init__(self, driver, outputs=None):
        self._driver = driver
        self._shape = ()
        self._addresses = {}
        self._outputs = outputs

    def set_input_shape(self, name, shape):
        self._shape = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        return self._outputs or self._shape

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        n, c, h, w = self._shape
        x = array_at(self._addresses["x"], (n, 2, h, w, 4))
        y = array_at(self._addresses["y"], (n, h, w, 8))

        def double():
            plain = x.transpose(0, 1, 4, 2, 3).reshape(n, 8, h, w)
            assert not plain[:, c:].any()
            y[...] = np.nan
            y[..., :c] = 2 * plain[:, :c].transpose(0, 2, 3, 1)

        self._driver.work("enqueue", stream, double)
        return True


class PackingEngine(FakeEngine):
    outputs_of_data = None

    def __init__(self, driver):
        super().__init__(driver)
        shape, ranges = (-1, CHANNELS, -1, 3), (ShapeRange.parse("1x5x1x3:1x5x2x3:4x5x9x3"),)
        self.tensors = (
            PlanTensor("x", "input", "float32", shape, (), ranges, format="CHW4"),
            PlanTensor("y", "output", "float32", shape, format="HWC8"),
        )

    def create_context(self, *, user_managed=False):
        return PackingContext(self._driver, self.outputs_of_data)


@pytest.fixture
def driver(gpu, monkeypatch):
    """The GPU with copies of rows, which read and write what was asked for and no more."""

    class Copy:
        pass

    class Kinds:
        CU_MEMORYTYPE_DEVICE = 2

    def copy_rows(copy, stream):
        rows, width = copy.Height, copy.WidthInBytes
        target, source = (copy.dstDevice, copy.dstPitch), (copy.srcDevice, copy.srcPitch)
        assert min(copy.dstPitch, copy.srcPitch) >= width

        def move():
            for row in range(rows):
                ctypes.memmove(target[0] + row * target[1], source[0] + row * source[1], width)

        gpu.work("rows", stream, move)
        return (0,)

    def fill(target, value, nbytes, stream):
        gpu.work("fill", stream, lambda: ctypes.memset(target, value, nbytes))
        return (0,)

    for name, call in (
        ("CUDA_MEMCPY2D", Copy),
        ("CUmemorytype", Kinds),
        ("cuMemcpy2DAsync", copy_rows),
        ("cuMemsetD8Async", fill),
    ):
        monkeypatch.setattr(type(gpu), name, staticmethod(call), raising=False)
    return gpu


@pytest.fixture
def session(driver):
    with Session(PackingEngine(driver)) as session:
        yield session


@pytest.fixture
def images(rng):
    return lambda n=2, h=2: rng.standard_normal((n, CHANNELS, h, 3), np.float32)


def test_arrays_on_the_host(session, images, driver):
    for n, h in ((2, 2), (2, 2), (2, 2), (1, 1), (4, 9), (2, 2), (2, 2)):
        x = images(n, h)
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
    assert [what for what, _ in driver.log].count("replay") >= 2


def test_arrays_on_the_gpu(session, images, driver, torch_cuda):
    x = images()
    tensor, out = FakeTensor(x), FakeTensor(np.zeros_like(x))
    for _ in range(4):
        session.run({"x": tensor}, out={"y": out})
        np.testing.assert_array_equal(out.array, 2 * x)
        x = x + 1
        tensor.array[...] = x
    larger = images(4, 9)
    found = session.run({"x": FakeTensor(larger)})  # which keeps the memory of its array
    np.testing.assert_array_equal(found["y"].array, 2 * larger)
    session.run({"x": tensor}, out={"y": out})  # the graph of before, at its addresses
    np.testing.assert_array_equal(out.array, 2 * x)


def test_data_dependent_outputs_are_refused_by_name(driver, images):
    engine = PackingEngine(driver)
    engine.outputs_of_data = (-1, CHANNELS, 2, 3)
    with (
        Session(engine) as session,
        pytest.raises(UnsupportedError, match="output 'y' has the format HWC8, and a shape that"),
    ):
        session.run({"x": images()})
