"""From a model and batches of its inputs to a calibration cache."""

from __future__ import annotations

import fnmatch
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from trt_native._version import __version__
from trt_native.arrays import Array, Batch
from trt_native.calibration.caches import CalibrationCache, Provenance, TensorRange, cache_header
from trt_native.calibration.cpu_runner import CpuRunner, expected_runtime
from trt_native.calibration.free_memory import memory_limit
from trt_native.calibration.ranges import (
    DEFAULT_PERCENTILE,
    Histogram,
    check_percentile,
    magnitude,
    threshold,
)
from trt_native.calibration.rows import RowReader, sample_rows
from trt_native.config import CalibrationMethod, CpuRuntime, FixedValues
from trt_native.errors import CalibrationError, SpecError, close_names
from trt_native.graph.fixed_inputs import fix_inputs
from trt_native.graph.functions import inline_functions
from trt_native.graph.onnx_file import hash_files, operator_names, read_model
from trt_native.graph.quantizable import QUANTIZABLE_OPS, quantizable_tensors
from trt_native.progress import Progress, phase
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.shapes import Shape, format_shape

__all__ = [
    "DEFAULT_VERSION",
    "ActivationSource",
    "Activations",
    "ReferenceActivations",
    "calibrate",
    "collect",
    "distinct_shapes",
    "not_finite",
    "uneven_passes",
]

DEFAULT_VERSION = "10.16.1"
"""Default version of TensorRT in a cache's header: the last that calibrates."""

REUSED_BYTES = 4 * 2**30
"""Activations kept from one pass over the data for the next; a quarter of the free memory where
that is less."""

_MEASURING = 2  # tensors at a time: NumPy counts without other threads
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Activations:
    """Statistics of a model's tensors over the batches that ran through it.

    Attributes:
        amax: Tensor to its largest magnitude; 0 where it never held a value other than 0.
        histograms: Tensor to its histogram, but for those of amax 0; empty if not asked for.
        batches: Number of batches.
        shapes: For each input, the different shapes it had, such as ``1x3x8x8``.
        left_out: Tensor that was not measured to the reason; it is in neither of the first two.
    """

    amax: Mapping[str, float]
    histograms: Mapping[str, Histogram]
    batches: int
    shapes: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, str] = field(default_factory=dict)


class ActivationSource(Protocol):
    """Runs a model with batches and measures its activations."""

    name: str
    """Name of the program that runs the model, for the cache's provenance."""

    def __call__(
        self,
        model: ir.Model,
        tensors: Sequence[str],
        batches: Iterable[Batch],
        *,
        histograms: bool,
        progress: Progress | None,
    ) -> Activations:
        """Measure the values of tensors of the main graph.

        Args:
            model: The model, without model-local functions. It may be changed.
            tensors: Names of the tensors to measure.
            batches: As for :func:`collect`.
            histograms: Whether to make histograms.
            progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.
        """
        ...

    def rows(
        self,
        model: ir.Model,
        readers: Sequence[RowReader],
        batches: Sequence[Batch],
        progress: Progress | None,
    ) -> dict[RowReader, Array]:
        """Take rows of tensors of the main graph, as :func:`sample_rows` does.

        Args:
            model: The model, without model-local functions. It may be changed.
            readers: How tensors are read.
            batches: Input name to array, batch by batch.
            progress: Receives progress callbacks.

        Returns:
            The rows by reader, without those of tensors that cannot be measured.
        """
        ...


