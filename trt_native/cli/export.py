"""``trt-native export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_native.cli.console import print_json, report_errors, stderr
from trt_native.cli.export_module import ExportGroup, module
from trt_native.cli.export_unet import latentsync, print_export
from trt_native.cli.help_pages import CommandTree
from trt_native.cli.options import RandomWeights, check_weights, complete_precision
from trt_native.progress_bars import ProgressDisplay

__all__ = ["export_app"]

export_app = CommandTree(name="export", cls=ExportGroup)


@export_app.callback()
def _group() -> None:
    r"""Turn a PyTorch model into ONNX: FILE.py:NAME, package.module:NAME, or one of these.

    $ trt-native export net.py:Net -o net.onnx \
        --input x=1x3x224x224 --dynamic x=0:batch
    $ trt-native export latentsync CHECKPOINT -o unet.onnx
    """


export_app.command()(module)
export_app.command()(latentsync)


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
        typer.Argument(
            metavar="[FOLDER]",
            help="Folder of diffusers' AutoencoderKL, such as a download of"
            " stabilityai/sd-vae-ft-mse: config.json and weights.",
        ),
    ] = None,
    random_weights: RandomWeights = None,
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
    r"""Export an image autoencoder: its encoder and its decoder, of frames of any number and size.

    The encoder returns means and logarithms of variances; sampling is left to the caller.

    $ trt-native export latentsync-vae sd-vae-ft-mse \
        -o vae.onnx
    """
    check_weights(folder, random_weights, "FOLDER")
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
        print_export(report)


@export_app.command()
@report_errors
def latentsync_whisper(
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CHECKPOINT]",
            help="OpenAI's file, such as LatentSync's checkpoints/whisper/tiny.pt.",
        ),
    ] = None,
    random_weights: RandomWeights = None,
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
    r"""Export Whisper's audio encoder: a segment's spectrogram in, features of all layers out.

    $ trt-native export latentsync-whisper \
        checkpoints/whisper/tiny.pt -o whisper.onnx
    """
    check_weights(checkpoint, random_weights, "CHECKPOINT")
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
    print_export(report)
