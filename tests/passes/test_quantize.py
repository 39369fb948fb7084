"""The Q/DQ writer, against fake quantization computed here and onnx.reference on both graphs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models
from helpers.metrics import relative_error
from helpers.passes import normalized
from helpers.quantized_models import attention, checked, model, node, quantize
from helpers.text_models import normal
from onnx.reference import ReferenceEvaluator

from trt_native.errors import ModelError, SpecError, UnsupportedError
from trt_native.graph.onnx_file import read_model
from trt_native.passes.autocast import autocast
from trt_native.passes.quantize import QUANTIZE_PRESETS, QuantizationReport, quantize_model

INT8, FP8 = ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN
FLOAT, FP16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def run(graph: ir.Model, **inputs: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(ir.to_proto(graph)).run(None, inputs)[0])


def operators(graph: ir.Model) -> dict[str, int]:
    count: dict[str, int] = {}
    for item in graph.graph:
        count[item.op_type] = count.get(item.op_type, 0) + 1
    return count


def source(value: ir.Value) -> ir.Node:
    producer = value.producer()
    assert producer is not None
    return producer


# Fake quantization, written from the rules: scale = amax/127 (INT8) or amax/448 (E4M3), zero point
# 0, rounding to nearest even, saturation; one scale for each output channel of a weight.

E4M3 = sorted(
    sign * (mantissa / 8 + (exponent > 0)) * 2.0 ** (max(exponent, 1) - 7)
    for sign in (1, -1)
    for exponent in range(16)
    for mantissa in range(8)
    if (exponent, mantissa) != (15, 7)  # NaN
)


def nearest_e4m3(x: float) -> float:
    x = min(max(x, -448.0), 448.0)
    best = min(abs(x - e) for e in E4M3)
    close = [e for e in E4M3 if abs(x - e) == best]
    # Of two neighbours the one with an even mantissa, which is the one with the coarser last bit.
    return max(close, key=lambda e: (abs(e) == 0, np.frexp(e)[0] * 16 % 2 == 0))


def fake(x: np.ndarray, amax: float, fmt: str) -> np.ndarray:
    """One tensor, one scale."""
    scale = np.float32(amax) / np.float32(448 if fmt == "fp8" else 127)
    scaled = x.astype(np.float32) / scale
    if fmt == "fp8":
        rounded = np.array([nearest_e4m3(float(v)) for v in scaled.flat]).reshape(x.shape)
    else:
        rounded = np.array([min(max(round(float(v)), -128), 127) for v in scaled.flat])
        rounded = rounded.reshape(x.shape)
    return rounded.astype(np.float32) * scale


def fake_channels(w: np.ndarray, axis: int, fmt: str) -> np.ndarray:
    result = np.empty_like(w)
    for channel in range(w.shape[axis]):
        at = tuple(channel if i == axis else slice(None) for i in range(w.ndim))
        amax = np.abs(w[at]).max()
        result[at] = fake(w[at], amax, fmt) if amax else 0.0
    return result


PRODUCTS = {
    "Conv": ("Conv<pads = [1, 1, 1, 1]>(x, w, b)", (2, 16, 4, 4), (20, 16, 3, 3), 0),
    "grouped Conv": ("Conv<group = 4>(x, w, b)", (2, 16, 4, 4), (20, 4, 3, 3), 0),
    "MatMul": ("MatMul(x, w)", (2, 3, 16), (16, 20), 1),
    "batched MatMul": ("MatMul(x, w)", (2, 3, 16), (2, 16, 20), 2),
    "MatMul from the left": ("MatMul(w, x)", (16, 20), (18, 16), 0),
    "Gemm": ("Gemm(x, w, b)", (3, 16), (16, 20), 1),
    "Gemm, transposed": ("Gemm<transB = 1, alpha = 0.5>(x, w, b)", (3, 16), (20, 16), 0),
    "Gemm from the left": ("Gemm<transA = 1>(w, x)", (16, 20), (16, 18), 1),
}


def product(name: str, opset: int = 19) -> tuple[ir.Model, np.ndarray, int]:
    expression, shape, kernel, axis = PRODUCTS[name]
    weight = normal(1, *kernel) * np.exp(normal(2, kernel[axis])).reshape(
        [-1 if i == axis else 1 for i in range(len(kernel))]
    )
    weight[(slice(None),) * axis + (3,)] = 0  # a dead channel
    weights = {"w": weight, "b": normal(3, 20)} if "b)" in expression else {"w": weight}
    dims = ", ".join(map(str, shape))
    rank = {"Conv": 4, "batched MatMul": 3, "MatMul": 3, "grouped Conv": 4}.get(name, 2)
    out = ", ".join("abcd"[:rank])
    text = f"(float[{dims}] x) => (float[{out}] y) {{ [p] y = {expression} }}"
    return model(text, opset, **weights), normal(4, *shape, scale=1.5), axis


@pytest.mark.parametrize("fmt", ["int8", "fp8", "int8-weights"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_equals_fake_quantization(name, fmt):
    original, x, axis = product(name)
    quantized, report = quantize(original, {"x": 3.0}, format=fmt)
    weight = original.graph.initializers["w"].const_value.numpy()
    reference = ir.from_proto(ir.to_proto(original))
    faked = ir.tensor(fake_channels(weight, axis, fmt), name="w")
    reference.graph.initializers["w"].const_value = faked
    expected = run(reference, x=x if fmt == "int8-weights" else fake(x, 3.0, fmt))
    np.testing.assert_allclose(run(quantized, x=x), expected, rtol=1e-5, atol=1e-5)
    assert report.quantized == {node(original, "p").op_type: 1}
    assert report.coverage == 1.0


@pytest.mark.parametrize(("fmt", "dtype"), [("int8", INT8), ("fp8", FP8)])
def test_what_the_nodes_hold(fmt, dtype):
    original, _, _ = product("Conv")
    quantized, _ = quantize(original, {"x": 3.0}, format=fmt)
    conv = node(quantized, "p")
    activation, weight = source(conv.inputs[0]), source(conv.inputs[1])
    quantizer = source(activation.inputs[0])
    assert quantizer.op_type == "QuantizeLinear"
    assert [v.name for v in quantizer.inputs[1:]] == [v.name for v in activation.inputs[1:]]
    scale, zero = (v.const_value for v in quantizer.inputs[1:])
    assert (scale.dtype, scale.numpy().shape) == (FLOAT, ())
    assert scale.numpy() == np.float32(3.0 / (448 if fmt == "fp8" else 127))
    assert (zero.dtype, zero.numpy().shape, float(zero.numpy())) == (dtype, (), 0.0)
    stored, scales = weight.inputs[:2]
    assert weight.op_type == "DequantizeLinear"
    assert stored.is_initializer()
    assert stored.dtype == stored.const_value.numpy().dtype == dtype.numpy() or (
        stored.dtype == dtype
    )
    assert scales.const_value.numpy().shape == (20,)
    assert scales.const_value.numpy()[3] == 1.0  # the dead channel
    assert weight.attributes["axis"].as_int() == 0
    assert conv.inputs[2].name == "b"
    assert conv.inputs[2].dtype == FLOAT
    assert "w" not in quantized.graph.initializers
    assert operators(quantized) == {"DequantizeLinear": 2, "QuantizeLinear": 1, "Conv": 1}


def test_one_pair_for_a_tensor_however_many_read_it():
    original = model(
        """(float[2, 16] x) => (float[2, 16] a, float[2, 16] b, float[2, 16] c) {
            h = Relu(x)
            a = MatMul(h, w1)
            b = MatMul(h, w2)
            c = Neg(h)
        }""",
        w1=normal(1, 16, 16),
        w2=normal(2, 16, 16),
    )
    quantized, report = quantize(original)
    assert operators(quantized) == {
        "Relu": 1, "QuantizeLinear": 1, "DequantizeLinear": 3, "MatMul": 2, "Neg": 1,
    }  # fmt: skip
    assert report.activations == 1
    readers = {user.op_type for user, _ in node_output(quantized, "h").uses()}
    assert readers == {"QuantizeLinear", "Neg"}
    assert [v.name for v in quantized.graph.outputs] == ["a", "b", "c"]


def node_output(graph: ir.Model, name: str) -> ir.Value:
    return next(v for n in graph.graph for v in n.outputs if v.name == name)


def test_coverage_counts_multiply_adds():
    original = model(
        """(float[N, 16, H, 8] x, float[M, 32] z) => (float[a, b, c, d] y, float[M, 16] u) {
            [conv] y = Conv<strides = [2, 2], pads = [1, 1, 1, 1], group = 2>(x, w)
            [gemm] u = Gemm<transB = 1>(z, v)
        }""",
        w=normal(0, 24, 8, 3, 3),
        v=normal(1, 16, 32),
    )
    shapes = {"x": (2, 16, 6, 8), "z": (5, 32)}
    _, report = quantize(original, ops=["Conv"], shapes=shapes)
    conv = 2 * 24 * 3 * 4 * (8 * 3 * 3)
    assert report.macs == conv + 5 * 16 * 32
    assert report.macs_quantized == conv
    assert report.coverage == conv / (conv + 5 * 16 * 32)
    _, report = quantize(original, ops=["Conv"])
    assert (report.macs, report.coverage) == (None, 0.5)


def test_multiply_adds_of_broadcast_products():
    original = model(
        """(float[2, 1, 32, 16] x, float[5, 16, 24] z, float[1, 16, 4, 4] i)
            => (float[a, b, c, d] y, float[e, f, g, h] u) {
            y = MatMul(x, z)
            u = ConvTranspose<strides = [2, 2]>(i, w)
        }""",
        w=normal(0, 16, 8, 2, 2),
    )
    _, report = quantize(original)
    assert report.macs == 2 * 5 * 32 * 16 * 24 + 16 * 4 * 4 * (8 * 2 * 2)
    assert report.macs_quantized == 2 * 5 * 32 * 16 * 24


# Weights


def test_a_weight_that_several_nodes_read():
    original = model(
        """(float[2, 16] x, int64[3] i) => (float[2, 16] d, float[3, 16] e) {
            a = MatMul(x, w)
            b = MatMul(a, w)
            c = Gemm<transB = 1>(b, w)
            d = MatMul(c, u)
            e = Gather(u, i)
        }""",
        w=normal(0, 16, 16, scale=0.25),
        u=normal(1, 16, 16, scale=0.25),
    )
    quantized, report = quantize(original)
    stored = [v for v in quantized.graph.initializers.values() if v.dtype == INT8]
    # One copy for each axis of w, and one of u, whose original another node still reads.
    assert sorted(v.name for v in stored if v.const_value.shape) == [
        "u__int8", "w__int8", "w__int8_",
    ]  # fmt: skip
    assert "w" not in quantized.graph.initializers
    assert report.kept_weights == ("u",)
    assert report.weights == 2
    assert report.weight_bytes == report.weight_bytes_quantized == 2 * 16 * 16 * 4
    x = normal(2, 2, 16)
    assert (
        relative_error(run(quantized, x=x, i=np.arange(3)), run(original, x=x, i=np.arange(3)))
        < 0.05
    )


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)", 19),
        ("t = Transpose(w) y = MatMul(x, t)", 19),
        ("t = Transpose(w) u = Transpose(t) v = Transpose(u) y = MatMul(x, v)", 19),
        ("t = Identity(w) y = Gemm<transB = 1>(x, t)", 19),
    ],
)
def test_weights_that_pass_through_a_transpose(text, opset):
    weight = normal(0, 20, 16)
    original = model(f"(float[2, 16] x) => (float[2, 20] y) {{ {text} }}", opset, w=weight)
    quantized, report = quantize(original)
    assert set(operators(quantized)) <= {"QuantizeLinear", "DequantizeLinear", "MatMul", "Gemm"}
    assert report.weights == 1
    x = normal(1, 2, 16)
    expected = fake(x, 4.0, "int8") @ fake_channels(weight, 0, "int8").T
    np.testing.assert_allclose(run(quantized, x=x), expected, rtol=1e-5, atol=1e-5)


def test_weights_in_constant_nodes_and_cast_weights():
    tensor = onnx.numpy_helper.from_array(normal(0, 16, 16))
    half = onnx.numpy_helper.from_array(normal(1, 16, 16).astype(np.float16), "half")
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Constant", [], ["w"], value=tensor),
            onnx.helper.make_node("MatMul", ["x", "w"], ["a"]),
            onnx.helper.make_node("Cast", ["half"], ["v"], to=1),
            onnx.helper.make_node("MatMul", ["a", "v"], ["y"]),
        ],
        "constants",
        [tiny_models.tensor("x", tiny_models.FLOAT, [2, 16])],
        [tiny_models.tensor("y", tiny_models.FLOAT, [2, 16])],
        [half],
    )
    imports = [onnx.helper.make_opsetid("", 19)]
    original = ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10))
    quantized, report = quantize(original, {"x": 4.0, "a": 20.0})
    assert operators(quantized) == {"QuantizeLinear": 2, "DequantizeLinear": 4, "MatMul": 2}
    assert report.weights == 2
    x = normal(2, 2, 16)
    assert relative_error(run(quantized, x=x), run(original, x=x)) < 0.03


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_an_error(value):
    weight = normal(0, 16, 16)
    weight[3, 4] = value
    text = "(float[2, 16] x) => (float[2, 16] y) { [dense] y = MatMul(x, w) }"
    original = model(text, w=weight)
    with pytest.raises(ModelError, match=r"weights hold NaN or infinity: 'w' \(node 'dense'\)"):
        quantize(original)


def test_external_weights_stay_on_disk_until_they_are_saved(tmp_path):
    path = tiny_models.external_weights(tmp_path / "m.onnx")
    lazy = read_model(path)
    report = quantize_model(lazy, {"x": 3.0})
    stored = lazy.graph.initializers["w__int8"].const_value
    assert isinstance(stored, ir.LazyTensor)
    (tmp_path / "out").mkdir()
    ir.save(lazy, tmp_path / "out" / "q.onnx", external_data="q.onnx.data", size_threshold_bytes=0)
    assert (tmp_path / "out" / "q.onnx.data").stat().st_size >= 64 * 64
    x = normal(0, 1, 64)
    saved = ReferenceEvaluator(str(tmp_path / "out" / "q.onnx")).run(None, {"x": x})[0]
    weight = np.fromfile(tmp_path / "weights.bin", np.float32).reshape(64, 64)
    expected = fake(x, 3.0, "int8") @ fake_channels(weight, 1, "int8")
    np.testing.assert_allclose(saved, expected, rtol=1e-5, atol=1e-5)
    assert report.weight_bytes_quantized == 64 * 64 * 4


# Types and opsets


def test_fp16_graphs_have_fp16_scales():
    weight = normal(0, 16, 20).astype(np.float16)
    weight[:, 2] *= np.float16(1e-6)  # a channel whose scale FP16 cannot hold
    original = model(
        "(float16[2, 16] x) => (float16[2, 20] y) { [p] y = MatMul(x, w) }", 18, w=weight
    )
    quantized, report = quantize(original, {}, format="int8-weights")
    assert report.raised.opset == quantized.opset_imports[""] == 19
    scales = [n.inputs[1].const_value for n in quantized.graph if n.op_type.endswith("izeLinear")]
    assert {scale.dtype for scale in scales} == {FP16}
    assert min(float(scale.numpy().min()) for scale in scales) >= 5.9e-8
    assert all(v.dtype == FP16 for v in node(quantized, "p").inputs)
    x = normal(1, 2, 16).astype(np.float16)
    assert relative_error(run(quantized, x=x), run(original, x=x)) < 0.02


@pytest.mark.parametrize("fmt", ["int8", "fp8"])
def test_linear_layers_of_fp16_graphs_add_up_in_fp32(fmt):
    weight, bias = normal(0, 256, 20).astype(np.float16), normal(1, 20).astype(np.float16)
    kernel = normal(2, 16, 16, 1, 1).astype(np.float16)
    original = model(
        """(float16[2, 16, 4, 4] x)
        => (float16[2, 20] y, float16[2, 20] z, float16[2, 16, 4, 4] c) {
            f = Flatten(x)
            [p] y = Gemm(f, w, b)
            z = Neg(y)
            [c] c = Conv(x, k)
        }""",
        w=weight, b=bias, k=kernel,
    )  # fmt: skip
    quantized, _ = quantize(original, {"x": 3.0, "f": 3.0}, format=fmt)
    gemm, conv = node(quantized, "p"), node(quantized, "c")
    assert [v.dtype for v in (*gemm.inputs, *gemm.outputs)] == [FLOAT] * 4
    assert [v.dtype for v in (*conv.inputs, *conv.outputs)] == [FP16] * 3
    quantizer = source(source(gemm.inputs[0]).inputs[0])
    assert quantizer.inputs[1].dtype == FP16
    scales = [n.inputs[1].const_value.numpy() for n in (quantizer, source(gemm.inputs[0]))]
    assert scales[0] == scales[1]
    assert [(v.name, v.dtype) for v in quantized.graph.outputs] == [(n, FP16) for n in "yzc"]
    x = normal(3, 2, 16, 4, 4).astype(np.float16)
    levels = (x.reshape(2, 256) / scales[0].astype(np.float16)).astype(np.float32)
    levels = fake(levels, 448 if fmt == "fp8" else 127, fmt)
    expected = levels * scales[1] @ fake_channels(weight.astype(np.float32), 1, fmt) + bias
    np.testing.assert_allclose(run(quantized, x=x), expected, rtol=1e-3, atol=1e-3)


def test_a_tensor_that_linear_and_other_products_of_an_fp16_graph_read_is_quantized_once():
    original = model(
        """(float16[2, 16, 4, 16] x) => (float16[2, 16, 4, 16] y, float16[2, 16, 4, 16] c) {
            [p] y = MatMul(x, w)
            [c] c = Conv(x, k)
        }""",
        w=normal(0, 16, 16).astype(np.float16),
        k=normal(1, 16, 16, 1, 1).astype(np.float16),
    )
    quantized, report = quantize(original)
    assert operators(quantized)["QuantizeLinear"] == report.activations == 1
    found = {name: source(node(quantized, name).inputs[0]) for name in "pc"}
    assert found["p"].inputs[0] is found["c"].inputs[0]
    assert {name: dq.outputs[0].dtype for name, dq in found.items()} == {"p": FLOAT, "c": FP16}


def test_bf16_graphs_have_bf16_scales():
    weight = normal(0, 16, 16).astype(ml_dtypes.bfloat16)
    original = model(
        "(bfloat16[2, 16] x) => (bfloat16[2, 16] y) { [p] y = MatMul(x, w) }", 19, w=weight
    )
    quantized, _ = quantize(original, {"x": 3.0})
    scales = {n.inputs[1].dtype for n in quantized.graph if n.op_type.endswith("izeLinear")}
    assert scales == {BF16}


OLD = """(float[2, 32] x) => (float[2, 1] m, float[2, 16] y) {
    a, b = Split<axis = 1>(x)
    c = ReduceMean<axes = [-1], keepdims = 1>(a)
    m = ReduceMax<axes = [1]>(c)
    y = MatMul(b, w)
}"""


@pytest.mark.parametrize("opset", [13, 17])
def test_older_opsets_are_raised(opset):
    original = model(OLD, opset, w=normal(0, 16, 16))
    quantized, report = quantize(original)
    assert report.raised.opset == quantized.opset_imports[""] == 19
    x = normal(1, 2, 32)
    proto = ir.to_proto(original)
    before = ReferenceEvaluator(proto).run(None, {"x": x})
    after = ReferenceEvaluator(ir.to_proto(quantized)).run(None, {"x": x})
    np.testing.assert_array_equal(after[0], before[0])
    assert relative_error(after[1], before[1]) < 0.03


def test_opsets_that_cannot_be_raised():
    text = "(float[2, 16] x) => (float[2, 16] y) { a = MatMul(x, w) y = Softmax<axis = 1>(a) }"
    with pytest.raises(UnsupportedError, match=r"need opset 13; the model has opset 6 .*too old"):
        quantize(model(text, 6, w=normal(0, 16, 16)))
    text = """(float[1, 16, 4, 4] x) => (float[a, b, c, d] y, float[16] m) {
        n, m, r, s, t = BatchNormalization(x, one, one, one, one)
        y = Conv(n, w)
    }"""
    original = model(text, 13, w=normal(0, 16, 16, 1, 1), one=np.ones(16, np.float32))
    _, report = quantize(original)  # INT8 in an FP32 graph needs no more than opset 13
    assert report.raised is None
    with pytest.raises(
        UnsupportedError, match=r"FP8 Q/DQ nodes need opset 19.*outputs of training"
    ):
        quantize(original, format="fp8")


def test_quantized_models_and_wrong_arguments_are_refused():
    quantized, _ = quantize(attention())
    with pytest.raises(ModelError, match="has Q/DQ or other quantized operators already"):
        quantize(quantized)
    for options, message in (
        ({"format": "int4"}, "'int4' is none of: int8, fp8, int8-weights"),
        ({"preset": "bert"}, "'bert' is none of: default, diffusion-unet"),
        ({"ops": []}, "none given"),
        ({"min_coverage": 60.0}, "a share from 0 to 1"),
    ):
        with pytest.raises(SpecError, match=message):
            quantize(attention(), **options)
    relu = model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(SpecError, match="nothing to quantize"):
        quantize(relu)
    assert set(QUANTIZE_PRESETS) == {"default", "diffusion-unet"}


def test_bodies_stay_and_functions_are_inlined():
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 19, "local": 1]>
        g (float[2, 16] x, bool c) => (float[2, 16] y) {
            h = local.dense(x, w)
            y = If<c> (c) <
                then_branch = yes () => (float[2, 16] p) { p = MatMul(h, w) },
                else_branch = no () => (float[2, 16] q) { q = Relu(h) }
            >
        }
        <opset_import: ["": 19], domain: "local">
        dense (a, b) => (d) { d = MatMul(a, b) }""".replace("If<c> (c) <", "If (c) <")
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(0, 16, 16), "w"))
    quantized = normalized(proto)
    report = quantize_model(quantized, {"x": 3.0})
    assert report.quantized == {"MatMul": 1}
    assert report.skipped == {"subgraph": {"MatMul": 1}}
    assert report.kept_weights == ("w",)
    onnx.checker.check_model(ir.to_proto(quantized))


