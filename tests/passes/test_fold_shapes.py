"""What follows from fixed shapes, against onnx.reference."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import i64, model, normal

from trt_native.config import BuildConfig
from trt_native.graph.nodes import all_nodes
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.fold_shapes import FoldShapes
from trt_native.passes.normalize import normalize
from trt_native.reference.evaluator import evaluator
from trt_native.shapes import Profile, ShapeRange

SIZE = "s = Shape(x) n = Gather(s, axis) "


def branch(condition, then, other, kind="float[p, q]"):
    return (
        f"If({condition}) <then_branch = t () => ({kind} a) {{ {then} }},"
        f" else_branch = e () => ({kind} b) {{ {other} }}>"
    )


NESTED = branch("is8", "a = Neg(x)", "inside = Exp(x) b = Identity(inside)").replace(
    "a = Neg(x)", f"a = {branch('is4', 'a = Relu(x)', 'b = Abs(x)')}"
)
CASES = {  # nodes, what is left of them, the operators that change
    "a branch": (
        SIZE + f"c = Greater(n, four) y = {branch('c', 'a = Neg(x)', 'b = Abs(x)')}",
        ["Neg", "Identity"],
        {"If": 1},
    ),
    "the other branch": (
        SIZE + f"c = Less(n, four) y = {branch('c', 'a = Neg(x)', 'b = Abs(x)')}",
        ["Abs", "Identity"],
        {"If": 1},
    ),
    "a branch inside a branch": (
        SIZE + f"is8 = Equal(n, eight) is4 = Equal(n, four) y = {NESTED}",
        ["Abs", "Identity", "Identity"],
        {"If": 2},
    ),
    "a branch in a loop": (
        SIZE
        + "y = Loop(three, , x) <body = l (int64 i, bool go, float[p, q] v)"
        + " => (bool on, float[p, q] w)"
        + " { on = Identity(go) c = Equal(n, eight) "
        + f"w = {branch('c', 'a = Neg(v)', 'b = Abs(v)')} }}>",
        ["Loop", "Identity", "Neg", "Identity"],
        {"If": 1},
    ),
    "a branch behind a reshape": (
        "r = Reshape(x, wide) s = Shape(r) t = Gather(s, axis) c = Less(t, four) "
        + f"y = {branch('c', 'a = Neg(x)', 'b = Abs(x)')}",
        ["Neg", "Identity"],
        {"If": 1},
    ),
    "a squeeze as exporters write it": (
        "s = Shape(x) e = Slice(s, axes, ends) q = Squeeze(e) k = Less(q, four) k2 = Not(k) "
        + f"y = {branch('k2', 'a = Neg(x)', 'b = Identity(x)')}",
        ["Neg", "Identity"],
        {"If": 1, "Squeeze": 1},
    ),
    "axes of a squeeze": (
        "u = Unsqueeze(x, outer) y = Squeeze(u)",
        ["Unsqueeze", "Squeeze"],
        {"Squeeze": 1},
    ),
    "computed axes": (
        SIZE + "m = Sub(n, eight) r = Reshape(m, list) y = ReduceMax(x, r)",
        ["ReduceMax"],
        {"ReduceMax": 1},
    ),
    "a matrix": ("e = EyeLike(x) y = Add(e, x)", ["Identity", "Add"], {"EyeLike": 1}),
}  # fmt: skip
WEIGHTS = {
    "axis": i64(1), "one": i64(1), "four": i64(4), "eight": i64(8), "three": i64(3),
    "axes": np.array([1]), "ends": np.array([2]), "list": np.array([-1]),
    "wide": np.array([8, -1]), "outer": i64(0, 3),
}  # fmt: skip


def changed(graph, profiles=()):
    normalize(graph)
    one = FoldShapes(
        PassContext(config=BuildConfig(), precision=ResolvedPrecision(), profiles=profiles)
    )
    if one.needed(graph):
        one(graph)
    return one.record.get("nodes", {})


def outputs(graph, x):
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto)
    return evaluator(proto.graph, {"": 20}).run(None, {"x": x})


@pytest.mark.parametrize("rows", ["2", "N"])
@pytest.mark.parametrize("name", CASES)
def test_a_model_computes_the_same(name, rows):
    """With a dimension of the model, or one that the profiles fix; another one stays dynamic."""
    nodes, left, counts = CASES[name]
    graph = model(f"(float[{rows}, C] x) => (float[p, q] y) {{ {nodes} }}", 20, **WEIGHTS)
    if name in ("axes of a squeeze", "a matrix", "a branch behind a reshape"):
        fixed, x = ShapeRange((2, 8), (2, 8), (2, 8)), normal(0, 2, 8)
    else:
        fixed, x = ShapeRange((2, 8), (2, 8), (2 if rows == "2" else 5, 8)), normal(0, 2, 8)
    expected = outputs(graph, x)
    before = changed(graph)
    assert before == ({"Squeeze": 1} if name == "a squeeze as exporters write it" else {})
    after = changed(graph, (Profile({"x": fixed}),))
    assert Counter(before) + Counter(after) == counts
    assert [node.op_type for node in all_nodes(graph.graph)] == left
    np.testing.assert_array_equal(outputs(graph, x), expected)
    assert [str(axis) for axis in graph.graph.inputs[0].shape] == [rows, "C"]
