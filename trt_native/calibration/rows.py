"""Rows of a model's activations: samples of what its products multiply their weights by."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trt_native.arrays import Array, Batch
from trt_native.errors import CalibrationError
from trt_native.progress import Progress, phase

__all__ = ["ROWS", "RowReader", "sample_rows"]

ROWS = 256
"""Rows that are kept of an activation, of all batches together."""


@dataclass(frozen=True, slots=True)
class RowReader:
    """A way in which products read an activation: by its last axis, or by patches.

    Attributes:
        tensor: Name of the activation.
        kernel: Extents of a convolution's kernel; empty for a matrix product.
        strides: Its strides, for each axis.
        pads: Zeros before each axis and then after each.
        dilations: Its dilations.
    """

    tensor: str
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()

    def take(self, array: Array, count: int) -> Array:
        """float32[rows, K]: at most that many rows, evenly spaced.

        Args:
            array: The activation: [..., K], or [batch, channels, ...] for a convolution, of which K
                is the channels times the kernel's elements.
            count: How many.
        """
        return self._patches(array, count) if self.kernel else _matrix_rows(array, count)

    def _patches(self, array: Array, count: int) -> Array:
        axes = len(self.kernel)
        before, after = self.pads[:axes], self.pads[axes:]
        extents = [n + b + a for n, b, a in zip(array.shape[2:], before, after, strict=True)]
        spans = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        steps = [(n - s) // t + 1 for n, s, t in zip(extents, spans, self.strides, strict=True)]
        shape = (array.shape[0], *steps)
        found = np.zeros((min(count, math.prod(shape)), array.shape[1], *self.kernel), np.float32)
        for row, place in zip(found, _spaced(math.prod(shape), count), strict=True):
            image, *corner = (int(i) for i in np.unravel_index(place, shape))
            self._copy(array[image], corner, row)
        return found.reshape(len(found), -1)

    def _copy(self, image: Array, corner: Sequence[int], row: Array) -> None:
        """Copy what of a patch is inside the image."""
        inside, target = [], []
        axes = zip(image.shape[1:], corner, self.kernel, strict=True)
        for axis, (extent, step, kernel) in enumerate(axes):
            start = step * self.strides[axis] - self.pads[axis]
            places = start + self.dilations[axis] * np.arange(kernel)
            target.append(np.flatnonzero((places >= 0) & (places < extent)))
            inside.append(places[target[-1]])
        every = np.arange(image.shape[0])
        row[np.ix_(every, *target)] = image[np.ix_(every, *inside)]


def _matrix_rows(array: Array, count: int) -> Array:
    matrix = array.reshape(-1, array.shape[-1])
    return np.asarray(matrix[_spaced(len(matrix), count)].astype(np.float32))


def _spaced(extent: int, count: int) -> Array:
    return np.asarray(np.linspace(0, extent - 1, min(extent, count)).round().astype(np.int64))


def sample_rows(
    batches: Sequence[Batch],
    run: Callable[[Batch], Iterable[tuple[str, Array]]],
    readers: Sequence[RowReader],
    progress: Progress | None = None,
) -> dict[RowReader, Array]:
    """Run batches through a model, and keep rows of its activations.

    Args:
        batches: Input name to array, batch by batch; they share :data:`ROWS`.
        run: Takes a batch; gives name and values of each tensor, in any order, and of others.
        readers: How tensors are read.
        progress: Receives progress callbacks.

    Returns:
        float32[rows, K] for each reader.

    Raises:
        CalibrationError: there are no batches, a value is NaN or infinite, or ``run`` leaves a
            tensor out.
    """
    if not batches:
        raise CalibrationError("there are no batches to calibrate with")
    share = -(-ROWS // len(batches))
    by_tensor: dict[str, list[RowReader]] = defaultdict(list)
    for reader in readers:
        by_tensor[reader.tensor].append(reader)
    found: dict[RowReader, list[Array]] = {reader: [] for reader in readers}
    with phase(progress, "Running the model: samples", len(batches)) as step:
        for number, batch in enumerate(batches):
            for name, array in run(batch):
                for reader in by_tensor.get(name, ()):
                    found[reader].append(_finite(reader.take(np.asarray(array), share), reader))
            step(number)
            for reader in readers:
                if len(found[reader]) != number + 1:
                    raise CalibrationError(f"the model gave no values of tensor {reader.tensor!r}")
    return {reader: np.concatenate(parts)[:ROWS] for reader, parts in found.items()}


def _finite(rows: Array, reader: RowReader) -> Array:
    if not np.isfinite(rows).all():
        raise CalibrationError(
            f"tensor {reader.tensor!r} has NaN or infinite values; leave this batch out, or"
            " calibrate the model in FP32"
        )
    return rows
