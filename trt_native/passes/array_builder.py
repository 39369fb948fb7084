"""Arithmetic on arrays in the place of a node, and what is known of the node beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.nodes import FLOAT, constant_of, dtype_of, input_of, op_set
from trt_native.passes.replacement import KEEP_FP32_KEY, ReplacementBuilder

__all__ = ["BOOL", "INT64", "ArrayBuilder", "CopiedAxis", "OperatorRule", "Site", "terms_at"]

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64
_SLICE_INPUTS = 10  # since this opset Slice has its limits as inputs
_PAD_INPUTS = 11  # Pad its widths
_SUM_AXES_INPUT = 13  # since this opset ReduceSum, Squeeze and Unsqueeze have them as an input
_AXES_INPUT = 18  # the other reductions
_LAST = np.iinfo(np.int64).max

_SELECTIONS = op_set("Cast Gather Identity Reshape Slice Squeeze Unsqueeze")  # of a vector

Operand = ir.Value | Array | None


class CopiedAxis(NamedTuple):
    """An extent that is that of an axis."""

    axis: int


class Site:
    """A node, with the constants and extents that are known once fixed dimensions are bound.

    Attributes:
        node: The node.
        opset: That of the model.
        is_inside: Whether it is in the body of another node.
    """

    def __init__(
        self, node: ir.Node, twin: ir.Node | None, opset: int, *, is_inside: bool = False
    ) -> None:
        """Take a node and its twin in a copy of the model where all that is known is folded."""
        self.node = node
        self.opset = opset
        self.is_inside = is_inside
        self._twin = node if twin is None or twin.graph is None else twin

    def has(self, index: int) -> bool:
        """Whether the node has an input."""
        return input_of(self.node, index) is not None

    def constant(self, index: int) -> Array | None:
        """The values of an input; None where they are unknown, or there is none."""
        for node in (self.node, self._twin):
            value = input_of(node, index)
            tensor = None if value is None else constant_of(value)
            if tensor is not None:
                return tensor.numpy()
        return None

    def elements(self, index: int, source: int) -> list[int | CopiedAxis] | None:
        """The elements of an input that is a vector of extents; None where they are unknown.

        Args:
            index: The input, which may be joined from constants and parts of a shape.
            source: The input whose shape that is.
        """
        values = [input_of(self._twin, place) for place in (index, source)]
        return None if None in values else _elements(*values)

    def extents(self, index: int) -> list[int | None] | None:
        """The extents of an input, None for an unknown one; None where the rank is unknown."""
        for node in (self._twin, self.node):
            value = input_of(node, index)
            if value is not None and value.shape is not None:
                return [axis if isinstance(axis, int) else None for axis in value.shape]
        return None

    def static(self, index: int) -> list[int] | None:
        """The extents of an input; None where one is unknown."""
        extents = self.extents(index)
        if extents is None:
            return None
        known = [extent for extent in extents if extent is not None]
        return known if len(known) == len(extents) else None

    def kind(self, index: int = 0) -> ir.DataType | None:
        """The element type of an input."""
        return dtype_of(input_of(self.node, index))

    def ints(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """An attribute of whole numbers."""
        return list(self.node.attributes.get_ints(name, default))

    def int(self, name: str, default: int = 0) -> int:
        """An attribute with a whole number."""
        return self.node.attributes.get_int(name, default)

    def string(self, name: str, default: str) -> str:
        """An attribute with a text."""
        return self.node.attributes.get_string(name, default)


def _elements(vector: ir.Value | None, source: ir.Value | None) -> list[int | CopiedAxis] | None:
    node = None if vector is None else vector.producer()
    tensor = None if vector is None else constant_of(vector)
    if tensor is not None:
        return [int(number) for number in tensor.numpy().reshape(-1)]
    if node is None or node.domain or None in node.inputs:
        return None
    if node.op_type == "Shape" and source is not None and source.shape is not None:
        end = node.attributes.get_int("end", len(source.shape))
        axes = range(len(source.shape))[node.attributes.get_int("start", 0) : end]
        return [CopiedAxis(axis) for axis in axes] if node.inputs[0] is source else None
    if node.op_type == "Concat":
        parts = [_elements(part, source) for part in node.inputs]
        known = [part for part in parts if part is not None]
        return [one for part in known for one in part] if len(known) == len(parts) else None
    if node.op_type not in _SELECTIONS:
        return None
    taken = _elements(node.inputs[0], source)
    constants = [constant_of(value) for value in node.inputs[1:] if value is not None]
    if taken is None or None in constants:
        return None
    numbers = [one.numpy().reshape(-1).tolist() for one in constants if one is not None]
    if node.op_type == "Gather":
        return [taken[place] for place in numbers[0]]
    if node.op_type == "Slice":
        step = numbers[3][0] if len(numbers) > 3 else 1
        return taken[numbers[0][0] : numbers[1][0] : step]
    return taken


class ArrayBuilder(ReplacementBuilder):
    """A builder whose operators take arrays as constants, and write axes as the opset has them."""

    def op(
        self,
        operator: str,
        *inputs: Operand,
        kind: ir.DataType | None = None,
        **attributes: object,
    ) -> ir.Value:
        """Add a node; its output has the type of its first input unless another is given."""
        values = [self.value(one) for one in inputs]
        return self.add(operator, values, kind or dtype_of(values[0]), **attributes)

    def value(self, operand: Operand) -> ir.Value | None:
        """An array as a constant."""
        return self.constant(operand) if isinstance(operand, np.ndarray) else operand

    def number(self, number: float, like: ir.Value | None) -> Array:
        """A scalar of the type of a value."""
        kind = dtype_of(like)
        return np.array(number, (kind or FLOAT).numpy())

    def cast(self, x: Operand, kind: ir.DataType | None) -> ir.Value:
        """The values in another type."""
        value = self.value(x)
        assert value is not None  # noqa: S101  # for the type checker
        assert kind is not None  # noqa: S101  # for the type checker
        return value if dtype_of(value) is kind else self.op("Cast", value, kind=kind, to=int(kind))

    def reduce(
        self, operator: str, x: ir.Value, axes: Sequence[int], *, keepdims: bool = False
    ) -> ir.Value:
        """Reduce axes."""
        since = _SUM_AXES_INPUT if operator == "ReduceSum" else _AXES_INPUT
        if self.opset >= since:
            return self.op(operator, x, np.array(axes), keepdims=int(keepdims))
        return self.op(operator, x, axes=list(axes), keepdims=int(keepdims))

    def unsqueeze(self, x: Operand, axes: Sequence[int]) -> ir.Value:
        """Add axes of one element."""
        return self._with_axes("Unsqueeze", x, axes)

    def squeeze(self, x: Operand, axes: Sequence[int]) -> ir.Value:
        """Drop axes of one element."""
        return self._with_axes("Squeeze", x, axes)

    def _with_axes(self, operator: str, x: Operand, axes: Sequence[int]) -> ir.Value:
        if self.opset >= _SUM_AXES_INPUT:
            return self.op(operator, x, np.array(axes))
        return self.op(operator, x, axes=list(axes))

    def reshape(self, x: Operand, shape: Sequence[int | ir.Value]) -> ir.Value:
        """Reshape, also to extents that are vectors of one element."""
        if all(isinstance(extent, int) for extent in shape):
            return self.op("Reshape", x, np.array(shape, np.int64))
        return self.op("Reshape", x, self.joined(shape))

    def joined(self, extents: Sequence[int | ir.Value]) -> ir.Value:
        """A vector of extents."""
        parts = [np.array([one]) if isinstance(one, int) else one for one in extents]
        return self.op("Concat", *parts, kind=INT64, axis=0)

    def extent(self, x: ir.Value | None, axis: int) -> ir.Value:
        """An extent, as a vector of one element."""
        shape = self.op("Shape", x, kind=INT64)
        return self.op("Gather", shape, np.array([axis]), axis=0)

    def slice(self, x: Operand, axis: int, start: int, end: int = _LAST) -> ir.Value:
        """A part of an axis."""
        if self.opset < _SLICE_INPUTS:
            return self.op("Slice", x, starts=[start], ends=[end], axes=[axis])
        return self.op("Slice", x, np.array([start]), np.array([end]), np.array([axis]))

    def pad(
        self, x: ir.Value, rank: int, axis: int, before: int, behind: int, fill: float = 0
    ) -> ir.Value:
        """Elements before and behind an axis."""
        pads = np.zeros((2, rank), np.int64)
        pads[:, axis] = before, behind
        if self.opset < _PAD_INPUTS:
            return self.op("Pad", x, pads=pads.reshape(-1).tolist(), value=float(fill))
        return self.op("Pad", x, pads.reshape(-1), self.number(fill, x))

    def weighted(
        self, x: ir.Value, axis: int, rank: int, indices: Array, weights: Array | None
    ) -> ir.Value:
        """Sums of elements of an axis.

        Args:
            x: The array.
            axis: The axis.
            rank: Number of axes of the array.
            indices: Elements to add, (terms, size).
            weights: Factors of them, of the same shape; None for 1.

        Returns:
            The array with ``size`` elements on that axis.
        """
        if len(indices) == 1 and (weights is None or (weights == 1).all()):
            return self.op("Gather", x, indices[0], axis=axis)
        terms = self.op("Gather", x, indices, axis=axis)
        if weights is not None:
            factors = weights.reshape([*weights.shape, *[1] * (rank - axis - 1)])
            terms = self.op("Mul", terms, factors.astype((dtype_of(x) or FLOAT).numpy()))
        return self.reduce("ReduceSum", terms, [axis])

    def keep_fp32(self, reason: str = "") -> None:
        """Let the nodes from now on stay in FP32; without a reason, in any type."""
        if reason:
            self.node.metadata_props[KEEP_FP32_KEY] = reason
        else:
            self.node.metadata_props.pop(KEEP_FP32_KEY, None)

    def wide(self, x: ir.Value | None) -> ir.Value:
        """Floating-point numbers in FP32."""
        return self.cast(x, FLOAT)

    def finish(self, *values: ir.Value | None) -> None:
        """Replace the node, each output in its type."""
        pairs = zip(self.node.outputs, values, strict=False)
        found = [
            None if value is None or not old.name else self.cast(value, old.dtype or value.dtype)
            for old, value in pairs
        ]
        self.replace(*found, *[None] * (len(self.node.outputs) - len(found)))


def terms_at(places: Array, size: int) -> Array:
    """Which elements are at each place, (most elements, size); where there is none, their number.

    Args:
        places: The place of each element; those from ``size`` on, or below 0, count nowhere.
        size: Number of places.
    """
    found = [np.flatnonzero(places == place) for place in range(size)]
    most = max((len(one) for one in found), default=0)
    table = np.full((max(most, 1), size), len(places))
    for place, one in enumerate(found):
        table[: len(one), place] = one
    return table


OperatorRule = Callable[[Site], "Callable[[ArrayBuilder], None] | None"]
"""Returns how to write a node; None where it cannot be written."""
