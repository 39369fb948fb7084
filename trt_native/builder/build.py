"""From an ONNX file and a configuration to a plan: decisions, passes, TensorRT, manifest."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from trt_native._version import __version__
from trt_native.backends.base import Backend, BuildRequest, BuildResult, Calibration
from trt_native.backends.building import default_workspace, run_interruptible
from trt_native.backends.registry import load_backend
from trt_native.builder.activation_ranges import (
    any_ranges,
    cached_ranges,
    calibrated_ranges,
    calibration_batches,
    check_ranges,
    with_ranges,
)
from trt_native.calibration.batches import Batches
from trt_native.calibration.model_ranges import Ranges
from trt_native.config import (
    BuildConfig,
    CalibrationMethod,
    IoPrecision,
    Precision,
    QuantizationSpec,
    RuntimePlatform,
    as_config,
)
from trt_native.cuda import GpuInfo, gpu_info
from trt_native.errors import SpecError, TrtNativeError, UnsupportedError
from trt_native.files import as_path, check_writable, sha256_of_file
from trt_native.graph.data_dependence import data_dependent_outputs
from trt_native.graph.dims import (
    fixed_extents,
    read_limits,
    resolve_profiles,
    with_fast_profiles,
    with_opt_shape_profiles,
)
from trt_native.graph.fixed_inputs import check_fixed_inputs
from trt_native.graph.mapped_model import release_pages
from trt_native.graph.model_interface import ModelInterface, model_interface
from trt_native.graph.onnx_file import (
    CHANGED_KEY,
    ModelSummary,
    check_unchanged,
    file_states,
    hash_files,
    model_files,
    operator_names,
    read_model,
    save_temporary,
    summarize,
)
from trt_native.graph.types import is_reduced, quantized_types, reduced_types
from trt_native.passes.autocast import can_be_reduced
from trt_native.passes.base import GraphPass, PassContext, ResolvedPrecision
from trt_native.passes.pin_fp32_nodes import pinned_nodes
from trt_native.passes.pipelines import BUILD, describe_passes, run_passes, select_passes
from trt_native.plans.engine_layers import parse_layers, quantized_layers
from trt_native.plans.manifest import Manifest, PlanTensor
from trt_native.plans.plan import Plan
from trt_native.plans.plan_file import PlanFile
from trt_native.plans.plugins import plugin_records
from trt_native.progress import Progress, phase
from trt_native.scratch import scratch_folder
from trt_native.shapes import Profile, ProfileSpec, TensorSpec

if TYPE_CHECKING:
    from trt_native.graph.refit_record import RefitRecord

__all__ = [
    "BuildDecisions",
    "LoweredModel",
    "PreparedBuild",
    "build_prepared",
    "check_config",
    "decide",
    "lower",
    "precision_record",
    "prepare",
    "resolve_precision",
]

_LOGGER = logging.getLogger(__name__)
_IO = {IoPrecision.FP16: "float16", IoPrecision.FP32: "float32"}
_REDUCED = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}


@dataclass(frozen=True, slots=True)
class BuildDecisions:
    """Everything about a build that is decided before it.

    Attributes:
        model: Summary of the ONNX file.
        profiles: The resolved optimization profiles; none where everything is static.
        fixed: For each input with a symbolic axis, the extents that every profile fixes.
        precision: What the requested precision means for the model.
        workspace_bytes: Upper limit for scratch memory of one layer.
        passes: What each pass that will run does, as far as that is known, in order.
    """

    model: ModelSummary
    profiles: tuple[Profile, ...]
    fixed: Mapping[str, tuple[int | None, ...]]
    precision: ResolvedPrecision
    workspace_bytes: int
    passes: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The decisions about the plan, as ``--dry-run --json`` prints them."""
        return {
            "precision": str(self.precision),
            "strongly_typed": self.precision.strongly_typed,
            "calibrates": self.precision.calibrates,
            "workspace_bytes": self.workspace_bytes,
            "passes": list(self.passes),
            "profiles": [
                {
                    "shapes": {name: str(r) for name, r in profile.shapes.items()},
                    "values": {name: str(r) for name, r in profile.values.items()},
                }
                for profile in self.profiles
            ],
        }


