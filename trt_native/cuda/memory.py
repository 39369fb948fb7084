"""Device memory, page-locked host memory, and copies between arrays on the host."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from trt_native.arrays import Array
from trt_native.cuda.driver import bindings, check, memory_info, translated
from trt_native.cuda.streams import Stream
from trt_native.errors import CudaError
from trt_native.units import format_bytes

__all__ = [
    "DeviceBuffer",
    "PinnedBlock",
    "PinnedPool",
    "copy_host",
    "copy_rows",
    "copy_to_device",
    "copy_to_host",
    "fill_zeros",
]


_OUT_OF_MEMORY = 2
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: page-locked for every GPU
_MAX_COPY_THREADS = 4
_BYTES_PER_THREAD = 1 << 20
_PAGE = 4096


class DeviceBuffer:
    """Device memory that grows when more is asked of it and never shrinks.

    The contents are undefined after it has grown.
    """

    def __init__(self) -> None:
        self._buffer: Any = None
        self._pointer = 0
        self._nbytes = 0

    @property
    def pointer(self) -> int:
        """Device address, aligned to at least 256 bytes; 0 before the first :meth:`reserve`."""
        return self._pointer

    @property
    def nbytes(self) -> int:
        """How much it holds."""
        return self._nbytes

    def reserve(self, nbytes: int, stream: Stream) -> int:
        """Hold at least ``nbytes`` and return the address.

        An empty tensor needs an address too, so at least one byte is taken. Nothing may be in
        flight from or to the buffer when it grows, but work of ``stream``.

        Raises:
            CudaError: the GPU has not that much memory left.
        """
        nbytes = max(nbytes, 1)
        if self._nbytes < nbytes:
            self.close()
            try:
                with translated(f"allocate {format_bytes(nbytes)} of GPU memory"):
                    from cuda.core import Device

                    self._buffer = Device().allocate(nbytes, stream=stream.core)
                    self._pointer = int(self._buffer.handle)
                    self._nbytes = int(self._buffer.size)
            except CudaError as error:
                raise _with_numbers(error) from None
        return self._pointer

    def upload(self, array: Array, stream: Stream) -> None:
        """Copy a C-contiguous array to the buffer's start, in ``stream``'s order.

        The array must stay as it is until the copy is done.
        """
        copy_to_device(self._pointer, array.ctypes.data, array.nbytes, stream.handle)

    def release(self) -> Any:
        """Hand the ``cuda.core.Buffer`` over to the caller; this one is empty then."""
        buffer, self._buffer, self._pointer, self._nbytes = self._buffer, None, 0, 0
        return buffer

    def close(self) -> None:
        """Give the memory back, after the work of the stream it was reserved on.

        May be called again.
        """
        buffer = self.release()
        if buffer is not None:
            buffer.close()


def _with_numbers(error: CudaError) -> CudaError:
    if error.code != _OUT_OF_MEMORY:
        return error
    free, total = memory_info()
    return CudaError(
        f"{error}; {format_bytes(free)} of {format_bytes(total)} are free: use smaller shapes,"
        " fewer sessions or a lower depth, or close what else runs on this GPU",
        code=error.code,
    )


class PinnedBlock:
    """Page-locked host memory, lent by a :class:`PinnedPool` until nobody refers to it.

    Arrays made by :meth:`array` refer to it, and so do their views.

    Attributes:
        address: Where it begins, aligned to a page.
        nbytes: How much it holds.
    """

    _pool: PinnedPool
    address: int
    nbytes: int

    def array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A C-contiguous array at the block's start, which keeps the block from reuse."""
        memory: Any = self
        array: Array = np.ndarray(shape, dtype, memory)
        return array

    def __del__(self) -> None:
        self._pool._take_back(self.address, self.nbytes)


