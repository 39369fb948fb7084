"""Write an Einsum of several operands as matrix products, which keep out of TF32.

Where TensorRT takes TF32 regardless of its flag, it does so in an Einsum. Its products become nodes
that :mod:`~trt_native.passes.split_fp32_products` splits; one that sums over nothing becomes a
``Mul``, which has all digits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import onnx_ir as ir

from trt_native.graph.inference import infer_around
from trt_native.graph.nodes import all_nodes, is_fp32, opset_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.array_builder import ArrayBuilder
from trt_native.passes.base import GraphPass
from trt_native.passes.raise_opset import opset_problems, require_opset
from trt_native.passes.replacement import NameAuthority
from trt_native.passes.rules_arithmetic import spelled_out
from trt_native.passes.split_fp32_products import hides_products

__all__ = ["LowerEinsum"]

_OPSET = 13  # that of split products


class LowerEinsum(GraphPass):
    """Matrix products for each Einsum in FP32, where TensorRT would take TF32."""

    name = "lower_einsum"
    title = "Writing Einsum as FP32 products"
    early = True  # its products are split later
    typed = True

    def needed(self, model: ir.Model) -> bool:
        """Whether TF32 is off, the backend uses it all the same, and the model has such nodes."""
        if not hides_products(self.context):
            return False
        infer_around(model, (node for node in all_nodes(model.graph) if _is_einsum(node)))
        return bool(_found(model)) and not opset_problems(model, _OPSET)

    @wraps_graph_errors
    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Write the nodes as products."""
        require_opset(model, _OPSET, "products in FP32")
        names, opset = NameAuthority(model), opset_of(model)
        found = _found(model)
        for node, equation in found.items():
            _write(ArrayBuilder(node, names, opset), equation)
        return {"nodes": dict(Counter(node.op_type for node in found))}

    def preview(self, model: ir.Model) -> Mapping[str, Any]:
        """Counts of the nodes."""
        return {"nodes": dict(Counter(node.op_type for node in _found(model)))}


class _Equation(NamedTuple):
    """The letters of the axes of each operand, and of the result."""

    operands: list[str]
    result: str


class _Operand(NamedTuple):
    """A value, and the letters of its axes."""

    value: ir.Value
    letters: str


def _is_einsum(node: ir.Node) -> bool:
    return node.op_type == "Einsum" and not node.domain and len(node.inputs) > 1


def _found(model: ir.Model) -> dict[ir.Node, _Equation]:
    nodes = [node for node in all_nodes(model.graph) if _is_einsum(node)]
    equations = {node: _equation(node) for node in nodes if all(map(is_fp32, node.inputs))}
    return {node: one for node, one in equations.items() if one is not None}


def _equation(node: ir.Node) -> _Equation | None:
    """The letters; None for a diagonal, and where ranks are unknown or extents repeated."""
    left, arrow, right = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    shapes = [None if v is None or v.shape is None else [*v.shape] for v in node.inputs]
    spelled = spelled_out(left.split(","), shapes)
    if spelled is None or ("." in left and not arrow):
        return None
    operands, around = spelled
    counts = Counter("".join(operands))
    once = "".join(sorted(letter for letter, count in counts.items() if count == 1))
    result = right.replace("...", around) if arrow else once
    fits = all(len(o) == len(shape or ()) for o, shape in zip(operands, shapes, strict=True))
    extents: dict[str, set[int]] = defaultdict(set)
    for letters, shape in zip(operands, shapes, strict=True):
        for letter, extent in zip(letters, shape or (), strict=False):
            extents[letter] |= {extent} if isinstance(extent, int) else set()
    is_plain = all(len(set(letters)) == len(letters) for letters in (*operands, result))
    is_plain = is_plain and all(len(found) < 2 for found in extents.values())
    return _Equation(operands, result) if fits and is_plain else None


def _write(new: ArrayBuilder, equation: _Equation) -> None:
    values = [value for value in new.node.inputs if value is not None]
    extents = _extents(new, values, equation.operands)
    first, *others = map(_Operand, values, equation.operands)
    for index, other in enumerate(others):
        later = chain(equation.result, *(one.letters for one in others[index + 1 :]))
        first = _contracted(new, first, other, frozenset(later), extents)
    new.finish(_ordered(new, first, equation.result))


