"""Prevent TensorRT from fusing nodes across a tensor, where the fused kernel would be wrong.

TensorRT-RTX 1.6 miscompiles some fusions, on the GPU alone: its parser and its network are right
(``scripts/probe_fusions.py`` maps them). A fusion is broken by a ``Gather`` of all indices along
the first axis, which are computed from the tensor's shape. TensorRT does not remove that, as it
does an ``Identity``, an ``Expand`` or a pair of ``Transpose``, ``Cast`` or ``Reshape``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_native.errors import SpecError, UnsupportedError
from trt_native.graph.dims import fixed_dimensions
from trt_native.graph.inference import infer_types, infer_values, known_type
from trt_native.graph.nodes import (
    FLOAT,
    PRODUCTS,
    constant_of,
    dtype_of,
    input_of,
    op_set,
    opset_of,
)
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass
from trt_native.passes.raise_opset import RaisedOpset, opset_problems, require_opset
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder
from trt_native.shapes import Profile

__all__ = ["BreakFusions", "break_fusion"]

_BREAK_KEY = "trt_native.break_fusion"  # in the metadata of the nodes that break one
_OPSET = 11  # has Range
_RAISED = 13  # what an older model is raised to
_AXES_OF_SOFTMAX = 13  # before this opset the softmax family flattens from its axis on
_INFINITE_AT_0 = op_set("Log Reciprocal ReduceLogSum")
_SMALL = 15  # elements; wrong were 2 to 7, right from 8 on

_SOFTMAX = op_set("Softmax LogSoftmax Hardmax")
_REDUCE = op_set(
    "ReduceMax ReduceMin ReduceMean ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceLogSum"
    " ReduceLogSumExp ReduceSumSquare"
)
_TRAILING = op_set("LayerNormalization RMSNormalization")
_SPATIAL = op_set(
    "InstanceNormalization GroupNormalization GlobalAveragePool GlobalMaxPool GlobalLpPool"
)
_REDUCTIONS = (
    _SOFTMAX | _REDUCE | _TRAILING | _SPATIAL | op_set("LpNormalization MeanVarianceNormalization")
)
_ELEMENTWISE = op_set(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Cos Cosh Div Dropout"
    " Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity LeakyRelu"
    " Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round"
    " Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh"
    " ThresholdedRelu Where Xor"
)
_MOVING = op_set("Expand Flatten Reshape Squeeze Transpose Unsqueeze")
_SPREADING = op_set("Concat Pad Slice Tile")
_RESHAPING = op_set("Flatten Reshape Squeeze Unsqueeze")
_POOLS = op_set("AveragePool MaxPool")
_LOOPS = op_set("CumSum GRU GroupNormalization InstanceNormalization LSTM Loop RNN Scan")
"""TensorRT computes these by layers of their own, or by loops, rather than in a fusion."""
_NORMS = (
    _SOFTMAX
    | _TRAILING
    | op_set("LpNormalization MeanVarianceNormalization InstanceNormalization GroupNormalization")
)


@dataclass(frozen=True, slots=True)
class _Point:
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


@wraps_graph_errors
def break_fusion(model: ir.Model, name: str) -> None:
    """Let all nodes that read a tensor of the main graph read an equal one, in place.

    TensorRT fuses no node that makes the tensor with one that reads it. The tensor keeps its name.
    It costs a copy of the tensor. The bias of a convolution that makes it is added on its own, to
    another copy.

    Args:
        model: The model.
        name: An input of the graph, or what a node makes.

    Raises:
        SpecError: there is no such tensor, or no node reads it.
        ModelError: its type is unknown.
    """
    infer_types(model)
    names = NameAuthority(model)
    _separate_bias(model, names, _requested(model, name).value)
    point = _requested(model, name)
    if point.reads:
        _break(model, names, point)


class BreakFusions(GraphPass):
    """Fusions broken on request, and where TensorRT is known to miscompile them."""

    name = "break_fusions"
    title = "Breaking fusions"
    typed = True

    def needed(self, model: ir.Model) -> bool:
        """Whether there is a fusion to break that is not broken yet.

        Raises:
            SpecError: a tensor that was requested does not exist, or no node reads it.
            UnsupportedError: there is, and the model's opset lacks the means.
        """
        found = bool(self._points(model, infer=not self.record))
        lacks_opset = found and opset_of(model) < _OPSET
        if lacks_opset and (problems := opset_problems(model, _RAISED)):
            raise UnsupportedError(
                f"TensorRT would fuse nodes that it miscompiles together; to prevent that needs"
                f" opset {_OPSET}, the model has {opset_of(model)} and cannot be raised as it is"
                f" ({', '.join(problems)}): export it at a newer one"
            )
        return found

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Break the fusions, see :func:`break_fusion`; at an opset that has the means."""
        raised = None
        if opset_of(model) < _OPSET:
            raised = require_opset(model, _RAISED, "broken fusions")
        names, record = NameAuthority(model), _record(self._points(model, infer=True))
        for name in self.context.config.break_fusions:
            _separate_bias(model, names, _requested(model, name).value)
        for point in self._points(model, infer=False):
            _break(model, names, point)
        return record if raised is None else {**record, "raised": asdict(raised)}

    def preview(self, model: ir.Model) -> Mapping[str, Any]:
        """The tensors at which fusions will be broken."""
        return _record(self._points(model, infer=False))

    def summarize(self, record: Mapping[str, Any]) -> str:
        """The tensors, with the reasons, and the opset where it was raised."""
        lines = [f"fusion broken at {name}: {why}" for name, why in record["tensors"].items()]
        if "raised" in record:
            lines.append(str(RaisedOpset(**record["raised"])))
        return "\n".join(lines)

    def _points(self, model: ir.Model, *, infer: bool) -> list[_Point]:
        requested = [_requested(model, name) for name in self.context.config.break_fusions]
        taken = {point.value.name for point in requested}
        lowered = self.context.precision.lowered_to is not None
        found = _merged(_miscompiled(model, self.context.profiles, lowered=lowered, infer=infer))
        points = [*requested, *(point for point in found if point.value.name not in taken)]
        return [point for point in points if point.reads or _has_bias(point.value)]


