"""Models to quantize, and their quantized copies checked."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from helpers import text_models
from helpers.text_models import normal
from trt_native.passes.normalize import normalize
from trt_native.passes.quantize import METADATA_KEY, quantize_model


def model(text: str, opset: int = 19, **weights: np.ndarray) -> ir.Model:
    """A model from ONNX text, with Q/DQ nodes for FP8 in its opset."""
    return text_models.model(text, opset, **weights)


def quantize(original: ir.Model, ranges: Any = None, **options: Any) -> Any:
    """Quantize a copy, which must pass ONNX's checks; without ranges every tensor reaches 4."""
    quantized = ir.from_proto(ir.to_proto(original))
    normalize(quantized)
    if ranges is None:
        values = [*original.graph.inputs, *(v for n in original.graph for v in n.outputs)]
        ranges = {v.name: 4.0 for v in values}
    report = quantize_model(quantized, ranges, **options)
    checked(quantized)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert json.loads(quantized.metadata_props[METADATA_KEY]) == report.to_dict()
    assert report.model_bytes_after == sum(
        v.const_value.nbytes for v in quantized.graph.initializers.values()
    ) - constants_added(original, quantized)
    return quantized, report


def constants_added(original: ir.Model, quantized: ir.Model) -> int:
    """Bytes of what is no weight: scalar scales and zero points, and axes of reductions."""
    added = quantized.graph.initializers.keys() - original.graph.initializers.keys()
    values = [quantized.graph.initializers[name] for name in added]
    small = [v for v in values if not v.const_value.shape or v.dtype == ir.DataType.INT64]
    return sum(v.const_value.nbytes for v in small)


def checked(graph: ir.Model) -> onnx.ModelProto:
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    return proto


def node(graph: ir.Model, name: str) -> ir.Node:
    return next(n for n in graph.graph if n.name == name)


ATTENTION = """(float[2, 32, 32] x) => (float[2, 32, 32] y) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    kt = Transpose<perm = [0, 2, 1]>(k)
    [scores] s = MatMul(q, kt)
    z = Mul(s, half)
    p = Softmax(z)
    [mix] o = MatMul(p, v)
    [out] y = MatMul(o, wo)
}"""


def attention(**changes: Any) -> ir.Model:
    weights = {
        name: normal(i, 32, 32, scale=0.2) for i, name in enumerate(("wq", "wk", "wv", "wo"))
    }
    return model(ATTENTION, half=np.float32(0.5), **weights, **changes)
