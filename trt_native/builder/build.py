"""From an ONNX file and a configuration to a plan."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common as passes

from trt_native._version import __version__
from trt_native.backends.base import Backend, BuildRequest, BuildResult, Calibration
from trt_native.backends.building import default_workspace, run_interruptible, save_temporary
from trt_native.backends.registry import load_backend
from trt_native.builder.engine_calibration import activation_source
from trt_native.builder.quantize_file import (
    NO_RANGES,
    Ranges,
    find_ranges,
    load_ranges,
    quantize_graph,
)
from trt_native.calibration.batches import Batches, read_batches
from trt_native.config import (
    BuildConfig,
    CalibrationMethod,
    CalibrationRunner,
    IoPrecision,
    Precision,
    QuantizationSpec,
)
from trt_native.cuda import GpuInfo, gpu_info
from trt_native.errors import SpecError, TrtNativeError, UnsupportedError
from trt_native.files import check_writable, sha256_of_file
from trt_native.graph.dims import fixed_extents, resolve_profiles, with_opt_shape_profiles
from trt_native.graph.onnx_file import (
    ModelSummary,
    hash_files,
    operator_names,
    read_model,
    summarize,
)
from trt_native.graph.quantizable import quantizable_tensors
from trt_native.graph.refit_signature import refit_signature
from trt_native.graph.types import is_reduced, reduced_types
from trt_native.passes.autocast import autocast, fp32_node_names
from trt_native.passes.mark_outputs import mark_outputs
from trt_native.passes.parser_workarounds import (
    apply_parser_workarounds,
    check_parser_support,
    needs_parser_workarounds,
    with_replacements,
)
from trt_native.passes.quantize import QuantizationReport
from trt_native.passes.quantize_rules import default_ops
from trt_native.passes.split_fp32_products import has_products, split_fp32_products
from trt_native.plans.engine_layers import parse_layers, quantized_layers
from trt_native.plans.manifest import Manifest, PlanTensor
from trt_native.plans.plan import Plan
from trt_native.progress import Progress, phase
from trt_native.runtime.engine import Engine
from trt_native.shapes import Profile, TensorSpec

__all__ = [
    "BuildDecisions",
    "PreparedBuild",
    "build_plan",
    "build_prepared",
    "outline",
    "parsable",
    "prepare",
]

_LOGGER = logging.getLogger(__name__)
_FIRST_WITH_TF32 = 8.0  # compute capability; it is the first with BF16, too
_REDUCED = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}


@dataclass(frozen=True, slots=True)
class BuildDecisions:
    """What a build would do, worked out without doing it.

    Attributes:
        model: What the ONNX file contains.
        profiles: The resolved optimization profiles; none where everything is static.
        fixed: For each input with a symbolic axis, the extents that every profile fixes.
        precision: Arithmetic of the plan; AUTO means that the graph's own types stay.
        strongly_typed: Whether types come from the graph rather than from builder flags.
        rewrites: Whether the graph's types are rewritten before TensorRT sees it.
        workspace_bytes: Upper limit for scratch memory of one layer.
        rest: The type that FP32 arithmetic of the graph is reduced to; None where it stays.
        splits: Whether FP32 products are computed in parts, for a backend that has them in TF32
            only.
        mends: Whether nodes that TensorRT's parser misreads are written in other ways.
        calibrates: Whether TensorRT itself finds the ranges and chooses what runs in INT8.
        quantization: What would be quantized, as the manifest tells it; None where nothing is, or
            TensorRT chooses.
    """

    model: ModelSummary
    profiles: tuple[Profile, ...]
    fixed: Mapping[str, tuple[int | None, ...]]
    precision: Precision
    strongly_typed: bool
    rewrites: bool
    workspace_bytes: int
    rest: Precision | None
    splits: bool
    mends: bool
    calibrates: bool
    quantization: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PreparedBuild:
    """A build, checked and worked out; :func:`build_prepared` does it, once.

    Attributes:
        path: The ONNX file.
        graph: What was read from it; the build changes it.
        config: What was asked for.
        backend: Who builds.
        gpu: Where; None on a machine without a GPU.
        outline: What will be done.
        files: ``file``, ``sha256`` and ``bytes`` of the ONNX file and of each of its ``external``
            weights.
        ranges: What a calibration cache tells about the model.
        batches: The calibration data; None where that is not needed.
        started: When the preparation began, by ``time.perf_counter``.
    """

    path: Path
    graph: ir.Model
    config: BuildConfig
    backend: Backend
    gpu: GpuInfo | None
    outline: BuildDecisions
    files: Mapping[str, Any]
    ranges: Ranges
    batches: Batches | None
    started: float


def build_plan(
    model: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    backend: str | Backend = "auto",
    progress: Progress | None = None,
    expose: Sequence[str] = (),
    isolated: bool = False,
    timeout_s: float | None = None,
    retry: bool = False,
) -> Plan:
    """Build a TensorRT plan from an ONNX file.

    TensorRT runs in a thread of its own, so that Ctrl-C works: it cancels the build at TensorRT's
    next step and raises ``KeyboardInterrupt`` once the build has ended.

    Args:
        model: Path of the ONNX file; external weights lie beside it.
        config: What the plan should be; see :class:`~trt_native.config.BuildConfig`.
        backend: ``auto``, ``tensorrt``, ``rtx``, or a loaded backend.
        progress: Hears how the build goes on.
        expose: Names of tensors inside the model that the plan shall return too, in the type that
            they have there. What the build does to the graph does not depend on them, but how
            TensorRT fuses layers does.
        isolated: Build in a child process, so that a crash of TensorRT raises :class:`BuildError`;
            see :func:`trt_native.builder.isolated.build_isolated`. Neither ``expose`` nor a loaded
            backend can be given then.
        timeout_s: Longest time in seconds that an isolated build may take.
        retry: Repeat an isolated build with a smaller workspace and a lower optimization level
            where memory or an implementation is lacking.

    Returns:
        The plan with its manifest, not yet saved. To reuse built plans, call
        :meth:`trt_native.builder.plan_cache.EngineCache.build_plan`.

    Raises:
        UnsupportedError: no TensorRT is installed, or it lacks something asked for.
        ModelError: the ONNX file is missing or damaged.
        SpecError: the shapes or types asked for do not fit the model.
        CalibrationError: the calibration cache cannot be read, or was made for another model.
        BuildError: TensorRT rejected the model or failed to build it.
    """
    if isolated:
        if expose or not isinstance(backend, str):
            raise SpecError(
                "an isolated build takes no further outputs, and its backend by name",
                options=("isolated", "expose", "backend"),
            )
        from trt_native.builder.isolated import build_isolated

        return build_isolated(
            model, config, backend=backend, progress=progress, timeout_s=timeout_s, retry=retry
        )
    if timeout_s is not None or retry:
        raise SpecError(
            "a time limit and a retry need an isolated build: give isolated=True",
            options=("isolated", "timeout_s", "retry"),
        )
    prepared = prepare(model, config, backend=backend, progress=progress)
    return build_prepared(prepared, progress=progress, expose=expose)


def prepare(
    model: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    backend: str | Backend = "auto",
    progress: Progress | None = None,
    hash_file: Callable[[Path], str] = sha256_of_file,
) -> PreparedBuild:
    """Do all of :func:`build_plan` that comes before the build.

    Args:
        model: As for :func:`build_plan`, like the rest.
        config: The same.
        backend: The same.
        progress: The same.
        hash_file: Returns the SHA-256 of a file in hexadecimal.

    Raises:
        UnsupportedError, ModelError, SpecError, CalibrationError: as :func:`build_plan`.
    """
    started = time.perf_counter()
    config = config or BuildConfig()
    path = Path(model)
    chosen = load_backend(backend) if isinstance(backend, str) else backend
    chosen.check(config)
    _check_ranges(config)
    if config.timing_cache is not None:
        check_writable(config.timing_cache)
    with phase(progress, "Reading the model"):
        graph = read_model(path)
        gpu = gpu_info()
        planned = _outline(path, graph, config, chosen, gpu)
        files = hash_files(path, graph, hash_file)
        ranges = _ranges(config, files)
    batches = _batches(planned, config, progress)
    return PreparedBuild(path, graph, config, chosen, gpu, planned, files, ranges, batches, started)


def build_prepared(
    prepared: PreparedBuild,
    *,
    progress: Progress | None = None,
    timing_cache: Path | None = None,
    expose: Sequence[str] = (),
) -> Plan:
    """Do the build.

    Args:
        prepared: The build.
        progress: Hears how it goes on.
        timing_cache: File to use where the config names none, for a backend that measures layers.
        expose: As for :func:`build_plan`.

    Raises:
        SpecError: less can be quantized than was asked for, or the model lacks a tensor to expose.
        CalibrationError: the calibration data is of no use.
        BuildError: TensorRT rejected the model or failed to build it.
    """
    config, chosen, planned, gpu = (
        prepared.config,
        prepared.backend,
        prepared.outline,
        prepared.gpu,
    )
    with parsable(prepared, progress, expose) as (onnx, precision, fp32_nodes):
        request = BuildRequest(
            onnx=onnx,
            config=config,
            profiles=planned.profiles,
            fixed=planned.fixed,
            precision=Precision.FP16 if planned.calibrates else planned.precision,
            strongly_typed=planned.strongly_typed,
            fp32_nodes=fp32_nodes,
            operators=operator_names(prepared.graph),
            workspace_bytes=planned.workspace_bytes,
            timing_cache=config.timing_cache or timing_cache,
            calibration=_calibration(prepared) if planned.calibrates else None,
        )
        refit = _refit_record(onnx, progress) if config.refit or config.strip_weights else None
        cancelled = threading.Event()
        result = run_interruptible(lambda: chosen.build(request, progress, cancelled), cancelled)
    if planned.precision.quantized:
        precision["engine_layers"] = None
        if gpu is not None:
            with phase(progress, "Reading the layers of the engine"):
                precision["engine_layers"] = _engine_layers(result.data, chosen)
    seconds = {**result.seconds, "total": time.perf_counter() - prepared.started}
    manifest = Manifest(
        producer=f"trt-native {__version__}",
        plan_sha256=sha256(result.data).hexdigest(),
        plan_bytes=len(result.data),
        backend=chosen.name,
        backend_version=chosen.version,
        gpu=gpu.name if gpu else None,
        compute_capabilities=_targets(config, chosen, gpu),
        driver=gpu.driver if gpu else None,
        model={**prepared.files, "metadata": _noted(planned.model.metadata)},
        tensors=_described(result, planned),
        precision=precision,
        options=config.options(),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        refit=refit,
    )
    return Plan(result.data, manifest)


def _engine_layers(data: memoryview, backend: Backend) -> dict[str, Any] | None:
    """Which layers compute in INT8 or FP8; None where the plan cannot be loaded to be asked."""
    try:
        with Engine(Plan(data), backend=backend) as engine:
            return quantized_layers(parse_layers(engine.layers()))
    except TrtNativeError as error:  # the plan may be for another GPU, or stripped of its weights
        _LOGGER.info("the layers of the plan cannot be read here: %s", error.message)
        return None


def outline(
    model: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    backend: str | Backend = "auto",
) -> BuildDecisions:
    """Work out what :func:`build_plan` would do, with all its checks, without building.

    Raises:
        UnsupportedError, ModelError, SpecError, CalibrationError: as :func:`build_plan`.
    """
    config = config or BuildConfig()
    path = Path(model)
    chosen = load_backend(backend) if isinstance(backend, str) else backend
    chosen.check(config)
    _check_ranges(config)
    graph = read_model(path)
    planned = _outline(path, graph, config, chosen, gpu_info())
    if not config.precision.quantized:
        return planned
    ranges = _ranges(config, hash_files(path, graph))
    if _batches(planned, config, None) is not None:
        ranges = replace(ranges, amax=dict.fromkeys(quantizable_tensors(graph), 1.0))
    if planned.calibrates:
        return planned
    quantizer = _Quantizer(config, chosen, ranges, planned)
    return replace(planned, quantization=quantizer.record(graph, dry_run=True))


def _check_ranges(config: BuildConfig) -> None:
    spec = config.quantization
    if (
        config.precision.needs_ranges
        and spec.calibration_cache is None
        and spec.calibration_data is None
    ):
        raise SpecError(
            f"precision {config.precision} needs the ranges of the activations: give a calibration"
            " cache or calibration data, or use precision int8-weights, which needs neither",
            options=("calibration_cache", "calibration_data"),
        )


def _ranges(config: BuildConfig, files: Mapping[str, Any]) -> Ranges:
    """The ranges of the activations, where any are quantized."""
    cache = config.quantization.calibration_cache
    return NO_RANGES if cache is None else load_ranges(cache, files, config.precision)


def _batches(
    outline: BuildDecisions, config: BuildConfig, progress: Progress | None
) -> Batches | None:
    """The calibration data, checked against the model."""
    if config.quantization.calibration_data is None:
        return None
    with phase(progress, "Checking the calibration data"):
        return read_batches(config.quantization.calibration_data, outline.model.inputs)


def _native_method(spec: QuantizationSpec) -> str:
    return (spec.calibration_method or CalibrationMethod.ENTROPY).value


def _calibration(prepared: PreparedBuild) -> Calibration:
    """What TensorRT's own calibrator needs."""
    spec = prepared.config.quantization
    return Calibration(
        batches=prepared.batches, cache=spec.calibration_cache, method=_native_method(spec)
    )


