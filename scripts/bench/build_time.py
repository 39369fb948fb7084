#!/usr/bin/env python3
"""Time and memory of a build, beside TensorRT-RTX alone and `polygraphy convert`.

Each is a command in a process of its own, from its start to its end, in turns. Nothing is
rewritten,
as the models are FP32, and so are the plans, with TF32. Memory is the proportional set size of a
command's processes together. Linux only.
"""

from __future__ import annotations

import json as json_module
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import onnx
import typer
from build_memory import BARE, peak_memory
from networks import resnet50, yolov8n

from trt_native.cli.console import report_errors, table
from trt_native.units import format_bytes

_NETWORKS = {"ResNet-50": resnet50, "YOLOv8n": yolov8n}


@report_errors
def compare(
    polygraphy: Annotated[
        Path | None,
        typer.Option(help="A folder with Polygraphy: pip install --target FOLDER polygraphy."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each is run.")] = 7,
    model: Annotated[list[Path] | None, typer.Option(help="Other models. Repeatable.")] = None,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Build each model in each way; print medians of the time, the most memory, and ratios."""
    with tempfile.TemporaryDirectory() as name:
        paths = {path.name: path for path in model or []}
        if not paths:
            paths = {title: Path(name) / f"{title}.onnx" for title in _NETWORKS}
            for title, path in paths.items():
                onnx.save(_NETWORKS[title](), path)
        figures = {
            title: _measured(path, Path(name) / "m.plan", polygraphy, rounds)
            for title, path in paths.items()
        }
    rows = []
    for title, found in figures.items():
        ours = found["build"]
        for way, figure in found.items():
            ratios = (f"{ours[key] / figure[key]:.2f}" for key in ("seconds", "bytes"))
            size = format_bytes(int(figure["bytes"]))
            rows.append((title, way, f"{figure['seconds']:.2f} s", size, *ratios))
    head = ("model", "command", "time", "memory", "build / it, time", "memory")
    table("Builds", head, rows)
    if json is not None:
        json.write_text(json_module.dumps(figures, indent=1) + "\n")


def _measured(
    model: Path, plan: Path, polygraphy: Path | None, rounds: int
) -> dict[str, dict[str, float]]:
    ways: dict[str, list[str | Path]] = {
        "TensorRT alone": [sys.executable, "-c", BARE, model, plan],
        "build": [
            sys.executable, "-m", "trt_native", "build", model, "-o", plan,
            "--backend", "rtx", "--precision", "tf32", "--no-cache",
        ],
    }  # fmt: skip
    if polygraphy is not None:
        os.environ["PYTHONPATH"] = f"{polygraphy}:{os.environ.get('PYTHONPATH', '')}"
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
        command = polygraphy / "bin" / "polygraphy"
        ways["polygraphy convert"] = [sys.executable, command, "convert", model, "-o", plan]
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, words in ways.items():
            plan.unlink(missing_ok=True)
            started = time.monotonic()
            peak_memory(words, sampled=False)
            times[way].append(time.monotonic() - started)
            if not plan.stat().st_size:
                raise typer.Exit(1)
    memory = {way: max(peak_memory(words) for _ in range(2)) for way, words in ways.items()}
    return {
        way: {"seconds": statistics.median(found), "bytes": float(memory[way])}
        for way, found in times.items()
    }


if __name__ == "__main__":
    typer.run(compare)
