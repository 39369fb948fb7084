"""``trt-native export latentsync``, with a build of what it exports."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.builder.isolated import Job, Outcome
from trt_native.builder.plan_cache import EngineCache
from trt_native.cli.build_summary import build_document, print_summary
from trt_native.cli.console import print_json, report_errors, stderr, table
from trt_native.cli.options import (
    AllowMismatch,
    BackendOption,
    CacheOption,
    CheckpointArgument,
    DimsOption,
    FloatTimestep,
    NoCacheOption,
    RandomWeights,
    RetryOption,
    TimeoutOption,
    UNetConfigOption,
    WarmOption,
    check_weights,
    complete_precision,
    read_fields,
    with_fields,
)
from trt_native.config import BuildConfig, Precision
from trt_native.errors import SpecError, TrtNativeError
from trt_native.files import with_ending
from trt_native.graph.outputs import check_outputs
from trt_native.plans.manifest import manifest_path
from trt_native.progress_bars import ProgressDisplay
from trt_native.scratch import scratch_folder
from trt_native.shapes import ProfileSpec, TensorSpec
from trt_native.units import format_bytes, parse_duration

if TYPE_CHECKING:
    from trt_native.export import ExportReport
    from trt_native.progress import Progress

__all__ = ["latentsync", "print_export"]

_DIMENSIONS = ("batch", "frames", "height", "width")
_BUILD_FIELDS = (
    "add_opt_shape_profiles",
    "fast_at",
    "keep_fp32",
    "workspace_bytes",
    "optimization_level",
    "refit",
    "weight_streaming",
    "compute_capabilities",
)


@report_errors
@with_fields(BuildConfig, before="backend", flags=dict.fromkeys(_BUILD_FIELDS, ""))
def latentsync(
    checkpoint: CheckpointArgument = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="NAME.onnx",
            help="The ONNX file to write. With --build it may be left out: then it is temporary.",
        ),
    ] = None,
    random_weights: RandomWeights = None,
    config: UNetConfigOption = None,
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
    plan: Annotated[
        Path | None,
        typer.Option(
            "--build",
            metavar="NAME.plan",
            help="Also build this plan from the ONNX file, with --deepcache NAME.shallow.plan, too."
            " The options below are for the build, and those of trt-native build.",
        ),
    ] = None,
    dims: DimsOption = None,
    build_precision: Annotated[
        str | None,
        typer.Option(
            help="auto, fp32, tf32, fp16, bf16 or int8-weights: the plan's arithmetic. auto: FP16"
            " for an ONNX file in FP32, else the file's own. \\[default: auto]",
            rich_help_panel="Precision",
        ),
    ] = None,
    backend: BackendOption = "auto",
    warm: WarmOption = False,
    timeout_s: TimeoutOption = None,
    retry: RetryOption = False,
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    **options: Any,
) -> None:
    r"""Export the LatentSync U-Net: latents, timestep and audio in, predicted noise out.

    $ trt-native export latentsync latentsync_unet.pt \
        -o unet.onnx
    $ trt-native export latentsync latentsync_unet.pt \
        --build unet.plan
    """
    check_weights(checkpoint, random_weights, "CHECKPOINT")
    extents = _parse_static(static) if static is not None else {}
    write = _writer(
        deepcache,
        config=config,
        random_seed=random_weights,
        precision=precision,
        static=extents,
        opset=opset,
        timestep_dtype="float32" if float_timestep else "int64",
        allow_mismatch=allow_mismatch,
        durable=output is not None,
    )
    if plan is None:
        given = {
            **options, "dims": dims, "build_precision": build_precision, "warm": warm,
            "timeout_s": timeout_s, "retry": retry, "no_cache": no_cache,
            "backend": backend != "auto",
        }  # fmt: skip
        _refuse_unused([name for name, value in given.items() if value])
        if output is None:
            raise SpecError(
                "give the ONNX file to write, a plan to build, or both", options=("output", "plan")
            )
        with ProgressDisplay(stderr) as progress:
            reports = write(output, checkpoint=checkpoint, progress=progress)
        _print(reports, [], json)
        return
    build_config = BuildConfig(
        profiles=(ProfileSpec.parse(dims),) if dims else (),
        precision=_plan_precision(build_precision),
        **read_fields(BuildConfig, options),
    )
    _check_shapes(build_config, extents)
    jobs = _jobs(
        deepcache,
        Job(
            model=output or with_ending(plan, ".onnx"),
            target=plan,
            config=build_config,
            backend=backend,
            cache=None if no_cache else EngineCache(cache).folder,
            cache_bytes=None,
            warm=warm,
        ),
    )
    targets = [job.target for job in jobs]
    check_outputs(
        filter(None, (output, *targets)),
        reads=(checkpoint, config),
        companions=map(manifest_path, targets),
    )
    seconds = parse_duration(timeout_s) if timeout_s is not None else None
    with contextlib.ExitStack() as files:
        if output is None:
            # Next to the plan there is room for files of its size.
            folder = files.enter_context(scratch_folder(plan.absolute().parent))
            jobs = [replace(job, model=folder / job.model.name) for job in jobs]
        progress = files.enter_context(ProgressDisplay(stderr))
        reports, outcomes = _export_and_build(jobs, write, checkpoint, progress, seconds, retry)
    _print(reports if output else (), list(zip(targets, outcomes, strict=True)), json)


def _writer(deepcache: bool, **options: Any) -> Callable[..., tuple[ExportReport, ...]]:
    """The export with its options, which takes the file to write, weights and progress."""

    def write(path: Path, **given: Any) -> tuple[ExportReport, ...]:
        from trt_native.models.latentsync.export import export_deepcache, export_latentsync

        if deepcache:
            return export_deepcache(path, **options, **given)
        return (export_latentsync(path, **options, **given),)

    return write


def _refuse_unused(options: Sequence[str]) -> None:
    if options:
        raise SpecError("no effect where no plan is built", options=(*options, "plan"))


def _plan_precision(text: str | None) -> Precision:
    try:
        return Precision.AUTO if text is None else Precision.parse(text)
    except TrtNativeError as error:
        error.options = ("build_precision",)
        raise


def _check_shapes(config: BuildConfig, static: Mapping[str, int]) -> None:
    """Check ranges of dimensions before the export; the build checks them against the model."""
    from trt_native.graph.dims import resolve_profiles, with_fast_profiles

    batch, *others = (static.get(name, name) for name in _DIMENSIONS)
    inputs = [TensorSpec("latents", "float32", (batch, 1, *others))]
    profiles = resolve_profiles(inputs, config.profiles)
    fast = [shapes for shapes in config.fast_shapes() if not shapes.shapes]
    with_fast_profiles(profiles, inputs, config.profiles or (ProfileSpec(),), fast)


def _jobs(deepcache: bool, first: Job) -> list[Job]:
    """The builds of what is exported, which names DeepCache's shallow step after the full one."""
    if not deepcache:
        return [first]
    model, plan = (
        with_ending(path, f".shallow{path.suffix}") for path in (first.model, first.target)
    )
    return [first, replace(first, model=model, target=plan)]


