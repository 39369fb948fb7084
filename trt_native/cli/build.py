"""``trt-native build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_native.builder.isolated import Job, build_with_retries
from trt_native.builder.plan_cache import FOLDER_VARIABLE, SIZE_VARIABLE, EngineCache
from trt_native.cli.build_summary import print_dry_run, print_summary
from trt_native.cli.console import print_json, report_errors, stderr
from trt_native.cli.quantize import (
    CALIBRATION_CACHE_HELP,
    COVERAGE_HELP,
    EXCLUDE_HELP,
    MEMORY_HELP,
    OPS_HELP,
    PRESET_HELP,
    RUNNER_HELP,
    parse_ops,
)
from trt_native.config import (
    BuildConfig,
    CalibrationMethod,
    CalibrationRunner,
    HardwareCompatibility,
    IoPrecision,
    Precision,
    ProfilingVerbosity,
    QuantizationSpec,
)
from trt_native.errors import SpecError
from trt_native.files import check_writable
from trt_native.plans.manifest import manifest_path
from trt_native.shapes import ProfileSpec
from trt_native.units import parse_bytes, parse_duration

__all__ = ["build"]

_SHAPES, _TYPES, _TUNING, _TARGET = "Shapes", "Precision", "Memory and tuning", "Target"
_QUANTIZATION = "Quantization (--precision int8, fp8, int8-weights)"
_PROCESS = "Process and cache"


@report_errors
def build(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The ONNX file.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The plan to write. \\[default: MODEL.plan]"),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="auto, tensorrt or rtx; auto reads TRT_NATIVE_BACKEND first.")
    ] = "auto",
    dim: Annotated[
        list[str] | None,
        typer.Option(
            help="Range of a symbolic dimension: NAME=MIN:OPT:MAX, or NAME=N. Repeatable.",
            rich_help_panel=_SHAPES,
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Range of an input's shape: NAME=1x3x8x8:2x3x8x8:4x3x8x8, or one shape."
            " Wins over --dim. Repeatable.",
            rich_help_panel=_SHAPES,
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="YAML, JSON or TOML file with one or more profiles. --dim and --shape win.",
            rich_help_panel=_SHAPES,
        ),
    ] = None,
    add_opt_shape_profiles: Annotated[
        bool,
        typer.Option(
            "--add-opt-shape-profiles",
            help="Add to each profile with ranges one of its OPT shapes alone: these then run as"
            " fast as in a static plan.",
            rich_help_panel=_SHAPES,
        ),
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            help="auto, fp32, tf32, fp16, bf16, int8, fp8, int8-weights or best. auto: FP16 for an"
            " FP32 model, else the model's own. best: build fp16, int8, fp8 and int8-weights, and"
            " keep the fastest that is accurate enough; needs calibration data and a GPU.",
            rich_help_panel=_TYPES,
        ),
    ] = "auto",
    max_error: Annotated[
        float | None,
        typer.Option(
            help="For --precision best: relative L2 error against FP32 that a plan may have, on"
            " held-out data. \\[default: 0.02]",
            rich_help_panel=_TYPES,
        ),
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(
            help="Shell pattern of nodes that stay FP32, such as '*/norm*' or 'op:Resize'."
            " Norm and softmax statistics always do. Repeatable.",
            rich_help_panel=_TYPES,
        ),
    ] = None,
    io_precision: Annotated[
        str,
        typer.Option(
            help="keep, fp32 or fp16: type of the plan's floating-point inputs and outputs.",
            rich_help_panel=_TYPES,
        ),
    ] = "keep",
    tf32: Annotated[
        bool | None,
        typer.Option(
            "--tf32/--no-tf32",
            help="TF32 in FP32 layers: faster, 11 bits. \\[default: yes, but for --precision fp32]",
            rich_help_panel=_TYPES,
        ),
    ] = None,
    calibration_cache: Annotated[
        Path | None,
        typer.Option(help=CALIBRATION_CACHE_HELP, rich_help_panel=_QUANTIZATION),
    ] = None,
    calibration_data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|FILE.npz|FILE.py:FUNCTION",
            help="Calibration data to find the ranges with, instead of a cache.",
            rich_help_panel=_QUANTIZATION,
        ),
    ] = None,
    calibration_method: Annotated[
        str | None,
        typer.Option(
            help="How ranges follow from the data: entropy, minmax, percentile or mse."
            " \\[default: entropy by TensorRT 10's own calibrator, else mse]",
            rich_help_panel=_QUANTIZATION,
        ),
    ] = None,
    calibration_runner: Annotated[
        str, typer.Option(help=RUNNER_HELP, rich_help_panel=_QUANTIZATION)
    ] = "auto",
    calibration_memory_bytes: Annotated[
        str | None,
        typer.Option("--calibration-memory", help=MEMORY_HELP, rich_help_panel=_QUANTIZATION),
    ] = None,
    ops: Annotated[
        str | None, typer.Option("--quantize-ops", help=OPS_HELP, rich_help_panel=_QUANTIZATION)
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--quantize-exclude", help=EXCLUDE_HELP, rich_help_panel=_QUANTIZATION),
    ] = None,
    preset: Annotated[
        str, typer.Option("--quantize-preset", help=PRESET_HELP, rich_help_panel=_QUANTIZATION)
    ] = "default",
    min_coverage: Annotated[
        float,
        typer.Option("--quantize-min-coverage", help=COVERAGE_HELP, rich_help_panel=_QUANTIZATION),
    ] = 0.0,
    workspace_bytes: Annotated[
        str | None,
        typer.Option(
            "--workspace",
            help="Most scratch memory one layer may take. \\[default: 8GiB, or as much as is free]",
            rich_help_panel=_TUNING,
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(help="0 (fast build) to 5 (fast plan).", rich_help_panel=_TUNING),
    ] = None,
    max_aux_streams: Annotated[
        int | None,
        typer.Option(help="Extra streams one inference may use.", rich_help_panel=_TUNING),
    ] = None,
    sparse_weights: Annotated[
        bool, typer.Option(help="Use 2:4 sparse weights.", rich_help_panel=_TUNING)
    ] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="Layer timings to read and extend.", rich_help_panel=_TUNING),
    ] = None,
    profiling_verbosity: Annotated[
        str,
        typer.Option(
            help="detailed, layer_names_only or none: what the plan tells of its layers.",
            rich_help_panel=_TUNING,
        ),
    ] = "detailed",
    refit: Annotated[
        bool, typer.Option(help="Weights can be replaced later.", rich_help_panel=_TARGET)
    ] = False,
    strip_weights: Annotated[
        bool, typer.Option(help="Leave the weights out of the plan.", rich_help_panel=_TARGET)
    ] = False,
    weight_streaming: Annotated[
        bool,
        typer.Option(help="Weights may stay in host memory.", rich_help_panel=_TARGET),
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option(help="Loads in later versions of TensorRT.", rich_help_panel=_TARGET),
    ] = False,
    hardware_compatibility: Annotated[
        str,
        typer.Option(help="none, ampere_plus or same_compute_capability.", rich_help_panel=_TARGET),
    ] = "none",
    compute_capabilities: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            help="GPU the plan targets, such as 8.9 (TensorRT-RTX). Repeatable."
            " \\[default: every one it supports]",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    timeout_s: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            metavar="DURATION",
            help="Stop a build that takes longer, such as 90s, 15m or 1h30m.",
            rich_help_panel=_PROCESS,
        ),
    ] = None,
    retry: Annotated[
        bool,
        typer.Option(
            "--retry",
            help="When memory or an implementation is lacking, build again, at most three times,"
            " with a smaller workspace and a lower optimization level.",
            rich_help_panel=_PROCESS,
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            envvar=FOLDER_VARIABLE,
            help="Folder of built plans and layer timings. \\[default: the user's cache folder]",
            show_envvar=True,
            rich_help_panel=_PROCESS,
        ),
    ] = None,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache", help="Build even what is in the cache.", rich_help_panel=_PROCESS
        ),
    ] = False,
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print what would be built.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Build a TensorRT plan from an ONNX model."""
    quantization = QuantizationSpec(
        calibration_cache=calibration_cache,
        calibration_data=calibration_data,
        calibration_method=(
            None if calibration_method is None else CalibrationMethod.parse(calibration_method)
        ),
        calibration_runner=CalibrationRunner.parse(calibration_runner),
        calibration_memory_bytes=(
            None if calibration_memory_bytes is None else parse_bytes(calibration_memory_bytes)
        ),
        ops=parse_ops(ops),
        exclude=tuple(exclude or ()),
        preset=preset,
        min_coverage=min_coverage,
    )
    best = precision.lower() == "best"
    if max_error is not None and not best:
        raise SpecError("--max-error: no effect without --precision best")
    config = BuildConfig(
        profiles=_profiles(dim or [], shape or [], profile),
        add_opt_shape_profiles=add_opt_shape_profiles,
        precision=Precision.AUTO if best else Precision.parse(precision),
        io_precision=IoPrecision.parse(io_precision),
        keep_fp32=tuple(keep_fp32 or ()),
        quantization=QuantizationSpec() if best else quantization,
        workspace_bytes=parse_bytes(workspace_bytes) if workspace_bytes is not None else None,
        optimization_level=optimization_level,
        max_aux_streams=max_aux_streams,
        tf32=tf32,
        sparse_weights=sparse_weights,
        refit=refit,
        strip_weights=strip_weights,
        weight_streaming=weight_streaming,
        version_compatible=version_compatible,
        hardware_compatibility=HardwareCompatibility.parse(hardware_compatibility),
        compute_capabilities=tuple(compute_capabilities or ()),
        timing_cache=timing_cache,
        profiling_verbosity=ProfilingVerbosity.parse(profiling_verbosity),
    )
    if dry_run:
        if best:
            raise SpecError("--dry-run: precision best decides by building and measuring")
        print_dry_run(model, config, backend, json)
        return
    job = Job(
        model=model,
        target=output or model.with_suffix(".plan"),
        config=config,
        backend=backend,
        cache=None if no_cache else EngineCache(cache).folder,
        cache_bytes=parse_bytes(cache_size) if cache_size is not None else None,
    )
    reads = [model, profile, calibration_cache, timing_cache]
    if calibration_data is not None:
        reads.append(Path(calibration_data))
    for file in (job.target, manifest_path(job.target)):
        check_writable(file, reads=reads)
    seconds = parse_duration(timeout_s) if timeout_s is not None else None
    if best:
        from trt_native.cli.best import build_best

        build_best(job, quantization, max_error, seconds, retry, json)
    else:
        _build(job, seconds, retry, json)


def _profiles(dims: list[str], shapes: list[str], file: Path | None) -> tuple[ProfileSpec, ...]:
    given = ProfileSpec.parse(dims, shapes)
    if file is not None:
        from trt_native.graph.dims import read_profile_file

        return tuple(profile.overridden_by(given) for profile in read_profile_file(file))
    return (given,) if dims or shapes else ()


def _build(job: Job, timeout_s: float | None, retry: bool, json: bool) -> None:
    from trt_native.cli.progress import BuildProgress

    with BuildProgress(stderr) as progress:
        outcome = build_with_retries(job, progress, timeout_s=timeout_s, retry=retry)
    if json:
        print_json(
            {
                "path": str(job.target),
                "cached": outcome.cached,
                "failed_attempts": [attempt.to_json() for attempt in outcome.attempts],
                **outcome.manifest.to_json(),
            }
        )
    else:
        print_summary(job.target, outcome)
