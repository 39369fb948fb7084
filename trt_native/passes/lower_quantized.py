"""Write quantized operators that TensorRT does not have as floating-point arithmetic.

TensorRT builds symmetric INT8 with constant scales, and INT4 of weights in whole blocks that are
the second operand of a product: it takes the size of blocks from the number of scales, and ignores
the attribute. Other quantized numbers are computed here as whole numbers in FP32, or as products of
dequantized constants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from trt_native.config import Precision
from trt_native.errors import UnsupportedError
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import (
    FLOAT,
    QDQ,
    all_nodes,
    constant_of,
    dtype_of,
    input_of,
    op_set,
)
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass, count_text
from trt_native.passes.dequantized_products import (
    INT8_TYPES,
    dequantized_convolution,
    dequantized_product,
    int8_convolution,
    taken_weights,
)
from trt_native.passes.int8_products import multiplied
from trt_native.passes.quantized_lowering import (
    QuantizedLowering,
    axis_of,
    block_size,
    extent_of,
    is_filled,
    is_single,
    needed_inputs,
    options_of,
)

__all__ = ["LowerQuantized", "lower_quantized"]

_INT8, _UINT8, _INT32 = ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32
_WHOLE = frozenset({_INT8, _UINT8, _INT32, ir.DataType.INT16, ir.DataType.UINT16})
_INT4, _UINT4 = ir.DataType.INT4, ir.DataType.UINT4
_AXIS = 13  # the first opset in which a DequantizeLinear has one
_DOMAINS = ("", "com.microsoft")
_MOVED = op_set(
    "Identity Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile Slice MaxPool DepthToSpace"
)


_LEFT_OPEN = _MOVED | op_set("Cast Mul Div")  # behind which it is still a weight


class LowerQuantized(GraphPass):
    """Quantized operators that TensorRT lacks, as floating-point arithmetic."""

    name = "lower_quantized"
    title = "Lowering quantized operators"
    early = True

    def needed(self, model: ir.Model) -> bool:
        """Whether there is a quantized operator, or a reader of INT8, that TensorRT lacks."""
        return any(_rule(node) or _reads_int8(node) for node in all_nodes(model.graph))

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Lower them; see :func:`lower_quantized`."""
        keeps = self._keeps_int8()
        return lower_quantized(model, self._int8_ops() if keeps else (), keeps_int8=keeps)

    def _keeps_int8(self) -> bool:
        """Whether Q/DQ nodes can be added: types come from the graph."""
        backend, precision = self.context.backend, self.context.precision
        builds = backend is not None and not backend.capabilities.quantizing_needs_gpu
        return builds and precision.strongly_typed

    def _int8_ops(self) -> Collection[str]:
        """The products that are multiplied in INT8."""
        backend, applied = self.context.backend, self.context.precision.applied
        if backend is None or applied in (Precision.FP32, Precision.TF32):
            return ()
        return backend.capabilities.quantized_ops.get(Precision.INT8, ())

    def summarize(self, record: Mapping[str, Any]) -> str:
        """The operators, and those that skip a rounding of activations."""
        if "nodes" not in record:
            return self.title
        parts = {
            "quantized operators as floating-point arithmetic": record["nodes"],
            "products of weights in INT8, exactly": record.get("int8", {}),
            "INT8 constants dequantized for their readers": record.get("int8_readers", {}),
        }
        texts = [f"{text}: {count_text(nodes)}" for text, nodes in parts.items() if nodes]
        if count := record.get("unrounded"):
            texts.append(f"activations of {count} recurrent layers are not quantized")
        return "; ".join(texts)


