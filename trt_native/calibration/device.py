"""Largest magnitudes and histograms of tensors in GPU memory, which never leave it.

Two small kernels, shipped as PTX that the driver compiles when they are first used; see
``kernels/activations.cu``. Nothing here is imported, and no driver is touched, before a
:class:`DeviceStatistics` is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_native.calibration.ranges import BINS, Histogram
from trt_native.cuda.driver import check, translated
from trt_native.errors import ClosedError, CudaError

__all__ = ["MEASURED_DTYPES", "DeviceStatistics"]

MEASURED_DTYPES = ("float32", "float16", "bfloat16")
"""Element types of the tensors that can be measured."""

_BLOCK = 256  # threads; eight of these fill a multiprocessor and its shared memory
_BLOCKS_PER_PROCESSOR = 8


class DeviceStatistics:
    """Measures tensors in GPU memory: first their largest magnitudes, then their histograms.

    The results equal those of :class:`~trt_native.calibration.ranges.Histogram`, bit for bit.
    Kernels run on a stream of their own: what they read must be complete, and may change or be
    freed once a method that waits has returned.

    Args:
        tensors: Names of what will be measured.
        ordinal: CUDA ordinal of the GPU.

    Raises:
        CudaError: there is no GPU, too little of its memory, or its driver takes no PTX 8.0
            (CUDA 12.0).
    """

    def __init__(self, tensors: Sequence[str], ordinal: int = 0) -> None:
        self._places = {name: place for place, name in enumerate(tensors)}
        self._limits: dict[str, float] = {}
        self._stream: Any = None
        self._peaks: Any = None
        self._counts: Any = None
        with translated("prepare the kernels of the calibration"):
            from cuda.core import Device, ObjectCode

            self._device: Any = Device(ordinal)
            self._device.set_current()
            self._stream = self._device.create_stream()
            ptx = resources.files("trt_native.calibration") / "kernels" / "activations.ptx"
            code = ObjectCode.from_ptx(ptx.read_bytes())
            self._kernels = {
                name: code.get_kernel(name)
                for dtype in MEASURED_DTYPES
                for name in (f"abs_max_{dtype}", f"histogram_{dtype}")
            }
            self._processors = int(self._device.properties.multiprocessor_count)
            self._peaks = self._zeroed(4 * len(self._places))

    def measure(self, name: str, tensor: Any, dtype: str) -> None:
        """Take a tensor's values into account for its largest magnitude. Does not wait.

        Args:
            name: One of the tensors.
            tensor: A contiguous array in the GPU's memory, with DLPack or
                ``__cuda_array_interface__``; the caller keeps it until a method has waited.
            dtype: Its element type, one of :data:`MEASURED_DTYPES`; the array's own is ignored,
                since not every interface knows bfloat16.
        """
        address, elements = self._place(tensor)
        result = int(self._peaks.handle) + 4 * self._places[name]
        self._launch(f"abs_max_{dtype}", elements, address, np.uint64(elements), result)

    def peaks(self) -> dict[str, float]:
        """Wait; the largest magnitude of each tensor so far, infinite or NaN where a value is."""
        self._open()
        found = self._fetch(self._peaks, np.float32, len(self._places))
        return {name: float(found[place]) for name, place in self._places.items()}

    def start_histograms(self, limits: Mapping[str, float]) -> None:
        """Begin to count.

        Args:
            limits: The largest magnitude of each tensor that will be counted, above 0.
        """
        self._open()
        self._limits = dict(limits)
        with translated("prepare the histograms of the calibration"):
            self._counts = self._zeroed(8 * BINS * len(self._places))

    def count(self, name: str, tensor: Any, dtype: str) -> None:
        """Count a tensor's magnitudes, as :meth:`measure` takes it; finite and within the limit.

        Does not wait. A tensor without a limit is passed over.
        """
        if name not in self._limits:
            return
        address, elements = self._place(tensor)
        result = int(self._counts.handle) + 8 * BINS * self._places[name]
        limit = np.float64(self._limits[name])
        count = np.uint64(elements)
        self._launch(f"histogram_{dtype}", elements, address, count, limit, result)

    def wait(self) -> None:
        """Wait until all that was asked for is done.

        Raises:
            CudaError: a kernel failed.
        """
        self._open()
        with translated("measure activations on the GPU"):
            self._stream.sync()

    def histograms(self) -> dict[str, Histogram]:
        """Wait; the histogram of each tensor that has a limit."""
        self._open()
        if not self._limits:
            return {}
        shape = (len(self._places), BINS)
        found = self._fetch(self._counts, np.int64, BINS * len(self._places)).reshape(shape)
        return {
            name: Histogram.of(found[self._places[name]].copy(), limit)
            for name, limit in self._limits.items()
        }

    def close(self) -> None:
        """Give the memory back. May be called again."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        with translated("free what the calibration took"):
            stream.sync()
            for buffer in (self._peaks, self._counts):
                if buffer is not None:
                    buffer.close()
            stream.close()
        self._peaks = self._counts = None

    def __enter__(self) -> DeviceStatistics:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> None:
        if self._stream is None:
            raise ClosedError("the statistics are closed")

    def _place(self, tensor: Any) -> tuple[int, int]:
        """Address and number of elements."""
        interface = getattr(tensor, "__cuda_array_interface__", None)
        if interface is not None:
            return int(interface["data"][0]), math.prod(interface["shape"])
        with translated("read a tensor of the engine"):
            from cuda.core.utils import StridedMemoryView

            # The producer has finished; nothing is to be ordered.
            view = StridedMemoryView.from_dlpack(tensor, stream_ptr=-1)
            if not view.is_device_accessible:
                raise CudaError("it is not in GPU memory")
            return int(view.ptr), math.prod(view.shape)

    def _zeroed(self, nbytes: int) -> Any:
        from cuda.bindings import driver

        buffer = self._device.allocate(max(nbytes, 1), stream=self._stream)
        check(driver.cuMemsetD8Async(int(buffer.handle), 0, buffer.size, self._stream.handle))
        return buffer

    def _fetch(self, buffer: Any, dtype: npt.DTypeLike, elements: int) -> npt.NDArray[Any]:
        from cuda.bindings import driver

        found = np.empty(elements, dtype)
        with translated("measure activations on the GPU"):
            if found.nbytes:
                address, source = found.ctypes.data, int(buffer.handle)
                check(driver.cuMemcpyDtoHAsync(address, source, found.nbytes, self._stream.handle))
            self._stream.sync()
        return found

    def _launch(self, kernel: str, elements: int, *arguments: Any) -> None:
        self._open()
        if elements == 0:
            return
        with translated("measure activations on the GPU"):
            from cuda.core import LaunchConfig, launch

            blocks = min(-(-elements // _BLOCK), _BLOCKS_PER_PROCESSOR * self._processors)
            launch(
                self._stream,
                LaunchConfig(grid=blocks, block=_BLOCK),
                self._kernels[kernel],
                *arguments,
            )
