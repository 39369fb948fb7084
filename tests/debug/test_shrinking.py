"""Smaller extents of inputs and weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.tiny_models import FLOAT, tensor
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from trt_native.debug.shrinking import shrink_extents, shrunk_array, with_extents


@pytest.fixture
def model():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("Concat", ["b", "b"], ["y"], axis=0),
    ]
    weights = {"w": np.arange(48 * 16, dtype=np.float32).reshape(48, 16), "shape": [1, 5, 16]}
    graph = helper.make_graph(
        nodes,
        "g",
        [tensor("x", FLOAT, [5, 48])],
        [tensor("y", FLOAT, [2, 5, 16])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def shapes(model):
    values = {v.name: v for v in (*model.graph.input, *model.graph.output)}
    found = {n: [d.dim_value for d in v.type.tensor_type.shape.dim] for n, v in values.items()}
    return {**found, **{t.name: list(t.dims) for t in model.graph.initializer}}


def test_extents_follow_in_inputs_weights_shapes_and_outputs(model, tmp_path):
    smaller = with_extents(model, {48: 3, 16: 7}, tmp_path)
    assert shapes(smaller) == {"x": [5, 3], "w": [3, 7], "shape": [3], "y": [2, 5, 7]}
    onnx.checker.check_model(smaller, full_check=True)
    x = np.ones((5, 3), np.float32)
    (found,) = ReferenceEvaluator(smaller).run(None, {"x": x})
    column_sums = np.arange(48 * 16).reshape(48, 16)[:3, :7].sum(0)
    np.testing.assert_array_equal(found, np.broadcast_to(column_sums, (2, 5, 7)))
    assert shapes(model)["w"] == [48, 16]


def test_extents_that_do_not_fit_together_are_no_model(model, tmp_path):
    array = numpy_helper.from_array(np.array([1, 80], np.int64), "shape")
    model.graph.initializer[1].CopyFrom(array)
    model.graph.node[2].attribute[0].i = 1
    model.graph.output[0].CopyFrom(tensor("y", FLOAT, [1, 160]))
    onnx.checker.check_model(model, full_check=True)
    assert with_extents(model, {48: 2}, tmp_path) is not None
    assert with_extents(model, {16: 2}, tmp_path) is None


def test_all_extents_become_two_where_that_fails(model, tmp_path):
    asked = []
    found = shrink_extents(model, tmp_path, lambda one: asked.append(one) or True)
    assert len(asked) == 1
    assert shapes(found) == {"x": [2, 2], "w": [2, 2], "shape": [3], "y": [2, 2, 2]}


def test_an_extent_that_matters_stays_above_what_does_not_fail(model, tmp_path):
    def fails(one):
        return shapes(one)["x"][1] >= 20

    found = shapes(shrink_extents(model, tmp_path, fails))
    assert 20 <= found["x"][1] < 48
    assert found["y"] == [2, 2, 2]


def test_arrays_keep_their_start():
    array = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(shrunk_array(array, {4: 1, 3: 2}), array[:, :2, :1])
    assert shrunk_array(np.float32(3), {4: 1}).shape == ()
