"""Raised opsets, against ONNX's checker, its version converter and onnx.reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import model, normal
from onnx.reference import ReferenceEvaluator

from trt_native.errors import UnsupportedError
from trt_native.graph.opset import raise_opset, require_opset


def run(graph, **inputs):
    proto = graph if isinstance(graph, onnx.ModelProto) else ir.to_proto(graph)
    return ReferenceEvaluator(proto).run(None, inputs)


REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")


@pytest.mark.parametrize("axes", ["<axes = [1, -1]>", "<axes = [0], keepdims = 0>", ""])
@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reductions_compute_the_same(operator, axes):
    rank = "float[a, b]" if "keepdims" in axes else "float[a, b, c]"
    original = model(f"(float[2, 3, 4] x) => ({rank} y) {{ y = Reduce{operator}{axes}(x) }}", 13)
    x = np.abs(normal(0, 2, 3, 4)) + np.float32(0.1)
    converted = onnx.version_converter.convert_version(ir.to_proto(original), 18)
    before = run(original, x=x)[0]
    assert require_opset(original, 18, "Tests") == 18
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
    assert require_opset(original, 18, "Tests") == 18
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
        p__axes=normal(1, 2),
    )
    x = normal(0, 2, 3)
    before = [run(original, x=x, c=np.array(c))[0] for c in (True, False)]
    require_opset(original, 18, "Tests")
    onnx.checker.check_model(ir.to_proto(original), full_check=True)
    for c, expected in zip((True, False), before, strict=True):
        np.testing.assert_array_equal(run(original, x=x, c=np.array(c))[0], expected)
    assert original.graph.initializers["p__axes"].dtype == ir.DataType.FLOAT


def test_a_model_of_the_opset_stays():
    original = model("(float[2] x) => (float[2] y) { y = Relu(x) }", 19)
    before = ir.to_proto(original).SerializeToString()
    assert require_opset(original, 19, "Tests") is None
    assert require_opset(original, 13, "Tests") is None
    assert ir.to_proto(original).SerializeToString() == before


MATRIX = "(float[2, 3] x) => (float[2, 3] y)"
REGIONS = "(float[1, 2, 4, 4] x, float[1, 4] r, int64[1] i) => (float[a, b, c, d] y)"


@pytest.mark.parametrize(
    ("text", "opset", "message"),
    [
        (
            f"{MATRIX} {{ y = Softmax<axis = 1>(x) }}",
            12,
            "Tests need opset 19; the model has opset 12 .*Softmax changed since",
        ),
        (f"{MATRIX} {{ y = Identity(x) }}", 12, "it is too old"),
        (f"{REGIONS} {{ y = RoiAlign(x, r, i) }}", 15, "RoiAlign changed since"),
    ],
    ids=["Softmax", "old", "RoiAlign"],
)
def test_operators_that_changed_are_an_error(text, opset, message):
    original = model(text, opset)
    before = ir.to_proto(original).SerializeToString()
    with pytest.raises(UnsupportedError, match=message):
        require_opset(original, 19, "Tests")
    assert ir.to_proto(original).SerializeToString() == before


def test_operators_of_other_domains_have_any_opset():
    original = model("(float[2] x) => (float[2] y) { y = Relu(x) }", 13)
    original.graph[0].domain, original.graph[0].op_type = "own", "Softmax"
    original.opset_imports["own"] = 1
    assert require_opset(original, 19, "Tests") == 19
    assert original.opset_imports == {"": 19, "own": 1}


CONV = "(TYPE[1, 3, 4, 4] x, TYPE[2, 3, 1, 1] w) => (TYPE[1, 2, 4, 4] y) { y = Conv(x, w) }"


def test_convolutions_get_an_opset_that_has_bf16():
    original = model(CONV.replace("TYPE", "float"), 18)
    assert raise_opset(original) == 22
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
        ("y = HardSwish(x)", 14),  # lacks BF16, but nothing is lost where it stays in FP32
    ],
)
def test_other_models_keep_their_opset(text, opset):
    rank = "1, 1, 1, 1"
    original = model(f"(float[{rank}] x) => (float[{rank}] y) {{ {text} }}", opset)
    assert raise_opset(original) is None
    assert original.opset_imports[""] == opset


def test_a_convolution_without_bf16_at_an_old_opset_is_an_error():
    with pytest.raises(UnsupportedError, match="Conv has no BF16 at opset 13"):
        raise_opset(model(CONV.replace("TYPE", "float"), 13))
