"""ConvTranspose."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from trt_native.arrays import Array
from trt_native.reference.kernels import Kernel, widened

__all__ = ["KERNELS"]


def _conv_transpose(
    _node: OpRun,
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    group: int,
    auto_pad: str,
    kernel_shape: Sequence[int] | None,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    output_padding: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> tuple[Array]:
    del kernel_shape  # the weight's own
    extents, kernel = x.shape[2:], w.shape[2:]
    rank = len(extents)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    extra = output_padding or [0] * rank
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(extents, strides, kernel, dilations, extra, strict=True)
    ]
    begins, sizes = _crop(full, extents, strides, auto_pad, pads, output_shape)
    values, weights = widened(x), widened(w)
    by_group = values.reshape(x.shape[0], group, x.shape[1] // group, *extents)
    weights = weights.reshape(group, x.shape[1] // group, w.shape[1], *kernel)
    room = [max(f, begin + size) for f, begin, size in zip(full, begins, sizes, strict=True)]
    found = np.zeros((x.shape[0], group, w.shape[1], *room), values.dtype)
    for place in itertools.product(*map(range, kernel)):
        at: Any = (..., *place)
        part = np.einsum("ngc...,gcm->ngm...", by_group, weights[at], optimize=True)
        spread = (
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, d, n, s in zip(place, dilations, extents, strides, strict=True)
        )
        where: Any = (..., *spread)
        found[where] += part
    kept: Any = (..., *(slice(first, first + n) for first, n in zip(begins, sizes, strict=True)))
    result = found[kept].reshape(x.shape[0], group * w.shape[1], *sizes)
    if b is not None:
        result = result + widened(b).reshape(-1, *[1] * rank)
    return (result.astype(x.dtype),)


def _crop(
    full: Sequence[int],
    extents: Sequence[int],
    strides: Sequence[int],
    auto_pad: str,
    pads: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> tuple[list[int], list[int]]:
    """What is kept of the full result along each axis: the first element, and how many."""
    rank = len(full)
    if output_shape is None and auto_pad.startswith("SAME"):
        output_shape = [n * s for n, s in zip(extents, strides, strict=True)]
    if output_shape is None:
        pads = (pads if auto_pad == "NOTSET" else None) or [0] * 2 * rank
        sizes = [full[i] - pads[i] - pads[i + rank] for i in range(rank)]
        return list(pads[:rank]), sizes
    sizes = list(output_shape)[-rank:]
    totals = [max(f - size, 0) for f, size in zip(full, sizes, strict=True)]
    upper = auto_pad == "SAME_UPPER"
    return [total // 2 if upper else total - total // 2 for total in totals], sizes


KERNELS = (Kernel("ConvTranspose", _conv_transpose),)
