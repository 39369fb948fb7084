"""The magnitudes that a model's values reach with given data, for choosing what FP16 can hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from trt_native.calibration.batches import Batches
from trt_native.calibration.collect import ActivationSource
from trt_native.calibration.model_ranges import Ranges
from trt_native.config import FixedValues
from trt_native.graph.fixed_inputs import fix_inputs
from trt_native.graph.inference import infer_types
from trt_native.graph.nodes import constant_of, is_fp32
from trt_native.graph.onnx_file import read_model
from trt_native.passes.autocast_constants import is_finite
from trt_native.passes.autocast_operators import PASSES_MASKS
from trt_native.passes.normalize import normalize
from trt_native.progress import Progress

__all__ = ["measure_magnitudes", "read_normalized"]


def measure_magnitudes(
    path: Path,
    batches: Batches,
    source: ActivationSource,
    progress: Progress | None = None,
    fixed_inputs: FixedValues | None = None,
) -> Ranges:
    """Measure the largest magnitude of every FP32 value that the main graph computes.

    Values that infinite constants reach, such as masked scores, are not measured.

    Args:
        path: The ONNX file.
        batches: The data, checked against it.
        source: Runs the model.
        progress: Receives progress callbacks.
        fixed_inputs: Values of the inputs that the data lacks, as they are constants of the plan.

    Returns:
        The magnitudes by the names of the normalized graph.

    Raises:
        CalibrationError: a value is NaN or infinite, or the data cannot be used.
        UnsupportedError: the source cannot run the model.
    """
    model = read_normalized(path, fixed_inputs or {})
    tensors = _finite_values(model.graph)
    found: Mapping[str, float] = {}
    if tensors:
        found = source(model, tensors, batches, histograms=False, progress=progress).amax
    origin = {"data": batches.source, "batches": len(batches), "runner": source.name}
    return Ranges(found, {}, origin)


def read_normalized(path: Path, fixed_inputs: FixedValues) -> ir.Model:
    """Read a model to run it on data: normalized, with types, and with some inputs as constants."""
    model = read_model(path)
    fix_inputs(model, fixed_inputs)
    normalize(model)
    infer_types(model)
    return model


def _finite_values(graph: ir.Graph) -> list[str]:
    infinite: set[ir.Value] = set()
    names = []
    for node in graph:
        if node.op_type in PASSES_MASKS and any(v in infinite or _masks(v) for v in node.inputs):
            infinite.update(node.outputs)
        names += [v.name for v in node.outputs if v.name and v not in infinite and is_fp32(v)]
    return names


def _masks(value: ir.Value | None) -> bool:
    """Whether a value is a constant with infinite elements."""
    constant = constant_of(value) if value is not None and is_fp32(value) else None
    return constant is not None and not is_finite(constant)
