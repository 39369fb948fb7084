#!/usr/bin/env python3
"""Capture calibration data from a running pipeline.

PIPELINE is ``FILE.py:FUNCTION``. The function gets one argument, ``hook``; it builds the pipeline
and runs it while the denoiser is hooked, for example with LatentSync's own code (its
``scripts/inference.py``), from a file in that repository::

    from trt_native.models.latentsync import denoiser_inputs

    def run(hook):
        pipeline = LipsyncPipeline(...)
        with hook(pipeline.unet, arguments=denoiser_inputs, model="LatentSync 1.6 U-Net"):
            for video, audio in examples:
                pipeline(video_path=video, audio_path=audio, ...)

``hook`` takes the keywords of ``trt_native.calibration.capture``. The set that comes with
this repository was made by::

    scripts/capture_calibration.py scripts/latentsync_small.py:sample -o calib_data/latentsync_small
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import environment  # noqa: F401  (ends with one line where the package is not installed)
import typer

from trt_native.cli.console import print_json, report_errors, stderr, table
from trt_native.errors import CalibrationError


@report_errors
def main(
    pipeline: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py:FUNCTION",
            help="A function of yours that takes `hook` and runs a pipeline in"
            " `with hook(denoiser):`; see the top of this script.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder not there yet.")],
    batches: Annotated[int, typer.Option(min=1, help="How many calls to keep.")] = 64,
    seed: Annotated[int, typer.Option(help="Decides which calls are kept.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Capture calibration data from a running pipeline."""
    from trt_native.calibration import capture
    from trt_native.calibration.folder import check_new_folder, read_data_manifest
    from trt_native.calibration.sources import load_function

    check_new_folder(output)
    load_function(pipeline)(partial(capture, folder=output, batches=batches, seed=seed))
    manifest = read_data_manifest(output)
    if manifest is None:
        raise CalibrationError(f"{pipeline} captured nothing: run the pipeline in `with hook(...)`")
    if json:
        print_json(manifest.to_json())
        return
    rows = ((i.name, i.dtype, " x ".join(map(str, i.shape or ()))) for i in manifest.inputs)
    table(f"{len(manifest.batches)} batches", ("input", "dtype", "shape"), rows)
    stderr.print(f"written to {output}", markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
