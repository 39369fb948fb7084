"""Functions inlined, against onnx.reference on the model as it was."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from trt_native.errors import ModelError
from trt_native.graph.functions import check_inlined_size, inline_functions
from trt_native.graph.onnx_file import read_model

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


def doubling(levels):
    """Functions of which each calls the one before twice."""
    text = TEXT.split("    <opset")[0].replace("local.half", f"local.f{levels}")
    opsets = 'opset_import: ["": 18, "local": 1]'
    text += f'<{opsets}, domain: "local"> f0 (a) => (b) {{ b = Neg(a) }}'
    for i in range(1, levels + 1):
        body = f"c = local.f{i - 1}(a) b = local.f{i - 1}(c)"
        text += f'<{opsets}, domain: "local"> f{i} (a) => (b) {{ {body} }}'
    return ir.from_proto(onnx.parser.parse_model(text))


def test_functions_that_expand_to_too_many_nodes(tmp_path, monkeypatch):
    ir.save(doubling(60), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=rf"m.onnx: .* expand to {2 * 2**60:,} nodes"):
        read_model(tmp_path / "m.onnx")
    model = doubling(4)
    monkeypatch.setattr("trt_native.graph.functions._MOST_NODES", 2 * 2**4)
    check_inlined_size(model)
    monkeypatch.setattr("trt_native.graph.functions._MOST_NODES", 2 * 2**4 - 1)
    with pytest.raises(ModelError, match="expand to 32 nodes, and at most 31"):
        check_inlined_size(model)
    inline_functions(model)
    assert len(model.graph) == 32


def test_a_model_without_functions_stays():
    model = ir.from_proto(
        onnx.parser.parse_model(TEXT.split("    <opset")[0].replace("local.half", "Neg"))
    )
    before = ir.to_proto(model)
    assert inline_functions(model) == 0
    assert ir.to_proto(model) == before
