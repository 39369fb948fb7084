"""Integers that TensorRT lacks, against ONNX's node tests and onnx.reference."""

from __future__ import annotations

import importlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.passes import pass_records
from onnx.backend.test.case import node as node_cases
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, build_plan
from trt_native.errors import UnsupportedError
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.lower_integers import LowerIntegers, lower_integers
from trt_native.passes.normalize import normalize
from trt_native.reference.evaluator import evaluator

MODULES = (
    "bitshift", "bitwiseand", "bitwiseor", "bitwisexor", "bitwisenot", "bitcast", "mod", "add",
    "sub", "mul", "div", "min", "max", "clip", "less", "greater", "equal", "pow", "where",
)  # fmt: skip


def lowered(proto):
    graph = ir.from_proto(proto)
    normalize(graph)
    one = LowerIntegers(PassContext(config=BuildConfig(), precision=ResolvedPrecision()))
    if not one.needed(graph):
        return None, one
    one(graph)  # checks that it is not needed any more
    made = ir.to_proto(graph)
    onnx.checker.check_model(made, full_check=True)
    return made, one


def run(proto, inputs):
    """With inputs in the types that the model has."""
    kinds = {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in proto.graph.input
    }
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    given = {name: np.asarray(inputs[name]).astype(kind) for name, kind in kinds.items()}
    with np.errstate(over="ignore"):
        return evaluator(proto.graph, opsets).run(None, given)


def test_onnx_node_tests_give_their_outputs():
    before = len(node_cases._NodeTestCases)
    for module in MODULES:
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    done = 0
    for case in node_cases._NodeTestCases[before:]:
        if "_expanded" in case.name or case.name.startswith("test_bitcast_float"):
            continue
        if any(np.asarray(value).dtype.kind not in "iub" for value in case.data_sets[0][0]):
            continue
        made, _ = lowered(case.model)
        if made is None:
            continue
        given, wanted = case.data_sets[0]
        names = [value.name for value in case.model.graph.input]
        for found, expected in zip(
            run(made, dict(zip(names, given, strict=True))), wanted, strict=True
        ):
            np.testing.assert_array_equal(found.astype(expected.dtype), expected, case.name)
            if found.dtype != expected.dtype:
                assert expected.dtype.name in ("int16", "uint16", "uint32", "uint64")
        done += 1
    assert done >= 90


def model(text, opset=21, **weights):
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    return proto


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("small", [True, False])
def test_constants_keep_their_values(kind, small):
    """Small ones are inside the file that TensorRT parses, others next to it."""
    limits = np.iinfo(kind)
    top = min(limits.max, np.iinfo(np.int64).max)
    w = np.array([limits.min, 1, top] * (1 if small else 100), kind)
    proto = model(
        "(int64[3] i) => (int64[3] y) { g = Gather (w, i) y = Cast<to = 7> (g) }", w=w
    )  # fmt: skip
    made, one = lowered(proto)
    indices = {"i": np.array([0, 1, 2])}
    (found,) = ReferenceEvaluator(made).run(None, indices)
    np.testing.assert_array_equal(found, np.array([limits.min, 1, top], np.int64))
    assert f"{np.dtype(kind)} constants as int" in one.summarize(one.record)


KINDS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("kind", KINDS)
def test_arithmetic_wraps_as_the_type_does(kind):
    limits = np.iinfo(kind)
    x = np.array([limits.min, limits.max, 3, limits.max // 2 + 1, 100], kind)
    w = np.array([limits.max, limits.max, 7, 2, 50], kind)
    proto = model(
        f"({kind}[5] x, {kind}[5] w) => ({kind}[5] a, {kind}[5] s, {kind}[5] m, {kind}[5] o)"
        " { a = Add (x, w) s = Sub (x, w) m = Mul (x, w) o = BitwiseXor (a, m) }"
    )
    made, one = lowered(proto)
    expected = ReferenceEvaluator(proto).run(None, {"x": x, "w": w})
    for found, wanted in zip(run(made, {"x": x, "w": w}), expected, strict=True):
        np.testing.assert_array_equal(found.astype(kind), wanted)
    changed = {"int16": "int32", "uint16": "int32", "uint32": "int64", "uint64": "int64"}
    assert one.record.get("inputs", {}) == (
        dict.fromkeys("xw", f"{kind} as {changed[kind]}") if kind in changed else {}
    )
    assert "BitwiseXor" in one.summarize(one.record)


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_casts_wrap(source, target):
    limits = np.iinfo(source)
    x = np.array([limits.min, limits.max, 0, 1, limits.max // 2 + 1], source)
    x = x if source != "uint64" else np.minimum(x, np.iinfo(np.int64).max).astype(source)
    number = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(target)))
    proto = model(f"({source}[5] x) => ({target}[5] y) {{ y = Cast <to = {number}> (x) }}")
    made, _ = lowered(proto)
    (found,) = run(made or proto, {"x": x})
    np.testing.assert_array_equal(found.astype(target), x.astype(target))


def test_what_has_no_exact_form_is_refused():
    text = "(uint32[2,2] x) => (uint32[2,2] y) { y = MatMul (x, x) }"
    with pytest.raises(UnsupportedError, match="MatMul 'y' computes in uint32"):
        lower_integers(ir.from_proto(model(text)))
    text = "(int64[1] i) => (float[1] y) { g = Gather (w, i) y = Cast<to = 1> (g) }"
    with pytest.raises(UnsupportedError, match="'w' is uint64 with values above those of int64"):
        lower_integers(ir.from_proto(model(text, w=np.array([2**63], np.uint64))))
    text = "(float[2] x) => (int32[2] y) { y = BitCast <to = 6> (x) }"
    with pytest.raises(UnsupportedError, match="reads the bits of floating-point"):
        lower_integers(ir.from_proto(model(text, opset=26)))


@pytest.mark.backend
def test_a_model_of_unsigned_integers_builds(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "m.onnx"
    text = """(uint8[4] x, uint16[4] w) => (uint8[4] y, uint16[4] z)
        <uint8[4] k = {1, 2, 3, 4}>
        { a = BitwiseAnd (x, k) y = BitShift <direction = "LEFT"> (a, k) z = Add (w, w) }"""
    onnx.save(model(text), path)
    manifest = build_plan(path, BuildConfig(), backend="rtx").manifest
    assert [tensor.dtype for tensor in manifest.tensors] == ["uint8", "int32", "uint8", "int32"]
    record = pass_records(manifest)["lower_integers"]
    assert record["inputs"] == {"w": "uint16 as int32"}
    assert record["nodes"] == {"BitwiseAnd": 1, "BitShift": 1, "Add": 1}