@dataclass(frozen=True, slots=True)
class _Quantizer:
    """Writes the Q/DQ nodes that a backend builds."""

    config: BuildConfig
    backend: Backend
    ranges: Ranges
    outline: BuildDecisions

    def quantize(self, graph: ir.Model, *, dry_run: bool = False) -> QuantizationReport:
        """Rewrite the graph, in place.

        Raises:
            SpecError: less can be quantized than was asked for.
        """
        profiles = self.outline.profiles
        shapes = {name: shape.opt for name, shape in profiles[0].shapes.items()} if profiles else {}
        return quantize_graph(
            graph,
            self.config.precision,
            self._spec(),
            self.ranges,
            shapes=shapes,
            note=self.lacks(graph),
            dry_run=dry_run,
        )

    def lacks(self, graph: ir.Model) -> str:
        """What the backend cannot build of the graph's operators that would be quantized."""
        built = self.backend.capabilities.quantized_ops[self.config.precision]
        present = {node.op_type for node in graph.graph}
        lacking = [op for op in self._wanted() if op in present and op not in built]
        if not lacking:
            return ""
        product = f"{self.backend.product} {self.backend.version}"
        return f"{product} builds no {' or '.join(lacking)} in {self.config.precision}"

    def record(self, graph: ir.Model, *, dry_run: bool = False) -> dict[str, Any]:
        """Quantize; what the manifest tells of it, with the ranges' origin."""
        return {
            **self.quantize(graph, dry_run=dry_run).to_dict(),
            "calibration": dict(self.ranges.origin),
            "backend_lacks": self.lacks(graph),
        }

    def _wanted(self) -> tuple[str, ...]:
        spec = self.config.quantization
        return spec.ops or default_ops(self.config.precision.value, spec.preset)

    def ops(self) -> tuple[str, ...]:
        """The operators to quantize, as far as the backend builds them."""
        built = self.backend.capabilities.quantized_ops[self.config.precision]
        return tuple(operator for operator in self._wanted() if operator in built)

    def _spec(self) -> QuantizationSpec:
        # What is to compute in FP32 cannot compute in INT8.
        skip = (*self.config.quantization.exclude, *self.config.keep_fp32)
        return replace(self.config.quantization, ops=self.ops(), exclude=skip)


