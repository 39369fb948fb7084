"""``trt-native guide``: the three steps of LatentSync's TensorRT guide, with its file names.

The scripts of these names run them. Each is another command with other defaults and three flags.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from trt_native.cli.build import build
from trt_native.cli.console import report_errors, stderr
from trt_native.cli.export_unet import latentsync
from trt_native.cli.help_pages import CommandTree
from trt_native.cli.run import run
from trt_native.errors import ModelError, SpecError

__all__ = ["guide_app"]

CHECKPOINT = Path("checkpoints/latentsync_unet.pt")
ONNX = Path("latentsync_unet.onnx")
PLAN = Path("latentsync_unet.plan")
_PANEL = "LatentSync"

_F = TypeVar("_F", bound=Callable[..., None])

guide_app = CommandTree(
    name="guide",
    help="The three steps of LatentSync's TensorRT guide.\n\n$ trt-native guide build --fp16",
    hidden=True,
)

_Fp16 = Annotated[bool, typer.Option("--fp16", help="FP16.", rich_help_panel=_PANEL)]
_Int8 = Annotated[
    bool,
    typer.Option(
        "--int8",
        help="INT8 matrix products, with calibration data: of the build alone.",
        rich_help_panel=_PANEL,
    ),
]
_Static = Annotated[
    bool,
    typer.Option(
        "--static", help="One shape: 2 x 16 frames at the resolution.", rich_help_panel=_PANEL
    ),
]
_Resolution = Annotated[
    int | None,
    typer.Option(
        help="Height and width of the video in pixels, such as 512 or 256."
        " \\[default: 512 for a static shape, else 256 to 512]",
        rich_help_panel=_PANEL,
    ),
]


def _extends(command: Callable[..., None], **defaults: Any) -> Callable[[_F], _F]:
    """Give a function the parameters of a command, with these defaults, for its ``**options``."""

    def decorate(function: _F) -> _F:
        own = inspect.signature(function, eval_str=True)
        kept = [
            parameter
            for parameter in own.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        kept += [
            parameter.replace(
                default=defaults.get(name, parameter.default), kind=inspect.Parameter.KEYWORD_ONLY
            )
            for name, parameter in inspect.signature(
                _plain(command), eval_str=True
            ).parameters.items()
            if name not in own.parameters
        ]
        function.__signature__ = own.replace(parameters=kept)  # type: ignore[attr-defined]
        function.__annotations__ = {p.name: p.annotation for p in kept}
        return function

    return decorate


def _plain(command: Callable[..., None]) -> Callable[..., None]:
    """The command without its own report of errors."""
    plain: Callable[..., None] = inspect.unwrap(command)
    return plain


@guide_app.command("export")
@report_errors
@_extends(latentsync, output=ONNX)
def _export(
    *,
    extents: Annotated[
        str | None,
        typer.Argument(metavar="[batch=N,frames=N,height=N,width=N]", help="Extents for --static."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="latentsync_unet.pt, any other .pt of such weights, or .safetensors.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    fp16: _Fp16 = False,
    int8: _Int8 = False,
    static: _Static = False,
    resolution: _Resolution = None,
    **options: Any,
) -> None:
    """Export checkpoints/latentsync_unet.pt to latentsync_unet.onnx.

    $ trt-native guide export --static --resolution 512
    """
    if int8:
        raise SpecError(
            "INT8 is for the build, which quantizes an FP32 ONNX file: give it there",
            options=("int8",),
        )
    if fp16:
        _choose_precision(options, "fp16", default="fp32")
    if (extents is not None or resolution is not None) and not static:
        raise SpecError(
            "extents and resolution have no effect on a dynamic ONNX file",
            options=("static", "resolution"),
        )
    if static:
        options["static"] = extents or _static_extents(options["config"], resolution)
    if checkpoint is None and options["random_weights"] is None:
        _require(CHECKPOINT, "run this in LatentSync's folder, or name the file", "checkpoint")
        checkpoint = CHECKPOINT
    _plain(latentsync)(checkpoint=checkpoint, **options)


@guide_app.command("build")
@report_errors
@_extends(build, model=ONNX)
def _build(
    *,
    fp16: _Fp16 = False,
    int8: _Int8 = False,
    static: _Static = False,
    resolution: _Resolution = None,
    **options: Any,
) -> None:
    """Build latentsync_unet.plan from latentsync_unet.onnx: FP16, 8 GiB workspace, cached.

    $ trt-native guide build --fp16
    """
    if options["model"] == ONNX:
        _require(ONNX, "export it first, or name another file", "model")
    if int8:
        _choose_int8(options)
    elif fp16:
        _choose_precision(options, "fp16", default="auto")
    if options["profile"] is None:
        _add_dims(options, static, resolution)
    elif static or resolution is not None:
        raise SpecError(
            "a static shape and a resolution have no effect with a profile file",
            options=("profile", "static", "resolution"),
        )
    _plain(build)(**options)


@guide_app.command("infer")
@report_errors
@_extends(run, plan=PLAN, random=0)
def _infer(**options: Any) -> None:
    """Run latentsync_unet.plan on random inputs and print the shapes of its outputs.

    $ trt-native guide infer
    """
    if options["plan"] == PLAN:
        _require(PLAN, "build it first, or name another file", "plan")
    _plain(run)(**options)


def _require(path: Path, advice: str, option: str) -> None:
    if not path.exists():
        raise ModelError(f"{path}: no such file in {Path.cwd()}; {advice}", options=(option,))


def _choose_precision(options: dict[str, Any], precision: str, *, default: str) -> None:
    if options["precision"] not in (default, precision):
        raise SpecError(
            f"precision {options['precision']} contradicts {precision}: give one of them",
            options=("precision", precision),
        )
    options["precision"] = precision


def _choose_int8(options: dict[str, Any]) -> None:
    """INT8 as the U-Net takes it; what is not quantized becomes FP16."""
    _choose_precision(options, "int8", default="auto")
    if options["calibration_data"] is None and options["calibration_cache"] is None:
        raise SpecError(
            "INT8 needs data to calibrate with: record some while LatentSync runs, with"
            " scripts/capture_calibration.py, and give its folder",
            options=("calibration_data",),
        )
    if options["preset"] == "default":
        options["preset"] = "diffusion-unet"


def _static_extents(config: str | None, resolution: int | None) -> str:
    from trt_native.models.latentsync import UNetConfig
    from trt_native.models.latentsync.profile import pipeline_dims

    ranges = pipeline_dims(UNetConfig.load(config or "latentsync-1.6"), resolution)
    return ",".join(f"{name}={extents.opt}" for name, extents in ranges.items())


def _add_dims(options: dict[str, Any], static: bool, resolution: int | None) -> None:
    """Add the pipeline's range of each dynamic dimension that the user gives none for."""
    from trt_native.models.latentsync.profile import profile_dims

    given = {text.partition("=")[0].strip() for text in options["dims"] or []}
    ranges = profile_dims(options["model"], resolution)
    added = [
        f"{name}={extents.opt if static else extents}"
        for name, extents in ranges.items()
        if name not in given
    ]
    options["dims"] = [*added, *(options["dims"] or [])]
    if added:
        options["add_opt_shape_profiles"] = not static
        stderr.print(f"shapes of LatentSync's pipeline: {' '.join(added)}", markup=False)
