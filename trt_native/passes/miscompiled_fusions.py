"""The fusions that TensorRT miscompiles, as the tensors at which to break them.

TensorRT-RTX 1.6 does so on the GPU alone: its parser and its network are right
(``scripts/probe_fusions.py`` maps some of them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import onnx_ir as ir

from trt_native.graph.dims import fixed_dimensions
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import (
    FLOAT,
    PRODUCTS,
    constant_of,
    dtype_of,
    input_of,
    ints_of,
    op_set,
    opset_of,
)
from trt_native.shapes import Profile

__all__ = ["BREAK_KEY", "Point", "is_broken", "miscompiled"]

BREAK_KEY = "trt_native.break_fusion"
"""In the metadata of the nodes that break one."""

_AXES_OF_SOFTMAX = 13  # before this opset the softmax family flattens from its axis on
_INFINITE_AT_0 = op_set("Log Reciprocal ReduceLogSum")
_SMALL = 15  # elements; wrong were 2 to 7, right from 8 on

_SOFTMAX = op_set("Softmax LogSoftmax Hardmax")
_REDUCE = op_set(
    "ReduceMax ReduceMin ReduceMean ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceLogSum"
    " ReduceLogSumExp ReduceSumSquare"
)
_TRAILING = op_set("LayerNormalization RMSNormalization")
_GLOBAL_POOLS = op_set("GlobalAveragePool GlobalMaxPool GlobalLpPool")
_SPATIAL = _GLOBAL_POOLS | op_set("InstanceNormalization GroupNormalization")
_REDUCTIONS = (
    _SOFTMAX | _REDUCE | _TRAILING | _SPATIAL | op_set("LpNormalization MeanVarianceNormalization")
)
_SCALED = _SOFTMAX | op_set("LpNormalization")
"""What is wrong before a reduction of the same axes, too."""
_ELEMENTWISE = op_set(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Cos Cosh Div Dropout"
    " Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity LeakyRelu"
    " Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round"
    " Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh"
    " ThresholdedRelu Where Xor"
)
_POINTWISE = _ELEMENTWISE | {"BatchNormalization"}
_MOST_AROUND = 256  # values
_MOVING = op_set("Expand Flatten Reshape Squeeze Transpose Unsqueeze")
_FUSED = _ELEMENTWISE | _MOVING
_SPREADING = op_set("Concat Pad Slice Tile")
_RESHAPING = op_set("Flatten Reshape Squeeze Unsqueeze")
_POOLS = op_set("AveragePool MaxPool")
_SUMS = op_set("Add Mean Sub Sum")
_RECURRENT = op_set("GRU LSTM RNN")
_COMPARISONS = op_set("Equal Greater GreaterOrEqual Less LessOrEqual")
_ABSORBING = {"And": False, "Or": True}
_LOOPS = op_set("CumSum GRU GroupNormalization InstanceNormalization LSTM Loop RNN Scan")
"""TensorRT computes these by layers of their own, or by loops, rather than in a fusion."""
_NORMS = (
    _SOFTMAX
    | _TRAILING
    | op_set("LpNormalization MeanVarianceNormalization InstanceNormalization GroupNormalization")
)


@dataclass(frozen=True, slots=True)
class Point:
    """A fusion to break.

    Attributes:
        value: The tensor.
        reads: Nodes that are to read another one, and which of their inputs it is.
        reason: The reason.
        copied: Whether the other one is a copy that TensorRT cannot remove, or an ``Identity``.
    """

    value: ir.Value
    reads: tuple[tuple[ir.Node, int], ...]
    reason: str
    copied: bool = True


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
        reads = tuple(dict.fromkeys((*before.reads, *point.reads)))
        found[key] = replace(before, reads=reads)
    return list(found.values())


def is_broken(value: ir.Value) -> bool:
    """Whether the last of the nodes that break a fusion makes a value."""
    node = value.producer()
    return node is not None and BREAK_KEY in node.metadata_props


def _points(
    model: ir.Model, profiles: Sequence[Profile], *, lowered: bool, infer: bool
) -> Iterator[Point]:
    yield from _equal_outputs(model)
    yield from _copied_outputs(model)
    yield from _shared_with_samplers(model)
    yield from _shared_with_resizes(model)
    yield from _shared_with_sums(model)
    yield from _states_of_loops(model)
    yield from _loops_behind_outputs(model)
    yield from _equal_operands(model)
    yield from _casts_of_products(model)
    yield from _stepped_reductions(model)
    yield from _parts_of_reductions(model)
    yield from _shared_parts(model)
    yield from _constant_conditions(model)
    yield from _logarithms_in_products(model)
    yield from _transposed_reductions(model)
    yield from _columns_of_products(model, lowered)
    pairs, spreads = list(_reduction_pairs(model)), list(_spread_norms(model))
    sums = [node for node in _nodes(model, *_SUMS) if _is_product_sum(node)]
    values = [v for _, node, _ in pairs for v in node.inputs[:1]]
    values += [v for node in sums for v in node.inputs]
    values += [v for node, _, _ in spreads for v in (*node.inputs, *node.outputs)]
    if infer and any(v is not None and v.shape is None for v in values):
        infer_values(model)
    yield from _sums_of_batches(sums)
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


def _equal_outputs(model: ir.Model) -> Iterator[Point]:
    """An output that is another one, reshaped to the same shape: that other one is not written."""
    for output in model.graph.outputs:
        for _, node in _made_in_turn(output):
            if not _may_keep_shape(node):
                break
            source = node.inputs[0]
            assert source is not None  # noqa: S101  # for the type checker
            if source.is_graph_output() and _may_be_as_large(source, output):
                reason = f"{output.name!r} has its elements, and both are outputs"
                yield Point(source, ((node, 0),), reason)
                break


def _made_in_turn(value: ir.Value | None) -> Iterator[tuple[ir.Value, ir.Node]]:
    """What makes a value, and the first input of that, and so on; a bad graph may be a circle."""
    seen: set[ir.Value] = set()
    while value is not None and value not in seen and (node := value.producer()) is not None:
        seen.add(value)
        yield value, node
        value = node.inputs[0] if node.inputs else None


def _may_keep_shape(node: ir.Node) -> bool:
    """Whether a node may pass on what it reads: a reshape, a Resize, a pool of one element."""
    if node.domain or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type in _POOLS:
        return set(node.attributes.get_ints("kernel_shape", [0])) == {1}
    if node.op_type == "Transpose":
        return _keeps_order(node)
    return node.op_type in _RESHAPING | {"Resize"} or _has_one_operand(node)


def _keeps_order(node: ir.Node) -> bool:
    """Whether a Transpose moves axes of one element alone, as far as the shape is known."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return True
    axes = range(len(value.shape))
    perm = ints_of(node, "perm") or reversed(axes)
    long = [axis for axis in perm if axis in axes and value.shape[axis] != 1]
    return long == sorted(long)