def _record(points: Sequence[_Point]) -> dict[str, Any]:
    return {"tensors": {str(point.value.name): point.reason for point in points}}


def _requested(model: ir.Model, name: str) -> _Point:
    made = {value.name: value for node in model.graph for value in node.outputs}
    value = made.get(name) or next((v for v in model.graph.inputs if v.name == name), None)
    if value is None or name in model.graph.initializers:
        raise SpecError(
            f"no node makes a tensor {name!r} at which a fusion could be broken",
            options=("break_fusions",),
        )
    if not (value.uses() or _has_bias(value) or _is_broken(value)):
        raise SpecError(
            f"no node reads tensor {name!r}, so there is no fusion to break",
            options=("break_fusions",),
        )
    reads = tuple((node, i) for node, i in value.uses() if _BREAK_KEY not in node.metadata_props)
    return _Point(value, reads, "requested")


def _is_broken(value: ir.Value) -> bool:
    """Whether the last of the nodes that break a fusion makes a value."""
    node = value.producer()
    return node is not None and _BREAK_KEY in node.metadata_props


def _has_bias(value: ir.Value) -> bool:
    """Whether a convolution with a bias makes a value, which can be added apart."""
    node = value.producer()
    if node is None or node.op_type not in ("Conv", "ConvTranspose"):
        return False
    weight = input_of(node, 1)
    return input_of(node, 2) is not None and weight is not None and weight.shape is not None


def _break(model: ir.Model, names: NameAuthority, point: _Point) -> None:
    value, kind = point.value, known_type(point.value)
    nodes: list[ir.Node] = []

    def add(
        operator: str, inputs: list[ir.Value], dtype: ir.DataType, **attributes: Any
    ) -> ir.Value:
        name = names.unique(f"{value.name}__{operator.lower()}_unfused")
        output = ir.Value(name=name, type=ir.TensorType(dtype))
        nodes.append(ir.node(operator, inputs, attributes, outputs=[output], name=name))
        nodes[-1].metadata_props[_BREAK_KEY] = point.reason
        return output

    def constant(number: Any) -> ir.Value:
        array = np.array(number, np.int64)
        return names.initializer(f"{value.name}__unfused", ir.Tensor(array))

    result = _copied(add, constant, value, kind) if point.copied else add("Identity", [value], kind)
    result.shape = None if value.shape is None else ir.Shape(value.shape)
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], nodes)
    else:
        model.graph.insert_after(producer, nodes)
    for reader, index in point.reads:
        reader.replace_input_with(index, result)


def _separate_bias(model: ir.Model, names: NameAuthority, value: ir.Value) -> None:
    """Add the bias of a convolution that makes a value by a node of its own, to a copy."""
    if not _has_bias(value):
        return
    node = value.producer()
    assert node is not None  # noqa: S101  # for the type checker
    weight, bias = node.inputs[1:3]
    assert weight is not None  # noqa: S101
    assert weight.shape is not None  # noqa: S101
    new = ReplacementBuilder(node, names, opset_of(model))
    (product,) = new.add_with(node.op_type, node.inputs[:2], 1, node.attributes)
    copy = _copied(new.add, lambda number: new.constant(np.array(number, np.int64)), product, None)
    shape = [1, -1, *[1] * (len(weight.shape) - 2)]
    assert bias is not None  # noqa: S101
    total = new.add("Add", [copy, new.reshaped(bias, shape)])
    new.replace(total)
    node = total.producer()
    assert node is not None  # noqa: S101
    node.metadata_props[_BREAK_KEY] = "requested"


