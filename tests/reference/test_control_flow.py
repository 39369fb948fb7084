"""Loop and Scan, against the same in Python."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from trt_native.reference.evaluator import evaluator


def run(text, *inputs, opset=18):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {text}')
    names = [value.name for value in model.graph.input]
    return evaluator(model.graph, {"": opset}).run(None, dict(zip(names, inputs, strict=True)))


COUNTING = """(int64 n, float x) => (float last, float[N] all) {
    last, all = Loop(n, , x) <body = step (int64 i, bool go, float old)
        => (bool more, float new, float row) {
            more = Identity(go)
            new = Add(old, old)
            row = Identity(new)
        }>
}"""


def test_a_loop_without_a_condition_that_collects_numbers():
    last, rows = run(COUNTING, np.int64(3), np.float32(1))
    assert last == 8
    np.testing.assert_array_equal(rows, [2, 4, 8])


def test_a_loop_that_never_runs():
    with pytest.raises(NotImplementedError, match="no iteration, so that the shape of 'row'"):
        run(COUNTING, np.int64(0), np.float32(1))


def test_a_loop_until_a_condition_that_collects_matrices():
    last, rows = run(
        """(bool c, float[2, 2] x, float limit) => (float[2, 2] last, float[N, 2, 2] all) {
        last, all = Loop(, c, x) <body = step (int64 i, bool go, float[2, 2] old)
            => (bool more, float[2, 2] new, float[2, 2] row) {
                new = Add(old, old)
                largest = ReduceMax<keepdims = 0>(new)
                more = Less(largest, limit)
                row = Neg(new)
            }>
        }""",
        np.array(True),
        np.ones((2, 2), np.float32),
        np.float32(5),
    )
    np.testing.assert_array_equal(last, np.full((2, 2), 8))
    np.testing.assert_array_equal(rows, np.multiply.outer([-2, -4, -8], np.ones((2, 2))))


def test_an_output_without_a_name_is_not_an_absent_input(rng):
    x = rng.standard_normal((4, 2)).astype(np.float32)
    found = run(
        """(int64 n, float[4, 2] x) => (float[4, 2] y) {
        y = Loop(n, , x) <body = step (int64 i, bool go, float[4, 2] old)
            => (bool more, float[4, 2] new) {
                more = Identity(go)
                k = Constant <value_ints = [1]> ()
                , indices = TopK(old, k)
                high = Constant <value_float = 0.1> ()
                new = Clip(old, , high)
            }>
        }""",
        np.int64(1),
        x,
    )[0]
    np.testing.assert_array_equal(found, x.clip(None, np.float32(0.1)))


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize(("axis", "out_axis"), [(0, 0), (1, 1), (-1, 0)])
def test_a_scan(backwards, axis, out_axis, rng):
    x = rng.standard_normal((3, 4)).astype(np.float32)
    n = x.shape[1 - axis % 2]
    last, rows = run(
        f"""(float[{n}] start, float[3, 4] x) => (float[{n}] last, float[A, B] all) {{
        last, all = Scan <num_scan_inputs = 1, scan_input_axes = [{axis}],
            scan_input_directions = [{backwards}], scan_output_axes = [{out_axis}],
            scan_output_directions = [{backwards}], body = step (float[{n}] old, float[{n}] row)
            => (float[{n}] new, float[{n}] seen) {{
                new = Add(old, row)
                seen = Mul(new, scale)
            }}>(start, x)
        }}""".replace("{", "{ scale = Constant <value_float = 2.0> () ", 1),
        np.zeros(n, np.float32),
        x,
    )
    steps = np.moveaxis(x, axis, 0)
    sums = np.cumsum(steps[::-1] if backwards else steps, axis=0, dtype=np.float32)
    np.testing.assert_allclose(last, sums[-1], rtol=1e-5)
    seen = 2 * (sums[::-1] if backwards else sums)
    np.testing.assert_allclose(rows, np.moveaxis(seen, 0, out_axis), rtol=1e-5)


def test_the_first_version_of_scan_is_refused():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 8]> g (float[1, 1] s, float[1, 2, 1] x)
        => (float[1, 1] y) {
            y = Scan <num_scan_inputs = 1, body = b (float[1] a, float[1] c) => (float[1] d) {
                d = Add(a, c)
            }>(, s, x)
        }"""
    )
    inputs = {"s": np.ones((1, 1), np.float32), "x": np.ones((1, 2, 1), np.float32)}
    with pytest.raises(NotImplementedError, match="first version, which has batches"):
        evaluator(model.graph, {"": 8}).run(None, inputs)