def _extents(
    new: ArrayBuilder, values: Sequence[ir.Value], operands: Sequence[str]
) -> dict[str, int | ir.Value]:
    """The extent of each letter, as a number or as a vector of one element."""
    axes = [
        (letter, axis, value)
        for value, letters in zip(values, operands, strict=True)
        for axis, letter in enumerate(letters)
    ]
    known: dict[str, int | ir.Value] = {}
    for letter, axis, value in axes:
        extent = value.shape[axis] if value.shape is not None else None
        if isinstance(extent, int):
            known[letter] = extent
    for letter, axis, value in axes:
        if letter not in known:
            known[letter] = new.extent(value, axis)
    return known


def _contracted(
    new: ArrayBuilder,
    one: _Operand,
    two: _Operand,
    kept: frozenset[str],
    extents: Mapping[str, int | ir.Value],
) -> _Operand:
    """The product of two operands, summed over what is read no more."""
    one, two = _summed(new, one, two, kept), _summed(new, two, one, kept)
    shared = [letter for letter in one.letters if letter in two.letters]
    batch = "".join(letter for letter in shared if letter in kept)
    inner = "".join(letter for letter in shared if letter not in kept)
    rows = "".join(letter for letter in one.letters if letter not in shared)
    columns = "".join(letter for letter in two.letters if letter not in shared)
    letters = batch + rows + columns
    if not inner or all(extents[letter] == 1 for letter in rows + columns):
        return _multiplied(new, one, two, (batch, rows, columns, inner))
    left = _grouped(new, one, batch, (rows, inner), extents)
    right = _grouped(new, two, batch, (inner, columns), extents)
    made = new.op("MatMul", left, right)
    if len(rows) != 1 or len(columns) != 1:
        made = new.reshape(made, [extents[letter] for letter in letters])
    return _Operand(made, letters)


def _multiplied(
    new: ArrayBuilder, one: _Operand, two: _Operand, groups: tuple[str, str, str, str]
) -> _Operand:
    """The product without a matrix product: numbers of FP32 times others, and their sums."""
    batch, rows, columns, inner = groups
    every = batch + rows + columns + inner
    left = _spread(new, _ordered(new, one, batch + rows + inner), batch + rows + inner, every)
    right = _spread(
        new, _ordered(new, two, batch + columns + inner), batch + columns + inner, every
    )
    made = _Operand(new.op("Mul", left, right), every)
    return _summed(new, made, _Operand(made.value, ""), frozenset(batch + rows + columns))


def _summed(new: ArrayBuilder, one: _Operand, other: _Operand, kept: frozenset[str]) -> _Operand:
    """An operand without the axes that it alone has, and that are read no more."""
    left_out = [x for x in one.letters if x not in other.letters and x not in kept]
    if not left_out:
        return one
    axes = [one.letters.index(letter) for letter in left_out]
    rest = "".join(letter for letter in one.letters if letter not in left_out)
    return _Operand(new.reduce("ReduceSum", one.value, axes), rest)


def _ordered(new: ArrayBuilder, one: _Operand, letters: str) -> ir.Value:
    if one.letters == letters:
        return one.value
    return new.op("Transpose", one.value, perm=[one.letters.index(letter) for letter in letters])


def _spread(new: ArrayBuilder, value: ir.Value, letters: str, all_letters: str) -> ir.Value:
    """A value with axes of one element for the letters that it lacks."""
    axes = [axis for axis, letter in enumerate(all_letters) if letter not in letters]
    return new.unsqueeze(value, axes) if axes else value


def _grouped(
    new: ArrayBuilder,
    one: _Operand,
    batch: str,
    groups: tuple[str, str],
    extents: Mapping[str, int | ir.Value],
) -> ir.Value:
    """A batch of matrices whose two axes are groups of axes each."""
    value = _ordered(new, one, batch + "".join(groups))
    if all(len(group) == 1 for group in groups):
        return value
    sizes = [_size(new, [extents[letter] for letter in group]) for group in groups]
    return new.reshape(value, [*(extents[letter] for letter in batch), *sizes])


def _size(new: ArrayBuilder, extents: Sequence[int | ir.Value]) -> int | ir.Value:
    numbers = [one for one in extents if isinstance(one, int)]
    values = [one for one in extents if not isinstance(one, int)]
    size: int | ir.Value = prod(numbers)
    for value in values:
        size = value if size == 1 else new.op("Mul", value, new.joined([size]), kind=value.dtype)
    return size
