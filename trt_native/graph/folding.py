"""Nodes whose results follow from constants and static shapes, as constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from trt_native.arrays import Array
from trt_native.graph.evaluation import evaluate_node
from trt_native.graph.inference import infer_shapes
from trt_native.graph.nodes import (
    FLOAT,
    RANDOM_OPS,
    SHAPES,
    all_nodes,
    bodies,
    constant_of,
    input_of,
    op_set,
)

__all__ = ["fold_constants", "taken_branch"]

_MOST_ELEMENTS = 1 << 16  # of what a folded node reads, and of what it computes
_GROWING = op_set("ConstantOfShape EyeLike Expand OneHot Pad Range Resize Tile Upsample")
_CONTROL_FLOW = op_set("If Loop Scan")
_SELECTIONS = op_set("Gather Slice")

Folded = Mapping[str, Array] | str
"""The outputs of a node by name; of an ``If`` the attribute with the branch that it takes."""


def fold_constants(
    model: ir.Model,
    *,
    in_bodies: bool = False,
    on_fold: Callable[[ir.Node, Folded], None] | None = None,
) -> int:
    """Replace nodes whose small results are known by these results, in place.

    An ``If`` whose condition is known becomes the nodes of its branch. Names of the graph's outputs
    stay; an output that is a constant is computed by an ``Identity``.

    Args:
        model: The model.
        in_bodies: Fold in the bodies of nodes, too, not in the main graph alone.
        on_fold: Receives each of these nodes, and its results, before they are replaced.

    Returns:
        How many nodes were replaced.
    """
    folded = 0
    while True:
        infer_shapes(model)
        nodes = tuple(all_nodes(model.graph) if in_bodies else model.graph)
        done = sum(_fold(model, node, in_bodies, on_fold) for node in nodes)
        if not done:
            break
        folded += done
    common.RemoveUnusedNodesPass()(model)
    return folded


def _fold(
    model: ir.Model,
    node: ir.Node,
    in_bodies: bool,
    on_fold: Callable[[ir.Node, Folded], None] | None,
) -> bool:
    graph = node.graph
    if node.domain or not isinstance(graph, ir.Graph):  # folded away with what is around it
        return False
    if graph is not model.graph and not in_bodies:
        return False
    if node.op_type == "If":
        taken = taken_branch(node)
        if taken is None:
            return False
        if on_fold is not None:
            on_fold(node, taken)
        _inline_branch(model.graph, node, taken)
        return True
    if node.op_type in _CONTROL_FLOW or node.op_type in RANDOM_OPS or any(bodies(node)):
        return False
    if node.op_type == "Identity" and node.outputs[0].is_graph_output():
        return False
    results = _results(model, node)
    if results is None:
        return False
    if on_fold is not None:
        on_fold(node, results)
    for output in node.outputs:
        if output.name:
            _replace(model.graph, graph, output, results[output.name])
    graph.remove(node, safe=True)
    return True


def _results(model: ir.Model, node: ir.Node) -> Mapping[str, Array] | None:
    """The outputs of a node by name; None where they are unknown, or large."""
    x = input_of(node, 0)
    if node.op_type in SHAPES and x is not None and x.shape is not None:
        return _extents(node, x.shape)
    extents = _extents_read(x) if node.op_type in _SELECTIONS else None
    inputs: dict[str, Array] = {}
    if x is not None and extents is not None:
        inputs[str(x.name)] = np.arange(len(extents))
    elif node.op_type == "EyeLike" and x is not None and x.shape is not None and _is_small(x):
        kind = (x.dtype or FLOAT).numpy()  # its values do not count
        inputs[str(x.name)] = np.zeros(x.shape.numpy(), kind)
    for value in node.inputs:
        if value is None or str(value.name) in inputs:
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
    return found if extents is None else _selected(extents, found)


def _extents_read(value: ir.Value | None) -> list[int | None] | None:
    """What a ``Shape`` of a known rank returns, None for the extents that are unknown."""
    shape = None if value is None else value.producer()
    if shape is None or shape.op_type != "Shape" or shape.domain:
        return None
    source = shape.inputs[0]
    if source is None or source.shape is None:
        return None
    end = shape.attributes.get_int("end", len(source.shape))
    extents = source.shape[shape.attributes.get_int("start", 0) : end]
    return [extent if isinstance(extent, int) else None for extent in extents]


def _selected(extents: list[int | None], found: Mapping[str, Array]) -> dict[str, Array] | None:
    """The extents at positions; None where one of them is unknown."""
    ((name, positions),) = found.items()
    chosen = [extents[position] for position in positions.flat]
    if None in chosen:
        return None
    return {name: np.array(chosen, np.int64).reshape(positions.shape)}


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


def _replace(main: ir.Graph, graph: ir.Graph, output: ir.Value, array: Array) -> None:
    """Let the users of a value read a constant of the main graph."""
    tensor = ir.Tensor(array, dtype=output.dtype or ir.DataType.from_numpy(array.dtype))
    name = f"{output.name}__folded"
    while name in main.initializers:
        name += "_"
    constant = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )  # fmt: skip
    main.register_initializer(constant)
    if output.is_graph_output():
        identity = ir.node("Identity", [constant], outputs=[ir.Value(name=output.name)])
        graph.append(identity)
        constant = _as_output(identity.outputs[0], output)
    output.replace_all_uses_with(constant, replace_graph_outputs=True)


def _as_output(value: ir.Value, like: ir.Value) -> ir.Value:
    value.type, value.shape = like.type, like.shape
    return value


def taken_branch(node: ir.Node) -> str | None:
    """The attribute of the branch that an ``If`` takes; None where its condition is unknown."""
    condition = None if node.inputs[0] is None else constant_of(node.inputs[0])
    if condition is None or condition.size != 1:
        return None
    return "then_branch" if condition.numpy().all() else "else_branch"


def _inline_branch(main: ir.Graph, node: ir.Node, taken: str) -> None:
    branch, graph = node.attributes[taken].as_graph(), node.graph
    assert isinstance(graph, ir.Graph)  # noqa: S101  # for the type checker
    for value in tuple(branch.initializers.values()):
        del branch.initializers[str(value.name)]
        while value.name in main.initializers:
            value.name = f"{value.name}_"
        main.register_initializer(value)
    inner, outputs = tuple(branch), tuple(branch.outputs)
    branch.outputs.clear()
    branch.remove(inner)
    graph.insert_before(node, inner)
    for one in inner:
        for value in filter(lambda value: value.name, one.outputs):
            value.name = f"{node.outputs[0].name}__{value.name}"
    for old, new in zip(node.outputs, outputs, strict=True):
        if old.is_graph_output():
            identity = ir.node("Identity", [new], outputs=[ir.Value(name=old.name)])
            graph.insert_before(node, identity)
            new = _as_output(identity.outputs[0], old)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
