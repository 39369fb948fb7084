"""Nodes and values that the plain forms of fused operators have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from trt_native.errors import UnsupportedError
from trt_native.graph.inference import known_type
from trt_native.graph.nodes import FLOAT, input_of
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder

__all__ = ["BOOL", "INT64", "Extent", "FusedBuilder", "identity", "is_read", "known_extent"]

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64
_AXES_AS_INPUT = 13  # since this opset Unsqueeze and ReduceSum take them so
_MEAN_AXES_AS_INPUT = 18
_END = np.iinfo(np.int64).max

_T = TypeVar("_T")

Extent = int | ir.Value
"""An extent of an axis: a number, or a scalar INT64 value where it is not fixed."""


def identity(*extents: int | str | None) -> tuple[Hashable, ...]:
    """Equal to another of known extents that are the same."""
    return tuple(object() if extent is None else extent for extent in extents)


def known_extent(value: ir.Value, axis: int) -> int | str | None:
    """The extent of an axis, or its name; None where neither is known."""
    extent = None if value.shape is None else value.shape[axis]
    return extent.value if isinstance(extent, ir.SymbolicDim) else extent


def is_read(value: ir.Value | None) -> bool:
    """Whether anything reads a value, or the graph returns it."""
    return value is not None and (bool(value.uses()) or value.is_graph_output())


class FusedBuilder(ReplacementBuilder):
    """Plain nodes in the place of a fused one; values are of its floating-point type by default.

    Attributes:
        shared: Values that nodes behind may read, too, by what they are.
        keeps_blocks: Whether weights may stay quantized in blocks.
    """

    def __init__(
        self,
        node: ir.Node,
        names: NameAuthority,
        opset: int,
        shared: MutableMapping[Hashable, Any],
        *,
        keeps_blocks: bool = False,
    ) -> None:
        super().__init__(node, names, opset)
        self.shared = shared
        self.keeps_blocks = keeps_blocks

    @property
    def kind(self) -> ir.DataType:
        """The floating-point type of the outputs and inputs."""
        given = [v for v in (*self.node.outputs, *self.node.inputs) if v is not None]
        kinds = (v.dtype for v in given if v.dtype is not None and v.dtype.is_floating_point())
        return next(kinds, None) or known_type(given[-1])

    def once(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Values of the node's graph and type, made once for all nodes with the same key."""
        same = (self.node.graph, self.kind, key)
        if same not in self.shared:
            self.shared[same] = make()
        found: _T = self.shared[same]
        return found

    def operand(self, index: int) -> ir.Value:
        """An input that the operator requires.

        Raises:
            UnsupportedError: it is left out.
        """
        value = input_of(self.node, index)
        if value is None:
            raise self.unsupported(f"lacks its input {index}")
        return value

    def unsupported(self, reason: str) -> UnsupportedError:
        """An error that names the node."""
        named = self.node.name or next((v.name for v in self.node.outputs if v.name), "")
        return UnsupportedError(f"{self.node.op_type} {named!r} {reason}")

    def finish(self, *outputs: ir.Value) -> None:
        """Let values take the place of the first outputs, as far as the node has them."""
        made = {value for node in self.nodes for value in node.outputs}
        found: list[ir.Value | None] = [None] * len(self.node.outputs)
        for index, (old, value) in enumerate(zip(self.node.outputs, outputs, strict=False)):
            if old.name:
                copies = value not in made or value in found
                found[index] = self.add("Identity", [value], value.dtype) if copies else value
        self.replace(*found)

    def scalar(self, number: float) -> ir.Value:
        """A constant of the node's type, within its range."""
        limit = self.largest
        return self.constant(np.array(np.clip(number, -limit, limit), self.kind.numpy()))

    @property
    def largest(self) -> float:
        """The largest number of the node's type."""
        return float(ml_dtypes.finfo(self.kind.numpy()).max)  # type: ignore[no-untyped-call]

    def weights(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Add an initializer, which may be computed when the model is written."""
        return self._names.initializer(self._named("weights"), tensor)

    def integers(self, *numbers: int) -> ir.Value:
        """An INT64 vector."""
        return self.constant(np.array(numbers, np.int64))

    def rank(self, value: ir.Value) -> int:
        """The rank of an input.

        Raises:
            UnsupportedError: it is not known.
        """
        if value.shape is None:
            raise self.unsupported(
                f"reads {value.name!r}, whose rank is neither given nor inferred; add a value_info"
                " with its shape to the model"
            )
        return len(value.shape)

    def fixed(self, value: ir.Value, axis: int) -> int:
        """The extent of an input's axis.

        Raises:
            UnsupportedError: it is not fixed.
        """
        extent = value.shape[axis] if -self.rank(value) <= axis < self.rank(value) else None  # type: ignore[index]
        if not isinstance(extent, int):
            raise self.unsupported(
                f"reads {value.name!r}, whose axis {axis} has no fixed extent; add a value_info"
                " with its shape to the model"
            )
        return extent

    def extent(self, value: ir.Value, axis: int) -> Extent:
        """The extent of an axis."""
        known = None if value.shape is None else value.shape[axis]
        if isinstance(known, int):
            return known
        shape = self.add("Shape", [value], INT64)
        return self.add("Gather", [shape, self.constant(np.array(axis))], INT64)

    def sum_of(self, one: Extent, other: Extent) -> Extent:
        """The sum of two extents."""
        if isinstance(one, int) and isinstance(other, int):
            return one + other
        return self.add("Add", [self.number(one), self.number(other)], INT64)

    def number(self, extent: Extent) -> ir.Value:
        """An extent as a scalar."""
        return self.constant(np.array(extent)) if isinstance(extent, int) else extent

    def positions(self, count: Extent, first: Extent = 0) -> ir.Value:
        """INT64[count]: numbers from ``first`` on."""
        if isinstance(count, int) and isinstance(first, int):
            return self.constant(np.arange(first, first + count))
        limits = (self.number(first), self.number(self.sum_of(first, count)))
        return self.add("Range", [*limits, self.constant(np.array(1))], INT64)

    def cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """A value in another type."""
        return value if value.dtype is kind else self.add("Cast", [value], kind, to=int(kind))

    def shaped(self, value: ir.Value, *shape: int) -> ir.Value:
        """A value in another shape; 0 keeps an extent."""
        return self.reshaped(value, list(shape))

    def transposed(self, value: ir.Value, *order: int) -> ir.Value:
        """A value with its axes in another order."""
        return self.add("Transpose", [value], value.dtype, perm=list(order))

    def unsqueezed(self, value: ir.Value, *axes: int) -> ir.Value:
        """A value with further axes of extent 1."""
        if self.opset >= _AXES_AS_INPUT:
            return self.add("Unsqueeze", [value, self.integers(*axes)], value.dtype)
        return self.add("Unsqueeze", [value], value.dtype, axes=list(axes))

    def sliced(
        self, value: ir.Value, axis: int, start: int, end: Extent = _END, step: int = 1
    ) -> ir.Value:
        """A part of an axis."""
        last = self.integers(end) if isinstance(end, int) else self.shaped(end, 1)
        limits = [self.integers(start), last, self.integers(axis), self.integers(step)]
        return self.add("Slice", [value, *limits], value.dtype)

    def taken(self, value: ir.Value, axis: int, *indices: int) -> ir.Value:
        """Elements of an axis; a single one without the axis."""
        index = np.array(indices if len(indices) > 1 else indices[0])
        return self.add("Gather", [value, self.constant(index)], value.dtype, axis=axis)

    def joined(self, axis: int, *values: ir.Value) -> ir.Value:
        """Values behind one another."""
        return self.add("Concat", list(values), values[0].dtype, axis=axis)

    def sum_along(self, value: ir.Value, axis: int) -> ir.Value:
        """The sum along an axis, which goes."""
        if self.opset >= _AXES_AS_INPUT:
            return self.add("ReduceSum", [value, self.integers(axis)], value.dtype, keepdims=0)
        return self.add("ReduceSum", [value], value.dtype, axes=[axis], keepdims=0)

    def mean(self, value: ir.Value) -> ir.Value:
        """The FP32 mean along the last axis, which stays."""
        if self.opset >= _MEAN_AXES_AS_INPUT:
            return self.add("ReduceMean", [value, self.integers(-1)], FLOAT)
        return self.add("ReduceMean", [value], FLOAT, axes=[-1])
