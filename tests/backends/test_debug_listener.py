"""Debug tensors: marks on real networks, and a listener that C++ calls as TensorRT calls it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import tiny_models
from helpers.backend_builds import DYNAMIC, build

from trt_native.backends import debug_listener
from trt_native.backends.debug_listener import make_debug_listener
from trt_native.builder.build_plan import build_plan
from trt_native.errors import BuildError, SpecError, UnsupportedError
from trt_native.plans.stored_kernels import stored_kernels

pytestmark = pytest.mark.backend
RAISED = -1


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("driver") / "driver.so"
    source = Path(__file__).with_name("debug_listener_driver.cpp")
    subprocess.run(
        [compiler, "-std=c++17", "-shared", "-fPIC", "-O1", "-o", library, source], check=True
    )
    loaded = ctypes.CDLL(str(library))
    loaded.kind.restype = ctypes.c_char_p
    return loaded


class Received(list):
    """The tensors that were passed on, with their values."""

    def __call__(self, tensor):
        self.append((tensor.name, tensor.dtype, tensor.shape, tensor.read()))


@pytest.fixture
def deliver(driver, backend):
    """Let C++ give the listener an array; returns what the listener returned."""
    trt = backend._trt

    def call(listener, array, dtype, *, location="HOST", stream=0, name="a.1", null=False):
        address = ctypes.c_void_p.from_address(id(listener) + 16)  # pybind11's first word
        assert driver.kind(address) == b"IDebugListener"
        extents = (ctypes.c_int64 * array.ndim)(*array.shape)
        return driver.deliver(
            address,
            None if null else ctypes.c_void_p(array.ctypes.data),
            int(getattr(trt.TensorLocation, location)),
            int(getattr(trt.DataType, dtype)),
            array.ndim,
            extents,
            name.encode(),
            ctypes.c_void_p(stream),
        )

    return call


TYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP8": ml_dtypes.float8_e4m3fn,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(2, 3, 5), (), (0, 4)], ids=str)
def test_values_of_every_type_arrive(backend, deliver, dtype, shape):
    kind = np.dtype(TYPES[dtype])
    values = np.arange(int(np.prod(shape))) % 2 + 1
    array = values.reshape(shape).astype(kind)
    received = Received()
    listener = make_debug_listener(backend._trt, received)
    assert deliver(listener, array, dtype, null=not array.size) == 1
    assert listener.failure is None
    ((name, found, extents, copy),) = received
    assert (name, found, extents, copy.dtype) == ("a.1", kind.name, shape, kind)
    assert copy.tobytes() == array.tobytes()


def test_values_are_copies(backend, deliver):
    received, array = Received(), np.arange(6, dtype=np.float32)
    listener = make_debug_listener(backend._trt, received)
    deliver(listener, array, "FLOAT")
    array[:] = -1
    assert received[0][3].tolist() == [0, 1, 2, 3, 4, 5]


def test_values_on_the_gpu_are_copied_on_the_runs_stream(backend, deliver, monkeypatch):
    """The GPU's memory is the host's here: only what touches it is replaced."""
    calls = []

    def copy(host, device, nbytes, stream):
        calls.append(("copy", stream))
        ctypes.memmove(host, device, nbytes)

    class Borrowed:
        def __init__(self, handle):
            self.handle = handle

        @classmethod
        def borrowed(cls, handle):
            return cls(handle)

        def synchronize(self):
            calls.append(("synchronize", self.handle))

    monkeypatch.setattr(debug_listener, "copy_to_host", copy)
    monkeypatch.setattr(debug_listener, "Stream", Borrowed)
    received, array = Received(), np.arange(6, dtype=np.float16).reshape(2, 3)
    listener = make_debug_listener(backend._trt, received)
    assert deliver(listener, array, "HALF", location="DEVICE", stream=0x7F0012345678) == 1
    assert received[0][3].tolist() == array.tolist()
    assert calls == [("copy", 0x7F0012345678), ("synchronize", 0x7F0012345678)]


def test_what_is_not_read_is_not_copied(backend, deliver, monkeypatch):
    monkeypatch.setattr(debug_listener, "copy_to_host", None)  # a call would fail
    names = []
    listener = make_debug_listener(backend._trt, lambda tensor: names.append(tensor.name))
    assert deliver(listener, np.zeros(3, np.float32), "FLOAT", location="DEVICE") == 1
    assert (names, listener.failure) == (["a.1"], None)


@pytest.mark.parametrize("error", [ZeroDivisionError("planted"), KeyboardInterrupt()])
def test_an_exception_is_kept_and_ends_the_deliveries(backend, deliver, error):
    calls = []

    def fail(tensor):
        calls.append(tensor.name)
        raise error

    listener = make_debug_listener(backend._trt, fail)
    array = np.zeros(3, np.float32)
    assert deliver(listener, array, "FLOAT", name="a") != RAISED
    assert deliver(listener, array, "FLOAT", name="b") != RAISED
    assert calls == ["a"]
    assert listener.failure is error


@pytest.mark.parametrize("dtype", ["INT4", "FP4"])
def test_types_below_a_byte_are_left_out(backend, deliver, dtype):
    if not hasattr(backend._trt.DataType, dtype):
        pytest.skip(f"this TensorRT has no {dtype}")
    received = Received()
    listener = make_debug_listener(backend._trt, received)
    assert deliver(listener, np.zeros(4, np.uint8), dtype) == 1
    assert (received, listener.failure) == ([], None)


class Context:
    """An execution context that takes a listener, or none, and has debug tensors, or none."""

    def __init__(self, takes=True, has=True):
        self.takes, self.has, self.listener = takes, has, None

    def set_debug_listener(self, listener):
        self.listener = listener
        return self.takes

    @property
    def unfused_tensors_debug_state(self):
        return self.has

    @unfused_tensors_debug_state.setter
    def unfused_tensors_debug_state(self, flag):
        self.has = self.has and flag


def test_contexts_get_the_listener(backend, deliver):
    context, received = Context(), Received()
    listener = backend.listen(context, received)
    assert context.listener is listener
    deliver(listener, np.ones(2, np.float32), "FLOAT")
    assert [name for name, *_ in received] == ["a.1"]


@pytest.mark.parametrize("lacks", ["takes", "has"])
def test_contexts_without_debug_tensors_are_refused(backend, lacks):
    with pytest.raises(UnsupportedError, match="no debug tensors of this plan"):
        backend.listen(Context(**{lacks: False}), print)


class TestMarks:
    @pytest.fixture
    def rtx(self, backend):
        if backend.name != "rtx":
            pytest.skip("the library behind this lane has this function at another position")
        return backend

    def test_the_plan_keeps_its_kernels(self, rtx, request_for):
        """Marks are one byte of the plan: nothing is fused otherwise."""
        plain, marked = (
            bytes(build(rtx, request_for(shapes=DYNAMIC, debug_tensors=wanted)).data)
            for wanted in (False, True)
        )
        differing = [i for i, (a, b) in enumerate(zip(plain, marked, strict=True)) if a != b]
        assert len(differing) == 1
        assert stored_kernels(plain) == stored_kernels(marked) is not None

    def test_refused_marks_are_an_error(self, rtx, request_for):
        class Refusing:
            def mark_unfused_tensors_as_debug_tensors(self):
                return False

        with pytest.raises(BuildError, match="marked no debug tensors"):
            rtx._mark_debug_tensors(request_for(debug_tensors=True), Refusing())


def test_where_it_is_a_capability(backend):
    has_marks = hasattr(backend._trt.INetworkDefinition, "mark_unfused_tensors_as_debug_tensors")
    assert backend.capabilities.debug_tensors == (has_marks and backend.name != "rtx")


def test_builds_refuse_what_the_backend_lacks(backend, tmp_path):
    if backend.capabilities.debug_tensors:
        pytest.skip("it has debug tensors")
    model = tiny_models.conv(tmp_path / "m.onnx", (1, 3, 8, 8))
    with pytest.raises(UnsupportedError, match="gives out no debug tensors: make the tensors out"):
        build_plan(model, backend=backend, debug_tensors=True)
    with pytest.raises(SpecError, match="neither extra outputs nor debug tensors"):
        build_plan(model, debug_tensors=True, isolated=True)
