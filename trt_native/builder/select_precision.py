"""Choice of the fastest plan within an error budget, out of plans of several precisions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trt_native.arrays import Array, Batch
from trt_native.backends.base import Backend
from trt_native.backends.registry import load_backend
from trt_native.builder.build_plan import build_plan
from trt_native.builder.engine_calibration import activation_source
from trt_native.calibration.batches import Batches, read_batches
from trt_native.calibration.collect import calibrate
from trt_native.calibration.folder import write_batches
from trt_native.config import (
    QUANTIZED_OPS,
    BuildConfig,
    CalibrationMethod,
    FixedValues,
    IoPrecision,
    Precision,
    QuantizationSpec,
)
from trt_native.cuda import Event, Stream, require_gpu
from trt_native.errors import (
    BuildError,
    CudaError,
    SpecError,
    TrtNativeError,
    UnsupportedError,
)
from trt_native.graph.fixed_inputs import check_fixed_inputs
from trt_native.graph.onnx_file import read_model, tensor_specs
from trt_native.graph.types import is_reduced
from trt_native.passes.split_fp32_products import can_split
from trt_native.plans.plan import Plan
from trt_native.progress import Progress
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.runtime import HostExecution, Session
from trt_native.scratch import scratch_folder

__all__ = [
    "CANDIDATES",
    "DEFAULT_MAX_ERROR",
    "Candidate",
    "MeasurementHooks",
    "SelectionReport",
    "select_precision",
    "time_sessions",
]

CANDIDATES = (
    Precision.FP16,
    Precision.INT8,
    Precision.FP8,
    Precision.INT8_WEIGHTS,
    Precision.INT4_WEIGHTS,
)
"""The precisions to try."""

DEFAULT_MAX_ERROR = 0.02
"""Relative L2 error that a plan may have against FP32 by default."""

_ROUNDS, _WARM_UP = 50, 5
_SAMPLES = 16  # batches that INT4 weights are fitted to
_HELD_OUT = 10  # one in this number of batches is for the comparison


@dataclass(frozen=True, slots=True)
class Candidate:
    """A precision that was tried.

    Attributes:
        precision: The precision.
        error: Largest relative L2 error of any output for any of the held-out batches, against
            FP32; infinite where an output is NaN or infinite. None where it was not run.
        latency_ms: Median time on the GPU of one inference, without transfers; None likewise.
        plan_bytes: Size of the plan; None where none was built.
        failure: Message of the error with which it failed to build or to run; None if it did not.
    """

    precision: Precision
    error: float | None = None
    latency_ms: float | None = None
    plan_bytes: int | None = None
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; an infinite error is null, with a failure that says so."""
        data = {**asdict(self), "precision": str(self.precision)}
        if self.error is not None and not np.isfinite(self.error):
            data |= {"error": None, "failure": "gives NaN or infinite values"}
        return data


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """The candidates, and the chosen one.

    Attributes:
        plan: The fastest plan within the budget, with the selection in its manifest.
        chosen: Its precision.
        candidates: All that was tried.
        max_error: The budget.
        calibration_batches: Number of batches that the ranges come from.
        held_out: Number of held-out batches that the plans were compared with.
    """

    plan: Plan
    chosen: Precision
    candidates: tuple[Candidate, ...]
    max_error: float
    calibration_batches: int
    held_out: int

    def to_json(self) -> dict[str, Any]:
        """Everything but the plan, as JSON holds it."""
        return {
            "chosen": str(self.chosen),
            "max_error": self.max_error,
            "calibration_batches": self.calibration_batches,
            "held_out": self.held_out,
            "candidates": [candidate.to_json() for candidate in self.candidates],
        }


class _Build(Protocol):
    def __call__(self, config: BuildConfig, target: Path) -> None:
        """Build the model and save the plan."""


