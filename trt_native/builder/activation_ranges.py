"""The ranges of the activations that passes take, from a calibration cache or calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.backends.base import Backend
from trt_native.builder.magnitudes import measure_magnitudes, read_normalized
from trt_native.calibration.batches import Batches, read_batches
from trt_native.calibration.collect import ActivationSource
from trt_native.calibration.model_ranges import NO_RANGES, Ranges, find_ranges, load_ranges
from trt_native.calibration.rows import RowReader
from trt_native.config import BuildConfig, CalibrationRunner
from trt_native.cuda import gpu_info
from trt_native.errors import SpecError
from trt_native.graph.quantizable import quantizable_tensors
from trt_native.passes.base import GraphPass
from trt_native.passes.quantize import Quantize
from trt_native.progress import Progress, phase
from trt_native.shapes import TensorSpec

__all__ = [
    "any_ranges",
    "cached_ranges",
    "calibrated_ranges",
    "calibration_batches",
    "check_ranges",
    "with_ranges",
]


def check_ranges(config: BuildConfig) -> None:
    """Check that ranges are given for a precision that needs some.

    Raises:
        SpecError: they are not.
    """
    spec = config.quantization
    if (
        config.precision.needs_ranges
        and spec.calibration_cache is None
        and spec.calibration_data is None
    ):
        raise SpecError(
            f"precision {config.precision} needs the ranges of the activations: give a calibration"
            " cache or calibration data, or use precision int8-weights, which needs neither",
            options=("calibration_cache", "calibration_data"),
        )


def cached_ranges(config: BuildConfig, files: Mapping[str, Any]) -> Ranges:
    """The ranges in the calibration cache; none without one.

    Args:
        config: The configuration.
        files: The result of :func:`~trt_native.graph.onnx_file.hash_files` for the model.

    Raises:
        CalibrationError: the cache cannot be read, or was made for another model.
    """
    cache = config.quantization.calibration_cache
    return NO_RANGES if cache is None else load_ranges(cache, files, config.precision)


def calibration_batches(
    config: BuildConfig, inputs: Sequence[TensorSpec], progress: Progress | None
) -> Batches | None:
    """The calibration data, checked against a model's inputs; None without any.

    Raises:
        CalibrationError: the data cannot be read, or does not fit.
    """
    if config.quantization.calibration_data is None:
        return None
    with phase(progress, "Checking the calibration data"):
        return read_batches(config.quantization.calibration_data, inputs)


def any_ranges(graph: ir.Model) -> Ranges:
    """A range for every tensor that could need one, to see what would be quantized."""
    return replace(NO_RANGES, amax=dict.fromkeys(quantizable_tensors(graph), 1.0))


def with_ranges(passes: Sequence[GraphPass], ranges: Ranges) -> tuple[GraphPass, ...]:
    """The passes, which have the ranges from now on."""
    for one in passes:
        one.context = replace(one.context, ranges=ranges)
    return tuple(passes)


def calibrated_ranges(
    path: Path,
    graph: ir.Model,
    passes: Sequence[GraphPass],
    batches: Batches,
    *,
    config: BuildConfig,
    backend: str | Backend,
    ranges: Ranges = NO_RANGES,
    progress: Progress | None = None,
) -> Ranges:
    """The ranges of the activations, or samples of them, found with calibration data.

    Args:
        path: The ONNX file.
        graph: What was read from it, with early passes applied.
        passes: The passes that will run.
        batches: The calibration data.
        config: The configuration. Without a quantized precision, magnitudes are measured, by which
            FP16 is chosen.
        backend: Whose engines run the model where there is a GPU.
        ranges: What is returned where no pass takes ranges.
        progress: Receives progress callbacks.

    Raises:
        SpecError: there is nothing to quantize.
        CalibrationError, UnsupportedError: the data cannot be used, or the model cannot be run.
    """
    if not config.precision.quantized:
        return _measured_magnitudes(path, batches, config, backend, progress)
    quantize = next((one for one in passes if isinstance(one, Quantize)), None)
    if quantize is None:
        return ranges
    spec = config.quantization
    with_ranges([quantize], any_ranges(graph))
    quantize.quantize(graph, dry_run=True)  # nothing to quantize: say so before the work
    from trt_native.builder.engine_calibration import activation_source

    source = activation_source(
        spec.calibration_runner, backend=backend, memory_bytes=spec.calibration_memory_bytes
    )
    if config.precision.takes_samples:
        model = read_normalized(path, config.fixed_values())
        return _sampled_rows(model, quantize.row_readers(graph), batches, source, progress)
    with phase(progress, f"Calibrating with {source.name}"):
        return find_ranges(
            path,
            batches,
            config.precision,
            spec.calibration_method,
            progress,
            ops=quantize.ops(),
            source=source,
            fixed_inputs=config.fixed_values(),
        )


def _sampled_rows(
    model: ir.Model,
    readers: Sequence[RowReader],
    batches: Batches,
    source: ActivationSource,
    progress: Progress | None,
) -> Ranges:
    """Samples of what weights are multiplied by."""
    values = {value.name for node in model.graph for value in node.outputs}
    values |= {value.name for value in model.graph.inputs}
    known = [reader for reader in readers if reader.tensor in values]
    rows: Mapping[RowReader, Array] = {}
    if known:
        with phase(progress, f"Sampling activations with {source.name}"):
            rows = source.rows(model, known, batches, progress)
    origin = {"data": batches.source, "batches": len(batches), "method": "awq"}
    return replace(NO_RANGES, rows=rows, origin={**origin, "runner": source.name})


def _measured_magnitudes(
    path: Path,
    batches: Batches,
    config: BuildConfig,
    backend: str | Backend,
    progress: Progress | None,
) -> Ranges:
    """The magnitudes of all values."""
    spec, runner = config.quantization, config.quantization.calibration_runner
    if runner is CalibrationRunner.AUTO and gpu_info() is not None:
        runner = CalibrationRunner.ENGINE  # which never takes FP16, as AUTO may
    from trt_native.builder.engine_calibration import activation_source

    source = activation_source(runner, backend=backend, memory_bytes=spec.calibration_memory_bytes)
    with phase(progress, f"Measuring magnitudes with {source.name}"):
        return measure_magnitudes(path, batches, source, progress, config.fixed_values())
