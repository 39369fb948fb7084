"""Statistics of times against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from trt_native.bench import Statistics
from trt_native.bench.statistics import (
    find_bottleneck,
    ratio_of,
    slowest_first,
    stability_problems,
)


@pytest.mark.parametrize("count", [1, 2, 3, 100, 1001])
def test_statistics_are_those_of_numpy(rng, count):
    samples = rng.lognormal(size=count)
    found = Statistics.of(list(samples))
    assert found.count == count
    assert (found.min, found.max) == (samples.min(), samples.max())
    for name, percent in (("median", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert getattr(found, name) == pytest.approx(np.percentile(samples, percent), rel=1e-12)
    assert found.mean == pytest.approx(np.mean(samples), rel=1e-12)
    spread = np.std(samples, ddof=1) if count > 1 else 0
    assert found.cv == pytest.approx(spread / np.mean(samples), rel=1e-12)
    assert found.to_json()["p99_ms"] == found.p99
    assert found.to_json()["cv"] == found.cv


def test_statistics_of_nothing_but_zeros():
    assert Statistics.of([0.0, 0.0]).cv == 0


@pytest.mark.parametrize(
    ("medians", "bound", "said"),
    [
        ((1.0, 0.1, 0.5, 0.5), "compute", "GPU compute 1.0000 ms"),
        ((1.0, 0.79, 0.5, 0.5), "compute", "hides behind"),
        ((1.0, 0.81, 0.5, 0.5), "enqueue", "more work in each call"),
        ((1.0, 0.1, 1.5, 0.5), "transfer", "H2D takes longer"),
        ((1.0, 0.9, 0.5, 1.5), "transfer", "D2H takes longer"),
        ((1.0, 1.7, 0.5, 1.5), "enqueue", "enqueue 1.7000 ms"),
        ((0.0, 0.0, 0.0, 0.0), "enqueue", "more work in each call"),
    ],
)
def test_bottleneck(medians, bound, said):
    names = ("gpu_compute", "enqueue", "h2d", "d2h")
    bottleneck = find_bottleneck(dict(zip(names, medians, strict=True)))
    assert bottleneck.bound == bound
    assert bottleneck.text.startswith(f"bound by {bound}: ")
    assert said in bottleneck.text


def test_stability(rng):
    steady = 1 + 0.01 * rng.standard_normal(400)
    assert stability_problems(steady) == []
    assert stability_problems([1.0]) == []
    assert (
        "coefficient of variation 3" in stability_problems(1 + 0.3 * rng.standard_normal(4000))[0]
    )
    (problem,) = stability_problems(steady * np.linspace(1, 1.08, 400))
    # Of a straight line from 1 to 1.08: 1.07 over 1.01.
    assert 5 < float(problem.removeprefix("drift +").partition("%")[0]) < 7
    (problem,) = stability_problems(steady * np.linspace(1.08, 1, 400))
    assert problem.startswith("drift -5.")


def test_nineteen_of_twenty_intervals_hold_the_ratio(rng):
    held, different = 0, 0
    for _ in range(2000):
        plan = rng.lognormal(0, 0.05, 20)
        other = 1.02 * rng.lognormal(0, 0.08, 20)
        found = ratio_of("gpu_compute", plan, other)
        assert found.low < found.speedup < found.high
        held += found.low <= 1.02 <= found.high
        different += found.differs
    assert 0.93 < held / 2000 < 0.97
    # Of an effect of 0.94 standard errors a test at 5 % finds about one in seven.
    assert 0.08 < different / 2000 < 0.25


def test_the_ratio_is_the_geometric_mean(rng):
    plan, other = rng.lognormal(size=(2, 20))
    found = ratio_of("end_to_end", plan, other)
    assert found.speedup == pytest.approx(np.prod(other / plan) ** (1 / 20))
    assert (found.plan_ms, found.other_ms) == (np.median(plan), np.median(other))
    back = ratio_of("end_to_end", other, plan)
    assert (1 / back.high, 1 / back.low) == pytest.approx((found.low, found.high))
    with pytest.raises(ValueError, match="19 pairs"):
        ratio_of("end_to_end", plan[1:], other[1:])


def test_layers_come_slowest_first():
    layers = slowest_first({"a": [1.0, 1.0, 40.0], "b": [2.0, 3.0, 4.0], "c": [0.0]})
    assert [layer.name for layer in layers] == ["b", "a", "c"]
    assert [layer.median_ms for layer in layers] == [3, 1, 0]
    assert layers[1].mean_ms == 14
    assert [layer.share for layer in layers] == [0.75, 0.25, 0]
    assert [layer.share for layer in slowest_first({"a": [0.0]})] == [0]
