"""The products of a graph that are quantized, and the reasons against the others."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models
from helpers.quantized_models import attention, model, node, quantize
from helpers.text_models import normal
from onnx.reference import ReferenceEvaluator

from trt_native.config import QUANTIZED_OPS
from trt_native.errors import SpecError
from trt_native.graph.inference import infer_types
from trt_native.passes.quantize_rules import (
    REASONS,
    ProductSelection,
    SkipReason,
    attention_operands,
    default_ops,
    find_weight,
)


def test_products_around_a_softmax_stay():
    quantized, report = quantize(attention())
    assert report.quantized == {"MatMul": 4}
    assert report.skipped == {"attention": {"MatMul": 2}}
    assert [v.name for v in node(quantized, "scores").inputs] == ["q", "kt"]
    assert [v.name for v in node(quantized, "mix").inputs] == ["p", "v"]


def test_other_products_of_two_activations_are_quantized():
    original = model(
        "(float[2, 32, 16] x) => (float[2, 32, 32] y) {"
        " t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(x, t) }"
    )
    _, report = quantize(original)
    assert (report.quantized, report.activations, report.weights) == ({"MatMul": 1}, 2, 0)


@pytest.mark.parametrize(
    ("expression", "shape", "kernel", "reasons"),
    [
        ("Conv(x, w)", "1, 15, 4, 4", (16, 15, 1, 1), {"small": {"Conv": 1}}),
        ("Conv(x, w)", "1, 16, 4, 4", (15, 16, 1, 1), {"small": {"Conv": 1}}),
        ("MatMul(x, w)", "1, 1, 4, 15", (15, 16), {"small": {"MatMul": 1}}),
        ("MatMul(x, w)", "1, 1, 4, 16", (16, 15), {"small": {"MatMul": 1}}),
        ("MatMul(x, w)", "1, 1, 4, 16", (16,), {"small": {"MatMul": 1}}),
        ("ConvTranspose(x, w)", "1, 16, 4, 4", (16, 16, 1, 1), {"operator": {"ConvTranspose": 1}}),
    ],
)
def test_small_and_other_products_stay(expression, shape, kernel, reasons):
    rank = min(shape.count(",") + len(kernel) - 1, 4) if len(kernel) < 2 else 4
    original = model(
        f"(float[{shape}] x, float[16, 16] z) => (float[{', '.join('abcd'[:rank])}] y,"
        f" float[16, 16] u) {{ y = {expression} u = MatMul(z, square) }}",
        w=normal(0, *kernel),
        square=normal(1, 16, 16),
    )
    _, report = quantize(original)
    assert report.skipped == reasons
    assert report.quantized == {"MatMul": 1}


def test_patterns_and_operators():
    original = attention()
    _, report = quantize(original, skip=["out", "sc*"])
    assert report.skipped["skip"] == {"MatMul": 2}
    assert report.patterns == {"out": 1, "sc*": 1}
    with pytest.raises(
        SpecError, match=r"exclude or keep_fp32 pattern 'outt' matches no node name; close: out"
    ):
        quantize(original, skip=["outt"])
    with pytest.raises(SpecError, match="operators to quantize: Softmax; choose from Conv, MatMul"):
        quantize(original, ops=["Softmax"])
    with pytest.raises(SpecError, match=r"0.0% of the multiply-adds can be quantized; left alone"):
        quantize(original, ops=["Conv"])


def unet() -> ir.Model:
    kernels = ["conv_in.weight", "up.0.conv1.weight", "kernel"]
    proto = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["x", "conv_in.weight"], ["a"], name="node_0"),
            onnx.helper.make_node("Gemm", ["t", "w"], ["e"], name="/time_embedding/linear_1/Gemm"),
            onnx.helper.make_node("Conv", ["a", "up.0.conv1.weight"], ["b"], name="block"),
            onnx.helper.make_node("Conv", ["b", "kernel"], ["c"], name="up.0.conv_shortcut/Conv"),
            onnx.helper.make_node("MatMul", ["c", "square"], ["d"], name="up.0.conv_inner/MatMul"),
            onnx.helper.make_node("Add", ["d", "a"], ["y"], name="sum"),
        ],
        "unet",
        [
            tiny_models.tensor("x", tiny_models.FLOAT, [1, 16, 4, 16]),
            tiny_models.tensor("t", tiny_models.FLOAT, [1, 16]),
        ],
        [
            tiny_models.tensor("y", tiny_models.FLOAT, [1, 16, 4, 16]),
            tiny_models.tensor("e", tiny_models.FLOAT, [1, 16]),
        ],
        [
            *(onnx.numpy_helper.from_array(normal(0, 16, 16, 1, 1), name) for name in kernels),
            *(onnx.numpy_helper.from_array(normal(1, 16, 16), name) for name in ("w", "square")),
        ],
    )
    imports = [onnx.helper.make_opsetid("", 19)]
    return ir.from_proto(onnx.helper.make_model(proto, opset_imports=imports, ir_version=10))


def test_the_diffusion_preset_knows_sensitive_layers_by_node_and_by_weight():
    _, report = quantize(unet(), preset="diffusion-unet")
    assert report.skipped == {"preset": {"Conv": 2, "Gemm": 1}}
    assert report.quantized == {"Conv": 1, "MatMul": 1}
    _, report = quantize(unet())
    assert report.quantized == {"Conv": 3, "Gemm": 1, "MatMul": 1}


def test_fp8_leaves_the_convolutions_of_a_unet_alone_unless_asked():
    _, report = quantize(unet(), preset="diffusion-unet", format="fp8")
    assert report.quantized == {"MatMul": 1}
    assert report.skipped == {"operator": {"Conv": 3}, "preset": {"Gemm": 1}}
    _, report = quantize(unet(), preset="diffusion-unet", format="fp8", ops=["Conv", "MatMul"])
    assert report.quantized == {"Conv": 1, "MatMul": 1}


def test_the_diffusion_preset_on_another_model_is_an_error():
    with pytest.raises(SpecError, match="preset diffusion-unet: no node or weight"):
        quantize(attention(), preset="diffusion-unet")


RESIDUAL = """(float[N, 16, 4, 4] x, float[N, 16, 1, 1] t) => (float[N, 16, 4, 4] y) {
    a = Relu(x)
    b = Conv(a, w1)
    [time] c = Add(b, t)
    d = Conv(c, w2)
    [shift] e = Add(d, shift)
    f = Conv(e, w3)
    [residual] g = Add(f, a)
    h = Conv(g, w4)
    i = Conv(g, w1)
    [both] y = Add(h, i)
}"""


def residual() -> ir.Model:
    weights = {f"w{i}": normal(i, 16, 16, 1, 1, scale=0.2) for i in (1, 2, 3, 4)}
    return model(RESIDUAL, shift=normal(0, 16, 1, 1), **weights)


def test_of_a_residual_sum_only_the_skip_path_is_quantized():
    quantized, report = quantize(residual())
    origins = {
        name: [
            v.producer().op_type if v.producer() else v.name for v in node(quantized, name).inputs
        ]
        for name in ("time", "shift", "residual", "both")
    }
    assert origins == {
        "time": ["Conv", "t"],
        "shift": ["Conv", "shift"],
        "residual": ["Conv", "DequantizeLinear"],
        # Of two convolutions the later one computes the sum.
        "both": ["DequantizeLinear", "Conv"],
    }
    # The first sum's skip path had its pair already.
    assert report.residuals == 1
    assert report.activations == 5


@pytest.mark.parametrize(
    "options",
    [{"format": "fp8"}, {"format": "int8-weights"}, {"skip": ["op:Add"]}, {"ops": ["MatMul"]}],
    ids=str,
)
def test_residual_sums_stay_where_no_int8_convolution_takes_them(options):
    original = residual()
    if options.get("ops"):
        original = model(
            "(float[2, 16] x) => (float[2, 16] y) { a = MatMul(x, w) y = Add(a, x) }",
            w=normal(0, 16, 16),
        )
    _, report = quantize(original, **options)
    assert report.residuals == 0


def test_tensors_without_a_range_are_named():
    original = attention()
    _, report = quantize(original, {"x": 3.0})
    assert report.quantized == {"MatMul": 3}
    assert report.skipped["range"] == {"MatMul": 1}
    assert report.without_range == ("o",)
    with pytest.raises(SpecError, match=r"only 50.0% .*80.0% are asked for.*no range: o$"):
        quantize(original, {"x": 3.0}, min_coverage=0.8)
    with pytest.raises(SpecError, match=r"only 0.0% .*2 tensors have no range: x, o"):
        quantize(original, {"X": 3.0})
    with pytest.raises(SpecError, match=r"1 ranges are not positive numbers: x \(nan\)"):
        quantize(original, {"x": float("nan")})


def test_a_computed_operand_is_not_a_weight():
    original = model(
        """(float[2, 16] x) => (float[2, 16] y, float[2, 16] z) {
            doubled = Add(w, w)
            y = MatMul(x, doubled)
            z = MatMul(x, w)
        }""",
        w=normal(0, 16, 16),
    )
    _, report = quantize(original)
    assert report.skipped == {"weight": {"MatMul": 1}}


@pytest.mark.parametrize(
    ("text", "turned"),
    [
        ("v = Identity(w)", lambda w: w),
        ("v = Transpose(w)", lambda w: w.transpose()),
        ("v = Transpose<perm = [1, 2, 0]>(w)", lambda w: w.transpose(1, 2, 0)),
        (
            "a = Transpose<perm = [1, 2, 0]>(w) b = Identity(a) v = Transpose<perm = [0, 2, 1]>(b)",
            lambda w: w.transpose(1, 2, 0).transpose(0, 2, 1),
        ),
        ("a = Transpose(w) b = Cast<to = 10>(a) v = Transpose(b)", lambda w: w),
    ],
    ids=["copy", "reversed", "permuted", "twice", "back and cast"],
)
def test_a_weight_is_found_with_its_permutation(text, turned):
    weight = normal(0, 2, 3, 4)
    original = model(
        f"(float[2] x) => (float[2] y, float[a, b, c] v) {{ {text} y = Relu(x) }}", w=weight
    )
    infer_types(original)
    graph = original.graph
    values = {value.name: value for item in graph for value in item.outputs}
    found = find_weight(values["v"])
    assert found.value is values["v"]
    assert found.source is graph.initializers["w"]
    array = weight if found.perm is None else weight.transpose(found.perm)
    np.testing.assert_array_equal(array, turned(weight))


def test_inputs_and_computed_or_integer_values_are_not_weights():
    graph = model(
        """(float[2] x) => (float[2] y, float[2] z, int64[2] t) {
            s = Add(w, w)
            y = Identity(s)
            z = Identity(x)
            t = Identity(i)
        }""",
        w=normal(0, 2),
        i=np.array([1, 2]),
    ).graph
    assert [find_weight(value) for value in (*graph.outputs, graph.inputs[0])] == [None] * 4


def selection(original, ranges, **options):
    defaults = {"format": "int8", "ops": QUANTIZED_OPS, "skip": (), "preset": "default"}
    return ProductSelection(original, ranges, **{**defaults, **options})


@pytest.mark.parametrize(
    ("expression", "shapes", "operands"),
    [
        ("Conv(x, w)", ((1, 16, 2, 2), (20, 16, 1, 1)), [(0, None), (1, 0)]),
        ("MatMul(x, w)", ((4, 16), (16, 20)), [(0, None), (1, 1)]),
        ("MatMul(x, w)", ((3, 4, 16), (3, 16, 20)), [(0, None), (1, 2)]),
        ("MatMul(w, x)", ((16, 20), (20, 16)), [(0, 0), (1, None)]),
        ("Gemm(x, w)", ((4, 16), (16, 20)), [(0, None), (1, 1)]),
        ("Gemm<transB = 1>(x, w)", ((4, 16), (20, 16)), [(0, None), (1, 0)]),
        ("Gemm<transA = 1>(w, x)", ((16, 20), (16, 20)), [(0, 1), (1, None)]),
    ],
)
def test_channels_of_weights_are_those_of_the_output(expression, shapes, operands):
    """Zeroing one channel of the weight zeroes one slice of the result, and no other."""
    shape = ", ".join(map(str, shapes[0]))
    rank = ", ".join("abcd"[: len(shapes[0])])
    original = model(
        f"(float[{shape}] x) => (float[{rank}] y) {{ [p] y = {expression} }}",
        w=normal(0, *shapes[1]) + 10,
    )
    (product,) = selection(original, {"x": 4.0}).chosen
    found = [(o.index, o.axis if o.weight else None) for o in product.operands]
    assert found == operands
    (axis,) = [axis for _, axis in operands if axis is not None]
    weight = np.ones(shapes[1], np.float32)
    weight[(slice(None),) * axis + (3,)] = 0
    original.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    x = np.ones(shapes[0], np.float32)
    (result,) = ReferenceEvaluator(ir.to_proto(original)).run(None, {"x": x})
    zeros = np.argwhere(result == 0)
    fixed = [axis for axis in range(result.ndim) if (zeros[:, axis] == 3).all()]
    assert len(fixed) >= 1
    assert len(zeros) == result.size // result.shape[fixed[0]]


def test_a_selection_leaves_the_model_alone():
    original = attention()
    infer_types(original)
    before = ir.to_proto(original).SerializeToString()
    found = selection(original, {"x": 4.0})
    assert ir.to_proto(original).SerializeToString() == before
    assert len(found.quantizable()) == 6
    assert list(found.without_range) == ["o"]
    assert set(found.skipped.values()) == {SkipReason.ATTENTION, SkipReason.RANGE}


def test_only_linear_layers_of_a_unet_are_fp8():
    assert default_ops("fp8", "diffusion-unet") == ("MatMul", "Gemm")
    for arguments in (("fp8", "default"), ("int8", "diffusion-unet"), ("int8-weights", "default")):
        assert default_ops(*arguments) == QUANTIZED_OPS


def test_operands_of_attention_are_read_by_no_other_product():
    assert attention_operands(attention().graph) == {"q", "kt", "p", "v"}
    original = model(
        """(float[2, 32, 32] x) => (float[2, 32, 32] y, float[2, 32, 32] z) {
            t = Transpose<perm = [0, 2, 1]>(x)
            s = MatMul(x, t)
            y = Softmax(s)
            z = MatMul(x, w)
        }""",
        w=normal(0, 32, 32),
    )
    assert attention_operands(original.graph) == {"t"}


def test_every_reason_has_a_text():
    assert REASONS.keys() == set(SkipReason)
    assert len(set(REASONS.values())) == len(SkipReason)
