"""Outputs that TensorRT leaves unwritten, as the tensors at which to break a fusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import onnx_ir as ir

from trt_native.graph.nodes import constant_of, input_of, ints_of, op_set
from trt_native.passes.fusion_search import (
    COMPARISONS,
    FUSED,
    MOVING,
    POINTWISE,
    POOLS,
    RECURRENT,
    REDUCTIONS,
    SPREADING,
    Point,
    behind,
    has_one_operand,
    made_in_turn,
    may_be_as_large,
    nodes_of,
)

__all__ = ["unwritten_outputs"]

_FEW = 64  # elements of constants that are compared
_MOST_AROUND = 256  # values
_RESHAPING = op_set("Flatten Reshape Squeeze Unsqueeze")
_COMMUTATIVE = op_set("Add And Equal Max Mean Min Mul Or Sum Xor")
_OF_ITSELF = op_set("Div Sub Xor")
"""What TensorRT may compute of a value and itself when it builds, besides comparisons."""
_Equals: TypeAlias = dict[ir.Value, list[ir.Value]]
_ABSORBING = {"And": False, "Or": True}


def unwritten_outputs(model: ir.Model) -> Iterator[Point]:
    """Where an output of a model would keep what its memory held, or a part of it."""
    equal = _equal_values(model)
    yield from _equal_outputs(model)
    yield from _computed_twice(equal)
    yield from _copied_outputs(model)
    yield from _shared_with_resizes(model)
    yield from _before_forks(model, equal)
    yield from _loops_behind_outputs(model)
    yield from _equal_operands(model)
    yield from _shared_parts(model)
    yield from _constant_conditions(model)


def _equal_outputs(model: ir.Model) -> Iterator[Point]:
    """An output that is another one, reshaped to the same shape: that other one is not written."""
    for output in model.graph.outputs:
        for _, node in made_in_turn(output):
            if not _may_keep_shape(node):
                break
            source = node.inputs[0]
            assert source is not None  # noqa: S101  # for the type checker
            if source.is_graph_output() and may_be_as_large(source, output):
                reason = f"{output.name!r} has its elements, and both are outputs"
                yield Point(source, ((node, 0),), reason)
                break


def _may_keep_shape(node: ir.Node) -> bool:
    """Whether a node may pass on what it reads: a reshape, a Resize, a pool of one element."""
    if node.domain or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type in POOLS:
        return set(node.attributes.get_ints("kernel_shape", [0])) == {1}
    if node.op_type == "Transpose":
        return _keeps_order(node)
    return node.op_type in _RESHAPING | {"Resize"} or has_one_operand(node)


def _keeps_order(node: ir.Node) -> bool:
    """Whether a Transpose moves axes of one element alone, as far as the shape is known."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return True
    axes = range(len(value.shape))
    perm = ints_of(node, "perm") or reversed(axes)
    long = [axis for axis in perm if axis in axes and value.shape[axis] != 1]
    return long == sorted(long)