@wraps_graph_errors
def lower_quantized(
    model: ir.Model, int8_ops: Collection[str] = (), *, keeps_int8: bool = False
) -> dict[str, Any]:
    """Write quantized operators that TensorRT lacks as floating-point arithmetic, in place.

    Constants are dequantized when the model is written. Integer sums are exact up to 2**24.

    Args:
        model: The model.
        int8_ops: Operators whose products of weights stay in INT8: MatMul, Gemm, Conv.
        keeps_int8: Whether constants in INT8 stay so behind DequantizeLinear nodes.

    Returns:
        ``nodes``: how many were rewritten, by operator. ``int8_readers``: nodes that read constants
        in INT8, which are dequantized before. ``int8``: how many of them, and of products
        of dequantized values, multiply in INT8. ``unrounded``: how many recurrent layers read
        activations that the original quantizes.

    Raises:
        UnsupportedError: an operator lacks inputs, or needs a rank that is not known.
    """
    infer_values(model)
    lowering = QuantizedLowering(model, int8_ops, keeps_int8=keeps_int8)
    counts: Counter[str] = Counter()
    readers: Counter[str] = Counter()
    for node in tuple(all_nodes(model.graph)):
        if rule := _rule(node):
            lowering.begin(node)
            rule(lowering, node)
            counts[node.op_type] += 1
        elif _reads_int8(node):
            lowering.begin(node)
            _read_constant(lowering, node)
            readers[node.op_type] += 1
        elif not node.domain and node.op_type in (*_MOVED, "Cast", "Concat"):
            lowering.begin(node)
            _pass_through(lowering, node)
        elif node.op_type == "DequantizeLinear" and lowering.whole(needed_inputs(node, 1)[0]):
            lowering.begin(node)
            _dequantize_linear(lowering, node)
            counts[node.op_type] += 1
        elif not node.domain and node.op_type == "Mul":
            lowering.begin(node)
            _scale_constant(lowering, node)
        elif not node.domain and node.op_type in _PRODUCT_RULES:
            lowering.begin(node)
            _PRODUCT_RULES[node.op_type](lowering, node)
    common.RemoveUnusedNodesPass()(model)
    record: dict[str, Any] = {"nodes": dict(counts)}
    if readers:
        record["int8_readers"] = dict(readers)
    if lowering.in_int8:
        record["int8"] = dict(lowering.in_int8)
    if counts["DynamicQuantizeLSTM"]:
        record["unrounded"] = counts["DynamicQuantizeLSTM"]
    return record


# Which nodes are lowered


def _rule(node: ir.Node) -> Callable[[QuantizedLowering, ir.Node], None] | None:
    if node.domain not in _DOMAINS:
        return None
    if node.op_type in QDQ:
        return _QDQ_RULES[node.op_type] if _is_lowered(node) else None
    return _RULES.get(node.op_type)


def _is_lowered(node: ir.Node) -> bool:
    """Whether TensorRT lacks a kind of Q/DQ that is arithmetic of whole numbers."""
    x, scale, zero = (input_of(node, index) for index in range(3))
    kind = _quantized_type(node)
    if x is None or scale is None:
        return False
    narrow = kind in (_INT4, _UINT4) and constant_of(x) is not None
    if kind not in _WHOLE and not narrow:
        return False
    symmetric = zero is None or is_filled(zero, 0)
    plain = kind in (_INT8, _INT4) and symmetric and constant_of(scale) is not None
    if block := block_size(node):
        extent = extent_of(node, axis_of(node))
        whole = extent is not None and extent % block == 0 and constant_of(x) is not None
        whole = whole and _of_last_axes(node, x)
        whole = whole and not (narrow and (_is_odd(x) or _is_multiplied_from_left(node)))
        return extent is not None and not (plain and whole)
    return bool(node.domain) or not plain or (narrow and _is_odd(x))


def _of_last_axes(node: ir.Node, x: ir.Value) -> bool:
    """Whether blocks are along one of the last two axes, as TensorRT wants them."""
    rank = len(x.shape or ())
    return axis_of(node) % rank >= rank - 2


