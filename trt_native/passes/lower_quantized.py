"""Write quantized operators that TensorRT does not have as floating-point arithmetic.

TensorRT builds symmetric INT8 with constant scales. Other quantized numbers are computed here as
whole numbers in FP32, or as products of dequantized constants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from trt_native.arrays import Array
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
    opset_of,
)
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass, count_text
from trt_native.passes.replacement import KEEP_FP32_KEY, NameAuthority, ReplacementBuilder

__all__ = ["LowerQuantized", "lower_quantized"]

_INT8, _UINT8, _INT32 = ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32
_WHOLE = frozenset({_INT8, _UINT8, _INT32, ir.DataType.INT16, ir.DataType.UINT16})
_ROUND = 11  # the first opset that has Round, and Clip with limits as inputs
_DOMAINS = ("", "com.microsoft")
_MOVED = op_set(
    "Identity Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile Slice MaxPool DepthToSpace"
)
_FOLDS: Mapping[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide,
}  # fmt: skip


class LowerQuantized(GraphPass):
    """Quantized operators that TensorRT lacks, as floating-point arithmetic."""

    name = "lower_quantized"
    title = "Lowering quantized operators"
    early = True

    def needed(self, model: ir.Model) -> bool:
        """Whether there is a quantized operator that TensorRT does not have."""
        return any(_rule(node) for node in all_nodes(model.graph))

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Lower them; see :func:`lower_quantized`."""
        return lower_quantized(model)

    def summarize(self, record: Mapping[str, Any]) -> str:
        """The operators, and those that skip a rounding of activations."""
        if "nodes" not in record:
            return self.title
        text = f"quantized operators as floating-point arithmetic: {count_text(record['nodes'])}"
        if count := record.get("unrounded"):
            text += f"; activations of {count} recurrent layers are not quantized"
        return text


@wraps_graph_errors
def lower_quantized(model: ir.Model) -> dict[str, Any]:
    """Write quantized operators that TensorRT lacks as floating-point arithmetic, in place.

    Constants are dequantized when the model is written. Integer sums are exact up to 2**24.

    Returns:
        ``nodes``: how many were rewritten, by operator. ``unrounded``: how many recurrent layers
        read activations that the original quantizes.

    Raises:
        UnsupportedError: an operator lacks inputs, or needs a rank that is not known.
    """
    infer_values(model)
    lowering = _QuantizedLowering(model)
    counts: Counter[str] = Counter()
    for node in tuple(all_nodes(model.graph)):
        if rule := _rule(node):
            lowering.begin(node)
            rule(lowering, node)
            counts[node.op_type] += 1
        elif not node.domain and node.op_type in (*_MOVED, "Cast", "Concat"):
            lowering.begin(node)
            _pass_through(lowering, node)
    common.RemoveUnusedNodesPass()(model)
    record: dict[str, Any] = {"nodes": dict(counts)}
    if counts["DynamicQuantizeLSTM"]:
        record["unrounded"] = counts["DynamicQuantizeLSTM"]
    return record


