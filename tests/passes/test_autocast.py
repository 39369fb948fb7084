"""The FP16/BF16 rewrite, against onnx.reference on the FP32 graph and against TensorRT-RTX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import (
    attention,
    conv_net,
    f32,
    group_norm,
    i64,
    model,
    normal,
    time_embedding,
)
from onnx.reference import ReferenceEvaluator

from trt_native.errors import ModelError, SpecError, UnsupportedError
from trt_native.graph.types import is_reduced, reduced_types
from trt_native.passes.autocast import PrecisionReport, autocast
from trt_native.passes.normalize import normalize
from trt_native.passes.pin_fp32_nodes import fp32_node_names

FP16, BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
TOLERANCE = {FP16: 4e-3, BF16: 3e-2}


def run(graph: ir.Model | onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    proto = graph if isinstance(graph, onnx.ModelProto) else ir.to_proto(graph)
    return [np.asarray(y) for y in ReferenceEvaluator(proto).run(None, inputs)]


def checked(converted: ir.Model) -> onnx.ModelProto:
    """The converted model as a proto that ONNX accepts, types included."""
    proto = ir.to_proto(converted)
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    casts = [n for n in proto.graph.node if n.op_type == "Cast"]
    makers = {out: n for n in casts for out in n.output}
    ours = [n for n in casts if "__" in n.name]
    assert not [n.name for n in ours if n.input[0] in makers], "cast of a cast"
    weights = {w.name for w in proto.graph.initializer}
    assert not [n.name for n in casts if n.input[0] in weights], "cast of a weight"
    assert len({v.name for v in inferred.graph.value_info}) == len(inferred.graph.value_info)
    return proto


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def convert(
    original: ir.Model, target: ir.DataType = FP16, **options: Any
) -> tuple[ir.Model, PrecisionReport]:
    """Convert a copy, which must pass ONNX's checks."""
    converted = ir.from_proto(ir.to_proto(original))
    normalize(converted)
    report = autocast(converted, target, **options)
    checked(converted)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    return converted, report


def types(graph: ir.Model) -> dict[str, str]:
    """Type of every node output, by node name."""
    return {n.name: n.outputs[0].dtype.name for n in graph.graph if n.name and n.outputs[0].dtype}


def naive(original: ir.Model) -> onnx.ModelProto:
    """Every FP32 type made FP16, as a blind converter does."""
    proto = onnx.ModelProto.FromString(ir.to_proto(original).SerializeToString())
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for weight in proto.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    return proto


@pytest.mark.parametrize("target", [FP16, BF16])
@pytest.mark.parametrize("variance", [1.0, 1e-10, 1e9])
def test_batch_norm_is_reduced_without_losing_its_variance(target, variance):
    original = conv_net(variance)
    converted, report = convert(original, target)
    x = normal(9, 2, 3, 8, 8, scale=1 if variance < 1e6 else 0.1)
    assert relative(run(converted, x=x)[0], run(original, x=x)[0]) < TOLERANCE[target] * 3
    assert types(converted)["bn"] == target.name
    assert report.reduced == {"Conv": 2, "BatchNormalization": 1, "Relu": 1}
    assert (report.kept, report.casts, report.weights) == ({}, 2, 7)


def test_batch_norm_with_computed_parameters_stays_in_fp32():
    original = model(
        """(float[2, 3] x, float[3] var) => (float[2, 3] y) {
            [bn] y = BatchNormalization(x, one, zero, zero, var)
        }""",
        one=np.ones(3, np.float32), zero=np.zeros(3, np.float32),
    )  # fmt: skip
    _, report = convert(original)
    assert report.kept == {"statistics": {"BatchNormalization": 1}}
    assert report.casts == 0


