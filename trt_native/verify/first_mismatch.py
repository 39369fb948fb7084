"""The first tensor inside a model that differs between its plan and the reference.

Plans are built with some of the tensors as further outputs, and these are compared with those of
the ONNX file on the CPU. A mismatch is taken to propagate to what is computed from it: where a
tensor agrees, so does all that it was made from. So each plan leaves only the tensors between those
that agree and the first that does not, and few plans are needed for any number of tensors. In the
end the tensor found has been compared with all that its node reads.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array, Batch
from trt_native.backends.base import Backend
from trt_native.builder.build_plan import build_plan
from trt_native.calibration.cpu_runner import CpuRunner
from trt_native.config import BuildConfig, CpuRuntime, FixedValues, ProfilingVerbosity
from trt_native.errors import CudaError, SpecError, UnsupportedError
from trt_native.graph.inference import infer_types
from trt_native.graph.nodes import (
    DATA_MOVEMENT_OPS,
    all_nodes,
    bodies,
    constant_of,
    is_fp32,
    op_set,
)
from trt_native.progress import Progress, phase
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.scratch import scratch_folder
from trt_native.units import format_bytes
from trt_native.verify.check import RunFn, open_session
from trt_native.verify.metrics import (
    OutputComparison,
    Thresholds,
    compare_outputs,
    root_mean_square,
)
from trt_native.verify.reference import read_inlined, reference_program

__all__ = [
    "LayerReport",
    "OpenRunner",
    "TensorResult",
    "find_first_mismatch",
    "open_with_extra_outputs",
]

OpenRunner: TypeAlias = Callable[[Sequence[str]], AbstractContextManager[RunFn]]
"""Opens a function that runs the model with these tensors among its outputs."""

_LOGGER = logging.getLogger(__name__)
_MOST_OUTPUTS = 256  # of one plan, beyond the model's own: each of them prevents a fusion
_LISTED = 10
_MOST_REMEDIES = 4
# What these make of large numbers can be small, and then is as inexact as they are.
_ADDING = op_set("Add Sub Sum Mean ReduceSum ReduceMean GlobalAveragePool AveragePool")
# What comes out is as exact as what goes in.
_PASSING = (
    DATA_MOVEMENT_OPS | _ADDING | op_set("Relu LeakyRelu PRelu Neg Abs Mul Div Cast CastLike Clip")
)


@dataclass(frozen=True, slots=True)
class TensorResult:
    """A tensor that was compared.

    Attributes:
        name: The tensor.
        node: Name of the node that makes it.
        operator: That node's operator.
        comparison: Its comparison; the floor is the tensor's own, see :func:`find_first_mismatch`.
        agrees: Whether it keeps to the thresholds.
    """

    name: str
    node: str
    operator: str
    comparison: OutputComparison
    agrees: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "name": self.name,
            "node": self.node,
            "operator": self.operator,
            "agrees": self.agrees,
            **self.comparison.to_json(),
        }


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Result of the search for the first mismatch.

    Attributes:
        first: The first tensor in the model's order, among those compared, that mismatches;
            all floating-point tensors that its node reads agree. None if no tensor mismatches.
        worst: The tensors with the largest relative errors, largest first.
        tensors: Number of tensors that could be compared.
        compared: Number of tensors that were.
        plans: Number of plans built.
        too_large: Names of tensors that alone exceed the memory allowed; never compared.
        reference: What the tensors were compared with.
        break_fusion: A tensor with which the outputs match where TensorRT does not fuse nodes
            across it. None if there is none, or it was not looked for.
    """

    first: TensorResult | None
    worst: tuple[TensorResult, ...]
    tensors: int
    compared: int
    plans: int
    too_large: tuple[str, ...]
    reference: str
    break_fusion: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "break_fusion": self.break_fusion,
            "first": self.first.to_json() if self.first else None,
            "worst": [result.to_json() for result in self.worst],
            "tensors": self.tensors,
            "compared": self.compared,
            "plans": self.plans,
            "too_large": list(self.too_large),
            "reference": self.reference,
        }


@contextlib.contextmanager
def open_with_extra_outputs(
    model: Path,
    config: BuildConfig,
    names: Sequence[str],
    *,
    broken: Sequence[str] = (),
    backend: str | Backend = "auto",
    progress: Progress | None = None,
) -> Iterator[RunFn]:
    """Build a model with tensors among its outputs, and load it, for the time of a block.

    TensorRT does not fuse nodes across the ``broken`` tensors. Options without a use here, such as
    stripped weights, are left out of the build.

    Raises:
        TrtNativeError: as :func:`~trt_native.builder.build_plan.build_plan` and
            :func:`~trt_native.verify.check.open_session` raise it.
    """
    wanted = replace(
        config,
        refit=False,
        strip_weights=False,
        io_formats=(),
        serialize_plugins=False,
        in_place_caches=False,
        version_compatible=False,
        exclude_lean_runtime=False,
        profiling_verbosity=ProfilingVerbosity.LAYER_NAMES_ONLY,
        break_fusions=tuple(dict.fromkeys((*config.break_fusions, *broken))),
    )
    plan = build_plan(model, wanted, backend=backend, progress=progress, extra_outputs=names)
    with open_session(plan) as opened:
        yield opened.run


