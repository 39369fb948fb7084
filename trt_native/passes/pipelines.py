"""The order in which passes are applied, and running them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from trt_native.errors import TrtNativeError
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.autocast import Autocast
from trt_native.passes.base import GraphPass, PassContext
from trt_native.passes.break_fusions import BreakFusions
from trt_native.passes.bypass_quantizers import BypassQuantizers
from trt_native.passes.change_opset import ChangeOpset
from trt_native.passes.decompose_norms import DecomposeNorms
from trt_native.passes.fix_inputs import FixInputs
from trt_native.passes.fold_shapes import FoldShapes
from trt_native.passes.lower_conditionals import LowerConditionals
from trt_native.passes.lower_einsum import LowerEinsum
from trt_native.passes.lower_functions import LowerFunctions
from trt_native.passes.lower_fused import LowerFused
from trt_native.passes.lower_integers import LowerIntegers
from trt_native.passes.lower_operators import LowerOperators
from trt_native.passes.lower_pools import LowerPools
from trt_native.passes.lower_quantized import LowerQuantized
from trt_native.passes.lower_recurrent import LowerRecurrent
from trt_native.passes.mark_outputs import MarkOutputs
from trt_native.passes.name_nodes import NameNodes
from trt_native.passes.normalize import Normalize
from trt_native.passes.parser_workarounds import ParserWorkarounds
from trt_native.passes.pin_fp32_nodes import PinFp32Nodes
from trt_native.passes.quantize import Quantize
from trt_native.passes.reject_unsupported import RejectUnsupported
from trt_native.passes.replace_subgraphs import ReplaceSubgraphs
from trt_native.passes.replace_types import ReplaceTypes
from trt_native.passes.reshape_tokens import ReshapeTokens
from trt_native.passes.split_fp32_products import SplitFp32Products
from trt_native.passes.widen_recurrent import WidenRecurrent
from trt_native.progress import Progress, phase

__all__ = [
    "BUILD",
    "CALIBRATE",
    "CONVERT",
    "LOWER",
    "QUANTIZE",
    "describe_passes",
    "run_passes",
    "select_passes",
]

BUILD: tuple[type[GraphPass], ...] = (
    FixInputs,
    Normalize,
    ReplaceSubgraphs,
    LowerFused,  # before shapes are inferred through them
    FoldShapes,
    LowerQuantized,
    LowerIntegers,
    ReplaceTypes,
    LowerPools,
    LowerOperators,
    LowerFunctions,
    RejectUnsupported,
    LowerConditionals,
    LowerEinsum,
    LowerRecurrent,
    WidenRecurrent,
    BypassQuantizers,
    NameNodes,
    PinFp32Nodes,
    Quantize,
    Autocast,
    ReshapeTokens,
    ParserWorkarounds,
    SplitFp32Products,
    BreakFusions,
    MarkOutputs,
)
"""For a plan."""

CALIBRATE: tuple[type[GraphPass], ...] = (
    Normalize,
    LowerFused,  # before shapes are inferred through them
    FoldShapes,
    LowerQuantized,
    LowerIntegers,
    ReplaceTypes,
    LowerPools,
    LowerOperators,
    LowerFunctions,
    RejectUnsupported,
    LowerConditionals,
    WidenRecurrent,
    Autocast,
    DecomposeNorms,
    ParserWorkarounds,
    BreakFusions,
)
"""For an engine that returns the tensors inside a model."""

QUANTIZE: tuple[type[GraphPass], ...] = (Normalize, Quantize)
"""For a quantized ONNX file."""

CONVERT: tuple[type[GraphPass], ...] = (
    FixInputs,
    Normalize,
    LowerFused,
    FoldShapes,
    Quantize,
    Autocast,
    ChangeOpset,
)
"""For an ONNX file for any tool."""

LOWER: tuple[type[GraphPass], ...] = (*BUILD, ChangeOpset)
"""For an ONNX file for one backend."""


@wraps_graph_errors
def select_passes(
    pipeline: Sequence[type[GraphPass]], model: ir.Model, context: PassContext
) -> tuple[GraphPass, ...]:
    """Choose the passes of a pipeline that a model needs; run the early ones.

    Raises:
        UnsupportedError, ModelError: a pass cannot do what is needed.
    """
    selected = []
    for pass_type in pipeline:
        one = pass_type(context)
        if one.needed(model):
            selected.append(one)
            if one.early:
                _run(one, model)
    return tuple(selected)


@wraps_graph_errors
def run_passes(
    passes: Sequence[GraphPass], model: ir.Model, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Apply selected passes to a model, in place.

    Returns:
        For each pass its ``name``, a ``summary`` in one or a few lines, and what it did.

    Raises:
        SpecError, ModelError, UnsupportedError: as the passes.
    """
    for one in passes:
        if not one.early:
            with phase(progress, one.title):
                _run(one, model)
    return [_described(one, one.record) for one in passes]


def describe_passes(passes: Sequence[GraphPass], model: ir.Model) -> list[dict[str, Any]]:
    """Describe what selected passes would do, like :func:`run_passes`, without doing it."""
    return [_described(one, one.record if one.early else one.preview(model)) for one in passes]


def _described(one: GraphPass, record: Any) -> dict[str, Any]:
    return {"name": one.name, **record, "summary": one.summarize(record)}


def _run(one: GraphPass, model: ir.Model) -> None:
    """Apply a pass, with an error of a precondition as itself."""
    try:
        one(model)
    except ir.passes.InvariantError as error:
        if isinstance(error.__cause__, TrtNativeError):
            raise error.__cause__ from None
        raise
