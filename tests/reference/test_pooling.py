"""Pooling, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.reference_nodes import run_node

torch = pytest.importorskip("torch")
F = torch.nn.functional

MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
# Kernel, stride, padding and dilation of all axes.
GEOMETRIES = [(2, 1, 0, 1), (3, 2, 1, 1), (3, 1, 1, 2), (2, 3, 0, 1), (3, 2, 0, 2)]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), GEOMETRIES)
def test_max_pool_and_its_indices(rank, ceil, kernel, stride, padding, dilation, rng):
    x = rng.standard_normal((2, 3, 7, 6, 8)[: 2 + rank]).astype(np.float32)
    found, indices = run_node(
        "MaxPool",
        x,
        outputs=2,
        kernel_shape=[kernel] * rank,
        strides=[stride] * rank,
        pads=[padding] * 2 * rank,
        dilations=[dilation] * rank,
        ceil_mode=int(ceil),
    )
    expected, places = MAX[rank](
        torch.tensor(x), kernel, stride, padding, dilation, ceil, return_indices=True
    )
    np.testing.assert_array_equal(found, expected)
    planes = np.arange(6).reshape(2, 3, *[1] * rank) * int(np.prod(x.shape[2:]))
    np.testing.assert_array_equal(indices, places.numpy() + planes)


def test_indices_of_max_pool_in_column_major_order(rng):
    x = rng.standard_normal((1, 2, 4, 6)).astype(np.float32)
    options = {"outputs": 2, "kernel_shape": [2, 3], "strides": [2, 3]}
    found, indices = run_node("MaxPool", x, storage_order=1, **options)
    by_column = x.transpose(0, 1, 3, 2).reshape(2, -1)
    flat = by_column.reshape(-1)
    np.testing.assert_array_equal(flat[indices], found)


def test_max_pool_with_uneven_padding_and_of_integers():
    x = -np.arange(1, 13, dtype=np.int8).reshape(1, 1, 3, 4)
    found = run_node("MaxPool", x, kernel_shape=[2, 2], pads=[1, 0, 0, 2])[0]
    padded = F.pad(torch.tensor(x).double(), (0, 2, 1, 0), value=-np.inf)
    np.testing.assert_array_equal(found[..., :4], F.max_pool2d(padded, 2, 1)[..., :4])
    assert found.dtype == np.int8
    assert found.shape == (1, 1, 3, 5)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 1, 0), (3, 2, 1), (2, 3, 1), (5, 4, 2)]
)
def test_average_pool(rank, ceil, counted, kernel, stride, padding, rng):
    x = rng.standard_normal((2, 3, 7, 6, 8)[: 2 + rank]).astype(np.float32)
    found = run_node(
        "AveragePool",
        x,
        kernel_shape=[kernel] * rank,
        strides=[stride] * rank,
        pads=[padding] * 2 * rank,
        ceil_mode=int(ceil),
        count_include_pad=int(counted),
    )[0]
    expected = AVERAGE[rank](torch.tensor(x), kernel, stride, padding, ceil, counted)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("ceil", [False, True])
def test_lp_pool(p, ceil, rng):
    x = rng.standard_normal((2, 3, 8, 7)).astype(np.float32)
    found = run_node("LpPool", x, p=p, kernel_shape=[3, 2], strides=[2, 3], ceil_mode=int(ceil))[0]
    # PyTorch keeps signs, and counts what ceil adds at the end as if it were data.
    filled = F.pad(torch.tensor(x).abs(), (0, 3, 0, 3)) if ceil else torch.tensor(x).abs()
    expected = F.lp_pool2d(filled, p, (3, 2), (2, 3))
    np.testing.assert_allclose(
        found, expected[..., : found.shape[2], : found.shape[3]], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (2, 2), (3, 2), (1, 3)])
def test_automatic_padding(auto_pad, kernel, stride, rng):
    x = rng.standard_normal((1, 2, 7)).astype(np.float32)
    found = run_node("MaxPool", x, kernel_shape=[kernel], strides=[stride], auto_pad=auto_pad)[0]
    total = max((-(-7 // stride) - 1) * stride + kernel - 7, 0) if auto_pad != "VALID" else 0
    small, large = total // 2, total - total // 2
    sides = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    padded = F.pad(torch.tensor(x), sides, value=-np.inf)
    np.testing.assert_array_equal(found, F.max_pool1d(padded, kernel, stride))


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_global_pools(shape, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    axes = tuple(range(2, len(shape)))
    np.testing.assert_array_equal(run_node("GlobalMaxPool", x)[0], x.max(axes, keepdims=True))
    np.testing.assert_allclose(
        run_node("GlobalAveragePool", x)[0], x.mean(axes, keepdims=True), rtol=1e-5, atol=1e-7
    )
    expected = torch.linalg.vector_norm(torch.tensor(x), 3, axes, keepdim=True)
    np.testing.assert_allclose(run_node("GlobalLpPool", x, p=3)[0], expected, rtol=1e-5)
