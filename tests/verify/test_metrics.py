"""The numbers against formulas of NumPy's linear algebra, written down independently."""

from __future__ import annotations

import dataclasses
import json
import math

import ml_dtypes
import numpy as np
import pytest

from trt_native.errors import SpecError
from trt_native.plans.manifest import Manifest
from trt_native.verify import Thresholds, compare_outputs, default_thresholds
from trt_native.verify.metrics import root_mean_square


def expected_numbers(p, r):
    p, r = (np.asarray(a, np.float64).ravel() for a in (p, r))
    mean_square = np.mean((p - r) ** 2)
    span = r.max() - r.min() or abs(r.max())  # a constant has no range; its magnitude stands for it
    return {
        "relative_l2": np.linalg.norm(p - r) / np.linalg.norm(r),
        "max_abs": np.linalg.norm(p - r, np.inf),
        "cosine": np.dot(p, r) / (np.linalg.norm(p) * np.linalg.norm(r)),
        "psnr": 10 * np.log10(span**2 / mean_square),
        "rms": np.sqrt(np.mean(r**2)),
    }


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5), (1100, 1000)], ids=str)
def test_numbers(shape, scale, rng):
    r = np.asarray(rng.standard_normal(shape) + 0.3) * scale
    p = r + np.asarray(rng.standard_normal(shape)) * 0.01 * scale
    found = compare_outputs("y", p, r, floor=0)
    expected = expected_numbers(p, r)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-9, err_msg=name)
    assert (found.name, found.shape, found.dtype) == ("y", shape, "float64")
    assert root_mean_square(r) == pytest.approx(expected["rms"], rel=1e-9)


def test_growing_values_over_many_chunks(rng):
    """Sums of small values are rescaled when larger values come."""
    r = np.exp(np.linspace(-300, 300, 3 << 20))
    p = r * (1 + rng.uniform(-1e-3, 1e-3, r.size))
    found = compare_outputs("y", p, r, floor=0)
    # Independent of squares: as a share of the largest value.
    expected = np.linalg.norm((p - r) / r.max()) / np.linalg.norm(r / r.max())
    assert found.relative_l2 == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("value", [1e300, 1e-300])
def test_squares_neither_overflow_nor_vanish(value):
    found = compare_outputs("y", np.array([1.01 * value, value]), np.array([value, value]), floor=0)
    assert found.relative_l2 == pytest.approx(0.01 / math.sqrt(2), rel=1e-9)
    assert found.rms == pytest.approx(value)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.bool_])
def test_every_type_is_compared_as_numbers(dtype, rng):
    r = rng.integers(0, 2, 64)
    p = r.copy()
    p[:3] = 1 - p[:3]
    found = compare_outputs("y", p.astype(dtype), r.astype(np.float32))
    assert found.max_abs == 1
    assert found.relative_l2 == pytest.approx(np.sqrt(3 / r.sum()))
    # A difference of unsigned or boolean values must not wrap around.
    assert compare_outputs("y", np.array([0], np.uint8), np.array([1], np.uint8)).max_abs == 1


def test_equal_zero_and_empty():
    x = np.array([1.0, -2.0])
    same = compare_outputs("y", x, x)
    assert (same.relative_l2, same.max_abs, same.psnr) == (0, 0, math.inf)
    assert same.cosine == pytest.approx(1)
    zeros = compare_outputs("y", np.zeros(3), np.zeros(3))
    assert (zeros.relative_l2, zeros.cosine, zeros.floored) == (0, 1, True)
    empty = compare_outputs("y", np.zeros((0, 3)), np.zeros((0, 3)))
    assert (empty.relative_l2, empty.shape) == (0, (0, 3))
    lost = compare_outputs("y", np.zeros(2), x)
    assert (lost.relative_l2, lost.cosine) == (1, 0)
    made = compare_outputs("y", x, np.zeros(2), floor=0)
    assert (made.relative_l2, made.cosine, made.psnr) == (math.inf, 0, -math.inf)


def test_nonfinite_values_are_counted_and_left_out():
    nan, inf = math.nan, math.inf
    p = np.array([nan, nan, inf, inf, -inf, 1.0, 5.0])
    r = np.array([nan, 2.00, inf, -inf, 3.0, nan, 4.0])
    found = compare_outputs("y", p, r)
    assert found.nan == (2, 2)
    assert found.inf == (3, 2)
    assert found.nonfinite_differs == 4
    assert (found.max_abs, found.relative_l2) == (1, 0.25)
    assert Thresholds().problems(found) == ["4 NaN or infinite on one side alone"]
    same = compare_outputs("y", p, p)
    assert same.nonfinite_differs == 0
    assert Thresholds(max_relative_error=0).problems(same) == []
    assert (found.compared, same.compared) == (1, 2)
    nothing = compare_outputs("y", np.full(2, nan), np.full(2, nan))
    assert Thresholds().problems(nothing) == ["nothing to compare: no value is finite"]
    assert Thresholds().problems(compare_outputs("y", np.zeros((0, 2)), np.zeros((0, 2)))) == []
    assert json.loads(json.dumps(found.to_json()))["plan"] == {"nan": 2, "inf": 3}
    assert same.to_json()["psnr"] is None


