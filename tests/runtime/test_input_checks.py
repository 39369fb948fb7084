from __future__ import annotations

import numpy as np
import pytest

from trt_native.cuda import gpu_info
from trt_native.errors import CudaError, SpecError
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime import check_inputs
from trt_native.shapes import ShapeRange


def ranges(*texts):
    return tuple(ShapeRange.parse(text) for text in texts)


X = PlanTensor("x", "input", "float16", (-1, 3), (), ranges("1x3:2x3:4x3", "8x3:8x3:16x3"))
Z = PlanTensor("z", "input", "float32", (-1,), (), ranges("1:2:4", "1:2:4"))
T = PlanTensor("t", "input", "int64", (1,))


def arrays(batch=2, length=2):
    return {
        "x": np.zeros((batch, 3), np.float16),
        "z": np.zeros(length, np.float32),
        "t": np.zeros(1, np.int64),
    }


@pytest.mark.parametrize(("batch", "profile"), [(1, 0), (4, 0), (8, 1), (16, 1)])
def test_the_first_profile_that_allows_all_shapes(batch, profile):
    assert check_inputs((X, Z, T), 2, arrays(batch)) == profile


def test_all_faults_come_in_one_error():
    inputs = {"x": np.zeros((5, 3), np.float32), "t": np.zeros(2, np.int64), "q": np.zeros(1)}
    with pytest.raises(SpecError) as caught:
        check_inputs((X, Z, T), 2, inputs)
    text = str(caught.value)
    for part in (
        "'q' is not an input",
        "'z' is missing",
        "'x' needs float16, found float32",
        "'x' cannot have the shape 5x3",
        "'t' cannot have the shape 2",
        "x: float16 1x3:2x3:4x3 or 8x3:8x3:16x3",
        "t: int64 1",
    ):
        assert part in text


def test_shapes_that_only_different_profiles_allow():
    x = PlanTensor("x", "input", "float32", (-1,), (), ranges("1:1:1", "2:2:2"))
    z = PlanTensor("z", "input", "float32", (-1,), (), ranges("5:5:5", "6:6:6"))
    inputs = {"x": np.zeros(1, np.float32), "z": np.zeros(6, np.float32)}
    with pytest.raises(SpecError, match="no one profile allows these shapes together"):
        check_inputs((x, z), 2, inputs)


def test_bfloat16_arrays_fit_bfloat16_inputs():
    import ml_dtypes

    tensor = PlanTensor("x", "input", "bfloat16", (2,))
    assert check_inputs((tensor,), 1, {"x": np.zeros(2, ml_dtypes.bfloat16)}) == 0


@pytest.mark.skipif(gpu_info() is not None, reason="this machine has a GPU")
def test_without_a_gpu_the_error_says_so(tmp_path):
    from helpers import tiny_models

    from trt_native import Session, build_plan

    pytest.importorskip("tensorrt_rtx")
    plan = build_plan(tiny_models.conv(tmp_path / "m.onnx", (1, 3, 8, 8)), backend="rtx")
    with pytest.raises(CudaError, match="cannot find a GPU"):
        Session(plan)
