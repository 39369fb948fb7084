#!/usr/bin/env python3
"""A chunk of LatentSync from cropped faces to images: the original's work, and plans.

``prepare`` builds the plans, with or without a GPU. ``measure`` runs each contender in a process of
its own and reports seconds per chunk, the most GPU memory that the process took, and how far its
images are from those of the first contender. ``original`` is eager FP16 PyTorch: the U-Net in
LatentSync's own layout (naive_unet.py), DeepCache, and diffusers' VAE on all frames at once. Its
DeepCache keeps less than DeepCache's helper, so its memory is if anything too small.

Weights are random. ``original`` runs on the CPU too, with ``--config small --vae-config small``;
plans need a GPU.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from latentsync_loop import SCHEDULERS, SkippingUNet, Video, run_chunks, synthetic_video
from naive_unet import NaiveUNet
from processes import PeakMemory, ProcessError, Row, read_lines

from trt_native.cli.console import report_errors, stdout, table
from trt_native.errors import SpecError
from trt_native.models.latentsync import UNetConfig, VaeConfig, load_unet, load_vae, plan_names
from trt_native.models.latentsync.build_folder import (
    VAE_FRAMES,
    FolderOptions,
    ModelSources,
    build_latentsync,
)
from trt_native.models.latentsync.profile import FRAMES

INTERVAL = 3
PLANS = (plan_names.FULL, plan_names.SHALLOW, plan_names.ENCODER, plan_names.DECODER)
CONTENDERS = ("original", "ours", "ours-overlap", "original-full", "ours-full", "ours-generic")
"""Contenders, the most wanted first.

