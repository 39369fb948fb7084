"""Products of whole numbers in INT8, which are exact.

TensorRT multiplies in INT8 between Q/DQ nodes whose zero points are 0. With scales of 1 they hold
the whole numbers themselves: UINT8 less 128, and weights less their zero points where that fits.
What the shift and the zero point of the other factor add to a product of constant weights is a
multiple of the sums of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.nodes import FLOAT, constant_of, dtype_of
from trt_native.passes.quantized_lowering import QuantizedLowering, is_filled

__all__ = ["Int8Weights", "int8_weights", "multiplied"]

_SMALLEST = 16  # rows and columns; what INT8 saves below this is less than the conversion costs
_LIMITS = np.iinfo(np.int8)
_SHIFTS = {ir.DataType.INT8: 0, ir.DataType.UINT8: 128}


class Int8Weights(NamedTuple):
    """Constant weights of a product.

    Attributes:
        matrix: FP32[rows, columns], dequantized INT8 with a scale of 1.
        sums: FP32[columns].
    """

    matrix: ir.Value
    sums: ir.Value


def int8_weights(
    low: QuantizedLowering, value: ir.Value, zero: ir.Value | None, *, transposed: bool = False
) -> Int8Weights | None:
    """Take weights as INT8.

    Args:
        low: Gets the constants.
        value: The weights.
        zero: Their zero point, or one for each column.
        transposed: Whether they are [columns, rows].

    Returns:
        None where they are not constant, not a matrix, small, or not INT8 less their zero points.
    """
    tensor, point = constant_of(value), None if zero is None else constant_of(zero)
    if tensor is None or tensor.dtype not in _SHIFTS or (zero is not None and point is None):
        return None
    shape = tensor.shape.numpy()
    if len(shape) != 2 or min(shape) < _SMALLEST or (point is not None and len(point.shape) > 1):
        return None
    plain = zero is None or is_filled(zero, 0)

    def centred() -> Array:
        array = tensor.numpy().T if transposed else tensor.numpy()
        whole: Array = array.astype(np.int16)
        return whole if plain or point is None else whole - point.numpy().astype(np.int16)

    if tensor.dtype is not ir.DataType.INT8 or not plain:
        found = centred()
        if found.min() < _LIMITS.min or found.max() > _LIMITS.max:
            return None
    rows, columns = shape[::-1] if transposed else shape
    lazy = _lazy(lambda: centred().astype(np.int8), ir.DataType.INT8, (rows, columns))
    sums = _lazy(lambda: centred().sum(axis=0, dtype=np.float32), FLOAT, (columns,))
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
    total = low.add("MatMul", low.real_int8(small), weights.matrix)
    point = low.scalar(0) if zero is None else zero
    if is_filled(point, shift):
        return total
    rest = low.add("Sub", low.scalar(shift), point)
    return low.add("Add", total, low.add("Mul", rest, weights.sums))
