"""Names for the nodes that have none, by which a weakly typed TensorRT pins them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from trt_native.graph.nodes import all_nodes
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass
from trt_native.passes.pin_fp32_nodes import pins_nodes

__all__ = ["NameNodes", "name_nodes"]


class NameNodes(GraphPass):
    """A name of its own for every node, where layers are found by it."""

    name = "name_nodes"
    title = "Naming nodes"

    def needed(self, model: ir.Model) -> bool:
        """Whether nodes are pinned, and one has no name, or that of another."""
        if not pins_nodes(self.context.precision):
            return False
        names = [node.name for node in all_nodes(model.graph)]
        return not all(names) or len(set(names)) < len(names)

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Name the nodes; see :func:`name_nodes`."""
        return {"named": name_nodes(model)}

    def summarize(self, record: Mapping[str, Any]) -> str:
        """The number of nodes that got a name."""
        return f"nodes that got a name: {record['named']}" if "named" in record else self.title


@wraps_graph_errors
def name_nodes(model: ir.Model) -> int:
    """Give every node, in bodies too, a name that no other has, in place.

    The first node of a name keeps it.

    Returns:
        How many nodes got a new name.
    """
    nodes = list(all_nodes(model.graph))
    taken = Counter(node.name for node in nodes if node.name)
    seen: set[str] = set()
    count = 0
    for number, node in enumerate(nodes):
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        name = f"{node.name or node.op_type}_{number}"
        while name in taken or name in seen:
            name += "_"
        node.name = name
        seen.add(name)
        count += 1
    return count