``-full`` runs every step in full, ``-overlap`` decodes on a stream of its own, and ``-generic``
compiles no kernels for the length of a short last chunk.
"""
SHORT = 7
"""Frames of a short last chunk."""

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)
_Work = Annotated[Path, typer.Argument(help="Folder for what is made; used again if there.")]


@dataclass(frozen=True)
class Setup:
    """The measured configuration.

    Attributes:
        work: Folder of the plans and images.
        config: The U-Net's configuration.
        vae_config: The VAE's.
        resolution: Height and width in pixels; 0 is what the U-Net was trained for.
        guidance: Scale of classifier-free guidance.
        steps: Denoising steps.
        chunks: Timed chunks, one after the other.
        device: ``cuda`` or ``cpu``.
    """

    work: Path
    config: str = "latentsync-1.6"
    vae_config: str = "sd"
    resolution: int = 0
    guidance: float = 1.5
    steps: int = 20
    chunks: int = 4
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")

    @property
    def size(self) -> int:
        """Height and width of the faces in pixels."""
        return self.resolution or 8 * (UNetConfig.load(self.config).sample_size or 64)

    @property
    def plans(self) -> Path:
        """The folder of the plans."""
        return self.work / "plans"

    def video(self, chunks: int) -> Video:
        """The same in every process."""
        features = UNetConfig.load(self.config).cross_attention_dim
        return synthetic_video(FRAMES * chunks, self.size, features)


@app.command()
@report_errors
def prepare(
    work: _Work,
    config: str = "latentsync-1.6",
    vae_config: str = "sd",
    resolution: int = 0,
    vae_frames: int = VAE_FRAMES,
) -> None:
    """Export with random weights and build the plans; those that are there are used again."""
    setup = Setup(work, config, vae_config, resolution)
    if all((setup.plans / name).exists() for name in PLANS):
        stdout.print(f"{setup.plans}: has plans already")
        return
    started = time.perf_counter()
    reports = build_latentsync(
        setup.plans,
        ModelSources(random_seed=0, config=config, vae_config=vae_config),
        FolderOptions(resolution=setup.size, vae_frames=vae_frames),
    )
    rows = [(r.plan.name, r.plan_bytes / 2**20, r.export_s, r.build_s) for r in reports]
    table("Plans", ("", "MiB", "export s", "build s"), ((n, *map(_text, v)) for n, *v in rows))
    _add(work, "prepare", {"seconds": round(time.perf_counter() - started, 1)})


@app.command()
@report_errors
def measure(
    work: _Work,
    only: Annotated[str, typer.Option(help=f"Of: {', '.join(CONTENDERS)}.")] = ",".join(CONTENDERS),
    config: str = "latentsync-1.6",
    vae_config: str = "sd",
    resolution: int = 0,
    guidance: float = 1.5,
    steps: int = 20,
    chunks: Annotated[int, typer.Option(min=1, help="Timed chunks.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of all chunks.")] = 3,
    deadline: Annotated[float, typer.Option(help="Seconds; nothing runs longer.")] = math.inf,
    device: Annotated[str, typer.Option(help="cuda or cpu. \\[default: cuda if there]")] = "",
) -> None:
    """Measure; each result is printed and kept in WORK/results.json as soon as it is there."""
    names = [name for name in only.split(",") if name]
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise SpecError(f"{', '.join(unknown)}: unknown; choose from {', '.join(CONTENDERS)}")
    given = {"device": device} if device else {}
    setup = Setup(work, config, vae_config, resolution, guidance, steps, chunks, **given)
    work.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + deadline
    text = json.dumps(asdict(setup), default=str)
    for name in names:
        words = [sys.executable, __file__, "child", text, name, str(rounds)]
        row: Row = {}
        try:
            read_lines(words, row.update, max(1.0, ends - time.monotonic()))
        except ProcessError as error:
            row["error"] = error.message
        _add(work, name, row)
    _show(work, names)


@app.command(hidden=True)
@report_errors
def child(text: str, name: str, rounds: int) -> None:
    """Measure one contender, and print lines of JSON."""
    data = json.loads(text)
    try:
        for row in rows(Setup(**{**data, "work": Path(data["work"])}), name, rounds):
            print(json.dumps(row), flush=True)
    except Exception as error:  # of any kind: the parent prints it
        lines = str(error).strip().splitlines() or [""]
        print(json.dumps({"error": f"{type(error).__name__}: {lines[0][:300]}"}), flush=True)


@torch.no_grad()
def rows(setup: Setup, name: str, rounds: int) -> Iterator[Row]:
    """The results of a process.

    The first chunk, which compiles and allocates, counts for the memory and not for the time.
    """
    device = torch.device(setup.device)
    torch.zeros(1, device=device)  # the context, which is no one's in particular
    if device.type != "cuda":
        yield from _times(setup, name, rounds, device, torch.float32)
        return
    with PeakMemory() as memory:
        yield from _times(setup, name, rounds, device, torch.float16)
    yield {
        "peak_gib": round(memory.peak / 2**30, 3),
        "gpu_used_gib": round(memory.used / 2**30, 3),
        "torch_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
        "gpu": torch.cuda.get_device_name(),
    }


def _times(
    setup: Setup, name: str, rounds: int, device: torch.device, dtype: torch.dtype
) -> Iterator[Row]:
    started = time.perf_counter()
    scheduler = SCHEDULERS["DDIM"]()
    vae, unet = load(setup, name, scheduler, device, dtype)
    scheduler.set_timesteps(setup.steps, device=device)
    yield {"load_s": round(time.perf_counter() - started, 1)}
    common: dict[str, Any] = {"chunk": FRAMES, "guidance": setup.guidance}
    common |= {"device": device, "dtype": dtype}

    def timed(video: Video) -> tuple[float, torch.Tensor]:
        begun = time.perf_counter()
        images = run_chunks(vae, unet, scheduler, video, **common)  # ends with images on the host
        return time.perf_counter() - begun, images

    first, images = timed(setup.video(1))
    torch.save(images, setup.work / f"{name}.images.pt")
    yield {"first_chunk_s": round(first, 2)}
    video = setup.video(setup.chunks)
    seconds = [timed(video)[0] / setup.chunks for _ in range(rounds)]
    yield {
        "chunk_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
    }
    short = Video(video.faces[:SHORT], video.audio[:SHORT], video.mask)
    yield {"short_first_s": round(timed(short)[0], 3), "short_s": round(timed(short)[0], 3)}


def load(
    setup: Setup, name: str, scheduler: Any, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Any]:
    """The VAE and the U-Net of a contender; ours are installed beside the scheduler."""
    interval = 1 if name.endswith("-full") else INTERVAL
    if name.startswith("ours"):
        from trt_native import LatentSyncPipelineEngines

        engines = LatentSyncPipelineEngines.from_folder(
            setup.plans,
            interval=interval,
            overlap=name.endswith("-overlap"),
            kernel_specialization="none" if name == "ours-generic" else None,
        )
        engines.install(SimpleNamespace(vae=engines.vae, scheduler=scheduler))
        return engines.vae, engines.unet
    kind = str(dtype).removeprefix("torch.")
    made, _ = load_unet(config=setup.config, random_seed=0, dtype=kind)
    with torch.device("meta"):
        unet = NaiveUNet(made.config)
    unet.load_state_dict(made.state_dict(), assign=True)
    unet = unet.to(device).requires_grad_(False).eval()
    scheduler.set_timesteps(setup.steps)
    skipping = SkippingUNet(unet, scheduler.timesteps, interval)
    return original_vae(setup).to(dtype).to(device), skipping


def original_vae(setup: Setup) -> Any:
    """Diffusers' module with the weights that the plans have."""
    import diffusers

    config = VaeConfig.load(setup.vae_config)
    levels = len(config.block_out_channels)
    vae: Any = diffusers.AutoencoderKL(  # type: ignore[no-untyped-call]
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        latent_channels=config.latent_channels,
    )
    weights, _ = load_vae(config=config, random_seed=0)
    vae.load_state_dict(weights.state_dict())
    return vae.requires_grad_(False).eval()


