"""The reduced precisions that a graph already contains."""

from __future__ import annotations

import onnx_ir as ir

from trt_native.graph.nodes import (
    BFLOAT16,
    CASTS,
    FLOAT16,
    QDQ,
    all_nodes,
    op_set,
)
from trt_native.graph.validity import wraps_graph_errors

__all__ = ["is_reduced", "nodes_with_functions", "quantized_types", "reduced_types"]


# Of TensorRT's parser, which takes them from any domain; ModelOpt writes them.
_TENSORRT_QDQ = op_set(
    "TRT_FP4DynamicQuantize TRT_MXFP8DynamicQuantize TRT_MXFP8QuantizeLinear "
    "TRT_MXFP8DequantizeLinear TRT_FP8QuantizeLinear TRT_FP8DequantizeLinear "
    "TRT_INT4QuantizeLinear TRT_INT4DequantizeLinear TRT_DynamicQuantize TRT_BlockQuantize "
    "TRT_BlockDequantize"
)
_QUANTIZED = (QDQ | _TENSORRT_QDQ) | op_set(
    "DynamicQuantizeLinear MatMulInteger ConvInteger QLinearMatMul QLinearConv QLinearAdd "
    "QLinearMul QGemm MatMulIntegerToFloat DynamicQuantizeMatMul DynamicQuantizeLSTM"
)
_REDUCED_TYPES = frozenset(
    dtype
    for dtype in ir.DataType
    if dtype in (FLOAT16, BFLOAT16) or dtype.name.startswith(("FLOAT8", "FLOAT4", "INT4", "UINT4"))
)


@wraps_graph_errors
def is_reduced(model: ir.Model) -> bool:
    """Whether a graph already has reduced precision, and should be left as it is.

    See :func:`reduced_types` for what counts. What lies between the Q/DQ nodes of a graph that is
    FP32 otherwise does not: the rest of such a graph can still be reduced.
    """
    types = reduced_types(model)
    if "quantized" not in types:
        return bool(types)
    packed = types - {"quantized", "float16", "bfloat16"}
    nodes = nodes_with_functions(model)
    return (
        types - packed != {"quantized"}
        or any(node.op_type in _QUANTIZED - QDQ for node in nodes)
        or any(
            dtype.name.lower() in packed
            for node in nodes
            if node.op_type in CASTS
            for dtype in _node_types(node)
        )
    )


def _node_types(node: ir.Node) -> set[ir.DataType]:
    """Types of a node's values, as far as they are known, and the one that a ``Cast`` is to."""
    types = {v.dtype for v in (*node.inputs, *node.outputs) if v is not None and v.dtype}
    if node.op_type == "Cast" and not node.attributes["to"].is_ref():
        types.add(ir.DataType(node.attributes["to"].as_int()))
    return types


@wraps_graph_errors
def reduced_types(model: ir.Model) -> frozenset[str]:
    """Name the reduced precisions in a graph, bodies and model-local functions included.

    Returns:
        ONNX type names of values, weights and ``Cast`` nodes that are FP16, BF16, FP8, FP4 or
        INT4 (``"float16"``, ``"float8e4m3fn"``), and ``"quantized"`` where there are Q/DQ or other
        quantised operators. Empty for an FP32 model.
    """
    nodes = nodes_with_functions(model)
    types = {v.dtype for v in (*model.graph.inputs, *model.graph.outputs) if v.dtype}
    for node in nodes:
        types |= _node_types(node)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                types.add(attribute.as_tensor().dtype)
    names = {dtype.name.lower() for dtype in types & _REDUCED_TYPES}
    quantized = any(node.op_type in _QUANTIZED for node in nodes)
    return frozenset(names | {"quantized"} if quantized else names)


def quantized_types(model: ir.Model) -> tuple[str, ...]:
    """ONNX type names, in order, of the values that the Q/DQ nodes of a model quantize to."""
    found = set()
    for node in nodes_with_functions(model):
        if node.op_type.endswith("DequantizeLinear") and node.op_type in _QUANTIZED:
            types = [v.dtype for v in (node.inputs[0], *node.inputs[2:]) if v is not None]
            found |= {dtype.name.lower() for dtype in types if dtype is not None}
    return tuple(sorted(found))


def nodes_with_functions(model: ir.Model) -> list[ir.Node]:
    """Nodes of the graph, of bodies, and of model-local functions."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    return [node for graph in graphs for node in all_nodes(graph)]
