"""Quantized operators as arithmetic, against ONNX's node tests and onnx.reference."""

from __future__ import annotations

import importlib

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.contrib_cases import ONNXRUNTIME
from helpers.passes import pass_records
from helpers.quantized_products import (
    CONVOLUTIONS,
    INT8_OPS,
    PRODUCTS,
    convolution_of,
    model,
    product,
    run,
)
from onnx.backend.test.case import node as node_cases
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, build_plan
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.lower_quantized import LowerQuantized, lower_quantized
from trt_native.passes.normalize import normalize

MODULES = (
    "qlinearconv", "qlinearmatmul", "matmulinteger", "convinteger", "dynamicquantizelinear",
    "quantizelinear", "dequantizelinear",
)  # fmt: skip


def lowered(proto):
    graph = ir.from_proto(proto)
    normalize(graph)
    one = LowerQuantized(PassContext(config=BuildConfig(), precision=ResolvedPrecision()))
    if not one.needed(graph):
        return None, one
    one(graph)  # checks that it is not needed any more
    made = ir.to_proto(graph)
    onnx.checker.check_model(made, full_check=True)
    return made, one


def array_of(value):
    is_tensor = isinstance(value, onnx.TensorProto)
    return onnx.numpy_helper.to_array(value) if is_tensor else value


def test_onnx_node_tests_give_their_outputs():
    before = len(node_cases._NodeTestCases)
    for module in MODULES:
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    done = 0
    for case in node_cases._NodeTestCases[before:]:
        made, _ = lowered(case.model)
        if made is None or "_expanded" in case.name:
            continue
        given, wanted = (list(map(array_of, values)) for values in case.data_sets[0])
        names = [value.name for value in case.model.graph.input]
        for found, expected in zip(
            run(made, dict(zip(names, given, strict=True))), wanted, strict=True
        ):
            np.testing.assert_allclose(
                np.float64(found), np.float64(expected), rtol=1e-5, err_msg=case.name
            )
            assert np.asarray(found).dtype == np.asarray(expected).dtype
        done += 1
    assert done >= 25


