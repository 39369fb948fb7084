"""The first tensor inside a model that differs between its plan and the reference.

Plans are built with some of the tensors as further outputs, and these are compared with those of
the ONNX file on the CPU. A mismatch is taken to propagate to what is computed from it: where a
tensor agrees, so does all that it was made from. So each plan leaves only the tensors between those
that agree and the first that does not, and few plans are needed for any number of tensors. In the
end the tensor found has been compared with all that its node reads.

A fault of a fused kernel may vanish in such plans. It is looked for where it stays: in debug
tensors, where the backend has them, or else in plans with one further output each, with which the
model's own outputs are still wrong.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array, Batch
from trt_native.backends.base import DebugTensor
from trt_native.config import CpuRuntime, FixedValues
from trt_native.errors import CudaError, SpecError, UnsupportedError
from trt_native.graph.inference import infer_types
from trt_native.graph.nodes import DATA_MOVEMENT_OPS, constant_of, is_fp32, op_set
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.scratch import scratch_folder
from trt_native.units import format_bytes
from trt_native.verify.layer_report import HiddenFault, LayerReport, Observed, TensorResult
from trt_native.verify.layer_tensors import ExpectedTensors, ModelTensors, members, set_of
from trt_native.verify.metrics import Thresholds, compare_outputs
from trt_native.verify.observed_plans import OpenDebugRunner, OpenRunner, model_tensor
from trt_native.verify.reference import read_inlined

__all__ = ["find_first_mismatch"]

_LOGGER = logging.getLogger(__name__)
_MOST_OUTPUTS = 256  # of one plan, beyond the model's own: each of them prevents a fusion
_MOST_LONE_OUTPUTS = 24  # plans with one further output, to find a fault that several hide
_LISTED = 10
_MOST_REMEDIES = 4
# What these make of large numbers can be small, and then is as inexact as they are.
_ADDING = op_set("Add Sub Sum Mean ReduceSum ReduceMean GlobalAveragePool AveragePool")
# What comes out is as exact as what goes in.
_PASSING = (
    DATA_MOVEMENT_OPS | _ADDING | op_set("Relu LeakyRelu PRelu Neg Abs Mul Div Cast CastLike Clip")
)


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
    open_debug: OpenDebugRunner | None = None,
    extra_outputs: bool = True,
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
        open_runner: Runs the model with extra outputs, such as
            :func:`~trt_native.verify.observed_plans.open_with_extra_outputs`.
        thresholds: Of these the largest relative error and the floor count.
        reference: The ONNX file to compare with; ``model`` itself if None. Tensors are matched by
            name.
        memory_bytes: Most bytes that the outputs of one plan may take; the reference's values
            are kept in temporary files. Debug tensors are compared one by one.
        open_broken: Runs the model with TensorRT's fusions across these tensors broken. Given for
            a plan whose outputs do not match, it is used to find one tensor that makes them match,
            and a fault that extra outputs hide is looked for.
        open_debug: Runs the model with debug tensors, such as
            :func:`~trt_native.verify.observed_plans.open_with_debug_tensors`; None without them.
        extra_outputs: Compare tensors as extra outputs; else as debug tensors alone.
        fixed_inputs: Values of the inputs that the batch lacks, as they are constants of the plan.
        runtime: What runs the reference.
        progress: Receives progress of the reference; see
            :data:`trt_native.progress_bars.AnyProgress`.

    Raises:
        ModelError: a file is damaged.
        SpecError: there is no relative error to judge by, or the models have no tensors in common.
        CalibrationError: the inputs do not fit the model.
        UnsupportedError: the reference cannot be run, or TensorRT gives out no debug tensor and
            nothing else was asked for.
    """
    if thresholds.max_relative_error is None:
        raise SpecError("a mismatch is judged by the relative error, for which no limit is given")
    fixed = dict(fixed_inputs or {})
    tensors = ModelTensors(_typed(model, fixed))
    with scratch_folder() as folder:
        compared_with = _typed(reference or model, fixed)
        expected = ExpectedTensors(folder, compared_with, tensors.names, inputs, runtime, progress)
        judge = _Judge(tensors, expected, thresholds)
        search = _Search(judge, inputs, open_runner, memory_bytes)
        if open_debug is not None:
            search.observe_debug_tensors(open_debug)
        if extra_outputs:
            search.observe_outputs()
        elif not search.debug_results:
            raise UnsupportedError(
                "TensorRT gave out none of the model's tensors: all are inside fused kernels;"
                " observe them as outputs",
                options=("observe",),
            )
        if open_broken is not None:
            search.find_remedy(open_broken)
        return search.report(f"{reference or model}, run by {expected.program}")