@dataclass(frozen=True, slots=True)
class PreparedBuild:
    """A checked build; :func:`build_prepared` runs it, once.

    Attributes:
        path: The ONNX file.
        graph: The model, read from it and normalized; the build changes it.
        config: The configuration that was requested.
        backend: The TensorRT that builds.
        gpu: The GPU of this machine; None if there is none.
        decisions: What was decided.
        passes: The passes that will run.
        files: ``file``, ``sha256`` and ``bytes`` of the ONNX file and of each of its ``external``
            weights.
        states: :func:`~trt_native.graph.onnx_file.file_states` of these files when they were read,
            in that order.
        ranges: The ranges of the activations, from a calibration cache.
        batches: The calibration data; None where that is not needed.
        extra_outputs: Names of tensors to return besides the model's outputs.
        debug_tensors: Whether a listener can be given the tensors between the plan's kernels.
        started: When the preparation began, by ``time.perf_counter``.
    """

    path: Path
    graph: ir.Model
    config: BuildConfig
    backend: Backend
    gpu: GpuInfo | None
    decisions: BuildDecisions
    passes: tuple[GraphPass, ...]
    files: Mapping[str, Any]
    states: Mapping[Path, tuple[int, int, int]]
    ranges: Ranges
    batches: Batches | None
    extra_outputs: tuple[str, ...]
    debug_tensors: bool
    started: float


@dataclass(frozen=True, slots=True)
class LoweredModel:
    """The model that TensorRT parses.

    Attributes:
        path: The ONNX file.
        passes: What each pass did, in order.
        fp32_nodes: Names of the nodes to pin in FP32 on a weakly typed network.
    """

    path: Path
    passes: tuple[Mapping[str, Any], ...]
    fp32_nodes: frozenset[str]


def prepare(
    model: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    backend: str | Backend = "auto",
    progress: Progress | None = None,
    extra_outputs: Sequence[str] = (),
    debug_tensors: bool = False,
    hash_file: Callable[[Path], str] = sha256_of_file,
) -> PreparedBuild:
    """Do all of :func:`~trt_native.builder.build_plan.build_plan` that comes before the build.

    Args:
        model: As for :func:`~trt_native.builder.build_plan.build_plan`, like the rest.
        config: The same.
        backend: The same.
        progress: The same.
        extra_outputs: The same.
        debug_tensors: The same.
        hash_file: Returns the SHA-256 of a file in hexadecimal.

    Raises:
        UnsupportedError, ModelError, SpecError, CalibrationError: as ``build_plan``.
    """
    started = time.perf_counter()
    config = as_config(config)
    path = as_path(model)
    chosen = load_backend(backend)
    check_config(config, chosen)
    _check_debug_tensors(debug_tensors, chosen)
    with phase(progress, "Reading the model"):
        states = file_states([path])
        graph = read_model(path)
        states = {**file_states(model_files(path, graph)), **states}
        gpu = gpu_info()
        decisions = _decide(path, graph, config, chosen, gpu)
        context = PassContext(
            config=config,
            precision=decisions.precision,
            backend=chosen,
            profiles=decisions.profiles,
            extra_outputs=tuple(extra_outputs),
        )
        passes = select_passes(BUILD, graph, context)
        files = hash_files(path, graph, hash_file)
        ranges = cached_ranges(config, files)
    batches = calibration_batches(config, decisions.model.inputs, progress)
    return PreparedBuild(
        path, graph, config, chosen, gpu, decisions, passes, files, states, ranges, batches,
        tuple(extra_outputs), debug_tensors, started,
    )  # fmt: skip


