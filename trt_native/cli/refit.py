"""``trt-native refit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trt_native.cli.console import print_json, report_errors, stderr, table
from trt_native.cli.options import DeviceOption, PluginsOption, select_device, with_fields
from trt_native.config import QuantizationSpec
from trt_native.graph.outputs import check_outputs
from trt_native.plans.manifest import Manifest, manifest_path
from trt_native.progress_bars import ProgressDisplay
from trt_native.units import format_bytes

__all__ = ["refit"]


@report_errors
@with_fields(
    QuantizationSpec,
    before="json",
    flags={"calibration_cache": ""},
    extra_help={"calibration_cache": " For a plan in INT8 or FP8."},
    panels=False,
)
def refit(
    plan: Annotated[
        Path,
        typer.Argument(help="A plan built with --refit, --strip-weights, or both."),
    ],
    model: Annotated[
        Path,
        typer.Option("--from", metavar="NEW.onnx", help="The ONNX file with the weights."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The plan to write; PLAN itself is allowed.")
    ],
    device: DeviceOption = None,
    plugins: PluginsOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    **options: Any,
) -> None:
    """Put the weights of another checkpoint into a plan, without building it again.

    $ trt-native build net.onnx --refit
    $ trt-native refit net.plan --from new.onnx -o new.plan
    """
    select_device(device)
    calibration_cache = options["calibration_cache"]
    companions = [manifest_path(output)]
    check_outputs([output], reads=[calibration_cache], models=[model], companions=companions)
    from trt_native.builder.refit import refit_plan
    from trt_native.plans.plan import Plan

    source = Plan.open(plan, plugins=plugins or ())
    with ProgressDisplay(stderr) as progress:
        refitted = refit_plan(source, model, calibration_cache=calibration_cache, progress=progress)
    refitted.save(output)
    manifest = refitted.manifest
    assert manifest is not None  # noqa: S101  # for the type checker
    if json:
        print_json({"path": str(output), **manifest.to_json()})
    else:
        _print_summary(plan, output, manifest)


def _print_summary(source: Path, target: Path, manifest: Manifest) -> None:
    again = "can be refitted again" if manifest.refit else "are the plan's own, for good"
    rows = [
        ("plan", f"{target} ({format_bytes(manifest.plan_bytes)})"),
        ("from", str(source)),
        ("weights of", str(manifest.model["file"])),
        ("which", again),
        ("time", ", ".join(f"{name} {value:.1f} s" for name, value in manifest.seconds.items())),
    ]
    table("Refitted", ("", ""), rows)
