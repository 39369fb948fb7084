"""Batches of calibration data, and comparison of what is read with them."""

from __future__ import annotations

import numpy as np
import pytest

from trt_native.calibration.batches import read_batches
from trt_native.errors import CalibrationError
from trt_native.shapes import TensorSpec

INPUTS = (
    TensorSpec("x", "float32", ("batch", "frames", 4)),
    TensorSpec("step", "int64", (1,)),
    TensorSpec("z", "float16", ("batch*frames", 2)),
)


IMAGE = (TensorSpec("image", "float32", (1, 2, 2)),)


def batch(i=0, frames=3):
    rng = np.random.default_rng(i)
    return {
        "x": rng.standard_normal((2, frames, 4), np.float32),
        "step": np.array([i], np.int64),
        "z": rng.standard_normal((2 * frames, 2)).astype(np.float16),
    }


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other)
        for name, array in other.items():
            assert one[name].dtype == array.dtype
            assert one[name].flags.c_contiguous
            np.testing.assert_array_equal(one[name], array)


def error_of(source, inputs=INPUTS, **options):
    with pytest.raises(CalibrationError) as caught:
        read_batches(source, inputs, **options)
    return str(caught.value)
