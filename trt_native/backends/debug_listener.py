"""The listener that TensorRT gives the debug tensors of a running plan.

Like every object that TensorRT calls, it never raises: an exception is kept, and the caller raises
it after the run. What TensorRT's memory holds is valid during the call alone, so that values are
copied to the host, on the run's stream, before the call returns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes  # noqa: F401  (makes bfloat16 and float8 known to NumPy by name)
import numpy as np

from trt_native.arrays import Array
from trt_native.backends.base import NUMPY_DTYPES, DebugTensor
from trt_native.cuda import Stream, copy_to_host

__all__ = ["make_debug_listener"]

_PACKED = {"int4", "float4_e2m1fn"}  # two elements to a byte, which NumPy's types are not


def make_debug_listener(trt: Any, receive: Callable[[DebugTensor], None]) -> Any:
    """A ``trt.IDebugListener`` that passes each tensor on, but for those of types below a byte.

    Its attribute ``failure`` holds the first exception that ``receive`` raised; it is not called
    again after that.
    """

    class Listener(trt.IDebugListener):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IDebugListener.__init__(self)
            self.failure: BaseException | None = None

        # The bindings document a capsule for the address, and give an integer.
        def process_debug_tensor(
            self, addr: int, location: Any, dtype: Any, shape: Any, name: str, stream: int
        ) -> bool:
            if self.failure is not None:
                return False
            try:
                kind = NUMPY_DTYPES[dtype.name]
                if kind not in _PACKED:
                    extents = tuple(int(extent) for extent in shape)
                    on_host = location == trt.TensorLocation.HOST
                    read = partial(
                        _read, int(addr), kind, extents, None if on_host else int(stream)
                    )
                    receive(DebugTensor(name, kind, extents, read))
            except BaseException as error:  # of any kind; kept for the caller
                self.failure = error
                return False
            return True

    return Listener()


def _read(address: int, dtype: str, shape: tuple[int, ...], stream: int | None) -> Array:
    """Copy a tensor to a new array, from the GPU in the order of a stream, if there is one."""
    array: Array = np.empty(shape, dtype)
    if array.nbytes == 0:  # TensorRT may have no address for it
        return array
    if stream is None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
    else:
        copy_to_host(array.ctypes.data, address, array.nbytes, stream)
        Stream.borrowed(stream).synchronize()
    return array
