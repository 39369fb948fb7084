"""Rows of a table as batches of a plan, and its outputs as rows again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_native.errors import SpecError
from trt_native.plans.manifest import PlanTensor

__all__ = ["Batch", "RowBatcher"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one run.

    Attributes:
        inputs: An array for each input.
        rows: Number of rows in it; the rest of a batch repeats the last one. 0 where the row is
            the whole input, and has no axis of rows.
    """

    inputs: dict[str, Array]
    rows: int


class RowBatcher:
    """Cuts columns into batches that a plan can run, and puts its outputs together.

    A row is an element of a batch where each input has one axis more than a row, and one run of
    the plan where an input has the axes of a row. The batches of a plan with ranges are as large as
    its profiles allow. Rows that are left over are filled up with copies of the last one where the
    plan has no batch of that size; their results are dropped.

    Args:
        inputs: The plan's inputs.
        outputs: The plan's outputs.
    """

    def __init__(self, inputs: Sequence[PlanTensor], outputs: Sequence[PlanTensor]) -> None:
        self._inputs = inputs
        self._outputs = outputs

    def batches(self, columns: Mapping[str, Array]) -> Iterator[Batch]:
        """The runs of the plan for some rows.

        Args:
            columns: For each input the rows: an array whose first axis they are, or an array of
                arrays where they differ in shape. Batches are views of it, where they can be.

        Raises:
            SpecError: rows have neither the axes of the inputs nor one less, or no profile has
                room for one row.
        """
        for part in _equal_shapes(columns):
            if self._is_whole(part):
                for i in range(_count(part)):
                    yield Batch({name: array[i] for name, array in part.items()}, 0)
            else:
                yield from self._cut(part)

    def _is_whole(self, columns: Mapping[str, Array]) -> bool:
        """Whether a row is a whole input instead of an element of a batch."""
        extra = {t.name: len(t.shape) - (columns[t.name].ndim - 1) for t in self._inputs}
        if not set(extra.values()) <= {0, 1} or len(set(extra.values())) > 1:
            shapes = ", ".join(
                f"{t.name}: {t.describe_shape()}, rows {columns[t.name].shape[1:]}"
                for t in self._inputs
            )
            raise SpecError(
                "rows do not fit the plan: each must have one axis less than the plan's input, or"
                f" each the same number ({shapes})"
            )
        return set(extra.values()) == {0}

    def _cut(self, columns: Mapping[str, Array]) -> Iterator[Batch]:
        total, largest = _count(columns), max(self._sizes(), default=0)
        if largest < 1:
            raise SpecError("the plan's profiles have no batch that all its inputs can have")
        for start in range(0, total, largest):
            rows = min(largest, total - start)
            size = next(size for size in self._sizes(rows) if size >= rows)
            yield Batch(
                {
                    name: _filled(array[start : start + rows], size)
                    for name, array in columns.items()
                },
                rows,
            )

    def _sizes(self, at_least: int = 1) -> list[int]:
        """For each profile the smallest batch of at least so many rows, and the largest; sorted."""
        profiles = max((len(tensor.profiles) for tensor in self._inputs), default=0) or 1
        found = set()
        for profile in range(profiles):
            ranges = [_batch_range(tensor, profile) for tensor in self._inputs]
            low = max([at_least, *(low for low, _ in ranges)])
            high = min(high for _, high in ranges)
            if low <= high:
                found |= {low, high}
        return sorted(found)

    def joined(self, results: Sequence[tuple[Batch, Mapping[str, Array]]]) -> dict[str, Array]:
        """The rows of all outputs.

        Args:
            results: Batches, and the outputs of each, in the order of the rows.

        Returns:
            For each output an array with a row for each row of the batches. Rows that differ in
            shape are arrays in an array of objects.

        Raises:
            SpecError: an output's first axis is not that of the rows.
        """
        return {t.name: self._rows_of(t, results) for t in self._outputs}

    def _rows_of(
        self, tensor: PlanTensor, results: Sequence[tuple[Batch, Mapping[str, Array]]]
    ) -> Array:
        parts = []
        for batch, outputs in results:
            array = outputs[tensor.name]
            if not batch.rows:
                parts.append(array[None])
                continue
            size = len(next(iter(batch.inputs.values())))
            if array.ndim == 0 or len(array) != size:
                raise SpecError(
                    f"output {tensor.name!r} has shape {array.shape} for a batch of {size} rows:"
                    " its first axis must be that of the rows"
                )
            parts.append(array[: batch.rows])
        if not parts:
            shape = [max(extent, 0) for extent in tensor.shape]
            return np.zeros([0, *shape[1:]], tensor.dtype)
        if len({part.shape[1:] for part in parts}) > 1:
            rows = [row for part in parts for row in part]
            joined = np.empty(len(rows), object)
            joined[:] = rows
            return joined
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _batch_range(tensor: PlanTensor, profile: int) -> tuple[int, int]:
    """The least and the largest extent of an input's first axis in a profile."""
    if tensor.shape[0] >= 0:
        return tensor.shape[0], tensor.shape[0]
    given = tensor.profiles[profile]
    return given.min[0], given.max[0]


def _count(columns: Mapping[str, Array]) -> int:
    return len(next(iter(columns.values())))


def _filled(array: Array, size: int) -> Array:
    """An array with its last row repeated up to a number of rows."""
    if len(array) == size:
        return array
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def _equal_shapes(columns: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Cut columns where the shape of a row changes."""
    if not columns or not _count(columns):
        return
    ragged = [name for name, array in columns.items() if array.dtype == object]
    if not ragged:
        yield dict(columns)
        return
    shapes = [tuple(np.shape(columns[name][i]) for name in ragged) for i in range(_count(columns))]
    start = 0
    for end in range(1, len(shapes) + 1):
        if end < len(shapes) and shapes[end] == shapes[start]:
            continue
        yield {
            name: np.stack(list(array[start:end])) if name in ragged else array[start:end]
            for name, array in columns.items()
        }
        start = end
