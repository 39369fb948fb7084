"""QuantizeLinear and DequantizeLinear, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.reference_nodes import run_node

torch = pytest.importorskip("torch")

TYPES = {np.int8: torch.qint8, np.uint8: torch.quint8}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("opset", [13, 19, 21])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_per_channel(opset, dtype, axis, rng):
    x = (rng.standard_normal((3, 4, 5)) * 10).astype(np.float32)
    scale = rng.uniform(0.05, 0.1, x.shape[axis]).astype(np.float32)
    zero_point = rng.integers(0, 5, x.shape[axis]).astype(dtype)
    steps = [torch.tensor(array).double() for array in (scale, zero_point)]
    expected = torch.quantize_per_channel(torch.tensor(x), *steps, axis % 3, TYPES[dtype])
    found = run_node("QuantizeLinear", x, scale, zero_point, opset=opset, axis=axis)[0]
    np.testing.assert_array_equal(found, expected.int_repr())
    back = run_node("DequantizeLinear", found, scale, zero_point, opset=opset, axis=axis)[0]
    np.testing.assert_allclose(back, expected.dequantize(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("opset", [10, 12])
def test_before_there_were_axes(opset):
    q = np.array([-128, 0, 127], np.int8)
    found = run_node("DequantizeLinear", q, np.float32(0.5), np.int8(2), opset=opset)[0]
    np.testing.assert_array_equal(found, [-65, -1, 62.5])


@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23])
def test_values_far_outside_saturate(opset):
    x = np.array([1e12, -1e12, np.inf, -np.inf, 3], np.float32)
    found = run_node("QuantizeLinear", x, np.float32(0.5), np.int8(1), opset=opset)[0]
    np.testing.assert_array_equal(found, [127, -128, 127, -128, 7])


def test_blocks():
    x = np.array([[1, 1e12, 3, 4]], np.float32)
    scale = np.array([[0.5, 2]], np.float32)
    found = run_node(
        "QuantizeLinear", x, scale, np.zeros_like(scale, np.int8), axis=1, block_size=2
    )
    np.testing.assert_array_equal(found[0], [[2, 127, 2, 2]])