def test_the_floor_keeps_noise_around_zero_from_alarming():
    r, p = np.array([1e-9, -1e-9]), np.array([-1e-9, 2e-9])
    noise, bare = compare_outputs("y", p, r, floor=1e-6), compare_outputs("y", p, r, floor=0)
    assert noise.floored
    assert not bare.floored
    assert bare.relative_l2 > 1 > 1e-2 > noise.relative_l2
    assert noise.relative_l2 == pytest.approx(bare.relative_l2 * 1e-3)
    strict = Thresholds(max_relative_error=1e-2, min_cosine=0.9, min_psnr=20)
    assert strict.problems(noise) == []
    assert len(strict.problems(bare)) == 3
    assert Thresholds(max_absolute_error=1e-9).problems(noise) == ["max abs 3e-09 > 1e-09"]


def test_each_threshold_judges_alone():
    found = compare_outputs("y", np.array([1.0, 2.1]), np.array([1.0, 2.0]))
    passing = {
        "max_relative_error": 0.0448,
        "max_absolute_error": 0.11,
        "min_cosine": 0.999,
        "min_psnr": 22.9,
    }
    failing = {
        "max_relative_error": 0.0447,
        "max_absolute_error": 0.09,
        "min_cosine": 0.9999,
        "min_psnr": 23.1,
    }
    assert Thresholds(**passing).problems(found) == []
    for name, value in failing.items():
        assert len(Thresholds(**{**passing, name: value}).problems(found)) == 1
    assert len(Thresholds(**failing).problems(found)) == 4
    assert str(Thresholds(min_psnr=30.0, max_relative_error=0.01)) == (
        "relative L2 <= 0.01, PSNR >= 30"
    )


def test_what_is_not_a_number_fails_every_limit():
    found = dataclasses.replace(
        compare_outputs("y", np.ones(2), np.ones(2)), relative_l2=math.nan, cosine=math.nan
    )
    assert len(Thresholds(max_relative_error=1, min_cosine=0).problems(found)) == 2
    assert math.isnan(compare_outputs("y", np.ones(2), np.ones(2)).worst(found).relative_l2)


def test_the_worst_of_two():
    one = compare_outputs("y", np.array([1.0, 2.1]), np.array([1.0, 2.0]))
    other = compare_outputs("y", np.array([np.nan, 2.2]), np.array([1.0, 2.0]))
    for worst in (one.worst(other), other.worst(one)):
        assert worst.max_abs == pytest.approx(0.2)
        assert worst.nan == (1, 0)
        assert worst.cosine == min(one.cosine, other.cosine)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_relative_error": -1},
        {"max_relative_error": math.nan},
        {"max_absolute_error": -0.1},
        {"min_cosine": 1.5},
        {"min_cosine": math.nan},
        {"min_psnr": math.nan},
        {"floor": -1.0},
        {"floor": math.inf},
    ],
    ids=str,
)
def test_limits_that_are_none(wrong):
    with pytest.raises(SpecError):
        Thresholds(**wrong)


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), "shape 2x3 in the plan and 3x2 in the reference"),
        (np.zeros(1), np.array(["a"]), "reference's 'y' has the type <U1"),
        (np.zeros(1), np.array([1j]), "complex128, which cannot be compared"),
        (np.zeros(1), np.zeros(1, "V2"), "store bfloat16 and float8 as float32"),
    ],
)
def test_arrays_that_cannot_be_compared(found, expected, message):
    with pytest.raises(SpecError, match=message):
        compare_outputs("y", found, expected)


def test_defaults_follow_the_precision():
    from helpers import made_plans

    golden = Manifest.from_json(made_plans.GOLDEN)

    def limit(applied, tf32=False):
        precision = {"applied": applied, "tf32": tf32}
        return default_thresholds(dataclasses.replace(golden, precision=precision))

    assert limit("fp32")[0].max_relative_error == 1e-4
    assert limit("fp32", tf32=True)[0].max_relative_error == 5e-3
    assert limit("tf32", tf32=True)[0].max_relative_error == 5e-3
    assert limit("fp16", tf32=True)[0].max_relative_error == 1e-2
    assert limit("int8")[0].max_relative_error == 1e-1
    assert limit("as in the model")[1] == "the default for a plan whose types are the model's own"
    assert default_thresholds(None)[1] == "the default for a plan without a manifest"
