# ruff: noqa: N802  (the driver names its calls so)
"""An engine, its driver and PyTorch's CUDA tensors in ordinary memory, for sessions without a GPU.

The engine computes ``y = 2 * x`` in float32 for any shape, at the moment the work reaches a stream.
"""

from __future__ import annotations

import contextlib
import ctypes
from types import SimpleNamespace

import numpy as np

from trt_native.cuda import DeviceBuffer, PinnedPool, Stream, graphs, memory, streams
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime import guard, session
from trt_native.runtime.context_registry import ContextRegistry
from trt_native.runtime.engine import Engine
from trt_native.shapes import ShapeRange

ALIGNMENT = 256
CURRENT_STREAM = 7


def array_at(address, shape):
    floats = ctypes.c_float * int(np.prod(shape))
    return np.ctypeslib.as_array(floats.from_address(address)).reshape(shape)


class Memory:
    """Zeroed bytes at an aligned address, as device memory has."""

    def __init__(self, nbytes, offset=0):
        self._bytes = ctypes.create_string_buffer(max(nbytes, 1) + 2 * ALIGNMENT)
        base = ctypes.addressof(self._bytes)
        self.handle = base + -base % ALIGNMENT + offset
        self.size = nbytes

    def close(self):
        pass


class FakeDriver:
    """The driver's calls; events are reached at once, and ``log`` keeps the calls on streams."""

    CUresult = SimpleNamespace(CUDA_ERROR_NOT_READY=600)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self):
        self.log = []
        self.captured = None
        self.user_captures = set()

    def work(self, what, stream, action):
        """Do the work, or keep it in the graph that is being captured."""
        if self.captured is not None:
            self.captured.append(action)
        else:
            self.log.append((what, stream))
            action()

    def cuEventCreate(self, flags):
        return 0, object()

    def cuEventDestroy(self, handle):
        return (0,)

    def cuEventRecord(self, handle, stream):
        self.log.append(("record", stream))
        return (0,)

    def cuStreamWaitEvent(self, stream, handle, flags):
        self.log.append(("wait", stream))
        return (0,)

    def cuEventQuery(self, handle):
        return (0,)

    def cuEventSynchronize(self, handle):
        return (0,)

    def cuStreamIsCapturing(self, stream):
        return 0, stream in self.user_captures

    def cuStreamBeginCapture(self, stream, mode):
        self.captured = []
        return (0,)

    def cuStreamEndCapture(self, stream):
        captured, self.captured = self.captured, None
        return 0, captured

    def cuGraphInstantiate(self, captured, flags):
        return 0, captured

    def cuGraphDestroy(self, captured):
        return (0,)

    def cuGraphExecDestroy(self, handle):
        return (0,)

    def cuGraphLaunch(self, handle, stream):
        self.log.append(("replay", stream))
        for action in handle:
            action()
        return (0,)

    def cuMemcpyHtoDAsync(self, target, source, nbytes, stream):
        self.work("upload", stream, lambda: ctypes.memmove(target, source, nbytes))
        return (0,)

    def cuMemcpyDtoHAsync(self, target, source, nbytes, stream):
        self.work("download", stream, lambda: ctypes.memmove(target, source, nbytes))
        return (0,)


class FakeContext:
    """TensorRT's execution context, which needs 1000 bytes for the activations of a row."""

    active_optimization_profile = 0
    memory = None

    def __init__(self, driver, factor=2):
        self._driver = driver
        self._factor = factor
        self._shape = ()
        self._addresses = {}

    def set_input_shape(self, name, shape):
        self._shape = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        return self._shape

    def update_device_memory_size_for_shapes(self):
        return 1000 * self._shape[0]

    def set_device_memory(self, pointer, nbytes):
        self.memory = pointer, nbytes

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        x, y = (array_at(self._addresses[name], self._shape) for name in "xy")
        factor = float(self._factor)
        self._driver.work("enqueue", stream, lambda: np.multiply(x, factor, out=y))
        return True


