"""The FP16/BF16 rewrite, against onnx.reference on the FP32 graph and against TensorRT-RTX."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.autocast_checks import BF16, FP16, TOLERANCE, convert, run, types
from helpers.metrics import relative_error
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

from trt_native.errors import ModelError, SpecError, UnsupportedError
from trt_native.graph.types import is_reduced, reduced_types
from trt_native.passes.autocast import autocast
from trt_native.passes.pin_fp32_nodes import fp32_node_names


@pytest.mark.parametrize("target", [FP16, BF16])
@pytest.mark.parametrize("variance", [1.0, 1e-10, 1e9])
def test_batch_norm_is_reduced_without_losing_its_variance(target, variance):
    original = conv_net(variance)
    converted, report = convert(original, target)
    x = normal(9, 2, 3, 8, 8, scale=1 if variance < 1e6 else 0.1)
    assert relative_error(run(converted, x=x)[0], run(original, x=x)[0]) < TOLERANCE[target] * 3
    assert types(converted)["bn"] == target.name
    assert report.reduced == {"Conv": 2, "BatchNormalization": 1, "Relu": 1}
    assert (report.kept, report.casts, report.weights) == ({}, 2, 7)


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


def test_masks_before_a_softmax_are_clamped_and_infinities_kept():
    mask = np.array([[0, -1e9], [np.inf, -np.inf]], np.float32)
    original = model(
        """(float[2, 2] x) => (float[2, 2] y) {
            [scores] s = MatMul(x, w)
            [mask] m = Add(s, mask)
            [softmax] y = Softmax(m)
        }""",
        mask=mask, w=normal(0, 2, 2),
    )  # fmt: skip
    converted, report = convert(original)
    weight = converted.graph.initializers["mask"].const_value
    np.testing.assert_array_equal(weight.numpy(), [[0, -32752], [np.inf, -np.inf]])
    assert (report.clamped, report.kept) == ({"mask": 1}, {"statistics": {"Softmax": 1}})


@pytest.mark.parametrize("target", [FP16, BF16])
def test_resize_scales_stay_fp32(target):
    original = model(
        """(float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) {
            [product] p = Conv(x, w)
            [resize] y = Resize<mode = "linear">(p, , scales)
        }""",
        scales=f32(1, 1, 2, 2), w=normal(1, 2, 2, 1, 1),
    )  # fmt: skip
    converted, report = convert(original, target)
    x = normal(0, 1, 2, 4, 4)
    assert relative_error(run(converted, x=x)[0], run(original, x=x)[0]) < TOLERANCE[target]
    assert converted.graph.initializers["scales"].dtype == ir.DataType.FLOAT
    assert report.reduced == {"Conv": 1, "Resize": 1}
    assert report.weights == 1


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
        assert relative_error(run(converted, x=fed, cond=cond)[0], expected) < TOLERANCE[FP16]
    assert report.kept == {"subgraph": {"If": 1}}
    assert report.reduced == {"MatMul": 2}
    assert report.casts == (3 if io_precision == "fp16" else 4)
    assert converted.graph.initializers["w_row"].dtype == ir.DataType.FLOAT


def test_shared_weight_gets_both_types():
    original = model(
        """(float[2, 4] x) => (float[2, 4] y) {
            [product] p0 = MatMul(x, square)
            [scaled] a = Mul(p0, w)
            [softmax] p = Softmax(a)
            [statistic] m = ReduceMean(p, last)
            [mix] b = Sub(m, w)
            [y] y = Add(a, b)
        }""",
        w=normal(0, 4), square=normal(2, 4, 4), last=i64(-1),
    )  # fmt: skip
    converted, report = convert(original)
    x = normal(1, 2, 4)
    assert relative_error(run(converted, x=x)[0], run(original, x=x)[0]) < TOLERANCE[FP16]
    kinds = {n: v.dtype.name for n, v in converted.graph.initializers.items() if v.dtype}
    half = {"w__fp16": "FLOAT16", "square": "FLOAT16"}
    assert kinds == {"w": "FLOAT", "last": "INT64", **half}
    assert (report.weights, report.weight_bytes_before, report.weight_bytes_after) == (2, 80, 40)


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
    assert relative_error(actual, run(original, x=x)[0]) < TOLERANCE[FP16]


def test_large_weight_is_not_held_by_the_conversion():
    original = model("(float[1, 512] x) => (float[1, 256] y) { y = MatMul(x, w) }",
                     w=normal(0, 512, 256))  # fmt: skip
    weight = original.graph.initializers["w"]
    tensor, read = weight.const_value, []

    def load() -> ir.TensorProtocol:
        array = tensor.numpy().copy()
        read.append(weakref.ref(array))
        return ir.tensor(array)

    weight.const_value = ir.LazyTensor(load, tensor.dtype, tensor.shape)
    report = autocast(original, FP16)
    gc.collect()
    assert read
    assert not [array for array in read if array() is not None]
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
    assert relative_error(actual, run(original, x=x)[0]) < TOLERANCE[target]
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


ISLAND = """(float[2, 8] x) => (float[2, 8] y) {
    [first] a = MatMul(x, w)
    [relu] r = Relu(a)
    [second] b = MatMul(r, w)
    [down] c = Cast<to = 10>(b)
    [island] d = Mul(c, c)
    [up] e = Cast<to = 1>(d)
    [last] y = MatMul(e, w)
}"""


@pytest.mark.parametrize("target", [FP16, BF16])
def test_what_is_fp32_in_a_model_with_an_fp16_value_is_reduced(target):
    original = model(ISLAND, 22, w=normal(0, 8, 8, scale=0.3))
    assert is_reduced(original)
    converted, report = convert(original, target)
    assert not report.skipped
    assert report.reduced["MatMul"] == 3
    kinds = types(converted)
    assert {kinds[name] for name in ("first", "relu", "second", "last")} == {target.name}
    assert kinds["island"] == "FLOAT16"
    x = normal(1, 2, 8)
    assert relative_error(run(converted, x=x)[0], run(original, x=x)[0]) < TOLERANCE[target] * 2
    before = ir.to_proto(converted).SerializeToString()
    assert autocast(converted, target).skipped
    assert ir.to_proto(converted).SerializeToString() == before


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
    assert report.reduced == {}
    assert report.kept == {"input": {"Add": 1}, "statistics": {"Softmax": 1}}


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
    assert relative_error(y, run(original, x=x, i=np.minimum(i, 9), m=m)[0]) < TOLERANCE[FP16]
    with np.errstate(over="ignore"):  # y holds 100001 in FP16; z must not come from there
        np.testing.assert_array_equal(run(converted, x=x, i=i, m=m)[1], i)
    kinds = types(converted)
    assert kinds["ones"] == kinds["bits"] == "FLOAT16"
    assert kinds["count"] == kinds["noise"] == "FLOAT"
    assert report.kept["generator"] == {"RandomNormalLike": 1}


def test_bf16_needs_an_opset_that_has_it():
    original = conv_net()
    _, report = convert(original, BF16)
    assert report.raised.opset == 22
    too_old = conv_net()
    too_old.opset_imports[""] = 6
    with pytest.raises(UnsupportedError, match="Conv has no BF16 at opset 6"):
        autocast(too_old, BF16)


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
