"""What reduced precision makes of the constants of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.nodes import BFLOAT16, FLOAT16
from trt_native.passes.quantize_arrays import read_tensor

__all__ = [
    "LIMITS",
    "ConstantRange",
    "constant_range",
    "is_average",
    "is_finite",
    "is_sum",
    "may_be_shares",
]

LIMITS = {FLOAT16: 65520.0, BFLOAT16: float.fromhex("0x1.ffp127")}
"""Smallest magnitude that a type rounds to infinity."""

_CHUNK = 1 << 22  # elements read at a time, so that weights stay on disk
_SAMPLE = 64  # the first weights: almost always one is negative
_MANY = 256
_FLUSHED = 2.0**-25  # FP16 rounds what is below to zero


@dataclass(frozen=True, slots=True)
class ConstantRange:
    """Magnitudes of a constant, and what a type loses of them.

    Attributes:
        largest: Largest finite magnitude.
        smallest: Smallest magnitude above zero; infinity if there is none.
        beyond: Number of finite elements that the type rounds to infinity.
        lost: Whether FP16 changes the constant as a whole by more than 1 %: it is too small.
    """

    largest: float
    smallest: float
    beyond: int
    lost: bool

    @property
    def flushes(self) -> bool:
        """Whether an element that is not zero becomes zero in FP16."""
        return self.smallest < _FLUSHED


def constant_range(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ConstantRange:
    """Measure what a type makes of a constant, chunk by chunk."""
    limit = LIMITS[dtype]
    largest, smallest, beyond = 0.0, np.inf, 0
    for chunk in _chunks(tensor):
        magnitudes = np.abs(chunk)
        peak = float(magnitudes.max())
        if not np.isfinite(peak):
            magnitudes = magnitudes[np.isfinite(magnitudes)]
            peak = float(magnitudes.max(initial=0.0))
        largest = max(largest, peak)
        if peak >= limit:
            beyond += int(np.count_nonzero(magnitudes >= limit))
        low = float(magnitudes.min(initial=np.inf))
        if low == 0:
            low = float(magnitudes[magnitudes > 0].min(initial=np.inf))
        smallest = min(smallest, low)
    # Rounding changes an element by 2^-25 at most where it is too small for FP16's 11 bits.
    suspect = largest > 0 and tensor.size**0.5 * _FLUSHED > 0.01 * largest
    lost = dtype == FLOAT16 and suspect and _is_lost(tensor)
    return ConstantRange(largest, smallest, beyond, lost)


def is_finite(tensor: ir.TensorProtocol) -> bool:
    """Whether no element of a constant is infinite or NaN."""
    return all(bool(np.isfinite(chunk).all()) for chunk in _chunks(tensor))


def is_average(shares: Array) -> bool:
    """Whether weights take averages: several for each output, and equal or shares of 1.

    Args:
        shares: float[outputs, elements], not negative.
    """
    totals = shares.sum(1)
    several = bool((np.count_nonzero(shares, 1) > 1).all())
    return several and (_is_equal(shares) or bool(np.allclose(totals, 1.0, atol=1e-3)))


def is_sum(shares: Array) -> bool:
    """Whether weights add up so many values that the sum may leave FP16's range.

    Args:
        shares: float[outputs, elements], not negative.
    """
    many = bool((np.count_nonzero(shares, 1) >= _MANY).all())
    return many and _is_equal(shares) and bool((shares.sum(1) > 1.5).any())


def may_be_shares(tensor: ir.TensorProtocol) -> bool:
    """Whether none of the first elements of a constant is negative."""
    sample = next(_chunks(tensor), np.zeros(0, np.float32))[:_SAMPLE]
    return tensor.size > 1 and bool((sample >= 0).all())


def _is_equal(shares: Array) -> bool:
    return bool(np.ptp(shares[shares != 0]) == 0)


def _is_lost(tensor: ir.TensorProtocol) -> bool:
    error = norm = 0.0
    for chunk in _chunks(tensor):
        values = chunk[np.isfinite(chunk)].astype(np.float64)
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16).astype(np.float64)
        error += float(((rounded - values) ** 2).sum())
        norm += float((values**2).sum())
    return bool(error**0.5 > 0.01 * norm**0.5)


def _chunks(tensor: ir.TensorProtocol) -> Iterator[Array]:
    flat = read_tensor(tensor).reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]
