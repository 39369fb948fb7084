"""Weights in INT4, with one scale for each block along the axis that a product sums over.

A block of weights ``w`` is stored as ``q = clip(round(w / s), -8, 7)`` with ``s = max|w| / 7``: the
format of TensorRT and of ONNX's blocked ``DequantizeLinear``. Given rows of what the weights are
multiplied by, :func:`fit_blocks` finds other scales, with which the products are closer to the
originals: it scales input channels with large activations up before rounding, and clips blocks, as
AWQ does (Lin et al. 2024, "Activation-aware Weight Quantization").

A matrix here is float32[K, N], and summed over K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from trt_native.arrays import Array

__all__ = [
    "BlockFit",
    "block_scales",
    "dequantize_blocks",
    "fit_blocks",
    "quantize_blocks",
    "relative_error",
    "whole_block",
]

_LOWEST, _HIGHEST = -8, 7
_EXPONENTS = tuple(i / 10 for i in range(1, 11))
_CLIPS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6)
_SMALLEST_SCALE = 2.0**-126
# Few rows say little: to the means of channels so many rows are added in which all are equal, and
# to the products of a block's channels a share of what independent ones would have.
_EQUAL_ROWS, _INDEPENDENT = 8, 0.25


def whole_block(extent: int, sizes: Sequence[int]) -> int:
    """The largest size of which an extent has two whole blocks or more; 0 without one.

    TensorRT-RTX keeps a weight of one block in 8 bits.
    """
    fitting = [n for n in sizes if extent % n == 0 and extent >= 2 * n]
    return max(fitting, default=0)


def _blocks(matrix: Array, block: int) -> Array:
    """[K/block, block, N]: a view."""
    return matrix.reshape(-1, block, matrix.shape[1])


def block_scales(matrix: Array, block: int) -> Array:
    """float32[K/block, N]: a seventh of the largest magnitude of each block; 1 for zeros."""
    blocks = _blocks(matrix, block)
    amax = np.maximum(blocks.max(1), -blocks.min(1)).astype(np.float32)
    return np.where(amax > 0, np.maximum(amax / np.float32(7), _SMALLEST_SCALE), 1).astype(
        np.float32
    )


def quantize_blocks(matrix: Array, scales: Array, block: int) -> Array:
    """int4[K, N]: rounded to nearest even and saturated."""
    steps = np.rint(_blocks(matrix, block) / scales[:, None])
    np.clip(steps, _LOWEST, _HIGHEST, out=steps)
    return np.asarray(steps.reshape(matrix.shape).astype(ml_dtypes.int4))


def dequantize_blocks(numbers: Array, scales: Array, block: int) -> Array:
    """float32[K, N]: the numbers times their scales."""
    real = _blocks(numbers.astype(np.float32), block) * scales[:, None]
    return np.asarray(real.reshape(numbers.shape))


def relative_error(found: Array, expected: Array) -> float:
    """L2 norm of the difference, by that of what is expected; 0 where both are."""
    difference, size = float(np.linalg.norm(found - expected)), float(np.linalg.norm(expected))
    return difference / size if size else difference


@dataclass(frozen=True, slots=True)
class BlockFit:
    """Scales for matrices that are multiplied by the same rows.

    Attributes:
        channels: float32[K], by which the matrices are multiplied before they are quantized, and
            the rows divided; None for ones.
        scales: Of each matrix, float32[K/block, N].
        error: Relative L2 error of all products of the rows.
        nearest: The same with the scales of :func:`block_scales`.
    """

    channels: Array | None
    scales: tuple[Array, ...]
    error: float
    nearest: float


def fit_blocks(
    matrices: Sequence[Array], rows: Array, block: Sequence[int], repeat: int = 1
) -> BlockFit:
    """Find scales with which products of rows and quantized matrices are close to the originals.

    Args:
        matrices: The matrices, float32[K, N].
        rows: float32[rows, K]: samples of what is multiplied by them.
        block: Weights with one scale, of each matrix.
        repeat: Neighbours along K that belong to one input channel, as a kernel's elements do; they
            have one factor.

    Returns:
        The scales with the least error that was found, at most that of rounding to nearest.
    """
    expected = [rows @ matrix for matrix in matrices]
    size = sum(float(np.square(product).sum()) for product in expected)

    def error_of(channels: Array | None, scales: Sequence[Array]) -> float:
        found = 0.0
        for matrix, scale, n, product in zip(matrices, scales, block, expected, strict=True):
            real = _rounded(_scaled(matrix, channels), scale, n)
            real = real if channels is None else real / channels[:, None]
            found += float(np.square(rows @ real - product).sum())
        return math.sqrt(found / size if size else found)

    plain = [block_scales(matrix, n) for matrix, n in zip(matrices, block, strict=True)]
    nearest = error_of(None, plain)
    best = BlockFit(None, tuple(plain), nearest, nearest)
    for channels in _channel_factors(rows, repeat):
        pairs = zip(matrices, block, strict=True)
        scales = [block_scales(_scaled(matrix, channels), n) for matrix, n in pairs]
        error = error_of(channels, scales)
        if error < best.error:
            best = BlockFit(channels, tuple(scales), error, nearest)
    divided = rows if best.channels is None else rows / best.channels
    clipped = tuple(
        _clipped(_scaled(matrix, best.channels), scale, divided, n)
        for matrix, scale, n in zip(matrices, best.scales, block, strict=True)
    )
    error = error_of(best.channels, clipped)
    return BlockFit(best.channels, clipped, error, nearest) if error < best.error else best


def _scaled(matrix: Array, channels: Array | None) -> Array:
    return matrix if channels is None else matrix * channels[:, None]


def _rounded(matrix: Array, scales: Array, block: int) -> Array:
    return dequantize_blocks(quantize_blocks(matrix, scales, block), scales, block)


def _channel_factors(rows: Array, repeat: int) -> list[Array]:
    """Powers of the channels' mean magnitudes, with a geometric mean of extremes of 1."""
    mean = np.abs(rows).mean(0).reshape(-1, repeat).mean(1)
    if not mean.any():
        return []
    mean = (len(rows) * mean + _EQUAL_ROWS * mean.mean()) / (len(rows) + _EQUAL_ROWS)
    mean = np.maximum(mean, mean.max() * 1e-4)
    found = []
    for exponent in _EXPONENTS:
        factors = mean**exponent
        factors /= np.sqrt(factors.max() * factors.min())
        found.append(np.repeat(factors, repeat).astype(np.float32))
    return found


def _clipped(matrix: Array, scales: Array, rows: Array, block: int) -> Array:
    """For each block the scale, of a few smaller ones, that its own products are closest with."""
    parts = rows.reshape(len(rows), -1, block).transpose(1, 2, 0)
    gram = parts @ parts.transpose(0, 2, 1)
    squares = np.trace(gram, axis1=1, axis2=2)[:, None, None] / len(rows)
    gram += np.float32(_INDEPENDENT) * squares * np.eye(block, dtype=np.float32)
    blocks = _blocks(matrix, block)

    def errors(candidate: Array) -> Array:
        off = _blocks(_rounded(matrix, candidate, block), block) - blocks
        return np.asarray((off * (gram @ off)).sum(1))

    best, least = scales, errors(scales)
    for clip in _CLIPS:
        candidate = scales * np.float32(clip)
        found = errors(candidate)
        better = found < least
        best, least = np.where(better, candidate, best), np.where(better, found, least)
    return np.asarray(best)
