"""Every pass over a corpus: what a pass owes for any graph."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models
from helpers.miscompiled_models import CASES
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from trt_native.backends.base import ALL_QUANTIZED_OPS, Capabilities
from trt_native.calibration.model_ranges import Ranges
from trt_native.config import BuildConfig, Precision
from trt_native.errors import UnsupportedError
from trt_native.graph.inference import infer_values
from trt_native.passes.base import GraphPass, PassContext, ResolvedPrecision
from trt_native.passes.normalize import normalize
from trt_native.passes.pipelines import (
    BUILD,
    CALIBRATE,
    CONVERT,
    QUANTIZE,
    describe_passes,
    run_passes,
    select_passes,
)

PASSES = tuple(dict.fromkeys((*BUILD, *CALIBRATE, *QUANTIZE, *CONVERT)))

TEXTS = {
    "dense": """<ir_version: 9, opset_import: ["": 19]>
        g (float[2,16] x) => (float[2,16] y)
        <float[16,16] w> { m = MatMul (x, w) r = Relu (m) y = Softmax (r) }""",
    "constants and a function": """<ir_version: 10, opset_import: ["": 19, "f": 1]>
        g (float[2,16] x) => (float[2,16] y)
        { k = Constant <value_float = 0.5> () s = Mul (x, k) y = f.Twice (s) }
        <domain: "f", opset_import: ["": 19]> Twice (a) => (c) { b = Neg (a) c = Sub (a, b) }""",
    "a transform": """<ir_version: 10, opset_import: ["": 20]>
        g (float[2,6,1] x) => (float[2,4,2] y) { y = DFT <onesided = 1> (x) }""",
    "a branch": """<ir_version: 9, opset_import: ["": 19]>
        g (float[2,16] x, bool c) => (float[2,16] y)
        { y = If (c) <then_branch = t () => (float[2,16] p) { p = Neg (x) },
          else_branch = e () => (float[2,16] q) { r = Mean (x, x) q = Relu (r) }> }""",
    "a dynamic branch": """<ir_version: 9, opset_import: ["": 19]>
        g (float[n,16] x, bool c) => (float[n,16] y)
        { y = If (c) <then_branch = t () => (float[n,16] p) { p = Neg (x) },
          else_branch = e () => (float[n,16] q) { q = Relu (x) }> }""",
    "a branch by a shape": """<ir_version: 9, opset_import: ["": 19]>
        g (float[n,16] x) => (float[n,16] y)
        { k = Constant <value = int64 {1}> () s = Shape (x) e = Gather (s, k) t = Squeeze (e)
          l = Constant <value = int64 {16}> () c = Equal (t, l)
          y = If (c) <then_branch = t () => (float[n,16] p) { p = Neg (x) },
          else_branch = e () => (float[n,16] q) { q = Relu (x) }> }""",
    "a small recurrent layer": """<ir_version: 9, opset_import: ["": 17]>
        g (float[5,1,3] x) => (float[5,1,1,2] y) <float[1,6,3] w, float[1,6,2] r>
        { y = GRU <hidden_size = 2> (x, w, r) }""",
    "convolution and norm": """<ir_version: 9, opset_import: ["": 21]>
        g (float[1,16,6,6] x) => (float[1,16,6,6] y) <float[16,16,3,3] w, float[16] s, float[16] b>
        { a = Conv <pads = [1,1,1,1]> (x, w) n = GroupNormalization <num_groups = 1> (a, s, b)
          i = InstanceNormalization (n, s, b) y = Add (i, a) }""",
    "shapes": """<ir_version: 9, opset_import: ["": 19]>
        g (float[n,16] x) => (float[m,4] y)
        { s = Shape (x) t = Constant <value = int64[2] {-1, 4}> () y = Reshape (x, t) }""",
    "integers": """<ir_version: 9, opset_import: ["": 19]>
        g (int64[4] x) => (int64[4] y) { y = Add (x, x) }""",
    "doubles": """<ir_version: 9, opset_import: ["": 19]>
        g (float[2,2] x) => (float[2,2] y)
        { c = Constant <value = double[2] {0.1, 3.0}> () d = Sqrt (c) e = Cast <to = 11> (x)
          f = Mul (e, d) y = Cast <to = 1> (f) }""",
    "bits": """<ir_version: 9, opset_import: ["": 19]>
        g (uint8[4] x, int32[4] w) => (uint8[4] y, int32[4] z)
        { y = BitwiseNot (x) z = BitwiseOr (w, w) }""",
    "dynamic quantization": """<ir_version: 9, opset_import: ["": 19]>
        g (float[2,4] x) => (float[2,3] y)
        { w = Constant <value = int8[4,3] {1, 9, -3, 4, 5, 8, 7, -127, 2, 3, 4, 5}> ()
          q, s, z = DynamicQuantizeLinear (x) m = MatMulInteger (q, w, z)
          f = Cast <to = 1> (m) y = Mul (f, s) }""",
    "reductions in a row": """<ir_version: 9, opset_import: ["": 18]>
        g (float[2,4,5] x) => (float[2,1,1] y)
        { a = Softmax <axis = 0> (x) i = Constant <value = int64[2] {1, 2}> ()
          y = ReduceMax (a, i) }""",
    "a broadcast softmax": """<ir_version: 9, opset_import: ["": 18]>
        g (float[n,1,6] x, float[n,3,6] z) => (float[n,3,6] y)
        { a = Softmax (x) y = Mul (a, z) }""",
    "tokens as an image": """<ir_version: 9, opset_import: ["": 18]>
        g (float16[n,6,4] x) => (float16[n,4,2,3] y)
        { t = Transpose <perm = [0, 2, 1]> (x) i = Constant <value = int64[4] {0, 4, 2, -1}> ()
          y = Reshape (t, i) }""",
    "a convolution cast to integers": """<ir_version: 9, opset_import: ["": 18]>
        g (float[1,16,8] x) => (int32[1,16,6] y) <float[16,16,3] w>
        { a = Conv (x, w) y = Cast <to = 6> (a) }""",
    "a norm with its statistics": """<ir_version: 9, opset_import: ["": 19]>
        g (float[2,16] x) => (float[2,16] y, float[2,1] m) <float[16] w>
        { y, m, s = LayerNormalization (x, w) }""",
    "several means": """<ir_version: 9, opset_import: ["": 19]>
        g (float[2,16] x) => (float[2,16] y)
        { a = Mean (x, x, x) b = Trilu (a) y = ReduceL1 <noop_with_empty_axes = 1> (b) }""",
}


def model_of(name):
    if name not in TEXTS:
        return CASES[name]().model
    proto = onnx.parser.parse_model(TEXTS[name])
    rng = np.random.default_rng(0)
    for weight in proto.graph.value_info:
        shape = [d.dim_value for d in weight.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape, np.float32) / 8
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, weight.name))
    del proto.graph.value_info[:]
    return proto


CORPUS = (*TEXTS, "triangle", "squares", "average of padding", "group norm")
CORPUS = tuple(name for name in CORPUS if name in TEXTS or name in CASES)


class Weakly:
    """The facts of a backend that passes read."""

    product, version, name = "TensorRT", "10.0.0", "trt10"
    capabilities = Capabilities(
        weakly_typed=True,
        timing_cache=False,
        build_needs_gpu=False,
        int8_calibrator=False,
        exact_fp32=False,
        targets=(),
        quantized_ops=ALL_QUANTIZED_OPS,
        unsupported_options={},
        dynamic_conditionals=False,
        small_recurrent=False,
    )

    def parser_refusals(self, models):
        nodes = [onnx.load_model_from_string(model).graph.node for model in models]
        refused = [any(n.op_type in ("LayerNormalization", "DFT") for n in one) for one in nodes]
        return ["refused" if is_refused else "" for is_refused in refused]


def context_for(pass_type, model):
    """What makes the pass do as much as it can."""
    outputs = [v.name for n in model.graph for v in n.outputs if v.name and not v.is_graph_output()]
    ranges = {v.name: 4.0 for n in model.graph for v in n.inputs if v is not None and v.name}
    quantizes = pass_type.name == "quantize"
    lowers = pass_type.name == "autocast"
    precision = Precision.INT8 if quantizes else Precision.FP16 if lowers else Precision.FP32
    return PassContext(
        config=BuildConfig(precision=precision),
        precision=ResolvedPrecision(
            applied=Precision.FP16 if pass_type.name == "pin_fp32_nodes" else precision,
            strongly_typed=pass_type.name != "pin_fp32_nodes",
            lowered_to=Precision.FP16 if lowers else None,
            writes_qdq=quantizes,
        ),
        backend=Weakly(),
        ranges=Ranges(ranges, {}, {}),
        extra_outputs=tuple(outputs[:1]),
        opset=23 if pass_type.name == "change_opset" else None,
    )


def applies(one, model):
    has_products = any(node.op_type in ("Conv", "MatMul", "Gemm") for node in model.graph)
    return one.needed(model) and (one.name != "quantize" or has_products)


def interface(proto):
    values = (*proto.graph.input, *proto.graph.output)
    return [(v.name, v.type.tensor_type.elem_type, v.type.tensor_type.shape) for v in values]


def inputs_of(proto, rng):
    found = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or 2 for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if np.issubdtype(dtype, np.floating):
            found[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            found[value.name] = rng.integers(0, 2, shape).astype(dtype)
    return found


def text_of(model):
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.parametrize("pass_type", PASSES, ids=lambda one: one.name)
def test_a_pass_keeps_what_the_model_means(pass_type, name, rng):
    proto = model_of(name)
    model = ir.from_proto(proto)
    if pass_type.name != "normalize":
        normalize(model)
        infer_values(model)
    one = pass_type(context_for(pass_type, model))
    if not applies(one, model):
        return
    preview = one.preview(model)
    assert isinstance(one.summarize({**preview, **one.record} or preview), str)
    one(model)  # requires and ensures hold
    made = ir.to_proto(model)
    if name != "groups of opset 18":
        onnx.checker.check_model(made, full_check=True)
    added = 1 if pass_type.name == "mark_outputs" else 0
    kept = interface(made)
    assert kept[: len(kept) - added] == interface(proto)
    assert one.summarize(one.record) == one.summarize(one.record)
    inputs = inputs_of(proto, rng)
    expected = ReferenceEvaluator(proto).run(None, inputs)
    found = ReferenceEvaluator(made).run(None, inputs)
    tolerance = {"quantize": 0.1, "autocast": 1e-2}.get(pass_type.name, 1e-5)
    for f, e in zip(found, expected, strict=False):
        assert (f.dtype, f.shape) == (e.dtype, e.shape)
        np.testing.assert_allclose(f, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.parametrize("pass_type", PASSES, ids=lambda one: one.name)
def test_a_pass_changes_nothing_the_second_time(pass_type, name):
    model = ir.from_proto(model_of(name))
    if pass_type.name != "normalize":
        normalize(model)
    context = context_for(pass_type, model)
    if not applies(pass_type(context), model):
        return
    pass_type(context)(model)
    once = text_of(model)
    again = pass_type(context)
    if again.needed(model):
        again(model)
    assert text_of(model) == once


@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.parametrize(
    "pipeline", [BUILD, CALIBRATE, CONVERT], ids=["build", "calibrate", "convert"]
)
def test_a_pipeline_describes_what_it_does(pipeline, name, rng):
    proto = model_of(name)
    model = ir.from_proto(proto)
    context = dataclasses.replace(
        context_for(next(p for p in BUILD if p.name == "autocast"), model), extra_outputs=()
    )
    passes = select_passes(pipeline, model, context)
    described = describe_passes(passes, model)
    done = run_passes(passes, model)
    assert [d["name"] for d in described] == [d["name"] for d in done]
    order = [one.name for one in pipeline]
    assert [d["name"] for d in done] == sorted((d["name"] for d in done), key=order.index)
    infer_values(model)
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    assert interface(made) == interface(proto)
    inputs = inputs_of(proto, rng)
    expected = ReferenceEvaluator(proto).run(None, inputs)
    for f, e in zip(ReferenceEvaluator(made).run(None, inputs), expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=2e-2, atol=2e-2)


def test_every_pass_has_a_name_and_a_title_of_its_own():
    for attribute in ("name", "title"):
        found = [getattr(one, attribute) for one in PASSES]
        assert len(set(found)) == len(found)
    assert all(issubclass(one, GraphPass) for one in PASSES)


def test_a_graph_with_functions_is_not_rewritten():
    model = ir.from_proto(model_of("constants and a function"))
    autocast = next(one for one in BUILD if one.name == "autocast")
    with pytest.raises(ir.passes.PreconditionError, match="functions"):
        autocast(context_for(autocast, model))(model)


def test_an_error_of_a_pass_comes_as_itself(tmp_path):
    path = tiny_models.save(
        tmp_path / "m.onnx",
        [
            onnx.helper.make_node(
                "ConvTranspose", ["x", "w"], ["y"], output_shape=[8, 8], auto_pad="SAME_UPPER"
            )
        ],
        [tiny_models.tensor(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in "xw"],
        [tiny_models.tensor("y", TensorProto.FLOAT, [1, 1, 8, 8])],
    )
    model = ir.load(path)
    context = context_for(BUILD[0], model)
    with pytest.raises(UnsupportedError, match="miscompile"):
        select_passes(BUILD, model, context)
