"""Which products of quantized values are multiplied in INT8, and what becomes of their nodes."""

from __future__ import annotations

import onnx_ir as ir

from trt_native.graph.nodes import FLOAT, constant_of, dtype_of, input_of
from trt_native.passes.int8_products import (
    Int8Weights,
    convolved,
    int8_filters,
    int8_weights,
    multiplied,
)
from trt_native.passes.quantized_lowering import (
    QuantizedLowering,
    axis_of,
    block_size,
    is_single,
    needed_inputs,
    options_of,
)

__all__ = [
    "INT8_TYPES",
    "dequantized_convolution",
    "dequantized_product",
    "int8_convolution",
    "taken_weights",
]

INT8_TYPES = (ir.DataType.INT8, ir.DataType.UINT8)
"""Types of quantized values that are multiplied in INT8."""

_PADS = 11  # the first opset in which Pad takes them as an input


def taken_weights(
    low: QuantizedLowering,
    operator: str,
    value: ir.Value,
    zero: ir.Value | None,
    *,
    transposed: bool = False,
) -> Int8Weights | None:
    """The weights of a product that the backend multiplies in INT8, which is counted."""
    if operator not in low.int8_ops:
        return None
    weights = int8_weights(low, value, zero, transposed=transposed)
    if weights is not None:
        low.in_int8[operator] += 1
    return weights


def int8_convolution(
    low: QuantizedLowering,
    node: ir.Node,
    x: tuple[ir.Value, ir.Value | None],
    w: tuple[ir.Value, ir.Value | None],
    bias: ir.Value | None,
) -> ir.Value | None:
    """A convolution in INT8 of values and their zero points; None where there is none."""
    kind, zero = dtype_of(x[0]), 0 if x[1] is None else _whole_number(x[1])
    explicit = node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    if "Conv" not in low.int8_ops or kind not in INT8_TYPES or zero is None or not explicit:
        return None
    if low.opset < _PADS or (filters := int8_filters(low, *w)) is None:
        return None
    low.in_int8["Conv"] += 1
    digits, options = low.digits(x[0]), options_of(node, "auto_pad", "channels_last")
    return convolved(low, digits, zero, kind, filters, bias, options)


def _whole_number(value: ir.Value) -> int | None:
    """A constant zero point of a whole tensor."""
    tensor = constant_of(value)
    return None if tensor is None or tensor.size != 1 else int(tensor.numpy().reshape(()))


def dequantized_product(low: QuantizedLowering, node: ir.Node) -> None:
    """Multiply in INT8 what TensorRT would dequantize before: factors with zero points."""
    left, right = (_source(low, value) for value in node.inputs[:2])
    gemm = node.op_type == "Gemm"
    if left is None or right is None or not any(v in low.sources for v in node.inputs[:2]):
        return
    if gemm and any(node.attributes.get_float(name, 1.0) != 1 for name in ("alpha", "beta")):
        return
    transposed = gemm and bool(node.attributes.get_int("transB", 0))
    (a, a_scale, a_zero, _), (b, b_scale, b_zero, axis) = left, right
    kind, columns = dtype_of(a), 0 if transposed else 1
    by_column = not is_single(b_scale)
    single = all(is_single(value) for value in (a_scale, a_zero))
    if kind not in INT8_TYPES or not single or node.attributes.get_int("transA", 0) != 0:
        return
    if {dtype_of(a_scale), dtype_of(b_scale)} != {FLOAT} or (by_column and axis % 2 != columns):
        return
    weights = taken_weights(low, node.op_type, b, b_zero, transposed=transposed)
    if weights is None:
        return
    zero = None if a_zero is None else low.along(a_zero, 0, a)
    total = multiplied(low, low.digits(a), zero, kind, weights)
    scale = low.add("Mul", low.along(a_scale, 0, a), low.along(b_scale, -1, b))
    result = low.add("Mul", total, scale)
    added = input_of(node, 2)
    low.finish(result if added is None else low.add("Add", result, low.number(added)))


def dequantized_convolution(low: QuantizedLowering, node: ir.Node) -> None:
    """Convolve in INT8 what TensorRT would dequantize before: values with zero points."""
    left, right = (_source(low, value) for value in node.inputs[:2])
    if left is None or right is None or not any(v in low.sources for v in node.inputs[:2]):
        return
    (a, a_scale, a_zero, _), (b, b_scale, b_zero, axis) = left, right
    by_channel = not is_single(b_scale)
    if {dtype_of(a_scale), dtype_of(b_scale)} != {FLOAT} or not is_single(a_scale):
        return
    if by_channel and axis != 0:
        return
    total = int8_convolution(low, node, (a, a_zero), (b, b_zero), None)
    if total is None:
        return
    rank = low.rank(b)
    scale = low.reshaped(low.number(b_scale), [-1, *[1] * (rank - 2)])
    result = low.add("Mul", total, low.add("Mul", low.along(a_scale, 0, a), scale))
    if (bias := input_of(node, 2)) is not None:
        result = low.add("Add", result, low.reshaped(low.number(bias), [-1, *[1] * (rank - 2)]))
    low.finish(result)


def _source(
    low: QuantizedLowering, value: ir.Value | None
) -> tuple[ir.Value, ir.Value, ir.Value | None, int] | None:
    """What a value was dequantized from, also by a node that stays."""
    if value is None or value in low.sources:
        return None if value is None else low.sources[value]
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain or block_size(node):
        return None
    x, scale = needed_inputs(node, 2)
    return x, scale, input_of(node, 2), axis_of(node)
