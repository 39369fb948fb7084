#!/usr/bin/env python3
"""Time to refit a plan with another checkpoint against the time to build it again; needs a GPU."""

from __future__ import annotations

import json as json_module
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from trt_native.builder.build_plan import build_plan
from trt_native.builder.refit import refit_plan
from trt_native.cli.console import report_errors, stderr, table
from trt_native.config import BuildConfig, Precision
from trt_native.cuda import require_gpu
from trt_native.errors import SpecError, TrtNativeError
from trt_native.plans.plan import Plan
from trt_native.runtime import Session
from trt_native.shapes import ProfileSpec
from trt_native.units import format_bytes

_UNET_DIMS = ("batch=1:2:2", "frames=1:2:4", "height=16:16:32", "width=16:16:32")


@report_errors
def compare(
    old: Annotated[Path | None, typer.Option(help="ONNX file the plan is built from.")] = None,
    new: Annotated[Path | None, typer.Option(help="The same with other weights.")] = None,
    preset: Annotated[str, typer.Option(help="U-Net to export twice without those.")] = "small",
    dim: Annotated[list[str] | None, typer.Option(help="As for trt-native build.")] = None,
    precision: str = "auto",
    limit: Annotated[float, typer.Option(help="Largest relative L2 difference.")] = 1e-6,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Build, refit, strip; check that the outputs are those of a build; print the times."""
    gpu = require_gpu()
    if (old is None) != (new is None):
        raise SpecError("give both --old and --new, or neither")
    with tempfile.TemporaryDirectory() as name:
        if old is None or new is None:
            old, new = (_export(Path(name) / f"{seed}.onnx", preset, seed) for seed in (0, 1))
            dim = dim or list(_UNET_DIMS)
        profiles = (ProfileSpec.parse(dim),) if dim else ()
        config = BuildConfig(profiles=profiles, precision=Precision.parse(precision), refit=True)
        rows, figures = _measure(old, new, config, limit)
    table(f"{gpu.name}, driver for CUDA {gpu.driver}", ("", "seconds", "size", "is"), rows)
    if json is not None:
        figures |= {"gpu": gpu.name, "driver": gpu.driver, "dims": dim, "precision": precision}
        json.write_text(json_module.dumps(figures, indent=1) + "\n")


def _export(path: Path, preset: str, seed: int) -> Path:
    from trt_native.models.latentsync.export import export_latentsync

    with stderr.status(f"exporting {preset} with the weights of seed {seed}"):
        export_latentsync(path, config=preset, random_seed=seed)
    return path


def _measure(
    old: Path, new: Path, config: BuildConfig, limit: float
) -> tuple[list[tuple[object, ...]], dict[str, Any]]:
    plain = replace(config, refit=False)
    stripped = replace(config, strip_weights=True)
    work: dict[str, Callable[[dict[str, Plan]], Plan]] = {
        "build, not refittable": lambda _: build_plan(new, plain),
        "build OLD": lambda _: build_plan(old, config),
        "build NEW": lambda _: build_plan(new, config),
        "refit OLD to NEW": lambda made: refit_plan(made["build OLD"], new),
        "build OLD, stripped": lambda _: build_plan(old, stripped),
        "refit stripped to NEW": lambda made: refit_plan(made["build OLD, stripped"], new),
    }
    made: dict[str, Plan] = {}
    rows: list[tuple[object, ...]] = []
    figures: dict[str, Any] = {}
    for name, step in work.items():
        with stderr.status(name):
            started = time.perf_counter()
            made[name] = step(made)
            seconds = time.perf_counter() - started
        stderr.print(f"{name}: {seconds:.2f} s")
        size = len(made[name].data)
        manifest = made[name].manifest
        parts = manifest.seconds if manifest else {}
        figures[name] = {"seconds": round(seconds, 3), "bytes": size, "parts": dict(parts)}
    expected = _outputs(made["build NEW"])
    for name in ("build, not refittable", "refit OLD to NEW", "refit stripped to NEW"):
        figures[name]["difference"] = difference = _difference(_outputs(made[name]), expected)
        if name.startswith("refit") and not difference <= limit:
            raise TrtNativeError(f"{name}: its outputs differ by {difference:.1e} from the build's")
    for name, figure in figures.items():
        apart = figure.get("difference")
        text = "" if apart is None else f"{apart:.1e} from build NEW"
        rows.append((name, f"{figure['seconds']:.2f}", format_bytes(figure["bytes"]), text))
    return rows, figures


def _outputs(plan: Plan) -> list[np.ndarray[Any, np.dtype[Any]]]:
    generator = np.random.default_rng(0)
    with Session(plan) as session:
        inputs = {}
        for tensor in session.engine.inputs:
            shape = tensor.profiles[0].opt if tensor.profiles else tensor.shape
            values = generator.standard_normal(shape, np.float32)
            integer = np.issubdtype(np.dtype(tensor.dtype), np.integer)
            inputs[tensor.name] = (values * 0 + 500 if integer else values).astype(tensor.dtype)
        return [output.astype(np.float64) for output in session.run(inputs).values()]


def _difference(found: list[Any], expected: list[Any]) -> float:
    """The largest relative L2 difference of an output."""
    return max(
        float(np.linalg.norm(f - e) / np.linalg.norm(e))
        for f, e in zip(found, expected, strict=True)
    )


if __name__ == "__main__":
    typer.run(compare)
