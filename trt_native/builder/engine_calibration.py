"""Activations of a model from TensorRT engines with extra outputs, measured on the GPU.

The tensors to measure become outputs of engines, in groups that the GPU has memory for. Each
group's engine runs all batches twice: for the largest values, then for exact histograms.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from trt_native.arrays import Array, Batch
from trt_native.backends.base import Backend, BuildRequest
from trt_native.backends.building import default_workspace, run_interruptible
from trt_native.backends.registry import load_backend
from trt_native.calibration.collect import (
    Activations,
    ActivationSource,
    ReferenceActivations,
    collect,
    distinct_shapes,
    not_finite,
    uneven_passes,
)
from trt_native.calibration.device import MEASURED_DTYPES, DeviceStatistics
from trt_native.calibration.ranges import Histogram
from trt_native.calibration.rows import RowReader, sample_rows
from trt_native.config import (
    BuildConfig,
    CalibrationRunner,
    CpuRuntime,
    Precision,
    ProfilingVerbosity,
)
from trt_native.cuda import GpuInfo, gpu_info, require_gpu
from trt_native.errors import CalibrationError, CudaError, UnsupportedError
from trt_native.graph.dims import fixed_extents, resolve_profiles
from trt_native.graph.macs import static_shapes
from trt_native.graph.model_interface import model_interface
from trt_native.graph.onnx_file import operator_names, save_temporary, tensor_specs
from trt_native.graph.types import is_reduced
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.pipelines import CALIBRATE, run_passes, select_passes
from trt_native.passes.quantize_rules import attention_operands
from trt_native.plans.plan import Plan
from trt_native.progress import Progress, phase
from trt_native.runtime import Session
from trt_native.runtime.engine import Engine
from trt_native.scratch import scratch_folder
from trt_native.shapes import Profile, ProfileSpec, Shape, ShapeRange
from trt_native.units import format_bytes

__all__ = ["DEFAULT_MEMORY_BYTES", "EngineActivations", "activation_source"]

DEFAULT_MEMORY_BYTES = 8 * 2**30
"""GPU memory for the activations of one group, where nothing else is asked for."""

_LARGE = 2**30  # bytes of weights from which on AUTO takes an engine in FP16
_ATTENTION = "only attention's own products read it, which stay in floating point"
_LOGGER = logging.getLogger(__name__)


class _Statistics(Protocol):
    """Interface of :class:`~trt_native.calibration.device.DeviceStatistics`."""

    def measure(self, name: str, tensor: Any, dtype: str) -> None: ...
    def peaks(self) -> dict[str, float]: ...
    def start_histograms(self, limits: Mapping[str, float]) -> None: ...
    def count(self, name: str, tensor: Any, dtype: str) -> None: ...
    def wait(self) -> None: ...
    def histograms(self) -> dict[str, Histogram]: ...
    def close(self) -> None: ...


_Run: TypeAlias = Callable[[Batch], Mapping[str, tuple[Any, str]]]
"""Takes a batch; gives for each output the tensor in GPU memory and its dtype."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Tensors that one engine returns."""

    tensors: tuple[str, ...]
    number: int
    of: int


def activation_source(
    by: CalibrationRunner,
    *,
    backend: str | Backend = "auto",
    memory_bytes: int | None = None,
    ordinal: int = 0,
) -> ActivationSource:
    """Choose what runs a model to calibrate it.

    Args:
        by: What was asked for.
        backend: Whose engines.
        memory_bytes: As for :class:`EngineActivations`.
        ordinal: CUDA ordinal of the GPU.

    Raises:
        CudaError: an engine was asked for, and there is no GPU.
        UnsupportedError: an engine or OpenVINO was asked for, and is not installed.
    """
    if by is CalibrationRunner.REFERENCE:
        return ReferenceActivations(CpuRuntime.ONNX)
    if by is CalibrationRunner.OPENVINO:
        return ReferenceActivations(CpuRuntime.OPENVINO)
    if by is not CalibrationRunner.AUTO:
        try:
            require_gpu(ordinal)
        except CudaError as error:
            raise CudaError(
                f"activations by {by} need a GPU: {error.message}; take them by reference"
            ) from None
    elif gpu_info(ordinal) is None:
        return ReferenceActivations()
    try:
        chosen = load_backend(backend)
    except UnsupportedError as error:
        if by is not CalibrationRunner.AUTO:
            raise
        source = ReferenceActivations()
        _LOGGER.warning("activations come from %s, on the CPU: %s", source.name, error.message)
        return source
    return EngineActivations(chosen, by=by, memory_bytes=memory_bytes, ordinal=ordinal)