class _QuantizedLowering:
    """Arithmetic in FP32 in the place of a node; constants are computed when they are written."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._names = NameAuthority(model)
        self.opset = opset_of(model)
        self._numbers: dict[ir.Value, ir.Value] = {}

    def begin(self, node: ir.Node) -> None:
        """Start to replace a node."""
        self._node = node
        self._builder = ReplacementBuilder(node, self._names, self.opset)

    def add(
        self, operator: str, *inputs: ir.Value | None, kind: ir.DataType = FLOAT, **options: object
    ) -> ir.Value:
        """Add a node, or compute it where it is arithmetic of constants."""
        tensors = [None if v is None else constant_of(v) for v in inputs]
        if operator in _FOLDS and None not in tensors:
            return self._folded(_FOLDS[operator], *tensors)
        value = self._builder.add(operator, inputs, kind, **options)
        producer = value.producer()
        assert producer is not None  # noqa: S101  # for the type checker
        producer.metadata_props[KEEP_FP32_KEY] = "quantized"
        return value

    def scalar(self, number: float) -> ir.Value:
        """An FP32 constant."""
        return self._builder.constant(np.float32(number))

    def whole(self, value: ir.Value) -> bool:
        """Whether a value is known as whole numbers in FP32."""
        return value in self._numbers

    def number(self, value: ir.Value) -> ir.Value:
        """The same number in FP32."""
        if value in self._numbers:
            return self._numbers[value]
        if dtype_of(value) is FLOAT:
            return value
        if (tensor := constant_of(value)) is not None:
            return self._folded(lambda array: array, tensor)
        return self.add("Cast", value, to=int(FLOAT))

    def rank(self, value: ir.Value | None) -> int:
        """The rank of a value, which may follow from nodes that were lowered before."""
        for attempt in (True, False):
            if value is not None and value.shape is not None:
                return len(value.shape)
            tensor = None if value is None else constant_of(value)
            if tensor is not None:
                return len(tensor.shape)
            if attempt:
                infer_values(self._model)
        name = None if value is None else value.name
        raise UnsupportedError(
            f"{self._node.op_type} {self._node.name or self._node.outputs[0].name!r} needs the rank"
            f" of {name!r}, which is neither given nor inferred; add a value_info to the model"
        )

    def along(self, value: ir.Value, axis: int, of: ir.Value | None) -> ir.Value:
        """A vector of numbers, one for each index of a value's axis, in a shape that broadcasts."""
        number = self.number(value)
        if value.shape is None or len(value.shape) != 1 or value.shape[0] == 1:
            tensor = constant_of(number)
            return number if tensor is None or tensor.size != 1 else self.reshaped(number, [])
        rank = self.rank(of)
        return self.reshaped(number, [-1, *[1] * (rank - 1 - axis % rank)])

    def centred(self, value: ir.Value, zero: ir.Value | None, axis: int = 0) -> ir.Value:
        """A quantized value less its zero point."""
        number = self.number(value)
        if zero is None or _is_filled(zero, 0):
            return number
        return self.add("Sub", number, self.along(zero, axis, value))

    def real(
        self, value: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int = 0
    ) -> ir.Value:
        """A dequantized value."""
        centred = self.centred(value, zero, axis)
        return self.add("Mul", centred, self.along(scale, axis, value))

    def rounded(
        self,
        steps: ir.Value,
        zero: ir.Value | None,
        kind: ir.DataType,
        axis: int = 0,
        of: ir.Value | None = None,
    ) -> ir.Value:  # fmt: skip
        """The quantized number nearest to a number of steps, behind which the node ends."""
        number = self.nearest(steps)
        if zero is not None and not _is_filled(zero, 0):
            number = self.add("Add", number, self.along(zero, axis, of))
        limits = np.iinfo(kind.numpy())
        return self.clipped(number, limits.min, limits.max)

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        """An INT64 constant."""
        return self._builder.constant(np.array(numbers, np.int64))

    def finish_with(
        self, operator: str, inputs: Sequence[ir.Value | None], options: Mapping[str, object]
    ) -> None:
        """Let a node of FP32 take the node's place, with as many outputs."""
        count = len(self._node.outputs)
        self._builder.replace(*self._builder.add_with(operator, inputs, count, options, FLOAT))

    def clipped(self, x: ir.Value, low: int, high: int) -> ir.Value:
        """Numbers within limits."""
        limits = self.scalar(low), self.scalar(high)
        if self.opset >= _ROUND:
            return self.add("Clip", x, *limits)
        return self.add("Min", self.add("Max", x, limits[0]), limits[1])

    def nearest(self, x: ir.Value) -> ir.Value:
        """The nearest whole numbers, and of two the even one."""
        if self.opset >= _ROUND:
            return self.add("Round", x)
        half, below = self.scalar(0.5), self.add("Floor", x)
        rest = self.add("Sub", x, below)
        halved = self.add("Mul", below, half)
        odd = self.add("Sub", below, self.add("Mul", self.add("Floor", halved), self.scalar(2)))
        boolean = ir.DataType.BOOL
        larger = self.add("Greater", rest, half, kind=boolean)
        smaller = self.add("Less", rest, half, kind=boolean)
        step = self.add("Where", smaller, self.scalar(0), odd)
        return self.add("Add", below, self.add("Where", larger, self.scalar(1), step))

    def finish_whole(self, number: ir.Value, kind: ir.DataType) -> None:
        """Let whole numbers take the place of the node's only output."""
        output = self.typed(number, kind)
        self._builder.replace(output)

    def typed(self, number: ir.Value, kind: ir.DataType) -> ir.Value:
        """Whole numbers in their type, for readers that are not lowered."""
        output = self.add("Cast", number, kind=kind, to=int(kind))
        self._numbers[output] = number
        return output

    def finish(self, *outputs: ir.Value | None) -> None:
        """Let values take the place of the node's outputs."""
        added = [value for node in self._builder.nodes for value in node.outputs]
        self._builder.replace(*(v if v is None or v in added else self._copy(v) for v in outputs))

    def quantize(
        self, x: ir.Value, scale: ir.Value, zero: ir.Value | None, kind: ir.DataType, axis: int = 0
    ) -> None:
        """Let a quantized value take the place of the node's output."""
        of = self._node.inputs[0]
        steps = self.add("Div", x, self.along(scale, axis, of))
        self.finish_whole(self.rounded(steps, zero, kind, axis, of), kind)

    def _copy(self, value: ir.Value) -> ir.Value:
        return self.add("Identity", value, kind=dtype_of(value) or FLOAT)

    def reshaped(self, value: ir.Value, shape: list[int]) -> ir.Value:
        """A number in another shape; 0 stands for its first extent."""
        if (tensor := constant_of(value)) is not None:
            exact = [tensor.shape.numpy()[0] if extent == 0 else extent for extent in shape]
            return self._folded(lambda array: array.reshape(exact), tensor)
        return self.add("Reshape", value, self.integers(shape))

    def _folded(self, run: Callable[..., Any], *tensors: ir.TensorProtocol | None) -> ir.Value:
        given = [tensor for tensor in tensors if tensor is not None]
        hollow = [np.broadcast_to(np.float32(1), tensor.shape.numpy()) for tensor in given]
        shape = ir.Shape(
            np.broadcast_shapes(*(array.shape for array in hollow))
            if run in _FOLDS.values()
            else run(*hollow).shape
        )

        def compute() -> ir.TensorProtocol:
            arrays: list[Array] = [tensor.numpy().astype(np.float32) for tensor in given]
            return ir.Tensor(np.ascontiguousarray(run(*arrays)).reshape(shape.numpy()))

        lazy = ir.LazyTensor(compute, dtype=FLOAT, shape=shape)
        return self._names.initializer(f"{self._node.outputs[0].name}__dequantized", lazy)


