"""Make constants of the inputs that a build gives one value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from trt_native.graph.fixed_inputs import fix_inputs
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass

__all__ = ["FixInputs"]


class FixInputs(GraphPass):
    """Constants in the place of inputs; the plan has no such inputs."""

    name = "fix_inputs"
    title = "Fixing inputs"
    early = True

    def needed(self, model: ir.Model) -> bool:
        """Whether an input is one of those to fix."""
        fixed = self.context.config.fixed_values()
        return any(value.name in fixed for value in model.graph.inputs)

    def requires(self, model: ir.Model) -> None:
        """Nothing: any model has inputs."""

    @wraps_graph_errors
    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Fix them; ``inputs`` has ``value``, ``dtype`` and ``shape`` of each."""
        arrays = fix_inputs(model, self.context.config.fixed_values())
        return {
            "inputs": {
                name: {"value": a.item(), "dtype": str(a.dtype), "shape": list(a.shape)}
                for name, a in arrays.items()
            }
        }

    def preview(self, model: ir.Model) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing: it runs before anything is decided."""
        return {}

    def summarize(self, record: Mapping[str, Any]) -> str:
        """The inputs that the plan does not have, with their values."""
        fixed = (f"{name} = {entry['value']}" for name, entry in record["inputs"].items())
        return f"no inputs of the plan: {', '.join(fixed)}"
