"""The ranges of a model's activations, from a calibration cache or from calibration data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_native.arrays import Array
from trt_native.calibration.batches import Batches
from trt_native.calibration.caches import CalibrationCache
from trt_native.calibration.collect import ActivationSource, calibrate
from trt_native.calibration.rows import RowReader
from trt_native.config import QUANTIZED_OPS, CalibrationMethod, FixedValues, Precision
from trt_native.errors import CalibrationError
from trt_native.files import sha256_of_file
from trt_native.progress import Progress
from trt_native.shapes import Shape, parse_shape

__all__ = ["NO_RANGES", "Ranges", "find_ranges", "load_ranges"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of the activations of a model, found by calibration.

    Attributes:
        amax: Tensor to the magnitude that becomes the largest quantized one.
        shapes: For each input, a shape it had; empty where that is not known.
        origin: Origin of the ranges, as JSON can hold it.
        rows: For weights alone, samples of what products read, float32[rows, K].
    """

    amax: Mapping[str, float]
    shapes: Mapping[str, Shape]
    origin: Mapping[str, Any]
    rows: Mapping[RowReader, Array] = field(default_factory=dict)


NO_RANGES = Ranges({}, {}, {})
"""Enough for weights alone."""


def load_ranges(path: Path, files: Mapping[str, Any], precision: Precision) -> Ranges:
    """Read the ranges of a model from a calibration cache.

    For FP8 they are the largest magnitudes that calibration saw, where the cache's JSON file
    records them: clipping, which gains INT8 precision, gains a floating-point format nothing.

    Args:
        path: The cache.
        files: The result of :func:`~trt_native.graph.onnx_file.hash_files` for the model.
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
            "%s: without %s.json it is unknown which model this cache was made for",
            path,
            path.name,
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
    fixed_inputs: FixedValues | None = None,
) -> Ranges:
    """Find the ranges of a model with calibration data.

    Args:
        model: The ONNX file.
        batches: The data, checked against it.
        precision: INT8 or FP8; FP8 takes the largest magnitudes with any method.
        method: Method that derives ranges from values; the mean squared error if None.
        progress: Receives progress callbacks.
        ops: The operators to quantize.
        source: Runs the model; ``onnx.reference`` if None.
        fixed_inputs: Values of the inputs that the data lacks, as they are constants of the plan.

    Raises:
        CalibrationError, ModelError, UnsupportedError: as
            :func:`trt_native.calibration.collect.calibrate`.
    """
    if precision is Precision.FP8:
        method = CalibrationMethod.MINMAX
    method = method or CalibrationMethod.MSE
    cache = calibrate(
        model, batches, method=method, ops=ops, source=source, progress=progress,
        fixed_inputs=fixed_inputs,
    )  # fmt: skip
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
