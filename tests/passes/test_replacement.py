"""Nodes in the place of others, against onnx.reference on both graphs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import model, normal
from onnx.reference import ReferenceEvaluator

from trt_native.passes.replacement import ORIGIN_KEY, NameAuthority, ReplacementBuilder

SOFTMAX = """(float[2, 3] x) => (float[2, 3] y) {
    h = Relu(x)
    [softmax] y = Softmax<axis = -1>(h)
}"""


def run(graph, **inputs):
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    return ReferenceEvaluator(proto).run(None, inputs)


def split_softmax(graph):
    """Replace the softmax by its definition."""
    builder = ReplacementBuilder(graph.graph.node("softmax"), NameAuthority(graph), 18)
    exponents = builder.add("Exp", builder.node.inputs)
    total = builder.add("ReduceSum", [exponents, builder.constant(np.array([-1]))], keepdims=1)
    builder.replace(builder.add("Div", [exponents, total]))
    return builder


def test_replacements_compute_the_same():
    original = model(SOFTMAX)
    x = normal(0, 2, 3)
    (expected,) = run(original, x=x)
    split_softmax(original)
    np.testing.assert_allclose(run(original, x=x)[0], expected, rtol=1e-6)
    assert [node.op_type for node in original.graph] == ["Relu", "Exp", "ReduceSum", "Div"]


def test_names_of_the_replaced_node_and_its_outputs_stay():
    original = model(SOFTMAX)
    original.graph.node("softmax").metadata_props["namespace"] = "block"
    builder = split_softmax(original)
    assert builder.node.graph is None
    added = list(original.graph)[1:]
    assert [node.name for node in added] == [
        "softmax__exp_0",
        "softmax__reducesum_1",
        "softmax",
    ]
    assert original.graph.outputs[0].name == "y"
    assert original.graph.outputs[0].dtype == ir.DataType.FLOAT
    for node in added:
        assert node.metadata_props == {"namespace": "block", ORIGIN_KEY: "softmax"}
    names = [value.name for node in original.graph for value in node.outputs]
    assert len(set(names)) == len(names)


def test_nodes_without_a_name_are_replaced_too():
    original = model(SOFTMAX)
    original.graph.node("softmax").name = None
    node = list(original.graph)[-1]
    builder = ReplacementBuilder(node, NameAuthority(original), 18)
    builder.replace(builder.add("Neg", [builder.add("Neg", node.inputs)]))
    added = list(original.graph)[1:]
    assert len({item.name for item in added}) == 2
    assert {item.metadata_props[ORIGIN_KEY] for item in added} == {""}
    x = normal(0, 2, 3)
    np.testing.assert_array_equal(run(original, x=x)[0], np.maximum(x, 0))


def test_types_are_those_of_the_replaced_node_unless_given():
    original = model(SOFTMAX)
    builder = ReplacementBuilder(original.graph.node("softmax"), NameAuthority(original), 18)
    assert builder.kind == ir.DataType.FLOAT
    (source,) = builder.node.inputs
    assert builder.add("Exp", [source]).dtype == ir.DataType.FLOAT
    wide = builder.add("Cast", [source], ir.DataType.DOUBLE, to=ir.DataType.DOUBLE.value)
    assert wide.dtype == ir.DataType.DOUBLE
    assert builder.reshaped(wide, [6]).dtype == ir.DataType.DOUBLE


def test_the_kind_may_come_from_an_input():
    node = ir.node("Own", [None, ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16))])
    graph = ir.Graph([node.inputs[1]], [], nodes=[node], opset_imports={"": 18})
    builder = ReplacementBuilder(node, NameAuthority(ir.Model(graph, ir_version=10)), 18)
    assert builder.kind == ir.DataType.FLOAT16


def test_unused_outputs_may_be_left_out():
    original = model(
        """(float[1, 6] x) => (float[1, 3] b) {
            [split] a, b = Split<axis = 1, num_outputs = 2>(x)
        }"""
    )
    x = normal(0, 1, 6)
    builder = ReplacementBuilder(original.graph.node("split"), NameAuthority(original), 18)
    parts = builder.add_with("Split", builder.node.inputs, 2, {"axis": 1, "num_outputs": 2})
    builder.replace(None, builder.reshaped(parts[1], [1, 3]))
    np.testing.assert_array_equal(run(original, x=x)[0], x[:, 3:])
    assert len({value.name for node in original.graph for value in node.outputs}) == 3


def test_constants_are_initializers_of_their_own_type():
    original = model(SOFTMAX)
    builder = ReplacementBuilder(original.graph.node("softmax"), NameAuthority(original), 18)
    values = [builder.constant(np.float32(2)), builder.constant(np.array([1, 2]))]
    assert [value.name for value in values] == ["y__value", "y__value_"]
    assert [value.dtype for value in values] == [ir.DataType.FLOAT, ir.DataType.INT64]
    assert [tuple(value.shape) for value in values] == [(), (2,)]
    assert original.graph.initializers["y__value"] is values[0]


@pytest.mark.parametrize(
    "name",
    ["x", "w", "h", "y", "inner", "c"],
    ids=["input", "initializer", "value", "output", "value of a body", "condition"],
)
def test_taken_names_include_those_in_bodies(name):
    original = model(
        """(float[2] x, bool c) => (float[2] y) {
            h = Add(x, w)
            y = If(c) <
                then_branch = t () => (float[2] a) { inner = Neg(h) a = Relu(inner) },
                else_branch = e () => (float[2] b) { b = Identity(h) }
            >
        }""",
        w=np.zeros(2, np.float32),
    )
    names = NameAuthority(original)
    assert names.unique(name) == f"{name}_"
    assert names.unique(name) == f"{name}__"
    assert names.unique("free") == "free"
    assert names.unique("free") == "free_"


def test_a_new_value_has_the_shape_of_another_and_not_its_identity():
    original = model("(float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }")
    value = NameAuthority(original).value(original.graph.inputs[0], "fp16", ir.DataType.FLOAT16)
    assert (value.name, value.dtype) == ("x__fp16", ir.DataType.FLOAT16)
    assert str(value.shape) == str(original.graph.inputs[0].shape)
    value.shape[0] = 1
    assert str(original.graph.inputs[0].shape) == "[N,3]"
