"""Fused operators written out, against outputs of ONNX Runtime 1.32 on the CPU, and of PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.contrib_cases import ONNXRUNTIME, Case, torch_cases
from helpers.passes import pass_records
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from trt_native import build_plan
from trt_native.backends.registry import load_backend
from trt_native.config import BuildConfig
from trt_native.errors import BuildError, UnsupportedError
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.lower_fused import LowerFused
from trt_native.passes.pipelines import BUILD, CALIBRATE, select_passes
from trt_native.reference.evaluator import evaluator

torch = pytest.importorskip("torch")

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "onnxruntime_fused.json").read_text())
TORCH = torch_cases()
LOWER = LowerFused(PassContext(config=BuildConfig(), precision=ResolvedPrecision()))


def model_of(
    operator,
    shapes,
    outputs,
    opset=17,
    kind=TensorProto.FLOAT,
    domain="com.microsoft",
    made=None,
    **at,
):
    names = ["" if shape is None else f"i{n}" for n, shape in enumerate(shapes)]
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, "node", domain=domain, **at)],
        "fused",
        [
            helper.make_tensor_value_info(n, kind, s)
            for n, s in zip(names, shapes, strict=True)
            if n
        ],
        [helper.make_tensor_value_info(name, kind, made) for name in outputs if name],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("operator", GOLDEN)
def test_outputs_are_those_of_onnx_runtime(operator, opset, kind):
    case = GOLDEN[operator]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    arrays = [array and np.array(array, dtype) for array in case["inputs"]]
    outputs = ["y", "", "", "s"] if len(case["outputs"]) == 2 else ["y"]
    shapes = [None if array is None else array.shape for array in arrays]
    model = model_of(
        operator,
        shapes,
        outputs,
        opset,
        kind,
        case["domain"],
        np.shape(case["outputs"][0]),
        **case["attributes"],
    )
    assert LOWER.needed(model)
    LOWER(model)
    assert LOWER.record == {"nodes": {operator: 1}}
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    found = ReferenceEvaluator(made).run(
        None, {f"i{n}": a for n, a in enumerate(arrays) if a is not None}
    )
    tolerance = 2e-5 if dtype == np.float32 else 1e-2
    for array, expected in zip(found, case["outputs"], strict=True):
        assert array.dtype == dtype
        np.testing.assert_allclose(array, expected, rtol=tolerance, atol=tolerance)


def test_bias_add_adds_both():
    model = model_of("BiasAdd", [(1, 2, 4), (4,), (1, 2, 4)], ["y"])
    LOWER(model)
    ones = {"i0": np.ones((1, 2, 4), np.float32), "i1": np.arange(4, dtype=np.float32)}
    (found,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {**ones, "i2": 2 * ones["i0"]})
    np.testing.assert_array_equal(found[0, 0], [3, 4, 5, 6])


def test_types_are_inferred_between_two():
    model = model_of("Gelu", [(2, 4)], ["a"])
    first = next(iter(model.graph))
    relu = ir.node("Relu", [first.outputs[0]])
    relu.outputs[0].name = "b"
    last = ir.node("QuickGelu", [relu.outputs[0]], domain="com.microsoft")
    last.outputs[0].name = "c"
    model.graph.extend([relu, last])
    LOWER(model)
    assert [n.op_type for n in model.graph][-4:] == ["Relu", "Mul", "Sigmoid", "Mul"]


def lowered(case, opset, kind=np.float32):
    """Outputs of a case that is written out, in another type of its floating-point numbers."""
    narrow = {n: a.astype(kind) if a.dtype.kind == "f" else a for n, a in case.batch.items()}
    inputs = [a if a is None or a.dtype.kind != "f" else a.astype(kind) for a in case.inputs]
    outputs = [a if a.dtype.kind != "f" else a.astype(kind) for a in case.outputs]
    case = Case(case.operator, case.attributes, inputs, outputs, case.domain)
    model = ir.from_proto(case.model(opset))
    assert LOWER.needed(model)
    LOWER(model)
    assert LOWER.record["nodes"] == {case.operator: 1}
    assert LOWER.record.get("unpacked", 0) == (case.operator == "MatMulNBits")
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True)
    return case, evaluator(made.graph, {"": opset}).run(None, narrow)


@pytest.mark.parametrize("opset", [12, 18])
@pytest.mark.parametrize("name", [n for n, c in ONNXRUNTIME.items() if c.operator[0] != "Q"])
def test_each_form_is_that_of_onnx_runtime(name, opset):
    case, found = lowered(ONNXRUNTIME[name], opset)
    case.check(found)


@pytest.mark.parametrize(
    "name", ["multi_head_past", "attention_lengths", "grouped_next", "embedding"]
)
def test_fp16_stays_fp16(name):
    case, found = lowered(ONNXRUNTIME[name], 17, np.float16)
    case.check(found, 2e-2)


@pytest.mark.parametrize("name", TORCH)
def test_each_form_is_that_of_pytorch(name):
    case, found = lowered(TORCH[name], 17)
    case.check(found, 2e-5)


@pytest.mark.parametrize("opset", [9, 10])
def test_models_of_old_opsets_are_raised(opset):
    case = ONNXRUNTIME["multi_head_past"]
    model = ir.from_proto(case.model(opset))
    LOWER(model)
    version = model.opset_imports[""]
    assert version == 13
    case.check(evaluator(ir.to_proto(model).graph, {"": version}).run(None, case.batch))


def test_layers_share_their_mask():
    text = """<ir_version: 8, opset_import: ["": 11, "com.microsoft": 1]>
    g (int32[b, s] ids, int32[b, s] kept, float[9, 8] words, float[9, 8] rows, float[8] g,
       float[8, 24] w) => (float[b, s, 8] y)
    {
        h, n = com.microsoft.EmbedLayerNormalization (ids, , words, rows, , g, g, kept)
        k = com.microsoft.Attention <num_heads = 2> (h, w, , n)
        m = com.microsoft.SkipLayerNormalization (k, h, g)
        y = com.microsoft.Attention <num_heads = 2> (m, w, , n)
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    LOWER(model)
    operators = [node.op_type for node in model.graph]
    assert (operators.count("Softmax"), operators.count("Where")) == (2, 1)


def test_shapes_behind_them_are_folded():
    text = """<ir_version: 8, opset_import: ["": 11, "com.microsoft": 1]>
    g (float[1, 4] x, float[4, 3] w) => (float[3] y)
    { a = com.microsoft.FusedMatMul (x, w) y = Squeeze (a) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    passes = [one.name for one in select_passes(BUILD, model, LOWER.context)]
    assert passes[:2] == ["lower_fused", "fold_shapes"]
    (squeeze,) = [node for node in model.graph if node.op_type == "Squeeze"]
    assert squeeze.attributes["axes"].as_ints() == (0,)


def test_norms_before_onnx_had_them(rng):
    x, scale, bias = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 4), (4,), (4,)))
    layer = torch.nn.functional.layer_norm
    expected = layer(torch.tensor(x), (4,), torch.tensor(scale), torch.tensor(bias), 1e-3)
    at = {"epsilon": 1e-3, "axis": 2}
    case = Case("LayerNormalization", at, [x, scale, bias], [expected.numpy()], "")
    case, found = lowered(case, 11)
    case.check(found, 2e-5)
    assert not LOWER.needed(ir.from_proto(case.model(17)))


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        (
            "multi_head_lengths",
            {"i0": ["b", "s", 8], "i1": ["b", "t", 8], "i2": ["b", "t", 12], "i4": ["b"]},
        ),
        ("attention_past", {"i0": ["b", "s", 6], "i3": ["b", "t"], "i4": [2, "b", 2, "p", 4]}),
        (
            "grouped_more",
            {"i0": ["b", "s", 64], "i1": ["b", "s", 32], "i2": ["b", "s", 32],
             "i3": ["b", 2, "p", 16], "i4": ["b", 2, "p", 16], "i5": ["b"]},
        ),
        ("embedding", {"i0": ["b", "s"], "i1": ["b", "s"], "i7": ["b", "s"]}),
        ("rotary_interleaved", {"i0": ["b", "s", 8]}),
    ],
)  # fmt: skip
def test_extents_may_be_dynamic(name, axes):
    case = ONNXRUNTIME[name]
    outputs = {f"o{n}": [None] * array.ndim for n, array in enumerate(case.outputs)}
    model = ir.from_proto(case.model(axes=axes | outputs))
    LOWER(model)
    case.check(evaluator(ir.to_proto(model).graph, {"": 17}).run(None, case.batch))


@pytest.mark.backend
@pytest.mark.parametrize(
    ("name", "kind"),
    [("bits_4_blocks", "INT4"), ("bits_2_blocks", "INT4"), ("bits_4_blocks_zero_points", "INT8")],
)
def test_weights_stay_packed_in_blocks_where_the_backend_takes_them(name, kind):
    pytest.importorskip("tensorrt_rtx")
    context = PassContext(
        config=BuildConfig(), precision=ResolvedPrecision(), backend=load_backend("rtx")
    )
    one, case = LowerFused(context), ONNXRUNTIME[name]
    model = ir.from_proto(case.model(14))
    one(model)
    assert one.record == {"nodes": {"MatMulNBits": 1}}
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    dequantizer, product = made.graph.node
    assert (dequantizer.op_type, product.op_type) == ("DequantizeLinear", "MatMul")
    (weights,) = (t for t in made.graph.initializer if t.name == dequantizer.input[0])
    assert TensorProto.DataType.Name(weights.data_type) == kind
    case.check(evaluator(made.graph, {"": made.opset_import[0].version}).run(None, case.batch))
    assert context.backend.parser_refusals([made.SerializeToString()]) == [""]


def changed(name, inputs=(), **attributes):
    """A model of a case with other attributes, and inputs by their places."""
    case = ONNXRUNTIME[name]
    arrays = [*case.inputs, *[None] * 20][:17]
    for place, array in inputs:
        arrays[place] = array
    at = {**case.attributes, **attributes}
    return ir.from_proto(Case(case.operator, at, arrays, case.outputs).model())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            model_of("FusedConv", [(1, 1, 3, 3), (1, 1, 2, 2)], ["y"], activation="Other"),
            "activation Other",
        ),
        (
            model_of("SkipLayerNormalization", [(1, 2, 4), (1, 2, 4), (4,)], ["y", "mean"]),
            "'node', SkipLayerNormalization: returns statistics",
        ),
        (model_of("MultiHeadAttention", [(1, 2, 4)] * 3, ["y"]), "lacks num_heads"),
        (changed("multi_head_bias", [(8, np.zeros(1, np.int32))]), "buffers of past and present"),
        (changed("multi_head_bias", [(6, np.zeros((2, 2, 1, 4), np.float32))]), "keys or past"),
        (changed("attention", do_rotary=1), "rotates"),
        (changed("attention", past_present_share_buffer=1), "buffers of past and present"),
        (changed("grouped", causal=0), "not causal"),
        (changed("grouped", sliding_window_cache=1), "has sliding_window_cache"),
        (changed("grouped", [(14, np.zeros(16, np.float32))]), "q_norm_weight"),
        (changed("rotary", is_packed_batching=1), "is_packed_batching"),
        (changed("bits_4", weight_prepacked=1), "weight_prepacked"),
        (changed("bits_4", bits=3), "2, 4 nor 8"),
        (changed("embedding", [(1, None)]), "segments or their table"),
    ],
)
def test_what_has_no_plain_form_is_refused_by_name(model, message):
    with pytest.raises(UnsupportedError, match=message):
        select_passes([LowerFused], model, LOWER.context)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (changed("multi_head_bias", unidirectional=1), "not known to be as many as its queries"),
        (changed("multi_head_split", [(3, np.zeros(24, np.float32))]), "split into heads"),
        (changed("attention", [(3, np.zeros((2, 1, 4, 4), np.int32))]), "a mask of 4 axes"),
        (changed("attention", [(3, np.zeros(3, np.int32))]), "as many as the batch"),
        (
            model_of("NhwcConv", [(1, 5, 5, 3), (2, 3, 3, 3)], ["y"], kernel_shape=[3, 3]),
            "axis of channels is not clear",
        ),
    ],
)
def test_forms_that_shapes_rule_out_are_refused(model, message):
    with pytest.raises(UnsupportedError, match=message):
        select_passes([LowerFused], model, LOWER.context)


def test_operators_of_another_domain_stay():
    assert not LOWER.needed(model_of("Gelu", [(2, 4)], ["y"], domain="own"))


def test_a_clip_has_its_limits():
    at = {"activation": "Clip", "activation_params": [0.0, 6.0]}
    model = model_of("FusedConv", [(1, 1, 2), (1, 1, 1)], ["y"], made=(1, 1, 2), **at)
    LOWER(model)
    inputs = {"i0": np.array([[[-1, 9]]], np.float32), "i1": np.ones((1, 1, 1), np.float32)}
    (found,) = ReferenceEvaluator(ir.to_proto(model)).run(None, inputs)
    np.testing.assert_array_equal(found, [[[0, 6]]])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            model_of("FusedMatMul", [(2, 3), (4, 3)], ["y"], transB=1),
            "FusedMatMul 'node' reads 'i1'",
        ),
        (
            model_of("MultiHeadAttention", [(1, 2, 4)] * 3, ["y"], num_heads=2),
            "MultiHeadAttention 'node' reads 'i1'",
        ),
    ],
    ids=["product", "attention"],
)
def test_an_unknown_rank_is_an_error(model, message):
    model.graph.inputs[1].shape = None
    with pytest.raises(UnsupportedError, match=message):
        select_passes([LowerFused], model, LOWER.context)


@pytest.mark.backend
def test_fused_operators_build(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    at = {"transB": 1, "alpha": 0.5}
    model = model_of("FusedMatMul", [(2, 3), (4, 3)], ["a"], made=(2, 4), **at)
    (product,) = model.graph
    last = ir.node("FastGelu", [product.outputs[0]], domain="com.microsoft")
    last.outputs[0].name = "y"
    last.outputs[0].type, last.outputs[0].shape = model.graph.outputs[0].type, ir.Shape([2, 4])
    model.graph.append(last)
    model.graph.outputs[:] = last.outputs
    ir.save(model, tmp_path / "m.onnx")
    plan = build_plan(tmp_path / "m.onnx", BuildConfig())
    assert pass_records(plan.manifest)["lower_fused"]["nodes"] == {"FusedMatMul": 1, "FastGelu": 1}


@pytest.mark.backend
def test_other_operators_are_refused_by_name(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    ir.save(model_of("QOrderedGelu", [(2, 3), (1,), (1,)], ["y"], made=(2, 3)), tmp_path / "m.onnx")
    with pytest.raises(BuildError, match="has no QOrderedGelu"):
        build_plan(tmp_path / "m.onnx", BuildConfig(), backend="rtx")


def test_pipelines_write_them_out_before_types_are_decided():
    for pipeline in (BUILD, CALIBRATE):
        names = [one.name for one in pipeline]
        assert names.index("lower_fused") < names.index("replace_types") < names.index("autocast")