def build_prepared(
    prepared: PreparedBuild,
    *,
    progress: Progress | None = None,
    timing_cache: Path | None = None,
    output: PlanFile | None = None,
) -> Plan:
    """Run a prepared build.

    Args:
        prepared: The build.
        progress: Receives progress callbacks.
        timing_cache: File to use where the config names none, for a backend that times layers.
        output: File for the plan, where the backend can write it as it is made.

    Raises:
        SpecError: less can be quantized than was requested, or the model lacks an extra output.
        CalibrationError: the calibration data cannot be used.
        BuildError: TensorRT rejected the model or failed to build it.
    """
    config, chosen = prepared.config, prepared.backend
    interface = _interface(prepared, progress)
    with lower(prepared, progress) as lowered:
        refit = _refit_record(prepared, lowered, progress)
        request = replace(
            _request(prepared, lowered, interface),
            timing_cache=config.timing_cache or timing_cache,
            output=output,
            refit_weights=None if refit is None else refit.marked,
        )
        release_pages(prepared.graph)
        cancelled = threading.Event()
        result = run_interruptible(lambda: chosen.build(request, progress, cancelled), cancelled)
    check_unchanged(prepared.states, "the plan was built; build it")
    precision = precision_record(prepared)
    if config.precision.quantized:
        precision["engine_layers"] = None
        if prepared.gpu is not None and config.runtime_platform is RuntimePlatform.SAME_AS_BUILD:
            with phase(progress, "Reading the layers of the engine"):
                precision["engine_layers"] = _engine_layers(
                    result.data, prepared.config.plugins, chosen
                )
    manifest = _manifest(prepared, lowered, result, precision, refit)
    return Plan(result.data, manifest, plugins=prepared.config.plugins)


def _request(
    prepared: PreparedBuild, lowered: LoweredModel, interface: ModelInterface
) -> BuildRequest:
    decisions = prepared.decisions
    return BuildRequest(
        onnx=lowered.path,
        interface=interface,
        config=prepared.config,
        profiles=decisions.profiles,
        fixed=decisions.fixed,
        builder_flags=decisions.precision.builder_flags,
        strongly_typed=decisions.precision.strongly_typed,
        fp32_nodes=lowered.fp32_nodes,
        operators=operator_names(prepared.graph),
        workspace_bytes=decisions.workspace_bytes,
        calibration=_calibration(prepared) if decisions.precision.calibrates else None,
        debug_tensors=prepared.debug_tensors,
    )


def _interface(prepared: PreparedBuild, progress: Progress | None) -> ModelInterface:
    """The inputs and outputs that the plan must have."""
    types = {"float64": "float32"}
    io_precision = prepared.config.io_precision
    if io_precision is not IoPrecision.KEEP:
        types |= dict.fromkeys(("float64", "float32", "float16", "bfloat16"), _IO[io_precision])
    with phase(progress, "Inferring the shapes of inputs and outputs"):
        found = model_interface(prepared.graph, prepared.decisions.profiles, prepared.extra_outputs)
    return found.with_types(types)


def _manifest(
    prepared: PreparedBuild,
    lowered: LoweredModel,
    result: BuildResult,
    precision: Mapping[str, Any],
    refit: RefitRecord | None,
) -> Manifest:
    backend, gpu = prepared.backend, prepared.gpu
    seconds = {**result.seconds, "total": time.perf_counter() - prepared.started}
    metadata = _own_metadata(prepared.decisions.model.metadata)
    return Manifest(
        producer=f"trt-native {__version__}",
        plan_sha256=result.sha256,
        plan_bytes=len(result.data),
        backend=backend.name,
        backend_version=backend.version,
        gpu=gpu.name if gpu else None,
        compute_capabilities=_targets(prepared.config, backend, gpu),
        driver=gpu.driver if gpu else None,
        model={**prepared.files, "metadata": metadata},
        tensors=_described(result, prepared),
        precision=precision,
        passes=lowered.passes,
        options=prepared.config.options(),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        refit=None if refit is None else refit.to_json(),
        plugins=tuple(plugin_records(prepared.config.plugins)),
    )


def _engine_layers(
    data: memoryview, plugins: tuple[str, ...], backend: Backend
) -> dict[str, Any] | None:
    """Layers that compute in INT8 or FP8; None where the plan cannot be loaded here."""
    from trt_native.runtime.engine import Engine

    try:
        with Engine(Plan(data, plugins=plugins), backend=backend) as engine:
            return quantized_layers(parse_layers(engine.layers()))
    except TrtNativeError as error:  # the plan may be for another GPU, or stripped of its weights
        _LOGGER.info("the layers of the plan cannot be read here: %s", error.message)
        return None


