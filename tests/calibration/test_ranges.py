"""Ranges against plain loops that follow the definitions word for word."""

from __future__ import annotations

import math
import struct

import ml_dtypes
import numpy as np
import pytest

from trt_native.calibration.ranges import (
    BINS,
    Histogram,
    entropy_threshold,
    mse_threshold,
    percentile_threshold,
    threshold,
)
from trt_native.config import CalibrationMethod
from trt_native.errors import SpecError

LEVELS = 128


def loop_entropy(histogram, width, amax):
    """The candidates one by one, each P and Q written out."""
    fixed = histogram.astype(np.float64)
    fixed[0] = fixed[1]
    if min(np.count_nonzero(histogram), np.count_nonzero(fixed)) <= 1:
        return amax
    divergences = {}
    for i in range(LEVELS, BINS + 1):
        p = fixed[:i].copy()
        p[i - 1] += fixed[i:].sum()
        q = fixed[:i].copy()
        group = np.arange(i) * LEVELS // i
        filled = np.bincount(group[q > 0], minlength=LEVELS)
        mean = np.bincount(group, q, LEVELS) / np.maximum(filled, 1)
        q = np.where(q > 0, mean[group], 0)
        if ((p > 0) & (q == 0)).any():
            continue
        p, q = p[p > 0] / p.sum(), q[p > 0] / q.sum()
        divergences[i] = float((p * np.log(p / q)).sum())
    if not divergences:
        return amax
    best = min(divergences.values())
    i = max(i for i, divergence in divergences.items() if divergence <= best + 1e-12)
    return min((i + 0.5) * width, (BINS + 0.5) * width)


def loop_mse(histogram, width, bound):
    """Mean squared error of rounding bin centres to INT8 with this threshold."""
    centres = (np.arange(BINS) + 0.5) * width
    scale = bound / 127
    error = np.clip(np.rint(centres / scale), -127, 127) * scale - centres
    return float((histogram * error**2).sum() / histogram.sum())


def random_histogram(seed):
    """Histograms of many shapes, as real ones are: smooth, sparse, spiked, cut, discrete."""
    random = np.random.default_rng(seed)
    size = int(random.choice([100, 5000, 200_000]))
    values = [
        lambda: random.standard_normal(size),
        lambda: random.laplace(size=size),
        lambda: random.standard_t(2, size),
        lambda: np.maximum(random.standard_normal(size), 0),
        lambda: random.random(size),
        lambda: random.lognormal(0, 2, size),
        lambda: random.integers(-20, 20, size),
        lambda: np.clip(random.standard_normal(size), -1, 1),
        lambda: np.concatenate([random.standard_normal(size), [50.0]]),
        lambda: random.exponential(size=size) * (random.random(size) < 0.05),
    ][seed % 10]()
    amax = float(np.abs(values).max())
    return np.histogram(np.abs(values), BINS, (0, amax))[0], amax


@pytest.mark.parametrize("seed", range(50))
def test_entropy_equals_the_plain_loop(seed):
    counts, amax = random_histogram(seed)
    assert entropy_threshold(counts, amax / BINS, amax) == loop_entropy(counts, amax / BINS, amax)


def of(**bins):
    counts = np.zeros(BINS, np.int64)
    for bin_, count in bins.items():
        counts[int(bin_[1:])] = count
    return counts