def _block_size(nbytes: int) -> int:
    """Whole pages, in at most 16 sizes for each power of two, so that few sizes are kept."""
    step = max(_PAGE, 1 << max(0, nbytes.bit_length() - 5))
    return -(-max(nbytes, 1) // step) * step


@functools.cache
def _block_type(nbytes: int) -> Any:
    """Blocks of a size: arrays of ctypes, which NumPy makes arrays over most quickly."""

    class Block(PinnedBlock, ctypes.c_byte * nbytes):  # type: ignore[misc]
        pass

    return Block


class PinnedPool:
    """Page-locked host memory that is used again once nobody refers to it.

    Safe to use from several threads. What a lent block is used for must be over when the last
    reference to it goes: whoever starts a copy from or to it keeps one until the copy is done.

    Attributes:
        lent_bytes: How much is lent now.
    """

    def __init__(self) -> None:
        self.lent_bytes = 0
        self._lock = threading.RLock()  # a block may be freed inside lend(), by the collector
        self._idle: dict[int, list[int]] = defaultdict(list)
        self._closed = False

    def lend(self, nbytes: int) -> PinnedBlock:
        """A block of at least ``nbytes``; its contents are undefined.

        Raises:
            CudaError: the memory cannot be had.
        """
        size = _block_size(nbytes)
        with self._lock:
            address = self._idle[size].pop() if self._idle[size] else self._new(size)
            self.lent_bytes += size
        block: PinnedBlock = _block_type(size).from_address(address)
        block._pool, block.address, block.nbytes = self, address, size
        return block

    def _new(self, size: int) -> int:
        try:
            return self._allocate(size)
        except CudaError:
            self.trim()  # what other sizes have left
            return self._allocate(size)

    def trim(self) -> None:
        """Free what is not lent."""
        with self._lock:
            idle, self._idle = self._idle, defaultdict(list)
        for addresses in idle.values():
            for address in addresses:
                _free_pinned(address)

    def close(self) -> None:
        """Free what is not lent, and the rest when it comes back. May be called again."""
        self._closed = True
        self.trim()

    @staticmethod
    def _allocate(size: int) -> int:
        with translated(f"allocate {format_bytes(size)} of page-locked memory"):
            from cuda.bindings import driver

            return int(check(driver.cuMemHostAlloc(size, _PORTABLE))[0])

    def _take_back(self, address: int, size: int) -> None:
        with self._lock:
            self.lent_bytes -= size
            if not self._closed:
                self._idle[size].append(address)
                return
        _free_pinned(address)


def _free_pinned(address: int) -> None:
    """Called by destructors too, at a time when the driver may be gone: says nothing."""
    try:
        from cuda.bindings import driver

        driver.cuMemFreeHost(address)
    except Exception:  # noqa: S110
        pass


def copy_to_device(device: int, host: int, nbytes: int, stream: int) -> None:
    """Copy bytes between two addresses, in the order of a stream given by its handle.

    Raises:
        CudaError: the copy cannot be started.
    """
    if nbytes:
        code = bindings().cuMemcpyHtoDAsync(device, host, nbytes, stream)
        if code[0]:
            with translated("copy to the GPU"):
                check(code)


def copy_to_host(host: int, device: int, nbytes: int, stream: int) -> None:
    """As :func:`copy_to_device`, the other way."""
    if nbytes:
        code = bindings().cuMemcpyDtoHAsync(host, device, nbytes, stream)
        if code[0]:
            with translated("copy from the GPU"):
                check(code)


def copy_rows(
    target: int,
    target_pitch: int,
    source: int,
    source_pitch: int,
    *,
    width: int,
    rows: int,
    stream: int,
) -> None:
    """Copy rows of bytes that lie apart on the GPU, in the order of a stream given by its handle.

    Args:
        target: Address of the first row.
        target_pitch: Bytes from there to the next row, at least ``width``.
        source: Address of the first row to read.
        source_pitch: Bytes from there to the next row.
        width: Bytes of a row; more than 0.
        rows: Number of rows; more than 0.
        stream: Handle of the stream.

    Raises:
        CudaError: the copy cannot be started.
    """
    driver = bindings()
    copy = driver.CUDA_MEMCPY2D()
    copy.srcMemoryType = copy.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
    copy.srcDevice, copy.srcPitch = source, source_pitch
    copy.dstDevice, copy.dstPitch = target, target_pitch
    copy.WidthInBytes, copy.Height = width, rows
    with translated("copy on the GPU"):
        check(driver.cuMemcpy2DAsync(copy, stream))


def fill_zeros(target: int, nbytes: int, stream: int) -> None:
    """Set bytes on the GPU to 0, in the order of a stream given by its handle.

    Raises:
        CudaError: that cannot be started.
    """
    with translated("fill memory of the GPU"):
        check(bindings().cuMemsetD8Async(target, 0, nbytes, stream))


def copy_host(target: Array, source: Array) -> None:
    """Copy an array into a C-contiguous one of the same shape, converting its type if they differ.

    Large contiguous arrays are copied by several threads: one thread moves about 10 GB/s, less than
    half of what the link to the GPU takes. Where PyTorch is loaded and may use several, they are
    its own, which are still awake from the copy before: to wake others takes longer than 2 MiB.
    """
    parts = target.nbytes // _BYTES_PER_THREAD if source.flags.c_contiguous else 0
    threads = min(parts, _copy_threads())
    torch = _copying_torch() if parts and _are_plain(target, source) else None
    if torch is not None:
        torch.from_numpy(_units(target)).copy_(torch.from_numpy(_units(source)))
    elif threads > 1:
        _copy_by_threads(target.reshape(-1), source.reshape(-1), threads)
    else:
        np.copyto(target, source, casting="unsafe")


def _copying_torch() -> Any:
    """PyTorch, if it is loaded, uses several threads, and copies on request."""
    torch = sys.modules.get("torch")
    if torch is None or getattr(torch.__spec__, "_initializing", False):
        return None  # while another thread imports it, its functions are there and crash
    if torch.get_num_threads() < 2:
        return None
    modes = getattr(torch._C, "_len_torch_dispatch_stack", None)  # one may only pretend to copy
    return torch if modes is not None and not modes() else None


def _are_plain(target: Array, source: Array) -> bool:
    """Whether bytes can be copied, and PyTorch takes both without a warning."""
    return source.dtype == target.dtype and source.flags.writeable


def _units(array: Array) -> Array:
    """A view of a contiguous array in a type that PyTorch knows, and a wide one.

    Each of its threads gets at least 2**15 elements. Of narrow ones 2 MiB are so many that 16
    threads take part, which slow down the thread that called them.
    """
    return array.reshape(-1).view(np.int64 if array.nbytes % 8 == 0 else np.uint8)


def _copy_by_threads(target: Array, source: Array, threads: int) -> None:
    step = -(-target.size // threads)
    parts = [slice(start, start + step) for start in range(step, target.size, step)]
    pending = [_copiers().submit(_copy_part, target, source, part) for part in parts]
    _copy_part(target, source, slice(0, step))
    for part in pending:
        part.result()


def _copy_part(target: Array, source: Array, part: slice) -> None:
    np.copyto(target[part], source[part], casting="unsafe")


@functools.cache
def _copy_threads() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(_MAX_COPY_THREADS, max(1, (count or 1) // 2))


@functools.cache
def _copiers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_copy_threads() - 1, thread_name_prefix="trt_native-copy")