class FakeEngine(Engine):
    """An engine with one input ``x`` and one output ``y``, of 1 to 64 rows of 3 numbers."""

    weights_loaded = True

    def __init__(self, driver):
        self.ordinal = 0
        self.contexts = ContextRegistry()
        self.profile_count = 1
        self.kernel_specialization = None
        self.tensors = (
            PlanTensor("x", "input", "float32", (-1, 3), (), (ShapeRange.parse("1x3:2x3:64x3"),)),
            PlanTensor("y", "output", "float32", (-1, 3)),
        )
        self.backend = SimpleNamespace(
            collected_errors=lambda: contextlib.nullcontext([]),
            output_allocator=lambda allocate: None,
        )
        self._driver = driver

    def is_host_tensor(self, name):
        return False

    def create_context(self, *, user_managed=False):
        return FakeContext(self._driver)

    def save_runtime_cache(self):
        pass

    def close(self):
        pass


class FakeTensor:
    """A float32 CUDA tensor, as far as a session looks at one."""

    is_cuda = True
    dtype = "torch.float32"
    device = SimpleNamespace(type="cuda", index=0)

    def __init__(self, array, offset=0):
        self._memory = Memory(array.nbytes, offset)
        self.shape = array.shape
        self.recorded = []
        self.array[...] = array

    @property
    def array(self):
        return array_at(self._memory.handle, self.shape)

    def data_ptr(self):
        return self._memory.handle

    def get_device(self):
        return 0

    def is_contiguous(self):
        return True

    def record_stream(self, stream):
        self.recorded.append(stream)

    def new_empty(self, shape, dtype):
        return FakeTensor(np.full(shape, np.nan, np.float32))


def fake_torch(current=CURRENT_STREAM):
    """PyTorch as a session uses it, whose current stream is ``torch.stream``."""
    torch = SimpleNamespace(
        __spec__=SimpleNamespace(_initializing=False),
        Tensor=FakeTensor,
        float32="torch.float32",
        stream=current,
        get_num_threads=lambda: 1,
        from_numpy=lambda array: ("from_numpy", array),
        cuda=SimpleNamespace(ExternalStream=lambda handle, device: handle),
    )

    def empty_strided(shape, strides, dtype):
        return FakeTensor(np.full(shape, np.nan, np.float32))

    guards = SimpleNamespace(_empty_strided_cuda=empty_strided)
    torch._C = SimpleNamespace(
        _cuda_getCurrentRawStream=lambda ordinal: torch.stream,
        _dynamo=SimpleNamespace(guards=guards),
    )
    torch.empty_strided = lambda shape, strides, dtype, device: empty_strided(shape, strides, dtype)
    return torch


def install(monkeypatch):
    """Put the fakes in the place of the GPU; returns the driver."""
    driver = FakeDriver()
    handles = iter(range(100, 10000))
    pinned = {}

    def make_stream(self, ordinal=0):
        self._handle = next(handles)
        self._stream = SimpleNamespace(sync=lambda: None, close=lambda: None)

    def borrowed(cls, handle):
        stream = cls.__new__(cls)
        stream._handle = handle
        stream._stream = SimpleNamespace(sync=lambda: None, close=lambda: None)
        return stream

    def reserve(self, nbytes, stream):
        if self._nbytes < max(nbytes, 1):
            self._buffer = Memory(max(nbytes, 1))
            self._pointer, self._nbytes = self._buffer.handle, max(nbytes, 1)
        return self._pointer

    def allocate(size):
        block = Memory(size)
        pinned[block.handle] = block
        return block.handle

    for module in (streams, memory, graphs):
        monkeypatch.setattr(module, "bindings", lambda: driver)
    monkeypatch.setattr(streams, "make_current", lambda ordinal: None)
    monkeypatch.setattr(Stream, "__init__", make_stream)
    monkeypatch.setattr(Stream, "borrowed", classmethod(borrowed))
    monkeypatch.setattr(DeviceBuffer, "reserve", reserve)
    monkeypatch.setattr(PinnedPool, "_allocate", staticmethod(allocate))
    monkeypatch.setattr(memory, "_free_pinned", lambda address: pinned.pop(address, None))
    for module in (session, guard):
        monkeypatch.setattr(module, "require_gpu", lambda ordinal: None)
    return driver