def _outline(
    path: Path, graph: ir.Model, config: BuildConfig, backend: Backend, gpu: GpuInfo | None
) -> BuildDecisions:
    summary = summarize(path, graph)
    check_parser_support(graph)
    profiles = resolve_profiles(summary.inputs, config.profiles)
    if config.add_opt_shape_profiles:
        profiles = with_opt_shape_profiles(profiles)
    weak = backend.capabilities.weakly_typed
    precision = _decide_precision(graph, config, path)
    calibrates = _calibrates(graph, config, backend)
    # Q/DQ nodes alone say what is quantized where types come from the graph.
    quantizes = precision.quantized and not calibrates
    from_graph = precision is Precision.AUTO or quantizes or _has_qdq(graph)
    strongly_typed = not weak or from_graph or config.weight_streaming
    rest = _rest(graph, precision) if strongly_typed else None
    splits = _splits(graph, config, backend)
    return BuildDecisions(
        model=summary,
        profiles=profiles,
        fixed=fixed_extents(profiles),
        precision=precision,
        strongly_typed=strongly_typed,
        rewrites=rest is not None or quantizes or splits,
        workspace_bytes=(
            default_workspace(gpu) if config.workspace_bytes is None else config.workspace_bytes
        ),
        rest=rest,
        splits=splits,
        mends=needs_parser_workarounds(graph),
        calibrates=calibrates,
    )