class EngineActivations:
    """Activations from engines on the GPU; see :class:`ActivationSource`.

    Tensors that only attention's own products read are left out: they are never quantized, and to
    return them would keep TensorRT from fusing attention, which takes tens of GiB in a large
    U-Net. So are tensors that are larger than the memory by themselves. Norms run as arithmetic,
    because not every GPU has a kernel for one whose neighbours are outputs.

    Args:
        backend: Whose engines.
        by: ``ENGINE``, ``ENGINE_FP16``, or ``AUTO`` to choose by the size of the weights.
        memory_bytes: How much GPU memory the tensors of one group may take. None is
            :data:`DEFAULT_MEMORY_BYTES`, or half of what is free where that is less.
        ordinal: CUDA ordinal of the GPU.

    Attributes:
        name: What runs the model, and after a run also in which types.
        groups: After a run, how many engines it took.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        by: CalibrationRunner = CalibrationRunner.AUTO,
        memory_bytes: int | None = None,
        ordinal: int = 0,
    ) -> None:
        self.name = f"{backend.product} {backend.version}"
        self.groups = 0
        self._product = self.name
        self._backend = backend
        self._by = by
        self._memory_bytes = memory_bytes
        self._ordinal = ordinal

    def __call__(
        self,
        model: ir.Model,
        tensors: Sequence[str],
        batches: Iterable[Batch],
        *,
        histograms: bool,
        progress: Progress | None,
    ) -> Activations:
        """Measure what tensors of the main graph hold.

        Args:
            model: The model, without model-local functions. It is changed.
            tensors: What to measure.
            batches: Input name to array, batch by batch; an iterator's are kept in memory, since
                they are needed more than once.
            histograms: Whether to make histograms.
            progress: Receives progress callbacks.

        Raises:
            CalibrationError: there are no batches, or a tensor is NaN or infinite.
            BuildError: TensorRT does not build the model.
            CudaError: there is no GPU, or not enough of its memory.
        """
        held = list(batches) if isinstance(batches, Iterator) else batches
        shapes = [{name: np.shape(array) for name, array in batch.items()} for batch in held]
        if not shapes:
            raise CalibrationError("there are no batches to calibrate with")
        gpu = self._gpu()
        attention = attention_operands(model.graph)
        left_out = {name: _ATTENTION for name in tensors if name in attention}
        # What comes from outside need not go through an engine.
        given = {value.name for value in model.graph.inputs}
        fed = [name for name in tensors if name in given and name not in left_out]
        amax: dict[str, float] = {}
        filled: dict[str, Histogram] = {}
        if fed:
            found = collect(held, lambda batch: batch.items(), fed, histograms=histograms)
            amax, filled = dict(found.amax), dict(found.histograms)
        ranges = _shape_ranges(model, shapes)
        wanted = [name for name in tensors if name not in given and name not in left_out]
        groups, too_large = self._prepare(model, tensors, wanted, ranges, gpu)
        for group, plan in self._plans(model, groups, ranges, gpu, progress):
            peaks, counted = self._run(plan, group, held, len(shapes), histograms, progress)
            amax |= peaks
            filled |= counted
        ordered = {name: amax[name] for name in tensors if name in amax}
        filled = {name: filled[name] for name in ordered if name in filled}
        left_out |= too_large
        return Activations(ordered, filled, len(shapes), distinct_shapes(shapes), left_out)

    def rows(
        self,
        model: ir.Model,
        readers: Sequence[RowReader],
        batches: Sequence[Batch],
        progress: Progress | None,
    ) -> dict[RowReader, Array]:
        """Take rows of tensors; see :class:`~trt_native.calibration.collect.ActivationSource`.

        Tensors of a group come to the host batch by batch.

        Raises:
            CalibrationError, BuildError, CudaError: as when they are measured.
        """
        shapes = [{name: np.shape(array) for name, array in batch.items()} for batch in batches]
        gpu = self._gpu()
        given = {value.name for value in model.graph.inputs}
        fed = [reader for reader in readers if reader.tensor in given]
        found = sample_rows(batches, lambda batch: batch.items(), fed) if fed else {}
        tensors = list(dict.fromkeys(reader.tensor for reader in readers))
        wanted = [name for name in tensors if name not in given]
        ranges = _shape_ranges(model, shapes)
        groups, _ = self._prepare(model, tensors, wanted, ranges, gpu)
        for group, plan in self._plans(model, groups, ranges, gpu, progress):
            of_group = [reader for reader in readers if reader.tensor in group.tensors]
            with ExitStack() as resources:
                run = self._open(plan, group, resources, "cpu")
                found |= sample_rows(batches, partial(_values, run), of_group, progress)
        return found

    # What touches the GPU

    def _gpu(self) -> GpuInfo | None:
        return require_gpu(self._ordinal)

    def _open(self, plan: Plan, group: _Group, resources: ExitStack, device: str = "cuda") -> _Run:
        """Load an engine; it stays until ``resources`` are closed."""
        engine = resources.enter_context(Engine(plan, backend=self._backend, ordinal=self._ordinal))
        session = resources.enter_context(Session(engine, cuda_graphs=0))
        types = {tensor.name: tensor.dtype for tensor in engine.outputs}
        inputs = {tensor.name: tensor.dtype for tensor in engine.inputs}

        def run(batch: Batch) -> Mapping[str, tuple[Any, str]]:
            arrays = {n: np.asarray(batch[n], dtype) for n, dtype in inputs.items() if n in batch}
            found = session.run(arrays, device=device)
            return {name: (found[name], types[name]) for name in group.tensors}

        return run

    def _statistics(self, tensors: Sequence[str], resources: ExitStack) -> _Statistics:
        return resources.enter_context(DeviceStatistics(tensors, self._ordinal))

    # Preparation

    def _prepare(
        self,
        model: ir.Model,
        tensors: Sequence[str],
        wanted: Sequence[str],
        ranges: Mapping[str, ShapeRange],
        gpu: GpuInfo | None,
    ) -> tuple[list[_Group], dict[str, str]]:
        """Rewrite the model for the backend; the groups of what engines return, as grouped."""
        self._lower(model, ranges, tensors)
        groups, too_large = self._grouped(model, wanted, ranges, gpu)
        self.groups = len(groups)
        return groups, too_large

    def _plans(
        self,
        model: ir.Model,
        groups: Sequence[_Group],
        ranges: Mapping[str, ShapeRange],
        gpu: GpuInfo | None,
        progress: Progress | None,
    ) -> Iterator[tuple[_Group, Plan]]:
        """Build the engine of each group, one after the other."""
        with scratch_folder() as folder:
            base = folder / "model"
            save_temporary(model, base)
            for group in groups:
                yield group, self._build(base, group, ranges, gpu, progress)

    def _lower(
        self, model: ir.Model, ranges: Mapping[str, ShapeRange], tensors: Sequence[str]
    ) -> None:
        """Apply the passes, and turn the model to FP16 where that was requested, or suits it."""
        weights = sum(
            int(value.const_value.nbytes)
            for value in model.graph.initializers.values()
            if value.const_value is not None
        )
        types = "the model's own types" if is_reduced(model) else "FP32"
        lowered_to = None
        large = self._by is CalibrationRunner.AUTO and weights > _LARGE
        if (large or self._by is CalibrationRunner.ENGINE_FP16) and not is_reduced(model):
            lowered_to, types = Precision.FP16, "FP16"
        context = PassContext(
            config=self._config(),
            precision=ResolvedPrecision(lowered_to=lowered_to),
            backend=self._backend,
            profiles=(Profile(ranges),),
            extra_outputs=tuple(tensors),
        )
        run_passes(select_passes(CALIBRATE, model, context), model)
        self.name = f"{self._product}, engine in {types}"

    def _grouped(
        self,
        model: ir.Model,
        tensors: Sequence[str],
        ranges: Mapping[str, ShapeRange],
        gpu: GpuInfo | None,
    ) -> tuple[list[_Group], dict[str, str]]:
        """Tensors by engine, in the order of the graph; and those too large for any."""
        memory = self._memory_bytes
        if memory is None:
            memory = min(DEFAULT_MEMORY_BYTES, gpu.free_bytes // 2 if gpu else DEFAULT_MEMORY_BYTES)
        sizes = _sizes(model, tensors, {name: shapes.max for name, shapes in ranges.items()})
        groups: list[list[str]] = []
        too_large: dict[str, str] = {}
        taken = 0
        for name in tensors:
            if sizes[name] > memory:
                size, limit = format_bytes(sizes[name]), format_bytes(memory)
                too_large[name] = f"takes {size} of GPU memory, more than the {limit} given to it"
                continue
            if not groups or taken + sizes[name] > memory:
                groups.append([])
                taken = 0
            groups[-1].append(name)
            taken += sizes[name]
        many = len(groups)
        return [_Group(tuple(group), i + 1, many) for i, group in enumerate(groups)], too_large

    def _build(
        self,
        base: Path,
        group: _Group,
        ranges: Mapping[str, ShapeRange],
        gpu: GpuInfo | None,
        progress: Progress | None,
    ) -> Plan:
        """Build the part of the model that a group's tensors need."""
        model = ir.load(base)
        _cut(model, group.tensors)
        path = base.with_name("group.onnx")
        ir.save(model, path)  # its weights stay where the whole model's are
        inputs, _ = tensor_specs(model)
        dynamic = {t.name: ranges[t.name] for t in inputs if not t.is_static and t.name in ranges}
        profiles = resolve_profiles(inputs, [ProfileSpec(shapes=dynamic)])
        request = BuildRequest(
            onnx=path,
            config=self._config(),
            profiles=profiles,
            fixed=fixed_extents(profiles),
            builder_flags=Precision.FP32,
            strongly_typed=True,  # the graph says it all, also where flags could
            fp32_nodes=frozenset(),
            operators=operator_names(model),
            workspace_bytes=default_workspace(gpu),
            interface=model_interface(model, profiles),
        )
        cancelled = threading.Event()
        renamed = (
            None
            if progress is None
            else _Renamed(progress, f"Engine {group.number} of {group.of}: ")
        )
        built = run_interruptible(
            lambda: self._backend.build(request, renamed, cancelled), cancelled
        )
        return Plan(built.data)

    def _config(self) -> BuildConfig:
        """An engine that runs a few dozen times need not be the fastest."""
        measures = self._backend.capabilities.timing_cache
        return BuildConfig(
            precision=Precision.FP32,
            optimization_level=1 if measures else None,
            profiling_verbosity=ProfilingVerbosity.NONE,
        )

    # Running

    def _run(
        self,
        plan: Plan,
        group: _Group,
        batches: Iterable[Batch],
        count: int,
        histograms: bool,
        progress: Progress | None,
    ) -> tuple[dict[str, float], dict[str, Histogram]]:
        """Largest magnitudes, and histograms where wanted, of one group's tensors."""
        title = f"Running engine {group.number} of {group.of}: "
        with ExitStack() as resources:
            run = self._open(plan, group, resources)
            statistics = self._statistics(group.tensors, resources)

            def check(number: int) -> None:
                for name, peak in statistics.peaks().items():
                    if not np.isfinite(peak):
                        raise CalibrationError(f"batch {number}: {not_finite(name).message}")

            _pass(
                batches, count, run, statistics.measure, check, progress, f"{title}largest values"
            )
            peaks = statistics.peaks()
            limits = {name: peak for name, peak in peaks.items() if peak}
            if not histograms or not limits:
                return peaks, {}
            statistics.start_histograms(limits)
            done = statistics.wait
            _pass(
                batches,
                count,
                run,
                statistics.count,
                lambda _: done(),
                progress,
                f"{title}histograms",
            )
            return peaks, statistics.histograms()