def _is_filled(value: ir.Value, number: int) -> bool:
    tensor = constant_of(value)
    return tensor is not None and bool((tensor.numpy() == number).all())


# Which nodes are lowered


def _rule(node: ir.Node) -> Callable[[_QuantizedLowering, ir.Node], None] | None:
    if node.domain not in _DOMAINS:
        return None
    if node.op_type in QDQ:
        return _QDQ_RULES[node.op_type] if _is_lowered(node) else None
    return _RULES.get(node.op_type)


def _is_lowered(node: ir.Node) -> bool:
    """Whether TensorRT lacks a kind of Q/DQ that is arithmetic of whole numbers."""
    x, scale, zero = (input_of(node, index) for index in range(3))
    kind = _quantized_type(node)
    if kind not in _WHOLE or x is None or scale is None or _is_blocked(node):
        return False
    symmetric = zero is None or _is_filled(zero, 0)
    return bool(node.domain) or not (kind is _INT8 and symmetric and constant_of(scale) is not None)


def _is_blocked(node: ir.Node) -> bool:
    return node.attributes.get_int("block_size", 0) != 0


def _quantized_type(node: ir.Node) -> ir.DataType | None:
    """The element type on the quantized side of a Q/DQ node."""
    if node.op_type == "DequantizeLinear":
        return dtype_of(input_of(node, 0)) or dtype_of(input_of(node, 2))
    given = ir.DataType(node.attributes.get_int("output_dtype", 0))
    return dtype_of(input_of(node, 2)) or (given if given else _UINT8)


def _needed_inputs(node: ir.Node, count: int) -> list[ir.Value]:
    """The first inputs, which the operator requires."""
    found = [value for value in node.inputs[:count] if value is not None]
    if len(found) < count:
        raise UnsupportedError(f"{node.op_type} {node.name or node.outputs[0].name!r} lacks inputs")
    return found


# Q/DQ


def _axis(node: ir.Node) -> int:
    return node.attributes.get_int("axis", 1)


def _quantize_linear(low: _QuantizedLowering, node: ir.Node) -> None:
    x, scale = _needed_inputs(node, 2)
    kind = _quantized_type(node)
    assert kind is not None  # noqa: S101  # such nodes are not lowered
    low.quantize(low.number(x), scale, input_of(node, 2), kind, _axis(node))


def _dequantize_linear(low: _QuantizedLowering, node: ir.Node) -> None:
    x, scale = _needed_inputs(node, 2)
    real = low.real(x, scale, input_of(node, 2), _axis(node))
    kind = dtype_of(scale) or FLOAT
    low.finish(real if kind is FLOAT else low.add("Cast", real, kind=kind, to=int(kind)))


