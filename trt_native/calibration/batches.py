"""Calibration data, checked against the model it is for.

One batch is what one run of the model takes: an array for every input.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import ml_dtypes  # noqa: F401  (makes bfloat16 and float8 known to NumPy by name)
import numpy as np

from trt_native.arrays import Array, Batch, StoredArray, is_float
from trt_native.calibration.folder import DataManifest
from trt_native.calibration.sources import Source, StoredBatch, open_source
from trt_native.errors import CalibrationError, SpecError, close_names
from trt_native.graph.dims import shape_problems
from trt_native.shapes import Shape, TensorSpec, format_shape

__all__ = ["Batches", "read_batches"]


class Batches(Sequence[Batch]):
    """Calibration data that was checked against a model. Made by :func:`read_batches`.

    Every batch has an array for each input of the model and no other, in exactly the input's
    dtype and C-contiguous. Batches are read when they are asked for, so that data of any size
    takes the memory of one batch; iterating again reads the same batches again. A slice is
    :class:`Batches` again.

    Attributes:
        source: The first argument of :func:`read_batches`.
        inputs: The model's inputs.
    """

    def __init__(
        self,
        source: str,
        inputs: tuple[TensorSpec, ...],
        content: Source,
        shapes: Sequence[Mapping[str, Shape]],
        numbers: range | None = None,
    ) -> None:
        self.source = source
        self.inputs = inputs
        self._content = content
        self._all_shapes = shapes
        self._numbers = range(len(shapes)) if numbers is None else numbers

    @property
    def manifest(self) -> DataManifest | None:
        """The manifest of the folder they come from; None without one."""
        return self._content.manifest

    @property
    def shapes(self) -> tuple[Mapping[str, Shape], ...]:
        """The shape of every array, batch by batch."""
        return tuple(self._all_shapes[number] for number in self._numbers)

    def common_shapes(self) -> dict[str, Shape]:
        """The shape that each input has in every batch.

        Raises:
            CalibrationError: an input's shape differs between batches.
        """
        shapes = self.shapes
        problems = []
        for tensor in self.inputs:
            found = list(dict.fromkeys(batch[tensor.name] for batch in shapes))
            if len(found) > 1:
                listing = ", ".join(format_shape(shape) for shape in found)
                problems.append(f"{tensor.name!r} has the shapes {listing}")
        if problems:
            raise CalibrationError(
                f"{self.source}: all batches need the same shapes here; keep those of one shape",
                problems=problems,
            )
        return dict(shapes[0])

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Batch]:
        batches = self._content.read(self._numbers)
        for number, batch in zip(self._numbers, batches, strict=True):
            arrays = {t.name: batch[t.name] for t in self.inputs if t.name in batch}
            shapes = {name: array.shape for name, array in arrays.items()}
            if shapes != self._all_shapes[number]:
                raise CalibrationError(f"{self.source}: batch {number} changed while it was in use")
            yield _converted(arrays, self.inputs)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> Batch | Batches:
        if isinstance(index, slice) and (index.step or 1) < 0:
            raise ValueError("batches are read forwards: a slice needs a positive step")
        numbers = self._numbers[index]
        if isinstance(numbers, int):
            numbers = range(numbers, numbers + 1)
        chosen = Batches(self.source, self.inputs, self._content, self._all_shapes, numbers)
        return chosen if isinstance(index, slice) else next(iter(chosen))


def read_batches(
    source: str | os.PathLike[str], inputs: Sequence[TensorSpec], *, limit: int | None = None
) -> Batches:
    """Open calibration data and check all of it.

    Args:
        source: One of

            - a folder of ``.npz`` files, one per batch, with arrays by input name. Where it has a
              ``manifest.json``, that lists the files; else they are taken in their names' order;
            - a folder of ``.npy`` files, one per array: ``BATCH.INPUT.npy``, or just
              ``BATCH.npy`` for a model with one input;
            - one ``.npz`` file: one batch, or many where every array has one axis more than its
              input, whose extent is then the number of batches;
            - ``FILE.py:FUNCTION``: a function without arguments whose result yields a mapping of
              input name to array (or CPU tensor) for each batch. It is called once for every
              pass over the data and must yield the same each time.
        inputs: The model's inputs. Extents may be names or expressions of names; within a batch
            each name stands for one extent.
        limit: Use so many batches from the start. Needed for a function that never ends.

    Returns:
        The data. Floating-point arrays may have any floating-point type, and are converted to the
        input's; integers may be narrower than the input's.

    Raises:
        CalibrationError: the source cannot be read, or arrays are missing, unknown, empty, of
            another type or shape, or not finite in the input's type; all problems in one error.
        SpecError: ``limit`` is less than 1.
    """
    if limit is not None and limit < 1:
        raise SpecError(f"limit of {limit} batches: it must be at least 1")
    text = os.fspath(source)
    specs = tuple(inputs)
    content = open_source(text, specs, limit)
    problems = _Problems(content.problems)
    shapes: list[dict[str, Shape]] = []
    for label, batch in content.scan():
        if isinstance(batch, CalibrationError):
            problems.add(batch.message, label)
            continue
        known = {t.name: t for t in specs}
        for problem in _name_problems(batch, known):
            problems.add(problem, label)
        try:
            arrays = {name: batch[name] for name in known if name in batch}
            for problem in _array_problems(arrays, specs):
                problems.add(problem, label)
            shapes.append({name: array.shape for name, array in arrays.items()})
        except CalibrationError as error:
            problems.add(error.message, label)
    if problems:
        raise problems.error(text, specs, content.hint)
    if not shapes:
        raise CalibrationError(f"{text}: no calibration data: there are no batches")
    return Batches(text, specs, content, shapes)


class _Problems:
    """Problems, each once, with the batches that have it."""

    def __init__(self, problems: Sequence[str]) -> None:
        self._places: dict[str, list[str]] = {problem: [] for problem in problems}

    def add(self, problem: str, place: str) -> None:
        self._places.setdefault(problem, []).append(place)

    def __bool__(self) -> bool:
        return bool(self._places)

    def error(self, source: str, inputs: Sequence[TensorSpec], hint: str) -> CalibrationError:
        details = ["the model's inputs:", *(f"- {tensor}" for tensor in inputs)]
        details += [hint] if hint else []
        return CalibrationError(
            f"{source}: this calibration data cannot be used:",
            details,
            problems=[f"{text}{_where(places)}" for text, places in self._places.items()],
        )


def _where(places: list[str]) -> str:
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f" ({places[0]}{more})" if places else ""


def _name_problems(names: Iterable[str], known: Collection[str]) -> list[str]:
    problems = []
    for name in names:
        if name not in known:
            close = close_names(str(name), known)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            problems.append(f"{name!r} is not an input of the model{hint}")
    return problems + [f"{name!r} is missing" for name in known if name not in set(names)]


def _array_problems(batch: StoredBatch, inputs: Sequence[TensorSpec]) -> list[str]:
    """Problems of types and shapes, and where an array has none, of its values."""
    problems = []
    for tensor in inputs:
        if (array := batch.get(tensor.name)) is not None:
            own = _type_problems(tensor, array)
            fits = not own and not shape_problems([tensor], {tensor.name: array.shape})
            problems += _value_problems(tensor, array) if fits else own
    return problems + shape_problems(inputs, {name: array.shape for name, array in batch.items()})


def _type_problems(tensor: TensorSpec, array: Array | StoredArray) -> list[str]:
    try:
        wanted = np.dtype(tensor.dtype)
    except TypeError:
        return [f"{tensor.name!r} has the type {tensor.dtype}, which cannot be calibrated"]
    if not _convertible(array.dtype, wanted):
        return [f"{tensor.name!r} needs {tensor.dtype}, found {array.dtype}"]
    return [] if math.prod(array.shape) else [f"{tensor.name!r} is empty"]


def _value_problems(tensor: TensorSpec, array: Array | StoredArray) -> list[str]:
    wanted = np.dtype(tensor.dtype)
    if not is_float(wanted):
        return []
    wrong, peak, too_large = 0, 0.0, False
    for piece in array.pieces() if isinstance(array, StoredArray) else (array,):
        values = piece if piece.dtype.kind == "f" else piece.astype(np.float32)
        wrong += int(np.count_nonzero(~np.isfinite(values)))
        peak = max(peak, float(np.abs(values).max()))
        too_large |= not np.isfinite(_cast(piece, wanted).astype(np.float32)).all()
    if wrong:
        total = math.prod(array.shape)
        return [f"{tensor.name!r} has values that are NaN or infinite, {wrong} of {total}"]
    if too_large:
        return [f"{tensor.name!r} has values up to {peak:.3g}, too large for {tensor.dtype}"]
    return []


def _convertible(found: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    if is_float(wanted):
        return is_float(found)
    return found.kind == wanted.kind and np.can_cast(found, wanted, "safe")


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        return array.astype(dtype, order="C", copy=False)


def _converted(batch: StoredBatch, inputs: Sequence[TensorSpec]) -> Batch:
    arrays = {}
    for tensor in inputs:
        array = batch[tensor.name]
        values = array.read() if isinstance(array, StoredArray) else array
        arrays[tensor.name] = _cast(values, np.dtype(tensor.dtype))
    return arrays
