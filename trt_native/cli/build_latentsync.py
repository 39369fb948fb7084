"""``trt-native build-latentsync``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_native.builder.plan_cache import EngineCache
from trt_native.cli.console import print_json, report_errors, stderr, table
from trt_native.cli.options import (
    AllowMismatch,
    BackendOption,
    CacheOption,
    CheckpointArgument,
    FloatTimestep,
    NoCacheOption,
    RandomWeights,
    UNetConfigOption,
    WarmOption,
    check_weights,
    complete_precision,
)
from trt_native.errors import SpecError
from trt_native.progress_bars import ProgressDisplay
from trt_native.units import format_bytes

__all__ = ["build_latentsync"]


@report_errors
def build_latentsync(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write plans to.")
    ],
    checkpoint: CheckpointArgument = None,
    vae: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the VAE, such as a download of stabilityai/sd-vae-ft-mse.",
        ),
    ] = None,
    no_vae: Annotated[
        bool, typer.Option("--no-vae", help="Build the U-Net alone; the VAE stays in PyTorch.")
    ] = False,
    whisper: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="LatentSync's checkpoints/whisper/tiny.pt: also build its encoder.",
        ),
    ] = None,
    random_weights: RandomWeights = None,
    config: UNetConfigOption = None,
    vae_config: Annotated[
        str | None,
        typer.Option(help="With random weights: the VAE's JSON, or a preset: sd, small."),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Height and width of the faces. \\[default: what the U-Net was trained for]",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp16, bf16 or fp32.", autocompletion=complete_precision)
    ] = "fp16",
    deepcache: Annotated[
        bool, typer.Option(help="Also build DeepCache's shallow step, as inference.sh uses it.")
    ] = True,
    guidance: Annotated[
        bool,
        typer.Option(help="Build for guidance scales above 1; without, for 1 and less alone."),
    ] = True,
    float_timestep: FloatTimestep = False,
    vae_frames: Annotated[
        int,
        typer.Option(
            min=1, help="Frames that pass through the VAE at a time; more take more memory."
        ),
    ] = 4,
    backend: BackendOption = "auto",
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    warm: WarmOption = False,
    allow_mismatch: AllowMismatch = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    r"""Build all of LatentSync that runs as plans: U-Net, DeepCache's shallow step, VAE, Whisper.

    The folder is for trt_native.LatentSyncPipelineEngines.from_folder.

    $ trt-native build-latentsync latentsync_unet.pt \
        --vae sd-vae-ft-mse -o engines
    """
    check_weights(checkpoint, random_weights, "CHECKPOINT")
    if (vae is not None) == (no_vae or random_weights is not None):
        raise SpecError("give either --vae FOLDER or --no-vae")
    from trt_native.models.latentsync import build_folder

    with ProgressDisplay(stderr) as progress:
        reports = build_folder.build_latentsync(
            output,
            build_folder.ModelSources(
                checkpoint=checkpoint,
                vae=vae,
                whisper=whisper,
                random_seed=random_weights,
                config=config,
                vae_config=vae_config,
                allow_mismatch=allow_mismatch,
            ),
            build_folder.FolderOptions(
                resolution=resolution,
                precision=precision,
                deepcache=deepcache,
                guidance=guidance,
                float_timestep=float_timestep,
                vae=not no_vae,
                vae_frames=vae_frames,
                backend=backend,
                cache=None if no_cache else EngineCache(cache).folder,
                warm=warm,
            ),
            progress=progress,
        )
    if json:
        print_json({"folder": str(output), "plans": [report.to_dict() for report in reports]})
        return
    rows = [
        (
            report.plan.name,
            f"{report.parameters:,}",
            format_bytes(report.plan_bytes),
            f"{report.export_s:.1f} s",
            "from the cache" if report.cached else f"{report.build_s:.1f} s",
        )
        for report in reports
    ]
    table(f"Built in {output}", ("plan", "parameters", "size", "export", "build"), rows)
