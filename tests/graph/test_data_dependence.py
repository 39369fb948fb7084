"""Data-dependent shapes, against the shapes that onnx.reference finds for different data."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from helpers.text_models import i64, model, normal
from onnx.reference import ReferenceEvaluator

from trt_native.graph.data_dependence import data_dependent_outputs
from trt_native.shapes import Profile, ShapeRange

# Name: text, weights. The shape of y differs between the data sets of `data`.
DEPENDENT = {
    "nonzero": ("(float[N, 4] x) => (int64[2, K] y) { y = NonZero(x) }", {}),
    "nonzero_of_an_intermediate": (
        "(float[N, 4] x) => (float[K, 4] y)"
        " { r = Relu(x) s = ReduceSum<keepdims = 0>(r, a) n = NonZero(s) f = Flatten<axis = 0>(n)"
        "   i = Squeeze(f, z) y = Gather(x, i) }",
        {"a": i64(1), "z": i64(0)},
    ),
    "unique": ("(float[N, 4] x) => (float[K] y) { y = Unique(x) }", {}),
    "compress": (
        "(float[N, 4] x) => (float[K] y) { h = Less(x, t) f = Reshape(h, s) y = Compress(x, f) }",
        {"t": normal(0, 1) * 0, "s": i64(-1)},
    ),
    "non_max_suppression": (
        "(float[N, 4] x) => (int64[K, 3] y) { b = Unsqueeze(x, z) s = ReduceSum(x, a)"
        " t = Transpose(s) c = Unsqueeze(t, z) y = NonMaxSuppression(b, c, m, o, f) }",
        {
            "a": i64(1), "z": i64(0), "m": i64(9), "o": np.array([0.5], np.float32),
            "f": np.array([0.0], np.float32),
        },
    ),
    "range": (
        "(float[N, 4] x) => (int64[K] y) { l = ReduceMax<keepdims = 0>(x) h = Abs(l)"
        " c = Cast<to = 7>(h) y = Range(z, c, o) }",
        {"z": np.int64(0), "o": np.int64(1)},
    ),
    "expand": (
        "(float[N, 4] x) => (float[K, M, L] y) { m = ReduceMax(x) f = Reshape(m, one)"
        " a = Abs(f) c = Cast<to = 7>(a) d = Add(c, one) o = Concat<axis = 0>(d, one, one)"
        " y = Expand(x, o) }",
        {"one": i64(1)},
    ),
    "tile_constant_of_shape_slice_and_pad": (
        "(float[N, 4] x) => (float[K] y) { m = ReduceMax(x) f = Reshape(m, one) a = Abs(f)"
        " c = Cast<to = 7>(a) d = Add(c, one) v = ConstantOfShape(d) t = Tile(v, d)"
        " p = Concat<axis = 0>(d, d) q = Pad(t, p) y = Slice(q, one, d) }",
        {"one": i64(1)},
    ),
    "topk": (
        "(float[N, 4] x) => (float[N, K] y, int64[N, K] i) { h = Greater(x, z) g = Cast<to = 7>(h)"
        " m = ReduceMax<keepdims = 0>(g) f = Reshape(m, one) k = Add(f, one) y, i = TopK(x, k) }",
        {"one": i64(1), "z": np.array(9, np.float32)},
    ),
    "reshape_through_a_shape": (
        "(float[N, 4] x) => (float[K] y) { n = NonZero(x) s = Shape<start = 1>(n)"
        " y = ConstantOfShape(s) }",
        {},
    ),
    "scan_output_of_a_loop_until": (
        """(float[N, 4] x) => (float[K, N, 4] y) {
            h = Greater(x, z)
            b = Cast<to = 7>(h)
            t = ReduceMax<keepdims = 0>(b)
            m = Add(t, two)
            v, y = Loop(m, yes, x) <body = g (int64 i, bool c, float[N, 4] s)
                => (bool d, float[N, 4] e, float[N, 4] f) {
                d = Identity(c)
                e = Relu(s)
                f = Relu(s)
            }>
        }""",
        {"z": np.array(9, np.float32), "two": np.int64(2), "yes": np.True_},
    ),
    "if_with_branches_of_two_shapes": (
        """(float[N, 4] x) => (float[K, 4] y) {
            m = ReduceMax<keepdims = 0>(x)
            c = Greater(m, z)
            y = If(c) <then_branch = a () => (float[K, 4] p) { p = Identity(x) },
                       else_branch = b () => (float[L, 4] q) { q = Concat<axis = 0>(x, x) }>
        }""",
        {"z": np.array(9, np.float32)},
    ),
}  # fmt: skip

# The shape of y is the same for all data.
INDEPENDENT = {
    "plain": ("(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }", {}),
    "scatter_at_nonzero": (
        "(float[N, 4] x) => (float[N, 4] y) { n = NonZero(x) i = Transpose(n)"
        " u = GatherND(x, i) v = Neg(u) y = ScatterND(x, i, v) }",
        {},
    ),
    "reshape_by_shape": (
        "(float[N, 4] x) => (float[M, 2] y) { s = Shape(x) n = Gather(s, z) d = Mul(n, two)"
        " t = Concat<axis = 0>(d, two) y = Reshape(x, t) }",
        {"z": i64(0), "two": i64(2)},
    ),
    "range_by_shape": (
        "(float[N, 4] x) => (int64[M] y) { s = Size(x) y = Range(z, s, o) }",
        {"z": np.int64(0), "o": np.int64(1)},
    ),
    "nonzero_of_ones": (
        "(float[N, 4] x) => (int64[2, M] y) { s = Shape(x) o = ConstantOfShape<value = int64[1]"
        " {1}>(s) y = NonZero(o) }",
        {},
    ),
    "sum_of_nonzero": (
        "(float[N, 4] x) => (int64[2] y) { n = NonZero(x) y = ReduceSum<keepdims = 0>(n, a) }",
        {"a": i64(1)},
    ),
    "rank_of_nonzero": (
        "(float[N, 4] x) => (float[2] y) { n = NonZero(x) s = Shape<end = 1>(n)"
        " y = ConstantOfShape(s) }",
        {},
    ),
    "count_as_a_value": (
        "(float[N, 4] x) => (float[N, 4] y) { n = NonZero(x) s = Size(n) f = Cast<to = 1>(s)"
        " y = Div(x, f) }",
        {},
    ),
    "constant_topk": (
        "(float[N, 4] x) => (float[N, 2] y, int64[N, 2] i) { y, i = TopK(x, k) }",
        {"k": i64(2)},
    ),
    "loop_by_shape": (
        """(float[N, 4] x) => (float[K, N, 4] y) {
            s = Size(x)
            v, y = Loop(s, yes, x) <body = g (int64 i, bool c, float[N, 4] s)
                => (bool d, float[N, 4] e, float[N, 4] f) {
                d = Identity(c)
                e = Relu(s)
                f = Relu(s)
            }>
        }""",
        {"yes": np.True_},
    ),
    "state_of_a_loop_until": (
        """(float[N, 4] x) => (float[N, 4] y) {
            h = Greater(x, z)
            b = Cast<to = 7>(h)
            m = ReduceMax<keepdims = 0>(b)
            y = Loop(m, yes, x) <body = g (int64 i, bool c, float[N, 4] s)
                => (bool d, float[N, 4] e) {
                d = Identity(c)
                e = Neg(s)
            }>
        }""",
        {"z": np.array(9, np.float32), "yes": np.True_},
    ),
    "if_with_branches_of_one_shape": (
        """(float[N, 4] x) => (float[N, 4] y) {
            m = ReduceMax<keepdims = 0>(x)
            c = Greater(m, z)
            y = If(c) <then_branch = a () => (float[N, 4] p) { p = Neg(x) },
                       else_branch = b () => (float[N, 4] q) { q = Relu(x) }>
        }""",
        {"z": np.array(9, np.float32)},
    ),
    "if_by_shape": (
        """(float[N, 4] x) => (float[K, 4] y) {
            m = Size(x)
            c = Greater(m, z)
            y = If(c) <then_branch = a () => (float[K, 4] p) { p = Identity(x) },
                       else_branch = b () => (float[L, 4] q) { q = Concat<axis = 0>(x, x) }>
        }""",
        {"z": np.int64(99)},
    ),
    "scan": (
        """(float[N, 4] x) => (float[4] v, float[N, 4] y) {
            v, y = Scan<num_scan_inputs = 1, body = g (float[4] s, float[4] r)
                => (float[4] e, float[4] f) {
                e = Add(s, r)
                f = Neg(e)
            }>(first, x)
        }""",
        {"first": np.zeros(4, np.float32)},
    ),
}  # fmt: skip

PROFILE = Profile({"x": ShapeRange.parse("1x4:3x4:6x4")})


def data():
    """Arrays of one shape, of other values."""
    few = np.zeros((3, 4), np.float32)
    few[1, 2], few[2, 2] = 1.5, 11
    return few, 3 * np.abs(normal(1, 3, 4)) + 0.1, -np.ones((3, 4), np.float32)


def shapes_of_y(graph):
    evaluator = ReferenceEvaluator(ir.to_proto(graph))
    return {np.shape(evaluator.run(["y"], {"x": x})[0]) for x in data()}


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_shape_that_depends_on_data(name):
    text, weights = DEPENDENT[name]
    graph = model(text, **weights)
    assert len(shapes_of_y(graph)) > 1
    assert "y" in data_dependent_outputs(graph, [PROFILE])


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_shape_that_does_not(name):
    text, weights = INDEPENDENT[name]
    graph = model(text, **weights)
    assert len(shapes_of_y(graph)) == 1
    assert not data_dependent_outputs(graph, [PROFILE])


def test_values_of_a_shape_input_are_known_before_a_run():
    text = "(float[N, 4] x, int64[2] s) => (float[M, K] y) { y = Expand(x, s) }"
    assert data_dependent_outputs(model(text), [PROFILE]) == {"y"}
    assert not data_dependent_outputs(model(text), [PROFILE], ["s"])
