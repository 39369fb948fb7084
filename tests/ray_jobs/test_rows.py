"""Rows as batches of a plan, and back."""

from __future__ import annotations

import numpy as np
import pytest

from trt_native.errors import SpecError
from trt_native.plans.manifest import PlanTensor
from trt_native.ray.rows import RowBatcher
from trt_native.shapes import ShapeRange


def tensor(name, shape, *profiles, mode="input"):
    ranges = tuple(map(ShapeRange.parse, profiles))
    return PlanTensor(name, mode, "float32", shape, profiles=ranges)


STATIC = (tensor("x", (4, 2)),)
DYNAMIC = (tensor("x", (-1, 2), "1x2:4x2:8x2"),)
PROFILES = (tensor("x", (-1, 2), "2x2:2x2:3x2", "6x2:8x2:8x2"),)
TWO = (
    tensor("x", (-1, 2), "1x2:4x2:8x2"),
    tensor("z", (-1, 3), "2x3:4x3:6x3"),
)
ALLOWED = {
    "static": (STATIC, {4}),
    "dynamic": (DYNAMIC, set(range(1, 9))),
    "profiles": (PROFILES, {2, 3, 6, 7, 8}),
    "two inputs": (TWO, set(range(2, 7))),
}


def run(inputs, columns, function=lambda x: 2 * x, outputs=None):
    batcher = RowBatcher(inputs, outputs or (tensor("y", (-1, 2), mode="output"),))
    batches = list(batcher.batches(columns))
    return batches, batcher.joined([(b, {"y": function(b.inputs["x"])}) for b in batches])["y"]


@pytest.mark.parametrize("case", ALLOWED)
@pytest.mark.parametrize("rows", range(20))
def test_every_row_has_its_result(case, rows):
    inputs, allowed = ALLOWED[case]
    generator = np.random.default_rng(rows)
    columns = {t.name: generator.standard_normal((rows, t.shape[1]), np.float32) for t in inputs}
    batches, found = run(inputs, columns)
    np.testing.assert_array_equal(found, 2 * columns["x"])
    for batch in batches:
        assert {len(array) for array in batch.inputs.values()} <= allowed
        assert len({len(array) for array in batch.inputs.values()}) == 1
    largest = max(allowed)
    assert [b.rows for b in batches] == [min(largest, rows - i) for i in range(0, rows, largest)]


def test_whole_batches_are_views():
    x = np.zeros((16, 2), np.float32)
    batches, _ = run(DYNAMIC, {"x": x})
    assert all(np.shares_memory(batch.inputs["x"], x) for batch in batches)


def test_one_whole_batch_is_not_copied():
    y = np.zeros((8, 2), np.float32)
    _, found = run(DYNAMIC, {"x": np.zeros((8, 2), np.float32)}, lambda _: y)
    assert np.shares_memory(found, y)


def test_rows_that_are_whole_inputs():
    x = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    batches, found = run(STATIC, {"x": x})
    assert [b.rows for b in batches] == [0, 0, 0]
    assert all(b.inputs["x"].shape == (4, 2) for b in batches)
    np.testing.assert_array_equal(found, 2 * x)


def test_rows_of_several_shapes():
    inputs = (tensor("x", (-1, -1), "1x1:2x4:3x9"),)
    rows = [np.full(n, n, np.float32) for n in (2, 2, 3, 2, 2, 2, 2, 9)]
    column = np.empty(len(rows), object)
    column[:] = rows
    batches, found = run(inputs, {"x": column})
    assert [b.inputs["x"].shape for b in batches] == [(2, 2), (1, 3), (3, 2), (1, 2), (1, 9)]
    assert [row.tolist() for row in found] == [(2 * row).tolist() for row in rows]


def test_rows_that_do_not_fit():
    for shape in ((4,), (4, 2, 2, 2)):
        with pytest.raises(SpecError, match=r"rows do not fit the plan: .*x: 4 x 2"):
            run(STATIC, {"x": np.zeros(shape, np.float32)})
    mixed = {"x": np.zeros((4, 2), np.float32), "z": np.zeros((4, 2, 3), np.float32)}
    with pytest.raises(SpecError, match="rows do not fit the plan"):
        run(TWO, mixed)


def test_inputs_without_a_batch_in_common():
    inputs = (tensor("x", (4, 2)), tensor("z", (3, 2)))
    columns = {name: np.zeros((5, 2), np.float32) for name in "xz"}
    with pytest.raises(SpecError, match="no batch that all its inputs can have"):
        run(inputs, columns)


@pytest.mark.parametrize("output", [np.float32(1), np.zeros(3)])
def test_outputs_without_an_axis_of_rows(output):
    with pytest.raises(SpecError, match=r"output 'y' has shape .* for a batch of 4 rows"):
        run(STATIC, {"x": np.zeros((4, 2), np.float32)}, lambda _: np.asarray(output))
