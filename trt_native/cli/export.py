"""``trt-native export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_native.cli.console import print_json, report_errors, stderr, table
from trt_native.cli.options import complete_precision
from trt_native.errors import SpecError
from trt_native.progress_bars import ProgressDisplay
from trt_native.units import format_bytes

if TYPE_CHECKING:
    from trt_native.export import ExportReport

__all__ = ["AllowMismatch", "FloatTimestep", "export_app"]

_DIMENSIONS = ("batch", "frames", "height", "width")

export_app = typer.Typer(
    name="export", help="Turn a PyTorch model into ONNX.", no_args_is_help=True
)

FloatTimestep = Annotated[
    bool,
    typer.Option(
        "--float-timestep",
        help="Take the timestep in float32 instead of int64, for schedulers whose timesteps"
        " have fractions (Euler, Heun, KDPM2).",
    ),
]
AllowMismatch = Annotated[
    bool,
    typer.Option(
        "--allow-mismatch",
        help="Go on with a checkpoint that has missing or unexpected keys; missing ones get"
        " random values.",
    ),
]


@export_app.callback()
def _group() -> None:
    """Turn a PyTorch model into ONNX."""


@export_app.command()
@report_errors
def latentsync(
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="latentsync_unet.pt, any other .pt of such weights, or .safetensors."),
    ] = None,
    random_weights: Annotated[
        int | None, typer.Option(metavar="SEED", help="Random weights instead of a checkpoint.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="The model's YAML or JSON, or a preset: latentsync-1.6, latentsync-1.5,"
            " latentsync-1.0, small."
            " \\[default: the checkpoint's own, else latentsync-1.6]"
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, fp16 or bf16: types of the ONNX graph.", autocompletion=complete_precision
        ),
    ] = "fp32",
    static: Annotated[
        str | None,
        typer.Option(
            metavar="batch=N,frames=N,height=N,width=N",
            help="Fix all four extents (of the latents). \\[default: dynamic]",
        ),
    ] = None,
    deepcache: Annotated[
        bool,
        typer.Option(
            "--deepcache",
            help="Write two graphs with shared weights: the full step, which also returns its deep"
            " features, and NAME.shallow.onnx, which takes them.",
        ),
    ] = False,
    float_timestep: FloatTimestep = False,
    opset: Annotated[
        int | None,
        typer.Option(
            help="ONNX operator-set version, at least 17 (bf16: 22)."
            " \\[default: 18, and 22 for bf16]"
        ),
    ] = None,
    allow_mismatch: AllowMismatch = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Export the LatentSync U-Net: latents, timestep and audio in, predicted noise out."""
    if (checkpoint is None) == (random_weights is None):
        raise SpecError("give either --checkpoint FILE or --random-weights SEED")
    extents = _parse_static(static) if static is not None else None
    from trt_native.models.latentsync.export import export_deepcache, export_latentsync

    with ProgressDisplay(stderr) as progress:
        export = export_deepcache if deepcache else export_latentsync
        written = export(
            output,
            config=config,
            checkpoint=checkpoint,
            random_seed=random_weights,
            precision=precision,
            static=extents,
            opset=opset,
            timestep_dtype="float32" if float_timestep else "int64",
            allow_mismatch=allow_mismatch,
            progress=progress,
        )
    reports = written if isinstance(written, tuple) else (written,)
    if json:
        documents = [report.to_dict() for report in reports]
        print_json(documents if deepcache else documents[0])
        return
    for report in reports:
        _print(report)


@export_app.command()
@report_errors
def latentsync_vae(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="NAME.onnx",
            help="Makes the names NAME.encoder.onnx and NAME.decoder.onnx.",
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of diffusers' AutoencoderKL, such as a download of"
            " stabilityai/sd-vae-ft-mse: config.json and weights.",
        ),
    ] = None,
    random_weights: Annotated[
        int | None, typer.Option(metavar="SEED", help="Random weights instead of a folder.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="With random weights: a config.json, or a preset: sd, small. \\[default: sd]"
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, fp16 or bf16: types of the ONNX graphs.", autocompletion=complete_precision
        ),
    ] = "fp32",
    opset: Annotated[int | None, typer.Option(help="ONNX operator-set version.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON.")] = False,
) -> None:
    """Export an image autoencoder: its encoder and its decoder, of frames of any number and size.

    The encoder returns means and logarithms of variances; sampling is left to the caller.
    """
    if (folder is None) == (random_weights is None):
        raise SpecError("give either --folder FOLDER or --random-weights SEED")
    from trt_native.models.latentsync.vae_export import export_vae

    with ProgressDisplay(stderr) as progress:
        reports = export_vae(
            output,
            folder=folder,
            config=config,
            random_seed=random_weights,
            precision=precision,
            opset=opset,
            progress=progress,
        )
    if json:
        print_json([report.to_dict() for report in reports])
        return
    for report in reports:
        _print(report)


@export_app.command()
@report_errors
def latentsync_whisper(
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="OpenAI's file, such as LatentSync's checkpoints/whisper/tiny.pt."),
    ] = None,
    random_weights: Annotated[
        int | None, typer.Option(metavar="SEED", help="Random weights instead of a checkpoint.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="With random weights: tiny or small. \\[default: tiny]"),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, fp16 or bf16: types of the ONNX graph.", autocompletion=complete_precision
        ),
    ] = "fp32",
    opset: Annotated[int | None, typer.Option(help="ONNX operator-set version.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Export Whisper's audio encoder: a segment's spectrogram in, features of all layers out."""
    if (checkpoint is None) == (random_weights is None):
        raise SpecError("give either --checkpoint FILE or --random-weights SEED")
    from trt_native.models.latentsync.whisper_export import export_whisper

    with ProgressDisplay(stderr) as progress:
        report = export_whisper(
            output,
            checkpoint=checkpoint,
            config=config,
            random_seed=random_weights,
            precision=precision,
            opset=opset,
            progress=progress,
        )
    if json:
        print_json(report.to_dict())
        return
    _print(report)


def _parse_static(text: str) -> dict[str, int]:
    extents: dict[str, int] = {}
    for entry in text.split(","):
        name, _, extent = entry.partition("=")
        if name.strip() not in _DIMENSIONS or not extent.strip().isdigit() or int(extent) < 1:
            raise SpecError(f"--static {text!r}: write for example {_example()}")
        extents[name.strip()] = int(extent)
    missing = [name for name in _DIMENSIONS if name not in extents]
    if missing:
        raise SpecError(f"--static lacks {', '.join(missing)}; write for example {_example()}")
    return extents


def _example() -> str:
    return "batch=2,frames=16,height=64,width=64"


def _print(report: ExportReport) -> None:
    rows = [
        ("ONNX", f"{report.path} (opset {report.opset})"),
        ("weights", str(report.external_data or "inside the ONNX file")),
        ("parameters", f"{report.parameters:,}"),
        ("on disk", format_bytes(report.total_bytes)),
        ("time", f"{report.seconds:.1f} s"),
    ]
    table("Exported", ("", ""), rows)
    tensors = [("input", t) for t in report.inputs] + [("output", t) for t in report.outputs]
    table(
        "Tensors",
        ("", "name", "dtype", "shape"),
        ((mode, t.name, t.dtype, " x ".join(map(str, t.shape or ()))) for mode, t in tensors),
    )