def test_a_dry_run_reports_the_same_and_changes_nothing():
    _, report = quantize(attention())
    untouched = attention()
    ranges = dict.fromkeys(("x", "o"), 4.0)
    assert quantize_model(untouched, ranges, dry_run=True) == report
    assert operators(untouched) == operators(attention())
    assert not untouched.metadata_props


# What autocast makes of it


def reduced(quantized: ir.Model, target: ir.DataType = FP16) -> ir.Model:
    assert not autocast(quantized, target).skipped
    checked(quantized)
    return quantized


@pytest.mark.parametrize("fmt", ["int8", "fp8", "int8-weights"])
@pytest.mark.parametrize("target", [FP16, BF16])
def test_the_rest_of_a_quantized_graph_is_reduced(fmt, target):
    original = attention()
    x = normal(5, 2, 32, 32)
    quantized, _ = quantize(original, {"x": 4.0, "o": 4.0}, format=fmt)
    before = run(quantized, x=x)
    reduced(quantized, target)
    late = target == FP16 and fmt != "int8-weights"
    for item in quantized.graph:
        operands = [v.producer() for v in item.inputs[:2]]
        pairs = sum(n is not None and n.op_type == "DequantizeLinear" for n in operands)
        expected = FLOAT if late and pairs == 2 else target
        if item.op_type == "MatMul":
            assert [v.dtype for v in (*item.inputs, *item.outputs)] == [expected] * 3
        if item.op_type.endswith("izeLinear"):
            assert item.inputs[1].dtype == (FLOAT if late else target)
    if target == FP16:  # onnx.reference multiplies no BF16 matrices
        assert relative_error(run(quantized, x=x), before) < {"fp8": 0.05}.get(fmt, 0.02)