def _calibrates(graph: ir.Model, config: BuildConfig, backend: Backend) -> bool:
    """Whether TensorRT's own calibrator can do what is asked for, without Q/DQ nodes."""
    spec = config.quantization
    own = (
        spec.calibration_runner is not CalibrationRunner.AUTO
        or spec.calibration_memory_bytes is not None
    )
    places_nodes = replace(
        spec,
        calibration_cache=None,
        calibration_data=None,
        calibration_method=None,
        calibration_runner=CalibrationRunner.AUTO,
        calibration_memory_bytes=None,
    )
    return (
        config.precision is Precision.INT8
        and backend.capabilities.int8_calibrator
        and spec.calibration_method in (None, CalibrationMethod.ENTROPY, CalibrationMethod.MINMAX)
        and not own
        and places_nodes == QuantizationSpec()
        and not config.weight_streaming
        and not reduced_types(graph)
    )


def _splits(graph: ir.Model, config: BuildConfig, backend: Backend) -> bool:
    """Whether TF32 is off, but the backend computes FP32 products in it unless they are split."""
    targets = config.compute_capabilities
    older = [target for target in targets if float(target) < _FIRST_WITH_TF32]
    exact = config.allows_tf32 or backend.capabilities.exact_fp32 or (older and older == [*targets])
    if exact or not has_products(graph):
        return False
    if older:
        raise UnsupportedError(
            f"{backend.product} {backend.version} needs BF16 to keep FP32 products out of TF32, and"
            f" compute capability {', '.join(older)} has neither: build a plan for that apart from"
            " the others, or allow TF32 (--tf32)"
        )
    return True