@pytest.mark.parametrize("target", [FP16, BF16])
@pytest.mark.parametrize("fused", [True, False])
def test_attention_keeps_statistics_and_returns_to_reduced(fused, target):
    original = attention(fused)
    converted, report = convert(original, target)
    x = normal(9, 2, 6, 16)
    assert relative(run(converted, x=x)[0], run(original, x=x)[0]) < TOLERANCE[target]
    fp32 = {name for name, dtype in types(converted).items() if dtype == "FLOAT"}
    fp32 = {name for name in fp32 if "__" not in name and not name.startswith("y")}
    norm = {"mean", "centre", "square", "variance", "eps", "std", "norm", "gamma", "beta"}
    assert fp32 == ({"ln", "softmax"} if fused else norm | {"shift", "exp", "sum", "divide"})
    assert report.reduced["MatMul"] == 6


def test_fp32_statistics_survive_activations_that_overflow_fp16():
    original = group_norm()
    converted, report = convert(original)
    x = normal(9, 1, 8, 12, 12, scale=400.0)
    with np.errstate(all="ignore"):
        blind = run(naive(original), x=x.astype(np.float16))[1]
    expected = run(original, x=x)
    assert not np.isfinite(blind).all() or relative(blind, expected[1]) > 0.1
    for actual, wanted in zip(run(converted, x=x), expected, strict=True):
        assert relative(actual, wanted) < TOLERANCE[FP16]
    kinds = types(converted)
    for name in ("mean", "centre", "square", "variance", "eps", "std", "norm", "gamma", "beta"):
        assert kinds[name] == "FLOAT", name
    for name in ("sigmoid", "silu"):
        assert kinds[name] == "FLOAT", name
    for name in ("conv_in", "grouped", "conv_out", "residual"):
        assert kinds[name] == "FLOAT16", name
    assert report.kept["neighbors"] == {"Reshape": 1}


def test_a_norm_of_values_beyond_fp16_stays_in_fp32():
    original = model(
        """(float[N, 8, 12] x) => (float[N, 8, 12] y) {
            [wide] w = Mul(x, large)
            [norm] y = InstanceNormalization(w, ones, zeros)
        }""",
        large=f32(1e6), ones=np.ones(8, np.float32), zeros=np.zeros(8, np.float32),
    )  # fmt: skip
    converted, _ = convert(original)
    x = normal(9, 2, 8, 12)
    assert relative(run(converted, x=x)[0], run(original, x=x)[0]) < TOLERANCE[FP16]
    assert types(converted)["norm"] == "FLOAT"


def test_sigmoids_and_gelu_stay_in_fp32_unless_a_product_can_take_them():
    original = model(
        """(float[N, 8, 8] x) => (float[N, 8, 8] y, float[N, 8, 8] z) {
            [swish_sigmoid] s = Sigmoid(x)
            [swish] a = Mul(x, s)
            [product] p = MatMul(a, w)
            [bias] b = Add(p, w)
            [fused_sigmoid] f = Sigmoid(b)
            [fused_swish] y = Mul(b, f)
            [scaled] d = Div(x, root)
            [erf] e = Erf(d)
            [shifted] g = Add(e, one)
            [gelu] h = Mul(x, g)
            [halved] z = Mul(h, half)
        }""",
        w=normal(0, 8, 8), root=f32(2**0.5), one=f32(1), half=f32(0.5),
    )  # fmt: skip
    converted, report = convert(original)
    x = normal(9, 2, 8, 8)
    for actual, wanted in zip(run(converted, x=x), run(original, x=x), strict=True):
        assert relative(actual, wanted) < TOLERANCE[FP16]
    kinds = types(converted)
    wide = {name for name, kind in kinds.items() if kind == "FLOAT" and "__" not in name}
    assert wide == {"swish_sigmoid", "swish", "erf", "shifted", "gelu"}
    assert report.kept["activation"] == {"Sigmoid": 1, "Mul": 2, "Erf": 1, "Add": 1}