def _copied(
    add: Callable[..., ir.Value],
    constant: Callable[[Any], ir.Value],
    value: ir.Value,
    kind: ir.DataType | None,
) -> ir.Value:
    """All elements of a tensor, by indices that are computed from its shape."""
    scalar = value.shape is not None and len(value.shape) == 0
    source = add("Reshape", [value, constant([1])], kind) if scalar else value
    zero, one = constant(0), constant(1)
    shape = add("Shape", [source], ir.DataType.INT64)
    count = add("Gather", [shape, zero], ir.DataType.INT64)
    indices = add("Range", [zero, count, one], ir.DataType.INT64)
    result = add("Gather", [source, indices], kind, axis=0)
    return add("Reshape", [result, constant(np.zeros(0))], kind) if scalar else result


def _merged(points: Iterator[_Point]) -> list[_Point]:
    """One point for each tensor."""
    merged: dict[tuple[ir.Value, bool], _Point] = {}
    for point in points:
        key = point.value, point.copied
        before = merged.get(key, point)
        reads = tuple(dict.fromkeys((*before.reads, *point.reads)))
        merged[key] = replace(before, reads=reads)
    return list(merged.values())


def _miscompiled(
    model: ir.Model, profiles: Sequence[Profile], *, lowered: bool, infer: bool
) -> Iterator[_Point]:
    """The fusions that TensorRT miscompiles.

    Args:
        model: The model.
        profiles: The optimization profiles.
        lowered: Whether FP32 arithmetic is, or will be, reduced.
        infer: Whether to infer shapes that are lacking.
    """
    yield from _equal_outputs(model)
    yield from _shared_with_samplers(model)
    yield from _shared_with_resizes(model)
    yield from _shared_with_sums(model)
    yield from _states_of_loops(model)
    yield from _casts_of_products(model)
    yield from _reversed_reductions(model)
    yield from _logarithms_in_products(model)
    yield from _columns_of_products(model, lowered)
    pairs, spreads = list(_reduction_pairs(model)), list(_spread_norms(model))
    values = [v for _, node, _ in pairs for v in node.inputs[:1]]
    values += [v for node, _, _ in spreads for v in (*node.inputs, *node.outputs)]
    if infer and any(v is not None and v.shape is None for v in values):
        infer_values(model)
    sizes = _Sizes(model, profiles)
    for first, second, moved in pairs:
        same = not moved and sizes.axes(first) == sizes.axes(second) is not None
        if not same and sizes.is_small(first):
            value = second.inputs[0]
            assert value is not None  # noqa: S101  # for the type checker
            reason = (
                f"{second.op_type} after {first.op_type} over a few elements of other axes,"
                " in one kernel"
            )
            yield _Point(value, ((second, 0),), reason)
    for reader, index, norms in spreads:
        value = reader.inputs[index]
        assert value is not None  # noqa: S101  # for the type checker
        others = [other for other in reader.inputs if other is not None and other is not value]
        spread = any(_is_spread(value, other) for other in others)
        if spread and any(_is_norm(norm, value) for norm in norms):
            yield _Point(
                value, ((reader, index),), f"{reader.op_type} that broadcasts a norm or softmax"
            )


def _equal_outputs(model: ir.Model) -> Iterator[_Point]:
    """An output that is another one, reshaped to the same shape: that other one is not written."""
    for output in model.graph.outputs:
        value = output
        while (node := value.producer()) is not None and _may_keep_shape(node):
            source = node.inputs[0]
            assert source is not None  # noqa: S101  # for the type checker
            if source.is_graph_output() and _may_be_as_large(source, output):
                reason = f"{output.name!r} has its elements, and both are outputs"
                yield _Point(source, ((node, 0),), reason)
                break
            value = source


def _may_keep_shape(node: ir.Node) -> bool:
    """Whether a node reshapes, or is a pool of windows of one element."""
    if node.domain or not node.inputs or node.inputs[0] is None:
        return False
    windows = node.attributes.get_ints("kernel_shape", [0])
    return node.op_type in _RESHAPING or (node.op_type in _POOLS and set(windows) == {1})