def _typed(path: Path, fixed: FixedValues) -> ir.Model:
    graph = read_inlined(path, fixed)
    infer_types(graph)
    return graph


class _Judge:
    """Compares tensors with the reference."""

    def __init__(
        self, tensors: ModelTensors, expected: ExpectedTensors, thresholds: Thresholds
    ) -> None:
        self.tensors = tensors
        self.expected = expected
        self.thresholds = Thresholds(
            max_relative_error=thresholds.max_relative_error, floor=thresholds.floor
        )
        self._floors = self._all_floors()

    def __call__(self, number: int, found: Array, observed: Observed) -> TensorResult:
        """Compare a tensor with what it is in the reference."""
        name, node = self.tensors.names[number], self.tensors.nodes[number]
        floor = self._floors[number]
        comparison = compare_outputs(name, found, self.expected[name], floor=floor)
        return TensorResult(
            name=name,
            node=node.name or "",
            operator=node.op_type,
            comparison=comparison,
            agrees=not self.thresholds.problems(comparison),
            observed=observed,
        )

    def in_memory_order(self, number: int, found: Array) -> TensorResult | None:
        """Compare a debug tensor; None if it has the right values in another order.

        TensorRT does not say in which order its memory has a debug tensor's elements.
        """
        expected = self.expected[self.tensors.names[number]]
        result = self(number, found.reshape(expected.shape), "debug tensor")
        if result.agrees:
            return result
        ordered = np.sort(np.asarray(found, np.float32), axis=None)
        same = np.sort(np.asarray(expected, np.float32), axis=None)
        comparison = compare_outputs("", ordered, same, floor=self._floors[number])
        return None if not self.thresholds.problems(comparison) else result

    def model_outputs(self, found: Mapping[str, Array]) -> dict[int, TensorResult]:
        """Compare the model's outputs among some arrays."""
        numbers = {name: self.tensors.number.get(name) for name in self.expected.outputs}
        return {
            number: self(number, found[name], "output")
            for name, number in numbers.items()
            if number is not None
        }

    def _all_floors(self) -> list[float]:
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