def _copied_outputs(model: ir.Model) -> Iterator[Point]:
    """A copy beside outputs that are joined, padded or sliced: one of them is not written."""
    for output in model.graph.outputs:
        node = output.producer()
        source = None if node is None or node.domain or not node.inputs else node.inputs[0]
        if node is None or source is None or source.is_graph_output():
            continue
        if node.op_type not in MOVING | {"Tile"} or not may_be_as_large(source, output):
            continue
        near = list(_around(source))
        joined = any(
            {reader.op_type for reader, _ in one.uses()} & SPREADING or _makes(one) in SPREADING
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
            if node.op_type in POINTWISE and not node.domain:
                values = [*(one for one in node.inputs if one is not None), *node.outputs]
                new = [one for one in values if one not in seen and constant_of(one) is None]
                seen.update(new)
                pending += new


def _makes(value: ir.Value) -> str:
    """The operator that makes a value; empty for an input."""
    node = value.producer()
    return "" if node is None else node.op_type


def _shared_with_resizes(model: ir.Model) -> Iterator[Point]:
    """Of an output that a Resize reads only what it takes may be written, or nothing."""
    for resize in nodes_of(model, "Resize"):
        value = resize.inputs[0]
        if any(one.is_graph_output() for one, _, _ in behind([value])):
            assert value is not None  # noqa: S101  # for the type checker
            yield Point(value, ((resize, 0),), "an output, and Resize reads it")


def _before_forks(model: ir.Model, equal: _Equals) -> Iterator[Point]:
    """An output is not written where what is made of it is an output, and read more than once."""
    for output in model.graph.outputs:
        reads = tuple(output.uses())
        if _makes(output) in POINTWISE and any(_leads_to_fork(node, equal) for node, _ in reads):
            reason = "an output, as is what elementwise nodes make of it for several others"
            yield Point(output, reads, reason)


def _leads_to_fork(node: ir.Node, equal: _Equals) -> bool:
    """Whether elementwise nodes from one on make an output that an elementwise and others read."""
    pending, seen = [node], {node}
    while pending and len(seen) < _MOST_AROUND:
        node = pending.pop()
        if node.op_type not in FUSED or node.domain:
            continue
        for value in node.outputs:
            same = equal.get(value, [value])
            readers = {reader for one in same for reader, _ in one.uses()}
            elementwise = any(one.op_type in POINTWISE for one in readers)
            outputs = sum(one.is_graph_output() for one in same)
            if outputs and elementwise and len(readers) + outputs > 2:
                return True
            pending += readers - seen
            seen |= readers
    return False


def _computed_twice(equal: _Equals) -> Iterator[Point]:
    """Of outputs that equal nodes make of equal values only one is written."""
    for values in {id(group): group for group in equal.values()}.values():
        outputs = [value for value in values if value.is_graph_output()]
        for value in outputs[1:]:
            node = value.producer()
            for place, one in enumerate(() if node is None else node.inputs):
                if node is not None and one is not None and constant_of(one) is None:
                    reason = f"{value.name!r} and {outputs[0].name!r} are equal outputs"
                    yield Point(one, ((node, place),), reason)
                    break


def _equal_values(model: ir.Model) -> _Equals:
    """For each value those that equal nodes make of equal values, itself included, in order."""
    numbers: dict[Any, int] = {}
    of_value: dict[ir.Value, int] = {}
    groups: dict[int, list[ir.Value]] = {}
    for value in model.graph.inputs:
        of_value[value] = numbers.setdefault(value, len(numbers))
    for node in model.graph:
        key = _content_key(node, of_value, numbers)
        for index, value in enumerate(node.outputs):
            number = numbers.setdefault(value if key is None else (key, index), len(numbers))
            of_value[value] = number
            groups.setdefault(number, []).append(value)
    return {value: groups[of_value[value]] for group in groups.values() for value in group}


def _content_key(
    node: ir.Node, of_value: Mapping[ir.Value, int], numbers: dict[Any, int]
) -> tuple[Any, ...] | None:
    """What nodes that make the same have in common; None for those that are not compared."""
    if node.op_type not in FUSED | {"BatchNormalization"} or node.domain:
        return None
    read: list[int | None] = []
    for value in node.inputs:
        constant = None if value is None else constant_of(value)
        if value is None:
            read.append(None)
        elif constant is not None:
            few = constant.size <= _FEW
            content = (constant.numpy().tobytes(), constant.dtype, str(constant.shape))
            read.append(numbers.setdefault(content if few else value, len(numbers)))
        else:
            read.append(of_value.get(value, numbers.setdefault(value, len(numbers))))
    if node.op_type in _COMMUTATIVE:
        read.sort(key=lambda number: -1 if number is None else number)
    attributes = sorted((a.name, str(a.value)) for a in node.attributes.values())
    return node.op_type, tuple(read), tuple(attributes)


def _shared_parts(model: ir.Model) -> Iterator[Point]:
    """Where a reduction reads a part that is an output, other parts are not written."""
    for reader in model.graph:
        if reader.op_type not in REDUCTIONS or reader.domain:
            continue
        for part, node, _ in behind(reader.inputs[:1]):
            outputs = [one for one in node.outputs if one.is_graph_output()]
            if node.op_type == "Split" and part in outputs and len(outputs) > 1:
                reason = f"an output, as other parts, and {reader.op_type} reads it"
                yield Point(part, tuple(part.uses()), reason)


def _constant_conditions(model: ir.Model) -> Iterator[Point]:
    """An output of booleans that TensorRT computes when it builds is written in part."""
    for output in model.graph.outputs:
        made = made_in_turn(output)
        value, node = next((pair for pair in made if pair[1].op_type not in MOVING), (None, None))
        if value is None or node is None or len(node.inputs) != 2:
            continue
        known = [None if one is None else constant_of(one) for one in node.inputs]
        reason = f"{node.op_type} of a constant makes an output"
        if node.op_type in COMPARISONS and None not in known:
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


def _loops_behind_outputs(model: ir.Model) -> Iterator[Point]:
    """Of outputs before what a recurrent layer reads some are not written."""
    for layer in nodes_of(model, *RECURRENT):
        value = input_of(layer, 0)
        if any(one.is_graph_output() for one, _, _ in behind([value])):
            assert value is not None  # noqa: S101  # for the type checker
            yield Point(value, ((layer, 0),), f"{layer.op_type} behind an output")


def _equal_operands(model: ir.Model) -> Iterator[Point]:
    """Where a value is subtracted from itself, an output is not written."""
    for node in nodes_of(model, *_OF_ITSELF):
        value = input_of(node, 0)
        if value is input_of(node, 1) and value is not None and constant_of(value) is None:
            yield Point(value, ((node, 0), (node, 1)), f"{node.op_type} of it and itself")
