"""Dimensions that an ONNX file declares."""

from __future__ import annotations

import onnx


def dims(path):
    graph = onnx.load(path, load_external_data=False).graph
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