class ReferenceActivations:
    """Activations from the CPU: by OpenVINO, or the reference evaluator, which is slow.

    Args:
        runtime: What to run the model with.

    Attributes:
        name: What that is, by name; after a run also how far it was checked.

    Raises:
        UnsupportedError: OpenVINO was asked for and is not installed.
    """

    def __init__(self, runtime: CpuRuntime = CpuRuntime.AUTO) -> None:
        self._runtime = runtime
        self.name = expected_runtime(runtime)

    def __call__(
        self,
        model: ir.Model,
        tensors: Sequence[str],
        batches: Iterable[Batch],
        *,
        histograms: bool,
        progress: Progress | None,
    ) -> Activations:
        """See :class:`ActivationSource`.

        Raises:
            UnsupportedError: the model cannot be run.
            CalibrationError: as :func:`collect`.
        """
        run = self._runner(model, tensors)
        found = collect(batches, run, tensors, histograms=histograms, progress=progress)
        self.name = run.program
        return found

    def rows(
        self,
        model: ir.Model,
        readers: Sequence[RowReader],
        batches: Sequence[Batch],
        progress: Progress | None,
    ) -> dict[RowReader, Array]:
        """See :class:`ActivationSource`.

        Raises:
            UnsupportedError: the model cannot be run.
            CalibrationError: as :func:`sample_rows`.
        """
        run = self._runner(model, list(dict.fromkeys(reader.tensor for reader in readers)))
        found = sample_rows(batches, run, readers, progress)
        self.name = run.program
        return found

    def _runner(self, model: ir.Model, tensors: Sequence[str]) -> CpuRunner:
        return CpuRunner(
            model,
            tensors,
            self._runtime,
            alternative="calibrate with an engine on a GPU",
            options=("calibration_runner",),
        )


