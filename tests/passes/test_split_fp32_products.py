"""Products split for TF32: against onnx.reference, whole and with its operands cut to TF32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import golden_unet, tiny_models
from helpers.metrics import relative_error
from helpers.passes import normalized
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops import op_conv, op_conv_transpose, op_gemm, op_matmul

from trt_native.errors import ModelError, UnsupportedError
from trt_native.graph.onnx_file import read_model
from trt_native.passes.autocast import autocast
from trt_native.passes.split_fp32_products import split_fp32_products

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.standard_normal(shape, np.float32)


def in_tf32(kind):
    """An operator of onnx.reference that sees no more of its operands than TF32 holds."""

    def cut(array):
        return (array.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)

    def run(self, a, b, *rest, **options):
        return kind._run(self, cut(a), cut(b), *rest, **options)

    return type(kind.__name__.split("_")[0], (kind,), {"op_domain": "", "_run": run})


TF32 = [
    in_tf32(kind)
    for kind in (
        op_conv.Conv,
        op_conv_transpose.ConvTranspose,
        op_gemm.Gemm_7,
        op_matmul.MatMul,
    )
]


def model(text, opset=18, **weights):
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> g {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    onnx.checker.check_model(proto)
    return proto


def split(proto):
    graph = normalized(proto)
    counts, _ = split_fp32_products(graph)
    rewritten = ir.to_proto(graph)
    onnx.checker.check_model(rewritten, full_check=True)
    return rewritten, counts


def run(proto, inputs, ops=None):
    return ReferenceEvaluator(proto, new_ops=ops).run(None, inputs)[0]


PRODUCTS = {
    "conv": (
        "(float[2,8,9,9] x) => (float[n,m,h,w] y) { y = Conv <pads=[1,1,1,1]> (x, k, b) }",
        {"x": normal(2, 8, 9, 9)},
        {"k": normal(6, 8, 3, 3), "b": normal(6)},
    ),
    "grouped conv": (
        "(float[2,8,9] x) => (float[n,m,h] y) { y = Conv <group=4, strides=[2]> (x, k) }",
        {"x": normal(2, 8, 9)},
        {"k": normal(8, 2, 3)},
    ),
    "transposed conv": (
        "(float[1,8,5,5] x) => (float[n,m,h,w] y) { y = ConvTranspose <strides=[2,2]> (x, k, b) }",
        {"x": normal(1, 8, 5, 5)},
        {"k": normal(8, 4, 3, 3), "b": normal(4)},
    ),
    "grouped conv of a constant": (
        "(float[6,2,3,3] k) => (float[n,m,h,w] y) { y = Conv <group=2> (x, k) }",
        {"k": normal(6, 2, 3, 3)},
        {"x": normal(1, 4, 5, 5)},
    ),
    "depthwise conv": (
        "(float[2,8,5,3] x) => (float[n,m,h,w] y) { y = Conv <group=8, pads=[1,1,1,1]> (x, k) }",
        {"x": normal(2, 8, 5, 3)},
        {"k": normal(8, 1, 3, 3)},
    ),
    "gemm": (
        "(float[5,64] x) => (float[a,b] y) { y = Gemm <alpha=0.5, beta=2.0, transB=1> (x, k, c) }",
        {"x": normal(5, 64)},
        {"k": normal(7, 64), "c": normal(7)},
    ),
    "matmul": (
        "(float[2,5,64] x) => (float[a,b,c] y) { y = MatMul (x, k) }",
        {"x": normal(2, 5, 64)},
        {"k": normal(64, 7)},
    ),
    "matmul of activations": (
        "(float[2,5,64] x, float[2,64,7] z) => (float[a,b,c] y) { y = MatMul (x, z) }",
        {"x": normal(2, 5, 64), "z": normal(2, 64, 7)},
        {},
    ),
    "square": (
        "(float[16,16] x) => (float[a,b] y) { y = MatMul (x, x) }",
        {"x": normal(16, 16)},
        {},
    ),
    "weight in a constant": (
        "(float[2,2] x) => (float[a,b] y)"
        " { k = Constant <value = float[2,2] {0.1, 0.2, 0.3, 0.7}> () y = MatMul (x, k) }",
        {"x": normal(2, 2)},
        {},
    ),
    "transposed weight": (
        "(float[5,64] x) => (float[a,b] y) { t = Transpose (k) y = MatMul (x, t) }",
        {"x": normal(5, 64)},
        {"k": normal(7, 64)},
    ),
    "inside a function": (
        "(float[5,64] x) => (float[a,b] y) { y = f.Linear (x, k) }"
        ' <domain: "f", opset_import: ["": 18]> Linear (a, b) => (c) { c = MatMul (a, b) }',
        {"x": normal(5, 64)},
        {"k": normal(64, 7)},
    ),
    "inside a body": (
        "(float[5,64] x) => (float[a,b] y) { yes = Constant <value = bool {1}> ()"
        " y = If (yes) <then_branch = t () => (float[a,b] u) { u = MatMul (x, k) },"
        " else_branch = e () => (float[a,b] v) { r = Relu (x) v = MatMul (r, k) }> }",
        {"x": normal(5, 64)},
        {"k": normal(64, 7)},
    ),
    "inside a body, of values of its own": (
        "(float[5,64] x) => (float[a,b] y) { yes = Constant <value = bool {1}> ()"
        " y = If (yes) <then_branch = t () => (float[a,b] u)"
        " { q = Neg (x) r = Transpose (x) s = MatMul (q, r) u = Neg (s) },"
        " else_branch = e () => (float[a,b] v) { w = Transpose (x) v = MatMul (x, w) }> }",
        {"x": normal(5, 64)},
        {},
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_tf32_gives_what_fp32_gives(name):
    text, inputs, weights = PRODUCTS[name]
    if "f." in text:
        head = '<ir_version: 9, opset_import: ["": 18, "f": 1]> g '
        proto = onnx.parser.parse_model(head + text)
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(w, n) for n, w in weights.items()
        )
    else:
        proto = model(text, **weights)
    expected = run(proto, inputs)
    rewritten, counts = split(proto)
    assert sum(counts.values()) == (2 if "body" in name else 1)
    assert relative_error(run(rewritten, inputs), expected) < 1e-6
    assert relative_error(run(rewritten, inputs, TF32), expected) < 1e-5
    plain = ir.from_proto(proto)
    ir.passes.common.InlinePass()(plain)  # an operator of our own is not seen inside functions
    assert relative_error(run(ir.to_proto(plain), inputs, TF32), expected) > 1e-4


def test_groups_of_a_transposed_conv_are_joined_apart():
    """By PyTorch: onnx.reference has no groups there."""
    torch = pytest.importorskip("torch")
    weight, x = normal(8, 3, 3, 3), normal(2, 8, 5, 3)
    text = "(float[2,8,5,3] x) => (float[n,m,h,w] y) { y = ConvTranspose <group=2> (x, k) }"
    rewritten, counts = split(model(text, k=weight))
    assert counts == {"ConvTranspose": 1}
    (product,) = [node for node in rewritten.graph.node if node.op_type == "ConvTranspose"]
    del rewritten.graph.node[list(rewritten.graph.node).index(product) :]
    rewritten.graph.output[0].name = product.input[0]
    joined = torch.from_numpy(run(rewritten, {"x": x}))
    (kernel,) = [w for w in rewritten.graph.initializer if w.name == product.input[1]]
    kernel = torch.from_numpy(onnx.numpy_helper.to_array(kernel).copy())
    found = torch.nn.functional.conv_transpose2d(joined.double(), kernel.double(), groups=2)
    expected = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(x).double(), torch.from_numpy(weight).double(), groups=2
    )
    assert relative_error(found.numpy(), expected.numpy()) < 1e-4


def test_names_stay_and_weights_are_split_exactly():
    weight = normal(64, 64)
    proto = model(
        "(float[5,64] x) => (float[5,64] y) { a = MatMul (x, k) r = Relu (a) y = MatMul (r, k) }",
        k=weight,
    )
    rewritten, counts = split(proto)
    assert counts == {"MatMul": 2}
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in rewritten.graph.initializer}
    assert set(weights) == {"k__split"}
    high, low, again = np.split(weights["k__split"], 3)
    assert np.array_equal(high + low, weight)
    assert np.array_equal(high, again)
    assert not (high.view(np.uint32) & 0xFFFF).any()
    made = {name: node.op_type for node in rewritten.graph.node for name in node.output}
    assert (made["a"], made["r"], made["y"]) == ("MatMul", "Relu", "MatMul")
    assert [v.name for v in (*rewritten.graph.input, *rewritten.graph.output)] == ["x", "y"]


def test_names_that_are_taken_stay():
    text = "(float[2,2] x, float[2,2] x__hi) => (float[2,2] y__hi, float[2,2] y)"
    proto = model(text + " { y__hi = Neg (x__hi) y = MatMul (x, k) }", k=normal(2, 2))
    rewritten, _ = split(proto)
    inputs = {"x": normal(2, 2), "x__hi": normal(2, 2)}
    assert np.array_equal(run(rewritten, inputs), run(proto, inputs))
    assert [v.name for v in rewritten.graph.output] == ["y__hi", "y"]


def test_an_operand_is_split_once_for_all_that_read_it():
    text = "(float[2,4] x) => (float[2,4] y) { a = MatMul (x, k) b = MatMul (x, l) y = Add (a, b) }"
    rewritten, _ = split(model(text, k=normal(4, 4), l=normal(4, 4)))
    kinds = [node.op_type for node in rewritten.graph.node]
    assert (kinds.count("Cast"), kinds.count("Concat"), kinds.count("MatMul")) == (2, 1, 2)


@pytest.mark.parametrize(
    "text",
    [
        "(float16[2,2] x, float16[2,2] k) => (float16[2,2] y) { y = MatMul (x, k) }",
        "(int32[2,2] x, int32[2,2] k) => (int32[2,2] y) { y = MatMul (x, k) }",
        "(float[2,2] x, float[2,2] k) => (float[2,2] y) { y = Mul (x, k) }",
        "(int8[2,2] x, int8[2,2] k, float s) => (float[2,2] y)"
        " { a = DequantizeLinear (x, s) b = DequantizeLinear (k, s) t = Transpose (b)"
        " y = MatMul (a, t) }",
    ],
    ids=["fp16", "integers", "no product", "quantized"],
)
def test_other_nodes_than_fp32_products_stay(text):
    proto = model(text)
    rewritten, counts = split(proto)
    assert counts == {}
    assert [node.op_type for node in rewritten.graph.node] == [n.op_type for n in proto.graph.node]


def test_a_product_with_one_quantized_operand_is_split():
    text = (
        "(float[2,2] x, int8[2,2] k, float s) => (float[2,2] y)"
        " { b = DequantizeLinear (k, s) y = MatMul (x, b) }"
    )
    assert split(model(text))[1] == {"MatMul": 1}


def test_only_what_is_left_in_fp32_is_split(tmp_path):
    graph = read_model(tiny_models.dense(tmp_path / "m.onnx"))
    autocast(graph, ir.DataType.FLOAT16, keep_fp32=("/dense.1",))
    assert split_fp32_products(graph)[0] == {"Gemm": 1}
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)


def test_external_weights_are_read_when_the_model_is_saved(tmp_path):
    path = tiny_models.external_weights(tmp_path / "m.onnx")
    x = {"x": normal(1, 64)}
    expected = run(onnx.load(path), x)
    graph = ir.load(path)
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    assert split_fp32_products(graph)[0] == {"MatMul": 1}
    (tmp_path / "elsewhere.bin").rename(tmp_path / "weights.bin")
    ir.save(graph, tmp_path / "split.onnx", external_data="split.data")
    assert (tmp_path / "split.data").stat().st_size >= 2 * 64 * 64 * 4
    assert relative_error(run(onnx.load(tmp_path / "split.onnx"), x, TF32), expected) < 1e-5


def test_an_opset_without_bf16_is_refused_where_there_are_products():
    text = "(float[2,2] x, float[2,2] k) => (float[2,2] y) { y = %s (x, k) }"
    assert split(model(text % "Add", opset=6))[1] == {}
    with pytest.raises(UnsupportedError, match=r"MatMul in TF32 .* opset 6.*too old.*allow TF32"):
        split(model(text % "MatMul", opset=6))


def test_products_in_fp16_ask_for_no_opset():
    text = "(float16[2,2] x, float16[2,2] k) => (float16[2,2] y) { y = MatMul (x, k) }"
    assert split(model(text, opset=12))[1] == {}


def test_a_product_of_unknown_type_is_rejected():
    text = (
        '<ir_version: 9, opset_import: ["": 18, "own": 1]> g (float[2,2] x) => (float[2,2] y)'
        " { a = own.Op (x) b = own.Op (a) c = %s (a, b) y = own.Op (c) }"
    )
    graph = ir.from_proto(onnx.parser.parse_model(text % "MatMul"))
    with pytest.raises(ModelError, match=r"the type of MatMul .* neither given nor inferred"):
        split_fp32_products(graph)
    assert split_fp32_products(ir.from_proto(onnx.parser.parse_model(text % "Add")))[0] == {}


@pytest.mark.slow
def test_the_golden_unet_in_tf32(golden_onnx):
    """Its outputs are those of the original, which PyTorch computed in FP32."""
    proto = onnx.load(golden_onnx)
    rewritten, counts = split(proto)
    assert set(counts) == {"Conv", "Gemm", "MatMul"}
    case = golden_unet.cases()[0]
    inputs = {name: case[name] for name in ("latents", "encoder_hidden_states")}
    inputs["timestep"] = case["timestep"].reshape(1)
    assert relative_error(run(rewritten, inputs, TF32), case["noise_pred"]) < 2e-5
    assert relative_error(run(proto, inputs, TF32), case["noise_pred"]) > 1e-3
