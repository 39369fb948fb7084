"""Put one node, of a plugin, in the place of nodes that a file names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from trt_native.errors import SpecError
from trt_native.graph.inference import infer_types
from trt_native.graph.subgraphs import Replacement, Subgraph, find_subgraphs, read_replacements
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass
from trt_native.passes.replacement import NameAuthority

__all__ = ["ReplaceSubgraphs"]

_DONE_KEY = "trt_native.replace_subgraphs"


class ReplaceSubgraphs(GraphPass):
    """One node of a plugin for each group of nodes that the replacement map names."""

    name = "replace_subgraphs"
    title = "Replacing nodes by plugins"
    early = True

    def needed(self, model: ir.Model) -> bool:
        """Whether there is a map, and the model has not been rewritten by it."""
        return (
            self.context.config.replacement_map is not None
            and _DONE_KEY not in model.graph.metadata_props
        )

    @wraps_graph_errors
    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Replace them; ``nodes`` counts the new ones, ``replaced`` the old ones by operator."""
        path = self.context.config.replacement_map
        assert path is not None  # noqa: S101  # for the type checker
        infer_types(model)
        names, made, replaced = NameAuthority(model), Counter[str](), Counter[str]()
        for wanted in read_replacements(path):
            for subgraph in find_subgraphs(model.graph, wanted):
                replaced.update(node.op_type for node in subgraph.nodes)
                _replace(model.graph, subgraph, wanted, names)
                made[wanted.operator] += 1
            if wanted.domain:
                model.opset_imports.setdefault(wanted.domain, 1)
        model.graph.metadata_props[_DONE_KEY] = "done"
        return {"nodes": dict(made), "replaced": dict(replaced)}

    def preview(self, model: ir.Model) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing: it runs before anything is decided."""
        return {}


def _replace(
    graph: ir.Graph, subgraph: Subgraph, wanted: Replacement, names: NameAuthority
) -> None:
    if not subgraph.outputs:
        raise SpecError(
            f"replacement by {wanted.operator}: nothing reads what the nodes make",
            options=("replacement_map",),
        )
    last = subgraph.nodes[-1]
    outputs = [
        ir.Value(
            name=names.unique(f"{old.name}__{wanted.operator}"), shape=old.shape, type=old.type
        )
        for old in subgraph.outputs
    ]
    node = ir.node(
        wanted.operator,
        subgraph.inputs,
        dict(wanted.attributes),
        domain=wanted.domain,
        outputs=outputs,
        name=last.name,
    )
    ir.convenience.replace_nodes_and_values(
        graph, last, subgraph.nodes, [node], subgraph.outputs, outputs
    )
    graph.sort()  # what reads the first of its outputs may have been before the last node
