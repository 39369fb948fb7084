"""Copies of FP32 models in FP16 or BF16, checked by ONNX and run by onnx.reference."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from trt_native.passes.autocast import PrecisionReport, autocast
from trt_native.passes.normalize import normalize

FP16, BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
TOLERANCE = {FP16: 4e-3, BF16: 3e-2}


def run(graph: ir.Model | onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    proto = graph if isinstance(graph, onnx.ModelProto) else ir.to_proto(graph)
    return [np.asarray(y) for y in ReferenceEvaluator(proto).run(None, inputs)]


def checked(converted: ir.Model) -> onnx.ModelProto:
    """The converted model as a proto that ONNX accepts, types included."""
    proto = ir.to_proto(converted)
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    casts = [n for n in proto.graph.node if n.op_type == "Cast"]
    makers = {out: n for n in casts for out in n.output}
    ours = [n for n in casts if "__" in n.name]
    assert not [n.name for n in ours if n.input[0] in makers], "cast of a cast"
    weights = {w.name for w in proto.graph.initializer}
    assert not [n.name for n in casts if n.input[0] in weights], "cast of a weight"
    assert len({v.name for v in inferred.graph.value_info}) == len(inferred.graph.value_info)
    return proto


def convert(
    original: ir.Model, target: ir.DataType = FP16, **options: Any
) -> tuple[ir.Model, PrecisionReport]:
    """Convert a copy, which must pass ONNX's checks."""
    converted = ir.from_proto(ir.to_proto(original))
    normalize(converted)
    report = autocast(converted, target, **options)
    checked(converted)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    return converted, report


def types(graph: ir.Model) -> dict[str, str]:
    """Type of every node output, by node name."""
    return {n.name: n.outputs[0].dtype.name for n in graph.graph if n.name and n.outputs[0].dtype}
