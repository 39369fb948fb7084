"""Operators that the parser refuses, by ONNX's own definitions."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.backends import backend_or_skip
from helpers.metrics import relative_error
from helpers.onnx_node_tests import node_tests
from helpers.text_models import model, normal
from onnx.reference import ReferenceEvaluator

from trt_native.config import BuildConfig, Precision
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.lower_functions import LowerFunctions
from trt_native.passes.normalize import normalize
from trt_native.passes.replacement import ORIGIN_KEY

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def lowering():
    backend = backend_or_skip("rtx")
    context = PassContext(config=BuildConfig(), precision=ResolvedPrecision(), backend=backend)
    return LowerFunctions(context)


def _outputs(graph: ir.Model, inputs) -> list[np.ndarray]:
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto)
    names = [value.name for value in proto.graph.input]
    return ReferenceEvaluator(proto).run(None, dict(zip(names, inputs, strict=True)))


@pytest.mark.parametrize(
    ("module", "written"),
    [
        ("attention", 11),
        ("softmax_cross_entropy_loss", 8),
        ("negativeloglikelihoodloss", 4),
        ("layernormalization", 4),
        ("swiglu", 1),
        ("linear_attention", 3),
        ("causal_conv_with_state", 3),
        ("flexattention", 2),
        ("center_crop_pad", 1),
    ],
)
def test_a_definition_computes_what_the_operator_does(lowering, module, written):
    count = 0
    for case in node_tests(module)[::4]:  # all take 5 s
        graph = ir.from_proto(case.model)
        normalize(graph)
        if not lowering.needed(graph):
            continue
        lowering(graph)  # it checks that it is not needed any more
        count += 1
        for inputs, outputs in case.data_sets:
            for found, expected in zip(_outputs(graph, inputs), outputs, strict=True):
                assert (found.shape, found.dtype) == (expected.shape, expected.dtype), case.name
                limit = 1e-5 if expected.dtype == np.float32 else 1e-2
                wide = np.asarray(found, np.float32), np.asarray(expected, np.float32)
                np.testing.assert_allclose(*wide, limit, limit, err_msg=case.name)
    assert count >= written


def test_names_types_and_origin_stay(lowering):
    text = """(float[2, 4] x) => (float[2, 4] y, float[2, 1] mean, float[2, 1] m) {
        [first] a, m, s = LayerNormalization(x, w)
        [second] y, mean, scale = LayerNormalization(a, w) }"""
    graph = model(text, 20, w=normal(0, 4))
    before = [(value.name, value.dtype, value.shape) for value in graph.graph.outputs]
    expected = _outputs(graph, [normal(1, 2, 4)])
    lowering(graph)
    assert [(value.name, value.dtype, value.shape) for value in graph.graph.outputs] == before
    origins = [node.metadata_props.get(ORIGIN_KEY) for node in graph.graph]
    assert set(origins) == {"first", "second"}
    names = [node.name for node in graph.graph]
    assert len(set(names)) == len(names)
    assert {"first", "second"} <= set(names)
    for found, want in zip(_outputs(graph, [normal(1, 2, 4)]), expected, strict=True):
        assert relative_error(found, want) < 1e-6
    assert lowering.record == {"nodes": {"LayerNormalization": 2}}
    assert lowering.summarize(lowering.record).endswith("definition: 2 LayerNormalization")


def test_outputs_that_nothing_reads_are_left_out(lowering):
    text = "(float[2, 4] x) => (float[2, 4] y) { y, mean, scale = LayerNormalization(x, w) }"
    graph = model(text, 20, w=normal(0, 4))
    inputs = [normal(1, 2, 4)]
    (expected,) = _outputs(graph, inputs)
    lowering(graph)
    assert [(n.op_type, len(n.outputs)) for n in graph.graph] == [("LayerNormalization", 1)]
    np.testing.assert_array_equal(_outputs(graph, inputs), [expected])
    assert lowering.record == {"nodes": {}, "fewer_outputs": {"LayerNormalization": 1}}
    summary = lowering.summarize(lowering.record)
    assert summary == "without outputs that nothing reads: 1 LayerNormalization"


def test_what_the_parser_takes_stays(lowering):
    text = "(float[2, 4] x) => (float[2, 4] y) { a = LayerNormalization(x, w) y = Gelu(a) }"
    assert not lowering.needed(model(text, 20, w=normal(0, 4)))


def test_a_node_in_a_branch_is_written_out(lowering):
    text = """(float[2, 4] x, bool c) => (float[2, 4] y) {
        y = If(c) <
            then_branch = t () => (float[2, 4] p) {
                q, m, s = LayerNormalization(x, w) p = Add(q, m) },
            else_branch = e () => (float[2, 4] q) { q = Neg(x) }> }"""
    graph = model(text, 20, w=normal(0, 4))
    inputs = [normal(1, 2, 4), np.array(True)]
    (expected,) = _outputs(graph, inputs)
    lowering(graph)
    (found,) = _outputs(graph, inputs)
    assert relative_error(found, expected) < 1e-6


def test_attention_is_written_out_where_there_is_no_layer_for_it(lowering):
    text = "(float[1, 2, 4, 8] q) => (float[1, 2, 4, 8] y) { y = Attention(q, q, q) }"
    backend = lowering.context.backend
    assert not lowering.needed(model(text, 23))

    class Without(type(backend)):
        capabilities = dataclasses.replace(backend.capabilities, attention_layer=False)

        def __init__(self):
            self.__dict__.update(backend.__dict__)
            del self.capabilities

    without = LowerFunctions(dataclasses.replace(lowering.context, backend=Without()))
    graph = model(text, 23)
    inputs = [normal(0, 1, 2, 4, 8)]
    (expected,) = _outputs(graph, inputs)
    without(graph)
    kinds = {node.op_type for node in graph.graph}
    assert "Softmax" in kinds
    assert not kinds & {"Add", "Where"}  # there is no mask
    (found,) = _outputs(graph, inputs)
    assert relative_error(found, expected) < 1e-6


HIDDEN = np.array([[True, False], [False, False]])


@pytest.mark.parametrize(
    ("call", "mask", "written"),
    [
        ("Attention(q, q, q, m)", None, True),
        ("Attention(q, q, q, m)", HIDDEN, True),
        ("Attention(q, q, q, m)", np.where(HIDDEN, 0, -np.inf).astype(np.float16), True),
        ("Attention(q, q, q, m)", ~HIDDEN[:1], False),
        ("Attention(q, q, q, m)", np.where(HIDDEN, 0, -1e4).astype(np.float16), False),
        ("Attention<left_window_size = 1>(q, q, q)", HIDDEN, True),
        ("Attention<is_causal = 1>(q, q, q)", HIDDEN, False),
    ],
)
def test_attention_whose_queries_may_see_no_key_has_no_layer(lowering, call, mask, written):
    """A layer returns NaN where ONNX has 0, and takes no notice of windows."""
    given = "" if mask is not None else ", bool[2, 2] m"
    text = f"(float16[1, 2, 2, 8] q{given}) => (float16[1, 2, 2, 8] y) {{ y = {call} }}"
    used = {"m": mask} if mask is not None and "m)" in call else {}
    context = dataclasses.replace(lowering.context, config=BuildConfig(precision=Precision.FP16))
    assert LowerFunctions(context).needed(model(text, 25, **used)) == written


def test_statistics_of_attention_stay_in_fp32(lowering):
    text = """(float16[1, 2, 4, 8] q) => (float16[1, 2, 4, 8] y) {
        y = Attention <softcap = 2.0> (q, q, q) }"""
    graph = model(text, 23)
    lowering(graph)
    (softmax,) = (node for node in graph.graph if node.op_type == "Softmax")
    assert softmax.inputs[0].dtype is ir.DataType.FLOAT


@pytest.mark.parametrize(
    ("precision", "written"), [(Precision.FP32, True), (Precision.TF32, False)]
)
def test_strict_fp32_has_no_attention_layer(lowering, precision, written):
    text = "(float[1, 2, 4, 8] q) => (float[1, 2, 4, 8] y) { y = Attention(q, q, q) }"
    context = dataclasses.replace(lowering.context, config=BuildConfig(precision=precision))
    assert LowerFunctions(context).needed(model(text, 23)) == written