def _has_qdq(graph: ir.Model) -> bool:
    return "quantized" in reduced_types(graph)


def _rest(graph: ir.Model, precision: Precision) -> Precision | None:
    """What the FP32 arithmetic of a graph is reduced to; None where it stays."""
    if precision in _REDUCED:
        return precision
    return Precision.FP16 if precision.quantized and not is_reduced(graph) else None


def _decide_precision(graph: ir.Model, config: BuildConfig, path: Path) -> Precision:
    """Resolve AUTO, and refuse what would not have the effect it asks for."""
    present = reduced_types(graph)
    wanted = config.precision
    decided: Precision
    if wanted.quantized:
        if "quantized" in present:
            raise SpecError(
                f"{path.name} has Q/DQ nodes already, which precision {wanted} would add; use"
                " precision auto to build it as it is"
            )
        decided = wanted
    elif not is_reduced(graph):
        decided = Precision.FP16 if wanted is Precision.AUTO else wanted
    elif wanted is Precision.AUTO or _REDUCED.get(wanted) in present:
        decided = Precision.AUTO
    else:
        raise SpecError(
            f"{path.name} already has {', '.join(sorted(present))} types, which precision {wanted}"
            " does not change; use precision auto, or export the model in FP32"
        )
    if _rest(graph, decided) is None:
        without_effect = {
            "keep_fp32": config.keep_fp32,
            "io_precision": config.io_precision is not IoPrecision.KEEP,
        }
        useless = " and ".join(name for name, given in without_effect.items() if given)
        if useless:
            raise SpecError(
                f"{useless}: no effect, because the types of {path.name} stay as they are; this is"
                " for FP32 models that are built in FP16 or BF16"
            )
    return decided


@contextlib.contextmanager
def parsable(
    prepared: PreparedBuild, progress: Progress | None = None, expose: Sequence[str] = ()
) -> Iterator[tuple[Path, dict[str, Any], frozenset[str]]]:
    """The file TensorRT shall parse, what was done about precision, and the nodes to pin in FP32.

    A changed graph lives in a temporary folder for as long as the block runs.

    Raises:
        SpecError, CalibrationError, BuildError: as :func:`build_prepared`.
    """
    path, config, precision = prepared.path, prepared.config, prepared.outline.precision
    record: dict[str, Any] = {
        "requested": str(config.precision),
        "applied": "as in the model" if precision is Precision.AUTO else precision,
        "tf32": config.allows_tf32,
    }
    pinned: frozenset[str] = frozenset()
    if prepared.outline.rewrites:
        record.update(_rewrite(prepared, progress))
    elif precision in _REDUCED or prepared.outline.calibrates:
        if prepared.outline.calibrates:
            record["calibrated"] = _calibration_record(prepared)
        pinned = frozenset(fp32_node_names(prepared.graph, config.keep_fp32))
        record["pinned_fp32_nodes"] = len(pinned)
    if prepared.outline.mends:  # not before: the rules for FP16 know the operators that are mended
        record["mended"] = apply_parser_workarounds(prepared.graph)
        pinned = with_replacements(prepared.graph, pinned)
    if prepared.outline.splits:
        with phase(progress, "Splitting the products in FP32"):
            record["split_fp32_products"] = split_fp32_products(prepared.graph)
    if expose:
        mark_outputs(prepared.graph, expose)
    if not (prepared.outline.rewrites or prepared.outline.mends or expose):
        yield path, record, pinned
        return
    with tempfile.TemporaryDirectory(prefix="trt-native-") as folder:
        # A name that TensorRT and onnx_ir take, which may append to it.
        plain = path.name.isprintable() and len(path.name) < 50
        changed = Path(folder) / (path.name if plain else "model.onnx")
        with phase(progress, "Writing the rewritten graph"):
            save_temporary(prepared.graph, changed)
        yield changed, record, pinned