def _values(run: _Run, batch: Batch) -> Iterator[tuple[str, Array]]:
    """Names and values, of engines that return them on the host."""
    return ((name, tensor) for name, (tensor, _) in run(batch).items())


class _Renamed:
    """A progress that prefixes phases with the number of the engine."""

    def __init__(self, progress: Progress, prefix: str) -> None:
        self._progress = progress
        self._prefix = prefix

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        above = None if parent is None else self._prefix + parent
        self._progress.phase_start(self._prefix + phase, above, steps)

    def step_complete(self, phase: str, step: int) -> None:
        self._progress.step_complete(self._prefix + phase, step)

    def phase_finish(self, phase: str) -> None:
        self._progress.phase_finish(self._prefix + phase)


def _pass(
    batches: Iterable[Batch],
    count: int,
    run: _Run,
    use: Callable[[str, Any, str], None],
    finish: Callable[[int], None],
    progress: Progress | None,
    title: str,
) -> None:
    """Run every batch once; ``finish`` waits until its tensors have been used."""
    number = -1
    with phase(progress, title, count) as step:
        for number, batch in enumerate(batches):
            _measure_batch(run(batch), number, use, finish)
            step(number)
    if number + 1 != count:
        raise uneven_passes(count, number + 1)


def _measure_batch(
    outputs: Mapping[str, tuple[Any, str]],
    number: int,
    use: Callable[[str, Any, str], None],
    finish: Callable[[int], None],
) -> None:
    """Hold the outputs until they have been used, and no longer: others need their memory."""
    for name, (tensor, dtype) in outputs.items():
        use(name, tensor, dtype)
    finish(number)


