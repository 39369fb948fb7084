"""Constants and static shapes folded, without a change of what is computed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import f32, i64, model, normal
from onnx.reference import ReferenceEvaluator

from trt_native.graph.folding import fold_constants

BRANCHES = """(float[2, 3] x) => (float[2, 3] y) {
    s = Size(x) c = Equal(s, six)
    y = If(c) <then_branch = t () => (float[2, 3] p) { q = Mul(x, two) p = Add(q, x) },
               else_branch = e () => (float[2, 3] r) { r = Neg(x) }> }"""


@pytest.mark.parametrize(
    ("text", "left", "weights"),
    [
        (
            """(float[2, 3] x) => (float[6] y) {
            s = Shape(x) p = ReduceProd<keepdims = 1>(s) y = Reshape(x, p) }""",
            ["Reshape"],
            {},
        ),
        (
            """(float[2, n] x) => (int64[1] y) { s = Shape<start = 0, end = 1>(x)
            y = Add(s, s) }""",
            ["Identity"],
            {},
        ),
        (
            "(float[2, n] x) => (int64[2] y) { s = Shape(x) y = Add(s, s) }",
            ["Shape", "Add"],
            {},
        ),
        (
            "(int64[3, 2] x) => (int64[3, 2] y) { y = EyeLike(x) }",
            ["Identity"],
            {},
        ),
        (BRANCHES, ["Mul", "Add", "Identity"], {"six": i64(6), "two": f32(2)}),
        (BRANCHES, ["Neg", "Identity"], {"six": i64(5), "two": f32(2)}),
        (
            """(float[2, 3] x) => (float[300, 300] y) { y = Expand(one, big) }""",
            ["Expand"],
            {"one": f32(1), "big": i64(300, 300)},
        ),
        ("(float[2, 3] x) => (float[2, 3] y) { y = RandomNormalLike(x) }", None, {}),
    ],
)
def test_what_is_left_computes_the_same(text, left, weights):
    graph = model(text, 20, **weights)
    before = ir.to_proto(graph)
    fold_constants(graph)
    after = ir.to_proto(graph)
    onnx.checker.check_model(after)
    assert [n.op_type for n in after.graph.node] == (left or ["RandomNormalLike"])
    if left is not None:
        inputs = {"x": np.zeros((3, 2), np.int64) if "EyeLike" in text else normal(0, 2, 3)}
        expected, found = (ReferenceEvaluator(p).run(None, inputs) for p in (before, after))
        np.testing.assert_array_equal(found, expected)
    assert fold_constants(graph) == 0
