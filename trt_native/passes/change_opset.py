"""Give a model the opset that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from trt_native.errors import UnsupportedError
from trt_native.graph.nodes import opset_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass, count_text
from trt_native.passes.lower_opset import lower_opset
from trt_native.passes.raise_opset import opset_problems, require_opset

__all__ = ["ChangeOpset"]


class ChangeOpset(GraphPass):
    """Operators of a newer or an older opset, which compute the same."""

    name = "change_opset"
    title = "Changing the opset"
    typed = True

    def needed(self, model: ir.Model) -> bool:
        """Whether an opset was asked for; other passes may raise it before this one runs."""
        wanted = self.context.opset
        return wanted is not None and (not self.record or opset_of(model) != wanted)

    @wraps_graph_errors
    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Raise or lower the model.

        Raises:
            UnsupportedError: an operator has no equal form there.
        """
        before, wanted = opset_of(model), self.context.opset
        assert wanted is not None  # noqa: S101  # for the type checker
        nodes: Mapping[str, int] = {}
        if wanted < before:
            nodes = lower_opset(model, wanted)
        elif wanted > before:
            if problems := opset_problems(model, wanted):
                raise UnsupportedError(
                    f"the model has opset {before} and cannot be raised to opset {wanted}:"
                    f" {', '.join(problems)}",
                    options=("opset",),
                )
            raised = require_opset(model, wanted, "the options")
            nodes = raised.nodes if raised else {}
        return {"before": before, "opset": wanted, "nodes": dict(nodes)}

    def summarize(self, record: Mapping[str, Any]) -> str:
        """The opsets, and the nodes that were rewritten."""
        if "opset" not in record:
            return self.title
        rewritten = f", rewritten for it: {count_text(record['nodes'])}" if record["nodes"] else ""
        return f"opset {record['before']} to {record['opset']}{rewritten}"
