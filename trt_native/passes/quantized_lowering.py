"""Arithmetic in FP32 that takes the place of quantized operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.errors import UnsupportedError
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import FLOAT, QDQ, constant_of, dtype_of, opset_of
from trt_native.passes.replacement import KEEP_FP32_KEY, NameAuthority, ReplacementBuilder

__all__ = [
    "QuantizedLowering",
    "axis_of",
    "block_size",
    "extent_of",
    "is_filled",
    "is_single",
    "needed_inputs",
    "options_of",
]

_ROUND = 11  # the first opset that has Round, and Clip with limits as inputs
_FOLDS: Mapping[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide,
}  # fmt: skip


class QuantizedLowering:
    """Arithmetic in FP32 in the place of a node; constants are computed when they are written.

    Attributes:
        opset: That of the model.
        int8_ops: The products that the backend builds in INT8.
        in_int8: How many products are in INT8, by operator.
        keeps_int8: Whether the model may have Q/DQ nodes that it had not.
        unscaled: Constants in INT8 of FP32 values that hold the same numbers.
        sources: Values, scales and zero points of dequantized values, and their axes.
    """

    def __init__(
        self, model: ir.Model, int8_ops: Collection[str] = (), *, keeps_int8: bool = False
    ) -> None:
        self._model = model
        self.int8_ops = frozenset(int8_ops)
        self.keeps_int8 = keeps_int8
        self.unscaled: dict[ir.Value, ir.Value] = {}
        self.in_int8: Counter[str] = Counter()
        self.sources: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value | None, int]] = {}
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

    def digits(self, value: ir.Value) -> ir.Value:
        """Numbers in FP32, but INT8 ones that are not known so as they are."""
        native = dtype_of(value) is ir.DataType.INT8 and not self.whole(value)
        return value if native else self.number(value)

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
        if block := block_size(self._node):
            return self._repeated(number, axis, block)
        if value.shape is None or len(value.shape) != 1 or value.shape[0] == 1:
            tensor = constant_of(number)
            return number if tensor is None or tensor.size != 1 else self.reshaped(number, [])
        rank = self.rank(of)
        return self.reshaped(number, [-1, *[1] * (rank - 1 - axis % rank)])

    def _repeated(self, number: ir.Value, axis: int, block: int) -> ir.Value:
        """Numbers of blocks of an axis, one for each element."""
        extent = extent_of(self._node, axis)
        assert extent is not None  # noqa: S101  # such nodes are not lowered
        places = np.arange(extent) // block
        if (tensor := constant_of(number)) is not None:
            return self._folded(lambda array: array.take(places, axis), tensor)
        return self.add("Gather", number, self.integers(places.tolist()), axis=axis)

    def centred(self, value: ir.Value, zero: ir.Value | None, axis: int = 0) -> ir.Value:
        """A quantized value less its zero point."""
        number = self.number(value)
        if zero is None or is_filled(zero, 0):
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
        if zero is not None and not is_filled(zero, 0):
            number = self.add("Add", number, self.along(zero, axis, of))
        limits = np.iinfo(kind.numpy())
        return self.clipped(number, limits.min, limits.max)

    def int8(self, number: ir.Value) -> ir.Value:
        """Whole numbers within the range of INT8 as such, in a form that TensorRT multiplies."""
        zero = self._builder.constant(np.array(0, np.int8))
        return self.add("QuantizeLinear", number, self.scalar(1), zero, kind=ir.DataType.INT8)

    def constant_number(self, value: ir.Value) -> ir.Value:
        """The numbers of a constant in FP32, of INT8 by a node that TensorRT takes it from."""
        if not self.keeps_int8 or dtype_of(value) is not ir.DataType.INT8:
            return self.number(value)
        number = self.real_int8(value)
        self.unscaled[number] = value
        return number

    def real_int8(self, value: ir.Value) -> ir.Value:
        """INT8 numbers in FP32, in a form that TensorRT multiplies."""
        return self.add("DequantizeLinear", value, self.scalar(1))

    def initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Add an initializer, which may be computed when the model is written."""
        return self._names.initializer(f"{self._node.outputs[0].name}__int8", tensor)

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
        self._builder.replace(*(None if value is None else self.added(value) for value in outputs))

    def added(self, value: ir.Value) -> ir.Value:
        """The output of a node that was added: the value itself, or a copy."""
        made = (one for node in self._builder.nodes for one in node.outputs)
        return value if value in made else self._copy(value)

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


def is_filled(value: ir.Value, number: int) -> bool:
    """Whether a value is a constant of one number."""
    tensor = constant_of(value)
    return tensor is not None and bool((tensor.numpy() == number).all())


def is_single(value: ir.Value | None) -> bool:
    """Whether a scale or zero point is one number."""
    return value is None or (value.shape is not None and all(axis == 1 for axis in value.shape))


def block_size(node: ir.Node) -> int:
    """How many elements share a scale, of Q/DQ of blocks; 0 for others."""
    return node.attributes.get_int("block_size", 0) if node.op_type in QDQ else 0


def extent_of(node: ir.Node, axis: int) -> int | None:
    """An extent of the first input of a node; None where it is unknown."""
    x = node.inputs[0]
    if x is None or x.shape is None or not -len(x.shape) <= axis < len(x.shape):
        return None
    extent = x.shape[axis]
    return extent if isinstance(extent, int) else None


def needed_inputs(node: ir.Node, count: int) -> list[ir.Value]:
    """The first inputs, which the operator requires."""
    found = [value for value in node.inputs[:count] if value is not None]
    if len(found) < count:
        raise UnsupportedError(f"{node.op_type} {node.name or node.outputs[0].name!r} lacks inputs")
    return found


def axis_of(node: ir.Node) -> int:
    """The axis of a Q/DQ node's scales."""
    return node.attributes.get_int("axis", 1)


def options_of(node: ir.Node, *without: str) -> dict[str, Any]:
    """A node's attributes without some."""
    return {n: a.value for n, a in node.attributes.items() if n not in without}