DEGENERATE = {
    "first bin": of(b0=9),
    "second bin": of(b1=9),
    "middle bin": of(b700=9),
    "last bin": of(b2047=9),
    "first and last": of(b0=1000, b2047=1),
    "first and second": of(b0=5, b1=5),
    "second and last": of(b1=5, b2047=5),
    "two in one group": of(b700=5, b701=1),
    "below the first candidate": np.where(np.arange(BINS) < 50, 3, 0),
    "every candidate but the last infinite": of(b5=1, b9=2, b2047=1),
    "an outlier": np.where(np.arange(BINS) < 300, 100, 0) + of(b2047=1),
    "flat": np.ones(BINS, np.int64),
    "flat but for zeros": np.ones(BINS, np.int64) + of(b0=10**6),
    "every other bin": np.arange(BINS) % 2,
    "one in 128": (np.arange(BINS) % 128 == 127).astype(np.int64),
    "beyond 32 bits": np.full(BINS, 2**48) + of(b3=2**50),
    "empty middle": np.where((np.arange(BINS) < 130) | (np.arange(BINS) > 2000), 7, 0),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_entropy_of_degenerate_histograms(name):
    counts = DEGENERATE[name].astype(np.int64)
    before = counts.copy()
    assert entropy_threshold(counts, 0.5, 1024.0) == loop_entropy(counts, 0.5, 1024.0)
    np.testing.assert_array_equal(counts, before)


@pytest.mark.parametrize(("high", "expected"), [(1.0, "3c010a14"), (255.0, "4000890a")])
def test_the_scales_that_tensorrt_writes_for_uniform_data(high, expected):
    values = np.linspace(0, high, BINS * 1000, dtype=np.float32)
    histogram = Histogram(high)
    histogram.add(values)
    found = threshold(histogram, CalibrationMethod.ENTROPY)
    assert struct.pack(">f", found / 127).hex() == expected


@pytest.mark.parametrize("seed", range(20))
def test_mse_is_the_least_of_all_candidates(seed):
    counts, amax = random_histogram(seed)
    width = amax / BINS
    found = mse_threshold(counts, width, amax)
    least = min(loop_mse(counts, width, (i + 0.5) * width) for i in range(128, BINS + 1))
    assert loop_mse(counts, width, found) <= least * (1 + 1e-6)


def test_mse_clips_a_lone_outlier_and_keeps_a_uniform_range():
    flat = np.full(BINS, 100, np.int64)
    assert mse_threshold(flat, 1.0, 2048.0) > 2030
    spiked = np.where(np.arange(BINS) < 300, 10**6, 0) + of(b2047=1)
    assert mse_threshold(spiked, 1.0, 2048.0) < 320
    assert mse_threshold(of(b2047=9), 1.0, 2048.0) == 2048.0


@pytest.mark.parametrize("percentile", [1e-9, 1.0, 50.0, 99.0, 99.99, 100.0])
def test_percentile_equals_sorting(percentile, rng):
    values = np.abs(rng.standard_normal(10_001)).astype(np.float32)
    histogram = Histogram(float(values.max()))
    histogram.add(values)
    needed = max(math.ceil(percentile / 100 * values.size), 1)
    exact = float(np.sort(values)[needed - 1])
    found = threshold(histogram, CalibrationMethod.PERCENTILE, percentile)
    assert exact <= found <= exact + histogram.bin_width


def test_percentile_100_is_the_largest_magnitude():
    counts = of(b0=10, b900=1)
    assert percentile_threshold(counts, 1.0, 900.5, 100.0) == 900.5
    assert percentile_threshold(counts, 1.0, 900.5, 90.0) == 1.0


@pytest.mark.parametrize("percentile", [0, -1, 100.1, math.nan])
def test_no_percentile(percentile):
    with pytest.raises(SpecError, match="above 0 and at most 100"):
        threshold(Histogram(1.0), CalibrationMethod.PERCENTILE, percentile)


def test_minmax_is_the_largest_magnitude():
    histogram = Histogram()
    histogram.add(np.array([1.0, -3.0, 2.0]))
    assert threshold(histogram, CalibrationMethod.MINMAX) == 3.0


@pytest.mark.parametrize("method", CalibrationMethod)
def test_zeros_have_no_range(method):
    histogram = Histogram()
    assert threshold(histogram, method) == 0
    histogram.add(np.zeros(5, np.float32))
    assert threshold(histogram, method) == 0
    assert histogram.elements == histogram.counts[0] == 5


def test_a_histogram_equals_numpys(rng):
    values = rng.standard_normal((3, 1_000_003)).astype(np.float32)
    limit = float(np.abs(values).max())
    histogram = Histogram(limit)
    for row in values:
        histogram.add(row)
    np.testing.assert_array_equal(
        histogram.counts, np.histogram(np.abs(values.astype(np.float64)), BINS, (0, limit))[0]
    )
    assert histogram.counts.dtype == np.int64
    assert (histogram.amax, histogram.elements) == (limit, values.size)


def test_a_growing_histogram_is_the_same_in_any_order(rng):
    arrays = [
        np.zeros(7),
        *(rng.standard_normal(1000) * scale for scale in (1e-3, 1, 900, 40)),
        np.array([1024.0, 0.25, 512.0]),
    ]
    everything = np.abs(np.concatenate(arrays))
    expected = np.histogram(everything, BINS, (0, 4096))[0]
    for order in (arrays, arrays[::-1]):
        histogram = Histogram()
        for array in order:
            histogram.add(array)
        assert histogram.limit == 4096.0
        assert histogram.amax == everything.max()
        np.testing.assert_array_equal(histogram.counts, expected)


def test_a_limit_that_is_exceeded_doubles():
    histogram = Histogram(1.0)
    histogram.add(np.array([0.25, 1.0]))
    histogram.add(np.array([3.0]))
    assert histogram.limit == 4.0
    assert {int(k): int(histogram.counts[k]) for k in np.flatnonzero(histogram.counts)} == {
        128: 1,
        511: 1,
        1536: 1,
    }


@pytest.mark.parametrize(
    ("values", "amax"),
    [
        (np.array([-128, 127], np.int8), 128.0),
        (np.array([-(2**63)], np.int64), 2.0**63),
        (np.array([2**24 + 1], np.int32), 2.0**24 + 1),
        (np.array([255, 0], np.uint8), 255.0),
        (np.array([True, False]), 1.0),
        (np.array([-65504, 2], np.float16), 65504.0),
        (np.array([-3, 2], ml_dtypes.bfloat16), 3.0),
        (np.array([-448, 2], ml_dtypes.float8_e4m3fn), 448.0),
        (np.array([1e-45], np.float32), float(np.float32(1e-45))),
        (np.array(-2.0), 2.0),
        (np.zeros((0, 3), np.float32), 0.0),
        (np.arange(12.0).reshape(3, 4).T[::2], 10.0),
    ],
)
def test_every_type_and_layout(values, amax):
    for limit in (None, 2.0**64):
        histogram = Histogram(limit)
        histogram.add(values)
        assert histogram.amax == amax
        assert histogram.counts.sum() == histogram.elements == values.size


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_not_finite_is_not_counted(bad, dtype):
    histogram = Histogram()
    with pytest.raises(ValueError, match="NaN or infinite"):
        histogram.add(np.array([1.0, bad, 2.0], dtype))
    assert (histogram.elements, histogram.amax, histogram.counts.sum()) == (0, 0.0, 0)


@pytest.mark.parametrize("limit", [0, -1.0, math.inf, math.nan])
def test_a_limit_that_is_none(limit):
    with pytest.raises(SpecError, match="finite and above 0"):
        Histogram(limit)
