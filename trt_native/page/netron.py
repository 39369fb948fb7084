"""ONNX files of a graph alone, for Netron and other viewers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from trt_native._version import __version__
from trt_native.files import atomic_write
from trt_native.graph.skeleton import MOST_ELEMENTS, subgraphs
from trt_native.graph.validity import wraps_graph_errors
from trt_native.page.graph import Node, Tensor
from trt_native.page.layer_graph import layer_graph
from trt_native.plans.engine_layers import Layer

__all__ = ["write_layers_as_onnx", "write_without_weights"]

_DOMAIN = "tensorrt"
_LEFT_OUT = "weights-left-out"
_TYPES = {
    "fp32": onnx.TensorProto.FLOAT,
    "fp16": onnx.TensorProto.FLOAT16,
    "bf16": onnx.TensorProto.BFLOAT16,
    "fp8": onnx.TensorProto.FLOAT8E4M3FN,
    "fp4": onnx.TensorProto.FLOAT4E2M1,
    "int4": onnx.TensorProto.INT4,
    "int8": onnx.TensorProto.INT8,
    "uint8": onnx.TensorProto.UINT8,
    "int32": onnx.TensorProto.INT32,
    "int64": onnx.TensorProto.INT64,
    "bool": onnx.TensorProto.BOOL,
}


@wraps_graph_errors
def write_without_weights(model: ir.Model, path: Path) -> None:
    """Write a model's graph without its larger weights, whose types and shapes stay.

    They refer to a file that does not exist: a viewer draws the graph, but nothing can run it.

    Args:
        model: The model; left as it is.
        path: The ONNX file.

    Raises:
        ModelError: the graph is malformed.
        OSError: the file cannot be written.
    """
    graphs = [(graph, dict(graph.initializers)) for graph in model.graphs()]
    held = {
        id(value): value.const_value
        for _, values in graphs
        for value in values.values()
        if value.const_value is not None and value.const_value.size > MOST_ELEMENTS
    }
    try:
        for _, values in graphs:
            for value in values.values():
                if id(value) in held:
                    value.const_value = _place_holder(held[id(value)])
        proto = ir.to_proto(model)
    finally:
        for _, values in graphs:
            for value in values.values():
                if id(value) in held:
                    value.const_value = held[id(value)]
    for graph in subgraphs(proto.graph):
        graph.doc_string = graph.doc_string or "without weights, to look at"
    _write(proto, path)


def _place_holder(tensor: ir.TensorProtocol | None) -> ir.ExternalTensor:
    assert tensor is not None  # noqa: S101  # for the type checker
    return ir.ExternalTensor(
        _LEFT_OUT,
        0,
        int(tensor.nbytes),
        tensor.dtype,
        name=tensor.name or "",
        shape=ir.Shape(tensor.shape.numpy()),
    )


def write_layers_as_onnx(
    layers: Sequence[Layer], path: Path, *, times: Mapping[str, float] | None = None
) -> None:
    """Write a plan's layers as nodes of the domain ``tensorrt``: a graph to look at.

    Attributes are the layer's precision, kernel, ONNX nodes and, where it is known, time.

    Args:
        layers: In the order in which they run.
        path: The ONNX file.
        times: Milliseconds by the name of a layer.

    Raises:
        OSError: the file cannot be written.
    """
    graph = layer_graph(layers, "layers", times=times)
    names = _unique(graph.tensors)
    nodes = [_node(node, layer, names) for node, layer in zip(graph.nodes, layers, strict=True)]
    infos = [_info(tensor, name) for tensor, name in zip(graph.tensors, names, strict=True)]
    inside = set(range(len(names))) - {*graph.inputs, *graph.outputs}
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "layers",
            [infos[index] for index in graph.inputs],
            [infos[index] for index in graph.outputs],
            value_info=[infos[index] for index in sorted(inside)],
        ),
        opset_imports=[onnx.helper.make_opsetid(_DOMAIN, 1)],
        producer_name="trt-native",
        producer_version=__version__,
    )
    _write(proto, path)


def _unique(tensors: Sequence[Tensor]) -> list[str]:
    """A name for each tensor; kernels may write to one name several times."""
    names: list[str] = []
    used: dict[str, int] = {}
    for tensor in tensors:
        count = used[tensor.name] = used.get(tensor.name, 0) + 1
        names.append(tensor.name if count == 1 else f"{tensor.name} ({count})")
    return names


def _node(node: Node, layer: Layer, names: Sequence[str]) -> onnx.NodeProto:
    found = onnx.helper.make_node(
        node.kind,
        [names[index] for index in node.inputs],
        [names[index] for index in node.outputs],
        name=node.name,
        domain=_DOMAIN,
        precision=layer.precision,
    )
    if layer.tactic:
        found.attribute.append(onnx.helper.make_attribute("kernel", layer.tactic))
    if layer.nodes:
        found.attribute.append(onnx.helper.make_attribute("nodes", list(layer.nodes)))
    if node.milliseconds is not None:
        found.attribute.append(onnx.helper.make_attribute("milliseconds", node.milliseconds))
    return found


def _info(tensor: Tensor, name: str) -> onnx.ValueInfoProto:
    shape = None
    if tensor.shape:
        axes = [] if tensor.shape == "scalar" else tensor.shape.split("×")
        shape = [int(axis) if axis.isdecimal() else axis for axis in axes]
    kind = _TYPES.get(tensor.dtype, onnx.TensorProto.UNDEFINED)
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def _write(proto: onnx.ModelProto, path: Path) -> None:
    with atomic_write(path) as file:
        file.write(proto.SerializeToString())