def _has_one_operand(node: ir.Node) -> bool:
    """Whether a node is an Einsum of one operand: a reduction, a permutation, or nothing at all."""
    return node.op_type == "Einsum" and len(node.inputs) == 1 and not node.domain


def _may_be_as_large(one: ir.Value, other: ir.Value) -> bool:
    """Whether two values may have one shape but for axes of 1, as far as shapes are known."""
    if one.shape is None or other.shape is None:
        return True
    extents, others = ([dim for dim in shape if dim != 1] for shape in (one.shape, other.shape))
    unlike = (
        isinstance(a, int) and isinstance(b, int) and a != b
        for a, b in zip(extents, others, strict=False)
    )
    return len(extents) == len(others) and not any(unlike)


def _copied_outputs(model: ir.Model) -> Iterator[Point]:
    """A copy beside outputs that are joined, padded or sliced: one of them is not written."""
    for output in model.graph.outputs:
        node = output.producer()
        source = None if node is None or node.domain or not node.inputs else node.inputs[0]
        if node is None or source is None or source.is_graph_output():
            continue
        if node.op_type not in _MOVING | {"Tile"} or not _may_be_as_large(source, output):
            continue
        near = list(_around(source))
        joined = any(
            {reader.op_type for reader, _ in one.uses()} & _SPREADING or _makes(one) in _SPREADING
            for one in near
        )
        if joined and any(one.is_graph_output() for one in near):  # the source is none
            reason = f"{output.name!r} is a copy of it, beside other outputs of one kernel"
            yield Point(source, ((node, 0),), reason)