# Results ------------------------------------------------------------------------------------------

_ROWS = {
    "chunk_s": "seconds per chunk",
    "min_s": "fastest run",
    "max_s": "slowest run",
    "speedup": "original / this",
    "peak_gib": "peak GiB of the process, without the context",
    "memory": "this / original",
    "gpu_used_gib": "peak GiB in use on the GPU",
    "torch_peak_gib": "of PyTorch's allocator alone",
    "load_s": "loading, seconds",
    "first_chunk_s": "first chunk, seconds",
    "short_first_s": f"first last chunk of {SHORT} frames, seconds",
    "short_s": "the next one of this length",
    "image_error": "mean difference of images, of 255",
}


def _file(work: Path) -> Path:
    return work / "results.json"


def _results(work: Path) -> dict[str, Any]:
    return json.loads(_file(work).read_text()) if _file(work).exists() else {}


def _add(work: Path, name: str, row: Row) -> None:
    _file(work).write_text(json.dumps({**_results(work), name: row}, indent=1))
    print(name, json.dumps(row), file=sys.stderr, flush=True)


def _show(work: Path, names: list[str]) -> None:
    """Print the results, each beside the original that runs as many full steps."""
    results = _results(work)
    for name in names:
        row = results[name]
        full = "-full" * name.endswith("-full")
        base = results.get(f"original{full}", {})
        if "chunk_s" in row and "chunk_s" in base:
            row["speedup"] = round(base["chunk_s"] / row["chunk_s"], 3)
            row["image_error"] = _image_error(work, name, f"original{full}")
        if "peak_gib" in row and "peak_gib" in base:
            row["memory"] = round(row["peak_gib"] / base["peak_gib"], 3)
        _add(work, name, row)
    cells = ((title, *(_text(results[n].get(key)) for n in names)) for key, title in _ROWS.items())
    table(f"Per chunk of {FRAMES} frames", ("", *names), cells)
    for name in names:
        if "error" in results[name]:
            stdout.print(f"{name}: {results[name]['error']}")
    stdout.print(f"results: {_file(work)}")


def _image_error(work: Path, name: str, base: str) -> float:
    """Mean absolute difference of the first chunk's images, in steps of 255."""
    found, expected = (
        torch.load(work / f"{n}.images.pt", weights_only=True).float() for n in (name, base)
    )
    return round(float((found - expected).abs().mean()), 3)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


if __name__ == "__main__":
    app()