@shows_progress
def calibrate(
    model: Path,
    batches: Iterable[Batch],
    *,
    method: CalibrationMethod = CalibrationMethod.MSE,
    percentile: float = DEFAULT_PERCENTILE,
    ops: Iterable[str] = QUANTIZABLE_OPS,
    patterns: Sequence[str] = (),
    version: str = DEFAULT_VERSION,
    source: ActivationSource | None = None,
    progress: AnyProgress = None,
    fixed_inputs: FixedValues | None = None,
) -> CalibrationCache:
    """Find the range of every tensor that a quantized model needs one for.

    Model-local functions are inlined first; tensors inside them get the names that ``InlinePass``
    of ``onnx_ir`` gives.

    Args:
        model: Path of the ONNX file.
        batches: Input name to array, batch by batch. Data that can be iterated again is run through
            the model twice, first for the largest values, then for exact histograms; an iterator
            only once, for histograms of 1024 to 2048 bins.
        method: Method that derives ranges from values.
        percentile: Percentage of values that the percentile method covers.
        ops: Operators whose inputs to calibrate.
        patterns: Shell patterns of tensor names; only these, where given.
        version: The version of TensorRT that the cache's header names.
        source: Runs the model; None is :class:`ReferenceActivations`.
        progress: Receives progress callbacks.
        fixed_inputs: Values of inputs that the batches lack.

    Returns:
        The cache with its provenance, not yet saved. Tensors that hold nothing but zeros have no
        entry.

    Raises:
        SpecError: the version, the percentile, an operator or a pattern is none.
        ModelError: the ONNX file is missing or damaged.
        UnsupportedError: the source cannot run the model.
        CalibrationError: the model has nothing to calibrate, the batches do not fit, or an
            activation is NaN or infinite.
    """
    minmax = method is CalibrationMethod.MINMAX
    header = cache_header(version, "MinMaxCalibration" if minmax else "EntropyCalibration2")
    check_percentile(percentile)
    graph = read_model(model)
    files = hash_files(model, graph)
    fix_inputs(graph, fixed_inputs or {})
    tensors = _prepared(model, graph, tuple(ops), patterns)
    measure = source or ReferenceActivations()
    found = measure(graph, tensors, batches, histograms=not minmax, progress=progress)
    ranges = _ranges(found, method, percentile)
    if not ranges:
        raise CalibrationError(
            f"{model}: none of its {len(tensors)} tensors holds anything but zeros with this data;"
            " calibrate with real inputs"
        )
    covering = f" {percentile:g}" if method is CalibrationMethod.PERCENTILE else ""
    provenance = Provenance(
        producer=f"trt-native {__version__}",
        model=files,
        method=f"{method}{covering}",
        runner=measure.name,
        batches=found.batches,
        shapes=found.shapes,
        ranges=ranges,
        skipped={
            name: found.left_out.get(name, "holds nothing but zeros")
            for name in tensors
            if name not in ranges
        },
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return CalibrationCache.from_ranges(header, provenance)


def _prepared(
    path: Path,
    graph: ir.Model,
    ops: Sequence[str],
    patterns: Sequence[str],
) -> list[str]:
    """The tensors to measure."""
    inline_functions(graph)
    if "QuantizeLinear" in operator_names(graph):
        raise CalibrationError(
            f"{path}: is quantized already; calibrate the model that Q/DQ nodes were added to"
        )
    tensors = quantizable_tensors(graph, ops)
    if not tensors:
        raise CalibrationError(
            f"{path}: nothing to calibrate: no activation goes into {' or '.join(ops)}"
        )
    return _chosen(tensors, patterns)


def _ranges(
    found: Activations, method: CalibrationMethod, percentile: float
) -> dict[str, TensorRange]:
    """The range of each tensor that has one."""
    ranges = {}
    for name, amax in found.amax.items():
        histogram = found.histograms.get(name)
        limit = threshold(histogram, method, percentile) if histogram else amax
        if limit >= _SMALLEST:
            ranges[name] = TensorRange(amax, limit)
    return ranges


def _chosen(tensors: Sequence[str], patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not fnmatch.filter(tensors, pattern):
            close = close_names(pattern, tensors, 3, 0.4)
            hint = f"; close: {', '.join(close)}" if close else ""
            raise SpecError(f"pattern {pattern!r} matches no tensor that can be calibrated{hint}")
    if not patterns:
        return list(tensors)
    return [name for name in tensors if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def collect(
    batches: Iterable[Batch],
    run: Callable[[Batch], Iterable[tuple[str, Array]]],
    tensors: Sequence[str],
    *,
    histograms: bool = True,
    progress: Progress | None = None,
) -> Activations:
    """Run batches through a model and measure the values of its tensors.

    Args:
        batches: Input name to array, batch by batch. An iterator is run through once, anything
            else twice if histograms are wanted.
        run: Takes a batch; gives name and values of each of the tensors, in any order, and of
            others, which do not matter.
        tensors: Names of the tensors to measure.
        histograms: Whether to make histograms; otherwise only ``amax``.
        progress: Receives progress callbacks.

    Raises:
        CalibrationError: there are no batches, fewer or more of them the second time, a tensor is
            NaN or infinite, or ``run`` leaves one out.
    """
    once = histograms and isinstance(batches, Iterator)
    room = memory_limit(REUSED_BYTES) if histograms and not once else 0
    kept = _Kept(run, set(tensors), room, len(batches) if isinstance(batches, Sized) else 0)
    run_all = partial(_pass, batches, kept, tensors, progress)
    amax = dict.fromkeys(tensors, 0.0)
    filled: dict[str, Histogram] = {}

    def measure(name: str, values: Array) -> None:
        peak = magnitude(values)
        if not np.isfinite(peak):
            raise ValueError("NaN or infinite values")
        amax[name] = max(amax[name], peak)

    def count(name: str, values: Array) -> None:
        if name in filled:
            filled[name].add(values)

    if once:
        filled = {name: Histogram() for name in tensors}
        shapes = run_all("histograms", count)
        amax = {name: histogram.amax for name, histogram in filled.items()}
        filled = {name: histogram for name, histogram in filled.items() if histogram.amax}
    else:
        shapes = run_all("largest values", measure)
    if histograms and not once and any(amax.values()):
        filled = {name: Histogram(peak) for name, peak in amax.items() if peak}
        kept.start_again()
        again = len(run_all("histograms", count))
        if again != len(shapes):
            raise uneven_passes(len(shapes), again)
    return Activations(amax, filled, len(shapes), distinct_shapes(shapes))


class _Kept:
    """Runs batches, and keeps their activations for another pass where all of them fit.

    Args:
        run: As for :func:`collect`.
        tensors: Names of the tensors to keep.
        room: Bytes to keep.
        count: Number of batches; 0 if that is not known.
    """

    def __init__(
        self,
        run: Callable[[Batch], Iterable[tuple[str, Array]]],
        tensors: set[str],
        room: int,
        count: int,
    ) -> None:
        self._run = run
        self._tensors = tensors
        self._room = room
        self._first_of = count
        self._batches: list[list[tuple[str, Array]]] = []
        self._again: Iterator[list[tuple[str, Array]]] | None = None

    def start_again(self) -> None:
        """Begin the next pass."""
        self._again = iter(self._batches)

    def __call__(self, batch: Batch) -> Iterable[tuple[str, Array]]:
        """The activations of a batch."""
        if self._again is not None:
            found = next(self._again, None)
            return self._run(batch) if found is None else found
        return self._keeping(batch) if self._room > 0 else self._run(batch)

    def _keeping(self, batch: Batch) -> Iterator[tuple[str, Array]]:
        found = []
        for name, array in self._run(batch):
            yield name, array
            if self._room > 0 and name in self._tensors:
                self._room -= np.asarray(array).nbytes
                found.append((name, np.array(array)))
        if self._room > 0:
            self._batches.append(found)
        if len(self._batches) == 1 and self._first_of > 1:  # keep none where not all will fit
            used = sum(array.nbytes for _, array in found)
            if used * (self._first_of - 1) > self._room:
                self._room = 0
                self._batches.clear()


def uneven_passes(first: int, later: int) -> CalibrationError:
    """The error for data of which there is more or less every time."""
    return CalibrationError(
        f"the calibration data had {first} batches at first and {later} the second time; give an"
        " iterator if it can be read only once"
    )


def not_finite(name: str) -> CalibrationError:
    """The error for a tensor that holds NaN or infinity."""
    return CalibrationError(
        f"tensor {name!r} has NaN or infinite values; leave this batch out, or calibrate the model"
        " in FP32"
    )


def _pass(
    batches: Iterable[Batch],
    run: Callable[[Batch], Iterable[tuple[str, Array]]],
    tensors: Sequence[str],
    progress: Progress | None,
    title: str,
    use: Callable[[str, Array], None],
) -> list[dict[str, Shape]]:
    """Run every batch once; return the shapes of each."""
    shapes: list[dict[str, Shape]] = []
    total = len(batches) * len(tensors) if isinstance(batches, Sized) else 0
    with phase(progress, f"Running the model: {title}", total) as step:
        done = itertools.count()

        def use_one(name: str, values: Array) -> None:
            use(name, values)
            step(next(done))

        for number, batch in enumerate(batches):
            try:
                _run_batch(run(batch), tensors, use_one)
            except CalibrationError as error:
                raise error.restated(
                    f"batch {number}: {error.message}", CalibrationError
                ) from error
            shapes.append({name: np.shape(array) for name, array in batch.items()})
    if not shapes:
        raise CalibrationError("there are no batches to calibrate with")
    return shapes


def _run_batch(
    activations: Iterable[tuple[str, Array]],
    tensors: Sequence[str],
    use: Callable[[str, Array], None],
) -> None:
    missing = set(tensors)
    pending: deque[tuple[str, Future[None]]] = deque()
    with ThreadPoolExecutor(_MEASURING) as threads:
        for name, values in activations:
            if name not in missing:
                continue
            missing.discard(name)
            pending.append((name, threads.submit(use, name, values)))
            if len(pending) > _MEASURING:
                _finish(*pending.popleft())
        while pending:
            _finish(*pending.popleft())
    if missing:
        raise CalibrationError(f"the model gave no values of tensor {min(missing)!r}")


def _finish(name: str, measured: Future[None]) -> None:
    try:
        measured.result()
    except ValueError:
        raise not_finite(name) from None


def distinct_shapes(batches: Sequence[Mapping[str, Shape]]) -> dict[str, tuple[str, ...]]:
    """For each input, the different shapes it has, as text, in the order in which they come."""
    names = dict.fromkeys(name for shapes in batches for name in shapes)
    return {
        name: tuple(
            dict.fromkeys(format_shape(shapes[name]) for shapes in batches if name in shapes)
        )
        for name in names
    }
