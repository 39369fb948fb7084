"""Functions inlined, against onnx.reference on the model as it was."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from trt_native.graph.functions import inline_functions

TEXT = """<ir_version: 10, opset_import: ["": 18, "local": 1]>
    g (float[3] x) => (float[3] y) { h = local.half(x) y = local.half(h) }
    <opset_import: ["": 18], domain: "local">
    half (a) => (b) { two = Constant<value = float {2}>() b = Div(a, two) }"""


def test_calls_are_replaced_and_counted():
    proto = onnx.parser.parse_model(TEXT)
    x = np.arange(3, dtype=np.float32)
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    model = ir.from_proto(proto)
    assert inline_functions(model) == 2
    inlined = ir.to_proto(model)
    assert not inlined.functions
    assert {node.op_type for node in inlined.graph.node} == {"Constant", "Div"}
    assert "h" in {name for node in inlined.graph.node for name in node.output}
    (found,) = ReferenceEvaluator(inlined).run(None, {"x": x})
    np.testing.assert_array_equal(found, expected)


def test_a_model_without_functions_stays():
    model = ir.from_proto(
        onnx.parser.parse_model(TEXT.split("    <opset")[0].replace("local.half", "Neg"))
    )
    before = ir.to_proto(model)
    assert inline_functions(model) == 0
    assert ir.to_proto(model) == before
