"""Comparison of a plan's outputs with those of a reference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, TypeAlias, TypeVar

from trt_native.arrays import Array, Batch
from trt_native.errors import SpecError, TrtNativeError
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan
from trt_native.progress import Progress, phase
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.runtime import Session
from trt_native.runtime.engine import Engine
from trt_native.verify.metrics import OutputComparison, Thresholds, compare_outputs
from trt_native.verify.reference import COMPARING

__all__ = ["Case", "Cases", "OpenPlan", "RunFn", "Verification", "open_session", "verify_plan"]

_C = TypeVar("_C")

RunFn: TypeAlias = Callable[[Batch], Mapping[str, Array]]
"""Runs a plan: arrays by input name in, arrays by output name out."""


class Case(NamedTuple):
    """One run to compare.

    Attributes:
        inputs: The inputs.
        reference: Computes the expected outputs.
        label: What distinguishes it from the others; empty for its number.
        optional: Whether the model may have no outputs for such inputs. Where the reference fails,
            the case is skipped then.
    """

    inputs: Batch
    reference: Callable[[], Mapping[str, Array]]
    label: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Cases:
    """Cases of which the number is known before the first is made.

    Attributes:
        count: Their number.
        cases: The cases; they can be iterated once.
    """

    count: int
    cases: Iterator[Case]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Case]:
        return self.cases


@dataclass(frozen=True, slots=True)
class OpenPlan:
    """A plan that can be run.

    Attributes:
        inputs: Its inputs.
        outputs: Its outputs.
        run: Runs it.
    """

    inputs: tuple[PlanTensor, ...]
    outputs: tuple[PlanTensor, ...]
    run: RunFn


@contextlib.contextmanager
def open_session(plan: Plan) -> Iterator[OpenPlan]:
    """Load a plan on the GPU for the time of a block.

    Raises:
        PlanError, UnsupportedError, CudaError: as :class:`~trt_native.runtime.engine.Engine`.
    """
    with Engine(plan) as engine, Session(engine) as session:
        yield OpenPlan(engine.inputs, engine.outputs, session.run)


@dataclass(frozen=True, slots=True)
class Verification:
    """Comparison of a plan with its reference.

    Attributes:
        batches: The comparison of each output, batch by batch.
        thresholds: The limits they were judged by.
        worst_inputs: Inputs of the first batch that fails, or else of that with the largest error.
        labels: What distinguishes each batch.
        skipped: For each optional case that the reference has no outputs for its label and why.
    """

    batches: tuple[tuple[OutputComparison, ...], ...]
    thresholds: Thresholds
    worst_inputs: Batch
    labels: tuple[str, ...]
    skipped: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every output of every batch keeps to the thresholds."""
        return not any(self.problems().values())

    def worst(self) -> tuple[OutputComparison, ...]:
        """For each output the worst numbers of all batches."""
        return tuple(
            reduce(OutputComparison.worst, column) for column in zip(*self.batches, strict=True)
        )

    def problems(self) -> dict[str, list[str]]:
        """The limits that each output exceeds, with the batch where there are several."""
        problems: dict[str, list[str]] = {found.name: [] for found in self.batches[0]}
        for label, batch in zip(self.labels, self.batches, strict=True):
            where = f" ({label})" if len(self.batches) > 1 else ""
            for found in batch:
                problems[found.name] += [f"{t}{where}" for t in self.thresholds.problems(found)]
        return problems


@shows_progress
def verify_plan(
    run: RunFn,
    cases: Iterable[Case | tuple[Batch, Callable[[], Mapping[str, Array]]]],
    thresholds: Thresholds,
    *,
    on_case: Callable[[Batch, Mapping[str, Array]], None] | None = None,
    progress: AnyProgress = None,
) -> Verification:
    """Run a plan on the inputs of cases, and compare its outputs with theirs.

    Args:
        run: Runs the plan.
        cases: Inputs and expected outputs, batch by batch. The plan runs first, so that
            inputs that do not fit it are known before the reference has worked for long.
        thresholds: The limits for the differences.
        on_case: Gets the inputs and the reference's outputs of each batch.
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`. Its steps are
            the cases, if there is a number of them.

    Raises:
        SpecError: there are no cases, or the arrays cannot be compared.
    """
    batches: list[tuple[OutputComparison, ...]] = []
    labels: list[str] = []
    skipped: dict[str, str] = {}
    worst: tuple[tuple[bool, float], Batch] | None = None
    for number, given in _reported(cases, progress):
        case = Case(*given)
        label = case.label or f"batch {number}"
        outputs = _outputs(run, case)
        if isinstance(outputs, str):
            skipped[label] = outputs
            continue
        found, expected = outputs
        compared = tuple(
            compare_outputs(name, found[name], expected[name], floor=thresholds.floor)
            for name in found
        )
        if on_case is not None:
            on_case(case.inputs, expected)
        fails = any(thresholds.problems(comparison) for comparison in compared)
        rank = fails, -1.0 if fails else max((c.relative_l2 for c in compared), default=0.0)
        if worst is None or rank > worst[0]:
            worst = rank, case.inputs
        batches.append(compared)
        labels.append(label)
    if worst is None:
        raise SpecError("there are no inputs to verify with")
    return Verification(tuple(batches), thresholds, worst[1], tuple(labels), skipped)


def _reported(cases: Iterable[_C], progress: Progress | None) -> Iterator[tuple[int, _C]]:
    """The cases with their numbers; each is reported when the next is asked for."""
    with phase(progress, COMPARING, len(cases) if isinstance(cases, Sized) else 0) as step:
        for number, case in enumerate(cases):
            yield number, case
            step(number)


def _outputs(run: RunFn, case: Case) -> tuple[Mapping[str, Array], Mapping[str, Array]] | str:
    """Outputs of plan and reference; for an optional case that has none, the reason."""
    if not case.optional:
        return run(case.inputs), case.reference()
    try:
        expected = case.reference()
    except TrtNativeError as error:
        return error.message
    return run(case.inputs), expected
