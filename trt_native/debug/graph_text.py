"""A graph in lines of text, for a person."""

from __future__ import annotations

import onnx

__all__ = ["graph_lines"]


def graph_lines(graph: onnx.GraphProto) -> list[str]:
    """A graph in lines of text: inputs, weights, nodes, outputs."""
    lines = [f"input  {_typed(value)}" for value in graph.input]
    for tensor in graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        lines.append(f"weight {tensor.name}: {kind}{[*tensor.dims]}")
    for node in graph.node:
        words = [f"{attribute.name}={_value(attribute)}" for attribute in node.attribute]
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        lines.append(f"{', '.join(node.output)} = {operator}({', '.join([*node.input, *words])})")
    return [*lines, *(f"output {_typed(value)}" for value in graph.output)]


def _value(attribute: onnx.AttributeProto) -> str:
    if attribute.HasField("g") or attribute.graphs:
        return "{...}"
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return f"tensor{[*value.dims]}"
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _typed(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{value.name}: {kind}"
    axes = [
        d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in tensor.shape.dim
    ]
    return f"{value.name}: {kind}[{', '.join(map(str, axes))}]"
