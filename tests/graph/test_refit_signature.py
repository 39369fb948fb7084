"""What two models must share for the weights of one to fit a plan of the other."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from onnx import TensorProto, helper, numpy_helper

from trt_native.graph.onnx_file import read_model
from trt_native.graph.refit_signature import differences, fold_sources, refit_signature


def of(model, path):
    onnx.save(model, path)
    return refit_signature(read_model(path))


@pytest.fixture
def base(tmp_path):
    return onnx.load(tiny_models.norm(tmp_path / "base.onnx"))


def test_a_weight_is_identified_by_type_shape_and_bytes(base, tmp_path):
    found = of(base, tmp_path / "m.onnx").weights
    arrays = {i.name: numpy_helper.to_array(i) for i in base.graph.initializer}
    assert found == {
        name: f"float32 {'x'.join(map(str, a.shape))} {hashlib.sha256(a.tobytes()).hexdigest()}"
        for name, a in arrays.items()
    }


def test_external_weights_and_those_inside_are_the_same(base, tmp_path):
    inside = of(base, tmp_path / "in.onnx")
    onnx.save(
        base, tmp_path / "out.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    assert refit_signature(read_model(tmp_path / "out.onnx")) == inside


def test_what_changes_no_weights_fit(base, tmp_path):
    """Values of weights, their order, names of nodes and of values, metadata."""
    before = of(base, tmp_path / "a.onnx")
    base.producer_name = "another"
    for node in base.graph.node:
        node.name += "_renamed"
        for names in (node.input, node.output):
            names[:] = [{"n": "n2", "m": "m2"}.get(name, name) for name in names]
    weights = list(base.graph.initializer)
    del base.graph.initializer[:]
    base.graph.initializer.extend(reversed(weights))
    first = base.graph.initializer[0]
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first) + 1, first.name))
    after = of(base, tmp_path / "b.onnx")
    assert differences(before, after, "b.onnx") == []
    assert [n for n in before.weights if before.weights[n] != after.weights[n]] == [first.name]


def test_every_fault_is_listed(base, tmp_path):
    before = of(base, tmp_path / "a.onnx")
    kinds = {i.name: i for i in base.graph.initializer}
    kinds["scale"].CopyFrom(numpy_helper.from_array(np.ones(16, np.float16), "scale"))
    kinds["w"].CopyFrom(numpy_helper.from_array(np.ones((16, 8), np.float32), "w"))
    kinds["bias"].name = "beta"
    base.graph.node[0].input[2] = "beta"
    assert sorted(differences(before, of(base, tmp_path / "b.onnx"), "b.onnx")) == [
        "'beta' (float32 16) is unknown to the plan",
        "'bias' (float32 16) is missing in b.onnx",
        "'scale' is float16 16 in b.onnx, the plan needs float32 16",
        "'w' is float32 16x8 in b.onnx, the plan needs float32 16x16",
    ]


def operator(model):
    model.graph.node[2].op_type = "LogSoftmax"


def attribute(model):
    model.graph.node[2].attribute[0].i = 0


def wiring(model):
    model.graph.node[2].input[0] = "n"


def opset(model):
    model.opset_import[0].version = 20


def an_input(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3


@pytest.mark.parametrize("change", [operator, attribute, wiring, opset, an_input])
def test_another_architecture_with_the_same_weights(base, tmp_path, change):
    before = of(base, tmp_path / "a.onnx")
    change(base)
    (fault,) = differences(before, of(base, tmp_path / "b.onnx"), "b.onnx")
    assert "the graph of b.onnx is another" in fault


def coupled(path, flat):
    model = onnx.load(tiny_models.coupled(path))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(flat), "flat"))
    return of(model, path)


def test_integer_constants_belong_to_the_structure(tmp_path):
    first, same, other = (coupled(tmp_path / "m.onnx", f) for f in ([-1, 4], [-1, 4], [-1, 2]))
    assert first == same
    assert first.weights == {}
    assert len(differences(first, other, "m.onnx")) == 1


def constants(path, value, bound):
    """A Constant of the main graph, and one in the branches of an If."""
    branch = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(bound)),
            helper.make_node("Mul", ["x", "c"], ["r"]),
        ],
        "branch",
        [],
        [tiny_models.tensor("r", TensorProto.FLOAT, [2])],
    )
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(value)),
        helper.make_node("If", ["b"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["i", "k"], ["y"]),
    ]
    inputs = [
        tiny_models.tensor("x", TensorProto.FLOAT, [2]),
        tiny_models.tensor("b", TensorProto.BOOL, []),
    ]
    outputs = [tiny_models.tensor("y", TensorProto.FLOAT, [2])]
    return refit_signature(read_model(tiny_models.save(path, nodes, inputs, outputs)))


def test_constants_are_weights_too_in_bodies_as_well(tmp_path):
    one, two = np.ones(2, np.float32), np.full(2, 2, np.float32)
    first, second = (constants(tmp_path / "m.onnx", *pair) for pair in ((one, two), (two, one)))
    assert set(first.weights) == {"k", "c"}
    assert first.structure == second.structure
    assert first.weights["k"] == second.weights["c"]
    assert first.weights["k"] != first.weights["c"]


def test_a_weight_that_no_node_reads_does_not_count(base, tmp_path):
    before = of(base, tmp_path / "a.onnx")
    base.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "dead"))
    assert of(base, tmp_path / "b.onnx") == before


def test_what_a_batch_normalization_reads_is_folded(tmp_path):
    names = ["scale", "bias", "mean", "var"]
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [helper.make_node("BatchNormalization", ["x", *names], ["y"])],
        [tiny_models.tensor("x", TensorProto.FLOAT, [1, 2, 3])],
        [tiny_models.tensor("y", TensorProto.FLOAT, [1, 2, 3])],
        {name: np.ones(2, np.float32) for name in names},
    )
    assert fold_sources(read_model(path)) == set(names)
