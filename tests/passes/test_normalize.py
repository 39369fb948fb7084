"""Functions inlined and constants lifted, against onnx.reference on both graphs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from trt_native.config import BuildConfig
from trt_native.errors import ModelError
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.normalize import Normalize, normalize

FUNCTIONS = """<ir_version: 10, opset_import: ["": 18, "local": 1]>
g (float[2, 4] x) => (float[2, 4] y) {
    k = Constant<value = float {0.5}>()
    h = local.outer(x)
    [scale] s = Mul(h, k)
    y = local.inner(s)
}
<opset_import: ["": 18], domain: "local">
inner (a) => (b) { two = Constant<value_float = 2.0>() b = Mul(a, two) }
<opset_import: ["": 18, "local": 1], domain: "local">
outer (a) => (b) { c = local.inner(a) b = Neg(c) }"""

BODY = """<ir_version: 10, opset_import: ["": 18]>
g (float[2] x, bool c) => (float[2] y, int64[2] k) {
    k = Constant<value_ints = [3, 4]>()
    y = If(c) <
        then_branch = t () => (float[2] a) { one = Constant<value_float = 1.0>() a = Add(x, one) },
        else_branch = e () => (float[2] b) { b = Identity(x) }
    >
}"""


def needed(model):
    context = PassContext(config=BuildConfig(), precision=ResolvedPrecision())
    return Normalize(context).needed(model)


def run(proto, **inputs):
    return ReferenceEvaluator(proto).run(None, inputs)


def test_functions_are_inlined_and_constants_lifted(rng):
    proto = onnx.parser.parse_model(FUNCTIONS)
    model = ir.from_proto(proto)
    assert needed(model)
    assert normalize(model) == {"functions": 2, "constants": 3}
    assert not needed(model)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    assert not result.functions
    assert {node.op_type for node in result.graph.node} == {"Mul", "Neg"}
    assert {"h", "s", "y"} <= {name for node in result.graph.node for name in node.output}
    assert "scale" in {node.name for node in result.graph.node}
    x = rng.standard_normal((2, 4), np.float32)
    np.testing.assert_array_equal(run(result, x=x)[0], -2 * x)
    np.testing.assert_array_equal(run(proto, x=x)[0], -2 * x)


def test_a_normalized_graph_stays():
    model = ir.from_proto(onnx.parser.parse_model(FUNCTIONS))
    normalize(model)
    before = ir.to_proto(model).SerializeToString()
    assert normalize(model) == {"functions": 0, "constants": 0}
    assert ir.to_proto(model).SerializeToString() == before


def test_constants_in_bodies_are_lifted_and_those_that_are_outputs_stay():
    proto = onnx.parser.parse_model(BODY)
    model = ir.from_proto(proto)
    assert needed(model)
    assert normalize(model) == {"functions": 0, "constants": 1}
    assert not needed(model)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    assert [node.op_type for node in result.graph.node] == ["Constant", "If"]
    x = np.array([1, 2], np.float32)
    for c in (True, False):
        before, after = run(proto, x=x, c=np.array(c)), run(result, x=x, c=np.array(c))
        for found, expected in zip(after, before, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_initializers_are_not_inputs_of_the_graph():
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]>'
        "g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }"
    )
    weight = np.array([1, 2], np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model = ir.from_proto(proto)
    assert needed(model)
    normalize(model)
    assert not needed(model)
    result = ir.to_proto(model)
    assert [value.name for value in result.graph.input] == ["x"]
    np.testing.assert_array_equal(run(result, x=np.zeros(2, np.float32))[0], weight)


@pytest.mark.parametrize(("domain", "opset"), [("own", 17), ("", 15)])
def test_only_a_model_of_custom_operators_alone_gets_an_opset(domain, opset):
    node = ir.node("Relu", [ir.Value(name="x")], domain=domain)
    graph = ir.Graph(
        [node.inputs[0]], node.outputs, nodes=[node], opset_imports={domain: 1 if domain else 15}
    )
    model = ir.Model(graph, ir_version=10)
    assert not needed(model)
    normalize(model)
    assert model.opset_imports[""] == opset


def test_a_function_that_calls_itself_is_an_error():
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18, "local": 1]>
        g (float[2] x) => (float[2] y) { y = local.again(x) }
        <opset_import: ["": 18, "local": 1], domain: "local">
        again (a) => (b) { b = local.again(a) }"""
    )
    with pytest.raises(ModelError, match="graph is malformed"):
        normalize(ir.from_proto(proto))


def test_its_record_is_not_in_the_summary():
    context = PassContext(config=BuildConfig(), precision=ResolvedPrecision())
    result = Normalize(context)
    result(ir.from_proto(onnx.parser.parse_model(FUNCTIONS)))
    assert result.record == {"functions": 2, "constants": 3}
    assert result.summarize(result.record) == ""
