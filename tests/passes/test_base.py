"""The interface of passes: conditions before and after, records and summaries."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import model

from trt_native.config import BuildConfig, Precision
from trt_native.errors import ModelError
from trt_native.passes.base import GraphPass, PassContext, ResolvedPrecision, count_text

CONTEXT = PassContext(config=BuildConfig(), precision=ResolvedPrecision())
RELUS = "(float[2] x) => (float[2] y) { h = Relu(x) y = Relu(h) }"


class ReplaceRelu(GraphPass):
    """Writes another operator in the place of every Relu, or of some."""

    name = "replace_relu"
    title = "Replacing Relu"
    typed = True
    most = 9

    def needed(self, model):
        return any(node.op_type == "Relu" for node in model.graph)

    def rewrite(self, model):
        found = [node for node in model.graph if node.op_type == "Relu"][: self.most]
        for node in found:
            node.op_type = "Neg"
        return {"nodes": {"Relu": len(found)} if found else {}}


class ReplaceOne(ReplaceRelu):
    most = 1


def test_a_pass_records_what_it_did():
    graph, replace = model(RELUS), ReplaceRelu(CONTEXT)
    assert replace.record == {}
    result = replace(graph)
    assert result.model is graph
    assert [node.op_type for node in graph.graph] == ["Neg", "Neg"]
    assert replace.record == {"nodes": {"Relu": 2}}
    assert replace.summarize(replace.record) == "Replacing Relu: 2 Relu"


def test_records_of_two_instances_are_separate():
    first, second = ReplaceRelu(CONTEXT), ReplaceRelu(CONTEXT)
    first(model(RELUS))
    assert second.record == {}


def test_types_are_there_when_a_typed_pass_runs():
    class Typed(ReplaceRelu):
        def rewrite(self, model):
            self.types = [node.outputs[0].dtype for node in model.graph]
            return super().rewrite(model)

    class Untyped(Typed):
        typed = False

    for kind, expected in ((Typed, ir.DataType.FLOAT), (Untyped, None)):
        found = kind(CONTEXT)
        found(model(RELUS))
        assert found.types == [expected, ir.DataType.FLOAT]


def test_a_model_with_functions_is_not_normalized():
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18, "local": 1]>
        g (float[2] x) => (float[2] y) { y = local.negate(x) }
        <opset_import: ["": 18], domain: "local">
        negate (a) => (b) { b = Neg(a) }"""
    )
    with pytest.raises(ir.passes.PreconditionError, match="replace_relu: the model has functions"):
        ReplaceRelu(CONTEXT)(ir.from_proto(proto))


def test_unknown_types_stop_a_typed_pass():
    graph = model(RELUS)
    graph.graph[0].domain = "own"
    graph.opset_imports["own"] = 1
    with pytest.raises((ModelError, ir.passes.PreconditionError)) as caught:
        ReplaceRelu(CONTEXT)(graph)
    causes = (caught.value, caught.value.__cause__)
    assert any("the type of value 'h'" in str(error) for error in causes)


def test_a_pass_that_leaves_work_fails():
    with pytest.raises(ir.passes.PostconditionError, match="replace_relu: the model still needs"):
        ReplaceOne(CONTEXT)(model(RELUS))


@pytest.mark.parametrize(
    ("record", "summary"),
    [
        ({}, "Replacing Relu"),
        ({"nodes": {}}, ""),
        ({"nodes": {"Mean": 2, "Trilu": 1}}, "Replacing Relu: 2 Mean, 1 Trilu"),
    ],
)
def test_summaries(record, summary):
    assert ReplaceRelu(CONTEXT).summarize(record) == summary


def test_without_a_preview_a_pass_predicts_nothing():
    graph = model(RELUS)
    assert ReplaceRelu(CONTEXT).preview(graph) == {}
    assert ReplaceRelu(CONTEXT).needed(graph)


def test_count_text():
    assert count_text({}) == ""
    assert count_text({"Mean": 2}) == "2 Mean"
    assert count_text({"Trilu": 1, "Mean": 2}) == "1 Trilu, 2 Mean"


@pytest.mark.parametrize(
    ("precision", "flags", "text"),
    [
        (ResolvedPrecision(), Precision.FP16, "as in the model"),
        (ResolvedPrecision(applied=Precision.BF16), Precision.BF16, "bf16"),
        (ResolvedPrecision(applied=Precision.TF32), Precision.TF32, "tf32"),
        (ResolvedPrecision(applied=Precision.INT8, calibrates=True), Precision.FP16, "int8"),
    ],
)
def test_resolved_precisions(precision, flags, text):
    assert precision.builder_flags is flags
    assert str(precision) == text