@pytest.mark.parametrize("target", [FP16, BF16])
def test_norms_whose_statistics_tensorrt_keeps_in_fp32_are_reduced(target):
    original = model(
        """(float[N, 8, 12] x) => (float[N, 8, 12] y) {
            [instance] i = InstanceNormalization(x, ones, zeros)
            [group] g = GroupNormalization<num_groups = 2>(i, gamma, beta)
            [layer] y = LayerNormalization(g, lg, lb)
        }""",
        opset=21, ones=np.ones(8, np.float32), zeros=np.zeros(8, np.float32),
        gamma=normal(0, 8), beta=normal(1, 8), lg=normal(2, 12), lb=normal(3, 12),
    )  # fmt: skip
    converted, _ = convert(original, target)
    x = normal(9, 2, 8, 12)
    for actual, wanted in zip(run(converted, x=x), run(original, x=x), strict=True):
        assert relative(actual, wanted) < TOLERANCE[target]
    kinds = types(converted)
    assert {kinds["instance"], kinds["group"]} == {target.name}
    assert kinds["layer"] == "FLOAT"


def test_square_of_a_plain_value_stays_in_fp32_up_to_the_reduction():
    original = model(
        """(float[2, 64] x) => (float[2, 64] y) {
            [double] a = Add(x, x)
            [square] q = Mul(a, a)
            [rows] r = Reshape(q, shape)
            [mean] m = ReduceMean(r, last)
            [root] s = Sqrt(m)
            [y] y = Div(a, s)
        }""",
        last=i64(-1), shape=i64(2, 64),
    )  # fmt: skip
    converted, _ = convert(original, io_precision="fp16")
    x = normal(0, 2, 64, scale=500.0).astype(np.float16)
    expected = run(original, x=x.astype(np.float32))[0]
    assert relative(run(converted, x=x)[0], expected) < TOLERANCE[FP16]
    assert types(converted)["double"] == "FLOAT16"
    assert types(converted)["rows"] == "FLOAT"


@pytest.mark.parametrize("target", [FP16, BF16])
def test_time_embedding_keeps_its_arguments(target):
    original = time_embedding()
    converted, _ = convert(original, target)
    t = i64(999, 3)
    assert relative(run(converted, t=t)[0], run(original, t=t)[0]) < TOLERANCE[target]
    kinds = types(converted)
    assert [kinds[n] for n in ("cast", "column", "argument", "sin", "cos")] == ["FLOAT"] * 5
    assert kinds["join"] == kinds["linear"] == target.name


def test_time_embedding_of_a_float_timestep_keeps_its_arguments():
    original = time_embedding()
    graph = original.graph
    graph.inputs[0].dtype = ir.DataType.FLOAT
    converted, _ = convert(original)
    t = f32(999.3, 3001.7)
    assert relative(run(converted, t=t)[0], run(original, t=t)[0]) < TOLERANCE[FP16]


def test_rotary_positions_pass_through_a_matrix_product():
    original = model(
        """(int64[1, S] ids, float[1, S, 8] q) => (float[1, S, 8] y) {
            [cast] p = Cast<to = 1>(ids)
            [column] c = Unsqueeze(p, two)
            [angles] a = MatMul(c, freqs)
            [pairs] ap = Concat<axis = -1>(a, a)
            [cos] k = Cos(ap)
            [rotate] y = Mul(q, k)
        }""",
        two=i64(2), freqs=normal(0, 1, 4),
    )  # fmt: skip
    converted, report = convert(original)
    ids, q = i64(*range(3000, 3016))[None], normal(1, 1, 16, 8)
    assert relative(run(converted, ids=ids, q=q)[0], run(original, ids=ids, q=q)[0]) < 2e-3
    assert report.kept["argument"] == {"MatMul": 1}
    assert types(converted)["rotate"] == "FLOAT16"


