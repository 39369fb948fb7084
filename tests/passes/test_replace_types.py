"""Types that TensorRT lacks, against onnx.reference and what TensorRT-RTX parses."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.passes import pass_records
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Precision, build_plan
from trt_native.errors import UnsupportedError
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.normalize import normalize
from trt_native.passes.replace_types import ReplaceTypes, replace_types

FLOOR = """(double[1,2,100,4] x) => (double[a,b,c,d] y)
    <double factor = {0.29}, int64 axis = {2}, double[4] ones = {1.0, 2.0, 1.0, 4.0}>
    { s = Shape (x) h = Gather (s, axis) f = Cast<to = 11> (h) p = Mul (f, factor) q = Floor (p)
      i = Cast<to = 7> (q) u = Unsqueeze (i, zero) z = Cast<to = 7> (ones) a = Slice (z, zero, two)
      w = Slice (z, three, four) e = Concat<axis = 0> (a, u, w)
      y = Slice (x, zeros, e) }"""
CONSTANTS = {
    "zero": np.array([0]), "two": np.array([2]), "three": np.array([3]), "four": np.array([4]),
    "zeros": np.zeros(4, np.int64),
}  # fmt: skip


def model(text, opset=18, **weights):
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    onnx.checker.check_model(proto)
    return proto


def replaced(proto):
    graph = ir.from_proto(proto)
    normalize(graph)
    one = ReplaceTypes(PassContext(config=BuildConfig(), precision=ResolvedPrecision()))
    assert one.needed(graph)
    one(graph)  # checks that it is not needed any more
    made = ir.to_proto(graph)
    onnx.checker.check_model(made, full_check=True)
    return made, one


def built(proto, folder, **options):
    path = folder / "m.onnx"
    onnx.save(proto, path)
    return build_plan(path, BuildConfig(**options), backend="rtx").manifest


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        (
            "(double[2,4] x) => (double[2,3] y) { m = MatMul (x, w) y = Relu (m) }",
            {"w": np.arange(12.0).reshape(4, 3)},
        ),
        (
            "(float[2,4] x) => (float[2,4] y) { k = Cast<to = 1> (w) y = Mul (x, k) }",
            {"w": np.array([0.1, -3.0, 7.0, 1e-300])},
        ),
        (
            "(double[2,4] x) => (double[2,4] y) { m = Min (x, w) y = Mul (m, m) }",
            {"w": np.array(np.finfo(np.float64).max)},
        ),
        (
            "(float[2,4] x) => (float[2,4] y) { d = Cast<to = 11> (x) m = Max (d, e)"
            " l = Log (m) y = Cast<to = 1> (l) }",
            {"e": np.array(1e-300)},
        ),
        (
            """(bool c, double[2,4] x) => (double[2,4] y) { y = If (c)
            <then_branch = t () => (double[2,4] p) { p = Mul (x, w) },
             else_branch = e () => (double[2,4] q) { q = Neg (x) }> }""",
            {"w": np.array(0.5)},
        ),
    ],
)
def test_doubles_are_computed_in_fp32(text, weights, rng):
    proto = model(text, **weights)
    made, _ = replaced(proto)
    assert b"DOUBLE" not in onnx.printer.to_text(made).encode()
    inputs = {}
    for value in proto.graph.input:
        if value.name == "c":
            inputs["c"] = np.array(True)
        else:
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            inputs[value.name] = rng.standard_normal((2, 4)).astype(kind)
    narrow = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in inputs.items()}
    (found,) = ReferenceEvaluator(made).run(None, narrow)
    (expected,) = ReferenceEvaluator(proto).run(None, inputs)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    rows = ~np.isinf(expected) & (np.abs(expected) < 1e30) & (expected > -87)
    np.testing.assert_allclose(found[rows], expected[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.backend
def test_sizes_from_static_shapes_are_computed_in_fp64(tmp_path):
    """Floor(100 * 0.29) is 28 in DOUBLE and 29 in FLOAT."""
    pytest.importorskip("tensorrt_rtx")
    proto = model(FLOOR, **CONSTANTS)
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": np.zeros((1, 2, 100, 4))})
    assert expected.shape == (1, 2, 28, 4)
    manifest = built(proto, tmp_path, precision=Precision.FP32)
    (y,) = manifest.outputs
    assert (y.dtype, y.shape) == ("float32", (1, 2, 28, 4))
    record = pass_records(manifest)["replace_types"]
    assert record["inputs"] == ["x"]
    assert record["outputs"] == ["y"]
    assert record["summary"].startswith("inputs and outputs in FP32 instead of FP64: x, y;")


def test_sizes_from_dynamic_shapes_are_refused_where_fp32_may_round_otherwise():
    dynamic = FLOOR.replace("100", "n")
    with pytest.raises(UnsupportedError, match="Floor 'q' rounds a size that is computed"):
        replace_types(ir.from_proto(model(dynamic, **CONSTANTS)))
    replace_types(ir.from_proto(model(dynamic.replace("0.29", "0.5"), **CONSTANTS)))


@pytest.mark.backend
@pytest.mark.parametrize(
    "precision", [Precision.AUTO, Precision.FP16, Precision.BF16, Precision.FP32]
)
def test_a_model_in_fp64_has_the_precision_that_is_asked_for(tmp_path, precision):
    pytest.importorskip("tensorrt_rtx")
    proto = model(
        "(double[2,64] x) => (double[2,64] y) { m = MatMul (x, w) y = Relu (m) }",
        opset=22, w=np.eye(64),
    )  # fmt: skip
    manifest = built(proto, tmp_path, precision=precision)
    wanted = "fp16" if precision is Precision.AUTO else str(precision)
    assert manifest.precision["applied"] == wanted
    records = pass_records(manifest)
    if precision is Precision.FP32:
        assert records["split_fp32_products"]["nodes"] == {"MatMul": 1}
    else:
        assert records["autocast"]["reduced"]["MatMul"] == 1
    assert [tensor.dtype for tensor in manifest.tensors] == ["float32", "float32"]