@shows_progress
def find_first_mismatch(
    model: Path,
    inputs: Batch,
    open_runner: OpenRunner,
    thresholds: Thresholds,
    *,
    reference: Path | None = None,
    memory_bytes: int = 8 << 30,
    open_broken: OpenRunner | None = None,
    fixed_inputs: FixedValues | None = None,
    runtime: CpuRuntime = CpuRuntime.AUTO,
    progress: AnyProgress = None,
) -> LayerReport:
    """Find the first tensor inside a model that does not match the reference.

    A tensor mismatches if its relative L2 error exceeds the threshold, or it has NaN or infinities
    where the reference has none; the other thresholds are for outputs. So that cancellation error
    is not reported as a mismatch, the error of a sum, difference or mean is measured against the
    largest root mean square of its operands, where that is larger than its own, and so is the error
    of what later nodes only move, clip or scale down.

    Args:
        model: The ONNX file that the plan was built from.
        inputs: One batch.
        open_runner: Runs the model with extra outputs, such as :func:`open_with_extra_outputs`.
        thresholds: Of these the largest relative error and the floor count.
        reference: The ONNX file to compare with; ``model`` itself if None. Tensors are matched by
            name.
        memory_bytes: Most bytes that the outputs of one plan may take; the reference's values
            are kept in temporary files.
        open_broken: Runs the model with TensorRT's fusions across these tensors broken. Given for
            a plan whose outputs do not match, it is used to find one tensor that makes them match.
        fixed_inputs: Values of the inputs that the batch lacks, as they are constants of the plan.
        runtime: What runs the reference.
        progress: Receives progress of the reference; see
            :data:`trt_native.progress_bars.AnyProgress`.

    Raises:
        ModelError: a file is damaged.
        SpecError: there is no relative error to judge by, or the models have no tensors in common.
        CalibrationError: the inputs do not fit the model.
        UnsupportedError: the reference cannot be run.
    """
    if thresholds.max_relative_error is None:
        raise SpecError("a mismatch is judged by the relative error, for which no limit is given")
    fixed = dict(fixed_inputs or {})
    tensors = _Tensors(_typed(model, fixed))
    with scratch_folder() as folder:
        compared_with = _typed(reference or model, fixed)
        expected = _Expected(folder, compared_with, tensors.names, inputs, runtime, progress)
        search = _Search(tensors, expected, inputs, open_runner, thresholds, memory_bytes)
        report = search.run(f"{reference or model}, run by {expected.program}")
        if open_broken is None:
            return report
        remedy = search.remedy(open_broken)
        return replace(report, break_fusion=remedy, plans=search.plans)


def _typed(path: Path, fixed: FixedValues) -> ir.Model:
    graph = read_inlined(path, fixed)
    infer_types(graph)
    return graph


class _Tensors:
    """The floating-point tensors that nodes of a main graph make, in its order.

    Sets of tensors are integers whose bits are the tensors' numbers.
    """

    def __init__(self, model: ir.Model) -> None:
        graph = model.graph
        self.names: list[str] = []
        self.nodes: list[ir.Node] = []
        self.reads: list[tuple[str, ...]] = []  # what the node reads, by name, but for weights
        self.ancestors: list[int] = []  # what a tensor is computed from, itself included
        self.number: dict[str, int] = {}
        above: dict[ir.Value, int] = {}
        for node in graph:
            inner = [n for body in bodies(node) for n in all_nodes(body)]
            values = [v for n in (node, *inner) for v in n.inputs if v is not None]
            mask = 0
            for value in values:
                mask |= above.get(value, 0)
            names = tuple(str(v.name) for v in values if v.name not in graph.initializers)
            for value in node.outputs:
                above[value] = mask
                if value.name and is_fp32(value) and node.op_type != "Constant":
                    self._add(value, node, names, mask)
                    above[value] = self.ancestors[-1]

    def _add(self, value: ir.Value, node: ir.Node, reads: tuple[str, ...], above: int) -> None:
        number = len(self.names)
        self.number[str(value.name)] = number
        self.names.append(str(value.name))
        self.nodes.append(node)
        self.reads.append(reads)
        self.ancestors.append(above | 1 << number)


