"""Quantize an ONNX file with the ranges of a calibration cache."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import onnx
import onnx_ir as ir

from trt_native.calibration.batches import Batches
from trt_native.calibration.caches import CalibrationCache
from trt_native.calibration.collect import ActivationSource, calibrate
from trt_native.config import QUANTIZED_OPS, CalibrationMethod, Precision, QuantizationSpec
from trt_native.errors import CalibrationError, ModelError, SpecError
from trt_native.files import check_writable, sha256_of_file
from trt_native.graph.dims import resolve_profiles
from trt_native.graph.onnx_file import hash_files, read_model, save_model, tensor_specs
from trt_native.passes.quantize import Format, QuantizationReport, quantize_model
from trt_native.shapes import ProfileSpec, Shape, parse_shape

if TYPE_CHECKING:
    from trt_native.progress import Progress

__all__ = [
    "NO_RANGES",
    "QuantizedFile",
    "Ranges",
    "find_ranges",
    "load_ranges",
    "quantize_graph",
    "quantize_onnx",
]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ranges:
    """What calibration tells about the activations of a model.

    Attributes:
        amax: Tensor to the magnitude that becomes the largest quantized one.
        shapes: For each input, a shape it had; empty where that is not known.
        origin: Where the ranges come from, as JSON can hold it.
    """

    amax: Mapping[str, float]
    shapes: Mapping[str, Shape]
    origin: Mapping[str, Any]


NO_RANGES = Ranges({}, {}, {})
"""Enough for weights alone."""


def load_ranges(path: Path, files: Mapping[str, Any], precision: Precision) -> Ranges:
    """Read the ranges of a model from a calibration cache.

    For FP8 they are the largest magnitudes that calibration saw, where the cache's JSON file tells
    them: clipping, which gains INT8 precision, gains a floating-point format nothing.

    Args:
        path: The cache.
        files: What :func:`~trt_native.graph.onnx_file.hash_files` says of the model.
        precision: INT8 or FP8.

    Raises:
        CalibrationError: the cache cannot be read, or was made for another model.
    """
    cache = CalibrationCache.load(path)
    try:
        cache.check_model(files)
        digest = sha256_of_file(path)
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error.message}") from None
    except OSError as error:
        raise CalibrationError(f"cannot read {path}: {error.strerror}") from None
    known = cache.provenance
    if known is None:
        _LOGGER.warning(
            "%s: without %s.json nothing tells which model this cache was made for", path, path.name
        )
    origin = {"file": path.name, "sha256": digest, "method": known.method if known else None}
    return _ranges(cache, precision, origin)


def find_ranges(
    model: Path,
    batches: Batches,
    precision: Precision,
    method: CalibrationMethod | None = None,
    progress: Progress | None = None,
    *,
    ops: Sequence[str] = QUANTIZED_OPS,
    source: ActivationSource | None = None,
) -> Ranges:
    """Find the ranges of a model with calibration data.

    Args:
        model: The ONNX file.
        batches: The data, checked against it.
        precision: INT8 or FP8; FP8 takes the largest magnitudes whatever the method.
        method: How ranges follow from values; the mean squared error if None.
        progress: Hears how it goes on.
        ops: The operators to quantize.
        source: What runs the model; ``onnx.reference`` if None.

    Raises:
        CalibrationError, ModelError, UnsupportedError: as
            :func:`trt_native.calibration.collect.calibrate`.
    """
    if precision is Precision.FP8:
        method = CalibrationMethod.MINMAX
    method = method or CalibrationMethod.MSE
    cache = calibrate(model, batches, method=method, ops=ops, source=source, progress=progress)
    origin = {
        "data": batches.source,
        "batches": len(batches),
        "method": cache.provenance.method if cache.provenance else str(method),
        "runner": cache.provenance.runner if cache.provenance else None,
    }
    return _ranges(cache, precision, origin)


def _ranges(cache: CalibrationCache, precision: Precision, origin: Mapping[str, Any]) -> Ranges:
    amax = {name: cache.threshold(name) for name in cache.scales}
    if precision is Precision.FP8:
        amax = {name: cache.amax(name) or threshold for name, threshold in amax.items()}
    shapes = cache.provenance.shapes if cache.provenance else {}
    first = {name: parse_shape(texts[0]) for name, texts in shapes.items() if texts}
    return Ranges(amax, first, origin)


def quantize_graph(
    graph: ir.Model,
    precision: Precision,
    spec: QuantizationSpec,
    ranges: Ranges,
    *,
    shapes: Mapping[str, Shape],
    note: str = "",
    dry_run: bool = False,
) -> QuantizationReport:
    """Apply :func:`~trt_native.passes.quantize.quantize_model` as a specification says.

    Args:
        graph: The model; rewritten in place.
        precision: INT8, FP8 or INT8_WEIGHTS.
        spec: What to quantize; its calibration cache is not read.
        ranges: The ranges of the activations.
        shapes: Shape of each dynamic input, to count multiply-adds for.
        note: What to add where too little can be quantized.
        dry_run: Only report.

    Raises:
        SpecError, ModelError, UnsupportedError: as the function above.
    """
    return quantize_model(
        graph,
        ranges.amax,
        format=cast("Format", precision.value),
        ops=spec.ops or None,
        skip=spec.exclude,
        preset=spec.preset,
        min_coverage=spec.min_coverage,
        shapes=shapes,
        note=note,
        dry_run=dry_run,
    )


@dataclass(frozen=True)
class QuantizedFile:
    """What :func:`quantize_onnx` wrote.

    Attributes:
        path: The ONNX file.
        external_data: The file with its weights beside it; None if they are inside.
        total_bytes: Size of both.
        calibration: Name, SHA-256 and method of the calibration cache; empty without one.
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
) -> QuantizedFile:
    """Write a quantized copy of an ONNX file, whole or not at all.

    Args:
        model: The file to quantize; external weights lie beside it.
        output: The file to write; weights above 2 GB go to ``<name>.data`` beside it.
        precision: INT8, FP8 or INT8_WEIGHTS.
        spec: What to quantize, with which calibration cache.
        dims: Extents to count multiply-adds for, where they are not to be those of the
            calibration.

    Raises:
        SpecError: no calibration cache where one is needed; or see
            :func:`~trt_native.passes.quantize.quantize_model`.
        CalibrationError: the cache cannot be read, or was made for another model.
        ModelError: the model cannot be read, or the output cannot be written; or as above.
        UnsupportedError: the model's opset is too old and cannot be raised.
    """
    started = time.perf_counter()
    if precision.needs_ranges and spec.calibration_cache is None:
        raise SpecError(
            f"{precision} needs the ranges of the activations: give a calibration cache"
            " (--calibration-cache FILE), or quantize to int8-weights, which needs none"
        )
    _check_output(model, output)
    graph = read_model(model)
    ranges = NO_RANGES
    if spec.calibration_cache is not None:
        ranges = load_ranges(spec.calibration_cache, hash_files(model, graph), precision)
    shapes = _shapes(graph, dims) if dims is not None else ranges.shapes
    report = quantize_graph(graph, precision, spec, ranges, shapes=shapes)
    try:
        external, total_bytes = save_model(graph, output)
    except OSError as error:
        raise ModelError(f"{output}: cannot be written: {error.strerror or error}") from None
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"{model}: the quantized model is not valid ONNX", str(error).splitlines()
        ) from None
    seconds = time.perf_counter() - started
    return QuantizedFile(output, external, total_bytes, ranges.origin, report, seconds)


def _check_output(model: Path, output: Path) -> None:
    check_writable(output, reads=[model])


def _shapes(graph: ir.Model, dims: ProfileSpec) -> dict[str, Shape]:
    profiles = resolve_profiles(tensor_specs(graph)[0], [dims])
    return {name: shape.opt for profile in profiles for name, shape in profile.shapes.items()}
