"""Tensors inside a model as outputs of it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common as passes

from trt_native.errors import SpecError
from trt_native.graph.inference import infer_types
from trt_native.graph.validity import wraps_graph_errors

__all__ = ["mark_outputs"]


@wraps_graph_errors
def mark_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Add tensors of the main graph to the model's outputs, in the type that they have.

    Model-local functions are inlined first; tensors inside them have the names that
    ``InlinePass`` of ``onnx_ir`` gives. What is an output already stays one.

    Raises:
        SpecError: the graph has no node that makes such a tensor.
        ModelError: a value's type is unknown.
    """
    if model.functions:
        passes.InlinePass()(model)
    infer_types(model)
    made = {value.name: value for node in model.graph for value in node.outputs}
    unknown = [name for name in names if name not in made]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise SpecError(f"no node makes a tensor {unknown[0]!r}{more}, which the plan shall return")
    present = {value.name for value in model.graph.outputs}
    for name in dict.fromkeys(names):
        if name not in present:
            model.graph.outputs.append(made[name])
