"""Quantize an ONNX file with the ranges of a calibration cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from trt_native.backends.base import Backend
from trt_native.backends.registry import load_backend
from trt_native.builder.activation_ranges import (
    calibrated_ranges,
    calibration_batches,
    with_ranges,
)
from trt_native.calibration.model_ranges import NO_RANGES, load_ranges
from trt_native.config import BuildConfig, Precision, QuantizationSpec
from trt_native.errors import ModelError, SpecError
from trt_native.graph.dims import resolve_profiles
from trt_native.graph.onnx_file import (
    check_unchanged,
    hash_files,
    read_model,
    save_model,
    tensor_specs,
)
from trt_native.graph.outputs import check_outputs
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.pipelines import QUANTIZE, run_passes, select_passes
from trt_native.passes.quantize import QuantizationReport, Quantize, check_not_quantized
from trt_native.progress import Progress
from trt_native.shapes import ProfileSpec, Shape

__all__ = ["QuantizedFile", "quantize_onnx", "save_result"]


@dataclass(frozen=True)
class QuantizedFile:
    """Result of :func:`quantize_onnx`.

    Attributes:
        path: The ONNX file.
        external_data: The file with its weights next to it; None if they are inside.
        total_bytes: Size of both.
        calibration: Name, SHA-256 and method of the calibration cache, or the data's source and
            what ran it; empty without either.
        report: What was quantized.
        seconds: Duration.
    """

    path: Path
    external_data: Path | None
    total_bytes: int
    calibration: Mapping[str, Any]
    report: QuantizationReport
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data that ``json`` can write."""
        external = str(self.external_data) if self.external_data else None
        return {
            **dataclasses.asdict(self),
            "path": str(self.path),
            "external_data": external,
            "report": self.report.to_dict(),
        }


def quantize_onnx(
    model: Path,
    output: Path,
    precision: Precision,
    spec: QuantizationSpec,
    *,
    dims: ProfileSpec | None = None,
    backend: str | Backend | None = None,
    progress: Progress | None = None,
) -> QuantizedFile:
    """Write a quantized copy of an ONNX file, whole or not at all.

    Args:
        model: The file to quantize; external weights are next to it.
        output: The file to write; weights above 2 GB go to ``<name>.data`` next to it.
        precision: INT8, FP8, INT8_WEIGHTS or INT4_WEIGHTS.
        spec: What to quantize, with which calibration cache; for INT4 weights perhaps with
            calibration data.
        dims: Extents to count multiply-adds for, where they are not to be those of the
            calibration.
        backend: The TensorRT that will build the file, as for
            :func:`~trt_native.builder.build_plan.build_plan`: operators that it does not build in
            the format are left alone, or refused where ``spec`` names them. None: any.
        progress: Receives progress callbacks.

    Raises:
        UnsupportedError: no such TensorRT is installed, or it lacks what ``spec`` names; or the
            model's opset is too old and cannot be raised.
        SpecError: no calibration cache where one is needed; or see
            :func:`~trt_native.passes.quantize.quantize_model`.
        CalibrationError: the cache cannot be read, or was made for another model; or the data
            cannot be used.
        ModelError: the model cannot be read, or the output cannot be written; or as above.
    """
    started = time.perf_counter()
    if precision.needs_ranges and spec.calibration_cache is None:
        raise SpecError(
            f"{precision} needs the ranges of the activations: give a calibration cache,"
            " or quantize to int8-weights, which needs none",
            options=("calibration_cache",),
        )
    if precision.needs_ranges and spec.calibration_data is not None:
        raise SpecError(
            f"calibration data: {precision} takes a calibration cache; make one of the data",
            options=("calibration_data", "calibration_cache"),
        )
    config = BuildConfig(precision=precision, quantization=spec)
    chosen = None if backend is None else load_backend(backend)
    if chosen is not None:
        chosen.check(config)
    weights = Path(f"{output}.data")
    check_outputs([output, weights], reads=[spec.calibration_cache], models=[model])
    graph = read_model(model)
    check_not_quantized(graph)
    ranges = NO_RANGES
    if spec.calibration_cache is not None:
        ranges = load_ranges(spec.calibration_cache, hash_files(model, graph), precision)
    shapes = _shapes(graph, dims) if dims is not None else ranges.shapes
    context = PassContext(
        config=config,
        backend=chosen,
        precision=ResolvedPrecision(applied=precision, writes_qdq=True),
        ranges=replace(ranges, shapes=shapes),
    )
    passes = select_passes(QUANTIZE, graph, context)
    batches = calibration_batches(config, tensor_specs(graph)[0], progress)
    if batches is not None:
        ranges = calibrated_ranges(
            model, graph, passes, batches,
            config=config, backend=chosen or "auto", progress=progress,
        )  # fmt: skip
        passes = with_ranges(passes, replace(ranges, shapes=shapes))
    run_passes(passes, graph, progress)
    (report,) = (one.report for one in passes if isinstance(one, Quantize) and one.report)
    external, total_bytes = save_result(graph, output, model)
    seconds = time.perf_counter() - started
    return QuantizedFile(output, external, total_bytes, ranges.origin, report, seconds)


def _shapes(graph: ir.Model, dims: ProfileSpec) -> dict[str, Shape]:
    profiles = resolve_profiles(tensor_specs(graph)[0], [dims])
    return {name: shape.opt for profile in profiles for name, shape in profile.shapes.items()}


def save_result(
    graph: ir.Model,
    output: Path,
    model: Path,
    *,
    external: bool = False,
    states: Mapping[Path, tuple[int, int, int]] | None = None,
    progress: Progress | None = None,
) -> tuple[Path | None, int]:
    """Write what was made of an ONNX file, whole or not at all.

    Args:
        graph: The model to write.
        output: The file to write.
        model: The file that it was made from.
        external: Whether weights go to ``<name>.data`` next to it though they have room inside.
        states: The result of :func:`~trt_native.graph.onnx_file.file_states` for the files that it
            was made from, of which weights are read as they are written.
        progress: Receives progress callbacks.

    Returns:
        The file with the weights, if any, and the size of all files.

    Raises:
        ModelError: it cannot be written, is not valid, or a file that it was made from changed.
    """
    try:
        data, total_bytes = save_model(graph, output, progress, external=external)
    except OSError as error:
        raise ModelError(f"{output}: cannot be written: {error.strerror or error}") from None
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"{model}: what was made of it is not valid ONNX", str(error).splitlines()
        ) from None
    try:
        check_unchanged(states or {}, f"{output.name} was written; convert it")
    except ModelError:
        for file in (output, data):
            if file is not None:
                file.unlink(missing_ok=True)
        raise
    return data, total_bytes