MASKED = """(float[1, 4, 4] x, bool[1, 4, 4] mask) => (float[1, 4, 4] y) {{
            [scores] z = MatMul(x, w)
            {mask}
            [softmax] p = Softmax(a)
            [mix] y = MatMul(p, w)
        }}"""


@pytest.mark.parametrize(
    "mask",
    [
        "[fill] a = Where(mask, z, low)",
        """[bits] b = Cast<to = 1>(mask)
            [inverse] i = Sub(one, b)
            [penalty] q = Mul(i, low)
            [apply] a = Add(z, q)""",
    ],
)
@pytest.mark.parametrize("low", [-1e9, float(np.finfo(np.float32).min)])
def test_mask_fill_stays_finite(mask, low):
    original = model(MASKED.format(mask=mask), w=normal(0, 4, 4), low=f32(low), one=f32(1.0))
    converted, report = convert(original)
    x, keep = normal(1, 1, 4, 4), np.tril(np.ones((1, 4, 4), bool))
    keep[0, 2] = False  # a row with everything masked must not be NaN
    expected = run(original, x=x, mask=keep)[0]
    assert relative(run(converted, x=x, mask=keep)[0], expected) < TOLERANCE[FP16]
    assert "range" in report.kept
    _, report = convert(original, BF16)
    assert "range" not in report.kept


def test_wide_value_is_clipped_where_fp16_must_hold_it():
    original = model(
        """(bool[2, 2] mask, float[2, 2] x) => (float[2, 2] bias, float[2, 2] y) {
            [fill] bias = Where(mask, zero, low)
            [product] y = MatMul(bias, x)
        }""",
        zero=f32(0.0), low=f32(-1e9),
    )  # fmt: skip
    converted, report = convert(original, io_precision="fp16")
    mask, x = np.array([[True, False], [True, True]]), normal(0, 2, 2).astype(np.float16)
    bias, _ = run(converted, mask=mask, x=x)
    np.testing.assert_array_equal(bias, np.array([[0, -65504], [0, 0]], np.float16))
    assert report.kept == {"range": {"Where": 1}}


def test_small_epsilon_keeps_its_node_and_the_division():
    original = model(
        """(float[4] x, float[4] d) => (float[4] y) {
            [guard] g = Add(d, tiny)
            [divide] y = Div(x, g)
        }""",
        tiny=f32(1e-12),
    )  # fmt: skip
    converted, report = convert(original)
    x = np.zeros(4, np.float32)
    np.testing.assert_array_equal(run(converted, x=x, d=x)[0], x)
    assert report.kept == {"range": {"Add": 1}, "statistics": {"Div": 1}}


def test_tensor_constants_are_clamped_and_infinities_kept():
    mask = np.array([[0, -1e9], [np.inf, -np.inf]], np.float32)
    original = model("(float[2, 2] x) => (float[2, 2] y) { y = Add(x, mask) }", mask=mask)
    converted, report = convert(original)
    weight = converted.graph.initializers["mask"].const_value
    np.testing.assert_array_equal(weight.numpy(), [[0, -65504], [np.inf, -np.inf]])
    assert report.clamped == 1


@pytest.mark.parametrize("target", [FP16, BF16])
def test_resize_scales_stay_fp32(target):
    original = model(
        """(float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) {
            [resize] y = Resize<mode = "linear">(x, , scales)
        }""",
        scales=f32(1, 1, 2, 2),
    )  # fmt: skip
    converted, report = convert(original, target)
    x = normal(0, 1, 2, 4, 4)
    assert relative(run(converted, x=x)[0], run(original, x=x)[0]) < TOLERANCE[target]
    assert converted.graph.initializers["scales"].dtype == ir.DataType.FLOAT
    assert report.reduced == {"Resize": 1}
    assert report.weights == 0


