"""From a tensor's values to the range that INT8 or FP8 covers.

Every range is symmetric: from minus the threshold to the threshold. Values come as a histogram of
their magnitudes; what is computed from it is exact integer arithmetic as far as that goes, so that
results do not depend on the order of batches.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_native.arrays import Array
from trt_native.calibration.caches import LEVELS
from trt_native.config import CalibrationMethod
from trt_native.errors import SpecError

__all__ = [
    "BINS",
    "DEFAULT_PERCENTILE",
    "Histogram",
    "entropy_threshold",
    "mse_threshold",
    "percentile_threshold",
    "threshold",
]

BINS = 2048
"""Number of bins of a histogram."""

DEFAULT_PERCENTILE = 99.99
"""Percentage of the magnitudes that the percentile method covers by default."""

_GROUPS = LEVELS + 1  # magnitudes that INT8 distinguishes, zero among them
_TIE = 1e-12  # divergences as close as this are rounding
_CHUNK = 1 << 16  # elements converted at a time, so few that they stay in a processor's cache

Counts = npt.NDArray[np.int64]


class Histogram:
    """Counts of magnitudes in equal bins from 0 upwards, filled array by array.

    With a limit the bins divide [0, limit]. Without one, for data that can be seen only once, the
    bins divide [0, the power of two above the largest magnitude so far]: when a larger one comes,
    the range doubles and pairs of bins merge, so that the outcome is the same in any order.

    Args:
        limit: The largest magnitude that will come, above 0; None if that is not known.

    Attributes:
        counts: ``int64[2048]``: number of magnitudes in each bin. Bin ``k`` holds those from
            ``k * bin_width`` on and below the next bin; the last one holds the limit too.
        limit: Upper end of the last bin; 0 while all magnitudes were 0.
        amax: The largest magnitude so far; 0 if there was none.
        elements: Number of magnitudes so far.
    """

    def __init__(self, limit: float | None = None) -> None:
        if limit is not None and not 0 < limit < np.inf:
            raise SpecError(f"a histogram's limit must be finite and above 0, found {limit}")
        self.counts: Counts = np.zeros(BINS, np.int64)
        self.limit = limit or 0.0
        self.amax = 0.0
        self.elements = 0

    @classmethod
    def of(cls, counts: Counts, limit: float) -> Histogram:
        """The histogram of values that were counted elsewhere, the largest of them ``limit``.

        Args:
            counts: ``int64[2048]``, as :attr:`counts`; the histogram owns it from here on.
            limit: The largest magnitude, above 0.
        """
        histogram = cls(limit)
        histogram.counts = counts
        histogram.amax = limit
        histogram.elements = int(counts.sum())
        return histogram

    @property
    def bin_width(self) -> float:
        """Width of each bin."""
        return self.limit / BINS

    def add(self, values: Array) -> None:
        """Count the magnitudes of an array of numbers of any type and shape.

        Raises:
            ValueError: a value is NaN or infinite; nothing of the array has been counted.
        """
        peak = magnitude(values)
        if not np.isfinite(peak):
            raise ValueError("NaN or infinite values")
        self.amax = max(self.amax, peak)
        if peak > self.limit:
            self._grow(peak)
        self.elements += values.size
        if self.limit == 0:
            self.counts[0] += values.size
            return
        for chunk in _chunks(values):
            places = np.abs(chunk, dtype=np.float64)
            # Halving first keeps the smallest limits from having an infinite reciprocal.
            places /= self.limit
            places *= BINS
            counts = np.bincount(places.astype(np.intp), minlength=BINS + 1)
            self.counts += counts[:BINS]
            self.counts[-1] += counts[BINS]

    def _grow(self, peak: float) -> None:
        if self.limit == 0:
            self.limit = float(np.ldexp(1.0, int(np.frexp(peak)[1])))
        while self.limit <= peak:
            self.limit *= 2
            self.counts = np.append(
                self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)
            )


def magnitude(values: Array) -> float:
    """The largest absolute value of an array; 0 if it is empty, NaN if it holds a NaN."""
    peak = 0.0
    for chunk in _chunks(values):
        peak = float(np.maximum(peak, np.maximum(np.max(chunk), -np.min(chunk))))
    return peak


def _chunks(values: Array) -> Any:
    """The elements piece by piece, in a type that holds their negatives and is not slow."""
    flat = np.asarray(values).reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        if chunk.dtype not in (np.float32, np.float64):
            # FP16 and the types of ml_dtypes are exact in FP32; integers need more.
            wide = np.float64 if chunk.dtype.kind in "iu" else np.float32
            chunk = chunk.astype(wide)
        yield chunk


def threshold(
    histogram: Histogram, method: CalibrationMethod, percentile: float = DEFAULT_PERCENTILE
) -> float:
    """The magnitude that becomes the largest quantized value.

    Returns:
        The threshold in the units of the values; 0 where all of them were 0.

    Raises:
        SpecError: the percentile is not above 0 and at most 100.
    """
    check_percentile(percentile)
    if method is CalibrationMethod.MINMAX:
        return histogram.amax
    counts, bin_width, amax = histogram.counts, histogram.bin_width, histogram.amax
    if method is CalibrationMethod.PERCENTILE:
        return percentile_threshold(counts, bin_width, amax, percentile)
    find = entropy_threshold if method is CalibrationMethod.ENTROPY else mse_threshold
    return find(counts, bin_width, amax)


def check_percentile(percentile: float) -> None:
    """Refuse a number that is not a percentage of values to cover.

    Raises:
        SpecError: the percentile is not above 0 and at most 100.
    """
    if not 0 < percentile <= 100:
        raise SpecError(f"a percentile is above 0 and at most 100, found {percentile}")


def entropy_threshold(counts: Counts, bin_width: float, amax: float) -> float:
    """The threshold that loses the least information, as TensorRT's entropy calibration finds it.

    Each candidate keeps the first ``i`` of the bins, ``i`` from 128 up. P is these bins with
    everything above added to the last of them. Q is these bins without that, in 128 groups as equal
    as whole bins allow, each bin that is not empty holding its group's mean over such bins. The
    candidate with the least Kullback-Leibler divergence of Q from P wins; among equals the largest.
    Bin 0 counts as much as bin 1, lest the zeros of a sparse tensor decide (S. Migacz, "8-bit
    Inference with TensorRT", GTC 2017).

    All candidates are evaluated at once, from running sums over the histogram.

    Args:
        counts: ``int64[2048]``, as in :class:`Histogram`.
        bin_width: Width of each bin.
        amax: The largest magnitude.

    Returns:
        The threshold; ``amax`` where the histogram has no shape to keep.
    """
    fixed = counts.copy()
    fixed[0] = fixed[1]
    if min(np.count_nonzero(counts), np.count_nonzero(fixed)) <= 1:
        return amax
    total = int(fixed.sum())
    kept = np.arange(_GROUPS, BINS + 1)
    mass = _running_sum(fixed)
    entropy = _running_sum(_x_log_x(fixed / total))
    outliers = total - mass[kept]
    last = fixed[kept - 1]

    edges = _group_edges()
    group_mass = np.diff(mass[edges]) / total
    group_bins = np.diff(_running_sum(fixed > 0)[edges])
    mean = np.divide(group_mass, group_bins, where=group_bins > 0, out=np.ones_like(group_mass))
    log_q = np.log(mean)
    cross = (group_mass * log_q).sum(1) + outliers / total * log_q[:, -1]
    own = entropy[kept - 1] + _x_log_x((last + outliers) / total)
    # Without a mean for what was added to an empty last bin, the divergence is infinite. The last
    # candidate adds nothing, so there always is a finite one.
    possible = (last > 0) | (outliers == 0)
    divergence = np.full(len(kept), np.inf)
    shrunk = np.log(mass[kept][possible] / total)
    divergence[possible] = own[possible] - cross[possible] + shrunk
    winner = kept[divergence <= divergence.min() + _TIE][-1]
    return _threshold_of(int(winner), bin_width, amax)


def mse_threshold(counts: Counts, bin_width: float, amax: float) -> float:
    """The threshold with the least mean squared error of INT8 rounding and saturation.

    Values count as the centres of their bins; candidates are those of :func:`entropy_threshold`.

    Args:
        counts: ``int64[2048]``, as in :class:`Histogram`.
        bin_width: Width of each bin.
        amax: The largest magnitude.

    Returns:
        The threshold; ``amax`` where all values are in one bin.
    """
    if np.count_nonzero(counts) <= 1:
        return amax
    share = counts / counts.sum()
    centres = np.arange(BINS) + 0.5
    edges = _rounding_edges()
    values = _rounded_values()
    zeroth, first = (np.diff(_running_sum(share * centres**power)[edges]) for power in range(2))
    # But for the mean square of the values, which all candidates have.
    error = np.einsum("ij,ij->i", values, values * zeroth - 2 * first)
    return _threshold_of(_GROUPS + int(np.argmin(error)), bin_width, amax)


def percentile_threshold(
    counts: Counts, bin_width: float, amax: float, percentile: float = DEFAULT_PERCENTILE
) -> float:
    """The upper edge of the bin that completes a percentage of all magnitudes, zeros included.

    Args:
        counts: ``int64[2048]``, as in :class:`Histogram`.
        bin_width: Width of each bin.
        amax: The largest magnitude; no threshold lies above it.
        percentile: Percentage to cover, above 0 and at most 100.
    """
    running = np.cumsum(counts)
    needed = percentile / 100 * int(running[-1])
    return min((int(np.searchsorted(running, needed)) + 1) * bin_width, amax)


def _threshold_of(bins: int, bin_width: float, amax: float) -> float:
    return min((bins + 0.5) * bin_width, amax + 0.5 * bin_width)


def _running_sum(values: Array) -> Array:
    """Sums of the first 0, 1, ... all values; integers stay exact."""
    return np.concatenate([[0], np.cumsum(values)])


def _x_log_x(values: Array) -> Array:
    return values * np.log(values, where=values > 0, out=np.zeros_like(values))


@functools.cache
def _group_edges() -> npt.NDArray[np.int64]:
    """For each number of kept bins, the bins at which its 128 groups begin, and its end."""
    kept = np.arange(_GROUPS, BINS + 1)[:, None]
    return -(-np.arange(_GROUPS + 1) * kept // _GROUPS)


@functools.cache
def _rounded_values() -> npt.NDArray[np.float64]:
    """For each number of kept bins, the places that its 128 quantized values stand for."""
    kept = np.arange(_GROUPS, BINS + 1)[:, None]
    return np.asarray(np.arange(_GROUPS) * (kept + 0.5) / LEVELS)


@functools.cache
def _rounding_edges() -> npt.NDArray[np.int64]:
    """For each number of kept bins, the first bin whose centre rounds to each INT8 value, and 2048.

    Centre ``j + 1/2`` rounds to ``k`` or more where it exceeds ``(k - 1/2) (kept + 1/2) / 127``;
    in whole numbers, because no centre lies just there.
    """
    kept = np.arange(_GROUPS, BINS + 1)[:, None]
    level = np.arange(1, _GROUPS)
    bound = (2 * level - 1) * (2 * kept + 1) - 2 * LEVELS
    first = np.clip(-(-bound // (4 * LEVELS)), 0, BINS)
    ends = np.ones_like(kept) * [0, BINS]
    return np.concatenate([ends[:, :1], first, ends[:, 1:]], axis=1)
