"""Sparse constants as dense ones; against onnx.reference and scattered NumPy arrays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_native.errors import ModelError
from trt_native.graph.onnx_file import CHANGED_KEY, read_model


def sparse(name, dims, values, indices):
    values = numpy_helper.from_array(np.array(values, np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(indices)), dims)


def saved(path, nodes, initializers=()):
    shape = [2, 3]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        sparse_initializer=initializers,
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


ADD = helper.make_node("Add", ["x", "w"], ["y"])


@pytest.mark.parametrize("indices", [[1, 5], [[0, 1], [1, 2]]], ids=["linear", "coordinates"])
@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_sparse_tensors_become_dense(tmp_path, place, indices):
    tensor = sparse("w", [2, 3], [5, 7], indices)
    if place == "initializer":
        path = saved(tmp_path / "m.onnx", [ADD], [tensor])
        onnx.checker.check_model(path)
    else:
        constant = helper.make_node("Constant", [], ["w"], sparse_value=tensor)
        path = saved(tmp_path / "m.onnx", [constant, ADD])
    model = read_model(path)
    assert model.meta[CHANGED_KEY]
    found = (
        model.graph.initializers["w"].const_value
        if place == "initializer"
        else model.graph[0].attributes["value"].as_tensor()
    )
    np.testing.assert_array_equal(found.numpy(), np.array([[0, 5, 0], [0, 0, 7]], np.float32))


@pytest.mark.parametrize(
    ("dims", "indices", "problem"),
    [
        ([2, 3], [1, 6], "is malformed"),
        ([2, 3], [[0, 1], [2, 0]], "is malformed"),
        ([2, 3], [[0, 1], [-1, 0]], "negative index"),
        ([2**20, 2**20], [0, 1], "takes 4.0 TiB"),
    ],
)
def test_malformed_and_huge_tensors_are_refused(tmp_path, dims, indices, problem):
    path = saved(tmp_path / "m.onnx", [ADD], [sparse("w", dims, [5, 7], indices)])
    with pytest.raises(ModelError, match=f"'w'.*{problem}"):
        read_model(path)
