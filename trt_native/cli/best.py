"""``trt-native build --precision best``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trt_native.backends.registry import load_backend
from trt_native.builder.isolated import Job, build_with_retries, warming_error
from trt_native.cli.console import print_json, stderr, table
from trt_native.config import BuildConfig, QuantizationSpec
from trt_native.errors import BuildError, TrtNativeError
from trt_native.progress import phase
from trt_native.progress_bars import ProgressDisplay
from trt_native.units import counted, format_bytes

if TYPE_CHECKING:
    from trt_native.builder.select_precision import Candidate, SelectionReport

__all__ = ["build_best"]


def build_best(
    job: Job,
    quantization: QuantizationSpec,
    max_error: float | None,
    timeout_s: float | None,
    retry: bool,
    json: bool,
) -> None:
    """Build several precisions in processes of their own, measure them, and keep one.

    Args:
        job: The build; its precision and quantization are ignored.
        quantization: Nodes to quantize, with calibration data.
        max_error: The most that a plan's relative error may be; None for the default.
        timeout_s: Longest time in seconds, for all builds together.
        retry: As for one build.
        json: Whether to print JSON.
    """
    from trt_native.builder.select_precision import DEFAULT_MAX_ERROR, select_precision
    from trt_native.runtime.warming import check_warming, warm_plan

    if job.warm:
        check_warming(load_backend(job.backend), job.target, job.config)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with ProgressDisplay(stderr) as progress:

        def build(config: BuildConfig, target: Path) -> None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise BuildError(
                    "no time was left for this build; allow more time", options=("timeout_s",)
                )
            stderr.print(f"building {config.precision}", highlight=False)
            wanted = replace(job, config=config, target=target, warm=False)
            build_with_retries(wanted, progress, timeout_s=left, retry=retry)

        selection = select_precision(
            job.model,
            job.config,
            quantization,
            max_error=DEFAULT_MAX_ERROR if max_error is None else max_error,
            backend=job.backend,
            build=build,
            progress=progress,
        )
        selection.plan.save(job.target)
        if job.warm:
            with phase(progress, "Compiling kernels for the GPU"):
                try:
                    warm_plan(job.target)
                except TrtNativeError as error:
                    raise warming_error(job.target, error) from None
    if json:
        manifest = selection.plan.manifest
        print_json(
            {
                "path": str(job.target),
                "selection": selection.to_json(),
                **(manifest.to_json() if manifest else {}),
            }
        )
    else:
        _print(job.target, selection)


def _print(target: Path, selection: SelectionReport) -> None:
    calibrated = counted(selection.calibration_batches, "batch", "es")
    data = f"{calibrated} to calibrate, {selection.held_out} to compare"
    columns = ("precision", "error", "ms", "MiB", "")
    rows = (tuple(_row(candidate, selection)) for candidate in selection.candidates)
    table("Plans compared", columns, rows)
    size = format_bytes(selection.plan.size)
    chosen = f"{selection.chosen}: the fastest with an error of at most {selection.max_error:g}"
    table("Built", ("", ""), [("plan", f"{target} ({size})"), ("chosen", chosen), ("data", data)])


def _row(candidate: Candidate, selection: SelectionReport) -> Iterator[str]:
    yield str(candidate.precision)
    yield "" if candidate.error is None else f"{candidate.error:.4f}"
    yield "" if candidate.latency_ms is None else f"{candidate.latency_ms:.3f}"
    yield "" if candidate.plan_bytes is None else f"{candidate.plan_bytes / 2**20:.1f}"
    if candidate.precision is selection.chosen:
        yield "chosen"
    elif candidate.failure is not None:
        yield candidate.failure
    else:
        over = candidate.error is not None and not candidate.error <= selection.max_error
        yield "too large an error" if over else ""