def _shape_ranges(model: ir.Model, shapes: Sequence[Mapping[str, Shape]]) -> dict[str, ShapeRange]:
    """For each input the shapes that the batches have, the largest also as the best."""
    ranges = {}
    for tensor in tensor_specs(model)[0]:
        found = [batch[tensor.name] for batch in shapes if tensor.name in batch]
        if len(found) < len(shapes):
            raise CalibrationError(f"batch {len(found)}: input {tensor.name!r} is missing")
        if len({len(shape) for shape in found}) > 1:
            raise CalibrationError(f"input {tensor.name!r} has another rank in some batches")
        low, high = (tuple(map(pick, zip(*found, strict=True))) for pick in (min, max))
        ranges[tensor.name] = ShapeRange(low, high, high)
    return ranges


def _sizes(model: ir.Model, tensors: Sequence[str], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Bytes of each tensor for inputs of these shapes; where that is not known, the most of all."""
    known = static_shapes(model, shapes)
    values = {value.name: value for node in model.graph for value in node.outputs}
    sizes: dict[str, int] = {}
    for name in tensors:
        value = values.get(name)
        if value is None or value.dtype is None:
            raise CalibrationError(f"the model has no tensor {name!r} to measure")
        if _dtype(value) not in MEASURED_DTYPES:
            raise UnsupportedError(
                f"tensor {name!r} is {_dtype(value)}: engines return {', '.join(MEASURED_DTYPES)};"
                " take activations by reference"
            )
        if name in known:
            sizes[name] = (
                int(np.prod(known[name], dtype=np.int64)) * np.dtype(_dtype(value)).itemsize
            )
    most = max(sizes.values(), default=0)
    return {name: sizes.get(name, most) for name in tensors}


def _dtype(value: ir.Value) -> str:
    return value.dtype.numpy().name if value.dtype is not None else "of unknown type"


def _cut(model: ir.Model, tensors: Sequence[str]) -> None:
    """Leave in a model what these tensors need; they become its outputs."""
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in tensors)
    passes.RemoveUnusedNodesPass()(model)
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)