def _dynamic(low: _QuantizedLowering, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
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


def _dynamic_quantize(low: _QuantizedLowering, node: ir.Node) -> None:
    numbers, scale, point = _dynamic(low, _needed_inputs(node, 1)[0])
    low.finish(low.typed(numbers, _UINT8), scale, low.typed(point, _UINT8))


# Products of whole numbers


def _product(
    low: _QuantizedLowering,
    a: ir.Value,
    b: ir.Value,
    a_zero: ir.Value | None,
    b_zero: ir.Value | None,
) -> ir.Value:
    """A matrix product of quantized values, as whole numbers; of a there may be one per row."""
    return low.add("MatMul", low.centred(a, a_zero, -2), low.centred(b, b_zero, -1))


def _convolution(
    low: _QuantizedLowering, node: ir.Node, x: ir.Value, w: ir.Value,
    zeros: tuple[ir.Value | None, ...], bias: ir.Value | None = None,
) -> ir.Value:  # fmt: skip
    given = None if bias is None else low.number(bias)
    inputs = [low.centred(x, zeros[0], 1), low.centred(w, zeros[1], 0), given]
    return low.add("Conv", *inputs[: 2 if given is None else 3], **_options(node))


def _options(node: ir.Node, *without: str) -> dict[str, Any]:
    return {n: a.value for n, a in node.attributes.items() if n not in without}


def _rescaled(
    low: _QuantizedLowering, total: ir.Value, scales: tuple[ir.Value, ...], zero: ir.Value | None,
    kind: ir.DataType,
) -> None:  # fmt: skip
    """Quantize a sum in steps of two scales in steps of a third."""
    one, other, result = scales
    factor = low.add("Div", low.add("Mul", one, other), result)
    low.finish_whole(low.rounded(low.add("Mul", total, factor), zero, kind), kind)


def _result_type(zero: ir.Value | None, otherwise: ir.Value) -> ir.DataType:
    return dtype_of(zero) or dtype_of(otherwise) or _UINT8


def _matmul_integer(low: _QuantizedLowering, node: ir.Node) -> None:
    a, b = _needed_inputs(node, 2)
    low.finish_whole(_product(low, a, b, input_of(node, 2), input_of(node, 3)), _INT32)


def _conv_integer(low: _QuantizedLowering, node: ir.Node) -> None:
    x, w = _needed_inputs(node, 2)
    zeros = (input_of(node, 2), input_of(node, 3))
    low.finish_whole(_convolution(low, node, x, w, zeros), _INT32)


def _qlinear_matmul(low: _QuantizedLowering, node: ir.Node) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = _needed_inputs(node, 8)
    scales = (low.along(a_scale, -2, a), low.along(b_scale, -1, b))
    total = _product(low, a, b, a_zero, b_zero)
    _rescaled(low, total, (*scales, low.number(y_scale)), y_zero, _result_type(y_zero, a))


def _qlinear_conv(low: _QuantizedLowering, node: ir.Node) -> None:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = _needed_inputs(node, 8)
    total = _convolution(low, node, x, w, (x_zero, w_zero), input_of(node, 8))
    scales = (low.number(x_scale), low.along(w_scale, 1, w), low.number(y_scale))
    _rescaled(low, total, scales, y_zero, _result_type(y_zero, x))


def _scaled_product(
    low: _QuantizedLowering,
    a: tuple[ir.Value, ...],
    b: tuple[ir.Value | None, ...],
    bias: ir.Value | None,
) -> None:
    """A product of numbers less their zero points, scaled; ``b``: value, scale, zero point."""
    numbers, a_scale = a
    value, scale, zero = b
    assert value is not None and scale is not None  # noqa: S101, PT018  # they are required
    total = low.add("MatMul", numbers, low.centred(value, zero, -1))
    real = low.add("Mul", total, low.add("Mul", a_scale, low.along(scale, -1, value)))
    low.finish(real if bias is None else low.add("Add", real, bias))


def _matmul_integer_to_float(low: _QuantizedLowering, node: ir.Node) -> None:
    a, b, a_scale, b_scale = _needed_inputs(node, 4)
    left = (low.centred(a, input_of(node, 4), -2), low.along(a_scale, -2, a))
    _scaled_product(low, left, (b, b_scale, input_of(node, 5)), input_of(node, 6))


def _dynamic_quantize_matmul(low: _QuantizedLowering, node: ir.Node) -> None:
    a, b, b_scale = _needed_inputs(node, 3)
    numbers, scale, point = _dynamic(low, a)
    left = (low.add("Sub", numbers, point), scale)
    _scaled_product(low, left, (b, b_scale, input_of(node, 3)), input_of(node, 4))


def _qgemm(low: _QuantizedLowering, node: ir.Node) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero = _needed_inputs(node, 6)
    flags: dict[str, Any] = {k: node.attributes.get_int(k, 0) for k in ("transA", "transB")}
    bias, y_scale, y_zero = (input_of(node, index) for index in (6, 7, 8))
    channel = 0 if flags["transB"] else 1
    operands = [low.centred(a, a_zero), low.centred(b, b_zero, channel)]
    if bias is not None:
        operands.append(low.number(bias))
    alpha = low.scalar(node.attributes.get_float("alpha", 1.0))
    total = low.add("Gemm", *operands, **flags)
    one, other = low.add("Mul", low.number(a_scale), alpha), low.along(b_scale, 1, b)
    if y_scale is None:
        low.finish(low.add("Mul", total, low.add("Mul", one, other)))
    else:
        _rescaled(low, total, (one, other, low.number(y_scale)), y_zero, _result_type(y_zero, a))


def _dynamic_lstm(low: _QuantizedLowering, node: ir.Node) -> None:
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
    low.finish_with("LSTM", [node.inputs[0], *weights, *rest], _options(node))


def _directional(
    low: _QuantizedLowering, value: ir.Value, scale: ir.Value, zero: ir.Value | None
) -> ir.Value:
    """Dequantize weights of [directions, inputs, columns] with a scale per direction or column."""
    shape = [-1, 1, 1] if low.rank(scale) < 2 else [0, 1, -1]
    number = low.number(value)
    if zero is not None and not _is_filled(zero, 0):
        number = low.add("Sub", number, low.reshaped(low.number(zero), shape))
    return low.add("Mul", number, low.reshaped(low.number(scale), shape))


# Functions of dequantized values

_Function = Callable[[_QuantizedLowering, ir.Node, list[ir.Value]], ir.Value]


def _elementwise(operands: int, function: _Function, *, condition: bool = False) -> Any:
    """Dequantize operands of value, scale and zero point; quantize a function of them."""

    def rule(low: _QuantizedLowering, node: ir.Node) -> None:
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
    operator: str, low: _QuantizedLowering, node: ir.Node, values: list[ir.Value]
) -> ir.Value:
    return low.add(operator, *values, **_options(node, "channels_last", "opset"))


