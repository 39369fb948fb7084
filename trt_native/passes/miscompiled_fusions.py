"""The fusions that TensorRT miscompiles, as the tensors at which to break them.

TensorRT-RTX 1.6 does so on the GPU alone: its parser and its network are right
(``scripts/probe_fusions.py`` maps some of them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

import onnx_ir as ir

from trt_native.graph.dims import fixed_dimensions
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import constant_of, input_of, op_set, opset_of
from trt_native.passes.fusion_search import (
    BREAK_KEY,
    CHANNEL_NORMS,
    ELEMENTWISE,
    FUSED,
    GLOBAL_POOLS,
    MOVING,
    POOLS,
    RECURRENT,
    REDUCE,
    REDUCTIONS,
    SOFTMAX,
    SPATIAL,
    SPREADING,
    TRAILING,
    Point,
    back,
    behind,
    has_one_operand,
    is_broken,
    made_in_turn,
    nodes_of,
    read_values,
)
from trt_native.passes.miscompiled_outputs import unwritten_outputs
from trt_native.passes.miscompiled_products import product_sums, sums_of_batches, wrong_products
from trt_native.shapes import Profile

__all__ = ["miscompiled"]

_AXES_OF_SOFTMAX = 13  # before this opset the softmax family flattens from its axis on
_SMALL = 15  # elements; wrong were 2 to 7, right from 8 on
_SCALED = SOFTMAX | op_set("LpNormalization")
"""What is wrong before a reduction of the same axes, too."""
_LOOPS = op_set("CumSum GRU GroupNormalization InstanceNormalization LSTM Loop RNN Scan")
"""TensorRT computes these by layers of their own, or by loops, rather than in a fusion."""
_NORMS = (
    SOFTMAX
    | TRAILING
    | op_set("LpNormalization MeanVarianceNormalization InstanceNormalization GroupNormalization")
)


def miscompiled(
    model: ir.Model, profiles: Sequence[Profile], *, lowered: bool, infer: bool
) -> list[Point]:
    """Return the fusions that TensorRT miscompiles, one for each tensor.

    Args:
        model: The model.
        profiles: The optimization profiles.
        lowered: Whether FP32 arithmetic is, or will be, reduced.
        infer: Whether to infer shapes that are lacking.
    """
    found: dict[tuple[ir.Value, bool], Point] = {}
    for point in _points(model, profiles, lowered=lowered, infer=infer):
        if is_broken(point.value):
            continue
        key = point.value, point.copied
        before = found.get(key, point)
        reads = dict.fromkeys((*before.reads, *point.reads))
        unbroken = tuple(read for read in reads if BREAK_KEY not in read[0].metadata_props)
        if unbroken:
            found[key] = replace(before, reads=unbroken)
    return list(found.values())


def _points(
    model: ir.Model, profiles: Sequence[Profile], *, lowered: bool, infer: bool
) -> Iterator[Point]:
    yield from unwritten_outputs(model)
    yield from wrong_products(model, lowered=lowered)
    yield from _shared_with_samplers(model)
    yield from _beside_resizes(model, CHANNEL_NORMS)
    yield from _shared_with_sums(model)
    yield from _states_of_loops(model)
    yield from _stepped_reductions(model)
    yield from _parts_of_reductions(model)
    pairs, spreads = list(_reduction_pairs(model)), list(_spread_norms(model))
    resizes = list(_beside_resizes(model, POOLS | {"Pad", "Slice"}))  # pools written out, too
    sums = product_sums(model)
    values = [v for _, node, _ in pairs for v in node.inputs[:1]]
    values += [v for node in sums for v in node.inputs]
    values += [v for node, _, _ in spreads for v in (*node.inputs, *node.outputs)]
    values += [point.value for point in resizes]
    if infer and any(v is not None and v.shape is None for v in values):
        infer_values(model)
    yield from (point for point in resizes if _takes_fewer(point.reads[0][0]))
    yield from sums_of_batches(sums)
    sizes = _Sizes(model, profiles)
    for first, second, moved in pairs:
        same = not moved and sizes.axes(first) == sizes.axes(second) is not None
        if (first.op_type in _SCALED or not same) and sizes.is_small(first):
            value = second.inputs[0]
            assert value is not None  # noqa: S101  # for the type checker
            axes = "" if same else " of other axes"
            reason = (
                f"{second.op_type} after {first.op_type} over a few elements{axes}, in one kernel"
            )
            yield Point(value, ((second, 0),), reason)
            written = first.outputs[0]
            if written.is_graph_output():  # then it may not be
                yield Point(written, tuple(written.uses()), reason)
    for reader, index, norms in spreads:
        value = reader.inputs[index]
        assert value is not None  # noqa: S101  # for the type checker
        others = [other for other in reader.inputs if other is not None and other is not value]
        spread = any(_is_spread(value, other) for other in others)
        spread = spread or (_is_sliced(norms) and any(_is_spread(one, value) for one in others))
        if spread and any(_is_norm(norm, value) for norm in norms):
            yield Point(
                value, ((reader, index),), f"{reader.op_type} that broadcasts a norm or softmax"
            )


def _beside_resizes(model: ir.Model, operators: frozenset[str]) -> Iterator[Point]:
    """Some operators take part in the loop of a Resize that reads the same value."""
    for resize in nodes_of(model, "Resize"):
        value = resize.inputs[0]
        between = (one for _, node, _ in behind([value]) for one in node.inputs)
        shared = [one for one in (value, *between) if one is not None and constant_of(one) is None]
        readers = {node.op_type for one in shared for node, _ in one.uses()}
        if value is not None and (found := sorted(readers & operators)):
            yield Point(value, ((resize, 0),), f"Resize and {found[0]} read it")


def _takes_fewer(resize: ir.Node) -> bool:
    """Whether a Resize has fewer elements than it reads along an axis, as far as that is known."""
    scales, sizes = (input_of(resize, index) for index in (2, 3))
    known = None if scales is None else constant_of(scales)
    if known is not None and known.size:
        return bool((known.numpy() < 1).any())
    known = None if sizes is None else constant_of(sizes)
    value = resize.inputs[0]
    if known is None or value is None or value.shape is None or resize.attributes.get("axes"):
        return True
    extents = zip(known.numpy(), value.shape, strict=False)
    return any(not isinstance(extent, int) or size < extent for size, extent in extents)


def _stepped_reductions(model: ir.Model) -> Iterator[Point]:
    """Behind a Slice with steps, or backwards, a reduction takes a part of its elements."""
    for reader in nodes_of(model, "Slice"):
        value, steps = reader.inputs[0], input_of(reader, 4)
        known = None if steps is None else constant_of(steps)
        stepped = steps is not None and (known is None or bool((known.numpy() != 1).any()))
        if value is not None and stepped:
            for node, _ in back([value], REDUCE | GLOBAL_POOLS):
                yield Point(value, ((reader, 0),), f"Slice with steps of {node.op_type}")


def _parts_of_reductions(model: ir.Model) -> Iterator[Point]:
    """A recurrent layer reads other elements than those of a part of a reduction."""
    for reader in nodes_of(model, *RECURRENT):
        for part, node, _ in behind(reader.inputs[:1]):
            if node.op_type in ("Slice", "Split"):
                for reduction, _ in back(node.inputs[:1], REDUCE | GLOBAL_POOLS):
                    reason = f"{reader.op_type} of a part of {reduction.op_type}"
                    yield Point(part, tuple(part.uses()), reason)


def _shared_with_samplers(model: ir.Model) -> Iterator[Point]:
    """What a GridSample reads is not there any more for some of the others that read it."""
    for sampler in (node for node in model.graph if node.op_type == "GridSample"):
        for index, value in enumerate(sampler.inputs):
            if value is None or constant_of(value) is not None:
                continue
            between = (node for _, node, _ in behind([value]) if node.op_type in FUSED)
            sources = dict.fromkeys(one for node in between for one in node.inputs)
            for one in (value, *sources):
                uses = () if one is None or constant_of(one) is not None else one.uses()
                loops = tuple((node, i) for node, i in uses if node.op_type in _LOOPS)
                if loops and one is not None:
                    yield Point(one, loops, f"{loops[0][0].op_type} and GridSample read it")
            if _comes_out(value):
                yield Point(value, ((sampler, index),), "an output, and GridSample reads it")


def _shared_with_sums(model: ir.Model) -> Iterator[Point]:
    """What a CumSum and elementwise nodes read is not there any more for the CumSum."""
    for total in nodes_of(model, "CumSum"):
        value = total.inputs[0]
        if value is None or constant_of(value) is not None:
            continue
        readers = (node for node, _ in value.uses() if BREAK_KEY not in node.metadata_props)
        others = [node.op_type for node in readers if node.op_type in ELEMENTWISE]
        if others:
            yield Point(value, ((total, 0),), f"CumSum and {others[0]} read it")


def _states_of_loops(model: ir.Model) -> Iterator[Point]:
    """A Loop with a dynamic shape that begins with an input of the model, moved at most."""
    for loop in (node for node in model.graph if node.op_type in ("Loop", "Scan")):
        for index, value in enumerate(loop.inputs):
            source = value
            for source, node in made_in_turn(value):
                if node.op_type not in MOVING | {"Gather"}:
                    break
                source = node.inputs[0]
            if value is None or source is None or not source.is_graph_input():
                continue
            if constant_of(source) is None:
                reason = f"{loop.op_type} that begins with an input"
                yield Point(value, ((loop, index),), reason, copied=source is not value)


def _comes_out(value: ir.Value) -> bool:
    """Whether a value is fused with an output behind it, or with another node equal to its own."""
    return any(one.is_graph_output() for one, _, _ in behind([value])) or _has_twin(value)


def _has_twin(value: ir.Value) -> bool:
    """Whether another node of the same operator reads what an elementwise one reads."""
    node = value.producer()
    if node is None or node.op_type not in ELEMENTWISE:
        return False
    return any(
        reader is not node and reader.op_type == node.op_type
        for source in node.inputs
        if source is not None
        for reader, _ in source.uses()
    )


def _reduction_pairs(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Node, bool]]:
    """Reductions with elementwise and moving nodes at most between them, and whether axes move."""
    for second in model.graph:
        if has_one_operand(second) or (second.op_type in REDUCTIONS and not second.domain):
            for first, moved in back(second.inputs[:1], REDUCTIONS, MOVING | SPREADING):
                yield first, second, moved


def _spread_norms(model: ir.Model) -> Iterator[tuple[ir.Node, int, list[ir.Node]]]:
    """Elementwise nodes, an input that may be broadcast, and the reductions before that."""
    for node in model.graph:
        if node.op_type not in ELEMENTWISE or node.domain or len(read_values(node)) < 2:
            continue
        for index, value in enumerate(node.inputs):
            norms = [norm for norm, _ in back([value], _NORMS | REDUCE)]
            if norms:
                yield node, index, norms


def _is_sliced(norms: Sequence[ir.Node]) -> bool:
    """Whether one of some nodes is a norm of a part of a value."""
    read = [norm.inputs[0] for norm in norms if norm.op_type in _NORMS]
    return any(node.op_type == "Slice" for _, node, _ in behind(read))


def _is_norm(node: ir.Node, value: ir.Value) -> bool:
    """Whether a norm or softmax, or what a reduction was expanded to again, makes a value."""
    if node.op_type in _NORMS:
        return True
    read, reduced = node.inputs[0], node.outputs[0].shape
    if reduced is None or value.shape is None or _is_spread(node.outputs[0], value):
        return True
    return read is not None and read.shape == reduced  # of axes of one element


def _is_spread(value: ir.Value, other: ir.Value) -> bool:
    """Whether a value is broadcast along an axis of another, as far as shapes are known."""
    if value.shape is None or other.shape is None:
        return False
    one, two = [*value.shape], [*other.shape]
    one, two = [1] * (len(two) - len(one)) + one, [1] * (len(one) - len(two)) + two
    return any(a == 1 and b != 1 for a, b in zip(one, two, strict=True))


class _Sizes:
    """Extents of values, as far as they are known when TensorRT builds."""

    def __init__(self, model: ir.Model, profiles: Sequence[Profile]) -> None:
        self._opset = opset_of(model)
        self._dims, self._static = fixed_dimensions(model.graph.inputs, profiles)
        shapes = [value.shape or () for value in model.graph.inputs]
        self._dynamic = {dim for shape in shapes for dim in shape if self._extent(dim) is None}

    def axes(self, node: ir.Node) -> tuple[int, ...] | None:
        """The axes that a node reduces, counted from the last, which is -1; None if unknown."""
        value = node.inputs[0]
        if value is None or value.shape is None:
            return None
        rank = len(value.shape)
        found = self._given_axes(node, rank)
        return None if found is None else tuple(sorted({axis % rank - rank for axis in found}))

    def _given_axes(self, node: ir.Node, rank: int) -> Sequence[int] | None:
        attributes, operator = node.attributes, node.op_type
        if operator in SOFTMAX and self._opset < _AXES_OF_SOFTMAX:
            return range(attributes.get_int("axis", 1) % rank, rank)
        if operator == "Einsum":
            return None
        if operator in _SCALED:
            return [attributes.get_int("axis", -1)]
        if operator in TRAILING:
            return range(attributes.get_int("axis", -1) % rank, rank)
        if operator in SPATIAL:
            return range(2, rank)
        if operator == "MeanVarianceNormalization":
            return attributes.get_ints("axes", [0, 2, 3])
        given = input_of(node, 1)
        if given is None:
            return attributes.get_ints("axes", range(rank))
        constant = constant_of(given)
        return None if constant is None else [int(axis) for axis in constant.numpy().flat]

    def is_small(self, node: ir.Node) -> bool:
        """Whether a node may reduce a few elements to one, of a value of static shape."""
        value, axes = node.inputs[0], self.axes(node)
        if value is None or value.shape is None or axes is None:
            return self._static
        if any(dim in self._dynamic for dim in value.shape):
            return False
        extents = [self._extent(dim) for dim in value.shape]
        reduced = [extents[axis] for axis in axes]
        known = prod(extent for extent in reduced if extent is not None)
        return known <= _SMALL and (None in reduced or known > 1)

    def _extent(self, dim: int | ir.SymbolicDim) -> int | None:
        return dim if isinstance(dim, int) else self._dims.get(dim.value or "")
