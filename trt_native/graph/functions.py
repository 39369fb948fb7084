"""Model-local functions."""

from __future__ import annotations

import graphlib
from collections import Counter

import onnx_ir as ir
from onnx_ir.passes import common

from trt_native.errors import ModelError
from trt_native.graph.validity import wraps_graph_errors

__all__ = ["check_inlined_size", "inline_functions"]


_MOST_NODES = 25_000
"""Nodes that calls may expand to. Names for them take a time that grows with the square."""


def check_inlined_size(model: ir.Model) -> None:
    """Refuse functions that call each other so often that their nodes have no room.

    Raises:
        ModelError: with the bodies in the place of their calls the model has too many nodes.
    """
    functions = model.functions
    bodies = {
        key: Counter(node.op_identifier() for node in function.all_nodes())
        for key, function in functions.items()
    }
    calls = {key: body.keys() & functions.keys() for key, body in bodies.items()}
    sizes: dict[ir.OperatorIdentifier, int] = {}
    try:
        for key in graphlib.TopologicalSorter(calls).static_order():
            sizes[key] = sum(sizes.get(name, 1) * count for name, count in bodies[key].items())
    except graphlib.CycleError:  # reported where functions are inlined
        return
    total = sum(sizes.get(node.op_identifier(), 0) for node in model.graph.all_nodes())
    if total > _MOST_NODES:
        raise ModelError(
            f"the calls of its functions expand to {total:,} nodes, and at most {_MOST_NODES:,} are"
            " possible; inline them first, with onnx.inliner"
        )


@wraps_graph_errors
def inline_functions(model: ir.Model) -> int:
    """Put the bodies of a model's functions in the place of their calls.

    Names of inputs, outputs and of the values that the main graph computes stay. Tensors inside
    functions get the names that ``InlinePass`` of ``onnx_ir`` gives.

    Returns:
        How many calls the main graph had.
    """
    if not model.functions:
        return 0
    return sum(common.InlinePass()(model).id_count.values())  # type: ignore[attr-defined]
