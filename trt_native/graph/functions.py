"""Model-local functions."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from trt_native.graph.validity import wraps_graph_errors

__all__ = ["inline_functions"]


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
