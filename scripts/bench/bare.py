"""A plan run by TensorRT's own Python API and the CUDA driver: what any runtime adds to."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import driver

from trt_native.errors import CudaError

__all__ = ["Array", "Bare", "call", "driver", "use_gpu"]

QUEUED = 64  # executions between two synchronisations of the loops timed by events

Array = np.ndarray[Any, np.dtype[np.float32]]


def call(result: tuple[Any, ...]) -> Any:
    """Return the value of a driver call, if it succeeded."""
    code, *values = result
    if int(code) != 0:
        raise CudaError(f"the CUDA driver returned {code.name} (code {int(code)})")
    return values[0] if values else None


def use_gpu() -> None:
    """Make the first GPU's primary context current, which PyTorch and CUDA's runtime use too."""
    call(driver.cuInit(0))
    call(driver.cuCtxSetCurrent(call(driver.cuDevicePrimaryCtxRetain(call(driver.cuDeviceGet(0))))))


class Bare:
    """A plan run with nothing but TensorRT and the driver, in the current CUDA context.

    Args:
        context: An ``IExecutionContext`` with the input "x" and the output "y", which have the
            same shape; the caller keeps its engine.
        x: The input.
    """

    def __init__(self, context: Any, x: Array) -> None:
        self.x, self.nbytes = x, x.nbytes
        self.context = context
        self.stream = call(driver.cuStreamCreate(1))  # not ordered with the default stream
        self.device = {name: call(driver.cuMemAlloc(x.nbytes)) for name in "xy"}
        self.host = {name: self._pinned(x) for name in "xy"}
        self.host["x"][...] = x
        for name, address in self.device.items():
            if not self.context.set_tensor_address(name, int(address)):
                raise CudaError(f"TensorRT refused the address of {name!r}")
        self.upload()
        self.enqueue()
        self.synchronize()
        self.graph = self._capture()

    def _pinned(self, like: Array) -> Array:
        address = int(call(driver.cuMemHostAlloc(like.nbytes, 0)))
        memory: Any = (ctypes.c_byte * like.nbytes).from_address(address)
        pinned: Array = np.ndarray(like.shape, like.dtype, buffer=memory)
        return pinned

    def _capture(self) -> Any:
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call(driver.cuStreamBeginCapture(self.stream, mode))
        self.enqueue()
        return call(driver.cuGraphInstantiate(call(driver.cuStreamEndCapture(self.stream)), 0))

    def enqueue(self) -> None:
        """Enqueue the kernels."""
        if not self.context.execute_async_v3(int(self.stream)):
            raise CudaError("TensorRT failed to run the engine")

    def replay(self) -> None:
        """Launch the graph."""
        call(driver.cuGraphLaunch(self.graph, self.stream))

    def upload(self) -> None:
        """Copy the input to the GPU."""
        source = self.host["x"].ctypes.data
        call(driver.cuMemcpyHtoDAsync(self.device["x"], source, self.nbytes, self.stream))

    def download(self) -> None:
        """Copy the output from the GPU."""
        target = self.host["y"].ctypes.data
        call(driver.cuMemcpyDtoHAsync(target, self.device["y"], self.nbytes, self.stream))

    def synchronize(self) -> None:
        """Wait for all work of the stream."""
        call(driver.cuStreamSynchronize(self.stream))

    def result(self, action: Callable[[], None]) -> Array:
        """Return the output of a run by ``action``."""
        self.host["y"].fill(np.nan)
        self.upload()
        call(driver.cuMemsetD8Async(self.device["y"], 0xFF, self.nbytes, self.stream))
        action()
        self.download()
        self.synchronize()
        found: Array = self.host["y"].copy()
        return found

    def close(self) -> None:
        """Free the memory, the graph and the stream."""
        self.synchronize()
        self.context = None
        call(driver.cuGraphExecDestroy(self.graph))
        for name in "xy":
            call(driver.cuMemFree(self.device[name]))
            call(driver.cuMemFreeHost(self.host[name].ctypes.data))
        call(driver.cuStreamDestroy(self.stream))

    def event_times(self, action: Callable[[], None]) -> list[float]:
        """Measure each of many runs, in seconds between two events, with the queue never empty."""
        events = [call(driver.cuEventCreate(0)) for _ in range(2 * QUEUED)]
        action()
        for begin, end in zip(events[::2], events[1::2], strict=True):
            call(driver.cuEventRecord(begin, self.stream))
            action()
            call(driver.cuEventRecord(end, self.stream))
        self.synchronize()
        pairs = zip(events[::2], events[1::2], strict=True)
        times = [call(driver.cuEventElapsedTime(begin, end)) / 1e3 for begin, end in pairs]
        for event in events:
            call(driver.cuEventDestroy(event))
        return times
