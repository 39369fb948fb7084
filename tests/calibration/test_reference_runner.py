"""Activations against onnx.reference running the whole model at once."""

from __future__ import annotations

import weakref

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models
from onnx.reference import ReferenceEvaluator

from trt_native.calibration.reference_runner import ReferenceRunner
from trt_native.errors import CalibrationError, UnsupportedError
from trt_native.graph.onnx_file import read_model


def parsed(text, imports='"": 18', **weights):
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]> g {text}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    return proto


def activations(proto, tensors, batch):
    return dict(ReferenceRunner(ir.from_proto(proto), tensors)(batch))


def whole(proto, batch):
    return ReferenceEvaluator(proto).run(None, batch, intermediate=True)


BRANCHES = """(float[2, 4] x, bool c, int64[1] unused) => (float[2, 4] y) {
    a = Relu(x)
    left, right = Split<axis = 1, num_outputs = 2>(a)
    b = If(c) <
        then_branch = t () => (float[2, 4] then) { then = Concat<axis = 1>(left, left) },
        else_branch = e () => (float[2, 4] else) { else = Mul(a, w) }
    >
    far = Exp(b)
    y = Add(far, x)
}"""


@pytest.mark.parametrize("condition", [True, False])
def test_every_value_equals_a_run_of_the_whole_model(condition, rng):
    proto = parsed(BRANCHES, w=np.array([1, 2, 3, 4], np.float32))
    batch = {
        "x": rng.standard_normal((2, 4)).astype(np.float32),
        "c": np.array(condition),
        "unused": np.zeros(1, np.int64),
    }
    names = ["x", "a", "left", "right", "b", "far", "y"]
    found, expected = activations(proto, names, batch), whole(proto, batch)
    assert sorted(found) == sorted(names)
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name])


def test_only_what_the_tensors_depend_on_runs():
    proto = parsed(
        "(float[4] x) => (float[4] y) { a = Relu(x)  y = mine.Warp(a) }", '"": 18, "mine": 1'
    )
    found = activations(proto, ["a"], {"x": np.array([-1, 2, -3, 4], np.float32)})
    np.testing.assert_array_equal(found["a"], [0, 2, 0, 4])


def test_values_are_freed_after_their_last_reader():
    length = 20
    nodes = " ".join(f"v{i + 1} = Add(v{i}, v{i})" for i in range(length))
    proto = parsed(f"(float[4] v0) => (float[4] v{length}) {{ {nodes} }}")
    run = ReferenceRunner(ir.from_proto(proto), [f"v{i}" for i in range(1, length + 1)])
    alive, most = weakref.WeakSet(), 0
    for name, values in run({"v0": np.ones(4, np.float32)}):
        assert values[0] == 2.0 ** int(name[1:])
        alive.add(_Tracked.of(values))
        most = max(most, len(alive))
    assert most <= 3


class _Tracked:
    """Lives as long as an array does, which cannot be in a WeakSet itself."""

    @staticmethod
    def of(array):
        tracked = _Tracked()
        weakref.finalize(array, lambda kept: None, tracked)
        return tracked


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_floats_are_given_in_the_types_of_the_inputs(dtype, rng):
    kind = {"bfloat16": ml_dtypes.bfloat16, "double": np.float64}.get(dtype, np.float16)
    proto = parsed(
        f"({dtype}[4, 4] x) => ({dtype}[4, 4] y) {{ a = Relu(x)  y = MatMul(a, x) }}", '"": 22'
    )
    x = rng.standard_normal((4, 4)).astype(np.float32)
    found = activations(proto, ["x", "a"], {"x": x})
    assert found["x"].dtype == found["a"].dtype == kind
    np.testing.assert_array_equal(found["a"], np.maximum(x, 0).astype(kind))


def test_external_weights(tmp_path, rng):
    path = tiny_models.external_weights(tmp_path / "m.onnx")
    x = rng.standard_normal((1, 64)).astype(np.float32)
    found = dict(ReferenceRunner(read_model(path), ["x", "y"])({"x": x}))
    np.testing.assert_array_equal(found["y"], ReferenceEvaluator(str(path)).run(None, {"x": x})[0])


def test_integers_that_fit_are_converted():
    """A plan has INT32 where the model has UINT16."""
    proto = parsed("(uint16[2] x) => (uint16[2] y) { y = Add(x, x) }")
    found = activations(proto, ["y"], {"x": np.array([3, 40000], np.int32)})
    np.testing.assert_array_equal(found["y"], np.array([6, 14464], np.uint16))
    for values in ([-1, 0], [0, 65536]):
        with pytest.raises(CalibrationError, match="needs uint16, found int32"):
            activations(proto, ["y"], {"x": np.array(values, np.int32)})


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, "input 'x' is missing; the inputs are x: float32"),
        ({"x": np.ones((2, 4), np.float32), "z": 1}, "input 'z' is not one of the model's"),
        ({"x": np.ones((2, 4), np.int64)}, "input 'x' needs float32, found int64"),
        (
            {"x": np.ones((2, 4, 1), np.float32)},
            r"input x: float32\(M, N\) of the model: the data has shape 2x4x1",
        ),
    ],
)
def test_batches_that_do_not_fit(batch, message):
    proto = parsed(
        "(float[M, N] x) => (float[M, 4] y) { [product] y = MatMul(x, w) }",
        w=np.ones((4, 4), np.float32),
    )
    with pytest.raises(CalibrationError, match=message):
        activations(proto, ["y"], batch)


def test_a_node_that_cannot_run_is_named_with_what_it_gets():
    proto = parsed(
        "(float[M, N] x) => (float[M, 4] y) { [product] y = MatMul(x, w) }",
        w=np.ones((4, 4), np.float32),
    )
    run = ReferenceRunner(
        ir.from_proto(proto), ["y"], alternative="use another", options=("against",)
    )
    with pytest.raises(
        UnsupportedError,
        match=r"onnx\.reference cannot run operator MatMul \(node 'product'\) with x: 2x5, w: 4x4:"
        r" ValueError: .*; use another$",
    ) as raised:
        dict(run({"x": np.ones((2, 5), np.float32)}))
    assert raised.value.options == ("against",)


def test_operators_that_the_reference_evaluator_corrects(rng):
    """As they are in old exports: a softmax of the channels, behind a norm in evaluation mode."""
    ones = np.ones(3, np.float32)
    proto = parsed(
        """(float[2, 3, 4] x) => (float[2, 3, 4] y) {
            n = BatchNormalization(x, one, zero, zero, one)
            y = Softmax <axis = 1> (n)
        }""",
        '"": 11',
        one=ones,
        zero=0 * ones,
    )
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    found = activations(proto, ["n", "y"], {"x": x})
    np.testing.assert_allclose(found["n"], x / np.sqrt(1 + 1e-5), rtol=1e-6)
    powers = np.exp(found["n"])
    np.testing.assert_allclose(found["y"], powers / powers.sum((1, 2), keepdims=True), rtol=1e-5)


def test_an_operator_that_the_reference_lacks():
    proto = parsed("(float[4] x) => (float[4] y) { [bend] y = mine.Warp(x) }", '"": 18, "mine": 1')
    with pytest.raises(UnsupportedError, match=r"cannot run operator mine::Warp \(node 'bend'\)"):
        activations(proto, ["y"], {"x": np.ones(4, np.float32)})
