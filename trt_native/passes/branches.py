"""Branches of an ``If`` as nodes of the graph around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from trt_native.passes.replacement import NameAuthority

__all__ = ["BRANCHES", "BranchInliner"]

BRANCHES = ("then_branch", "else_branch")


class BranchInliner:
    """Moves branches into the graph around them."""

    def __init__(self, model: ir.Model, names: NameAuthority) -> None:
        self._names = names
        self._uses = Counter(value.name for graph in model.graphs() for value in _made_in(graph))

    def inline(self, node: ir.Node, name: str) -> list[ir.Value]:
        """Move the nodes of a branch in front of its ``If``; returns the results.

        Names of values stay, but for those that another value of the model has.
        """
        branch, graph = node.attributes[name].as_graph(), node.graph
        assert graph is not None  # noqa: S101  # for the type checker
        results = list(branch.outputs)
        branch.outputs.clear()
        for weight in list(branch.initializers.values()):
            del branch.initializers[str(weight.name)]
            self._rename(weight)
            graph.register_initializer(weight)
        nodes = list(branch)
        branch.remove(nodes)
        graph.insert_before(node, nodes)
        for value in (value for inner in nodes for value in inner.outputs):
            self._rename(value)
        return results

    def _rename(self, value: ir.Value) -> None:
        """Take another name where a further value of the model has it."""
        if value.name and self._uses[value.name] > 1:
            self._uses[value.name] -= 1
            value.name = self._names.unique(value.name)


def _made_in(graph: ir.Graph | ir.Function) -> Iterator[ir.Value]:
    """Values that get their names in a graph, without the bodies in it."""
    yield from graph.inputs
    if isinstance(graph, ir.Graph):
        yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