def _around(source: ir.Value) -> Iterator[ir.Value]:
    """The values that elementwise nodes connect with one, which one kernel may compute."""
    pending, seen = [source], {source}
    while pending and len(seen) < _MOST_AROUND:
        value = pending.pop()
        yield value
        made = value.producer()
        for node in [reader for reader, _ in value.uses()] + ([] if made is None else [made]):
            if node.op_type in _POINTWISE and not node.domain:
                values = [*(one for one in node.inputs if one is not None), *node.outputs]
                new = [one for one in values if one not in seen and constant_of(one) is None]
                seen.update(new)
                pending += new


def _makes(value: ir.Value) -> str:
    """The operator that makes a value; empty for an input."""
    node = value.producer()
    return "" if node is None else node.op_type


def _nodes(model: ir.Model, *operators: str) -> Iterator[ir.Node]:
    """Nodes of some of ONNX's own operators."""
    return (node for node in model.graph if node.op_type in operators and not node.domain)


def _shared_with_resizes(model: ir.Model) -> Iterator[Point]:
    """Of an output that a Resize reads only what it takes may be written, or nothing."""
    for resize in _nodes(model, "Resize"):
        value = resize.inputs[0]
        if any(one.is_graph_output() for one, _, _ in _behind([value])):
            assert value is not None  # noqa: S101  # for the type checker
            yield Point(value, ((resize, 0),), "an output, and Resize reads it")


def _stepped_reductions(model: ir.Model) -> Iterator[Point]:
    """Behind a Slice with steps, or backwards, a reduction takes a part of its elements."""
    for reader in _nodes(model, "Slice"):
        value, steps = reader.inputs[0], input_of(reader, 4)
        known = None if steps is None else constant_of(steps)
        stepped = steps is not None and (known is None or bool((known.numpy() != 1).any()))
        if value is not None and stepped:
            for node, _ in _back([value], _REDUCE | _GLOBAL_POOLS):
                yield Point(value, ((reader, 0),), f"Slice with steps of {node.op_type}")


def _parts_of_reductions(model: ir.Model) -> Iterator[Point]:
    """A recurrent layer reads other elements than those of a part of a reduction."""
    for reader in _nodes(model, *_RECURRENT):
        for part, node, _ in _behind(reader.inputs[:1]):
            if node.op_type in ("Slice", "Split"):
                for reduction, _ in _back(node.inputs[:1], _REDUCE | _GLOBAL_POOLS):
                    reason = f"{reader.op_type} of a part of {reduction.op_type}"
                    yield Point(part, tuple(part.uses()), reason)


def _shared_parts(model: ir.Model) -> Iterator[Point]:
    """Where a reduction reads a part that is an output, other parts are not written."""
    for reader in model.graph:
        if reader.op_type not in _REDUCTIONS or reader.domain:
            continue
        for part, node, _ in _behind(reader.inputs[:1]):
            outputs = [one for one in node.outputs if one.is_graph_output()]
            if node.op_type == "Split" and part in outputs and len(outputs) > 1:
                reason = f"an output, as other parts, and {reader.op_type} reads it"
                yield Point(part, tuple(part.uses()), reason)