def test_scales_that_fp16_would_lose():
    weight = normal(0, 20, 16, 1, 1)
    weight[0] *= 1e-12  # almost dead
    weight[1] *= 1e-5  # a scale in FP16's subnormal numbers
    original = model(
        "(float[2, 16, 4, 4] x) => (float[2, 20, 4, 4] y) { [p] y = Conv(x, w) }", w=weight
    )
    quantized, _ = quantize(original, {"x": 1e-6})
    scales = node(quantized, "w__dequantized").inputs[1]
    assert float(scales.const_value.numpy().min()) < 1e-13
    reduced(quantized)
    dequantized = source(node(quantized, "p").inputs[1])
    packed, scale = (v.const_value.numpy().astype(np.float64) for v in dequantized.inputs[:2])
    assert dequantized.inputs[1].dtype == FP16
    assert (scale > 0).all()
    found, matrix = packed.reshape(20, 16) * scale[:, None], weight.reshape(20, 16)
    # No further from the weight than half a step of each of the two roundings.
    steps = scale[:, None] + np.abs(matrix).max(1, keepdims=True) / 127
    assert (np.abs(found - matrix) <= 0.51 * steps).all()
    activation = source(source(node(quantized, "p").inputs[0]).inputs[0]).inputs[1].const_value
    assert float(activation.numpy()) == float(np.float16(6e-8))


