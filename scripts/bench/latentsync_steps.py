#!/usr/bin/env python3
"""Fewer steps: schedulers and DeepCache's intervals against 20 full steps of DDIM.

Prints a Markdown table: for each choice, the relative L2 error of the final latents where the
mouth is, and the time of a chunk. With ``--plans`` the U-Net is the plans of a folder of
``trt-native build-latentsync``, on the GPU; else PyTorch in LatentSync's layout. Errors mean
something for a trained checkpoint alone: random weights do not predict noise.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from latentsync_loop import SCHEDULERS, SkippingUNet, denoise
from naive_unet import NaiveUNet
from torch import Tensor

from trt_native.cli.console import report_errors
from trt_native.errors import SpecError
from trt_native.models.latentsync import UNetConfig, load_unet
from trt_native.models.latentsync.export import AUDIO_TOKENS


class Choice(NamedTuple):
    """One way to run a chunk.

    Attributes:
        scheduler: Its name.
        steps: Number of timesteps.
        interval: DeepCache's number of timesteps per full step; 1 is without.
    """

    scheduler: str
    steps: int
    interval: int


REFERENCE = Choice("DDIM", 20, 1)
CHOICES = (
    REFERENCE,
    *(Choice("DDIM", 20, interval) for interval in (2, 3, 5)),
    Choice("DDIM", 10, 1),
    Choice("DPM++", 20, 1),
    *(Choice("DPM++", 10, interval) for interval in (1, 2, 3)),
)

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
@report_errors
def measure(
    checkpoint: Annotated[
        Path | None, typer.Option(help="\\[default: random weights of seed 0]")
    ] = None,
    plans: Annotated[
        Path | None, typer.Option(help="Folder of plans, in place of PyTorch.")
    ] = None,
    config: str = "latentsync-1.6",
    frames: int = 16,
    size: Annotated[int, typer.Option(help="Of the latents. \\[default: the config's]")] = 0,
    guidance: float = 1.5,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each choice.")] = 3,
    device: Annotated[str, typer.Option(help="cuda or cpu. \\[default: cuda if there]")] = "",
) -> None:
    """Measure all choices and print the table."""
    if plans is not None and checkpoint is not None:
        raise SpecError("--plans have their weights: give no checkpoint with them")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    unets = _Plans(plans) if plans is not None else _PyTorch(config, checkpoint, chosen)
    side = size or UNetConfig.load(config).sample_size or 64
    inputs = Inputs.make(unets.config, frames, side, chosen)
    print("| scheduler | steps | DeepCache interval | full steps | error | seconds a chunk |")
    print("|---|---|---|---|---|---|")
    for choice, error, seconds in measured(unets, inputs, guidance, rounds):
        full = -(-choice.steps // choice.interval)
        interval = "off" if choice.interval == 1 else str(choice.interval)
        shown = "reference" if choice == REFERENCE else f"{error:.3g}"
        words = (choice.scheduler, choice.steps, interval, full, shown, f"{seconds:.3g}")
        print(f"| {' | '.join(map(str, words))} |", flush=True)


class Inputs(NamedTuple):
    """What a chunk is made from.

    Attributes:
        noise: (1, 4, frames, height, width), the same for each frame.
        condition: Mask, masked image and reference, (1, 9, frames, height, width).
        audio: (frames, tokens, features).
    """

    noise: Tensor
    condition: Tensor
    audio: Tensor

    @classmethod
    def make(cls, config: UNetConfig, frames: int, size: int, device: torch.device) -> Inputs:
        """Smooth random fields, in the type that the U-Net has on the device."""
        random = torch.Generator().manual_seed(0)
        shape = (frames, size, size)
        coarse = torch.randn(2, 4, 2, 4, 4, generator=random)
        images = torch.nn.functional.interpolate(coarse, shape, mode="trilinear")
        mask = torch.ones(1, 1, *shape)
        mask[..., size // 2 :, size // 4 : -size // 4] = 0
        condition = torch.cat([mask, images[:1] * mask, images[1:]], dim=1)
        noise = torch.randn(1, 4, 1, size, size, generator=random).repeat(1, 1, frames, 1, 1)
        features = config.cross_attention_dim
        audio = torch.randn(frames, AUDIO_TOKENS, features, generator=random)
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        return cls(*(tensor.to(device, dtype) for tensor in (noise, condition, audio)))


@torch.no_grad()
def measured(
    unets: Any, inputs: Inputs, guidance: float, rounds: int
) -> Iterator[tuple[Choice, float, float]]:
    """The error and the seconds per chunk of each choice; the reference is the first."""
    mouth = inputs.condition[:, :1] == 0
    expected = None
    for choice in CHOICES:
        scheduler = SCHEDULERS[choice.scheduler]()
        scheduler.set_timesteps(choice.steps, device=inputs.noise.device)
        times = []
        with unets.load(scheduler.timesteps, choice.interval) as unet:
            for _ in range(rounds + 1):  # the first compiles
                scheduler.set_timesteps(choice.steps, device=inputs.noise.device)
                begun = time.perf_counter()
                noise = inputs.noise * scheduler.init_noise_sigma
                latents = denoise(unet, scheduler, noise, *inputs[1:], guidance).cpu().double()
                times.append(time.perf_counter() - begun)
        found = latents[mouth.expand_as(latents).cpu()]
        expected = found if expected is None else expected
        error = float((found - expected).norm() / expected.norm())
        yield choice, error, statistics.median(times[1:])


class _PyTorch:
    """U-Nets in PyTorch."""

    def __init__(self, config: str, checkpoint: Path | None, device: torch.device) -> None:
        made, _ = load_unet(
            config=config,
            checkpoint=checkpoint,
            random_seed=0 if checkpoint is None else None,
            dtype="float16" if device.type == "cuda" else "float32",
        )
        self.config = made.config
        with torch.device("meta"):
            unet = NaiveUNet(made.config)
        unet.load_state_dict(made.state_dict(), assign=True)
        self._unet = unet.to(device).requires_grad_(False).eval()

    @contextmanager
    def load(self, timesteps: Tensor, interval: int) -> Iterator[Any]:
        yield SkippingUNet(self._unet, timesteps, interval)


class _Plans:
    """U-Nets of a folder's plans."""

    def __init__(self, folder: Path) -> None:
        from trt_native import LatentSyncPipelineEngines

        self._load = functools.partial(LatentSyncPipelineEngines.from_folder, folder)
        with self._load(interval=1) as engines:
            self.config = UNetConfig.from_mapping(engines.unet.config)

    @contextmanager
    def load(self, timesteps: Tensor, interval: int) -> Iterator[Any]:  # noqa: ARG002
        with self._load(interval=interval) as engines:
            yield engines.unet


if __name__ == "__main__":
    app()
