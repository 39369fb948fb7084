"""Bring a graph into the form that the other passes read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from trt_native.graph.functions import inline_functions
from trt_native.graph.nodes import all_nodes
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass

__all__ = ["Normalize", "normalize"]

_DEFAULT_OPSET = 17  # for a model of custom operators alone, which casts may be added to


@wraps_graph_errors
def normalize(model: ir.Model) -> dict[str, Any]:
    """Inline model-local functions, and make initializers of ``Constant`` nodes, in place.

    Initializers are no longer inputs of the graph, and no output is there twice. Names of inputs,
    outputs and of the values that the main graph computes stay.

    Returns:
        ``functions`` and ``constants``: how many calls of the main graph were inlined, and how many
        constants moved.
    """
    model.opset_imports.setdefault("", _DEFAULT_OPSET)
    once = list(dict.fromkeys(model.graph.outputs))
    if len(once) < len(model.graph.outputs):
        model.graph.outputs[:] = once
    calls = inline_functions(model)
    common.RemoveInitializersFromInputsPass()(model)
    constants = _constant_count(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return {"functions": calls, "constants": constants - _constant_count(model)}


def _constant_count(model: ir.Model) -> int:
    return sum(node.op_type == "Constant" and not node.domain for node in all_nodes(model.graph))


class Normalize(GraphPass):
    """Functions inlined, constants as initializers, so that other passes meet one form."""

    name = "normalize"
    title = "Normalizing the graph"
    early = True
    rewrites = False  # it is not reason enough to write the graph to a file

    def needed(self, model: ir.Model) -> bool:
        """Whether the model has functions, constants, inputs with a default or an output twice."""
        initializers = model.graph.initializers.values()
        return (
            bool(model.functions)
            or _liftable_constants(model)
            or any(value.is_graph_input() for value in initializers)
            or len(set(model.graph.outputs)) < len(model.graph.outputs)
        )

    def requires(self, model: ir.Model) -> None:
        """Nothing: any graph can be normalized."""

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Normalize the graph; see :func:`normalize`."""
        return normalize(model)

    def summarize(self, record: Mapping[str, Any]) -> str:  # noqa: ARG002
        """Nothing: it changes the form alone."""
        return ""


def _liftable_constants(model: ir.Model) -> bool:
    return any(
        node.op_type == "Constant"
        and not node.domain
        and len(node.attributes) == 1
        and not node.outputs[0].is_graph_output()
        and not any(attribute.is_ref() for attribute in node.attributes.values())
        for node in all_nodes(model.graph)
    )