def _is_multiplied_from_left(node: ir.Node) -> bool:
    """Whether a weight is the first operand of a product; TensorRT-RTX 1.5 to 1.7 end the process.

    An Einsum may become such a product.
    """
    pending, seen = list(node.outputs), set(node.outputs)
    while pending:
        for user, index in pending.pop().uses():
            if user.op_type == "Einsum" or (user.op_type in ("MatMul", "Gemm") and index == 0):
                return True
            if user.op_type in _LEFT_OPEN:
                pending += [value for value in user.outputs if value not in seen]
                seen.update(user.outputs)
    return False


def _is_odd(x: ir.Value) -> bool:
    """Whether the numbers of a constant, of half a byte each, do not fill their last byte."""
    tensor = constant_of(x)
    return tensor is not None and bool(tensor.size % 2)


def _reads_int8(node: ir.Node) -> bool:
    """Whether a node moves or casts a constant in INT8, which TensorRT only dequantizes."""
    if node.domain or node.op_type not in (*_MOVED, "Cast", "Gather") or len(node.outputs) != 1:
        return False
    x = input_of(node, 0)
    return x is not None and constant_of(x) is not None and dtype_of(x) is _INT8


def _quantized_type(node: ir.Node) -> ir.DataType | None:
    """The element type on the quantized side of a Q/DQ node."""
    if node.op_type == "DequantizeLinear":
        return dtype_of(input_of(node, 0)) or dtype_of(input_of(node, 2))
    given = ir.DataType(node.attributes.get_int("output_dtype", 0))
    return dtype_of(input_of(node, 2)) or (given if given else _UINT8)


# Q/DQ


def _quantize_linear(low: QuantizedLowering, node: ir.Node) -> None:
    x, scale = needed_inputs(node, 2)
    kind = _quantized_type(node)
    assert kind is not None  # noqa: S101  # such nodes are not lowered
    low.quantize(low.number(x), scale, input_of(node, 2), kind, axis_of(node))


def _dequantize_linear(low: QuantizedLowering, node: ir.Node) -> None:
    x, scale = needed_inputs(node, 2)
    real = low.real(x, scale, input_of(node, 2), axis_of(node))
    kind = dtype_of(scale) or FLOAT
    found = low.added(real if kind is FLOAT else low.add("Cast", real, kind=kind, to=int(kind)))
    low.sources[found] = (x, scale, input_of(node, 2), axis_of(node))
    low.finish(found)


