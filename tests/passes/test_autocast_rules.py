"""Nodes that stay in FP32 when the rest of a graph is reduced; numbers against onnx.reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.autocast_checks import BF16, FP16, TOLERANCE, convert, run, types
from helpers.metrics import relative_error
from helpers.text_models import (
    attention,
    f32,
    group_norm,
    i64,
    model,
    normal,
    time_embedding,
)

from trt_native.graph.inference import infer_types
from trt_native.passes.autocast_rules import NodeClassifier, Reason, scale_is_lost


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
    assert relative_error(run(converted, x=x)[0], run(original, x=x)[0]) < TOLERANCE[target]
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
    assert not np.isfinite(blind).all() or relative_error(blind, expected[1]) > 0.1
    for actual, wanted in zip(run(converted, x=x), expected, strict=True):
        assert relative_error(actual, wanted) < TOLERANCE[FP16]
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
    assert relative_error(run(converted, x=x)[0], run(original, x=x)[0]) < TOLERANCE[FP16]
    assert types(converted)["norm"] == "FLOAT"


def test_sigmoids_and_gelu_stay_in_fp32_unless_a_product_can_take_them():
    original = model(
        """(float[N, 8, 8] x) => (float[N, 8, 8] y, float[N, 8, 8] z) {
            [left] xl = MatMul(x, w)
            [right] xr = MatMul(x, w)
            [sum] r = Add(xl, xr)
            [swish_sigmoid] s = Sigmoid(r)
            [swish] a = Mul(r, s)
            [product] p = MatMul(a, w)
            [bias] b = Add(p, w)
            [fused_sigmoid] f = Sigmoid(b)
            [fused_swish] y = Mul(b, f)
            [scaled] d = Div(r, root)
            [erf] e = Erf(d)
            [shifted] g = Add(e, one)
            [gelu] h = Mul(r, g)
            [halved] z = Mul(h, half)
        }""",
        w=normal(0, 8, 8), root=f32(2**0.5), one=f32(1), half=f32(0.5),
    )  # fmt: skip
    converted, report = convert(original)
    x = normal(9, 2, 8, 8)
    for actual, wanted in zip(run(converted, x=x), run(original, x=x), strict=True):
        assert relative_error(actual, wanted) < TOLERANCE[FP16]
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
        assert relative_error(actual, wanted) < TOLERANCE[target]
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
    assert relative_error(run(converted, x=x)[0], expected) < TOLERANCE[FP16]
    assert types(converted)["double"] == "FLOAT16"
    assert types(converted)["rows"] == "FLOAT"


@pytest.mark.parametrize("target", [FP16, BF16])
def test_time_embedding_keeps_its_arguments(target):
    original = time_embedding()
    converted, _ = convert(original, target)
    t = i64(999, 3)
    assert relative_error(run(converted, t=t)[0], run(original, t=t)[0]) < TOLERANCE[target]
    kinds = types(converted)
    assert [kinds[n] for n in ("cast", "column", "argument", "sin", "cos")] == ["FLOAT"] * 5
    assert kinds["join"] == kinds["linear"] == target.name


def test_time_embedding_of_a_float_timestep_keeps_its_arguments():
    original = time_embedding()
    graph = original.graph
    graph.inputs[0].dtype = ir.DataType.FLOAT
    converted, _ = convert(original)
    t = f32(999.3, 3001.7)
    assert relative_error(run(converted, t=t)[0], run(original, t=t)[0]) < TOLERANCE[FP16]


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
    assert relative_error(run(converted, ids=ids, q=q)[0], run(original, ids=ids, q=q)[0]) < 2e-3
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
    assert relative_error(run(converted, x=x, mask=keep)[0], expected) < TOLERANCE[FP16]
    assert "range" in report.kept
    _, report = convert(original, BF16)
    assert "range" not in report.kept


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
    assert report.kept == {"range": {"Add": 1}, "input": {"Div": 1}}


def test_operators_that_tensorrt_refuses_stay_in_fp32():
    original = model("(float[4] x) => (float[4] y) { y = HardSwish(x) }", opset=22)
    assert convert(original, io_precision="fp16")[1].reduced == {"HardSwish": 1}
    assert convert(original, BF16, io_precision="fp16")[1].kept == {"tensorrt": {"HardSwish": 1}}


def reasons(text, target=FP16, **weights):
    """Reasons of the nodes that stay, by name."""
    original = model(text, 19, **weights)
    infer_types(original)
    kept = NodeClassifier(original, target, {}).kept
    return {node.name: reason for node, reason in kept.items()}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (65504.0, None),
        (65519.0, None),  # rounds down to the largest
        (65520.0, Reason.RANGE),
        (-1e9, Reason.RANGE),
        (float("-inf"), None),
        (1e-5, None),
        (1e-6, Reason.RANGE),
        (0.0, None),
    ],
)
def test_scalars_that_fp16_cannot_hold(value, reason):
    text = "(float[1, 4] x) => (float[1, 4] y) { h = MatMul(x, w) [add] y = Add(h, c) }"
    for c in (f32(value), np.full((1, 4), value, np.float32)):
        assert reasons(text, c=c, w=normal(0, 4, 4)).get("add") == reason
        assert reasons(text, BF16, c=c, w=normal(0, 4, 4)) == {}


def test_a_classification_leaves_the_graph_alone():
    original = group_norm()
    infer_types(original)
    before = ir.to_proto(original).SerializeToString()
    NodeClassifier(original, FP16, {})
    assert ir.to_proto(original).SerializeToString() == before


def test_nodes_named_by_patterns_are_kept_for_that_reason():
    original = group_norm()
    infer_types(original)
    pinned = {original.graph.node("conv_in"), original.graph.node("mean")}
    kept = NodeClassifier(original, FP16, {"*": pinned}).kept
    assert {kept[node] for node in pinned} == {Reason.KEEP_FP32}
    assert kept[original.graph.node("std")] == Reason.STATISTICS
    assert original.graph.node("conv_out") not in kept


@pytest.mark.parametrize("seed", range(3))
def test_a_scale_is_lost_where_fp16_rounds_it_coarsely(seed):
    scales = np.float32(2.0) ** np.random.default_rng(seed).uniform(-14, 15, 64).astype(np.float32)
    assert not scale_is_lost(scales)
    for lost in (6e-8, 1e-7, 3e-6, 1e5):
        assert scale_is_lost(np.append(scales, f32(lost)))
    assert not scale_is_lost(f32(2.0**-24))  # exact, though subnormal