def _constant_conditions(model: ir.Model) -> Iterator[Point]:
    """An output of booleans that TensorRT computes when it builds is written in part."""
    for output in model.graph.outputs:
        made = _made_in_turn(output)
        value, node = next((pair for pair in made if pair[1].op_type not in _MOVING), (None, None))
        if value is None or node is None or len(node.inputs) != 2:
            continue
        known = [None if one is None else constant_of(one) for one in node.inputs]
        reason = f"{node.op_type} of a constant makes an output"
        if node.op_type in _COMPARISONS and None not in known:
            yield Point(value, tuple(value.uses()), reason)
        for index, other in enumerate(reversed(known)):
            operand = node.inputs[index]
            if operand is not None and known[index] is None and _absorbs(node, other):
                yield Point(operand, ((node, index),), reason)


def _absorbs(node: ir.Node, other: ir.TensorProtocol | None) -> bool:
    """Whether one operand, where it is known, says what a node makes of any other."""
    if other is None or node.op_type not in _ABSORBING:
        return False
    return bool((other.numpy() == _ABSORBING[node.op_type]).any())


def _sums_of_batches(sums: Sequence[ir.Node]) -> Iterator[Point]:
    """A number for each image is added to the output of a convolution at the wrong places."""
    for node in sums:
        for index, value in enumerate(node.inputs):
            others = [one for one in node.inputs if one is not value]
            if (
                value is not None
                and _is_product(value)
                and any(_is_batch(o, value) for o in others)
            ):
                reason = f"{node.op_type} of Conv and of a number for each image"
                yield Point(value, ((node, index),), reason)


def _is_product_sum(node: ir.Node) -> bool:
    return any(value is not None and _is_product(value) for value in node.inputs)


def _is_product(value: ir.Value) -> bool:
    """Whether a convolution makes a value."""
    node = value.producer()
    return node is not None and node.op_type == "Conv"


def _is_batch(value: ir.Value | None, images: ir.Value) -> bool:
    """Whether a value has one element for each of some images, as far as shapes are known."""
    if value is None or value.shape is None or images.shape is None:
        return False
    batch, *others = [*value.shape] or [1]
    return len(others) + 1 == len(images.shape) and batch != 1 and set(others) == {1}


def _logarithms_in_products(model: ir.Model) -> Iterator[Point]:
    """Where a product pads what it reads, the logarithm or reciprocal of that is infinite."""
    for product in _nodes(model, "MatMul", "Gemm"):
        for node, _ in _back(product.inputs, _INFINITE_AT_0):
            if node.op_type in _REDUCE or any(_back(node.inputs, _REDUCE)):
                value = node.outputs[0]
                reason = f"{product.op_type} of {node.op_type} of a reduction"
                yield Point(value, tuple(value.uses()), reason)


def _transposed_reductions(model: ir.Model) -> Iterator[Point]:
    """A product of a reduction, transposed, reads other elements."""
    for product in _nodes(model, "MatMul", "Gemm"):
        for index, value in enumerate(product.inputs[:2]):
            turned = bool(product.attributes.get_int(("transA", "transB")[index], 0))
            between = list(_behind([value], _REDUCE))
            turned = turned or any(node.op_type == "Transpose" for _, node, _ in between)
            for one, node, _ in between:
                if turned and (node.op_type in _REDUCE or _has_one_operand(node)):
                    reason = f"{product.op_type} of {node.op_type}, transposed"
                    yield Point(one, tuple(one.uses()), reason)


