"""The GPU: what it is, streams, device memory and copies, on top of cuda-python.

``cuda.core`` is used where it has a word for the thing, ``cuda.bindings`` where it has not. Nothing
here is imported, and no driver is touched, before a function of this module is called.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_native.errors import ClosedError, CudaError
from trt_native.spec import format_bytes

__all__ = ["DeviceBuffer", "GpuInfo", "PinnedBuffer", "Stream", "gpu_info", "require_gpu"]


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """One GPU and its driver.

    Attributes:
        name: Marketing name.
        compute_capability: Such as ``9.0``.
        driver: CUDA version the driver supports, such as ``13.0``.
        total_bytes: Size of the device memory.
        free_bytes: How much of it was free when asked.
    """

    name: str
    compute_capability: str
    driver: str
    total_bytes: int
    free_bytes: int


def gpu_info(ordinal: int = 0) -> GpuInfo | None:
    """Describe a GPU; None where there is no driver or no such GPU.

    Makes the GPU's primary context current, which takes some of its memory.
    """
    try:
        return require_gpu(ordinal)
    except CudaError:
        return None


def require_gpu(ordinal: int = 0) -> GpuInfo:
    """Make a GPU's primary context current on this thread and describe it.

    Raises:
        CudaError: there is no driver or no such GPU.
    """
    with _translated("find a GPU"):
        from cuda.bindings import driver
        from cuda.core import Device

        device = Device(ordinal)
        device.set_current()
        major, minor = device.compute_capability
        free, total = _call(driver.cuMemGetInfo())
        version = _call(driver.cuDriverGetVersion())[0]
    return GpuInfo(
        name=str(device.name),
        compute_capability=f"{major}.{minor}",
        driver=f"{version // 1000}.{version % 1000 // 10}",
        total_bytes=int(total),
        free_bytes=int(free),
    )


class Stream:
    """A CUDA stream of its own, not ordered with the default stream.

    Raises:
        CudaError: no GPU was found, or the stream cannot be created.
    """

    def __init__(self, ordinal: int = 0) -> None:
        with _translated("create a stream"):
            from cuda.core import Device

            device = Device(ordinal)
            device.set_current()
            self._stream: Any = device.create_stream()

    @property
    def handle(self) -> int:
        """The ``cudaStream_t`` as an integer."""
        if self._stream is None:
            raise ClosedError("the stream is closed")
        return int(self._stream.handle)

    def synchronize(self) -> None:
        """Wait until all work of the stream is done.

        Raises:
            CudaError: some of that work failed.
        """
        with _translated("finish the work of a stream"):
            self._stream.sync()

    def close(self) -> None:
        """Destroy the stream once its work is done. May be called again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class DeviceBuffer:
    """Device memory that grows when more is asked of it and never shrinks.

    The contents are undefined after it has grown.
    """

    def __init__(self) -> None:
        self._buffer: Any = None

    @property
    def pointer(self) -> int:
        """Device address, aligned to at least 256 bytes; 0 before the first :meth:`reserve`."""
        return int(self._buffer.handle) if self._buffer is not None else 0

    def reserve(self, nbytes: int, stream: Stream) -> int:
        """Hold at least ``nbytes`` and return the address.

        An empty tensor needs an address too, so at least one byte is taken.

        Raises:
            CudaError: the GPU has not that much memory left.
        """
        nbytes = max(nbytes, 1)
        if self._buffer is None or self._buffer.size < nbytes:
            self.close()
            with _translated(f"allocate {format_bytes(nbytes)} of GPU memory"):
                from cuda.core import Device

                self._buffer = Device().allocate(nbytes, stream=stream._stream)
        return self.pointer

    def upload(self, array: np.ndarray[Any, Any], stream: Stream) -> None:
        """Copy a C-contiguous array to the buffer's start, in ``stream``'s order."""
        with _translated("copy to the GPU"):
            from cuda.bindings import driver

            if array.nbytes:
                _call(
                    driver.cuMemcpyHtoDAsync(
                        self.pointer, array.ctypes.data, array.nbytes, stream.handle
                    )
                )

    def download(self, array: np.ndarray[Any, Any], stream: Stream) -> None:
        """Copy the buffer's start into a C-contiguous array, in ``stream``'s order."""
        with _translated("copy from the GPU"):
            from cuda.bindings import driver

            if array.nbytes:
                _call(
                    driver.cuMemcpyDtoHAsync(
                        array.ctypes.data, self.pointer, array.nbytes, stream.handle
                    )
                )

    def close(self) -> None:
        """Give the memory back. May be called again."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.close()


class PinnedBuffer:
    """Page-locked host memory, from which copies to the GPU run beside the CPU's work.

    It grows when more is asked of it and never shrinks. Nothing may be in flight from it when it
    grows or is closed.
    """

    def __init__(self) -> None:
        self._address = 0
        self._nbytes = 0

    def hold(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Copy an array here; the result lies in this memory and lives as long as it does.

        Raises:
            CudaError: the memory cannot be had.
        """
        if self._nbytes < array.nbytes or not self._address:
            self.close()
            nbytes = max(array.nbytes, 1)
            with _translated(f"allocate {format_bytes(nbytes)} of page-locked memory"):
                from cuda.bindings import driver

                self._address = int(_call(driver.cuMemHostAlloc(nbytes, 0))[0])
                self._nbytes = nbytes
        memory: Any = (ctypes.c_byte * array.nbytes).from_address(self._address)
        held: np.ndarray[Any, Any] = np.ndarray(array.shape, array.dtype, buffer=memory)
        held[...] = array
        return held

    def close(self) -> None:
        """Give the memory back. May be called again."""
        address, self._address, self._nbytes = self._address, 0, 0
        if address:
            with _translated("free page-locked memory"):
                from cuda.bindings import driver

                _call(driver.cuMemFreeHost(address))


def _call(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check the return code that leads every result of cuda.bindings; return the rest."""
    code, *values = result
    if int(code) != 0:
        raise CudaError(f"{code.name} (code {int(code)})")
    return tuple(values)


@contextlib.contextmanager
def _translated(action: str) -> Iterator[None]:
    """Turn whatever cuda-python raises into a :class:`CudaError` that names the action."""
    try:
        yield
    except (CudaError, ClosedError) as error:
        raise type(error)(f"cannot {action}: {error}") from None
    except ImportError as error:
        raise CudaError(f"cannot {action}: cuda-python does not import: {error}") from None
    except Exception as error:  # cuda-python's own errors have no base class but this
        text = " ".join(str(error).split())
        if "driver library" in text:
            text = "this machine has no NVIDIA driver (libcuda)"
        raise CudaError(f"cannot {action}: {text or type(error).__name__}") from None
