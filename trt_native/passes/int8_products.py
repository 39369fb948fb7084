"""Products of whole numbers in INT8, which are exact.

TensorRT multiplies in INT8 between Q/DQ nodes whose zero points are 0. With scales of 1 they hold
the whole numbers themselves: UINT8 less 128, and weights less their zero points where that fits.
What the shift and the zero point of the other factor add to a product of constant weights is a
multiple of the sums of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.nodes import FLOAT, constant_of, dtype_of
from trt_native.passes.quantized_lowering import QuantizedLowering, is_filled

__all__ = ["Int8Weights", "convolved", "int8_filters", "int8_weights", "multiplied"]

_SMALLEST = 16  # rows and columns; what INT8 saves below this is less than the conversion costs
_LIMITS = np.iinfo(np.int8)
_SHIFTS = {ir.DataType.INT8: 0, ir.DataType.UINT8: 128}


class Int8Weights(NamedTuple):
    """Constant weights of a product.

    Attributes:
        numbers: FP32[rows, columns] or FP32[channels out, channels in, ..]: dequantized INT8 with a
            scale of 1.
        sums: FP32[columns] or FP32[channels out].
    """

    numbers: ir.Value
    sums: ir.Value


def int8_weights(
    low: QuantizedLowering, value: ir.Value, zero: ir.Value | None, *, transposed: bool = False
) -> Int8Weights | None:
    """Take the weights of a matrix product as INT8.

    Args:
        low: Gets the constants.
        value: The weights.
        zero: Their zero point, or one for each column.
        transposed: Whether they are [columns, rows].

    Returns:
        None where they are not constant, not a matrix, small, or not INT8 less their zero points.
    """
    if value.shape is None or len(value.shape) != 2:
        return None
    return _weights(low, value, zero, 0 if transposed else 1, transposed=transposed)


def int8_filters(
    low: QuantizedLowering, value: ir.Value, zero: ir.Value | None
) -> Int8Weights | None:
    """The same of a convolution, with a zero point or one for each channel out."""
    return None if value.shape is None else _weights(low, value, zero, 0)


def _weights(
    low: QuantizedLowering,
    value: ir.Value,
    zero: ir.Value | None,
    axis: int,
    *,
    transposed: bool = False,
) -> Int8Weights | None:
    """Weights whose results are along an axis."""
    tensor, point = constant_of(value), None if zero is None else constant_of(zero)
    if tensor is None or tensor.dtype not in _SHIFTS or (zero is not None and point is None):
        return None
    shape = tensor.shape.numpy()
    if min(shape[:2]) < _SMALLEST or (point is not None and len(point.shape) > 1):
        return None
    plain = zero is None or is_filled(zero, 0)
    along = [-1 if index == axis else 1 for index in range(len(shape))]

    def centred() -> Array:
        whole: Array = tensor.numpy().astype(np.int16)
        if not plain and point is not None:
            offsets = point.numpy().astype(np.int16)
            whole = whole - (offsets.reshape(along) if offsets.size > 1 else offsets.reshape(()))
        return whole.T if transposed else whole

    if tensor.dtype is not ir.DataType.INT8 or not plain:
        found = centred()
        if found.min() < _LIMITS.min or found.max() > _LIMITS.max:
            return None
    others = tuple(index for index in range(len(shape)) if index != (1 if transposed else axis))
    made = shape[::-1] if transposed else shape
    lazy = _lazy(lambda: centred().astype(np.int8), ir.DataType.INT8, tuple(made))
    sums = _lazy(lambda: centred().sum(axis=others, dtype=np.float32), FLOAT, (shape[axis],))
    return Int8Weights(low.real_int8(low.initializer(lazy)), low.initializer(sums))


def _lazy(compute: Callable[[], Array], kind: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
    """A constant that is computed when the model is written."""
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(compute())), dtype=kind, shape=ir.Shape(shape)
    )


def multiplied(
    low: QuantizedLowering,
    number: ir.Value,
    zero: ir.Value | None,
    kind: ir.DataType,
    weights: Int8Weights,
) -> ir.Value:
    """Multiply whole numbers less their zero point by weights.

    Args:
        low: Gets the nodes.
        number: [.., rows], whole numbers within the range of ``kind``, FP32 or INT8 themselves.
        zero: FP32, the zero point or one for each row; None for 0.
        kind: INT8 or UINT8.
        weights: The weights.
    """
    shift = _SHIFTS[kind]
    small = low.add("Sub", number, low.scalar(shift)) if shift else number
    small = small if dtype_of(small) is ir.DataType.INT8 else low.int8(small)
    total = low.add("MatMul", low.real_int8(small), weights.numbers)
    point = low.scalar(0) if zero is None else zero
    if is_filled(point, shift):
        return total
    rest = low.add("Sub", low.scalar(shift), point)
    return low.add("Add", total, low.add("Mul", rest, weights.sums))


def convolved(
    low: QuantizedLowering,
    number: ir.Value,
    zero: int,
    kind: ir.DataType,
    filters: Int8Weights,
    bias: ir.Value | None,
    options: Mapping[str, Any],
) -> ir.Value:
    """Convolve whole numbers less their zero point.

    Args:
        low: Gets the nodes.
        number: Whole numbers within the range of ``kind``, FP32 or INT8 themselves.
        zero: The zero point, with which they are padded.
        kind: INT8 or UINT8.
        filters: The weights.
        bias: FP32[channels out], whole numbers; None for 0.
        options: Attributes of the convolution, with explicit pads.
    """
    shift, options = _SHIFTS[kind], dict(options)
    if shift != zero:
        pads = options.pop("pads", ())
        if any(pads):
            axes = len(pads) // 2
            around = [0, 0, *pads[:axes], 0, 0, *pads[axes:]]
            inputs = (low.number(number), low.integers(around), low.scalar(zero))
            number = low.add("Pad", *inputs)
        rest = low.add("Mul", low.scalar(shift - zero), filters.sums)
        bias = rest if bias is None else low.add("Add", bias, rest)
    small = low.add("Sub", number, low.scalar(shift)) if shift else number
    small = small if dtype_of(small) is ir.DataType.INT8 else low.int8(small)
    inputs = (low.real_int8(small), filters.numbers, *(() if bias is None else (bias,)))
    return low.add("Conv", *inputs, **options)