def _export_and_build(
    jobs: Sequence[Job],
    write: Callable[..., tuple[ExportReport, ...]],
    checkpoint: Path | None,
    progress: Progress,
    timeout_s: float | None,
    retry: bool,
) -> tuple[tuple[ExportReport, ...], list[Outcome]]:
    from trt_native.builder.exported import build_exported

    def export(check_build: Callable[[], None]) -> tuple[ExportReport, ...]:
        from trt_native.models.latentsync.weights import open_checkpoint

        opened = None if checkpoint is None else open_checkpoint(checkpoint, progress)
        check_build()
        return write(jobs[0].model, checkpoint=opened, progress=progress)

    return build_exported(
        jobs[0], export, lambda _: jobs, progress, timeout_s=timeout_s, retry=retry
    )


def _print(
    reports: Sequence[ExportReport], built: Sequence[tuple[Path, Outcome]], json: bool
) -> None:
    if json:
        documents = [report.to_dict() for report in reports]
        plans = [build_document(target, outcome) for target, outcome in built]
        if built:
            print_json({"exported": documents, "built": plans})
        else:
            print_json(documents if len(documents) > 1 else documents[0])
        return
    for report in reports:
        print_export(report)
    for target, outcome in built:
        print_summary(target, outcome)


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


def print_export(report: ExportReport) -> None:
    """Print the summary of an ONNX file that was written."""
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
