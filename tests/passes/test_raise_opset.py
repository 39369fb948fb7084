"""Raised opsets, against ONNX's checker, its version converter and onnx.reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import f32, i64, model, normal
from onnx.reference import ReferenceEvaluator

from trt_native.errors import UnsupportedError
from trt_native.passes.normalize import normalize
from trt_native.passes.raise_opset import opset_problems, raise_opset, require_opset
from trt_native.reference.evaluator import evaluator


def run(graph, **inputs):
    proto = graph if isinstance(graph, onnx.ModelProto) else ir.to_proto(graph)
    return ReferenceEvaluator(proto).run(None, inputs)


def reference(graph, **inputs):
    """The outputs by the evaluator that has operators of every opset right."""
    proto = ir.to_proto(graph)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    return evaluator(proto.graph, opsets).run(None, inputs)


CUBE = "(float[2, 3, 4] x) => (float[a, b, c] y)"
IMAGE = "(float[1, 4, 4, 6] x) => (float[n, c, h, w] y)"
NORMS = {"scale": normal(1, 4), "bias": normal(2, 4), "mean": normal(3, 4), "var": f32(1, 2, 3, 4)}
GROUPS = {"scale": f32(1, 2), "bias": f32(3, -4)}
REGION = {"rois": f32([[0.3, 0.2, 3.4, 2.9]]), "index": i64(0)}
CLASSES = {"i": i64(0, 2), "d": i64(3), "v": f32(0, 1)}
GRID = {"g": normal(4, 1, 2, 3, 2, scale=0.5)}
UPDATES = {"i": np.array([[[1, 0]]]), "u": f32([[[8, 9]]])}
THEN = "then_branch = p () => (float[a, b, c] u) { u = Softmax(x) }"
ELSE = "else_branch = q () => (float[a, b, c] v) { v = ReduceSum(x) }"
OF_CUBES = [  # opset, nodes, initializers
    (7, "y = Softmax(x)", {}),
    (9, "y = Softmax <axis = 2> (x)", {}),
    (11, "y = LogSoftmax <axis = 0> (x)", {}),
    (11, "y = Hardmax <axis = -2> (x)", {}),
    (7, "t = Unsqueeze <axes = [0, 2]> (x) y = Squeeze <axes = [0, 2]> (t)", {}),
    (11, "t = Unsqueeze <axes = [0]> (x) y = Squeeze(t)", {}),
    (9, "y = ReduceSum <axes = [1]> (x)", {}),
    (7, "y = ReduceMean <axes = [-1]> (x)", {}),
    (7, "a, b = Split <axis = 2> (x) y = Sub(a, b)", {}),
    (7, "a, y = Split <axis = 2, split = [1, 3]> (x)", {}),
    (7, "y = Slice <axes = [2, 1], starts = [1, 0], ends = [-1, 99]> (x)", {}),
    (9, "y = Slice <starts = [1], ends = [2]> (x)", {}),
    (7, "y = Clip <min = -0.5, max = 0.25> (x)", {}),
    (10, "y = Clip <min = 0.0> (x)", {}),
    (7, "t = Neg(x) y = Clip <max = 0.5> (t)", {}),
    (7, "y = Pad <pads = [0, 1, 0, 0, 0, 2], value = 7.5> (x)", {}),
    (10, 'y = Pad <mode = "reflect", pads = [0, 1, 2, 0, 1, 0]> (x)', {}),
    (7, "v, i = TopK <axis = 1, k = 2> (x) y = Neg(v)", {}),
    (10, "y, i = TopK(x, k)", {"k": i64(3)}),
    (7, "y = Dropout <ratio = 0.3> (x)", {}),
    (10, "y = Dropout <ratio = 0.3> (x)", {}),
    (7, "i = ArgMax <axis = 1> (x) y = Cast <to = 1> (i)", {}),
    (9, "y = Scatter <axis = 2> (x, i, u)", UPDATES),
    (9, "t = OneHot(i, d, v) y = MatMul(t, x)", CLASSES),
    (17, "a, b = Split <axis = 2> (x) y = DFT(a)", {}),
    (11, f"y = If(t) <{THEN}, {ELSE}>", {"t": np.array(True)}),
]
NORM = "(x, scale, bias, mean, var)"
OF_IMAGES = [
    (7, f"y = BatchNormalization <spatial = 1> {NORM}", NORMS),
    (9, f"y = BatchNormalization <epsilon = 0.01> {NORM}", NORMS),
    (7, 'y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 1.5]> (x)', {}),
    (9, 'y = Upsample <mode = "linear"> (x, s)', {"s": f32(1, 1, 2, 2)}),
    (10, 'y = Resize <mode = "nearest"> (x, s)', {"s": f32(1, 1, 0.5, 1 / 3)}),
    (10, 'y = Resize <mode = "linear"> (x, s)', {"s": f32(1, 1, 0.6, 1.7)}),
    (11, "y = Resize(x, r, s)", {"r": f32()[:0], "s": f32(1, 1, 2, 2)}),
    (10, "y = RoiAlign <output_height = 2, output_width = 2> (x, rois, index)", REGION),
    (7, "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)", {}),
    (16, "y = GridSample(x, g)", GRID),
    (16, 'y = GridSample <mode = "bicubic"> (x, g)', GRID),
    (18, "y = GroupNormalization <num_groups = 2> (x, scale, bias)", GROUPS),
    (18, "s = Exp(scale) y = GroupNormalization <num_groups = 2> (x, s, bias)", GROUPS),
]
OLD = [*((CUBE, *case) for case in OF_CUBES), *((IMAGE, *case) for case in OF_IMAGES)]


@pytest.mark.parametrize(("interface", "opset", "nodes", "weights"), OLD, ids=lambda v: str(v)[:40])
def test_old_operators_compute_the_same(interface, opset, nodes, weights):
    original = model(f"{interface} {{ {nodes} }}", opset, **weights)
    normalize(original)
    x = normal(0, *original.graph.inputs[0].shape.numpy())
    (expected,) = reference(original, x=x)
    raised = require_opset(original, 22, "Tests")
    assert raised is not None
    assert raised.opset == original.opset_imports[""] == 22
    onnx.checker.check_model(ir.to_proto(original), full_check=True)
    (found,) = reference(original, x=x)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_rewritten_nodes_are_counted_and_keep_their_names():
    original = model(f"{CUBE} {{ [first] t = Softmax(x) [second] y = Relu(t) }}", 9)
    raised = require_opset(original, 13, "Tests")
    assert str(raised) == "raised to opset 13, rewritten for it: 1 Softmax"
    named = [(node.op_type, node.name) for node in original.graph]
    assert named[-2:] == [("Reshape", "first"), ("Relu", "second")]
    assert [value.name for node in original.graph for value in node.outputs][-2:] == ["t", "y"]


REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")


@pytest.mark.parametrize("axes", ["<axes = [1, -1]>", "<axes = [0], keepdims = 0>", ""])
@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reductions_compute_the_same(operator, axes):
    rank = "float[a, b]" if "keepdims" in axes else "float[a, b, c]"
    original = model(f"(float[2, 3, 4] x) => ({rank} y) {{ y = Reduce{operator}{axes}(x) }}", 13)
    x = np.abs(normal(0, 2, 3, 4)) + np.float32(0.1)
    converted = onnx.version_converter.convert_version(ir.to_proto(original), 18)
    before = run(original, x=x)[0]
    assert require_opset(original, 18, "Tests").opset == 18
    raised = ir.to_proto(original)
    onnx.checker.check_model(raised, full_check=True)
    assert raised.opset_import[0].version == 18
    np.testing.assert_array_equal(run(raised, x=x)[0], before)
    np.testing.assert_array_equal(run(raised, x=x)[0], run(converted, x=x)[0])


def test_split_computes_the_same():
    original = model(
        """(float[2, 6] x) => (float[2, 2] a, float[2, 2] b, float[2, 2] c, float[2, 1] d) {
            a, b, c = Split<axis = 1>(x)
            d, e = Split<axis = 1>(x, sizes)
        }""",
        13,
        sizes=np.array([1, 5], np.int64),
    )
    x = normal(0, 2, 6)
    before = run(original, x=x)
    assert require_opset(original, 18, "Tests").opset == 18
    onnx.checker.check_model(ir.to_proto(original), full_check=True)
    for found, expected in zip(run(original, x=x), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert "num_outputs" not in original.graph[1].attributes


def test_reductions_in_bodies_are_rewritten_and_names_stay_unique():
    original = model(
        """(float[2, 3] x, bool c) => (float[2, 1] y) {
            y = If(c) <
                then_branch = t () => (float[2, 1] p) { p = ReduceMean<axes = [1]>(x) },
                else_branch = e () => (float[2, 1] q) { q = ReduceMax<axes = [1]>(x) }
            >
        }""",
        13,
        p__value=normal(1, 2),
    )
    x = normal(0, 2, 3)
    before = [run(original, x=x, c=np.array(c))[0] for c in (True, False)]
    require_opset(original, 18, "Tests")
    onnx.checker.check_model(ir.to_proto(original), full_check=True)
    for c, expected in zip((True, False), before, strict=True):
        np.testing.assert_array_equal(run(original, x=x, c=np.array(c))[0], expected)
    assert original.graph.initializers["p__value"].dtype == ir.DataType.FLOAT


def test_a_model_of_the_opset_stays():
    original = model("(float[2] x) => (float[2] y) { y = Relu(x) }", 19)
    before = ir.to_proto(original).SerializeToString()
    assert require_opset(original, 19, "Tests") is None
    assert require_opset(original, 13, "Tests") is None
    assert ir.to_proto(original).SerializeToString() == before


SCALES = {"s": f32(1, 1, 0.6, 2)}
FOR_TF = 'coordinate_transformation_mode = "tf_half_pixel_for_nn"'
BODY = "body = b (float[2] i) => (float[2] o) { o = Neg(i) }"
NEAREST = 'y = Resize <mode = "nearest"> (x, s)'
MASKED = "(float[2] x) => (float[2] y, float[2] m)"
TRAINED = "(float[2, 4] x) => (float[2, 4] y, float[4] m)"
GROUPED = "(float[1, C, 4] x) => (float[1, C, 4] y)"
INDEXED = "(int64[4] x) => (float[a, b] y)"
LACKING = {  # opset, text, initializers
    "Dropout with a mask": (7, f"{MASKED} {{ y, m = Dropout(x) }}", {}),
    "Resize to the nearest that shrinks": (10, f"{IMAGE} {{ {NEAREST} }}", SCALES),
    "without a whole inverse": (10, f"{IMAGE} {{ {NEAREST} }}", {"s": f32(1, 1, 0.6, 1)}),
    "by computed scales": (10, f"{IMAGE} {{ t = Neg(s) y = Resize(x, t) }}", SCALES),
    "with tf_half": (11, f"{IMAGE} {{ y = Resize <{FOR_TF}> (x, r, s) }}", {"r": i64(), **SCALES}),
    "indices that may be negative": (9, f"{INDEXED} {{ y = OneHot(x, d, v) }}", CLASSES),
    "an unknown number of channels": (
        18, f"{GROUPED} {{ y = GroupNormalization <num_groups = 2> (x, scale, bias) }}", GROUPS
    ),
    "the outputs of training": (
        9, f"{TRAINED} {{ y, m, v, n, w = BatchNormalization {NORM} }}", NORMS
    ),
    "opset 6 is too old": (6, "(float[2] x) => (float[2] y) { y = Identity(x) }", {}),
    "Scan changed since": (8, f"{CUBE} {{ y = Scan <num_scan_inputs = 1, {BODY}> (, x) }}", {}),
}  # fmt: skip


@pytest.mark.parametrize("message", LACKING)
def test_operators_without_an_equal_form_are_an_error(message):
    opset, text, weights = LACKING[message]
    original = model(text, opset, **weights)
    nodes = [str(node) for node in original.graph]
    with pytest.raises(
        UnsupportedError, match=f"Tests need opset 22; .* opset {opset} .*{message}"
    ):
        require_opset(original, 22, "Tests")
    assert opset_problems(original, 22)
    assert [str(node) for node in original.graph] == nodes
    assert original.opset_imports == {"": opset}


def test_operators_of_other_domains_have_any_opset():
    original = model("(float[2] x) => (float[2] y) { y = Relu(x) }", 13)
    original.graph[0].domain, original.graph[0].op_type = "own", "Softmax"
    original.opset_imports["own"] = 1
    assert require_opset(original, 19, "Tests").opset == 19
    assert original.opset_imports == {"": 19, "own": 1}


CONV = "(TYPE[1, 3, 4, 4] x, TYPE[2, 3, 1, 1] w) => (TYPE[1, 2, 4, 4] y) { y = Conv(x, w) }"


def test_convolutions_get_an_opset_that_has_bf16():
    original = model(CONV.replace("TYPE", "float"), 18)
    assert raise_opset(original).opset == 22
    assert raise_opset(original) is None
    raised = model(CONV.replace("TYPE", "bfloat16"), original.opset_imports[""])
    onnx.checker.check_model(ir.to_proto(raised), full_check=True)
    too_old = ir.to_proto(model(CONV.replace("TYPE", "float"), 18))
    for value in (*too_old.graph.input, *too_old.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(too_old, check_type=True, strict_mode=True)


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("y = MatMul(x, x)", 18),  # has BF16 already
        ("y = Conv(x, x)", 22),
    ],
)
def test_other_models_keep_their_opset(text, opset):
    rank = "1, 1, 1, 1"
    original = model(f"(float[{rank}] x) => (float[{rank}] y) {{ {text} }}", opset)
    assert raise_opset(original) is None
    assert original.opset_imports[""] == opset


def test_a_convolution_without_bf16_that_cannot_be_raised_is_an_error():
    text = CONV.replace(
        "y = Conv(x, w)",
        "t = Conv(x, w) i = Cast <to = 7> (t) o = OneHot(i, d, v) s = ReduceSum(o) y = Add(t, s)",
    )
    original = model(text.replace("TYPE", "float"), 9, d=i64(3), v=f32(0, 1))
    with pytest.raises(UnsupportedError, match=r"Conv has no BF16 at opset 9.*OneHot"):
        raise_opset(original)


def test_a_model_without_bf16_where_nothing_is_lost_stays():
    text = "(float[2] x, int64[2] i) => (float[a, b] y) { t = Erf(x) y = OneHot(i, d, t) }"
    assert raise_opset(model(text, 9, d=i64(3))) is None