def decide(
    model: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    backend: str | Backend = "auto",
    progress: Progress | None = None,
) -> BuildDecisions:
    """Decide what ``build_plan`` would do, with all its checks, without building.

    The passes are applied, with a made-up range for each activation where calibration data was
    given, and TensorRT parses the result.

    Raises:
        UnsupportedError, ModelError, SpecError, CalibrationError: as ``build_plan``.
    """
    cached = config is not None and config.quantization.calibration_cache is not None
    # Hashes serve the manifest, and to check a calibration cache.
    hash_file = sha256_of_file if cached else lambda _: ""
    prepared = prepare(model, config, backend=backend, progress=progress, hash_file=hash_file)
    ranges = prepared.ranges if prepared.batches is None else any_ranges(prepared.graph)
    passes = with_ranges(prepared.passes, ranges)
    described = tuple(describe_passes(passes, prepared.graph))
    interface = _interface(prepared, progress)
    with _lower(prepared, passes, progress) as lowered:
        request = _request(prepared, lowered, interface)
        run_interruptible(lambda: prepared.backend.parse(request), threading.Event())
    return replace(prepared.decisions, passes=described)


def check_config(config: BuildConfig, backend: Backend) -> None:
    """Check what can be checked of a configuration without the model.

    Raises:
        UnsupportedError, SpecError: as ``build_plan``.
    """
    backend.check(config)
    check_ranges(config)
    if config.timing_cache is not None:
        check_writable(config.timing_cache)


def _check_debug_tensors(wanted: bool, backend: Backend) -> None:
    if wanted and not backend.capabilities.debug_tensors:
        raise UnsupportedError(
            f"{backend.product} {backend.version} gives out no debug tensors: make the tensors"
            " outputs of the plan instead",
            options=("debug_tensors",),
        )


def _native_method(spec: QuantizationSpec) -> str:
    return (spec.calibration_method or CalibrationMethod.ENTROPY).value


def _calibration(prepared: PreparedBuild) -> Calibration:
    """Input of TensorRT's own calibrator."""
    spec = prepared.config.quantization
    return Calibration(
        batches=prepared.batches, cache=spec.calibration_cache, method=_native_method(spec)
    )


def _decide(
    path: Path, graph: ir.Model, config: BuildConfig, backend: Backend, gpu: GpuInfo | None
) -> BuildDecisions:
    summary = summarize(path, graph)
    summary = replace(summary, inputs=check_fixed_inputs(summary.inputs, config.fixed_values()))
    limits = read_limits(summary.metadata)
    profiles = resolve_profiles(summary.inputs, config.profiles, limits)
    resolved = profiles
    if config.add_opt_shape_profiles:
        profiles = with_opt_shape_profiles(profiles)
    if config.fast_at:
        specs, shapes = config.profiles or (ProfileSpec(),), config.fast_shapes()
        fast = with_fast_profiles(resolved, summary.inputs, specs, shapes)
        profiles += tuple(one for one in fast if one not in profiles)
    return BuildDecisions(
        model=summary,
        profiles=profiles,
        fixed=fixed_extents(profiles),
        precision=resolve_precision(graph, config, backend, path),
        workspace_bytes=(
            default_workspace(gpu) if config.workspace_bytes is None else config.workspace_bytes
        ),
    )


def resolve_precision(
    graph: ir.Model, config: BuildConfig, backend: Backend | None, path: Path
) -> ResolvedPrecision:
    """Find out what a requested precision means for a model.

    Args:
        graph: The model.
        config: The configuration that was requested.
        backend: The TensorRT that builds; None where types come from the graph in any case.
        path: The ONNX file.

    Raises:
        SpecError: it would not have the effect that it asks for.
        UnsupportedError: the backend does not build models with Q/DQ nodes on this machine.
    """
    applied = _applied_precision(graph, config, path)
    calibrates = backend is not None and _calibrates(graph, config, backend)
    writes_qdq = config.precision.quantized and not calibrates
    quantized = writes_qdq or "quantized" in reduced_types(graph)
    if quantized and backend is not None:
        _check_quantizing(backend)
    # Q/DQ nodes alone say what is quantized where types come from the graph.
    from_graph = applied is None or quantized or is_reduced(graph)
    weakly_typed = backend is not None and backend.capabilities.weakly_typed
    if config.in_place_caches and config.io_precision is not IoPrecision.KEEP:
        raise SpecError(
            "in_place_caches: a cache has the type that the model gives it, not"
            f" {config.io_precision}; export it in that type",
            options=("in_place_caches", "io_precision"),
        )
    needs_typing = config.weight_streaming or config.in_place_caches
    strongly_typed = not weakly_typed or from_graph or needs_typing
    return ResolvedPrecision(
        applied=applied,
        strongly_typed=strongly_typed,
        lowered_to=_lowered_to(graph, applied) if strongly_typed else None,
        writes_qdq=writes_qdq,
        calibrates=calibrates,
    )


