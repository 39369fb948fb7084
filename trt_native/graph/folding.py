"""Nodes whose results follow from constants and static shapes, as constants."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from trt_native.arrays import Array
from trt_native.graph.evaluation import evaluate_node
from trt_native.graph.inference import infer_shapes
from trt_native.graph.nodes import SHAPES, bodies, constant_of, input_of, op_set

__all__ = ["fold_constants"]

_MOST_ELEMENTS = 1 << 16  # of what a folded node reads, and of what it computes
_RANDOM = op_set(
    "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial"
)
_GROWING = op_set("ConstantOfShape EyeLike Expand OneHot Pad Range Resize Tile Upsample")
_CONTROL_FLOW = op_set("If Loop Scan")


def fold_constants(model: ir.Model) -> int:
    """Replace nodes of the main graph whose small results are known by these results, in place.

    An ``If`` whose condition is known becomes the nodes of its branch. Names of the graph's outputs
    stay; an output that is a constant is computed by an ``Identity``.

    Returns:
        How many nodes were replaced.
    """
    folded = 0
    while True:
        infer_shapes(model)
        done = sum(_fold(model, node) for node in tuple(model.graph))
        if not done:
            break
        folded += done
    common.RemoveUnusedNodesPass()(model)
    return folded


def _fold(model: ir.Model, node: ir.Node) -> bool:
    if node.domain or node.graph is not model.graph:
        return False
    if node.op_type == "If":
        return _inline_branch(model.graph, node)
    if node.op_type in _CONTROL_FLOW or node.op_type in _RANDOM or any(bodies(node)):
        return False
    if node.op_type == "Identity" and node.outputs[0].is_graph_output():
        return False
    results = _results(model, node)
    if results is None:
        return False
    for output in node.outputs:
        if output.name:
            _replace(model.graph, output, results[output.name])
    model.graph.remove(node, safe=True)
    return True


def _results(model: ir.Model, node: ir.Node) -> Mapping[str, Array] | None:
    """The outputs of a node by name; None where they are unknown, or large."""
    x = input_of(node, 0)
    if node.op_type in SHAPES and x is not None and x.shape is not None:
        return _extents(node, x.shape)
    inputs: dict[str, Array] = {}
    for value in node.inputs:
        if value is None:
            continue
        constant = constant_of(value)
        if constant is None or constant.size > _MOST_ELEMENTS:
            return None
        inputs[str(value.name)] = constant.numpy()
    if node.op_type in _GROWING and not _is_small(node.outputs[0]):
        return None
    found = evaluate_node(ir.serde.serialize_node(node), model.opset_imports, inputs)
    if found is None or any(array.size > _MOST_ELEMENTS for array in found.values()):
        return None
    return found


def _is_small(value: ir.Value) -> bool:
    shape = value.shape
    if shape is None or not shape.is_static():
        return False
    return int(np.prod(shape.numpy())) <= _MOST_ELEMENTS


def _extents(node: ir.Node, shape: ir.Shape) -> dict[str, Array] | None:
    start, end = (node.attributes.get_int(key, n) for key, n in (("start", 0), ("end", len(shape))))
    extents = [extent for extent in shape[start:end] if isinstance(extent, int)]
    if len(extents) < len(shape[start:end]):
        return None
    found = np.array(math.prod(extents) if node.op_type == "Size" else extents, np.int64)
    return {str(node.outputs[0].name): found}


def _replace(graph: ir.Graph, output: ir.Value, array: Array) -> None:
    """Let the users of a value read a constant."""
    tensor = ir.Tensor(array, dtype=output.dtype or ir.DataType.from_numpy(array.dtype))
    name = f"{output.name}__folded"
    while name in graph.initializers:
        name += "_"
    constant = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )  # fmt: skip
    graph.register_initializer(constant)
    if output.is_graph_output():
        identity = ir.node("Identity", [constant], outputs=[ir.Value(name=output.name)])
        graph.append(identity)
        constant = _as_output(identity.outputs[0], output)
    output.replace_all_uses_with(constant, replace_graph_outputs=True)


def _as_output(value: ir.Value, like: ir.Value) -> ir.Value:
    value.type, value.shape = like.type, like.shape
    return value


def _inline_branch(graph: ir.Graph, node: ir.Node) -> bool:
    condition = None if node.inputs[0] is None else constant_of(node.inputs[0])
    if condition is None:
        return False
    branch = node.attributes["then_branch" if condition.numpy().all() else "else_branch"].as_graph()
    for value in tuple(branch.initializers.values()):
        del branch.initializers[str(value.name)]
        while value.name in graph.initializers:
            value.name = f"{value.name}_"
        graph.register_initializer(value)
    inner, outputs = tuple(branch), tuple(branch.outputs)
    branch.outputs.clear()
    branch.remove(inner)
    graph.insert_before(node, inner)
    for one in inner:
        for value in one.outputs:
            value.name = f"{node.outputs[0].name}__{value.name}"
    for old, new in zip(node.outputs, outputs, strict=True):
        if old.is_graph_output():
            identity = ir.node("Identity", [new], outputs=[ir.Value(name=old.name)])
            graph.insert_before(node, identity)
            new = _as_output(identity.outputs[0], old)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True
