"""Operators that choose, move and join values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from onnx.reference.op_run import OpRun

from trt_native.arrays import Array
from trt_native.reference.kernels import Kernel, widened

__all__ = ["KERNELS"]

_Integers: TypeAlias = Array | Sequence[int]


def _gather_elements(_node: OpRun, data: Array, indices: Array, *, axis: int) -> tuple[Array]:
    # The indices may cover a part of the other axes.
    part = [slice(extent) for extent in indices.shape]
    part[axis] = slice(None)
    return (np.take_along_axis(data[tuple(part)], indices.astype(np.int64), axis),)


def _scatter(
    _node: OpRun, data: Array, indices: Array, updates: Array, *, axis: int
) -> tuple[Array]:
    places: list[Array] = list(np.indices(indices.shape))
    places[axis] = indices
    found = data.copy()
    found[tuple(places)] = updates
    return (found,)


def _one_hot(
    _node: OpRun, indices: Array, depth: Array, values: Array, *, axis: int
) -> tuple[Array]:
    off, on = values
    count = int(np.ravel(depth)[0])
    wanted = indices.astype(np.int64)
    wanted = np.expand_dims(np.where(wanted < 0, wanted + count, wanted), axis)
    numbers = np.arange(count).reshape(-1, *[1] * (-axis - 1 if axis < 0 else indices.ndim - axis))
    return (np.where(wanted == numbers, on, off).astype(values.dtype),)


def _slice(
    _node: OpRun,
    data: Array,
    starts: _Integers,
    ends: _Integers,
    axes: _Integers | None = None,
    steps: _Integers | None = None,
) -> tuple[Array]:
    if axes is None or len(axes) == 0:
        axes = range(len(starts))
    steps = [1] * len(starts) if steps is None else steps
    slices = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        extent = data.shape[axis]
        low, high = (0, extent) if step > 0 else (-1, extent - 1)
        first, last = (int(i) + extent if i < 0 else int(i) for i in (start, end))
        # Counting down, a start in front of the data is the first element, an end there is none.
        first = min(max(first, 0), high)
        last = min(max(last, low), high)
        slices[axis] = slice(first, None if last < 0 else last, int(step))
    return (data[tuple(slices)],)


def _pad(
    _node: OpRun,
    data: Array,
    pads: _Integers,
    constant_value: Array | None = None,
    axes: _Integers | None = None,
    *,
    mode: str,
    value: float = 0,
) -> tuple[Array]:
    chosen = range(data.ndim) if axes is None else axes
    fill = value if constant_value is None else np.ravel(constant_value)[0]
    widths = np.zeros((data.ndim, 2), np.int64)
    for axis, width in zip(chosen, np.reshape(pads, (2, -1)).T, strict=True):
        widths[axis] = width
    # Negative widths cut off.
    cut = [slice(-min(a, 0), n + min(b, 0)) for n, (a, b) in zip(data.shape, widths, strict=True)]
    added = np.maximum(widths, 0)
    if mode == "constant":
        return (np.pad(data[tuple(cut)], added, constant_values=fill).astype(data.dtype),)
    return (np.pad(data[tuple(cut)], added, mode=mode),)  # type: ignore[call-overload]


def _squeeze(_node: OpRun, data: Array, *, axes: Sequence[int] | None) -> tuple[Array]:
    return (np.squeeze(data, tuple(axes) if axes else None),)


def _unsqueeze(_node: OpRun, data: Array, *, axes: Sequence[int]) -> tuple[Array]:
    return (np.expand_dims(data, tuple(axes)),)


def _shape(_node: OpRun, data: Array, *, start: int = 0, end: int | None = None) -> tuple[Array]:
    return (np.array(data.shape[start:end], np.int64),)


def _unique(
    _node: OpRun,
    x: Array,
    *,
    axis: int | None,
    sorted: int,  # noqa: A002  # ONNX's name
) -> tuple[Array, ...]:
    values, first, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first)
        values = np.take(values, order, axis=axis or 0)
        first, counts = first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    return (values, *(array.astype(np.int64) for array in (first, inverse, counts)))


def _mean(_node: OpRun, *inputs: Array) -> tuple[Array]:
    total = sum(widened(array) for array in inputs)
    return (np.asarray(total / len(inputs)).astype(inputs[0].dtype),)


KERNELS = (
    Kernel("GatherElements", _gather_elements),
    Kernel("Scatter", _scatter),
    Kernel("OneHot", _one_hot),
    Kernel("Slice", _slice),
    Kernel("Pad", _pad, since=2),
    Kernel("Squeeze", _squeeze, below=13),
    Kernel("Unsqueeze", _unsqueeze, below=13),
    Kernel("Shape", _shape),
    Kernel("Unique", _unique),
    Kernel("Mean", _mean),
)