def branch(target_output: str = "y") -> ir.Model:
    return model(
        """(float[2, 4] x, bool cond) => (float[2, 4] y) {
            [before] h = MatMul(x, w)
            [choice] c = If(cond) <
                then_branch = t () => (float[2, 4] a) { a = Add(h, w_row) },
                else_branch = e () => (float[2, 4] d) {
                    k = Constant<value_float = 3.0>()
                    m = Mul(h, x)
                    d = Mul(m, k)
                }
            >
            [after] y = MatMul(c, w)
        }""",
        w=normal(0, 4, 4), w_row=normal(1, 4),
    )  # fmt: skip


@pytest.mark.parametrize("io_precision", ["keep", "fp16"])
def test_bodies_stay_in_fp32_and_capture_through_one_cast(io_precision):
    original = branch()
    converted, report = convert(original, io_precision=io_precision)
    x = normal(2, 2, 4)
    for cond in (np.array(True), np.array(False)):
        fed = x.astype(np.float16) if io_precision == "fp16" else x
        expected = run(original, x=x, cond=cond)[0]
        assert relative(run(converted, x=fed, cond=cond)[0], expected) < TOLERANCE[FP16]
    assert report.kept == {"subgraph": {"If": 1}}
    assert report.reduced == {"MatMul": 2}
    assert report.casts == (3 if io_precision == "fp16" else 4)
    assert converted.graph.initializers["w_row"].dtype == ir.DataType.FLOAT


def test_shared_weight_gets_both_types():
    original = model(
        """(float[2, 4] x) => (float[2, 4] y) {
            [scaled] a = Mul(x, w)
            [softmax] p = Softmax(a)
            [statistic] m = ReduceMean(p, last)
            [mix] b = Sub(m, w)
            [y] y = Add(a, b)
        }""",
        w=normal(0, 4), last=i64(-1),
    )  # fmt: skip
    converted, report = convert(original)
    x = normal(1, 2, 4)
    assert relative(run(converted, x=x)[0], run(original, x=x)[0]) < TOLERANCE[FP16]
    kinds = {n: v.dtype.name for n, v in converted.graph.initializers.items() if v.dtype}
    assert kinds == {"w": "FLOAT", "w__fp16": "FLOAT16", "last": "INT64"}
    assert (report.weights, report.weight_bytes_before, report.weight_bytes_after) == (1, 16, 8)


def test_external_weights_stay_on_disk_until_saved(tmp_path: Path):
    original = conv_net()
    ir.save(original, tmp_path / "fp32.onnx", external_data="fp32.data", size_threshold_bytes=0)
    loaded = ir.load(tmp_path / "fp32.onnx")
    autocast(loaded, FP16)
    weight = loaded.graph.initializers["w2"].const_value
    assert isinstance(weight, ir.LazyTensor)
    ir.save(loaded, tmp_path / "fp16.onnx", external_data="fp16.data", size_threshold_bytes=0)
    assert (tmp_path / "fp16.data").stat().st_size < (tmp_path / "fp32.data").stat().st_size * 0.6
    onnx.checker.check_model(tmp_path / "fp16.onnx", full_check=True)
    x = normal(9, 1, 3, 8, 8)
    actual = run(onnx.load(tmp_path / "fp16.onnx"), x=x)[0]
    assert relative(actual, run(original, x=x)[0]) < TOLERANCE[FP16]


def test_large_weight_is_not_read_by_the_conversion():
    original = model("(float[1, 512] x) => (float[1, 256] y) { y = MatMul(x, w) }",
                     w=normal(0, 512, 256))  # fmt: skip
    weight = original.graph.initializers["w"]
    tensor, reads = weight.const_value, []

    def read() -> ir.TensorProtocol:
        reads.append(1)
        return tensor

    weight.const_value = ir.LazyTensor(read, tensor.dtype, tensor.shape)
    report = autocast(original, FP16)
    assert not reads
    assert report.weight_bytes_after == 512 * 256 * 2
    assert weight.const_value.numpy().dtype == np.float16


