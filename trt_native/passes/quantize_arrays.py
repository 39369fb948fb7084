"""INT8 and FP8 tensors and their scales: the numbers that Q/DQ nodes carry.

A packed tensor ``q`` stands for ``q * scale``, with zero point 0. It is made when it is serialised,
never before, so that a model larger than memory stays on disk.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.errors import ModelError
from trt_native.graph.nodes import BFLOAT16, FLOAT, FLOAT16
from trt_native.graph.refit_signature import unmapped

__all__ = [
    "FLOAT8",
    "INT4",
    "INT8",
    "LARGEST",
    "channel_amax",
    "check_finite",
    "quantize_array",
    "quantize_lazily",
    "read_tensor",
    "requantize_lazily",
    "round_scale",
]

INT8, FLOAT8 = ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN
INT4 = ir.DataType.INT4

LARGEST = {INT8: 127.0, FLOAT8: 448.0}
"""The value to which the largest magnitude of a tensor is mapped: scale = amax / LARGEST."""


# FP16 has nothing between this and a scale of zero.
_SMALLEST_SCALE = {FLOAT: 2.0**-126, FLOAT16: 2.0**-24, BFLOAT16: 2.0**-126}
_LARGEST_SCALE = {
    FLOAT: (2 - 2.0**-23) * 2.0**127,
    FLOAT16: (2 - 2.0**-10) * 2.0**15,
    BFLOAT16: (2 - 2.0**-7) * 2.0**127,
}


def read_tensor(tensor: ir.TensorProtocol) -> Array:
    """The values of a tensor; external data is mapped only as long as the array lives."""
    return unmapped(tensor).numpy()


def check_finite(problems: Mapping[str, str]) -> None:
    """Refuse weights with values that are not finite, by name, with a node that reads each.

    Raises:
        ModelError: there are any.
    """
    if problems:
        listing = ", ".join(f"{weight!r} (node {node!r})" for weight, node in problems.items())
        raise ModelError(
            f"weights hold NaN or infinity: {listing}; export the model again from sound"
            " weights, or skip these nodes"
        )


def channel_amax(array: Array, axis: int) -> Array:
    """Largest magnitude of each channel: float32, one per extent of ``axis``.

    NaN and infinity come through.
    """
    others = tuple(i for i in range(array.ndim) if i != axis)
    if array.dtype != np.float32:
        array = array.astype(np.float32)
    # With `initial`, because an axis of extent 0 has no largest element.
    highest, lowest = array.max(others, initial=0.0), array.min(others, initial=0.0)
    return np.asarray(np.maximum(highest, -lowest))


def round_scale(scale: npt.ArrayLike, dtype: ir.DataType) -> Array:
    """Scales as a floating-point type holds them, in float32: never 0, never infinite."""
    scale = np.asarray(scale, np.float64)
    clamped = np.clip(scale, _SMALLEST_SCALE[dtype], _LARGEST_SCALE[dtype])
    return np.asarray(clamped.astype(dtype.numpy()), np.float32)


def quantize_array(array: Array, scale: Array, axis: int, dtype: ir.DataType) -> Array:
    """``array / scale``, rounded to nearest even and saturated.

    Args:
        array: Floating-point values.
        scale: One number, or one for each extent of ``axis``.
        axis: The axis of the channels.
        dtype: ``INT8`` (-127 to 127) or ``FLOAT8E4M3FN`` (-448 to 448).
    """
    shape = [-1 if i == axis else 1 for i in range(array.ndim)] if scale.ndim else []
    scaled = np.divide(array, scale.reshape(shape), dtype=np.float32)
    # ml_dtypes turns what is beyond FP8's range into NaN, where ONNX and TensorRT saturate.
    np.clip(scaled, -LARGEST[dtype], LARGEST[dtype], out=scaled)
    if dtype == INT8:
        np.rint(scaled, out=scaled)
    return scaled.astype(dtype.numpy())


def quantize_lazily(
    tensor: ir.TensorProtocol,
    perm: tuple[int, ...] | None,
    scale: Array,
    axis: int,
    dtype: ir.DataType,
) -> ir.LazyTensor:
    """A tensor, transposed by ``perm`` if that is given, as :func:`quantize_array` makes it."""
    shape = [int(extent) for extent in tensor.shape.numpy()]
    return ir.LazyTensor(
        functools.partial(_quantized, tensor, perm, scale, axis, dtype),
        dtype,
        ir.Shape([shape[i] for i in perm] if perm else shape),
    )


def _quantized(
    tensor: ir.TensorProtocol,
    perm: tuple[int, ...] | None,
    scale: Array,
    axis: int,
    dtype: ir.DataType,
) -> ir.Tensor[Any]:
    array = read_tensor(tensor)
    array = array if perm is None else array.transpose(perm)
    return ir.Tensor(np.ascontiguousarray(quantize_array(array, scale, axis, dtype)), dtype=dtype)


def requantize_lazily(
    tensor: ir.TensorProtocol, old: Array, new: Array, axis: int
) -> ir.LazyTensor:
    """A packed tensor of scale ``old`` as it is with scale ``new``."""
    return ir.LazyTensor(
        functools.partial(_requantized, tensor, old, new, axis),
        tensor.dtype,
        ir.Shape(tensor.shape.numpy()),
    )


def _requantized(tensor: ir.TensorProtocol, old: Array, new: Array, axis: int) -> ir.Tensor[Any]:
    array = read_tensor(tensor).astype(np.float32)
    ratio = new.astype(np.float64) / old
    return ir.Tensor(quantize_array(array, ratio, axis, tensor.dtype), dtype=tensor.dtype)
