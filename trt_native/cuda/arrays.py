"""Results on the GPU, for whoever takes ``__cuda_array_interface__`` or DLPack."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trt_native.shapes import format_shape

__all__ = ["DeviceArray"]


class DeviceArray:
    """A C-contiguous array in device memory that it owns.

    NumPy-like libraries on the GPU take it without a copy: ``torch.from_dlpack(x)``,
    ``cupy.from_dlpack(x)``, ``jax.numpy.from_dlpack(x)``, or through ``__cuda_array_interface__``,
    which has no bfloat16 and float8 and shows those as bytes.

    Args:
        buffer: The ``cuda.core.Buffer`` that holds it.
        shape: Extents, in elements.
        dtype: Element type, NumPy's or one of ml_dtypes.
        ordinal: CUDA ordinal of the GPU.

    Attributes:
        shape: As given.
        dtype: As given, as ``numpy.dtype``.
        pointer: Device address.
        ordinal: As given.
    """

    def __init__(self, buffer: Any, shape: tuple[int, ...], dtype: Any, ordinal: int = 0) -> None:
        self._buffer = buffer
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.pointer = int(buffer.handle)
        self.ordinal = ordinal

    @property
    def nbytes(self) -> int:
        """Size of the array."""
        return math.prod(self.shape) * int(self.dtype.itemsize)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; ready for use, so no stream is named."""
        native = self.dtype.kind != "V"
        return {
            "shape": self.shape,
            "typestr": self.dtype.str if native else f"|V{self.dtype.itemsize}",
            "data": (self.pointer if self.nbytes else 0, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def __dlpack__(self, **options: Any) -> Any:
        """A DLPack capsule that keeps the memory alive."""
        return self._view().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """``kDLCUDA`` and the ordinal."""
        return (2, self.ordinal)

    def numpy(self) -> np.ndarray[Any, Any]:
        """A copy on the host."""
        from trt_native.cuda.driver import check, translated

        array: np.ndarray[Any, Any] = np.empty(self.shape, self.dtype)
        if array.nbytes:
            with translated("copy from the GPU"):
                from cuda.bindings import driver

                check(driver.cuMemcpyDtoH(array.ctypes.data, self.pointer, array.nbytes))
        return array

    def _view(self) -> Any:
        from cuda.core.utils import StridedMemoryView

        return StridedMemoryView.from_buffer(self._buffer, self.shape, dtype=self.dtype)

    def __repr__(self) -> str:
        shape = format_shape(self.shape)
        return f"DeviceArray({shape} {self.dtype}, cuda:{self.ordinal})"
