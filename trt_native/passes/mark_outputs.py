"""Tensors inside a model as outputs of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from trt_native.errors import SpecError
from trt_native.graph.inference import infer_types
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass

__all__ = ["MarkOutputs", "mark_outputs"]


@wraps_graph_errors
def mark_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Add tensors of the main graph to the model's outputs, in the type that they have.

    Tensors inside model-local functions have the names that :func:`normalize` gives them. What is
    an output already stays one.

    Raises:
        SpecError: the graph has no node that makes such a tensor.
        ModelError: a value's type is unknown.
    """
    infer_types(model)
    made = {value.name: value for node in model.graph for value in node.outputs}
    unknown = [name for name in names if name not in made]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise SpecError(f"no node makes a tensor {unknown[0]!r}{more}, which the plan is to return")
    present = {value.name for value in model.graph.outputs}
    for name in dict.fromkeys(names):
        if name not in present:
            model.graph.outputs.append(made[name])


class MarkOutputs(GraphPass):
    """Tensors inside the model as further outputs of the plan."""

    name = "mark_outputs"
    title = "Marking outputs"
    typed = True

    def needed(self, model: ir.Model) -> bool:
        """Whether extra outputs were requested that are not outputs yet."""
        present = {value.name for value in model.graph.outputs}
        return not present.issuperset(self.context.extra_outputs)

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Add the outputs; see :func:`mark_outputs`."""
        mark_outputs(model, self.context.extra_outputs)
        return {"tensors": list(self.context.extra_outputs)}

    def summarize(self, record: Mapping[str, Any]) -> str:
        """Count the outputs that were added."""
        return f"extra outputs: {len(record.get('tensors', ()))}"