# By a product with scales for each channel TensorRT rounds sums before it scales them.

WEIGHT = "w = DequantizeLinear<axis = 1>(q, s)"
TURNED = "t = DequantizeLinear<axis = 0>(q, s) w = Transpose<perm = [1, 0]>(t)"
ONE_SCALE = "w = DequantizeLinear(q, one)"
ACTIVATION = "p = QuantizeLinear(h, sx, zero) d = DequantizeLinear(p, sx, zero)"


def pairs(weight: str, product: str = "[p] y = MatMul(d, w)") -> ir.Model:
    return model(
        f"(float[4, 32] x) => (float[4, 32] y) {{ h = Relu(x) {ACTIVATION} {weight} {product} }}",
        q=np.rint(normal(0, 32, 32, scale=40).clip(-127, 127)).astype(np.int8),
        s=np.abs(normal(1, 32)) + np.float32(1e-6),
        one=np.float32(0.01),
        sx=np.float32(0.03),
        zero=np.int8(0),
        b=normal(2, 32),
    )


@pytest.mark.parametrize("weight", [WEIGHT, TURNED], ids=["straight", "transposed"])
@pytest.mark.parametrize("keep", [(), ("p",)], ids=["", "kept"])
@pytest.mark.parametrize("expression", ["[p] y = MatMul(d, w)", "[p] y = Gemm(d, w, b)"])
def test_products_with_scales_for_each_channel_stay_in_fp32(weight, keep, expression):
    original = pairs(weight, expression)
    x = normal(3, 4, 32)
    expected = run(original, x=x)
    report = autocast(original, FP16, keep_fp32=keep)
    checked(original)
    product = node(original, "p")
    assert {v.dtype for v in (*product.inputs, *product.outputs)} == {FLOAT}
    scales = {n.inputs[1].dtype for n in original.graph if n.op_type.endswith("izeLinear")}
    assert scales == {FLOAT}
    assert report.kept["input"] == {"Relu": 1}
    pinned = {} if keep else {product.op_type: 1}
    kept = {"QuantizeLinear": 1, "DequantizeLinear": 2, **pinned}
    assert report.kept["accumulator"] == kept
    np.testing.assert_allclose(run(original, x=x), expected, rtol=1e-2, atol=0.1)


