"""Softmax and its kin, and norms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx.reference.op_run import OpRun

from trt_native.arrays import Array
from trt_native.reference.kernels import Kernel, opset_of_node, widened

__all__ = ["KERNELS"]

_ALONG_ONE_AXIS = 13  # the version of Softmax that no longer flattens
_SCALES_BY_CHANNEL = 21  # the version of GroupNormalization with them


def _softmax(node: OpRun, x: Array, *, axis: int) -> tuple[Array]:
    if x.size == 0:
        return (x,)
    values = widened(x)
    if opset_of_node(node) < _ALONG_ONE_AXIS:
        values = values.reshape(math.prod(x.shape[:axis]), -1)
        axis = -1
    if node.op_type == "Hardmax":
        first = values.argmax(axis=axis, keepdims=True)
        found = np.zeros_like(values)
        np.put_along_axis(found, first, 1, axis=axis)
    else:
        shifted = values - values.max(axis=axis, keepdims=True)
        total = np.exp(shifted).sum(axis=axis, keepdims=True)
        log = node.op_type == "LogSoftmax"
        found = shifted - np.log(total) if log else np.exp(shifted) / total
    return (found.reshape(x.shape).astype(x.dtype),)


def _batch_normalization(
    node: OpRun,
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    *,
    epsilon: float,
    spatial: int = 1,
    is_test: int = 1,
    **_momentum: float,
) -> tuple[Array]:
    if len(node.output) > 1 or not is_test:
        raise NotImplementedError("training mode")
    shape = (-1, *[1] * (x.ndim - 2)) if spatial else x.shape[1:]
    scale, bias, mean, variance = (
        widened(array).reshape(shape) for array in (scale, bias, mean, variance)
    )
    found = (widened(x) - mean) / np.sqrt(variance + epsilon) * scale + bias
    return (found.astype(x.dtype),)


def _group_normalization(
    node: OpRun,
    x: Array,
    scale: Array,
    bias: Array,
    *,
    epsilon: float,
    num_groups: int,
    **_stash_type: int,
) -> tuple[Array]:
    groups = widened(x).reshape(x.shape[0], num_groups, -1)
    centered = groups - groups.mean(axis=-1, keepdims=True)
    found = centered / np.sqrt(np.square(centered).mean(axis=-1, keepdims=True) + epsilon)
    factors = [widened(scale), widened(bias)]
    if opset_of_node(node) < _SCALES_BY_CHANNEL:
        factors = [array.repeat(x.shape[1] // num_groups) for array in factors]
    scale, bias = (array.reshape(-1, *[1] * (x.ndim - 2)) for array in factors)
    return ((found.reshape(x.shape) * scale + bias).astype(x.dtype),)


def _mean_variance_normalization(_node: OpRun, x: Array, *, axes: Sequence[int]) -> tuple[Array]:
    values = widened(x)
    over = tuple(axes)
    spread = values.std(axis=over, keepdims=True) + 1e-9
    return (((values - values.mean(axis=over, keepdims=True)) / spread).astype(x.dtype),)


def _local_response_normalization(
    _node: OpRun, x: Array, *, size: int, alpha: float, beta: float, bias: float
) -> tuple[Array]:
    squares = np.square(widened(x))
    channels = x.shape[1]
    before, after = (size - 1) // 2, size // 2
    sums = np.stack(
        [squares[:, max(0, c - before) : c + after + 1].sum(axis=1) for c in range(channels)],
        axis=1,
    )
    return ((widened(x) / (bias + alpha / size * sums) ** beta).astype(x.dtype),)


def _lp_normalization(_node: OpRun, x: Array, *, axis: int, p: int) -> tuple[Array]:
    values = widened(x)
    norm = (np.abs(values) ** p).sum(axis=axis, keepdims=True) ** (1 / p)
    return (np.where(norm == 0, 0, values / norm).astype(x.dtype),)


KERNELS = (
    Kernel("Softmax", _softmax),
    Kernel("LogSoftmax", _softmax),
    Kernel("Hardmax", _softmax),
    Kernel("BatchNormalization", _batch_normalization, since=6, below=14),
    Kernel("GroupNormalization", _group_normalization),
    Kernel("MeanVarianceNormalization", _mean_variance_normalization),
    Kernel("LRN", _local_response_normalization),
    Kernel("LpNormalization", _lp_normalization),
)
