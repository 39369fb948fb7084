"""Softmax and norms of every version, against PyTorch and formulas."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.reference_nodes import run_node

torch = pytest.importorskip("torch")
F = torch.nn.functional


def close(found, expected):
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("opset", "axis"),
    [*((7, axis) for axis in (None, 0, 1, 2)), *((12, axis) for axis in (None, 0, 1, 2, -1))],
)
def test_softmax_before_opset_13_flattens(opset, axis, rng):
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    given = {} if axis is None else {"axis": axis}
    rows = x.reshape(int(np.prod(x.shape[: 1 if axis is None else axis])), -1)
    tensor = torch.tensor(rows)
    close(run_node("Softmax", x, opset=opset, **given)[0].reshape(rows.shape), tensor.softmax(1))
    found = run_node("LogSoftmax", x, opset=opset, **given)[0]
    close(found.reshape(rows.shape), tensor.log_softmax(1))
    found = run_node("Hardmax", x, opset=opset, **given)[0]
    close(found.reshape(rows.shape), F.one_hot(tensor.argmax(1), rows.shape[1]))


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_softmax_from_opset_13_on_has_one_axis(axis, rng):
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    given, dim = ({}, -1) if axis is None else ({"axis": axis}, axis)
    close(run_node("Softmax", x, opset=13, **given)[0], torch.tensor(x).softmax(dim))
    close(run_node("LogSoftmax", x, opset=13, **given)[0], torch.tensor(x).log_softmax(dim))


def test_log_softmax_of_distant_values():
    x = np.array([[0, 300]], np.float32)
    close(run_node("LogSoftmax", x)[0], [[-300, 0]])


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5)])
def test_batch_normalization(opset, shape, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    scale, bias, mean, variance = rng.random((4, 3)).astype(np.float32)
    found = run_node(
        "BatchNormalization", x, scale, bias, mean, variance, opset=opset, momentum=0.5
    )[0]
    close(found, F.batch_norm(*map(torch.tensor, (x, mean, variance, scale, bias))))


def test_batch_normalization_7_of_each_activation(rng):
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    scale, bias, mean, variance = rng.random((4, 3, 4)).astype(np.float32)
    found = run_node("BatchNormalization", x, scale, bias, mean, variance, opset=8, spatial=0)[0]
    close(found, (x - mean) / np.sqrt(variance + 1e-5) * scale + bias)


def test_batch_normalization_in_training_is_refused():
    ones = np.ones(3, np.float32)
    with pytest.raises(NotImplementedError, match="training mode"):
        run_node("BatchNormalization", np.ones((2, 3)), ones, ones, ones, ones, opset=9, outputs=5)


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_group_normalization(opset, dtype, rng):
    x = rng.standard_normal((2, 4, 5)).astype(dtype)
    scale, bias = rng.random((2, 4 if opset >= 21 else 2)).astype(dtype)
    found = run_node("GroupNormalization", x, scale, bias, opset=opset, num_groups=2)[0]
    weights = [torch.tensor(w).float().repeat_interleave(4 // len(w)) for w in (scale, bias)]
    expected = F.group_norm(torch.tensor(x).float(), 2, *weights)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=2e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", [(1, 6, 2, 3), (4, 2, 3, 3), (2, 5, 4)])
def test_local_response_normalization(size, shape, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    found = run_node("LRN", x, size=size, alpha=0.3, beta=0.6, bias=2.0)[0]
    close(found, F.local_response_norm(torch.tensor(x), size, 0.3, 0.6, 2.0))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_lp_normalization(p, axis, rng):
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    close(
        run_node("LpNormalization", x, p=p, axis=axis)[0],
        F.normalize(torch.tensor(x), p=p, dim=axis),
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_mean_variance_normalization(dtype, rng):
    x = rng.standard_normal((2, 3, 4, 5)).astype(dtype)
    found = run_node("MeanVarianceNormalization", x)[0]
    wide = torch.tensor(x).float().transpose(0, 1)
    expected = F.layer_norm(wide, wide.shape[1:], eps=0).transpose(0, 1)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=2e-3 if dtype == np.float16 else 1e-5)