@pytest.mark.parametrize("target", [FP16, BF16])
@pytest.mark.parametrize("io_precision", ["keep", "fp32", "fp16"])
def test_io_precision(io_precision, target):
    original = attention(fused=True)
    converted, _ = convert(original, target, io_precision=io_precision)
    kind = ir.DataType.FLOAT16 if io_precision == "fp16" else ir.DataType.FLOAT
    assert [(v.name, v.dtype) for v in converted.graph.inputs] == [("x", kind)]
    assert [(v.name, v.dtype) for v in converted.graph.outputs] == [("y", kind)]
    x = normal(0, 1, 6, 16)
    actual = run(converted, x=x.astype(kind.numpy()))[0]
    assert actual.dtype == kind.numpy()
    assert relative(actual, run(original, x=x)[0]) < TOLERANCE[target]
    assert str(converted.graph.inputs[0].shape) == str(original.graph.inputs[0].shape)


def test_reduced_graphs_are_left_alone():
    original = attention(fused=True)
    assert reduced_types(original) == frozenset()
    converted, _ = convert(original)
    assert is_reduced(converted)
    assert reduced_types(converted) == {"float16"}
    before = ir.to_proto(converted).SerializeToString()
    report = autocast(converted, BF16)
    assert report.skipped
    assert ir.to_proto(converted).SerializeToString() == before
    quantized = model(
        """(float[4] x) => (float[4] y) {
            q = QuantizeLinear(x, scale)
            y = DequantizeLinear(q, scale)
        }""",
        scale=f32(0.1),
    )  # fmt: skip
    assert reduced_types(quantized) == {"quantized"}


def test_keep_fp32_patterns():
    original = attention(fused=True)
    converted, report = convert(original, keep_fp32=["op:Transpose", "[qk]", "sco*"])
    assert report.patterns == {"op:Transpose": 1, "[qk]": 2, "sco*": 1}
    assert report.kept["keep_fp32"] == {"MatMul": 3, "Transpose": 1}
    kinds = types(converted)
    assert {kinds[n] for n in ("q", "k", "kt", "scores")} == {"FLOAT"}
    assert kinds["out"] == "FLOAT16"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("residuol", "node name; close: residual"), ("op:Matmul", "operator type; close: MatMul")],
)
def test_keep_fp32_pattern_without_a_match_names_close_ones(pattern, message):
    for call in (
        lambda m: autocast(m, FP16, keep_fp32=[pattern]),
        lambda m: fp32_node_names(m, [pattern]),
    ):
        with pytest.raises(SpecError, match=message):
            call(attention(fused=True))


def test_other_targets_are_refused():
    with pytest.raises(SpecError, match="choose FLOAT16 or BFLOAT16"):
        autocast(conv_net(), ir.DataType.INT8)


def test_custom_operators_get_fp32():
    original = model(
        """(float[2, 4] x) => (float[2, 4] y) {
            [a] a = MatMul(x, w)
            [b] b = Relu(a)
            [y] y = MatMul(b, w)
        }""",
        w=normal(0, 4, 4),
    )  # fmt: skip
    custom = original.graph.node("b")
    custom.domain, custom.op_type = "acme", "Swirl"
    original.opset_imports["acme"] = 1
    with pytest.raises(ModelError, match=r"'b' \(Swirl 'b'\) is neither given nor inferred"):
        autocast(ir.from_proto(ir.to_proto(original)), FP16)
    custom.outputs[0].dtype = ir.DataType.FLOAT
    report = autocast(original, FP16)
    assert report.kept == {"custom": {"Swirl": 1}}
    assert custom.inputs[0].dtype == ir.DataType.FLOAT
    assert original.graph.node("y").inputs[0].dtype == FP16


