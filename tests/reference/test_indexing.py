"""Operators that choose, move and join values, against NumPy, PyTorch and loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.reference_nodes import run_node

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("extent", [3, 300])
def test_gather_elements_of_a_part(axis, extent, rng):
    shape, index_shape = [4, 4, 4], [2, 3, 1]
    shape[axis] = extent
    x = rng.standard_normal(shape).astype(np.float32)
    indices = rng.integers(-extent, extent, index_shape)
    found = run_node("GatherElements", x, indices, axis=axis)[0]
    np.testing.assert_array_equal(
        found, torch.gather(torch.tensor(x), axis, torch.tensor(indices % extent))
    )


@pytest.mark.parametrize("axis", [0, 2])
def test_scatter(axis, rng):
    x = rng.standard_normal((3, 4, 5)).astype(np.float32)
    updates = rng.standard_normal((2, 3, 2)).astype(np.float32)
    indices = rng.permuted(np.broadcast_to(np.arange(2).reshape(-1, 1, 1), (2, 3, 2)), axis=0)
    indices = indices if axis == 0 else np.sort(rng.permuted(np.tile([0, 3], (2, 3, 1)), axis=2))
    found = run_node("Scatter", x, indices, updates, opset=9, axis=axis)[0]
    expected = torch.tensor(x).scatter(axis, torch.tensor(indices), torch.tensor(updates))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("depth", [4, [4]])
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_one_hot(depth, axis, dtype):
    indices = np.array([[0, -1, 9], [3, -4, -5]], dtype)
    values = np.array([-1, np.inf], np.float32)
    found = run_node("OneHot", indices, np.array(depth), values, axis=axis)[0]
    found = np.moveaxis(found, axis, -1)
    for place, value in np.ndenumerate(indices):
        row = [-1.0] * 4
        if -4 <= value < 4:
            row[int(value)] = np.inf
        np.testing.assert_array_equal(found[place], row)


def sliced(extent, start, end, step):
    """The indices, by the specification's words."""
    start, end = (i + extent if i < 0 else i for i in (start, end))
    if step > 0:
        start, end = min(max(start, 0), extent), min(max(end, 0), extent)
    else:
        start, end = min(max(start, 0), extent - 1), min(max(end, -1), extent - 1)
    return list(range(start, end, step))


def test_slices(rng):
    x = rng.standard_normal((2, 5)).astype(np.float32)
    bounds = (-9, -5, -2, 0, 1, 4, 5, 9)
    for start, end, step in itertools.product(bounds, bounds, (1, 2, -1, -3)):
        found = run_node("Slice", x, *(np.array([n]) for n in (start, end, 1, step)))[0]
        np.testing.assert_array_equal(found, x[:, sliced(5, start, end, step)])


def test_slices_before_opset_10(rng):
    x = rng.standard_normal((4, 5, 6)).astype(np.float32)
    options = {"opset": 9, "starts": [1, -2], "ends": [2**31 - 1, 5]}
    np.testing.assert_array_equal(run_node("Slice", x, **options)[0], x[1:, 3:])
    np.testing.assert_array_equal(run_node("Slice", x, axes=[2, 0], **options)[0], x[2:, :, 1:])


@pytest.mark.parametrize("opset", [7, 11, 13, 18, 21])
def test_negative_padding_cuts(opset, rng):
    x = rng.standard_normal((4, 5)).astype(np.float32)
    pads, fill = [-1, 2, 1, -3], 1.5
    given = (
        ([x], {"pads": pads, "value": fill})
        if opset < 11
        else ([x, np.array(pads), np.float32(fill)], {})
    )
    found = run_node("Pad", *given[0], opset=opset, **given[1])[0]
    expected = torch.nn.functional.pad(torch.tensor(x), (2, -3, -1, 1), value=fill)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("mode", "name"), [("reflect", "reflect"), ("edge", "replicate")])
def test_padding_by_values(mode, name, rng):
    x = rng.standard_normal((1, 4, 5)).astype(np.float32)
    found = run_node("Pad", x, np.array([2, -1]), None, np.array([-1]), mode=mode)[0]
    expected = torch.nn.functional.pad(torch.tensor(x[..., :4]), (2, 0), mode=name)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("opset", [7, 11])
def test_axes_in_any_order(opset, rng):
    x = rng.standard_normal((2, 3)).astype(np.float32)
    for axes in ([2, 0], [3, 1], [1, 0]):
        found = run_node("Unsqueeze", x, opset=opset, axes=axes)[0]
        np.testing.assert_array_equal(found, np.expand_dims(x, tuple(sorted(axes))))
        back = run_node("Squeeze", found, opset=opset, axes=axes)[0]
        np.testing.assert_array_equal(back, x)


def test_squeeze_of_all_axes():
    found = run_node("Squeeze", np.ones((1, 3, 1), np.float32), opset=9)[0]
    assert found.shape == (3,)


@pytest.mark.parametrize("start", [None, -5, -1, 0, 2, 9])
@pytest.mark.parametrize("end", [None, -5, -1, 0, 2, 9])
def test_shapes(start, end):
    given = {name: n for name, n in (("start", start), ("end", end)) if n is not None}
    low, high = (
        4 if n is None else min(max(n + 4 if n < 0 else n, 0), 4) for n in (start or 0, end)
    )
    found = run_node("Shape", np.ones((2, 3, 4, 5), np.float32), **given)[0]
    np.testing.assert_array_equal(found, [2, 3, 4, 5][low:high])


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_unique_in_order_of_appearance(axis):
    x = np.array([[3, 1, 3, 2], [0, 1, 0, 2], [3, 1, 3, 2]], np.float32)
    given = {} if axis is None else {"axis": axis}
    y, first, inverse, counts = run_node("Unique", x, outputs=4, sorted=0, **given)
    rows = x.ravel() if axis is None else np.moveaxis(x, axis, 0)
    seen = []
    for n, row in enumerate(rows):
        if not any(np.array_equal(row, rows[m]) for m in seen):
            seen.append(n)
    np.testing.assert_array_equal(first, seen)
    np.testing.assert_array_equal(y if axis is None else np.moveaxis(y, axis, 0), rows[seen])
    np.testing.assert_array_equal(rows[seen][inverse], rows)
    np.testing.assert_array_equal(counts, np.bincount(inverse))


def test_a_mean_of_unequal_shapes(rng):
    a, b = rng.standard_normal((3, 1)).astype(np.float32), np.arange(4, dtype=np.float32)
    np.testing.assert_allclose(run_node("Mean", a, b)[0], (a + b) / 2, rtol=1e-6)
    large = np.full(2, 60000, np.float16)
    np.testing.assert_array_equal(run_node("Mean", large, large)[0], large)
