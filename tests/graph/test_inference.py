"""Inferred types and shapes, against ONNX's own inference on the file."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from helpers.text_models import attention, conv_net, group_norm, model, time_embedding

from trt_native.errors import ModelError
from trt_native.graph.inference import (
    infer_behind,
    infer_proto,
    infer_shapes,
    infer_types,
    infer_values,
    known_type,
)

MODELS = {
    "convolutions": conv_net,
    "attention": lambda: attention(False),
    "norm": group_norm,
    "integers": time_embedding,
}


def by_onnx(original):
    """Type and shape of every value, as ONNX infers them."""
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(original), strict_mode=True)
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            tuple(d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim),
        )
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.name not in original.graph.initializers
    }


@pytest.mark.parametrize("infer", [infer_types, infer_values, infer_shapes])
@pytest.mark.parametrize("name", MODELS)
def test_values_are_as_onnx_infers_them(name, infer):
    original = MODELS[name]()
    expected = by_onnx(original)
    infer(original)
    values = [v for node in original.graph for v in node.outputs]
    found = {
        v.name: (v.dtype.value, tuple(d if isinstance(d, int) else d.value for d in v.shape))
        for v in values
    }
    assert found.keys() == expected.keys()
    for value, (dtype, shape) in expected.items():
        assert found[value][0] == dtype
        static = [(a, b) for a, b in zip(found[value][1], shape, strict=True) if isinstance(b, int)]
        assert all(a == b for a, b in static)


def test_given_shapes_stay():
    original = model("(float[2, 3] x) => (float[2, 3] y) { h = Relu(x) y = Relu(h) }")
    value = original.graph[0].outputs[0]
    value.shape = ir.Shape(["batch", 3])
    infer_values(original)
    assert value.dtype == ir.DataType.FLOAT
    assert str(value.shape) == "[batch,3]"


def test_known_types_are_not_inferred_again():
    original = model("(float[2, 3] x) => (float[2, 3] y) { h = Relu(x) y = Relu(h) }")
    value = original.graph[0].outputs[0]
    value.dtype = ir.DataType.FLOAT
    infer_types(original)
    assert value.shape is None


def test_operators_that_onnx_defines_by_others_have_a_type():
    original = model(
        """(float[1, 4, 2, 2] x) => (float[1, 4, 2, 2] y) {
            h = GroupNormalization<num_groups = 2>(x, w, w)
            y = Relu(h)
        }""",
        21,
        w=np.ones(4, np.float32),
    )
    infer_values(original)
    assert original.graph[0].outputs[0].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize(
    "norm", ["GroupNormalization<num_groups = 2>(x, w, w)", "MeanVarianceNormalization(x)"]
)
@pytest.mark.parametrize("infer", ["all", "behind"])
def test_norms_have_the_shape_of_what_they_normalize(norm, infer):
    original = model(
        f"""(float[2, 4, 3, 1] x) => (float[a, b, c, d] z) {{
            h = {norm}
            y = MeanVarianceNormalization(h)
            t = Transpose(y)
            z = Identity(t)
        }}""",
        21,
        w=np.ones(4, np.float32),
    )
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 1)).astype(np.float32)
    (expected,) = onnx.reference.ReferenceEvaluator(ir.to_proto(original)).run(None, {"x": x})
    value = original.graph.outputs[0].producer().inputs[0]
    if infer == "all":
        infer_values(original)
    else:
        infer_behind(original, [value])
    assert tuple(value.shape) == expected.shape


def test_values_in_bodies_are_inferred():
    original = model(
        """(float[4] x, bool c) => (float[4] y) {
            y = If(c) <
                then_branch = t () => (float[4] a) { h = Neg(x) a = Relu(h) },
                else_branch = e () => (float[4] b) { b = Identity(x) }
            >
        }"""
    )
    infer_values(original)
    branch = original.graph[0].attributes["then_branch"].as_graph()
    assert branch[0].outputs[0].dtype == ir.DataType.FLOAT
    assert tuple(branch[0].outputs[0].shape) == (4,)


def plugin_model(reader_domain):
    original = model("(float[4] x) => (float[4] y) { [plugin] h = Relu(x) [reader] y = Relu(h) }")
    for name in ("plugin", *(["reader"] if reader_domain else [])):
        original.graph.node(name).domain = "own"
    original.opset_imports["own"] = 1
    return original


def test_an_unknown_type_that_onnx_reads_is_an_error():
    original = plugin_model("")
    with pytest.raises(ModelError, match=r"the type of value 'h' \(Relu 'plugin'\) is neither"):
        infer_types(original)
    original.graph.node("plugin").outputs[0].dtype = ir.DataType.FLOAT
    infer_types(original)


def test_an_unknown_type_between_plugins_is_none_of_onnx():
    original = plugin_model("own")
    infer_types(original)
    assert original.graph.node("plugin").outputs[0].dtype is None


def test_known_type():
    assert known_type(ir.Value(name="x", type=ir.TensorType(ir.DataType.BOOL))) == ir.DataType.BOOL
    with pytest.raises(ModelError, match=r"the type of value 'x' \(no node\) is neither given nor"):
        known_type(ir.Value(name="x"))


def test_a_failed_inference_is_silent_and_leaves_the_logger_on(caplog):
    original = model("(float[2] x, float[2] z) => (float[2] y) { y = Add(x, z) }")
    original.graph.inputs[1].dtype = ir.DataType.INT64
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(ir.to_proto(original), check_type=True)
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    before = ir.to_proto(original).graph
    with caplog.at_level(logging.INFO):
        infer_shapes(original, check_type=True)
    assert caplog.records == []
    assert not logger.disabled
    assert ir.to_proto(original).graph.node == before.node


def test_large_weights_are_not_read():
    original = model(
        "(float[2, 64] x) => (float[2, 32] y) { h = MatMul(x, w) y = Relu(h) }",
        w=np.ones((64, 32), np.float32),
    )
    weight = original.graph.initializers["w"]
    tensor, reads = weight.const_value, []

    def read():
        reads.append(1)
        return tensor

    weight.const_value = ir.LazyTensor(read, tensor.dtype, tensor.shape)
    infer_shapes(original)
    assert tuple(original.graph[0].outputs[0].shape) == (2, 32)
    assert reads == []


@pytest.mark.parametrize(("length", "propagates"), [(1000, True), (100_000, False)])
@pytest.mark.parametrize("source", ["Range(zero, n, one)", "ConstantOfShape(shape)"])
def test_the_values_of_long_vectors_are_not_propagated(monkeypatch, length, propagates, source):
    # ONNX takes 140 bytes for each element of each vector, and so any memory for a vector of 1e12.
    proto = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 18]>
        g (float[2] x) => (float[2] y)
        <int64 zero = {{0}}, int64 one = {{1}}, int64 n = {{{length}}},
         int64[1] shape = {{{length}}}> {{
            r = {source} f = Cast<to = 1>(r) q = ReduceSum<keepdims = 0>(f) y = Add(x, q)
        }}""")
    real, asked = onnx.shape_inference.infer_shapes, []

    def infer(model, *args, data_prop=False, **options):
        asked.append(data_prop)
        return real(model, *args, data_prop=data_prop and propagates, **options)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", infer)
    found = infer_proto(proto)
    shapes = {v.name: v.type.tensor_type.shape.dim[0].dim_value for v in found.graph.value_info[:2]}
    assert shapes == {"r": length, "f": length}
    assert any(asked) == propagates
    asked.clear()
    graph = ir.from_proto(proto)
    infer_shapes(graph)
    assert [tuple(node.outputs[0].shape) for node in list(graph.graph)[:2]] == [(length,)] * 2
    assert any(asked) == propagates