def _check_quantizing(backend: Backend) -> None:
    if backend.capabilities.quantizing_needs_gpu and gpu_info() is None:
        raise UnsupportedError(
            f"{backend.product} {backend.version} builds models with Q/DQ nodes only on a machine"
            " with a GPU; use a later version, or build without quantization"
        )


def _calibrates(graph: ir.Model, config: BuildConfig, backend: Backend) -> bool:
    """Whether TensorRT's own calibrator can do what is asked for, without Q/DQ nodes."""
    spec = config.quantization
    ranges_alone = QuantizationSpec(
        calibration_cache=spec.calibration_cache,
        calibration_data=spec.calibration_data,
        calibration_method=spec.calibration_method,
    )
    return (
        config.precision is Precision.INT8
        and backend.capabilities.int8_calibrator
        and spec.calibration_method in (None, CalibrationMethod.ENTROPY, CalibrationMethod.MINMAX)
        and spec == ranges_alone
        and not config.weight_streaming
        and not reduced_types(graph)
    )


def _lowered_to(graph: ir.Model, applied: Precision | None) -> Precision | None:
    """The type that FP32 arithmetic of a graph is reduced to; None where it stays."""
    if applied in _REDUCED:
        return applied
    quantized = applied is not None and applied.quantized
    return Precision.FP16 if quantized and can_be_reduced(graph) else None


def _applied_precision(graph: ir.Model, config: BuildConfig, path: Path) -> Precision | None:
    """Resolve AUTO, and refuse what would not have the effect it asks for."""
    present = reduced_types(graph)
    wanted = config.precision
    applied: Precision | None
    if wanted.quantized:
        if "quantized" in present:
            raise SpecError(
                f"{path.name} has Q/DQ nodes already, which precision {wanted} would add; leave"
                " the precision out to keep it as it is"
            )
        applied = wanted
    elif not is_reduced(graph):
        applied = Precision.FP16 if wanted is Precision.AUTO else wanted
    elif wanted is Precision.AUTO or _REDUCED.get(wanted) in present:
        reduces = wanted is not Precision.AUTO and can_be_reduced(graph)
        applied = wanted if reduces else None
    else:
        raise SpecError(
            f"{path.name} already has {', '.join(sorted(present))} types, which precision {wanted}"
            " does not change; leave the precision out, or export the model in FP32"
        )
    if _lowered_to(graph, applied) is None:
        without_effect = {
            "keep_fp32": config.keep_fp32,
            "io_precision": config.io_precision is not IoPrecision.KEEP,
            "calibration_data": config.quantization.calibration_data is not None
            and not wanted.quantized,
        }
        useless = " and ".join(name for name, given in without_effect.items() if given)
        if useless:
            raise SpecError(
                f"{useless}: no effect, because the types of {path.name} stay as they are; this is"
                " for FP32 models that are built in FP16 or BF16"
            )
    return applied


@contextlib.contextmanager
def lower(prepared: PreparedBuild, progress: Progress | None = None) -> Iterator[LoweredModel]:
    """Apply the passes of a build.

    A changed graph is written to a temporary folder for as long as the block runs.

    Raises:
        SpecError, CalibrationError, BuildError: as :func:`build_prepared`.
    """
    ranges = prepared.ranges
    if prepared.batches is not None:
        ranges = calibrated_ranges(
            prepared.path, prepared.graph, prepared.passes, prepared.batches,
            config=prepared.config, backend=prepared.backend, ranges=ranges, progress=progress,
        )  # fmt: skip
    passes = with_ranges(prepared.passes, ranges)
    with _lower(prepared, passes, progress) as lowered:
        yield lowered


