#!/usr/bin/env python3
"""Calibration and verification of the small LatentSync U-Net on the CPU, beside another checkout.

Each runs in a process of its own, one after the other: ``trt-native calibrate`` as a command, and
the reference that ``trt-native verify`` computes, at corners of a profile. Ranges and outputs are
compared first. Hide a GPU, if there is one, by CUDA_VISIBLE_DEVICES=-1.
"""

from __future__ import annotations

import json as json_module
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from trt_native.cli.console import report_errors, stderr, table
from trt_native.errors import TrtNativeError

ROOT = Path(__file__).parents[2]
LIMIT = 1e-5  # of ranges and outputs, relative
SIZES = {"small": (4, 16), "large": (16, 32)}  # frames, and height and width of the latents
AXES = ((1, 2), (1, 16), (8, 32))  # batch, frames, height and width: smallest and largest
VERIFY = """
import itertools, sys
from pathlib import Path
import numpy as np
from trt_native.verify import OnnxReference
reference = OnnxReference(Path(sys.argv[1]))
for number, file in enumerate(sys.argv[2:-1]):
    outputs = reference(dict(np.load(file, allow_pickle=False)), ["noise_pred"])
    np.save(f"{sys.argv[-1]}_{number}.npy", outputs["noise_pred"])
print(reference.runner, file=sys.stderr)
"""


def inputs(seed: int, batch: int, frames: int, extent: int) -> dict[str, Any]:
    """Noise that grows from batch to batch, as latents of a loop with random weights do."""
    random = np.random.default_rng(seed)
    latents = random.standard_normal((batch, 13, frames, extent, extent), np.float32)
    audio = random.standard_normal((batch * frames, 50, 24), np.float32)
    return {
        "latents": latents * np.float32(1 + seed / 4),
        "timestep": np.array([951 - 50 * seed % 951]),
        "encoder_hidden_states": audio,
    }


def run(python: Path, tree: Path, words: list[str]) -> float:
    """Run a checkout's Python to its end; return the seconds that it took."""
    started = time.perf_counter()
    done = subprocess.run(
        [str(python), *words],
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise TrtNativeError(f"{tree}: {done.stderr[-500:]}")
    return seconds


def ranges(cache: Path) -> dict[str, float]:
    """The largest value of each tensor."""
    found = json_module.loads(Path(f"{cache}.json").read_text(encoding="utf-8"))
    return {name: one["amax"] for name, one in found["ranges"].items()}


def off(found: Any, expected: Any) -> float:
    """The relative L2 error."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@report_errors
def main(
    base: Annotated[Path, typer.Argument(help="Another checkout, with a .venv of its own.")],
    size: Annotated[str, typer.Option(help="Of the latents: small or large.")] = "large",
    batches: Annotated[int, typer.Option(help="Batches to calibrate with.")] = 20,
    method: Annotated[str, typer.Option(help="Method of the calibration.")] = "mse",
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Compare the results, and print times."""
    pythons = {"base": base.absolute() / ".venv/bin/python", "here": Path(sys.executable)}
    trees = {"base": base.absolute(), "here": ROOT}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, data = folder / "unet.onnx", folder / "data"
        exporting = "from trt_native.cli import main; main()"
        weights = ["--config", "small", "--random-weights", "0", "--output", str(model)]
        run(pythons["here"], ROOT, ["-c", exporting, "export", "latentsync", *weights])
        data.mkdir()
        for number in range(batches):
            np.savez(data / f"{number:04}.npz", **inputs(number, 2, *SIZES[size]))
        corners = [
            (2, *SIZES[size]),
            *((b, f, e) for e in AXES[2] for f in AXES[1] for b in AXES[0]),
        ]
        cases = []
        for number, corner in enumerate(corners):
            for seed in (0, 1):
                cases.append(folder / f"case_{number}_{seed}.npz")
                np.savez(cases[-1], **inputs(seed, *corner))
        seconds: dict[str, dict[str, float]] = {"calibrate": {}, "verify": {}}
        for which in ("base", "here"):
            with stderr.status(f"calibrate, {which}"):
                words = ["-m", "trt_native", "calibrate", str(model), "--data", str(data)]
                words += ["--calibration-method", method]
                words += ["--output", str(folder / f"{which}.calib")]
                seconds["calibrate"][which] = run(pythons[which], trees[which], words)
            with stderr.status(f"verify, {which}"):
                words = ["-c", VERIFY, str(model), *map(str, cases), str(folder / which)]
                seconds["verify"][which] = run(pythons[which], trees[which], words)
        old, new = (ranges(folder / f"{which}.calib") for which in ("base", "here"))
        worst = {
            "calibrate": max(abs(new[tensor] / amax - 1) for tensor, amax in old.items()),
            "verify": max(
                off(
                    *(
                        np.load(folder / f"{which}_{n}.npy", allow_pickle=False)
                        for which in ("here", "base")
                    )
                )
                for n in range(len(cases))
            ),
        }
        if old.keys() != new.keys() or max(worst.values()) > LIMIT:
            raise TrtNativeError(f"the results differ: {worst}")
    figures = {
        what: {**found, "ratio": found["base"] / found["here"], "off by": worst[what]}
        for what, found in seconds.items()
    }
    table(
        f"{size}: {batches} batches to calibrate with, {len(cases)} to verify",
        ("", "base s", "here s", "ratio", "off by"),
        (
            (
                what,
                f"{f['base']:.1f}",
                f"{f['here']:.1f}",
                f"{f['ratio']:.1f}",
                f"{f['off by']:.1e}",
            )
            for what, f in figures.items()
        ),
    )
    if json is not None:
        json.write_text(json_module.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