@pytest.mark.parametrize(
    ("weight", "product", "target"),
    [
        (ONE_SCALE, "[p] y = MatMul(d, w)", FP16),
        (WEIGHT, "[p] y = MatMul(h, w)", FP16),
        (WEIGHT, "[p] y = MatMul(d, w)", BF16),
    ],
    ids=["one scale", "weights alone", "BF16"],
)
def test_products_that_cannot_overflow_are_reduced(weight, product, target):
    original = pairs(weight, product)
    report = autocast(original, target)
    checked(original)
    assert "accumulator" not in report.kept
    assert {v.dtype for v in node(original, "p").inputs} == {target}


def test_ranges_that_fp16_cannot_hold_stay_in_fp32():
    original = model(
        "(float[2, 16] x) => (float[2, 16] y) { h = Mul(x, big) [p] y = MatMul(h, w) }",
        big=np.float32(1e6),
        w=normal(0, 16, 16, scale=1e-6),
    )
    x = normal(1, 2, 16)
    quantized, _ = quantize(original, {"h": float(np.abs(x).max()) * 1e6})
    reduced(quantized)
    quantizer = next(n for n in quantized.graph if n.op_type == "QuantizeLinear")
    assert [v.dtype for v in quantizer.inputs[:2]] == [FLOAT, FLOAT]


def test_integer_operators_are_left_alone():
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 19]>
        g (float[2, 16] x) => (float[2, 16] y) {
            q, s, z = DynamicQuantizeLinear(x)
            y = DequantizeLinear(q, s, z)
        }"""
    )
    assert autocast(ir.from_proto(proto), FP16).skipped


def test_the_report_explains_itself():
    _, report = quantize(attention())
    assert isinstance(report, QuantizationReport)
    assert report.explain() == "2 MatMul (attention)"
    assert report.products == 6
