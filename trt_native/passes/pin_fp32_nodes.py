"""Mark the nodes that a weakly typed TensorRT computes in FP32.

There types come from builder flags, so the graph stays as it is; the backend pins the layers of the
marked nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from trt_native.config import Precision
from trt_native.graph.inference import infer_types
from trt_native.graph.nodes import FLOAT16, all_nodes
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.autocast import match_fp32_patterns
from trt_native.passes.autocast_rules import NodeClassifier, Reason
from trt_native.passes.base import GraphPass, ResolvedPrecision

__all__ = ["PinFp32Nodes", "fp32_node_names", "pinned_nodes", "pins_nodes"]

_PIN_KEY = "trt_native.fp32"
# Reasons in ONNX's types and in TensorRT-RTX's FP16, which a weakly typed TensorRT does not have.
_OTHER_REASONS = frozenset(
    {
        Reason.SCHEMA,
        Reason.TENSORRT,
        Reason.CUSTOM,
        Reason.SUBGRAPH,
        Reason.GENERATOR,
        Reason.ACTIVATION,
    }
)


@wraps_graph_errors
def fp32_node_names(model: ir.Model, keep_fp32: Sequence[str] = ()) -> frozenset[str]:
    """Find the nodes of the main graph that an FP16 engine should compute in FP32.

    The rules are those of :func:`~trt_native.passes.autocast.autocast` for FP16, less those about
    ONNX types and about the FP16 of TensorRT-RTX. Fills in missing value types and shapes; changes
    nothing else.

    Returns:
        Their names; nodes without a name cannot be pinned.

    Raises:
        SpecError: A pattern matches no node.
        ModelError: A value's type is unknown.
    """
    infer_types(model)
    kept = NodeClassifier(model, FLOAT16, match_fp32_patterns(model, keep_fp32)).kept
    return frozenset(n.name for n, why in kept.items() if n.name and why not in _OTHER_REASONS)


def pins_nodes(precision: ResolvedPrecision) -> bool:
    """Whether layers take reduced types from builder flags, so that some must be pinned."""
    reduced = precision.calibrates or precision.applied in (Precision.FP16, Precision.BF16)
    return reduced and not precision.strongly_typed


def pinned_nodes(model: ir.Model) -> frozenset[str]:
    """Names of the nodes that are marked, and of those that took the place of one."""
    marked = (node for node in all_nodes(model.graph) if _PIN_KEY in node.metadata_props)
    return frozenset(node.name for node in marked if node.name)


class PinFp32Nodes(GraphPass):
    """Nodes that stay in FP32 on a weakly typed TensorRT."""

    name = "pin_fp32_nodes"
    title = "Pinning nodes to FP32"
    typed = True
    rewrites = False

    def needed(self, model: ir.Model) -> bool:  # noqa: ARG002
        """Whether the layers take reduced types from builder flags."""
        return pins_nodes(self.context.precision)

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Mark the nodes in their metadata."""
        names = fp32_node_names(model, self.context.config.keep_fp32)
        marked = [node for node in model.graph if node.name in names]
        for node in marked:
            node.metadata_props[_PIN_KEY] = ""
        return {"nodes": dict(Counter(node.op_type for node in marked))}

    def ensures(self, model: ir.Model) -> None:
        """Nothing: the graph stays as it is."""
