"""What evaluators do for every operator: types of sums, and operators of other domains."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from helpers.reference_nodes import run_node

from trt_native.reference.evaluator import _KERNELS, _operators, evaluator

LARGE = np.full((1, 4096), 60, np.float16)


@pytest.mark.parametrize("opset", [8, 13, 18, 22])
@pytest.mark.parametrize(
    ("operator", "expected"),
    [("ReduceMean", 60), ("ReduceL2", 3840), ("ReduceLogSum", np.log(60 * 4096))],
)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sums_of_narrow_types_are_fp32(opset, operator, expected, dtype):
    found = run_node(operator, LARGE.astype(dtype), opset=opset, keepdims=0)[0]
    assert found.dtype == dtype
    assert found == np.float32(expected).astype(dtype)


def test_norms_of_narrow_types_are_fp32(rng):
    x = (rng.standard_normal((2, 512)) * 300 + 500).astype(np.float16)
    scale = np.ones(512, np.float16)
    y, mean, _ = run_node("LayerNormalization", x, scale, outputs=3)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / wide.std(1, keepdims=True)
    np.testing.assert_allclose(y, expected, atol=2e-3)
    np.testing.assert_allclose(mean, wide.mean(1, keepdims=True), rtol=1e-5)
    assert (y.dtype, mean.dtype) == (np.float16, np.float32)


def test_other_types_stay(rng):
    x = rng.standard_normal((2, 3))
    found = run_node("ReduceMean", x, opset=13)[0]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, x.mean(keepdims=True))
    np.testing.assert_array_equal(run_node("ReduceSum", np.array([2**40 + 1]))[0], [2**40 + 1])


def test_each_operator_has_one_implementation_in_each_opset():
    for opset in range(1, onnx.defs.onnx_opset_version() + 1):
        names = [operator.__name__ for operator in _operators(opset)]
        assert len(names) == len(set(names))
    assert {kernel.operator for kernel in _KERNELS} <= {
        operator.__name__ for opset in (9, 10, 22) for operator in _operators(opset)
    }


def test_functions_of_the_schema_still_run(rng):
    x = rng.standard_normal((2, 3)).astype(np.float32)
    found = run_node("HardSwish", x)[0]
    np.testing.assert_allclose(found, x * np.clip(x / 6 + 0.5, 0, 1), rtol=1e-5, atol=1e-6)


def test_an_operator_that_does_not_exist():
    node = onnx.helper.make_node("Warp", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [], [])
    with pytest.raises(NotImplementedError, match="Warp"):
        evaluator(graph, {"": 18})
