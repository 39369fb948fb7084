"""Tokens that become an image, with their axes swapped last."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.passes import normalized
from onnx.reference import ReferenceEvaluator

from trt_native.config import BuildConfig, Precision
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.reshape_tokens import ReshapeTokens

SWAPPED = "t = Transpose <perm = [0, 2, 1]> (x) "
STATIC = "i = Constant <value = int64[4] {{{}}}> () y = Reshape (t, i)"
# The batch alone, or all, from shapes at runtime.
BATCH = "b = Shape <end = 1> (x) r = Constant <value = int64[3] {4, 2, 3}> () "
BATCH += "i = Concat <axis = 0> (b, r) y = Reshape (t, i)"
AXES = "b = Shape <end = 1> (x) c = Constant <value = int64[1] {4}> () "
AXES += "a = Shape <start = 2> (z) i = Concat <axis = 0> (b, c, a) y = Reshape (t, i)"


def parsed(body, inputs="float[n,6,4] x", outputs="float[n,4,2,3] y", opset=18):
    text = f'<ir_version: 9, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return onnx.parser.parse_model(text)


def rewritten(proto, lowered_to=Precision.FP16):
    """The model after the pass, and its record; None where it is not needed."""
    model = normalized(proto)
    precision = ResolvedPrecision(applied=lowered_to, lowered_to=lowered_to)
    one = ReshapeTokens(PassContext(config=BuildConfig(), precision=precision))
    if not one.needed(model):
        return None, None
    preview = one.preview(model)
    one(model)
    assert one.record == preview
    return ir.to_proto(model), one.record


@pytest.mark.parametrize(
    ("body", "inputs", "outputs"),
    [
        (SWAPPED + STATIC.format("0, 4, 2, 3"), "float[n,6,4] x", "float[n,4,2,3] y"),
        (SWAPPED + STATIC.format("0, 0, 2, -1"), "float[n,6,4] x", "float[n,4,2,3] y"),
        (SWAPPED + STATIC.format("-1, 4, 2, 3"), "float[n,6,4] x", "float[n,4,2,3] y"),
        (SWAPPED + STATIC.format("0, 4, 2, -1"), "float[n,m,4] x", "float[n,4,2,k] y"),
        (SWAPPED + BATCH, "float[n,6,4] x", "float[n,4,2,3] y"),
        (SWAPPED + AXES, "float[n,m,4] x, float[n,1,h,w] z", "float[n,4,h,w] y"),
        (
            f"{SWAPPED} i = Constant <value = int64[5] {{0, 4, 1, 2, 3}}> () y = Reshape (t, i)",
            "float[n,6,4] x",
            "float[n,4,1,2,3] y",
        ),
    ],
    ids=["static", "copied", "inferred batch", "a free axis", "batch at runtime", "all", "volume"],
)
def test_they_compute_the_same(body, inputs, outputs, rng):
    proto = parsed(body, inputs, outputs)
    made, record = rewritten(proto)
    assert record == {"nodes": {"Reshape": 1}}
    onnx.checker.check_model(made, full_check=True)
    last = next(node for node in made.graph.node if "y" in node.output)
    assert last.op_type == "Transpose"
    arrays = {"x": rng.standard_normal((3, 6, 4)).astype(np.float32)}
    arrays |= {"z": np.zeros((3, 1, 2, 3), np.float32)} if "z" in inputs else {}
    (expected,) = ReferenceEvaluator(proto).run(None, arrays)
    (found,) = ReferenceEvaluator(made).run(None, arrays)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("body", "inputs", "outputs"),
    [
        (SWAPPED + STATIC.format("0, 2, 2, 6"), "float[n,6,4] x", "float[n,2,2,6] y"),
        (
            "i = Constant <value = int64[4] {1, 4, 3, 4}> () "
            "t = Transpose <perm = [0, 2, 1]> (x) y = Reshape (t, i)",
            "float[2,6,4] x",
            "float[1,4,3,4] y",
        ),
        (
            SWAPPED + STATIC.format("0, 4, 2, 3") + " z = Relu (t)",
            "float[n,6,4] x",
            "float[n,4,2,3] y, float[n,4,6] z",
        ),
        (
            "t = Transpose <perm = [1, 0, 2]> (x) " + STATIC.format("0, 4, 2, 3"),
            "float[6,n,4] x",
            "float[n,4,2,3] y",
        ),
    ],
    ids=["channels split", "batches joined", "read elsewhere", "another order"],
)
def test_others_stay(body, inputs, outputs):
    assert rewritten(parsed(body, inputs, outputs))[0] is None


def test_fp32_stays():
    proto = parsed(SWAPPED + STATIC.format("0, 4, 2, 3"))
    assert rewritten(proto, lowered_to=None)[0] is None
    half = parsed(SWAPPED + STATIC.format("0, 4, 2, 3"), "float16[n,6,4] x", "float16[n,4,2,3] y")
    assert rewritten(half, lowered_to=None)[0] is not None
