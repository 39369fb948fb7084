#!/usr/bin/env python3
"""Time and memory of the LatentSync U-Net's export: written directly, and traced by PyTorch.

Each way runs in a process of its own, from a checkpoint's file to an ONNX file. The outputs of the
two files are compared first, by onnx.reference on small latents.
"""

from __future__ import annotations

import json as json_module
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from trt_native.cli.console import report_errors, stderr, table
from trt_native.errors import ExportError, ModelError
from trt_native.units import format_bytes

_SMALL = Path(__file__).parents[2] / "tests" / "data" / "unet_small.pt"
_WAYS = ("written", "traced")
_LIMITS = {"fp32": 1e-5, "fp16": 5e-3}

app = typer.Typer(add_completion=False)


@app.command()
@report_errors
def compare(
    checkpoint: Annotated[Path, typer.Option(help="The weights' file.")] = _SMALL,
    config: Annotated[str, typer.Option(help="The model's file, or a preset.")] = "small",
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
    only: Annotated[str | None, typer.Option(help="written or traced; compares nothing.")] = None,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Export in both ways, compare the files, and print times and peaks of memory."""
    with tempfile.TemporaryDirectory() as name:
        figures = {}
        for way in [only] if only else _WAYS:
            path = Path(name) / f"{way}.onnx"
            with stderr.status(f"{config}, {precision}, {way}"):
                figures[way] = _measured(way, path, checkpoint, config, precision)
        if only is None:
            _check(Path(name), precision)
    rows = [
        (
            way,
            f"{found['seconds']:.1f}",
            f"{found['export']:.1f}",
            format_bytes(found["peak"]),
            format_bytes(found["bytes"]),
            f"{found['peak'] / found['weights']:.2f}",
        )
        for way, found in figures.items()
    ]
    heads = ("", "seconds", "without imports", "peak memory", "files", "peak / weights")
    table(f"Export of {config} in {precision}", heads, rows)
    if json is not None:
        json.write_text(json_module.dumps(figures, indent=1) + "\n")


@app.command(hidden=True)
@report_errors
def export(way: str, path: Path, checkpoint: Path, config: str, precision: str) -> None:
    """Export in one way; prints the figures that only this process knows."""
    started = time.perf_counter()
    report = (_write if way == "written" else _trace)(path, checkpoint, config, precision)
    seconds = time.perf_counter() - started
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    size = {"fp32": 4, "fp16": 2}[precision]
    figures = {
        "export": seconds,
        "peak": peak,
        "bytes": report.total_bytes,
        "weights": report.parameters * size,
    }
    print(json_module.dumps(figures))


def _write(path: Path, checkpoint: Path, config: str, precision: str) -> Any:
    from trt_native.models.latentsync.export import export_latentsync

    return export_latentsync(path, config=config, checkpoint=checkpoint, precision=precision)


def _trace(path: Path, checkpoint: Path, config: str, precision: str) -> Any:
    import torch

    from trt_native.export import export_module
    from trt_native.models.latentsync import load_unet
    from trt_native.models.latentsync.export import AUDIO_TOKENS

    dtype = {"fp32": "float32", "fp16": "float16"}[precision]
    unet, _ = load_unet(config=config, checkpoint=checkpoint, dtype=dtype)
    kind, sizes = getattr(torch, dtype), unet.config
    inputs = {
        "latents": torch.zeros(2, sizes.in_channels, 3, 16, 24, dtype=kind),
        "timestep": torch.zeros(1, dtype=torch.int64),
        "encoder_hidden_states": torch.zeros(
            6, AUDIO_TOKENS, sizes.cross_attention_dim, dtype=kind
        ),
    }
    dynamic = {
        "latents": {0: "batch", 2: "frames", 3: "height", 4: "width"},
        "encoder_hidden_states": {0: "batch*frames"},
    }
    return export_module(unet, inputs, path=path, dynamic=dynamic, output_names=["noise_pred"])


def _measured(
    way: str, path: Path, checkpoint: Path, config: str, precision: str
) -> dict[str, Any]:
    words = [sys.executable, __file__, "export", way, str(path), str(checkpoint), config, precision]
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        lines = done.stderr.strip().splitlines()[-10:]
        raise ExportError(f"the U-Net could not be {way} ({done.returncode})", lines)
    return {"seconds": seconds, **json_module.loads(done.stdout.splitlines()[-1])}


def _check(folder: Path, precision: str) -> None:
    """Compare the outputs of both files.

    Raises:
        ModelError: they differ.
    """
    from onnx.reference import ReferenceEvaluator

    random, found = np.random.default_rng(0), []
    arrays: dict[str, Any] = {}
    for way in _WAYS:
        with stderr.status(f"running what was {way}"):
            evaluator: Any = ReferenceEvaluator(str(folder / f"{way}.onnx"))
            for value in evaluator.proto_.graph.input:
                dims = [dim.dim_value or 8 for dim in value.type.tensor_type.shape.dim]
                if value.name == "latents":
                    dims[0], dims[2] = 1, 2
                elif value.name == "encoder_hidden_states":
                    dims[0] = 2
                dtype = np.float16 if precision == "fp16" else np.float32
                values = random.standard_normal(dims).astype(dtype)
                arrays.setdefault(
                    value.name, np.array([501]) if value.name == "timestep" else values
                )
            found.append(evaluator.run(None, arrays)[0].astype(np.float64))
    error = float(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1]))
    if not error <= _LIMITS[precision]:
        raise ModelError(f"the outputs of the two files differ by {error:.1e} (relative L2)")
    stderr.print(f"relative L2 difference of the outputs: {error:.1e}")


if __name__ == "__main__":
    app()