@contextlib.contextmanager
def _lower(
    prepared: PreparedBuild, passes: tuple[GraphPass, ...], progress: Progress | None
) -> Iterator[LoweredModel]:
    path, graph = prepared.path, prepared.graph
    rewritten = any(one.rewrites for one in passes) or CHANGED_KEY in graph.meta
    if not rewritten:  # TensorRT reads the file as it is, not what was normalized in memory
        passes = tuple(one for one in passes if not one.early)
    records = tuple(run_passes(passes, graph, progress))
    if not rewritten:
        yield LoweredModel(path, records, pinned_nodes(graph))
        return
    with scratch_folder() as folder:
        # A name that TensorRT and onnx_ir take, which may append to it.
        plain = path.name.isprintable() and len(path.name) < 50
        changed = folder / (path.name if plain else "model.onnx")
        with phase(progress, "Writing the rewritten graph"):
            save_temporary(graph, changed)
        yield LoweredModel(changed, records, pinned_nodes(graph))


def precision_record(prepared: PreparedBuild) -> dict[str, Any]:
    """The manifest's record of a plan's precision."""
    precision = prepared.decisions.precision
    record: dict[str, Any] = {
        "requested": str(prepared.config.precision),
        "applied": str(precision),
        "tf32": prepared.config.allows_tf32,
    }
    if not precision.writes_qdq and (quantized := quantized_types(prepared.graph)):
        record["quantized_in_model"] = list(quantized)
    if precision.calibrates:
        record["calibrated"] = _calibration_record(prepared)
    return record


def refit_record(prepared: PreparedBuild, lowered: LoweredModel, graph: ir.Model) -> RefitRecord:
    """Read the weights that TensorRT will parse, and where they come from in the ONNX file.

    Args:
        prepared: The build.
        lowered: The model that its passes made.
        graph: That model, read from its file.
    """
    from trt_native.graph.refit_record import RefitRecord
    from trt_native.graph.weight_sources import made_weights

    original = graph if lowered.path == prepared.path else read_model(prepared.path)
    return RefitRecord.read(original, graph, made_weights(prepared.graph))


def _refit_record(
    prepared: PreparedBuild, lowered: LoweredModel, progress: Progress | None
) -> RefitRecord | None:
    config = prepared.config
    if not config.refit and not config.strip_weights:
        return None
    from trt_native.graph.refit_signature import norm_scales

    with phase(progress, "Reading the weights"):
        graph = read_model(lowered.path)
        record = refit_record(prepared, lowered, graph)
    if not config.refit_weights:
        return record
    fixed = prepared.backend.capabilities.fixed_norm_scales
    return record.marking(config.refit_weights, () if fixed else norm_scales(graph))


def _calibration_record(prepared: PreparedBuild) -> dict[str, Any]:
    spec, batches = prepared.config.quantization, prepared.batches
    origin = dict(prepared.ranges.origin)
    if batches is not None:
        origin = {"data": batches.source, "batches": len(batches), "method": _native_method(spec)}
    return {"by": f"{prepared.backend.product} {prepared.backend.version}", **origin}


def _own_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries of our export; other tools' may be of any kind and size."""
    return {key: value for key, value in metadata.items() if key.startswith("trt_native.")}


def _targets(config: BuildConfig, backend: Backend, gpu: GpuInfo | None) -> tuple[str, ...]:
    if backend.capabilities.targets:
        return config.compute_capabilities
    return (gpu.compute_capability,) if gpu else ()


def _described(result: BuildResult, prepared: PreparedBuild) -> tuple[PlanTensor, ...]:
    """The network's tensors, with what the model and the profiles say of them."""
    decisions = prepared.decisions
    dependent = data_dependent_outputs(
        prepared.graph,
        decisions.profiles,
        {name for profile in decisions.profiles for name in profile.values},
    )
    specs = {spec.name: spec for spec in (*decisions.model.inputs, *decisions.model.outputs)}
    return tuple(
        replace(
            tensor,
            dims=_dimension_names(specs.get(tensor.name), len(tensor.shape)),
            profiles=tuple(
                p.shapes[tensor.name] for p in decisions.profiles if tensor.name in p.shapes
            ),
            values=tuple(
                p.values[tensor.name] for p in decisions.profiles if tensor.name in p.values
            ),
            data_dependent=tensor.name in dependent and -1 in tensor.shape,
        )
        for tensor in result.tensors
    )


def _dimension_names(spec: TensorSpec | None, rank: int) -> tuple[str | None, ...]:
    if spec is None or spec.shape is None or len(spec.shape) != rank:
        return (None,) * rank
    return tuple(axis if isinstance(axis, str) else None for axis in spec.shape)