def _may_be_as_large(one: ir.Value, other: ir.Value) -> bool:
    """Whether two values may have one shape, as far as their shapes are known."""
    if one.shape is None or other.shape is None:
        return True
    pairs = zip(one.shape, other.shape, strict=False)
    unlike = (isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
    return len(one.shape) == len(other.shape) and not any(unlike)


def _nodes(model: ir.Model, *operators: str) -> Iterator[ir.Node]:
    """Nodes of some of ONNX's own operators."""
    return (node for node in model.graph if node.op_type in operators and not node.domain)


def _shared_with_resizes(model: ir.Model) -> Iterator[_Point]:
    """Of an output that a Resize to the nearest reads only what it takes may be written."""
    for resize in _nodes(model, "Resize"):
        value = resize.inputs[0]
        nearest = resize.attributes.get_string("mode", "nearest") == "nearest"
        if nearest and value is not None and value.is_graph_output() and value.producer():
            yield _Point(value, ((resize, 0),), "an output, and Resize reads it")


def _reversed_reductions(model: ir.Model) -> Iterator[_Point]:
    """Behind a Slice that goes backwards, a reduction takes a part of its elements."""
    for reader in _nodes(model, "Slice"):
        value, steps = reader.inputs[0], input_of(reader, 4)
        known = None if steps is None else constant_of(steps)
        backwards = steps is not None and (known is None or bool((known.numpy() < 0).any()))
        node = None if value is None else value.producer()
        if value is not None and node is not None and backwards and node.op_type in _REDUCE:
            yield _Point(value, ((reader, 0),), f"Slice that reverses {node.op_type}")


def _logarithms_in_products(model: ir.Model) -> Iterator[_Point]:
    """Where a product pads what it reads, the logarithm or reciprocal of that is infinite."""
    for product in _nodes(model, "MatMul", "Gemm"):
        for node, _ in _back(product.inputs, _INFINITE_AT_0):
            if node.op_type in _REDUCE or any(_back(node.inputs, _REDUCE)):
                value = node.outputs[0]
                reason = f"{product.op_type} of {node.op_type} of a reduction"
                yield _Point(value, tuple(value.uses()), reason)


def _columns_of_products(model: ir.Model, lowered: bool) -> Iterator[_Point]:
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
                yield _Point(value, ((node, index),), reason)


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


def _shared_with_samplers(model: ir.Model) -> Iterator[_Point]:
    """What a GridSample reads is not there any more for some of the others that read it."""
    for sampler in (node for node in model.graph if node.op_type == "GridSample"):
        for index, value in enumerate(sampler.inputs):
            if value is None or constant_of(value) is not None:
                continue
            loops = tuple((node, i) for node, i in value.uses() if node.op_type in _LOOPS)
            if loops:
                yield _Point(value, loops, f"{loops[0][0].op_type} and GridSample read it")
            if _comes_out(value):
                yield _Point(value, ((sampler, index),), "an output, and GridSample reads it")


def _shared_with_sums(model: ir.Model) -> Iterator[_Point]:
    """What a CumSum and elementwise nodes read is not there any more for the CumSum."""
    for total in _nodes(model, "CumSum"):
        value = total.inputs[0]
        if value is None or constant_of(value) is not None:
            continue
        others = [node.op_type for node, _ in value.uses() if node.op_type in _ELEMENTWISE]
        if others:
            yield _Point(value, ((total, 0),), f"CumSum and {others[0]} read it")


def _states_of_loops(model: ir.Model) -> Iterator[_Point]:
    """A Loop with a dynamic shape that begins with an input of the model."""
    for loop in (node for node in model.graph if node.op_type in ("Loop", "Scan")):
        for index, value in enumerate(loop.inputs):
            if value is not None and value.is_graph_input() and constant_of(value) is None:
                reason = f"{loop.op_type} that begins with an input"
                yield _Point(value, ((loop, index),), reason, copied=False)


def _casts_of_products(model: ir.Model) -> Iterator[_Point]:
    """A product that is cast to integers or booleans behind elementwise nodes at most."""
    for cast in _nodes(model, "Cast"):
        kind = ir.DataType(cast.attributes.get_int("to", 0))
        if kind.is_integer() or kind == ir.DataType.BOOL:
            for product, _ in _back(cast.inputs, PRODUCTS):
                value = product.outputs[0]
                reason = f"{product.op_type} that is cast to integers"
                yield _Point(value, tuple(value.uses()), reason)


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
        if value is None or node is None or value in seen or _BREAK_KEY in node.metadata_props:
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
        if second.op_type in _REDUCTIONS and not second.domain:
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


def _is_norm(node: ir.Node, value: ir.Value) -> bool:
    """Whether a norm or softmax, or what a reduction was expanded to again, makes a value."""
    if node.op_type in _NORMS:
        return True
    reduced = node.outputs[0].shape
    return reduced is None or value.shape is None or _is_spread(node.outputs[0], value)


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
        if operator in _SOFTMAX or operator == "LpNormalization":
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
        extents = [self._extent(dim) for dim in value.shape]
        if not self._static and None in extents:
            return False
        reduced = [extents[axis] for axis in axes]
        known = prod(extent for extent in reduced if extent is not None)
        return known <= _SMALL and (None in reduced or known > 1)

    def _extent(self, dim: int | ir.SymbolicDim) -> int | None:
        return dim if isinstance(dim, int) else self._dims.get(dim.value or "")