class _Search:
    """Plans that are built and compared, one after the other, and what they showed."""

    def __init__(
        self, judge: _Judge, inputs: Batch, open_runner: OpenRunner, memory_bytes: int
    ) -> None:
        self.judge = judge
        self.tensors, self.expected = judge.tensors, judge.expected
        self.inputs = inputs
        self.open_runner = open_runner
        self.memory_bytes = memory_bytes
        self.results: dict[int, TensorResult] = {}
        self.debug_results: dict[int, TensorResult] = {}
        self.lone_results: dict[int, TensorResult] = {}
        self.hidden: HiddenFault | None = None
        self.break_fusion: str | None = None
        self.plans = 0
        known = [i for i, name in enumerate(self.tensors.names) if name in self.expected]
        self.too_large = [i for i in known if self._bytes(i) > memory_bytes]
        self.candidates = set_of(known) & ~set_of(self.too_large)
        if not self.candidates:
            raise SpecError(
                f"memory of {format_bytes(memory_bytes)}: none of the {len(self.too_large)} tensors"
                " is so small",
                options=("memory_bytes",),
            )

    # Observing

    def observe_debug_tensors(self, open_debug: OpenDebugRunner) -> None:
        """Compare what a plan with debug tensors gives out, one by one as it is made."""
        _LOGGER.info("plan %d: comparing debug tensors", self.plans + 1)
        with open_debug() as run:
            self.plans += 1
            run(self.inputs, self._compare_debug_tensor)

    def _compare_debug_tensor(self, tensor: DebugTensor) -> None:
        name = model_tensor(tensor.name, self.tensors.number)
        number = self.tensors.number[name] if name is not None else None
        if name is None or number is None or not self.candidates >> number & 1:
            return
        if "float" not in tensor.dtype or math.prod(tensor.shape) != self.expected[name].size:
            return
        result = self.judge.in_memory_order(number, tensor.read())
        if result is not None:
            self.debug_results[number] = result

    def observe_outputs(self) -> None:
        """Compare tensors as further outputs, until no other one may be the first mismatch."""
        suspects = self.candidates
        while suspects:
            self._compare(self._chosen(suspects, _MOST_OUTPUTS))
            suspects = self._suspects()

    def _suspects(self) -> int:
        """The tensors that the first mismatch may come from and that were not compared yet."""
        first = _first(self.results)
        if first is None:
            return 0
        compared, cleared = 0, 0
        for i, result in self.results.items():
            compared |= 1 << i
            if result.agrees:
                cleared |= self.tensors.ancestors[i]
        left = self.tensors.ancestors[first] & self.candidates & ~compared
        # What is cleared by what follows it is compared after all where the node itself reads it.
        return left & ~cleared or left & set_of(self._nearest(first))

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

    def _chosen(self, suspects: int, most: int) -> list[int]:
        """As many suspects as fit one plan, so that each divides what is left about evenly."""
        numbers = list(members(suspects))
        numbers.sort(key=lambda i: ((self.tensors.ancestors[i] & suspects).bit_count(), i))
        count = min(len(numbers), most)
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
            found = self._run(self.open_runner, names)
        except CudaError as error:
            raise CudaError(
                f"{error.message} (with {len(names)} tensors of {size} as further outputs; lower"
                " the memory for them)",
                error.details,
                options=("memory_bytes",),
            ) from error
        own = [n for n in found if n in self.tensors.number and n in self.expected]
        for name in dict.fromkeys((*names, *own)):
            number = self.tensors.number[name]
            self.results[number] = self.judge(number, found[name], "output")

    def _run(self, open_runner: OpenRunner, names: Sequence[str]) -> Mapping[str, Array]:
        with open_runner(names) as run:
            self.plans += 1
            return run(self.inputs)

    # What would make the outputs match

    def find_remedy(self, open_broken: OpenRunner) -> None:
        """Find where a fault hides, and a tensor across which no fusion must go."""
        outputs = self.judge.model_outputs(self._run(self.open_runner, ()))
        if _first(outputs) is None:
            return
        if (first := _first(self.results)) is not None:
            candidates = self._around(first)
        else:
            candidates = self._behind_hidden_fault(outputs)
        tried = []
        for name in candidates[:_MOST_REMEDIES]:
            if self._matches(open_broken, (name,)):
                self.break_fusion = name
                break
            tried.append(name)
        if self.hidden is not None:
            self.hidden = replace(self.hidden, tried=tuple(tried))

    def _around(self, number: int) -> list[str]:
        """What a node reads and makes."""
        node = self.tensors.nodes[number]
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        return [str(value.name) for value in values if _breakable(value)]

    def _behind_hidden_fault(self, outputs: Mapping[int, TensorResult]) -> list[str]:
        """Locate a fault that no further output shows; tensors that may be its remedy."""
        if self.debug_results:
            self.hidden = self._located({**outputs, **self.debug_results})
        else:
            wrong = min(i for i, result in outputs.items() if not result.agrees)
            hiding = self._observe_alone(wrong, self.candidates & ~set_of(outputs))
            seen = {wrong: outputs[wrong], **self.lone_results}
            self.hidden = replace(self._located(seen), hiding=tuple(hiding))
        mending = list(self.hidden.hiding)
        if not mending and self.results:
            mending = self._mending([*outputs])
        return list(dict.fromkeys((*mending, *self.hidden.between)))

    def _observe_alone(self, wrong: int, candidates: int) -> list[str]:
        """Compare tensors that are the only further output of a plan whose outputs stay wrong.

        Args:
            wrong: The first of the model's outputs that is wrong.
            candidates: The tensors to choose from.

        Returns:
            The tensors that as the only further output make the outputs right.
        """
        hiding = []
        left = self.tensors.ancestors[wrong] & candidates
        for _ in range(_MOST_LONE_OUTPUTS):
            if not left:
                break
            (number,) = self._chosen(left, 1)
            name = self.tensors.names[number]
            _LOGGER.info("plan %d: comparing %s alone", self.plans + 1, name)
            found = self._run(self.open_runner, (name,))
            left &= ~(1 << number)
            if _first(self.judge.model_outputs(found)) is None:
                if _breakable(self.tensors.value(name)):
                    hiding.append(name)
                continue
            result = self.judge(number, found[name], "only output")
            self.lone_results[number] = result
            above = self.tensors.ancestors[number]
            left &= ~above if result.agrees else above
        return hiding

    def _located(self, seen: Mapping[int, TensorResult]) -> HiddenFault:
        """Between which of the tensors that were seen the first mismatch arises."""
        wrong = min(i for i, result in seen.items() if not result.agrees)
        above = self.tensors.ancestors[wrong]
        right = [i for i, result in seen.items() if result.agrees and above >> i & 1]
        cleared = 0
        for i in right:
            cleared |= self.tensors.ancestors[i]
        inner = [self.tensors.names[i] for i in members(above & ~cleared & ~(1 << wrong))][::-1]
        last = max(right, default=None)
        ends = [self.tensors.names[last]] if last is not None else []
        return HiddenFault(
            last_match=seen[last] if last is not None else None,
            mismatch=seen[wrong],
            between=tuple(name for name in (*inner, *ends) if _breakable(self.tensors.value(name))),
        )

    def _mending(self, outputs: Sequence[int]) -> list[str]:
        """As few tensors as halving leaves with which as outputs the outputs match."""
        numbers = sorted({*self.results} - {*outputs})
        named = (
            (name, self.tensors.value(name))
            for name in map(self.tensors.names.__getitem__, numbers)
        )
        names = [name for name, value in named if _breakable(value)]
        if not names or not self._matches(self.open_runner, names):
            return []
        while len(names) > 1:
            half = len(names) // 2
            parts = (names[:half], names[half:])
            fitting = (part for part in parts if self._matches(self.open_runner, part))
            chosen = next(fitting, None)
            if chosen is None:
                return names
            names = chosen
        return names

    def _matches(self, open_runner: OpenRunner, names: Sequence[str]) -> bool:
        return _first(self.judge.model_outputs(self._run(open_runner, names))) is None

    def report(self, reference: str) -> LayerReport:
        """What the plans have shown."""
        shown = self.results or self.debug_results
        first = _first(shown)
        ways = (self.results, self.lone_results, self.debug_results)
        all_results = [result for way in ways for result in way.values()]
        return LayerReport(
            first=shown[first] if first is not None else None,
            worst=tuple(sorted(all_results, key=_badness, reverse=True)[:_LISTED]),
            tensors=self.candidates.bit_count() + len(self.too_large),
            compared=len({*self.results, *self.debug_results}),
            plans=self.plans,
            too_large=tuple(self.tensors.names[i] for i in self.too_large),
            reference=reference,
            break_fusion=self.break_fusion,
            hidden=self.hidden,
            debug_tensors=len(self.debug_results),
        )


def _first(results: Mapping[int, TensorResult]) -> int | None:
    """The first tensor that mismatches."""
    return min((i for i, result in results.items() if not result.agrees), default=None)


def _breakable(value: ir.Value) -> bool:
    """Whether a fusion across a value can be broken."""
    return is_fp32(value) and constant_of(value) is None and bool(value.uses())


def _badness(result: TensorResult) -> tuple[bool, int, float]:
    error = result.comparison.relative_l2
    return math.isnan(error), result.comparison.nonfinite_differs, error
