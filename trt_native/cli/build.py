"""``trt-native build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trt_native.builder.isolated import Job, build_with_retries
from trt_native.builder.plan_cache import SIZE_VARIABLE, EngineCache
from trt_native.cli.build_summary import build_document, print_dry_run, print_summary
from trt_native.cli.console import print_json, report_errors, stderr
from trt_native.cli.options import (
    BackendOption,
    CacheOption,
    DeviceOption,
    DimsOption,
    NoCacheOption,
    RetryOption,
    TimeoutOption,
    WarmOption,
    read_fields,
    select_device,
    with_fields,
)
from trt_native.cli.pages import write_plan_page
from trt_native.config import BuildConfig, QuantizationSpec
from trt_native.errors import SpecError
from trt_native.files import with_ending
from trt_native.graph.outputs import check_outputs
from trt_native.plans.manifest import manifest_path
from trt_native.shapes import ProfileSpec
from trt_native.units import parse_bytes, parse_duration

__all__ = ["build"]

_SHAPES, _PROCESS = "Shapes", "Process and cache"
_BEST_HELP = (
    " best: build fp16, int8, fp8, int8-weights and int4-weights, and keep the fastest that is"
    " accurate enough; needs calibration data and a GPU."
)


@report_errors
@with_fields(BuildConfig, before="max_error", extra_help={"precision": _BEST_HELP})
def build(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The ONNX file.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The plan to write. \\[default: MODEL.plan]"),
    ] = None,
    backend: BackendOption = "auto",
    dims: DimsOption = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="NAME=MIN:OPT:MAX",
            help="Range of an input's shape: NAME=1x3x8x8:2x3x8x8:4x3x8x8, or one shape."
            " Wins over --dim. Repeatable.",
            rich_help_panel=_SHAPES,
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML, JSON or TOML file with one or more profiles. --dim and --shape win.",
            rich_help_panel=_SHAPES,
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            help="For --precision best: relative L2 error against FP32 that a plan may have, on"
            " held-out data. \\[default: 0.02]",
            rich_help_panel="Precision",
        ),
    ] = None,
    timeout_s: TimeoutOption = None,
    retry: RetryOption = False,
    device: DeviceOption = None,
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    cache_size: Annotated[
        str | None,
        typer.Option(
            envvar=SIZE_VARIABLE,
            help="Size at which the cache drops what was not used for longest."
            " \\[default: 20GiB, or a tenth of the disk]",
            show_envvar=True,
            rich_help_panel=_PROCESS,
        ),
    ] = None,
    warm: WarmOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, up to TensorRT's parser, and print what would be built.",
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Write one self-contained page about the plan to this file, as"
            " trt-native inspect --html does.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    **options: Any,
) -> None:
    """Build a TensorRT plan from an ONNX model.

    $ trt-native build net.onnx --dim batch=1:8:32
    $ trt-native build net.onnx -o net.plan --precision fp16
    $ trt-native build net.onnx --dry-run
    """
    select_device(device)
    quantization = QuantizationSpec(**read_fields(QuantizationSpec, options))
    best = options["precision"].lower() == "best"
    if max_error is not None and not best:
        raise SpecError("--max-error: no effect without --precision best")
    if best:
        options["precision"] = None
    config = BuildConfig(
        profiles=_profiles(dims or [], shapes or [], profile),
        quantization=QuantizationSpec() if best else quantization,
        **read_fields(BuildConfig, options),
    )
    job = Job(
        model=model,
        target=output or with_ending(model, ".plan"),
        config=config,
        backend=backend,
        cache=None if no_cache or dry_run else EngineCache(cache).folder,
        cache_bytes=parse_bytes(cache_size) if cache_size is not None else None,
        warm=warm,
    )
    if dry_run:
        if best:
            raise SpecError("--dry-run: precision best decides by building and measuring")
        if report is not None:
            raise SpecError("--report: a dry run makes no plan to write about")
        print_dry_run(job, json)
        return
    reads = (profile, quantization.calibration_cache, quantization.calibration_data)
    check_outputs(
        filter(None, (job.target, config.timing_cache, report)),
        reads=reads,
        models=[model],
        companions=[manifest_path(job.target)],
    )
    seconds = parse_duration(timeout_s) if timeout_s is not None else None
    if best:
        from trt_native.cli.best import build_best

        build_best(job, quantization, max_error, seconds, retry, json)
    else:
        _build(job, seconds, retry, json)
    if report is not None:
        write_plan_page(job.target, report, model)


def _profiles(dims: list[str], shapes: list[str], file: Path | None) -> tuple[ProfileSpec, ...]:
    given = ProfileSpec.parse(dims, shapes)
    if file is not None:
        from trt_native.graph.dims import read_profile_file

        return tuple(profile.overridden_by(given) for profile in read_profile_file(file))
    return (given,) if dims or shapes else ()


def _build(job: Job, timeout_s: float | None, retry: bool, json: bool) -> None:
    from trt_native.progress_bars import ProgressDisplay

    with ProgressDisplay(stderr) as progress:
        outcome = build_with_retries(job, progress, timeout_s=timeout_s, retry=retry)
    if json:
        print_json(build_document(job.target, outcome))
    else:
        print_summary(job.target, outcome)
