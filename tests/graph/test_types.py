"""Reduced precisions that a graph contains."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import model

from trt_native.graph.inference import infer_values
from trt_native.graph.types import is_reduced, reduced_types


def test_reduced_types_inside_a_body_are_seen():
    inner = model(
        """(float[4] x, bool c) => (float[4] y) {
            y = If(c) <
                then_branch = t () => (float[4] a) { h = Cast<to = 10>(x) a = Cast<to = 1>(h) },
                else_branch = e () => (float[4] b) { b = Identity(x) }
            >
        }"""
    )
    assert reduced_types(inner) == {"float16"}


QDQ = "q = QuantizeLinear(x, scale) y = DequantizeLinear(q, scale)"
FP8_QDQ = "q = QuantizeLinear(x, scale, zero) y = DequantizeLinear(q, scale, zero)"


def scales(dtype=np.float32):
    return {"scale": np.array(0.1, dtype), "zero": np.array(0, ml_dtypes.float8_e4m3fn)}


@pytest.mark.parametrize(
    ("text", "weights", "types", "reduced"),
    [
        ("(float[4] x) => (float[4] y) { y = Relu(x) }", {}, set(), False),
        ("(float16[4] x) => (float16[4] y) { y = Relu(x) }", {}, {"float16"}, True),
        ("(bfloat16[4] x) => (bfloat16[4] y) { y = Relu(x) }", {}, {"bfloat16"}, True),
        ("(double[4] x) => (double[4] y) { y = Relu(x) }", {}, set(), False),
        (f"(float[4] x) => (float[4] y) {{ {QDQ} }}", scales(), {"quantized"}, False),
        (
            f"(float[4] x) => (float[4] y) {{ {FP8_QDQ} }}",
            scales(),
            {"quantized", "float8e4m3fn"},
            False,
        ),
        (
            f"(float[4] x) => (float[4] y, float[4] z) {{ {FP8_QDQ} "
            "h = Cast<to = 17>(x) z = Cast<to = 1>(h) }",
            scales(),
            {"quantized", "float8e4m3fn"},
            True,
        ),
        (
            f"(float16[4] x) => (float16[4] y) {{ {QDQ} }}",
            scales(np.float16),
            {"quantized", "float16"},
            True,
        ),
        (
            "(float[4] x) => (float[4] y) { h = Cast<to = 17>(x) y = Cast<to = 1>(h) }",
            {},
            {"float8e4m3fn"},
            True,
        ),
        (
            "(float[4] x) => (float[4] y) "
            "{ q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }",
            {},
            {"quantized"},
            True,
        ),
    ],
    ids=[
        "fp32",
        "fp16",
        "bf16",
        "fp64",
        "Q/DQ",
        "FP8 Q/DQ",
        "FP8 Q/DQ and casts",
        "fp16 Q/DQ",
        "FP8 casts",
        "integer",
    ],
)
def test_reduced_types(text, weights, types, reduced):
    """Types that differ from FP32, and whether the rest can be reduced, inferred or not."""
    used = {name: array for name, array in weights.items() if name in text}
    graph = model(text, 19, **used)
    for _ in ("as it is read", "inferred"):
        assert reduced_types(graph) == types
        assert is_reduced(graph) == reduced
        infer_values(graph)


def test_reduced_types_inside_functions_are_seen():
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18, "local": 1]>
        g (float[4] x) => (float[4] y) { y = local.round(x) }
        <opset_import: ["": 18], domain: "local">
        round (a) => (b) { h = Cast<to = 16>(a) b = Cast<to = 1>(h) }"""
    )
    assert reduced_types(ir.from_proto(proto)) == {"bfloat16"}