def _refit_record(onnx: Path, progress: Progress | None) -> dict[str, Any]:
    with phase(progress, "Reading the weights"):
        return asdict(refit_signature(read_model(onnx)))


def _calibration_record(prepared: PreparedBuild) -> dict[str, Any]:
    spec, batches = prepared.config.quantization, prepared.batches
    origin = dict(prepared.ranges.origin)
    if batches is not None:
        origin = {"data": batches.source, "batches": len(batches), "method": _native_method(spec)}
    return {"by": f"{prepared.backend.product} {prepared.backend.version}", **origin}


def _rewrite(prepared: PreparedBuild, progress: Progress | None) -> dict[str, Any]:
    """Quantize, and reduce what is left in FP32; returns what was done."""
    graph, config, outline = prepared.graph, prepared.config, prepared.outline
    record: dict[str, Any] = {}
    if outline.precision.quantized:
        ranges = prepared.ranges
        if prepared.batches is not None:
            ranges = _found_ranges(prepared, prepared.batches, progress)
        with phase(progress, f"Quantizing the graph to {outline.precision}"):
            quantizer = _Quantizer(config, prepared.backend, ranges, outline)
            record["quantized"] = quantizer.record(graph)
    if outline.rest is not None:
        with phase(progress, f"Rewriting the graph in {outline.rest}"):
            report = autocast(
                graph,
                ir.DataType[_REDUCED[outline.rest].upper()],
                keep_fp32=config.keep_fp32,
                io_precision=config.io_precision.value,
            )
            record["rewritten"] = report.to_dict()
    return record


def _found_ranges(prepared: PreparedBuild, batches: Batches, progress: Progress | None) -> Ranges:
    """The ranges of what will be quantized, from the calibration data."""
    config, backend, spec = prepared.config, prepared.backend, prepared.config.quantization
    if prepared.graph.functions:
        passes.InlinePass()(prepared.graph)
    any_range = replace(NO_RANGES, amax=dict.fromkeys(quantizable_tensors(prepared.graph), 1.0))
    quantizer = _Quantizer(config, backend, any_range, prepared.outline)
    quantizer.quantize(prepared.graph, dry_run=True)  # nothing to quantize: say so before the work
    source = activation_source(
        spec.calibration_runner, backend=backend, memory_bytes=spec.calibration_memory_bytes
    )
    with phase(progress, f"Calibrating with {source.name}"):
        return find_ranges(
            prepared.path,
            batches,
            config.precision,
            spec.calibration_method,
            progress,
            ops=quantizer.ops(),
            source=source,
        )


def _noted(metadata: Mapping[str, str]) -> dict[str, str]:
    """What our export noted in an ONNX file; other tools' entries may be of any kind and size."""
    return {key: value for key, value in metadata.items() if key.startswith("trt_native.")}


def _targets(config: BuildConfig, backend: Backend, gpu: GpuInfo | None) -> tuple[str, ...]:
    if backend.capabilities.targets:
        return config.compute_capabilities
    return (gpu.compute_capability,) if gpu else ()


def _described(result: BuildResult, outline: BuildDecisions) -> tuple[PlanTensor, ...]:
    """The network's tensors with the model's dimension names and the profiles added."""
    specs = {spec.name: spec for spec in (*outline.model.inputs, *outline.model.outputs)}
    return tuple(
        replace(
            tensor,
            dims=_dimension_names(specs.get(tensor.name), len(tensor.shape)),
            profiles=tuple(
                p.shapes[tensor.name] for p in outline.profiles if tensor.name in p.shapes
            ),
            values=tuple(
                p.values[tensor.name] for p in outline.profiles if tensor.name in p.values
            ),
        )
        for tensor in result.tensors
    )


def _dimension_names(spec: TensorSpec | None, rank: int) -> tuple[str | None, ...]:
    if spec is None or spec.shape is None or len(spec.shape) != rank:
        return (None,) * rank
    return tuple(axis if isinstance(axis, str) else None for axis in spec.shape)