def time_sessions(
    sessions: Sequence[Session], inputs: Sequence[Mapping[str, Array]]
) -> list[float]:
    """Median time of one inference of each session, in milliseconds on the GPU.

    By events around each replay of the session's CUDA graph; transfers are not in it. The sessions
    take turns, so that a clock that changes meanwhile changes it for all.

    Args:
        sessions: The sessions to measure.
        inputs: For each session, arrays for its inputs.
    """
    times: list[list[float]] = [[] for _ in sessions]
    with ExitStack() as resources:
        calls = [
            session.create_execution(arrays)
            for session, arrays in zip(sessions, inputs, strict=True)
        ]
        for call in calls:
            resources.callback(call.close)
        _take_turns(calls, [session.compute_stream for session in sessions], times)
    return [statistics.median(found) for found in times]


def _take_turns(
    calls: Sequence[HostExecution], streams: Sequence[Stream], times: Sequence[list[float]]
) -> None:
    for call, stream in zip(calls, streams, strict=True):
        call.upload(stream)
        call.enqueue(stream, graph=False)  # a capture needs one run before it
    for number in range(-_WARM_UP, _ROUNDS):
        for call, stream, found in zip(calls, streams, times, strict=True):
            before, after = Event(timing=True), Event(timing=True)
            stream.record(before)
            call.enqueue(stream, graph=True)
            stream.record(after)
            stream.synchronize()
            if number >= 0:
                found.append(after.elapsed_ms(before))


@dataclass(frozen=True, slots=True)
class MeasurementHooks:
    """Functions that run and time plans.

    Attributes:
        open_session: Loads a plan.
        time_sessions: As :func:`time_sessions`.
    """

    open_session: Callable[[Path], Session] = Session
    time_sessions: Callable[[Sequence[Session], Sequence[Mapping[str, Array]]], list[float]] = (
        time_sessions
    )


@shows_progress
def select_precision(
    model: Path,
    config: BuildConfig,
    quantization: QuantizationSpec,
    *,
    max_error: float = DEFAULT_MAX_ERROR,
    backend: str | Backend = "auto",
    build: _Build | None = None,
    measuring: MeasurementHooks | None = None,
    progress: AnyProgress = None,
) -> SelectionReport:
    """Build FP16, INT8, FP8, INT8 and INT4 weights; choose the fastest that is accurate enough.

    One in ten of the batches, from the end, are held out for the comparison with an FP32 plan; the
    ranges come from the others, to which INT4 weights are fitted, too.

    Args:
        model: An FP32 model.
        config: The configuration of the plan; its precision and quantization are ignored.
        quantization: Nodes to quantize, with calibration data.
        max_error: The most that a plan's relative L2 error may be.
        backend: As for :func:`~trt_native.builder.build_plan.build_plan`.
        build: Builds the model with a configuration and saves the plan; in this process if None.
        measuring: Functions that run and time plans.
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.

    Raises:
        SpecError: the options contradict one another, the model is not FP32, or there are too few
            batches.
        UnsupportedError: no GPU was found.
        CalibrationError: the data does not fit the model.
        BuildError: the FP32 plan cannot be built, or no plan is accurate enough.
    """
    _check(config, quantization, max_error)
    _require_gpu()
    chosen = load_backend(backend)
    graph = read_model(model)
    if is_reduced(graph):
        raise SpecError(
            f"{model.name}: has reduced types already, and precision best compares with FP32;"
            " export the model in FP32"
        )
    inputs = check_fixed_inputs(tensor_specs(graph)[0], config.fixed_values())
    batches = read_batches(str(quantization.calibration_data), inputs)
    calibration, held = _split(batches)
    exact = chosen.capabilities.exact_fp32 or can_split(graph)
    del graph

    def build_here(wanted: BuildConfig, target: Path) -> None:
        build_plan(model, wanted, backend=chosen, progress=progress).save(target)

    make, how = build or build_here, measuring or MeasurementHooks()
    with scratch_folder() as folder:
        reference = folder / "fp32.plan"
        make(_reference_config(config, tf32=not exact), reference)
        expected = _outputs(how, reference, held)
        ranges = _Calibrated(
            model, calibration, quantization, chosen, folder, progress, config.fixed_values()
        )
        plans: dict[Precision, Path] = {}
        found: dict[Precision, Candidate] = {}
        for precision in CANDIDATES:
            target = folder / f"{precision}.plan"
            try:
                make(_candidate_config(config, quantization, precision, ranges), target)
                plans[precision] = target
                found[precision] = Candidate(precision, plan_bytes=target.stat().st_size)
            except TrtNativeError as error:
                found[precision] = Candidate(precision, failure=error.message)
        found |= _measured(how, plans, found, expected, held)
        candidates = tuple(found.values())
        best = _fastest(candidates, max_error)
        plan = Plan.load(plans[best.precision])
    selection = SelectionReport(
        plan, best.precision, candidates, max_error, len(calibration), len(held)
    )
    return replace(selection, plan=_with_selection(plan, selection))


