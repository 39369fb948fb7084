"""Rules for Loop.

A loop over a dynamic shape ended after one trip, where a determinant or a Resize made what it
begins with. Short ones are written out.
:class:`~trt_native.passes.parser_workarounds.ParserWorkarounds` applies them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trt_native.graph.nodes import constant_of, input_of
from trt_native.passes.extent_workarounds import LOOP_CONDITION
from trt_native.passes.replacement import ReplacementBuilder, RewriteRule

__all__ = ["LOOP"]

_MOST_TRIPS = 8
_MOST_NODES = 128  # in all trips
_MOST_BYTES = 1 << 16  # of constants in the body, each of which every trip has
_BODY = "body"


def _is_rewritten(node: ir.Node) -> bool:
    return LOOP_CONDITION.check(node) or _is_short(node)


def _rewrite(new: ReplacementBuilder) -> None:
    if _is_short(new.node):
        _write_out(new)
    else:
        LOOP_CONDITION.rewrite(new)


def _is_short(node: ir.Node) -> bool:
    """Whether the trips are known and few, and what they change has a dynamic shape."""
    trips, attribute = _trips(node), node.attributes.get(_BODY)
    if not 1 <= trips <= _MOST_TRIPS or attribute is None or not _goes_on(node):
        return False
    body, states = attribute.as_graph(), node.inputs[2:]
    constants = (value.const_value for value in body.initializers.values())
    return (
        len(node.outputs) == len(states) == len(body.outputs) - 1 == len(body.inputs) - 2
        and not all(_is_static(state) for state in states)
        and trips * len(body) <= _MOST_NODES
        and sum(tensor.nbytes for tensor in constants if tensor is not None) <= _MOST_BYTES
    )


def _trips(node: ir.Node) -> int:
    """The number of trips, where it is constant; else 0."""
    limit = input_of(node, 0)
    tensor = None if limit is None else constant_of(limit)
    return int(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else 0


def _goes_on(node: ir.Node) -> bool:
    """Whether a loop has no condition, or one that is true in all trips."""
    body = node.attributes[_BODY].as_graph()
    if len(body.inputs) < 2 or not body.outputs:
        return False
    made, given = body.outputs[0], input_of(node, 1)
    producer = made.producer()
    if producer is not None and producer.op_type == "Identity" and not producer.domain:
        made = producer.inputs[0] or made
    return made is body.inputs[1] and (given is None or _is_true(given))


def _is_true(value: ir.Value) -> bool:
    tensor = constant_of(value)
    return tensor is not None and bool(tensor.numpy().all())


def _is_static(value: ir.Value | None) -> bool:
    if value is None or value.shape is None:
        return False
    return all(isinstance(dim, int) for dim in value.shape)


def _write_out(new: ReplacementBuilder) -> None:
    """Put one body behind the other."""
    node = new.node
    body, states = node.attributes[_BODY].as_graph(), list(node.inputs[2:])
    names = [str(value.name) for value in body.inputs]
    condition = new.constant(np.array(True))
    for trip in range(_trips(node)):
        values = [new.constant(np.array(trip)), condition, *states]
        given = {n: v for n, v in zip(names, values, strict=True) if v is not None}
        one = ir.Model(body.clone(allow_outer_scope_values=True), ir_version=10)
        states = list(new.adopt(one, given)[1:])
    kinds = [None if value is None else value.dtype for value in states]
    results = [new.add("Identity", [v], k) for v, k in zip(states, kinds, strict=True)]
    new.replace(*results)


LOOP = RewriteRule(_is_rewritten, _rewrite)
