"""Structural problems of graphs, and errors about graphs that the code cannot work with."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import attention, conv_net, model

from trt_native.errors import ModelError, SpecError
from trt_native.graph import validity
from trt_native.graph.validity import all_tensors, graph_problems, root_cause, wraps_graph_errors


@wraps_graph_errors
def work(error):
    raise error


def test_a_bug_of_ours_is_distinguished_from_a_malformed_model():
    """The message names a line of the package, and what to do where the model is good."""
    with pytest.raises(ModelError) as caught:
        work(KeyError("axis"))
    text = caught.value.message
    assert "KeyError: 'axis' (at graph/validity.py:" in text
    assert "if it finds nothing, report a bug of trt-native" in text
    assert isinstance(caught.value.__cause__, KeyError)
    assert validity._place(ValueError()) == "unknown"


@pytest.mark.parametrize(
    "error", [SpecError("x"), OSError("x"), MemoryError(), KeyboardInterrupt()]
)
def test_other_errors_come_through(error):
    with pytest.raises(type(error)) as caught:
        work(error)
    assert caught.value is error


@pytest.mark.parametrize("make", [conv_net, lambda: attention(True)], ids=["convolutions", "norm"])
def test_valid_graphs_have_no_problems(make):
    original = make()
    onnx.checker.check_model(ir.to_proto(original), full_check=True)
    assert list(graph_problems(original)) == []


BODY = """(float[2] x, bool c) => (float[2] y) {
    y = If(c) <
        then_branch = t () => (float[2] a) {
            k = Constant<value = float[2] {1.0, 2.0}>()
            [inner] a = Add(x, k)
        },
        else_branch = e () => (float[2] b) { b = Add(x, w) }
    >
}"""


def body_model():
    return model(BODY, w=np.array([3, 4], np.float32))


def test_values_that_no_node_makes_are_problems_in_bodies_too():
    original = body_model()
    assert list(graph_problems(original)) == []
    inner = original.graph[0].attributes["then_branch"].as_graph().node("inner")
    inner.replace_input_with(1, ir.Value(name="lost"))
    (problem,) = graph_problems(original)
    assert problem.startswith("node 'inner' (Add) reads 'lost'")
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(ir.to_proto(original))


def test_outputs_that_no_node_makes_are_problems():
    original = model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    original.graph.outputs.append(ir.Value(name="z"))
    assert list(graph_problems(original)) == ["the output 'z' is not the output of any node"]


@pytest.mark.parametrize("version", [0, -1, 2**31])
def test_opsets_that_do_not_exist(version):
    original = model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    original.opset_imports[""] = version
    assert f"opset {version} of domain '' does not exist" in list(graph_problems(original))


def test_weights_without_their_data():
    proto = ir.to_proto(body_model())
    proto.graph.initializer[0].raw_data = b"123"
    (problem,) = graph_problems(ir.from_proto(proto))
    assert problem.startswith("weight 'w' of the shape (2,) does not have the data for it")
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto)


def test_all_tensors_includes_initializers_and_constants_of_bodies():
    found = sorted(tensor.numpy().tolist() for tensor in all_tensors(body_model()))
    assert found == [[1, 2], [3, 4]]


def test_all_tensors_includes_constants_of_functions():
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18, "local": 1]>
        g (float[2] x) => (float[2] y) { y = local.double(x) }
        <opset_import: ["": 18], domain: "local">
        double (a) => (b) { two = Constant<value = float {2.0}>() b = Mul(a, two) }"""
    )
    (tensor,) = all_tensors(ir.from_proto(proto))
    assert tensor.numpy() == 2


def test_the_root_cause_is_the_first_line_of_the_first_error():
    outer, inner = ValueError("outer"), KeyError("inner")
    outer.__cause__ = inner
    assert root_cause(outer) == "KeyError: 'inner'"
    assert root_cause(ValueError("one\ntwo")) == "ValueError: one"
    assert root_cause(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("kind", "field", "values", "found"),
    [
        (onnx.TensorProto.FLOAT, "float_data", [], "0 elements of data, and needs 6"),
        (onnx.TensorProto.FLOAT, "float_data", [1.0] * 5, "5 elements of data, and needs 6"),
        (onnx.TensorProto.INT64, "int64_data", [1] * 7, "7 elements of data, and needs 6"),
        (onnx.TensorProto.INT64, "int64_data", [1] * 6, None),
        (onnx.TensorProto.BFLOAT16, "int32_data", [1] * 3, "3 elements of data, and needs 6"),
        (onnx.TensorProto.INT4, "int32_data", [1] * 3, None),
        (onnx.TensorProto.COMPLEX64, "float_data", [1.0] * 12, None),
        (onnx.TensorProto.DOUBLE, "double_data", [], "0 elements of data, and needs 6"),
    ],
)
def test_weights_without_all_their_data_are_problems(kind, field, values, found):
    tensor = onnx.TensorProto(name="w", data_type=kind, dims=[2, 3])
    getattr(tensor, field).extend(values)
    problem = validity._tensor_problem(ir.from_proto(tensor))
    assert problem is None if found is None else problem == f"of the shape (2, 3) has {found}"