def _dynamic(low: QuantizedLowering, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Numbers, scale and zero point of a tensor that is quantized by its own range."""
    zero = low.scalar(0)
    high = low.add("Max", low.add("ReduceMax", x, keepdims=0), zero)
    bottom = low.add("Min", low.add("ReduceMin", x, keepdims=0), zero)
    span = low.add("Sub", high, bottom)
    flat = low.add("Equal", span, zero, kind=ir.DataType.BOOL)
    span = low.add("Where", flat, low.scalar(1), span)
    scale = low.add("Div", span, low.scalar(255))
    point = low.add("Div", low.add("Neg", bottom), scale)
    point = low.nearest(low.clipped(point, 0, 255))
    steps = low.add("Add", low.nearest(low.add("Div", x, scale)), point)
    return low.clipped(steps, 0, 255), scale, point


def _dynamic_quantize(low: QuantizedLowering, node: ir.Node) -> None:
    numbers, scale, point = _dynamic(low, needed_inputs(node, 1)[0])
    low.finish(low.typed(numbers, _UINT8), scale, low.typed(point, _UINT8))


# Products of whole numbers


def _product(
    low: QuantizedLowering,
    a: ir.Value,
    b: ir.Value,
    a_zero: ir.Value | None,
    b_zero: ir.Value | None,
) -> ir.Value:
    """A matrix product of quantized values, as whole numbers; of a there may be one per row."""
    zero = None if a_zero is None or is_filled(a_zero, 0) else low.along(a_zero, -2, a)
    return _product_of(low, (low.digits(a), zero, dtype_of(a)), b, b_zero)


def _product_of(
    low: QuantizedLowering,
    a: tuple[ir.Value, ir.Value | None, ir.DataType | None],
    b: ir.Value,
    b_zero: ir.Value | None,
) -> ir.Value:
    """The same of whole numbers, their zero point in FP32, and their type."""
    digits, zero, kind = a
    if kind in INT8_TYPES and (weights := taken_weights(low, "MatMul", b, b_zero)) is not None:
        return multiplied(low, digits, zero, kind, weights)
    number = low.number(digits)
    left = number if zero is None else low.add("Sub", number, zero)
    return low.add("MatMul", left, low.centred(b, b_zero, -1))


def _convolution(
    low: QuantizedLowering, node: ir.Node, x: ir.Value, w: ir.Value,
    zeros: tuple[ir.Value | None, ...], bias: ir.Value | None = None,
) -> ir.Value:  # fmt: skip
    given = None if bias is None else low.number(bias)
    if (found := int8_convolution(low, node, (x, zeros[0]), (w, zeros[1]), given)) is not None:
        return found
    inputs = [low.centred(x, zeros[0], 1), low.centred(w, zeros[1], 0), given]
    return low.add(
        "Conv", *inputs[: 2 if given is None else 3], **options_of(node, "channels_last")
    )


def _rescaled(
    low: QuantizedLowering, total: ir.Value, scales: tuple[ir.Value, ...], zero: ir.Value | None,
    kind: ir.DataType, order: Sequence[int] | None = None,
) -> None:  # fmt: skip
    """Quantize a sum in steps of two scales in steps of a third; its axes may change order."""
    one, other, result = scales
    factor = low.add("Div", low.add("Mul", one, other), result)
    number = low.rounded(low.add("Mul", total, factor), zero, kind)
    low.finish_whole(number if order is None else low.add("Transpose", number, perm=order), kind)


def _result_type(zero: ir.Value | None, otherwise: ir.Value) -> ir.DataType:
    return dtype_of(zero) or dtype_of(otherwise) or _UINT8


def _matmul_integer(low: QuantizedLowering, node: ir.Node) -> None:
    a, b = needed_inputs(node, 2)
    low.finish_whole(_product(low, a, b, input_of(node, 2), input_of(node, 3)), _INT32)


def _conv_integer(low: QuantizedLowering, node: ir.Node) -> None:
    x, w = needed_inputs(node, 2)
    zeros = (input_of(node, 2), input_of(node, 3))
    low.finish_whole(_convolution(low, node, x, w, zeros), _INT32)


def _qlinear_matmul(low: QuantizedLowering, node: ir.Node) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = needed_inputs(node, 8)
    scales = (low.along(a_scale, -2, a), low.along(b_scale, -1, b))
    total = _product(low, a, b, a_zero, b_zero)
    _rescaled(low, total, (*scales, low.number(y_scale)), y_zero, _result_type(y_zero, a))


def _qlinear_conv(low: QuantizedLowering, node: ir.Node) -> None:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = needed_inputs(node, 8)
    rank, last = low.rank(w), bool(node.attributes.get_int("channels_last", 0))
    if last:
        first = [0, rank - 1, *range(1, rank - 1)]
        x = low.typed(low.add("Transpose", low.number(x), perm=first), _result_type(x_zero, x))
    total = _convolution(low, node, x, w, (x_zero, w_zero), input_of(node, 8))
    scales = (low.number(x_scale), low.along(w_scale, 1, w), low.number(y_scale))
    order = [0, *range(2, rank), 1] if last else None
    _rescaled(low, total, scales, y_zero, _result_type(y_zero, x), order)


def _scaled(
    low: QuantizedLowering,
    total: ir.Value,
    scale: ir.Value,
    b: tuple[ir.Value, ir.Value],
    bias: ir.Value | None,
) -> None:
    """Let a product of whole numbers, scaled, take the node's place; ``b``: value and scale."""
    real = low.add("Mul", total, low.add("Mul", scale, low.along(b[1], -1, b[0])))
    low.finish(real if bias is None else low.add("Add", real, bias))


def _matmul_integer_to_float(low: QuantizedLowering, node: ir.Node) -> None:
    a, b, a_scale, b_scale = needed_inputs(node, 4)
    total = _product(low, a, b, input_of(node, 4), input_of(node, 5))
    _scaled(low, total, low.along(a_scale, -2, a), (b, b_scale), input_of(node, 6))


def _dynamic_quantize_matmul(low: QuantizedLowering, node: ir.Node) -> None:
    a, b, b_scale = needed_inputs(node, 3)
    numbers, scale, point = _dynamic(low, a)
    total = _product_of(low, (numbers, point, _UINT8), b, input_of(node, 3))
    _scaled(low, total, scale, (b, b_scale), input_of(node, 4))


def _qgemm(low: QuantizedLowering, node: ir.Node) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero = needed_inputs(node, 6)
    flags: dict[str, Any] = {k: node.attributes.get_int(k, 0) for k in ("transA", "transB")}
    bias, y_scale, y_zero = (input_of(node, index) for index in (6, 7, 8))
    alpha = low.scalar(node.attributes.get_float("alpha", 1.0))
    total = _integer_gemm(low, (a, a_zero), (b, b_zero), bias, flags)
    one, other = low.add("Mul", low.number(a_scale), alpha), low.along(b_scale, 1, b)
    if y_scale is None:
        low.finish(low.add("Mul", total, low.add("Mul", one, other)))
    else:
        _rescaled(low, total, (one, other, low.number(y_scale)), y_zero, _result_type(y_zero, a))


def _integer_gemm(
    low: QuantizedLowering,
    a: tuple[ir.Value, ir.Value],
    b: tuple[ir.Value, ir.Value],
    bias: ir.Value | None,
    flags: Mapping[str, Any],
) -> ir.Value:
    """A product of values less their zero points, and a bias, as whole numbers."""
    kind, transposed = dtype_of(a[0]), bool(flags["transB"])
    if kind in INT8_TYPES and not flags["transA"] and is_single(a[1]):
        weights = taken_weights(low, "Gemm", *b, transposed=transposed)
        if weights is not None:
            zero = low.along(a[1], 0, a[0])
            total = multiplied(low, low.digits(a[0]), zero, kind, weights)
            return total if bias is None else low.add("Add", total, low.number(bias))
    operands = [low.centred(*a), low.centred(*b, 0 if transposed else 1)]
    if bias is not None:
        operands.append(low.number(bias))
    return low.add("Gemm", *operands, **flags)


def _dynamic_lstm(low: QuantizedLowering, node: ir.Node) -> None:
    """Its weights are dequantized, and its activations stay as they are."""
    weights = []
    for index, scale_index in ((1, 8), (2, 10)):
        value, scale = node.inputs[index], node.inputs[scale_index]
        assert value is not None and scale is not None  # noqa: S101, PT018  # they are required
        zero = input_of(node, scale_index + 1)
        real = _directional(low, value, scale, zero)
        weights.append(low.add("Transpose", real, perm=[0, 2, 1]))
    rest = [input_of(node, index) for index in range(3, 8)]
    while rest and rest[-1] is None:
        rest.pop()
    low.finish_with("LSTM", [node.inputs[0], *weights, *rest], options_of(node))


def _directional(
    low: QuantizedLowering, value: ir.Value, scale: ir.Value, zero: ir.Value | None
) -> ir.Value:
    """Dequantize weights of [directions, inputs, columns] with a scale per direction or column."""
    shape = [-1, 1, 1] if low.rank(scale) < 2 else [0, 1, -1]
    number = low.number(value)
    if zero is not None and not is_filled(zero, 0):
        number = low.add("Sub", number, low.reshaped(low.number(zero), shape))
    return low.add("Mul", number, low.reshaped(low.number(scale), shape))


# Functions of dequantized values

_Function = Callable[[QuantizedLowering, ir.Node, list[ir.Value]], ir.Value]


def _elementwise(operands: int, function: _Function, *, condition: bool = False) -> Any:
    """Dequantize operands of value, scale and zero point; quantize a function of them."""

    def rule(low: QuantizedLowering, node: ir.Node) -> None:
        inputs = list(node.inputs)
        first = [value for value in inputs[:1] if condition and value is not None]
        inputs = inputs[len(first):] + [None] * 3  # fmt: skip
        found = []
        for index in range(0, 3 * operands, 3):
            x, scale, zero = inputs[index : index + 3]
            assert x is not None and scale is not None  # noqa: S101, PT018  # they are required
            found.append(low.real(x, low.number(scale), zero))
        y_scale, y_zero = inputs[3 * operands : 3 * operands + 2]
        assert y_scale is not None and inputs[0] is not None  # noqa: S101, PT018
        result = function(low, node, [*first, *found])
        steps = low.add("Div", result, low.number(y_scale))
        kind = _result_type(y_zero, inputs[0])
        low.finish_whole(low.rounded(steps, y_zero, kind), kind)

    return rule


def _plain(
    operator: str, low: QuantizedLowering, node: ir.Node, values: list[ir.Value]
) -> ir.Value:
    return low.add(operator, *values, **options_of(node, "channels_last", "opset"))


def _pool(operator: str, low: QuantizedLowering, node: ir.Node, values: list[ir.Value]) -> ir.Value:
    if not node.attributes.get_int("channels_last", 0):
        return _plain(operator, low, node, values)
    rank = low.rank(node.inputs[0])
    first = low.add("Transpose", values[0], perm=[0, rank - 1, *range(1, rank - 1)])
    found = _plain(operator, low, node, [first])
    return low.add("Transpose", found, perm=[0, *range(2, rank), 1])


def _leaky_relu(low: QuantizedLowering, node: ir.Node, values: list[ir.Value]) -> ir.Value:
    return low.add("LeakyRelu", *values, alpha=node.attributes.get_float("alpha", 0.01))


def _softmax(low: QuantizedLowering, node: ir.Node, values: list[ir.Value]) -> ir.Value:
    """Up to opset 12 over all axes from one on, which is the last in practice."""
    axis = node.attributes.get_int("axis", -1)
    if node.attributes.get_int("opset", 13) >= 13:
        return low.add("Softmax", *values, axis=axis)
    if axis % low.rank(node.inputs[0]) != low.rank(node.inputs[0]) - 1:
        raise UnsupportedError(
            f"QLinearSoftmax {node.name or node.outputs[0].name!r} of opset 12 is over several"
            " axes; export the model with opset 13 or later"
        )
    return low.add("Softmax", *values, axis=-1)


def _reduce_mean(low: QuantizedLowering, node: ir.Node, values: list[ir.Value]) -> ir.Value:
    options = options_of(node)
    axes = options.pop("axes", None)
    if axes is None or low.opset < 18:
        return low.add("ReduceMean", *values, **options, **({"axes": axes} if axes else {}))
    return low.add("ReduceMean", *values, low.integers(axes), **options)


def _concat(low: QuantizedLowering, node: ir.Node) -> None:
    """Its scale and zero point come first, then operands of three each."""
    y_scale, y_zero = needed_inputs(node, 2)
    parts = []
    for index in range(2, len(node.inputs), 3):
        x, scale, zero = node.inputs[index : index + 3]
        assert x is not None and scale is not None  # noqa: S101, PT018  # they are required
        parts.append(low.real(x, low.number(scale), zero))
    steps = low.add("Div", low.add("Concat", *parts, **options_of(node)), low.number(y_scale))
    kind = _result_type(y_zero, y_zero)
    low.finish_whole(low.rounded(steps, y_zero, kind), kind)


# Nodes between them


def _pass_through(low: QuantizedLowering, node: ir.Node) -> None:
    """Move whole numbers in FP32, so that no conversion comes between lowered nodes."""
    if len(node.outputs) != 1:
        return
    moved = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    values = [value for value in moved if value is not None]
    if not values or not all(low.whole(value) for value in values):
        return
    numbers = [low.number(value) for value in values]
    if node.op_type == "Cast":
        if ir.DataType(node.attributes["to"].as_int()) is FLOAT:
            low.finish(numbers[0])
        return
    kind = dtype_of(values[0]) or _UINT8
    rest = node.inputs[len(values):]  # fmt: skip
    low.finish_whole(low.add(node.op_type, *numbers, *rest, **options_of(node)), kind)


def _read_constant(low: QuantizedLowering, node: ir.Node) -> None:
    """Read the numbers of a constant in INT8 in FP32."""
    (x,), rest = needed_inputs(node, 1), node.inputs[1:]
    number = low.constant_number(x)
    if node.op_type != "Cast":
        low.finish_whole(low.add(node.op_type, number, *rest, **options_of(node)), _INT8)
        return
    kind = ir.DataType(node.attributes["to"].as_int())
    low.finish(number if kind is FLOAT else low.add("Cast", number, kind=kind, to=int(kind)))


def _scale_constant(low: QuantizedLowering, node: ir.Node) -> None:
    """Dequantize a constant that the model casts and multiplies by scales."""
    first, second = needed_inputs(node, 2)
    number, scale = (first, second) if first in low.unscaled else (second, first)
    tensor, x = constant_of(scale), low.unscaled.get(number)
    if x is None or x.shape is None or tensor is None or tensor.dtype is not FLOAT:
        return
    extents, rank = [*tensor.shape.numpy()], len(x.shape)
    extents = [1] * (rank - len(extents)) + extents
    axes = [axis for axis, extent in enumerate(extents) if extent != 1]
    fits = len(extents) == rank and all(extents[axis] == x.shape[axis] for axis in axes)
    if not fits or len(axes) > 1 or not (tensor.numpy() > 0).all():
        return
    if not axes:
        low.finish(low.add("DequantizeLinear", x, low.reshaped(scale, [])))
    elif low.opset >= _AXIS:
        low.finish(low.add("DequantizeLinear", x, low.reshaped(scale, [-1]), axis=axes[0]))


_PRODUCT_RULES = {
    "MatMul": dequantized_product,
    "Gemm": dequantized_product,
    "Conv": dequantized_convolution,
}
_QDQ_RULES = {"QuantizeLinear": _quantize_linear, "DequantizeLinear": _dequantize_linear}
_RULES: Mapping[str, Callable[[QuantizedLowering, ir.Node], None]] = {
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _matmul_integer,
    "ConvInteger": _conv_integer,
    "QLinearMatMul": _qlinear_matmul,
    "QLinearConv": _qlinear_conv,
    "MatMulIntegerToFloat": _matmul_integer_to_float,
    "DynamicQuantizeMatMul": _dynamic_quantize_matmul,
    "DynamicQuantizeLSTM": _dynamic_lstm,
    "QGemm": _qgemm,
    "QLinearConcat": _concat,
    "QLinearAdd": _elementwise(2, partial(_plain, "Add")),
    "QLinearMul": _elementwise(2, partial(_plain, "Mul")),
    "QLinearWhere": _elementwise(2, partial(_plain, "Where"), condition=True),
    "QLinearSigmoid": _elementwise(1, partial(_plain, "Sigmoid")),
    "QLinearLeakyRelu": _elementwise(1, _leaky_relu),
    "QLinearSoftmax": _elementwise(1, _softmax),
    "QLinearReduceMean": _elementwise(1, _reduce_mean),
    "QLinearAveragePool": _elementwise(1, partial(_pool, "AveragePool")),
    "QLinearGlobalAveragePool": _elementwise(1, partial(_pool, "GlobalAveragePool")),
}
