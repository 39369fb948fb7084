"""Compute what follows from fixed shapes, where TensorRT wants it as a constant.

A branch of an ``If`` that is always taken takes the place of the node, in bodies too; axes that
follow from shapes or are computed from them become constants. What follows is found on a copy of
the model without its weights, in which every dimension has the extent that the profiles fix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.folding import Folded
from trt_native.graph.nodes import all_nodes, constant_of, input_of, op_set, opset_of
from trt_native.graph.skeleton import folded_twins
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass
from trt_native.passes.branches import BranchInliner
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder

__all__ = ["FoldShapes"]

_AXES = op_set(
    "Squeeze Unsqueeze ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean"
    " ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
_AXES_INPUT = 13  # the opset since which Squeeze has its axes as an input

Change = Callable[["_Changes"], None]


class FoldShapes(GraphPass):
    """Branches, axes and matrices that follow from fixed shapes."""

    name = "fold_shapes"
    title = "Computing what follows from fixed shapes"
    early = True

    def needed(self, model: ir.Model) -> bool:
        """Whether an ``If`` always takes one branch, or axes or a matrix follow from shapes."""
        return bool(self._found(model))

    @wraps_graph_errors
    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Put the branches and constants in the places of what computes them."""
        changes = _Changes(model, self.context.extra_outputs)
        for node, change in self._found(model).items():
            if node not in changes.dropped:
                change(changes)
                changes.counts[node.op_type] += 1
        return {"nodes": dict(changes.counts)}

    def _found(self, model: ir.Model) -> dict[ir.Node, Change]:
        """How to change which node, outer ones first."""
        candidates = [node for node in all_nodes(model.graph) if _is_candidate(node)]
        if not candidates:
            return {}
        _, twins = folded_twins(model, self.context.profiles)
        changes = {node: _change(node, *twins[node], model) for node in candidates}
        return {node: change for node, change in changes.items() if change}


def _is_candidate(node: ir.Node) -> bool:
    """Whether TensorRT may want a constant of a node."""
    if node.domain:
        return False
    axes = input_of(node, 1)
    if node.op_type == "Squeeze" and axes is None:
        return "axes" not in node.attributes
    computed = node.op_type in _AXES and axes is not None and constant_of(axes) is None
    return computed or node.op_type in ("If", "EyeLike")


def _change(node: ir.Node, twin: ir.Node, folded: Folded | None, model: ir.Model) -> Change | None:
    """How to change a node, given its twin where all is folded."""
    if isinstance(folded, str):
        return partial(_Changes.take_branch, node=node, taken=folded)
    if folded is not None:
        return partial(_Changes.put_constants, node=node, arrays=folded)
    if node.op_type not in _AXES or twin.graph is None:
        return None
    axes = _axes(twin)
    if axes is None:
        return None
    if node.op_type == "Squeeze" and opset_of(model) < _AXES_INPUT:
        return partial(_Changes.set_axes, node=node, axes=axes)
    return partial(_Changes.give_axes, node=node, axes=axes)


def _axes(twin: ir.Node) -> Array | None:
    """The axes of a node; None where they are unknown."""
    axes = input_of(twin, 1)
    if axes is not None:
        constant = constant_of(axes)
        return None if constant is None else constant.numpy()
    x = twin.inputs[0]
    if x is None or x.shape is None or not x.shape.is_static():
        return None
    return np.flatnonzero(np.array(x.shape.numpy(), np.int64) == 1)


class _Changes:
    """Changes of a model.

    Attributes:
        counts: Number of nodes that were changed, by operator.
        dropped: Nodes that the model does not have any more.
    """

    def __init__(self, model: ir.Model, kept: Iterable[str]) -> None:
        self.counts: Counter[str] = Counter()
        self.dropped: set[ir.Node] = set()
        self._kept = frozenset(kept)
        self._names = NameAuthority(model)
        self._branches = BranchInliner(model, self._names)
        self._opset = opset_of(model)

    def take_branch(self, node: ir.Node, taken: str) -> None:
        """Put the nodes of a branch in the place of an ``If``."""
        (other,) = node.attributes.keys() - {taken}
        self.dropped |= {node, *all_nodes(node.attributes[other].as_graph())}
        results = self._branches.inline(node, taken)
        condition = node.inputs[0]
        new = ReplacementBuilder(node, self._names, self._opset)
        pairs = list(zip(node.outputs, results, strict=True))
        new.replace(
            *(new.add("Identity", [value], old.dtype) if old.name else None for old, value in pairs)
        )
        self._drop_unused(condition)

    def put_constants(self, node: ir.Node, arrays: Mapping[str, Array]) -> None:
        """Put constants in the place of a node's outputs."""
        new = ReplacementBuilder(node, self._names, self._opset)
        inputs = list(node.inputs)
        new.replace(
            *(
                new.add("Identity", [new.constant(arrays[str(old.name)])], old.dtype)
                if old.name
                else None
                for old in node.outputs
            )
        )
        for value in inputs:
            self._drop_unused(value)

    def give_axes(self, node: ir.Node, axes: Array) -> None:
        """Make a constant of the axes of a node."""
        computed = input_of(node, 1)
        if len(node.inputs) < 2:
            node.resize_inputs(2)
        new = ReplacementBuilder(node, self._names, self._opset)
        node.replace_input_with(1, new.constant(np.asarray(axes, np.int64)))
        self._drop_unused(computed)

    def set_axes(self, node: ir.Node, axes: Array) -> None:
        """Make an attribute of the axes of a ``Squeeze`` of an old opset."""
        node.attributes["axes"] = ir.AttrInt64s("axes", axes.tolist())

    def _drop_unused(self, value: ir.Value | None) -> None:
        """Remove what computed a value that nothing reads any more."""
        node = None if value is None else value.producer()
        if node is None or node.graph is None or any(map(self._is_used, node.outputs)):
            return
        inputs = list(node.inputs)
        self.dropped.add(node)
        node.graph.remove(node, safe=True)
        for read in inputs:
            self._drop_unused(read)

    def _is_used(self, value: ir.Value) -> bool:
        return bool(value.uses()) or value.is_graph_output() or value.name in self._kept
