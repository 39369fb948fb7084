"""Products of quantized values, which may stay in INT8."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from trt_native.reference.evaluator import evaluator


def run(proto, inputs):
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    return evaluator(proto.graph, opsets).run(None, inputs)


def model(text, opset=19, **weights):
    header = f'<ir_version: 9, opset_import: ["": {opset}, "com.microsoft": 1]> g '
    proto = onnx.parser.parse_model(header + text)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()
    )
    return proto


def typed(proto, x):
    """The model with the type of its only output."""
    (found,) = run(proto, {"x": x})
    kind = helper.np_dtype_to_tensor_dtype(found.dtype)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", kind, found.shape))
    return proto


ROWS = "a = DequantizeLinear (x, s, z)"
INT8_OPS = frozenset({"MatMul", "Gemm"})
# A model of uint8[2, 5, 32] x or float[2, 5, 32] f, and how many products of it stay in INT8.
PRODUCTS = {
    "integers": ("uint8 x", "y = MatMulInteger (x, w, z)", 1),
    "integers, weights with a zero point": ("uint8 x", "y = MatMulInteger (x, v, z, c)", 1),
    "integers, zero points of columns": ("uint8 x", "y = MatMulInteger (x, v, z, e)", 1),
    "integers, weights beyond INT8": ("uint8 x", "y = MatMulInteger (x, v, z, g)", 0),
    "signed": ("int8 x", "y = MatMulInteger (x, w, n)", 1),
    "signed without zero points": ("int8 x", "y = MatMulInteger (x, w)", 1),
    "computed weights": (
        "uint8 x", "b = Transpose <perm = [0, 2, 1]> (x) y = MatMulInteger (x, b, z, z)", 0,
    ),
    "linear": (
        "uint8 x", "q = QLinearMatMul (x, s, z, w, t, o, r, z) y = DequantizeLinear (q, r, z)", 1,
    ),
    "to float": ("uint8 x", "y = com.microsoft.MatMulIntegerToFloat (x, w, s, t, z, o, h)", 1),
    "dynamic": ("float x", "q, d, p = DynamicQuantizeLinear (x) y = MatMulInteger (q, w, p)", 1),
    "dynamic in one": ("float x", "y = com.microsoft.DynamicQuantizeMatMul (x, w, t, o)", 1),
    "dequantized": (
        "uint8 x", f"{ROWS} b = DequantizeLinear <axis = 1> (w, t, o) y = MatMul (a, b)", 1,
    ),
    "dequantized, of one scale": (
        "uint8 x", f"{ROWS} b = DequantizeLinear (v, s, c) y = MatMul (a, b)", 1,
    ),
    "quantized in the model": (
        "float x",
        "q = QuantizeLinear (x, s, z) a = DequantizeLinear (q, s, z)"
        " b = DequantizeLinear <axis = 1> (w, t, o) y = MatMul (a, b)", 1,
    ),
    "symmetric, weights with a zero point": (
        "float x",
        "q = QuantizeLinear (x, s, k) a = DequantizeLinear (q, s, k)"
        " b = DequantizeLinear (v, s, c) y = MatMul (a, b)", 1,
    ),
    "gemm": (
        "uint8 x",
        "m = Reshape (x, i) a = DequantizeLinear (m, s, z)"
        " b = DequantizeLinear <axis = 0> (j, t, o) y = Gemm <transB = 1> (a, b, h)", 1,
    ),
    "gemm, scaled": (
        "uint8 x",
        "m = Reshape (x, i) a = DequantizeLinear (m, s, z)"
        " b = DequantizeLinear <axis = 0> (j, t, o) y = Gemm <transB = 1, beta = 0.5> (a, b, h)", 0,
    ),
    "gemm of integers": (
        "uint8 x",
        "m = Reshape (x, i) y = com.microsoft.QGemm <transB = 1> (m, s, z, j, t, o, l)", 1,
    ),
}  # fmt: skip


def product(rng, kind, text):
    """A model of a product, and its input."""
    size, columns = 32, 24
    weights = rng.integers(-128, 128, (size, columns)).astype(np.int8)
    unsigned = rng.integers(20, 240, (size, columns)).astype(np.uint8)
    name, _ = kind.split()
    proto = model(
        f"({name}[2, 5, {size}] x) => (y) {{ {text} }}", w=weights, v=unsigned,
        j=np.ascontiguousarray(weights.T), s=np.float32(0.05), z=np.uint8(120), n=np.int8(-7),
        k=np.int8(0), c=np.uint8(120), e=rng.integers(112, 140, columns).astype(np.uint8),
        g=np.uint8(7), t=rng.uniform(0.01, 0.02, columns).astype(np.float32),
        o=np.zeros(columns, np.int8), r=np.float32(3), h=rng.standard_normal(columns).astype("f"),
        l=rng.integers(-999, 999, columns).astype(np.int32), i=np.array([10, size]),
    )  # fmt: skip
    dtype = np.dtype(name.replace("float", "float32"))
    x = rng.standard_normal((2, 5, size)) * (3 if dtype.kind == "f" else 40)
    x = np.clip(x + 110 if dtype == np.uint8 else x, -128, 255).astype(dtype)
    return typed(proto, x), x


AT = "pads = [1, 0, 2, 1], strides = [2, 1], dilations = [1, 2]"
DEQUANTIZED = "b = DequantizeLinear <axis = 0> (w, t, o)"
# A model of [1, 16, 9, 8], and whether its convolution stays in INT8.
CONVOLUTIONS = {
    "integers": ("uint8 x", f"y = ConvInteger <{AT}> (x, w, z)", 1),
    "integers, weights with a zero point": ("uint8 x", f"y = ConvInteger <{AT}> (x, v, z, c)", 1),
    "in the middle": ("uint8 x", f"y = ConvInteger <{AT}> (x, w, h)", 1),
    "signed": ("int8 x", f"y = ConvInteger <{AT}> (x, w)", 1),
    "computed padding": ("uint8 x", 'y = ConvInteger <auto_pad = "SAME_UPPER"> (x, w, z)', 0),
    "computed zero point": (
        "float x", f"q, d, p = DynamicQuantizeLinear (x) y = ConvInteger <{AT}> (q, w, p)", 0,
    ),
    "weights beyond INT8": ("uint8 x", f"y = ConvInteger <{AT}> (x, v, z, g)", 0),
    "linear": (
        "uint8 x",
        f"q = QLinearConv <{AT}> (x, s, z, w, t, o, r, z, l) y = DequantizeLinear (q, r, z)", 1,
    ),
    "dequantized": ("uint8 x", f"{ROWS} {DEQUANTIZED} y = Conv <{AT}> (a, b)", 1),
    "with a bias": ("uint8 x", f"{ROWS} {DEQUANTIZED} y = Conv <{AT}> (a, b, f)", 1),
    "signed, with a zero point": (
        "int8 x",
        "a = DequantizeLinear (x, s, n) b = DequantizeLinear (v, s, c) y = Conv (a, b)", 1,
    ),
    "few channels": (
        "uint8 x", f"{ROWS} b = DequantizeLinear (u, s, k) y = Conv <group = 2> (a, b)", 0,
    ),
}  # fmt: skip


def convolution_of(rng, kind, text):
    """A model of a convolution, and its input."""
    dtype, filters, shape = kind.split()[0], (24, 16, 3, 2), (1, 16, 9, 8)
    proto = model(
        f"({dtype}[1, 16, 9, 8] x) => (y) {{ {text} }}",
        w=rng.integers(-128, 128, filters).astype(np.int8),
        v=rng.integers(20, 240, filters).astype(np.uint8),
        u=rng.integers(-128, 128, (24, 8, 3, 2)).astype(np.int8), s=np.float32(0.05),
        z=np.uint8(120), h=np.uint8(128), n=np.int8(-7), k=np.int8(0), c=np.uint8(120),
        g=np.uint8(7), o=np.zeros(24, np.int8), r=np.float32(9),
        t=rng.uniform(0.01, 0.02, 24).astype(np.float32),
        l=rng.integers(-999, 999, 24).astype(np.int32), f=rng.standard_normal(24).astype("f"),
    )  # fmt: skip
    limits = (-128, 128) if dtype == "int8" else (0, 256)
    x = rng.standard_normal(shape) if dtype == "float" else rng.integers(*limits, shape)
    x = x.astype(np.dtype(dtype.replace("float", "float32")))
    return typed(proto, x), x