def test_model_functions_are_inlined():
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18, "local": 1]>
        g (float[2, 4] x) => (float[2, 4] y) { y = local.twice(x) }
        <opset_import: ["": 18], domain: "local">
        twice (a) => (b) { t = Add(a, a) b = Softmax(t) }"""
    )
    converted, report = convert(ir.from_proto(proto))
    assert not converted.functions
    assert report.reduced == {"Add": 1}
    assert report.kept == {"statistics": {"Softmax": 1}}


def test_constants_generators_and_casts():
    original = model(
        """(float[2, N] x, int64[2, N] i, bool[2, N] m) => (float[2, N] y, int64[2, N] z) {
            [shape] s = Shape(x)
            [ones] o = ConstantOfShape<value = float[1] {1.0}>(s)
            [half] h = Constant<value_float = 0.5>()
            [noise] r = RandomNormalLike<seed = 1.0, scale = 0.0>(x)
            [bits] b = Cast<to = 1>(m)
            [count] c = Cast<to = 1>(i)
            [again] z = Cast<to = 7>(c)
            [a] a = Mul(x, h)
            [b] d = Add(a, o)
            [c] e = Add(d, r)
            [d] f = Mul(e, b)
            [e] y = Add(f, c)
        }"""
    )
    converted, report = convert(original)
    x, i, m = normal(0, 2, 3), i64(1, 2, 3, 4, 5, 100001).reshape(2, 3), np.eye(2, 3).astype(bool)
    y, _ = run(converted, x=x, i=np.minimum(i, 9), m=m)
    assert relative(y, run(original, x=x, i=np.minimum(i, 9), m=m)[0]) < TOLERANCE[FP16]
    with np.errstate(over="ignore"):  # y holds 100001 in FP16; z must not come from there
        np.testing.assert_array_equal(run(converted, x=x, i=i, m=m)[1], i)
    kinds = types(converted)
    assert kinds["ones"] == kinds["bits"] == "FLOAT16"
    assert kinds["count"] == kinds["noise"] == "FLOAT"
    assert report.kept["generator"] == {"RandomNormalLike": 1}


def test_operators_that_tensorrt_refuses_stay_in_fp32():
    original = model("(float[4] x) => (float[4] y) { y = HardSwish(x) }", opset=22)
    assert convert(original)[1].reduced == {"HardSwish": 1}
    assert convert(original, BF16)[1].kept == {"tensorrt": {"HardSwish": 1}}


def test_bf16_needs_an_opset_that_has_it():
    original = conv_net()
    _, report = convert(original, BF16)
    assert report.opset == 22
    original.opset_imports[""] = 13
    with pytest.raises(UnsupportedError, match="Conv has no BF16 at opset 13"):
        autocast(original, BF16)


trt_models = {
    "conv": conv_net, "attention": lambda: attention(True), "decomposed": lambda: attention(False),
    "group_norm": group_norm, "time": time_embedding, "if": branch,
}  # fmt: skip


@pytest.mark.backend
@pytest.mark.parametrize("target", [FP16, BF16])
@pytest.mark.parametrize("io_precision", ["keep", "fp16"])
@pytest.mark.parametrize("name", trt_models)
def test_tensorrt_builds_it_strongly_typed(name, io_precision, target, rtx):
    trt, logger, builder = rtx
    converted, _ = convert(trt_models[name](), target, io_precision=io_precision)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(ir.to_proto(converted).SerializeToString()), parser.get_error(0).desc()
    kind = trt.float16 if io_precision == "fp16" else trt.float32
    floats = (trt.float32, trt.float16, trt.bfloat16)
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    assert {t.dtype for t in tensors if t.dtype in floats} == {kind}
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for value in converted.graph.inputs:
        shape = [d if isinstance(d, int) else 2 for d in value.shape]
        profile.set_shape(value.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config), logger.lines


@pytest.fixture(scope="module")
def rtx():
    trt = pytest.importorskip("tensorrt_rtx")

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.lines = []

        def log(self, _severity, message):
            self.lines.append(message)

    logger = Logger()
    return trt, logger, trt.Builder(logger)
