"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from trt_native.arrays import Array
from trt_native.reference.kernels import Kernel, widened

__all__ = ["KERNELS"]


@dataclass(frozen=True, slots=True)
class _Windows:
    """Positions of the windows along the spatial axes, one number an axis."""

    extents: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(
        cls,
        extents: Sequence[int],
        *,
        kernel_shape: Sequence[int],
        strides: Sequence[int] | None,
        pads: Sequence[int] | None,
        dilations: Sequence[int] | None = None,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
    ) -> _Windows:
        rank = len(extents)
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        pads = (pads if auto_pad == "NOTSET" else None) or [0] * 2 * rank
        axes = []
        for axis, extent in enumerate(extents):
            stride, before, after = strides[axis], pads[axis], pads[axis + rank]
            reach = (kernel_shape[axis] - 1) * dilations[axis] + 1
            if auto_pad.startswith("SAME"):
                count = -(-extent // stride)
                total = max((count - 1) * stride + reach - extent, 0)
                before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
                after = total - before
            else:
                room = extent + before + after - reach
                count = (-(-room // stride) if ceil_mode else room // stride) + 1
                # A last window must start inside the data or the padding before it.
                count -= bool(ceil_mode) and (count - 1) * stride >= extent + before
            axes.append((before, after, count))
        befores, afters, counts = zip(*axes, strict=True)
        return cls(
            tuple(extents),
            tuple(kernel_shape),
            tuple(strides),
            tuple(dilations),
            befores,
            afters,
            counts,
        )

    def over(self, x: Array, fill: Any) -> Array:
        """A view of the padded data, with the axes of the windows behind those of their counts."""
        rank = len(self.extents)
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        ends = [
            (count - 1) * stride + length
            for count, stride, length in zip(self.counts, self.strides, reach, strict=True)
        ]
        padding = [
            (before, max(end - before - extent, 0))
            for before, end, extent in zip(self.before, ends, self.extents, strict=True)
        ]
        padded = np.pad(x, [(0, 0), (0, 0), *padding], constant_values=fill)
        axes = tuple(range(2, 2 + rank))
        view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
        starts = (
            slice(0, (count - 1) * stride + 1, stride)
            for count, stride in zip(self.counts, self.strides, strict=True)
        )
        inside = (slice(None, None, dilation) for dilation in self.dilations)
        where = (slice(None), slice(None), *starts, *inside)
        found: Array = view[where]
        return found

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the windows in what :meth:`over` returns."""
        return tuple(range(-len(self.extents), 0))


def _max_pool(
    node: OpRun, x: Array, *, storage_order: int = 0, **geometry: Any
) -> tuple[Array, ...]:
    windows = _Windows.of(x.shape[2:], **geometry)
    integer = x.dtype.kind in "iu"
    values = windows.over(x, np.iinfo(x.dtype).min if integer else -np.inf)
    found = values.max(axis=windows.axes)
    if len(node.output) < 2:
        return (found,)
    extents = x.shape[2:]
    numbers = np.arange(math.prod(extents), dtype=np.int64)
    numbers = numbers.reshape(extents, order="F" if storage_order else "C")
    planes = np.arange(x.shape[0] * x.shape[1], dtype=np.int64).reshape(*x.shape[:2], 1)
    indices = numbers + planes.reshape(*x.shape[:2], *[1] * len(extents)) * numbers.size
    places = windows.over(indices, -1)
    shape = (*found.shape, -1)
    places, values = places.reshape(shape), values.reshape(shape)
    largest = (places >= 0) & (values == found[..., np.newaxis])
    first = largest.argmax(axis=-1, keepdims=True)
    return found, np.take_along_axis(places, first, axis=-1)[..., 0]


def _average_pool(
    _node: OpRun, x: Array, *, count_include_pad: int = 0, **geometry: Any
) -> tuple[Array]:
    windows = _Windows.of(x.shape[2:], **geometry)
    counted = np.ones((1, 1, *x.shape[2:]), np.float32)
    if count_include_pad:
        pads = list(zip(windows.before, windows.after, strict=True))
        counted = np.pad(counted, [(0, 0), (0, 0), *pads], constant_values=1)
        windows_of_counted = _Windows(
            counted.shape[2:],
            windows.kernel,
            windows.strides,
            windows.dilations,
            tuple(0 for _ in pads),
            tuple(0 for _ in pads),
            windows.counts,
        )
    else:
        windows_of_counted = windows
    counts = windows_of_counted.over(counted, 0).sum(axis=windows.axes)
    sums = windows.over(widened(x), 0).sum(axis=windows.axes)
    return ((sums / counts).astype(x.dtype),)


def _lp_pool(_node: OpRun, x: Array, *, p: int = 2, **geometry: Any) -> tuple[Array]:
    windows = _Windows.of(x.shape[2:], **geometry)
    powers = windows.over(np.abs(widened(x)) ** p, 0).sum(axis=windows.axes)
    return ((powers ** (1 / p)).astype(x.dtype),)


def _global_pool(node: OpRun, x: Array, *, p: int = 2) -> tuple[Array]:
    values, axes = widened(x), tuple(range(2, x.ndim))
    if node.op_type == "GlobalMaxPool":
        found = values.max(axis=axes, keepdims=True)
    elif node.op_type == "GlobalAveragePool":
        found = values.mean(axis=axes, keepdims=True)
    else:
        found = (np.abs(values) ** p).sum(axis=axes, keepdims=True) ** (1 / p)
    return (found.astype(x.dtype),)


KERNELS = (
    Kernel("MaxPool", _max_pool),
    Kernel("AveragePool", _average_pool),
    Kernel("LpPool", _lp_pool),
    Kernel("GlobalMaxPool", _global_pool),
    Kernel("GlobalAveragePool", _global_pool),
    Kernel("GlobalLpPool", _global_pool),
)
