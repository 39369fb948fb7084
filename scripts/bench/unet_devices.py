#!/usr/bin/env python3
"""Compare a step of the LatentSync U-Net with guidance on one GPU with one that several share.

  unet_devices.py ONE.plan SHARED.plan

The first plan takes the whole batch, the second one entry. Each way has a process of its own, and
they take turns; the figures are medians over the rounds. First the results of the shared steps are
compared, bit for bit, with those of the second plan for each entry alone, and by their relative
error with those of the first plan. The exit code is 1 if a bound is given and missed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from processes import Row, read_lines

from trt_native import LatentSyncUNet
from trt_native.cli.console import report_errors, stderr, stdout, table
from trt_native.cuda import require_gpu
from trt_native.errors import SpecError

PROCESS_SECONDS = 300.0
MOST_ERROR = 0.05  # in FP16, of other kernels
TIMESTEPS = tuple(range(951, 0, -50))  # LatentSync's


def random_inputs(unet: LatentSyncUNet, batch: int, frames: int, size: int) -> tuple[Any, Any]:
    """Latents and audio on the first GPU, equal in every process."""
    generator = torch.Generator().manual_seed(0)
    config = unet.config
    sample = torch.randn(batch, config.in_channels, frames, size, size, generator=generator)
    audio = torch.randn(batch * frames, 50, config.cross_attention_dim, generator=generator)
    return sample.to(unet.device, unet.dtype), audio.to(unet.device, unet.dtype)


def check(one: Path, shared: Path, devices: list[int], inputs: tuple[int, int, int]) -> Row:
    """Compare the ways.

    Raises:
        SpecError: the shared steps differ from those of each entry alone, or are wrong.
    """
    with LatentSyncUNet.from_plan(shared, devices=devices) as unet:
        sample, audio = random_inputs(unet, *inputs)
        found = [unet(sample, step, audio).sample for step in TIMESTEPS[::10]]
    frames = inputs[1]
    with LatentSyncUNet.from_plan(shared, device=devices[0]) as unet:
        for noise, step in zip(found, TIMESTEPS[::10], strict=True):
            for i in range(inputs[0]):
                rows = audio[i * frames : (i + 1) * frames]
                if not torch.equal(noise[i : i + 1], unet(sample[i : i + 1], step, rows).sample):
                    raise SpecError(f"entry {i} differs on {devices} at timestep {step}")
    with LatentSyncUNet.from_plan(one, device=devices[0]) as unet:
        pairs = zip(found, [unet(sample, s, audio).sample for s in TIMESTEPS[::10]], strict=True)
        error = max(float((a - b).float().norm() / b.float().norm()) for a, b in pairs)
    if not error <= MOST_ERROR:
        raise SpecError(f"the plans differ by {error:.2g}")
    return {"difference": error}


def measure(plan: Path, devices: list[int], inputs: tuple[int, int, int], rounds: int) -> Row:
    """Time loops of 20 steps in this process, whose latents each depend on the step before."""
    with LatentSyncUNet.from_plan(plan, devices=devices) as unet:
        sample, audio = random_inputs(unet, *inputs)

        def loop() -> float:
            latents = sample.clone()
            torch.cuda.synchronize(devices[0])
            start = time.perf_counter()
            for step in TIMESTEPS:
                noise = unet(latents, step, audio).sample
                latents[:, : noise.shape[1]] -= 0.01 * noise
            torch.cuda.synchronize(devices[0])
            return (time.perf_counter() - start) / len(TIMESTEPS) * 1000

        for _ in range(2):
            loop()
        return {"ms": statistics.median(loop() for _ in range(rounds))}


@report_errors
def main(
    one: Annotated[Path, typer.Argument(help="The plan for the whole batch.")],
    shared: Annotated[Path, typer.Argument(help="The plan for one entry.")],
    devices: Annotated[str, typer.Option(help="The GPUs that share a batch.")] = "0,1",
    batch: Annotated[int, typer.Option(help="Entries, two with guidance.")] = 2,
    frames: Annotated[int, typer.Option(help="Frames.")] = 16,
    size: Annotated[int, typer.Option(help="Height and width of the latents.")] = 64,
    rounds: Annotated[int, typer.Option(help="Processes of each way, and loops in each.")] = 3,
    bound: Annotated[float | None, typer.Option(help="Least speedup to exit with 0.")] = None,
    process: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Compare a step on one GPU with one that several share."""
    ordinals = [int(word) for word in devices.split(",")]
    inputs = batch, frames, size
    if process == "check":
        print(json.dumps(check(one, shared, ordinals, inputs)), flush=True)
        return
    if process:
        row = measure(
            *((one, ordinals[:1]) if process == "one" else (shared, ordinals)), inputs, rounds
        )
        print(json.dumps(row), flush=True)
        return

    def run(way: str) -> Row:
        words = [sys.executable, __file__, str(one), str(shared), "--devices", devices]
        words += ["--batch", str(batch), "--frames", str(frames), "--size", str(size)]
        rows: list[Row] = []
        words += ["--rounds", str(rounds), "--process", way]
        read_lines(words, rows.append, PROCESS_SECONDS)
        return rows[0]

    error = run("check")["difference"]
    times: dict[str, list[float]] = {"one": [], "shared": []}
    for turn in range(rounds):
        for way, found in times.items():
            found.append(run(way)["ms"])
            stderr.print(f"round {turn + 1}, {way}: {found[-1]:.2f} ms", highlight=False)
    medians = {way: statistics.median(found) for way, found in times.items()}
    gpus = ", ".join(require_gpu(ordinal).name for ordinal in ordinals)
    plans = {"one": (one, devices.split(",")[0]), "shared": (shared, devices)}
    table(
        f"A step of {batch} x {frames} frames of {size} x {size} latents on {gpus}",
        ("plan", "devices", "median ms", "least", "most"),
        (
            (
                plans[way][0].name,
                plans[way][1],
                f"{medians[way]:.2f}",
                f"{min(found):.2f}",
                f"{max(found):.2f}",
            )
            for way, found in times.items()
        ),
    )
    speedup = medians["one"] / medians["shared"]
    stdout.print(
        f"shared: {speedup:.3f} times as fast, equal to each entry alone bit for bit;"
        f" {error:.2g} from the plan for the whole batch",
        highlight=False,
    )
    if bound is not None and speedup < bound:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
