"""What reduced types make of constants, against NumPy's own rounding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from helpers.autocast_checks import BF16, FP16
from helpers.text_models import normal

from trt_native.passes import autocast_constants
from trt_native.passes.autocast_constants import constant_range, is_finite
from trt_native.passes.autocast_operators import averages, sums


@pytest.fixture(params=[1 << 22, 7], ids=["one chunk", "many chunks"])
def _chunks(request, monkeypatch):
    monkeypatch.setattr(autocast_constants, "_CHUNK", request.param)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("scale", [1e-9, 1e-7, 1e-5, 1, 1e4, 1e9])
@pytest.mark.parametrize("special", [[], [0.0, -np.inf, np.nan], [3e38, -3.4028235e38]])
@pytest.mark.parametrize("dtype", [FP16, BF16], ids=["fp16", "bf16"])
def test_ranges_are_those_that_numpy_finds(scale, special, dtype):
    array = np.append(normal(0, 50, scale=scale), special).astype(np.float32)
    found = constant_range(ir.tensor(array), dtype)
    finite = array[np.isfinite(array)]
    with np.errstate(over="ignore"):
        rounded = finite.astype(dtype.numpy()).astype(np.float64)
    assert found.largest == np.abs(finite).max()
    assert found.smallest == np.abs(finite[finite != 0]).min()
    assert found.beyond == np.isinf(rounded).sum()
    if dtype == FP16:
        assert found.flushes == bool(((rounded == 0) & (finite != 0)).any())
    loss = np.linalg.norm(rounded - finite.astype(np.float64)) / np.linalg.norm(
        finite.astype(float)
    )
    assert found.lost == (dtype == FP16 and not found.beyond and loss > 0.01)
    assert is_finite(ir.tensor(array)) == bool(np.isfinite(array).all())


def test_empty_constants_have_no_range():
    found = constant_range(ir.tensor(np.zeros(0, np.float32)), FP16)
    assert (found.largest, found.beyond, found.lost, found.flushes) == (0, 0, False, False)


def product(operator: str, index: int, weight: np.ndarray, **attributes: int) -> ir.Node:
    operands = [ir.val("x", ir.DataType.FLOAT), ir.val("y", ir.DataType.FLOAT)]
    operands[index].const_value = ir.tensor(weight.astype(np.float32))
    return ir.node(operator, operands, attributes)


@pytest.mark.parametrize(
    ("weight", "operator", "average"),
    [
        (np.full((3, 1, 5, 5), 0.04), "Conv", True),
        (np.full((1, 3, 5, 5), 0.04), "ConvTranspose", True),
        (np.ones((8, 1)), "MatMul", True),
        (np.ones(8), "MatMul", True),
        (np.eye(3)[:, :, None] * np.full(5, 0.2), "Conv", True),
        (np.array([[0.25], [0.5], [0.25]]), "MatMul", True),
        (np.array([[0.25, 0.5], [0.75, 0.5]]), "MatMul", True),
        (np.array([[0.25, 0.75], [0.5, 0.5]]), "Conv", True),
        (np.ones((1, 8)), "MatMul", False),
        (np.eye(8), "MatMul", False),
        (np.eye(8) * 1e5, "Gemm", False),
        (np.array([[0.5]]), "MatMul", False),
        (np.zeros((4, 4)), "MatMul", False),
        (np.array([[0.25], [0.5], [0.3]]), "MatMul", False),
        (np.array([[-0.5], [1.0], [0.5]]), "MatMul", False),
        (np.zeros((0, 3)), "MatMul", False),
        (normal(0, 64, 64), "MatMul", False),
    ],
)
def test_averages_are_known_by_their_weights(weight, operator, average):
    assert averages(product(operator, 1, weight)) == average


def test_the_elements_of_an_output_follow_from_operand_and_attributes():
    column = np.array([[0.25], [0.5], [0.25]])
    assert averages(product("MatMul", 0, column.T))
    assert not averages(product("MatMul", 0, column))
    assert averages(product("Gemm", 1, column.T, transB=1))
    assert not averages(product("Gemm", 1, column.T))
    assert averages(product("Gemm", 0, column, transA=1))


@pytest.mark.parametrize(
    ("weight", "total"),
    [
        (np.ones((256, 1)), True),
        (np.ones((1000, 2)), True),
        (np.ones((16, 16, 1)), False),
        (np.full((256, 1), 1 / 256), False),
        (np.ones((8, 1)), False),
        (np.eye(300), False),
        (np.abs(normal(0, 300, 1)), False),
    ],
)
def test_sums_are_known_by_their_weights(weight, total):
    assert sums(product("MatMul", 1, weight)) == total