class _Expected:
    """Expected values of the tensors, kept in files: one pass is slow, and all of it is large."""

    def __init__(
        self,
        folder: Path,
        model: ir.Model,
        names: Sequence[str],
        inputs: Batch,
        runtime: CpuRuntime,
        progress: Progress | None,
    ) -> None:
        made = {value.name for node in model.graph for value in node.outputs}
        wanted = [name for name in names if name in made]
        if not wanted:
            raise SpecError(
                "the plan's model and the reference have no tensor names in common; compare with"
                " the ONNX file that the plan was built from"
            )
        self.bytes: dict[str, int] = {}
        self.outputs = [str(v.name) for v in model.graph.outputs if v.name in set(wanted)]
        self.rms = {name: root_mean_square(array) for name, array in inputs.items()}
        self._files: dict[str, Path] = {}
        with phase(progress, "Running the reference", len(wanted)) as step:
            run = CpuRunner(
                model,
                wanted,
                runtime,
                reference_program=reference_program(model),
                alternative="compare the outputs alone, with a callable or with stored outputs",
                options=("layers", "against"),
            )
            for number, (name, values) in enumerate(run(inputs)):
                self._keep(folder, name, np.asarray(values))
                step(number)
        self.program = run.program

    def _keep(self, folder: Path, name: str, values: Array) -> None:
        plain = values.astype(np.float32) if values.dtype.kind == "V" else values
        path = folder / f"{len(self._files)}.npy"
        try:
            np.save(path, plain)
        except OSError as error:
            raise UnsupportedError(
                f"the reference's tensors do not fit {folder.parent}: {error.strerror or error};"
                " point the environment variable TMPDIR at a folder with more space"
            ) from error
        self._files[name] = path
        self.bytes[name] = int(values.nbytes)
        self.rms[name] = root_mean_square(values)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Array:
        array: Array = np.load(self._files[name], mmap_mode="r", allow_pickle=False)
        return array