SCALES = {
    "s": np.float32(0.05), "z": np.uint8(120), "t": np.float32(0.03), "u": np.uint8(7),
    "r": np.float32(0.09), "v": np.uint8(100),
}  # fmt: skip
A, B = "a = DequantizeLinear (x, s, z)", "b = DequantizeLinear (w, t, u)"
Q = "q = QuantizeLinear (f, r, v)"
IMAGE, MATRIX = "uint8[1,3,4,4] x, uint8[1,3,4,4] w", "uint8[4,8] x, uint8[8,6] w"
# The operator of com.microsoft, and the same with standard ones.
CONTRIB = {
    "add": (IMAGE, "q = com.microsoft.QLinearAdd (x, s, z, w, t, u, r, v)",
            f"{A} {B} f = Add (a, b) {Q}"),
    "mul": (IMAGE, "q = com.microsoft.QLinearMul (x, s, z, w, t, u, r, v)",
            f"{A} {B} f = Mul (a, b) {Q}"),
    "concat": (IMAGE, "q = com.microsoft.QLinearConcat <axis = 1> (r, v, x, s, z, w, t, u)",
               f"{A} {B} f = Concat <axis = 1> (a, b) {Q}"),
    "sigmoid": (IMAGE, "q = com.microsoft.QLinearSigmoid (x, s, z, r, v)",
                f"{A} f = Sigmoid (a) {Q}"),
    "leaky": (IMAGE, "q = com.microsoft.QLinearLeakyRelu <alpha = 0.2> (x, s, z, r, v)",
              f"{A} f = LeakyRelu <alpha = 0.2> (a) {Q}"),
    "softmax": (IMAGE, "q = com.microsoft.QLinearSoftmax <axis = 3, opset = 13> (x, s, z, r, v)",
                f"{A} f = Softmax <axis = 3> (a) {Q}"),
    "mean": (IMAGE,
             "q = com.microsoft.QLinearReduceMean <axes = [2, 3], keepdims = 1> (x, s, z, r, v)",
             f"{A} k = Constant <value_ints = [2, 3]> () f = ReduceMean (a, k) {Q}"),
    "pool": (IMAGE, "q = com.microsoft.QLinearAveragePool <kernel_shape = [2, 2]> (x, s, z, r, v)",
             f"{A} f = AveragePool <kernel_shape = [2, 2]> (a) {Q}"),
    "last": (IMAGE, "q = com.microsoft.QLinearGlobalAveragePool <channels_last = 1>"
             " (x, s, z, r, v)",
             f"{A} p = Transpose <perm = [0, 3, 1, 2]> (a) g = GlobalAveragePool (p)"
             f" f = Transpose <perm = [0, 2, 3, 1]> (g) {Q}"),
    "to float": (MATRIX, "q = com.microsoft.MatMulIntegerToFloat (x, w, s, t, z, u)",
                 f"{A} {B} q = MatMul (a, b)"),
    "dynamic": ("float[4,8] x, uint8[8,6] w",
                "q = com.microsoft.DynamicQuantizeMatMul (x, w, t, u)",
                f"d, e, h = DynamicQuantizeLinear (x) a = DequantizeLinear (d, e, h) {B}"
                " q = MatMul (a, b)"),
    "gemm": ("uint8[4,8] x, uint8[6,8] w",
             "q = com.microsoft.QGemm <transB = 1> (x, s, z, w, t, u, , r, v)",
             f"{A} {B} f = Gemm <transB = 1> (a, b) {Q}"),
    "lstm": ("float[5,2,8] x",
             "q = com.microsoft.DynamicQuantizeLSTM <hidden_size = 4>"
             " (x, k, l, , , , , , m, n, o, p)",
             "i = DequantizeLinear (k, m, n) j = DequantizeLinear (l, o, p)"
             " c = Transpose <perm = [0, 2, 1]> (i) d = Transpose <perm = [0, 2, 1]> (j)"
             " q = LSTM <hidden_size = 4> (x, c, d)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRIB)
def test_contrib_operators_are_those_between_dequantized_values(name, rng):
    inputs, contrib, standard = CONTRIB[name]
    kind = "float" if "q = MatMul" in standard or "LSTM" in standard else "uint8"
    kind += "[i,j]" if "w" in inputs and inputs != IMAGE else "[i,j,k,l]"
    weights = dict(SCALES)
    if name == "lstm":
        weights = {
            "k": rng.integers(-127, 127, (1, 8, 16)).astype(np.int8), "m": np.float32([0.01]),
            "l": rng.integers(-127, 127, (1, 4, 16)).astype(np.int8), "o": np.float32([0.02]),
            "n": np.int8([0]), "p": np.int8([3]),
        }  # fmt: skip
    proto, same = (
        model(f"({inputs}) => ({kind} q) {{ {text} }}", **weights) for text in (contrib, standard)
    )
    given = {
        value.name: rng.standard_normal([d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in proto.graph.input
    }
    given = {
        n: a.astype(np.float32) if name in ("lstm", "dynamic") and n == "x"
        else np.clip(a * 50 + 128, 0, 255).astype(np.uint8)
        for n, a in given.items()
    }  # fmt: skip
    (expected,) = ReferenceEvaluator(same).run(None, given)
    made, one = lowered(proto)
    for found in (run(proto, given)[0], run(made, given)[0]):
        assert found.dtype == expected.dtype
        if kind.startswith("uint8"):  # a sum may be rounded either way
            assert np.abs(found.astype(int) - expected).max() <= 1
            assert (found == expected).mean() > 0.95
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert sum(one.record["nodes"].values()) >= 1


def convolution(rng):
    return model(
        """(float[1,3,8,8] x) => (float[1,16,8,8] y)
        { a = QuantizeLinear (x, s, z) b = MaxPool <kernel_shape = [1, 1]> (a)
          c = QLinearConv <pads = [1, 1, 1, 1]> (b, s, z, w, t, n, r, v, i)
          y = DequantizeLinear (c, r, v) }""",
        **{k: SCALES[k] for k in "szrv"}, w=rng.integers(-9, 9, (16, 3, 3, 3)).astype(np.int8),
        t=rng.uniform(0.01, 0.02, 16).astype(np.float32), n=np.zeros(16, np.int8),
        i=rng.integers(-99, 99, 16).astype(np.int32),
    )  # fmt: skip


def test_nothing_is_converted_between_lowered_nodes(rng):
    proto = convolution(rng)
    made, _ = lowered(proto)
    assert not {"Cast", "QuantizeLinear", "QLinearConv"} & {n.op_type for n in made.graph.node}
    x = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
    (found,), (expected,) = run(made, {"x": x}), run(proto, {"x": x})
    assert np.abs(found - expected).max() <= 0.0901  # one step
    assert (np.abs(found - expected) < 1e-5).mean() > 0.99


@pytest.mark.parametrize("opset", [10, 19])
def test_halves_are_rounded_to_even(opset):
    proto = model(
        "(float[8] x) => (uint8[8] y) { y = QuantizeLinear (x, s, z) }",
        opset=opset, s=np.float32(1), z=np.uint8(10),
    )  # fmt: skip
    x = np.float32([0.5, 1.5, -0.5, -1.5, 0.49999997, 2.5000002, 1e9, -1e9])
    (found,) = run(lowered(proto)[0], {"x": x})
    np.testing.assert_array_equal(found, [10, 12, 10, 8, 10, 13, 255, 0])


@pytest.mark.parametrize("zeros", [np.uint8, np.int8])
def test_scales_of_blocks(zeros, rng):
    """Of an axis of 7 elements in blocks of 3."""
    kind = np.dtype(zeros).name
    proto = model(
        f"""(float[2,7,3] x) => ({kind}[2,7,3] q, float[2,7,3] y)
        {{ q = QuantizeLinear <axis = 1, block_size = 3> (x, s, z)
          y = DequantizeLinear <axis = -2, block_size = 3> (q, s, z) }}""",
        opset=21, s=rng.uniform(0.01, 0.1, (2, 3, 3)).astype(np.float32),
        z=rng.integers(1, 9, (2, 3, 3)).astype(zeros),
    )  # fmt: skip
    x = rng.standard_normal((2, 7, 3)).astype(np.float32)
    found, expected = run(lowered(proto)[0], {"x": x}), run(proto, {"x": x})
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], 1e-6)


SHAPE = (6, 8, 10)
NARROW = {
    "uint4": ("uint4", SHAPE, 1, 4, None),
    "uint4 less 8": ("uint4", SHAPE, 1, 4, 8),
    "zero points": ("int4", SHAPE, -1, 5, 3),
    "the last block is shorter": ("int4", SHAPE, 2, 4, None),
    "blocks of the first axis": ("int4", SHAPE, 0, 3, None),
    "half a byte left": ("int4", (3, 5, 3), 1, 5, None),
    "half a byte left of channels": ("int4", (3, 5, 3), 1, 0, None),
    "zero points of channels": ("int4", SHAPE, 1, 0, -2),
}
STAYS = {
    "whole blocks": ("int4", SHAPE, 2, 5, None),
    "whole blocks of the axis before": ("int4", SHAPE, -2, 4, 0),
    "channels": ("int4", SHAPE, 1, 0, None),
}


def of_half_bytes(rng, kind, shape, axis, block, zero):
    """A sum with dequantized constants, and what these are."""
    axes = [i == axis % 3 for i in range(3)]
    if block:
        extents = [-(-n // block) if own else n for n, own in zip(shape, axes, strict=True)]
        every = (np.arange(shape[axis]) // block).tolist()
    else:
        extents, every = [shape[axis]], None
    low = 0 if kind == "uint4" else -8
    numbers = rng.integers(low, low + 16, shape)
    scales = rng.uniform(0.1, 1, extents).astype(np.float32)
    along = scales.take(every, axis) if block else scales.reshape([-1 if i else 1 for i in axes])
    real = (numbers - (zero or 0)).astype(np.float32) * along
    dtype = np.dtype(getattr(ml_dtypes, kind))
    weights = {"w": numbers.astype(dtype), "s": scales}
    if zero is not None:
        weights["z"] = np.full(extents, zero).astype(dtype)
    options = f"axis = {axis}" + (f", block_size = {block}" if block else "")
    dims = ", ".join(map(str, shape))
    text = f"""(float[{dims}] x) => (float[{dims}] y)
        {{ r = DequantizeLinear <{options}> ({", ".join(weights)}) y = Add (x, r) }}"""
    return model(text, opset=21, **weights), real


@pytest.mark.parametrize("name", NARROW)
def test_numbers_of_half_a_byte(name, rng):
    """What TensorRT refuses, or of what it takes other blocks."""
    proto, expected = of_half_bytes(rng, *NARROW[name])
    made, one = lowered(proto)
    assert one.record["nodes"] == {"DequantizeLinear": 1}
    assert {node.op_type for node in made.graph.node} <= {"Identity", "Add"}
    x = np.zeros(expected.shape, np.float32)
    np.testing.assert_allclose(run(made, {"x": x})[0], expected, rtol=1e-6)


LEFT = {
    "MatMul": "y = MatMul (r, x)",
    "Gemm": "y = Gemm (r, x)",
    "behind nodes": "t = Transpose <perm = [1, 0]> (r) u = Mul (t, h) y = MatMul (u, x)",
    "Einsum": 'y = Einsum <equation = "ij,jk->ik"> (r, x)',
}


@pytest.mark.backend
@pytest.mark.parametrize("name", LEFT)
def test_weights_of_half_bytes_from_the_left(name, rng, tmp_path):
    """They would end the process."""
    pytest.importorskip("tensorrt_rtx")
    numbers = rng.integers(-8, 8, (32, 32)).astype(ml_dtypes.int4)
    weights = {"w": numbers, "s": rng.uniform(0.1, 1, (32, 2)).astype(np.float32)}
    if ", h)" in LEFT[name]:
        weights["h"] = np.float32([0.5])
    proto = model(
        f"""(float[32,5] x) => (float[32,5] y)
        {{ r = DequantizeLinear <axis = 1, block_size = 16> (w, s) {LEFT[name]} }}""",
        opset=21, **weights,
    )  # fmt: skip
    made, one = lowered(proto)
    assert one.record["nodes"] == {"DequantizeLinear": 1}
    x = rng.standard_normal((32, 5)).astype(np.float32)
    np.testing.assert_allclose(run(made, {"x": x})[0], run(proto, {"x": x})[0], 1e-4, 1e-4)
    onnx.save(proto, tmp_path / "m.onnx")
    assert build_plan(tmp_path / "m.onnx", backend="rtx").data


@pytest.mark.parametrize("name", STAYS)
def test_numbers_of_half_a_byte_that_stay(name, rng):
    assert lowered(of_half_bytes(rng, *STAYS[name])[0])[0] is None


@pytest.mark.backend
@pytest.mark.parametrize("name", [*NARROW, *STAYS])
def test_tensorrt_builds_numbers_of_half_a_byte(name, rng, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    onnx.save(of_half_bytes(rng, *{**NARROW, **STAYS}[name])[0], tmp_path / "m.onnx")
    records = pass_records(build_plan(tmp_path / "m.onnx", backend="rtx").manifest)
    assert ("lower_quantized" in records) == (name in NARROW)


def test_symmetric_int8_stays(rng):
    proto = model(
        """(float[4,16] x) => (float[4,16] y)
        { q = QuantizeLinear (x, s, z) a = DequantizeLinear (q, s, z)
          b = DequantizeLinear <axis = 1> (w, t, n) y = MatMul (a, b) }""",
        s=np.float32(0.1), z=np.int8(0), w=rng.integers(-9, 9, (16, 16)).astype(np.int8),
        t=np.full(16, 0.1, np.float32), n=np.zeros(16, np.int8),
    )  # fmt: skip
    assert lowered(proto)[0] is None


def in_int8(graph):
    """The products of Q/DQ nodes."""
    made = {name: node for node in graph.node for name in node.output}
    return [
        node
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
        and all(made[name].op_type == "DequantizeLinear" for name in node.input[:2] if name in made)
        and all(name in made for name in node.input[:2])
    ]


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_stay_in_int8_where_they_are_exact(name, rng):
    kind, text, count = PRODUCTS[name]
    proto, x = product(rng, kind, text)
    graph = ir.from_proto(proto)
    normalize(graph)
    record = lower_quantized(graph, INT8_OPS)
    made = ir.to_proto(graph)
    assert sum(record.get("int8", {}).values()) == len(in_int8(made.graph)) == count
    (found,), (expected,) = run(made, {"x": x}), run(proto, {"x": x})
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(
        found, expected, rtol=1e-5, atol=1e-3 if "linear" not in name else 3.01
    )


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_stay_in_int8_where_they_are_exact(name, rng):
    kind, text, count = CONVOLUTIONS[name]
    proto, x = convolution_of(rng, kind, text)
    graph = ir.from_proto(proto)
    normalize(graph)
    record = lower_quantized(graph, INT8_OPS | {"Conv"})
    made = ir.to_proto(graph)
    onnx.checker.check_model(made)
    assert record.get("int8", {}) == ({"Conv": 1} if count else {})
    (found,), (expected,) = run(made, {"x": x}), run(proto, {"x": x})
    assert found.dtype == expected.dtype
    step = 9.01 if name == "linear" else 1e-3  # a sum may be rounded either way
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=step)


@pytest.mark.parametrize("ops", [frozenset(), INT8_OPS | {"Conv"}], ids=["float", "int8"])
def test_channels_may_come_last(ops):
    case = ONNXRUNTIME["channels_last_conv"]
    graph = ir.from_proto(case.model())
    normalize(graph)
    record = lower_quantized(graph, ops)
    assert record.get("int8", {}) == ({"Conv": 1} if ops else {})
    case.check(run(ir.to_proto(graph), case.batch))


# Readers of an INT8 constant w[24, 32], and how many DequantizeLinear nodes read one afterwards.
READERS = {
    "gather": ("g = Gather (w, i) y = DequantizeLinear (g, s, k)", 1),
    "gather, zero point": ("g = Gather (w, i) y = DequantizeLinear (g, s, n)", 1),
    "transpose": ("g = Transpose (w) y = DequantizeLinear (g, s, k)", 1),
    "cast": ("y = Cast <to = 1> (w)", 1),
    "cast to fp16": ("y = Cast <to = 10> (w)", 1),
    "cast and mul": ("c = Cast <to = 1> (w) y = Mul (c, s)", 1),
    "mul of columns": ("c = Cast <to = 1> (w) y = Mul (t, c)", 1),
    "mul of rows": ("c = Cast <to = 1> (w) y = Mul (c, r)", 1),
    "mul of both": ("c = Cast <to = 1> (w) y = Mul (c, e)", 1),
    "negative mul": ("c = Cast <to = 1> (w) y = Mul (c, m)", 1),
    "a further axis": ("c = Cast <to = 1> (w) y = Mul (c, a)", 1),
}


def reader(rng, text):
    def real(*shape):
        return rng.uniform(0.01, 0.02, shape).astype(np.float32)

    weights = rng.integers(-128, 128, (24, 32)).astype(np.int8)
    return model(
        f"(int64[2, 3] i) => (y) {{ {text} }}", w=weights, s=np.float32(0.05), k=np.int8(0),
        n=np.int8(5), t=real(32), r=real(24, 1), e=real(24, 32), m=-real(32), a=real(2, 1, 1),
    )  # fmt: skip


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("name", READERS)
def test_constants_in_int8_are_read_dequantized(name, keeps, rng):
    text, count = READERS[name]
    proto = reader(rng, text)
    graph = ir.from_proto(proto)
    normalize(graph)
    lower_quantized(graph, keeps_int8=keeps)
    made = ir.to_proto(graph)
    readers = [n.op_type for n in made.graph.node if "w" in n.input]
    assert readers == (["DequantizeLinear"] * count if keeps else [])
    if keeps and name in ("cast and mul", "mul of columns", "mul of rows"):
        assert len(made.graph.node) == 1
    index = {"i": rng.integers(0, 24, (2, 3))}
    (found,), (expected,) = run(made, index), run(proto, index)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.backend
def test_products_in_int8_build(tmp_path, rng):
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "m.onnx"
    proto, _ = product(rng, *PRODUCTS["dynamic"][:2])
    onnx.save(proto, path)
    record = pass_records(build_plan(path, BuildConfig(), backend="rtx").manifest)[
        "lower_quantized"
    ]
    assert record["int8"] == {"MatMul": 1}
    assert record["summary"].endswith("; products of weights in INT8, exactly: 1 MatMul")


@pytest.mark.backend
def test_weights_that_are_cast_and_scaled_build(tmp_path, rng):
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "m.onnx"
    proto = reader(rng, "c = Cast <to = 1> (w) d = Mul (c, t) y = Gather (d, i)")
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(proto, path)
    manifest = build_plan(path, BuildConfig(), backend="rtx").manifest
    record = pass_records(manifest)["lower_quantized"]
    assert (record["nodes"], record["int8_readers"]) == ({}, {"Cast": 1})
    assert record["summary"] == "INT8 constants dequantized for their readers: 1 Cast"


@pytest.mark.backend
def test_quantized_models_build(tmp_path, rng):
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "m.onnx"
    onnx.save(convolution(rng), path)
    manifest = build_plan(path, BuildConfig(), backend="rtx").manifest
    record = pass_records(manifest)["lower_quantized"]
    assert record["nodes"] == {"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1}
    assert "1 QLinearConv" in record["summary"]


@pytest.mark.backend
def test_dynamically_quantized_products_build(tmp_path, rng):
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "m.onnx"
    weights = rng.integers(0, 255, (16, 16)).astype(np.uint8)
    text = """(float[4,16] x) => (float[4,16] y)
        { q, s, z = DynamicQuantizeLinear (x) m = MatMulInteger (q, w, z, u)
          c = Cast <to = 1> (m) k = Mul (s, t) y = Mul (c, k) }"""
    onnx.save(model(text, w=weights, u=np.uint8(120), t=np.float32(0.02)), path)
    manifest = build_plan(path, BuildConfig(), backend="rtx").manifest
    assert pass_records(manifest)["lower_quantized"]["nodes"]["MatMulInteger"] == 1