def _columns_of_products(model: ir.Model, lowered: bool) -> Iterator[Point]:
    """A pointwise convolution below FP32, and an operand that is one row or one column."""
    for node in model.graph:
        if node.domain or node.op_type not in _ELEMENTWISE or len(node.inputs) != 2:
            continue
        for index, value in enumerate(node.inputs):
            product = None if value is None else value.producer()
            other = node.inputs[1 - index]
            if value is None or product is None or other is None or product.op_type != "Conv":
                continue
            weight = input_of(product, 1)
            reduced = weight is not None and (lowered or dtype_of(weight) != FLOAT)
            if weight is not None and reduced and _is_pointwise(weight) and _is_row(other, weight):
                reason = f"{node.op_type} of a pointwise Conv and of rows or columns"
                yield Point(value, ((node, index),), reason)


def _is_pointwise(weight: ir.Value) -> bool:
    """Whether a weight is one of windows of one element."""
    return weight.shape is not None and set(weight.shape[2:]) == {1}


def _is_row(other: ir.Value, weight: ir.Value) -> bool:
    """Whether a value is broadcast along some of a convolution's spatial axes, but not all."""
    if other.shape is None or weight.shape is None:
        return False
    extents = [1] * (len(weight.shape) - len(other.shape)) + list(other.shape)
    along = [extent == 1 for extent in extents[2:]]
    return any(along) and not all(along)


def _shared_with_samplers(model: ir.Model) -> Iterator[Point]:
    """What a GridSample reads is not there any more for some of the others that read it."""
    for sampler in (node for node in model.graph if node.op_type == "GridSample"):
        for index, value in enumerate(sampler.inputs):
            if value is None or constant_of(value) is not None:
                continue
            between = (node for _, node, _ in _behind([value]) if node.op_type in _FUSED)
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
    for total in _nodes(model, "CumSum"):
        value = total.inputs[0]
        if value is None or constant_of(value) is not None:
            continue
        others = [node.op_type for node, _ in value.uses() if node.op_type in _ELEMENTWISE]
        if others:
            yield Point(value, ((total, 0),), f"CumSum and {others[0]} read it")


def _states_of_loops(model: ir.Model) -> Iterator[Point]:
    """A Loop with a dynamic shape that begins with an input of the model, moved at most."""
    for loop in (node for node in model.graph if node.op_type in ("Loop", "Scan")):
        for index, value in enumerate(loop.inputs):
            source = value
            for source, node in _made_in_turn(value):
                if node.op_type not in _MOVING | {"Gather"}:
                    break
                source = node.inputs[0]
            if value is None or source is None or not source.is_graph_input():
                continue
            if constant_of(source) is None:
                reason = f"{loop.op_type} that begins with an input"
                yield Point(value, ((loop, index),), reason, copied=source is not value)


def _loops_behind_outputs(model: ir.Model) -> Iterator[Point]:
    """Of outputs before what a recurrent layer reads some are not written."""
    for layer in _nodes(model, *_RECURRENT):
        value = input_of(layer, 0)
        if any(one.is_graph_output() for one, _, _ in _behind([value])):
            assert value is not None  # noqa: S101  # for the type checker
            yield Point(value, ((layer, 0),), f"{layer.op_type} behind an output")


def _equal_operands(model: ir.Model) -> Iterator[Point]:
    """Behind a comparison of a value with itself, an output is not written."""
    for node in _nodes(model, *_COMPARISONS):
        value = input_of(node, 0)
        if value is input_of(node, 1) and value is not None and constant_of(value) is None:
            yield Point(value, ((node, 1),), f"{node.op_type} of it and itself")


def _casts_of_products(model: ir.Model) -> Iterator[Point]:
    """A product that is cast to integers or booleans behind elementwise nodes at most."""
    for cast in _nodes(model, "Cast"):
        kind = ir.DataType(cast.attributes.get_int("to", 0))
        if kind.is_integer() or kind == ir.DataType.BOOL:
            for product, _ in _back(cast.inputs, PRODUCTS | {"Einsum"}):
                value = product.outputs[0]
                reason = f"{product.op_type} that is cast to integers"
                yield Point(value, tuple(value.uses()), reason)