def _check(config: BuildConfig, quantization: QuantizationSpec, max_error: float) -> None:
    if config.plugins:
        raise UnsupportedError(
            "precision best runs the plans that it compares without plugins; build one precision",
            options=("plugins", "precision"),
        )
    if not 0 < max_error < 1:
        raise SpecError(f"maximum error {max_error}: it is a relative error between 0 and 1")
    if quantization.calibration_data is None:
        raise SpecError(
            "precision best needs calibration data, for ranges and to compare with; a calibration"
            " cache is not enough",
            options=("calibration_data",),
        )
    if quantization.min_coverage:
        raise SpecError("minimum coverage: no effect at precision best, which measures instead")
    if config.strip_weights:
        raise SpecError("stripped weights: such a plan cannot be run, which precision best does")


def _require_gpu() -> None:
    try:
        require_gpu()
    except CudaError as error:
        raise error.restated(
            f"precision best measures plans, which needs a GPU: {error.message}; name one"
            " precision, such as fp16 or int8",
            UnsupportedError,
        ) from None


def _split(batches: Batches) -> tuple[Batches, Batches]:
    if len(batches) < 2:
        raise SpecError(
            f"{batches.source}: has one batch, and precision best needs another one to compare with"
        )
    held = max(1, len(batches) // _HELD_OUT)
    return batches[:-held], batches[-held:]


class _Calibrated:
    """What precisions take of the data: a calibration cache, or batches; made when first needed."""

    def __init__(
        self,
        model: Path,
        batches: Batches,
        spec: QuantizationSpec,
        backend: Backend,
        folder: Path,
        progress: Progress | None,
        fixed_inputs: FixedValues,
    ) -> None:
        self._fixed_inputs = fixed_inputs
        self._arguments = (model, batches, spec, backend, progress)
        self._path = folder / "ranges.calib"
        self._samples = folder / "samples"
        self._error: TrtNativeError | None = None

    def path(self) -> Path:
        """Return the path of the cache, calibrating first if that was not done.

        Raises:
            TrtNativeError: the model cannot be calibrated, now or before.
        """
        if self._error is not None:
            raise self._error
        if not self._path.exists():
            try:
                self._make()
            except TrtNativeError as error:
                self._error = error
                raise
        return self._path

    def samples(self) -> Path:
        """A folder of at most :data:`_SAMPLES` batches, evenly spaced."""
        model, batches, *_ = self._arguments
        if not self._samples.exists():
            chosen = batches[:: -(-len(batches) // _SAMPLES)]
            write_batches(self._samples, chosen, model=model.name)
        return self._samples

    def _make(self) -> None:
        model, batches, spec, backend, progress = self._arguments
        source = activation_source(
            spec.calibration_runner, backend=backend, memory_bytes=spec.calibration_memory_bytes
        )
        # With histograms, and the largest values in addition, which FP8 takes.
        method = spec.calibration_method or CalibrationMethod.MSE
        ops = spec.ops or QUANTIZED_OPS
        cache = calibrate(
            model, batches, method=method, ops=ops, source=source, progress=progress,
            fixed_inputs=self._fixed_inputs,
        )  # fmt: skip
        cache.save(self._path)


def _reference_config(config: BuildConfig, *, tf32: bool) -> BuildConfig:
    """The configuration that the others are compared with; TF32 where there is nothing better."""
    return replace(
        config,
        precision=Precision.FP32,
        quantization=QuantizationSpec(),
        keep_fp32=(),
        io_precision=IoPrecision.KEEP,
        tf32=tf32,
        sparse_weights=False,
    )


def _candidate_config(
    config: BuildConfig, spec: QuantizationSpec, precision: Precision, ranges: _Calibrated
) -> BuildConfig:
    quantization = QuantizationSpec()
    if precision.quantized:
        quantization = QuantizationSpec(
            calibration_cache=ranges.path() if precision.needs_ranges else None,
            ops=spec.ops,
            exclude=spec.exclude,
            preset=spec.preset,
        )
        if precision.takes_samples:
            quantization = replace(
                quantization,
                calibration_data=str(ranges.samples()),
                calibration_runner=spec.calibration_runner,
                calibration_memory_bytes=spec.calibration_memory_bytes,
                block_size=spec.block_size,
            )
    return replace(config, precision=precision, quantization=quantization)


# Running


def _fitted(session: Session, batch: Batch) -> dict[str, Array]:
    """A batch in the types of an engine's inputs."""
    inputs = session.engine.inputs
    return {t.name: batch[t.name].astype(np.dtype(t.dtype), copy=False) for t in inputs}


def _outputs(how: MeasurementHooks, path: Path, batches: Batches) -> list[dict[str, Array]]:
    with how.open_session(path) as session:
        return [session.run(_fitted(session, batch)) for batch in batches]


def _measured(
    how: MeasurementHooks,
    plans: Mapping[Precision, Path],
    built: Mapping[Precision, Candidate],
    expected: Sequence[Mapping[str, Array]],
    batches: Batches,
) -> dict[Precision, Candidate]:
    """Error and time of every plan, all of them loaded at once so that they can take turns."""
    found: dict[Precision, Candidate] = {}
    sessions: dict[Precision, Session] = {}
    with ExitStack() as opened:
        for precision, path in plans.items():
            try:
                with ExitStack() as attempt:
                    session = attempt.enter_context(how.open_session(path))
                    runs = [session.run(_fitted(session, batch)) for batch in batches]
                    opened.push(attempt.pop_all())
            except TrtNativeError as failure:
                found[precision] = replace(built[precision], failure=failure.message)
                continue
            error = max(map(_relative_error, runs, expected))
            found[precision] = replace(built[precision], error=error)
            sessions[precision] = session
        first = batches[0]
        inputs = [_fitted(session, first) for session in sessions.values()]
        times = how.time_sessions(list(sessions.values()), inputs) if sessions else []
        for precision, latency in zip(sessions, times, strict=True):
            found[precision] = replace(found[precision], latency_ms=latency)
    return found


def _relative_error(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest relative L2 error of any output; infinite where one is not finite."""
    errors = []
    for name, array in expected.items():
        reference, output = array.astype(np.float64), found[name].astype(np.float64)
        difference = float(np.linalg.norm(output - reference))
        size = float(np.linalg.norm(reference))
        relative = difference / size if size else (0.0 if difference == 0 else np.inf)
        errors.append(relative if np.isfinite(relative) else np.inf)
    return max(errors, default=0.0)


def _fastest(candidates: Sequence[Candidate], max_error: float) -> Candidate:
    within = [
        (candidate.latency_ms, candidate)
        for candidate in candidates
        if candidate.latency_ms is not None
        and candidate.error is not None
        and candidate.error <= max_error
    ]
    if not within:
        raise BuildError(
            f"no plan is within a relative error of {max_error:g} of FP32; allow more,"
            " give more calibration data, or build in fp32",
            problems=[_described(candidate) for candidate in candidates],
            options=("max_error",),
        )
    return min(within, key=lambda pair: pair[0])[1]


def _described(candidate: Candidate) -> str:
    if candidate.failure is not None:
        return f"{candidate.precision}: {candidate.failure}"
    return f"{candidate.precision}: error {candidate.error:.4f}, {candidate.latency_ms:.3f} ms"


def _with_selection(plan: Plan, selection: SelectionReport) -> Plan:
    """The plan with the selection in its manifest."""
    if plan.manifest is None:
        return plan
    precision = {**plan.manifest.precision, "requested": "best", "selection": selection.to_json()}
    return replace(plan, manifest=replace(plan.manifest, precision=precision))