def _pool(
    operator: str, low: _QuantizedLowering, node: ir.Node, values: list[ir.Value]
) -> ir.Value:
    if not node.attributes.get_int("channels_last", 0):
        return _plain(operator, low, node, values)
    rank = low.rank(node.inputs[0])
    first = low.add("Transpose", values[0], perm=[0, rank - 1, *range(1, rank - 1)])
    found = _plain(operator, low, node, [first])
    return low.add("Transpose", found, perm=[0, *range(2, rank), 1])


def _leaky_relu(low: _QuantizedLowering, node: ir.Node, values: list[ir.Value]) -> ir.Value:
    return low.add("LeakyRelu", *values, alpha=node.attributes.get_float("alpha", 0.01))


def _softmax(low: _QuantizedLowering, node: ir.Node, values: list[ir.Value]) -> ir.Value:
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


def _reduce_mean(low: _QuantizedLowering, node: ir.Node, values: list[ir.Value]) -> ir.Value:
    options = _options(node)
    axes = options.pop("axes", None)
    if axes is None or low.opset < 18:
        return low.add("ReduceMean", *values, **options, **({"axes": axes} if axes else {}))
    return low.add("ReduceMean", *values, low.integers(axes), **options)


def _concat(low: _QuantizedLowering, node: ir.Node) -> None:
    """Its scale and zero point come first, then operands of three each."""
    y_scale, y_zero = _needed_inputs(node, 2)
    parts = []
    for index in range(2, len(node.inputs), 3):
        x, scale, zero = node.inputs[index : index + 3]
        assert x is not None and scale is not None  # noqa: S101, PT018  # they are required
        parts.append(low.real(x, low.number(scale), zero))
    steps = low.add("Div", low.add("Concat", *parts, **_options(node)), low.number(y_scale))
    kind = _result_type(y_zero, y_zero)
    low.finish_whole(low.rounded(steps, y_zero, kind), kind)


# Nodes between them


def _pass_through(low: _QuantizedLowering, node: ir.Node) -> None:
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
    low.finish_whole(low.add(node.op_type, *numbers, *rest, **_options(node)), kind)


_QDQ_RULES = {"QuantizeLinear": _quantize_linear, "DequantizeLinear": _dequantize_linear}
_RULES: Mapping[str, Callable[[_QuantizedLowering, ir.Node], None]] = {
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