def _comes_out(value: ir.Value) -> bool:
    """Whether a value is fused with an output behind it, or with another node equal to its own."""
    return any(one.is_graph_output() for one, _, _ in _behind([value])) or _has_twin(value)


def _has_twin(value: ir.Value) -> bool:
    """Whether another node of the same operator reads what an elementwise one reads."""
    node = value.producer()
    if node is None or node.op_type not in _ELEMENTWISE:
        return False
    return any(
        reader is not node and reader.op_type == node.op_type
        for source in node.inputs
        if source is not None
        for reader, _ in source.uses()
    )


def _back(
    values: Sequence[ir.Value | None],
    operators: frozenset[str],
    moving: frozenset[str] = _MOVING,
) -> Iterator[tuple[ir.Node, bool]]:
    """Nodes of some operators behind elementwise and moving nodes alone; whether axes move."""
    for _, node, moved in _behind(values, operators, moving):
        if node.op_type in operators:
            yield node, moved


def _behind(
    values: Sequence[ir.Value | None],
    ends: frozenset[str] = frozenset(),
    moving: frozenset[str] = _MOVING,
) -> Iterator[tuple[ir.Value, ir.Node, bool]]:
    """What nodes made of some values, and all that is behind it by elementwise and moving nodes.

    Args:
        values: The values.
        ends: Operators behind which there is nothing more, either.
        moving: Operators that move elements.

    Yields:
        A value, the node that makes it, and whether axes move between.
    """
    pending = [(value, False) for value in values]
    seen: set[ir.Value] = set()
    while pending:
        value, moved = pending.pop()
        node = value.producer() if value is not None else None
        if value is None or node is None or value in seen or BREAK_KEY in node.metadata_props:
            continue
        seen.add(value)
        yield value, node, moved
        if node.op_type in ends:
            continue
        if node.op_type in _ELEMENTWISE:
            pending += [(one, moved) for one in _read_values(node)]
        elif node.op_type in moving:
            pending += [(one, True) for one in _moved_values(node)]


def _read_values(node: ir.Node) -> Sequence[ir.Value | None]:
    """The inputs of an elementwise node, but for one of which it reads the type alone."""
    return node.inputs[:1] if node.op_type == "CastLike" else node.inputs


def _moved_values(node: ir.Node) -> Sequence[ir.Value | None]:
    return node.inputs if node.op_type == "Concat" else node.inputs[:1]


def _reduction_pairs(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Node, bool]]:
    """Reductions with elementwise and moving nodes at most between them, and whether axes move."""
    for second in model.graph:
        if _has_one_operand(second) or (second.op_type in _REDUCTIONS and not second.domain):
            for first, moved in _back(second.inputs[:1], _REDUCTIONS, _MOVING | _SPREADING):
                yield first, second, moved


def _spread_norms(model: ir.Model) -> Iterator[tuple[ir.Node, int, list[ir.Node]]]:
    """Elementwise nodes, an input that may be broadcast, and the reductions before that."""
    for node in model.graph:
        if node.op_type not in _ELEMENTWISE or node.domain or len(_read_values(node)) < 2:
            continue
        for index, value in enumerate(node.inputs):
            norms = [norm for norm, _ in _back([value], _NORMS | _REDUCE)]
            if norms:
                yield node, index, norms


def _is_sliced(norms: Sequence[ir.Node]) -> bool:
    """Whether one of some nodes is a norm of a part of a value."""
    behind = _behind([norm.inputs[0] for norm in norms if norm.op_type in _NORMS])
    return any(node.op_type == "Slice" for _, node, _ in behind)


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
        if operator in _SOFTMAX and self._opset < _AXES_OF_SOFTMAX:
            return range(attributes.get_int("axis", 1) % rank, rank)
        if operator == "Einsum":
            return None
        if operator in _SCALED:
            return [attributes.get_int("axis", -1)]
        if operator in _TRAILING:
            return range(attributes.get_int("axis", -1) % rank, rank)
        if operator in _SPATIAL:
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
