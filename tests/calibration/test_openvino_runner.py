"""Activations by OpenVINO against onnx.reference running the whole model at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from trt_native.calibration import cpu_runner, openvino_runner
from trt_native.calibration.cpu_runner import CpuRunner
from trt_native.calibration.openvino_operators import measurement, trusted_nodes
from trt_native.calibration.openvino_runner import OpenVinoRunner
from trt_native.config import CpuRuntime
from trt_native.errors import CalibrationError, UnsupportedError
from trt_native.graph.inference import infer_types

pytest.importorskip("openvino")


def parsed(text, opset=18, **weights):
    head = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    proto = onnx.parser.parse_model(f"{head} g {text}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    return proto


def whole(proto, batch):
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(proto).run(None, batch, intermediate=True)


def check(found, expected, names):
    assert sorted(found) == sorted(names)
    for name in names:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


# OpenVINO's, the reference's (a body, integers that are no extents), and OpenVINO's again.
STAGES = """(float[n, 4, h, w] x, bool c, int64[n] ids) => (float[n, k] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, kernel)
    b = If(c) <
        then_branch = t () => (float[n, 3, h, w] then) { then = Softmax<axis = 1>(a) },
        else_branch = e () => (float[n, 3, h, w] else) { else = Neg(a) }
    >
    shape = Shape<start = 0, end = 1>(b)
    flat = Concat<axis = 0>(shape, rest)
    r = Reshape(b, flat)
    big = Mul(ids, ids)
    digit = Mod(big, seven)
    row = Cast<to = 1>(digit)
    one = Unsqueeze(row, axis)
    y = Add(r, one)
}"""
NAMES = ["x", "kernel", "a", "b", "r", "big", "digit", "y"]


@pytest.fixture
def stages(rng):
    return parsed(
        STAGES,
        kernel=rng.standard_normal((3, 4, 3, 3)).astype(np.float32),
        rest=np.array([-1]),
        seven=np.array(7),
        axis=np.array([1]),
    )


def batch_of(rng, n=2, extent=5, condition=True):
    return {
        "x": rng.standard_normal((n, 4, extent, 6)).astype(np.float32),
        "c": np.array(condition),
        "ids": np.arange(n) + 2**31 - 9,  # whose squares OpenVINO does not have
    }


@pytest.mark.parametrize("most_bytes", [None, 600])
def test_every_value_equals_a_run_of_the_whole_model(stages, rng, most_bytes):
    run = OpenVinoRunner(ir.from_proto(stages), NAMES, most_bytes=most_bytes)
    assert run.others == ("If", "Mod", "Mul")
    for batch in (batch_of(rng), batch_of(rng, 1, 3, False)):
        found = {name: np.array(array) for name, array in run(batch)}
        check(found, whole(stages, batch), NAMES)


def test_the_program_is_named(stages, rng):
    run = CpuRunner(ir.from_proto(stages), ["a", "y"], CpuRuntime.OPENVINO)
    batches = [batch_of(rng), batch_of(rng)]
    found = [{name: np.array(array) for name, array in run(batch)} for batch in batches]
    for values, batch in zip(found, batches, strict=True):
        check(values, whole(stages, batch), ["a", "y"])
    assert run.program.startswith("OpenVINO 20")
    assert "onnx.reference for If, Mod, Mul; 2 of 2 tensors compared with onnx.re" in run.program


def test_bad_inputs_are_named(stages, rng):
    run = CpuRunner(ir.from_proto(stages), ["y"])
    with pytest.raises(CalibrationError, match="input 'c' is missing"):
        dict(run({name: array for name, array in batch_of(rng).items() if name != "c"}))


# Measured to be wrong, or of types that are not given to OpenVINO.
DISTRUSTED = {
    "softmax before 13": (12, "(float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax(x) }"),
    "a window in the padding": (
        18,
        "(float[1, 1, 5, 5] x) => (float[1, 1, o, p] y)"
        " { y = MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x) }",
    ),
    "FP64": (18, "(double[4] x) => (double[4] y) { y = Exp(x) }"),
    "FP16": (18, "(float16[4] x) => (float16[4] y) { y = Exp(x) }"),
    "another domain": (18, "(float[4] x) => (float[4] y) { y = com.microsoft.Gelu(x) }"),
    "bits": (18, "(int32[4] x) => (int32[4] y) { y = BitwiseNot(x) }"),
    "integers": (18, "(int64[4] x) => (int64[4] y) { y = Add(x, x) }"),
    "an untested attribute": (
        18,
        "(float[1, 1, 4, 4] x) => (float[1, 1, o, p] y)"
        " { s = Constant<value_floats = [1.0, 1.0, 0.5, 0.5]>()"
        ' y = Resize<antialias = 1, mode = "linear">(x, , s) }',
    ),
}


@pytest.mark.parametrize("name", list(DISTRUSTED))
def test_no_trust_in(name):
    opset, text = DISTRUSTED[name]
    model = ir.from_proto(parsed(text, opset))
    infer_types(model)
    assert {node.op_type for node in trusted_nodes(model)} <= {"Constant"}


def test_the_measured_version_is_the_one_of_the_constraints():
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert f"openvino=={measurement().openvino}" in constraints


def test_shapes_are_trusted():
    text = "(float[n, 4] x) => (int64[1] y) { s = Shape<end = 1>(x) t = Add(s, s) y = Mul(t, s) }"
    model = ir.from_proto(parsed(text))
    infer_types(model)
    assert {node.op_type for node in trusted_nodes(model)} == {"Shape", "Add", "Mul"}


SOFTMAX = "(float[2, 3, 4] x) => (float[2, 3, 4] y) { e = Exp(x) y = Softmax<axis = 1>(e) }"


@pytest.fixture
def believed(monkeypatch):
    """OpenVINO believed everything, a flattened softmax included, which it has wrong."""
    monkeypatch.setattr(openvino_runner, "trusted_nodes", lambda model: set(model.graph))
    return parsed(SOFTMAX, 12)


def test_the_reference_takes_over_where_openvino_is_wrong(believed, rng, caplog):
    x = {"x": rng.standard_normal((2, 3, 4)).astype(np.float32)}
    run = CpuRunner(ir.from_proto(believed), ["e", "y"])
    values = dict(run(x))
    flat = np.exp(np.exp(x["x"]).reshape(2, 12).astype(np.float64))
    np.testing.assert_allclose(
        values["y"].reshape(2, 12), flat / flat.sum(1, keepdims=True), rtol=1e-5
    )
    assert run.program == "onnx.reference"
    assert "tensor 'y' differs from onnx.reference: relative L2" in caplog.text
    forced = CpuRunner(ir.from_proto(believed), ["y"], CpuRuntime.OPENVINO)
    with pytest.raises(UnsupportedError, match="cannot be used for this model: tensor 'y' differs"):
        dict(forced(x))


def test_what_was_not_compared_is_said_and_found_later(believed, rng, monkeypatch):
    monkeypatch.setattr(cpu_runner, "CHECK_SECONDS", -1)
    run = CpuRunner(ir.from_proto(believed), ["y"])
    large, small = (rng.standard_normal((n, 3, 4)).astype(np.float32) for n in (2, 1))
    believed.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    run = CpuRunner(ir.from_proto(believed), ["y"])
    dict(run({"x": large}))
    assert "none of 1 tensor compared with onnx.reference" in run.program
    monkeypatch.setattr(cpu_runner, "CHECK_SECONDS", 5)
    with pytest.raises(UnsupportedError, match="results of it were used already"):
        dict(run({"x": small}))


def test_what_is_not_finite_is_the_references(rng):
    proto = parsed("(float[4] x) => (float[4] y) { l = Log(x) y = Relu(l) }")
    run = CpuRunner(ir.from_proto(proto), ["l", "y"], CpuRuntime.OPENVINO)
    for x in ([1, 2, 3, 4], [-1, 0, 2, 3], [np.nan, 1, 2, 3]):
        batch = {"x": np.array(x, np.float32)}
        check(dict(run(batch)), whole(proto, batch), ["l", "y"])
