"""From an ONNX file and a configuration to a plan."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import onnx_ir as ir

import trt_native
from trt_native.backends.base import Backend, BuildRequest, BuildResult, Progress, load_backend
from trt_native.cuda import GpuInfo, gpu_info
from trt_native.errors import BuildError, SpecError
from trt_native.graph.dims import fixed_axes, resolve_profiles
from trt_native.graph.onnx_file import (
    ModelSummary,
    hash_files,
    operator_names,
    read_model,
    summarize,
)
from trt_native.graph.precision import convert_precision, reduced_types, statistics_nodes
from trt_native.plan import Manifest, Plan, PlanTensor, check_writable
from trt_native.spec import BuildConfig, IoPrecision, Precision, Profile, ShapeRange, TensorSpec

__all__ = ["Outline", "build_plan", "outline"]

_LOGGER = logging.getLogger(__name__)
_DEFAULT_WORKSPACE = 8 * 2**30
_REDUCED = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Outline:
    """What a build would do, worked out without doing it.

    Attributes:
        model: What the ONNX file contains.
        profiles: The resolved optimization profiles; none where everything is static.
        fixed: For each input with a symbolic axis, the extents that every profile fixes.
        precision: Arithmetic of the plan; AUTO means that the graph's own types stay.
        strongly_typed: Whether types come from the graph rather than from builder flags.
        rewrites: Whether the graph's types are rewritten before TensorRT sees it.
        workspace_bytes: Upper limit for scratch memory of one layer.
    """

    model: ModelSummary
    profiles: tuple[Profile, ...]
    fixed: Mapping[str, tuple[int | None, ...]]
    precision: Precision
    strongly_typed: bool
    rewrites: bool
    workspace_bytes: int


def build_plan(
    model: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    backend: str | Backend = "auto",
    progress: Progress | None = None,
) -> Plan:
    """Build a TensorRT plan from an ONNX file.

    TensorRT runs in a thread of its own, so that Ctrl-C works: it cancels the build at TensorRT's
    next step and raises ``KeyboardInterrupt`` once the build has ended.

    Args:
        model: Path of the ONNX file; external weights lie beside it.
        config: What the plan should be; see :class:`~trt_native.spec.BuildConfig`.
        backend: ``auto``, ``tensorrt``, ``rtx``, or a loaded backend.
        progress: Hears how the build goes on.

    Returns:
        The plan with its manifest, not yet saved.

    Raises:
        UnsupportedError: no TensorRT is installed, or it lacks something asked for.
        ModelError: the ONNX file is missing or damaged.
        SpecError: the shapes or types asked for do not fit the model.
        BuildError: TensorRT rejected the model or failed to build it.
    """
    started = time.perf_counter()
    config = config or BuildConfig()
    path = Path(model)
    chosen = load_backend(backend) if isinstance(backend, str) else backend
    chosen.check(config)
    if config.timing_cache is not None:
        check_writable(config.timing_cache)
    with _stage(progress, "Reading the model"):
        graph = read_model(path)
        gpu = gpu_info()
        plan_of_build = _outline(path, graph, config, chosen, gpu)
        files = hash_files(path, graph)
    with _parsable(path, graph, plan_of_build, config, progress) as (onnx, precision, fp32_nodes):
        request = BuildRequest(
            onnx=onnx,
            config=config,
            profiles=plan_of_build.profiles,
            fixed=plan_of_build.fixed,
            precision=plan_of_build.precision,
            strongly_typed=plan_of_build.strongly_typed,
            fp32_nodes=fp32_nodes,
            operators=operator_names(graph),
            workspace_bytes=plan_of_build.workspace_bytes,
        )
        cancelled = threading.Event()
        result = _in_thread(lambda: chosen.build(request, progress, cancelled), cancelled)
    seconds = {**result.seconds, "total": time.perf_counter() - started}
    manifest = Manifest(
        producer=f"trt-native {trt_native.__version__}",
        plan_sha256=sha256(result.data).hexdigest(),
        plan_bytes=len(result.data),
        backend=chosen.name,
        backend_version=chosen.version,
        gpu=gpu.name if gpu else None,
        compute_capabilities=_targets(config, chosen, gpu),
        driver=gpu.driver if gpu else None,
        model=files,
        tensors=_described(result, plan_of_build),
        precision=precision,
        options=config.options(),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return Plan(result.data, manifest)


def outline(
    model: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    backend: str | Backend = "auto",
) -> Outline:
    """Work out what :func:`build_plan` would do, with all its checks, without building.

    Raises:
        UnsupportedError, ModelError, SpecError: as :func:`build_plan`.
    """
    config = config or BuildConfig()
    path = Path(model)
    chosen = load_backend(backend) if isinstance(backend, str) else backend
    chosen.check(config)
    return _outline(path, read_model(path), config, chosen, gpu_info())


def _outline(
    path: Path, graph: ir.Model, config: BuildConfig, backend: Backend, gpu: GpuInfo | None
) -> Outline:
    summary = summarize(path, graph)
    profiles = resolve_profiles(summary.inputs, config.profiles)
    weak = backend.capabilities.weakly_typed
    precision = _decide_precision(graph, config, path)
    strongly_typed = not weak or precision is Precision.AUTO or config.weight_streaming
    return Outline(
        model=summary,
        profiles=profiles,
        fixed={
            name: fixed_axes(profiles, name) for name in (profiles[0].shapes if profiles else ())
        },
        precision=precision,
        strongly_typed=strongly_typed,
        rewrites=strongly_typed and precision in (Precision.FP16, Precision.BF16),
        workspace_bytes=_workspace(config, gpu),
    )


def _decide_precision(graph: ir.Model, config: BuildConfig, path: Path) -> Precision:
    """Resolve AUTO, and refuse what would not have the effect it asks for."""
    present = reduced_types(graph)
    wanted = config.precision
    decided: Precision
    if not present:
        decided = Precision.FP16 if wanted is Precision.AUTO else wanted
    elif wanted is Precision.AUTO or _REDUCED.get(wanted) in present:
        decided = Precision.AUTO
    else:
        raise SpecError(
            f"{path.name} already has {', '.join(sorted(present))} types, which precision {wanted}"
            " does not change; use precision auto, or export the model in FP32"
        )
    if decided not in _REDUCED:
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


def _workspace(config: BuildConfig, gpu: GpuInfo | None) -> int:
    if config.workspace_bytes is not None:
        return config.workspace_bytes
    return min(_DEFAULT_WORKSPACE, gpu.free_bytes) if gpu else _DEFAULT_WORKSPACE


@contextlib.contextmanager
def _parsable(
    path: Path, graph: ir.Model, outline: Outline, config: BuildConfig, progress: Progress | None
) -> Iterator[tuple[Path, dict[str, Any], frozenset[str]]]:
    """The file TensorRT shall parse, what was done about precision, and the nodes to pin in FP32.

    A rewritten graph lives in a temporary folder for as long as the block runs.
    """
    record: dict[str, Any] = {
        "requested": str(config.precision),
        "applied": "as in the model" if outline.precision is Precision.AUTO else outline.precision,
        "tf32": config.allows_tf32,
    }
    if outline.rewrites:
        with tempfile.TemporaryDirectory(prefix="trt-native-") as folder:
            with _stage(progress, f"Rewriting the graph in {outline.precision}"):
                report = convert_precision(
                    graph,
                    ir.DataType[_REDUCED[outline.precision].upper()],
                    keep_fp32=config.keep_fp32,
                    io_precision=config.io_precision.value,
                )
                rewritten = Path(folder) / path.name
                _save_temporary(graph, rewritten)
            yield rewritten, {**record, "rewritten": report.to_dict()}, frozenset()
    elif outline.precision in _REDUCED:
        pinned = frozenset(statistics_nodes(graph, config.keep_fp32))
        yield path, {**record, "pinned_fp32_nodes": len(pinned)}, pinned
    else:
        yield path, record, frozenset()


def _save_temporary(graph: ir.Model, path: Path) -> None:
    try:
        ir.save(graph, path, external_data=f"{path.name}.data")
    except OSError as error:
        raise BuildError(
            f"cannot write the rewritten model to {path.parent}: {error.strerror or error}; point"
            " the environment variable TMPDIR at a folder with more space"
        ) from error


@contextlib.contextmanager
def _stage(progress: Progress | None, name: str) -> Iterator[None]:
    """Report a piece of our own work as a phase of one step."""
    if progress is not None:
        progress.phase_start(name, None, 1)
    yield
    if progress is not None:
        progress.phase_finish(name)


def _in_thread(work: Callable[[], _T], cancelled: threading.Event) -> _T:
    """Run ``work`` in a thread and wait; an interrupt sets ``cancelled``, then waits for the end.

    TensorRT swallows a KeyboardInterrupt that arrives during one of its callbacks, so they must not
    run in the main thread. The wait is on an event: an interrupted ``Thread.join`` would believe,
    before Python 3.13, that the thread had ended.
    """
    ended = threading.Event()
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # raised again by the thread that waits
            failure.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="trt-native-build", daemon=True).start()
    try:
        ended.wait()
    except BaseException:
        cancelled.set()
        _LOGGER.warning("cancelling once TensorRT ends its step; interrupt again to leave at once")
        ended.wait()
        raise
    if failure:
        raise failure[0]
    return outcome[0]


def _targets(config: BuildConfig, backend: Backend, gpu: GpuInfo | None) -> tuple[str, ...]:
    if backend.capabilities.targets:
        return config.compute_capabilities
    return (gpu.compute_capability,) if gpu else ()


def _described(result: BuildResult, outline: Outline) -> tuple[PlanTensor, ...]:
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


def _of_tensor(ranges: Iterable[Mapping[str, ShapeRange]], name: str) -> tuple[ShapeRange, ...]:
    return tuple(by_name[name] for by_name in ranges if name in by_name)


def _dimension_names(spec: TensorSpec | None, rank: int) -> tuple[str | None, ...]:
    if spec is None or spec.shape is None or len(spec.shape) != rank:
        return (None,) * rank
    return tuple(axis if isinstance(axis, str) else None for axis in spec.shape)
