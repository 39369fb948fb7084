#!/usr/bin/env python3
"""Error of a model quantized in each way, on calibration batches held back; needs no GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from onnx.reference import ReferenceEvaluator

from trt_native.arrays import Array, Batch
from trt_native.builder.quantize_file import quantize_onnx
from trt_native.calibration.batches import Batches, read_batches
from trt_native.calibration.collect import calibrate
from trt_native.calibration.folder import write_batches
from trt_native.cli.console import report_errors, table
from trt_native.config import CalibrationMethod, Precision, QuantizationSpec
from trt_native.graph.onnx_file import read_model, tensor_specs

WAYS: list[tuple[Precision, CalibrationMethod | str]] = [
    (Precision.INT8, method) for method in CalibrationMethod
]
WAYS += [
    (Precision.FP8, CalibrationMethod.MINMAX),
    (Precision.INT8_WEIGHTS, ""),
    (Precision.INT4_WEIGHTS, ""),
    (Precision.INT4_WEIGHTS, "awq"),
]


@report_errors
def compare(
    model: Path,
    data: Annotated[str, typer.Option()],
    preset: str = "diffusion-unet",
    held_out: Annotated[int, typer.Option(min=1, help="Batches to measure with.")] = 2,
    block_size: Annotated[int, typer.Option(help="For INT4.")] = 64,
) -> None:
    """Calibrate on all but the last batches; print the relative L2 error of the first output."""
    batches = read_batches(data, tensor_specs(read_model(model))[0])
    held = [batches[index] for index in range(len(batches) - held_out, len(batches))]
    expected = outputs(model, held)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_batches(Path(folder) / "data", batches[:-held_out], model=model.name)
        for precision, method in WAYS:
            spec = QuantizationSpec(preset=preset)
            if isinstance(method, CalibrationMethod):
                cache = Path(folder) / f"{method}.calib"
                calibrated(model, batches[:-held_out], method, cache)
                spec = QuantizationSpec(preset=preset, calibration_cache=cache)
            elif precision is Precision.INT4_WEIGHTS:
                samples = str(Path(folder) / "data") if method else None
                spec = QuantizationSpec(
                    preset=preset, block_size=block_size, calibration_data=samples
                )
            written = Path(folder) / "quantized.onnx"
            report = quantize_onnx(model, written, precision, spec).report
            found = outputs(written, held)
            errors = (
                np.linalg.norm(f - e) / np.linalg.norm(e)
                for f, e in zip(found, expected, strict=True)
            )
            texts = ", ".join(f"{error:.3f}" for error in errors)
            rows.append((precision, method, f"{report.coverage:.0%}", texts))
    table("Relative L2 error", ("format", "method", "multiply-adds", "by batch"), rows)


def calibrated(model: Path, batches: Batches, method: CalibrationMethod, path: Path) -> None:
    """Write the cache, unless it is there."""
    if not path.exists():
        calibrate(model, batches, method=method).save(path)


def outputs(model: Path, batches: Sequence[Batch]) -> list[Array]:
    """The model's first output for each batch, by ``onnx.reference``."""
    evaluator = ReferenceEvaluator(str(model))
    runs: list[Any] = [evaluator.run(None, dict(batch)) for batch in batches]
    return [run[0].astype(np.float64) for run in runs]


if __name__ == "__main__":
    typer.run(compare)