class _Search:
    def __init__(
        self,
        tensors: _Tensors,
        expected: _Expected,
        inputs: Batch,
        open_runner: OpenRunner,
        thresholds: Thresholds,
        memory_bytes: int,
    ) -> None:
        self.tensors = tensors
        self.expected = expected
        self.inputs = inputs
        self.open_runner = open_runner
        self.thresholds = Thresholds(
            max_relative_error=thresholds.max_relative_error, floor=thresholds.floor
        )
        self.memory_bytes = memory_bytes
        self.floors = self._floors()
        self.results: dict[int, TensorResult] = {}
        self.plans = 0
        known = [i for i, name in enumerate(tensors.names) if name in expected]
        self.too_large = [i for i in known if self._bytes(i) > memory_bytes]
        self.candidates = _set_of(known) & ~_set_of(self.too_large)

    def run(self, reference: str) -> LayerReport:
        if not self.candidates:
            raise SpecError(
                f"memory of {format_bytes(self.memory_bytes)}: none of the"
                f" {len(self.too_large)} tensors is so small",
                options=("memory_bytes",),
            )
        suspects = self.candidates
        while suspects:
            self._compare(self._chosen(suspects))
            suspects = self._suspects()
        first = self._first()
        worst = sorted(self.results.values(), key=_badness, reverse=True)[:_LISTED]
        return LayerReport(
            first=self.results[first] if first is not None else None,
            worst=tuple(worst),
            tensors=self.candidates.bit_count() + len(self.too_large),
            compared=len(self.results),
            plans=self.plans,
            too_large=tuple(self.tensors.names[i] for i in self.too_large),
            reference=reference,
        )

    def remedy(self, open_broken: OpenRunner) -> str | None:
        """The tensor across which a fusion must not go for the outputs to match; None if none."""
        outputs = [name for name in self.expected.outputs if name in self.tensors.number]
        if not outputs or self._matches(self.open_runner, (), outputs):
            return None
        first = self._first()
        if first is None:
            candidates = self._mending(outputs)
        else:
            node = self.tensors.nodes[first]
            values = [v for v in (*node.inputs, *node.outputs) if v is not None]
            candidates = [str(value.name) for value in values if _breakable(value)]
        tries = candidates[:_MOST_REMEDIES]
        return next((name for name in tries if self._matches(open_broken, (name,), outputs)), None)

    def _mending(self, outputs: Sequence[str]) -> list[str]:
        """As few tensors as halving leaves with which as outputs the outputs match."""
        values = [v for node in self.tensors.nodes for v in node.outputs if _breakable(v)]
        known = {self.tensors.names[i] for i in self.results} - {*outputs}
        names = [str(value.name) for value in dict.fromkeys(values) if value.name in known]
        if not names or not self._matches(self.open_runner, names, outputs):
            return []
        while len(names) > 1:
            half = len(names) // 2
            parts = (names[:half], names[half:])
            fitting = (part for part in parts if self._matches(self.open_runner, part, outputs))
            chosen = next(fitting, None)
            if chosen is None:
                return names
            names = chosen
        return names

    def _matches(
        self, open_runner: OpenRunner, names: Sequence[str], outputs: Sequence[str]
    ) -> bool:
        with open_runner(names) as run:
            self.plans += 1
            found = run(self.inputs)
        return all(
            not self.thresholds.problems(
                compare_outputs(
                    name,
                    found[name],
                    self.expected[name],
                    floor=self.floors[self.tensors.number[name]],
                )
            )
            for name in outputs
        )

    def _first(self) -> int | None:
        return min((i for i, result in self.results.items() if not result.agrees), default=None)

    def _suspects(self) -> int:
        """The tensors that the first mismatch may come from and that were not compared yet."""
        first = self._first()
        if first is None:
            return 0
        compared, cleared = 0, 0
        for i, result in self.results.items():
            compared |= 1 << i
            if result.agrees:
                cleared |= self.tensors.ancestors[i]
        left = self.tensors.ancestors[first] & self.candidates & ~compared
        # What is cleared by what follows it is compared after all where the node itself reads it.
        return left & ~cleared or left & _set_of(self._nearest(first))

    def _nearest(self, number: int) -> Iterator[int]:
        """The tensors that a node reads; for one that is not compared, those it is made from."""
        pending, seen = list(self.tensors.reads[number]), set[str]()
        while pending:
            name = pending.pop()
            i = self.tensors.number.get(name)
            if name in seen or i is None:
                continue
            seen.add(name)
            if self.candidates >> i & 1:
                yield i
            else:
                pending += self.tensors.reads[i]

    def _chosen(self, suspects: int) -> list[int]:
        """As many suspects as fit one plan, so that each divides what is left about evenly."""
        numbers = list(_members(suspects))
        numbers.sort(key=lambda i: ((self.tensors.ancestors[i] & suspects).bit_count(), i))
        count = min(len(numbers), _MOST_OUTPUTS)
        while True:
            picked = [numbers[(2 * k + 1) * len(numbers) // (2 * count)] for k in range(count)]
            if count == 1 or sum(map(self._bytes, picked)) <= self.memory_bytes:
                return sorted(picked)
            count = max(1, min(count - 1, count * 9 // 10))

    def _bytes(self, number: int) -> int:
        return self.expected.bytes[self.tensors.names[number]]

    def _compare(self, numbers: Sequence[int]) -> None:
        names = [self.tensors.names[i] for i in numbers]
        size = format_bytes(sum(map(self._bytes, numbers)))
        _LOGGER.info("plan %d: comparing %d tensors (%s)", self.plans + 1, len(names), size)
        try:
            with self.open_runner(names) as run:
                self.plans += 1
                found = run(self.inputs)
        except CudaError as error:
            raise CudaError(
                f"{error.message} (with {len(names)} tensors of {size} as further outputs; lower"
                " the memory for them)",
                error.details,
                options=("memory_bytes",),
            ) from error
        own = [n for n in found if n in self.tensors.number and n in self.expected]
        for name in dict.fromkeys((*names, *own)):
            self._judge(name, found[name])

    def _judge(self, name: str, found: Array) -> None:
        number = self.tensors.number[name]
        node = self.tensors.nodes[number]
        floor = self.floors[number]
        comparison = compare_outputs(name, found, self.expected[name], floor=floor)
        self.results[number] = TensorResult(
            name=name,
            node=node.name or "",
            operator=node.op_type,
            comparison=comparison,
            agrees=not self.thresholds.problems(comparison),
        )

    def _floors(self) -> list[float]:
        """The root mean square that each tensor's error is measured against at least."""
        rms, floors = self.expected.rms, list[float]()
        for number, name in enumerate(self.tensors.names):
            floor, operator = self.thresholds.floor, self.tensors.nodes[number].op_type
            for read in self.tensors.reads[number]:
                if operator in _ADDING:
                    floor = max(floor, rms.get(read, 0.0))
                i = self.tensors.number.get(read)
                if operator in _PASSING and i is not None and rms.get(read) and name in rms:
                    floor = max(floor, floors[i] * min(1.0, rms[name] / rms[read]))
            floors.append(floor)
        return floors


def _breakable(value: ir.Value) -> bool:
    """Whether a fusion across a value can be broken."""
    return is_fp32(value) and constant_of(value) is None and bool(value.uses())


def _badness(result: TensorResult) -> tuple[bool, int, float]:
    error = result.comparison.relative_l2
    return math.isnan(error), result.comparison.nonfinite_differs, error


def _set_of(numbers: Iterable[int]) -> int:
    return sum(1 << number for number in set(numbers))


def _members(numbers: int) -> Iterator[int]:
    while numbers:
        lowest = numbers & -numbers
        yield lowest.bit_length() - 1
        numbers ^= lowest
