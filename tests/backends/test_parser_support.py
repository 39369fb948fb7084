"""Questions to a TensorRT's parser about single nodes."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import i64, model, normal

from trt_native.backends.parser_support import (
    one_node_model,
    reads_computed_shape,
    refusal_lines,
    refused_nodes,
)
from trt_native.graph.inference import infer_values

pytestmark = pytest.mark.backend


def _refused(graph: ir.Model, backend) -> dict[str, str]:
    infer_values(graph)
    found = refused_nodes(graph.graph, graph.opset_imports, backend)
    return {node.op_type: reason for node, reason in found.items()}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = Relu(x)", None),
        ("y = LpPool<kernel_shape = [2, 2], p = 2>(x)", None),
        ("y = LpPool<kernel_shape = [2, 2], p = 3>(x)", "Only L1 and L2"),
        ("y, mean, scale = LayerNormalization(x, w)", "1 outputs for LayerNormalization"),
        ("y = Det(x)", "not in this form"),
    ],
)
def test_the_answer_is_about_the_node_as_the_model_uses_it(backend, text, reason):
    outputs = "float[1, 2, 7, 7] y" if "Pool" in text else "float[1, 2, 8, 8] y"
    graph = model(f"(float[1, 2, 8, 8] x) => ({outputs}) {{ {text} }}", 20, w=normal(0, 8))
    found = _refused(graph, backend)
    assert [reason in why for why in found.values()] == ([] if reason is None else [True])


def test_types_decide(backend):
    found = [
        _refused(model(f"({kind}[4] x) => ({kind}[4] y) {{ y = Add(x, x) }}"), backend)
        for kind in ("int32", "uint8")
    ]
    assert found == [{}, {"Add": found[1]["Add"]}]
    assert "type is UInt8" in found[1]["Add"]


def test_large_weights_are_asked_as_inputs_and_then_as_constants(backend):
    graph = model(
        "(float[1, 400] x) => (float[1, 400] y) { y = MatMul(x, w) }", w=normal(0, 400, 400)
    )
    (node,) = graph.graph
    asked = one_node_model(node, graph.opset_imports)
    assert list(asked.inputs) == ["i0", "i1"]
    whole = one_node_model(node, graph.opset_imports, most_constant=None)
    assert list(whole.inputs) == ["i0"]
    (weight,) = whole.model.graph.initializer
    assert np.all(onnx.numpy_helper.to_array(weight) == 1)
    assert _refused(graph, backend) == {}


def test_a_shape_is_asked_with_its_values(backend):
    text = "(float[2, 3] x) => (float[3, 2] y) { y = Reshape(x, s) }"
    (node,) = model(text, s=i64(3, 2)).graph
    (shape,) = one_node_model(node, {"": 18}).model.graph.initializer
    assert onnx.numpy_helper.to_array(shape).tolist() == [3, 2]


def test_each_kind_is_asked_once(backend, monkeypatch):
    asked = []
    real = backend.parser_refusals
    monkeypatch.setattr(backend, "parser_refusals", lambda m: asked.append(len(m)) or real(m))
    text = "(float[3, 97] x) => (float[3, 97] y) { a = Elu(x) b = Elu(a) y = Elu(b) }"
    assert [_refused(model(text), backend) for _ in range(2)] == [{}, {}]
    assert asked == [1, 0]


def test_questions_leave_no_lines_in_the_log(backend, caplog):
    with caplog.at_level(logging.INFO, "trt_native"):
        _refused(model("(int64[3, 5] x) => (int64[3, 5] y) { y = Det(x) }"), backend)
    assert caplog.records == []


def test_nodes_of_unknown_types_are_not_asked(backend):
    graph = model("(float[2, 2, 2] x) => (float[2] y) { a = Identity(x) y = Det(a) }")
    assert refused_nodes(graph.graph, graph.opset_imports, backend) == {}


def test_a_computed_shape_cannot_be_asked_about(backend):
    text = """(float[n, 6] x, int64[k] t) => (float[2, m] y, float[2, l] z) {
        s = Shape(x) two = Constant<value = int64[1] {2}>() u = Concat<axis = 0>(two, s)
        y = Reshape(x, u) z = Reshape(x, t) }"""
    graph = model(text)
    infer_values(graph)
    nodes = {node.outputs[0].name: node for node in graph.graph}
    assert [name for name, node in nodes.items() if reads_computed_shape(node)] == ["u", "y"]


def test_a_range_of_computed_limits_cannot_be_asked_about(backend):
    text = """(float[n, 6] x) => (float[m] y) {
        zero = Constant<value_float = 0.0>() one = Constant<value_float = 1.0>()
        s = Shape<end = 1>(x) n = Squeeze(s) limit = Cast<to = 1>(n)
        y = Range(zero, limit, one) }"""
    graph = model(text)
    infer_values(graph)
    assert refused_nodes(graph.graph, graph.opset_imports, backend) == {}


def test_operators_that_crash_are_not_asked(backend, monkeypatch):
    lacking = dataclasses.replace(backend.capabilities, crashing_operators=frozenset({"Relu"}))
    monkeypatch.setattr(backend, "capabilities", lacking)
    monkeypatch.setattr(backend, "parser_refusals", lambda models: [None] * len(models))
    graph = model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    assert _refused(graph, backend) == {"Relu": "its import may end the process"}


def test_lines_name_operators_nodes_and_reasons():
    class Lacking:
        product, version = "TensorRT-RTX", "1.6.1.120"

        class capabilities:  # noqa: N801
            operators_elsewhere = {"NonZero": "TensorRT 10 and 11 do"}  # noqa: RUF012

    nodes = [ir.node(kind, [], name=f"n{i}") for i, kind in enumerate(("Det", "Det", "NonZero"))]
    nodes += [ir.node(f"Op{number}", [], name="x") for number in range(30)]
    reasons = ["no", "no", "plugin creator not found", *["bad"] * 30]
    lines = refusal_lines(
        dict(zip(nodes, reasons, strict=True)), {"a::Warp": "w", "Det": "n0"}, Lacking()
    )
    assert lines[:3] == [
        "Det 'n0' and 1 more: no; written as plain operators where it is of 4 by 4 elements or"
        " fewer",
        "NonZero 'n2': TensorRT-RTX 1.6 has no NonZero; TensorRT 10 and 11 do; written as plain"
        " operators where its input is a constant",
        "Op0 'x': bad",
    ]
    assert len(lines) == 20
    assert lines[-1] == "and 14 more"