def test_fused_operators_have_the_type_of_their_inputs():
    text = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
    g (float16[2, 4] x, int32[2, 4] i, float[4, 2] t) => (float16[2, 2] y, n, z)
    {
        a = com.microsoft.Gelu(x)
        b = Relu(a)
        y = com.microsoft.FusedMatMul(b, b)
        e, n = com.microsoft.EmbedLayerNormalization(i, , t, t, , t, t)
        z = Relu(e)
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    infer_types(model)
    kinds = {v.name: v.dtype for node in model.graph for v in node.outputs}
    half, full = ir.DataType.FLOAT16, ir.DataType.FLOAT
    assert kinds == {"a": half, "b": half, "y": half, "e": full, "n": ir.DataType.INT32, "z": full}


def test_a_part_is_inferred_as_the_whole_but_for_names_that_are_made_up():
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[batch, 4] x, bool[batch] kept) => (y, z)
    <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, int64[2] shape = {0, -1}>
    {
        a = MatMul(x, w)
        y = Reshape(a, shape)
        some = Compress <axis = 0> (a, kept)
        z = Relu(some)
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    made = {v.name: v for node in model.graph for v in node.outputs}
    infer_behind(model, [made["y"]])
    assert made["a"].shape == made["y"].shape == ["batch", 3]
    assert made["y"].dtype is made["a"].dtype is ir.DataType.FLOAT
    assert made["z"].type is made["some"].type is None
    infer_behind(model, [made["z"]])
    assert made["z"].shape == [None, 3]


def test_what_follows_a_branch_is_inferred_with_the_whole():
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[batch, 4] x, bool c) => (z)
    {
        y = If (c) <then_branch = t () => (a) { a = Relu (x) },
                    else_branch = e () => (b) { b = Neg (x) }>
        z = Exp (y)
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    made = {v.name: v for node in model.graph for v in node.outputs}
    infer_behind(model, [made["z"]])
    assert made["z"].dtype is ir.DataType.FLOAT
    assert made["z"].shape[1] == 4


def test_a_part_that_contradicts_itself_stays_unknown():
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2, 4] x, float[3, 5] w) => (z) { y = MatMul (x, w) z = Relu (y) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    made = {v.name: v for node in model.graph for v in node.outputs}
    infer_behind(model, [made["z"]])
    assert made["z"].shape is None


def test_sequences_are_not_taken_for_tensors():
    text = """<ir_version: 9, opset_import: ["": 18]>
        g (float[2,3] x) => (float[a,b] y)
        { e = SequenceEmpty <dtype = 1> () s = SequenceInsert (e, x)
          y = ConcatFromSequence <axis = 0> (s) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    infer_types(model)
    types = [node.outputs[0].type for node in model.graph]
    of = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    assert types == [of, of, ir.TensorType(ir.DataType.FLOAT)]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
