"""Write operators that the backend's parser refuses as plain ones.

These are operators that ONNX does not define by others. A rule writes one as sums, products and
selections, where what it needs is known: shapes and constants, with the dimensions bound that every
profile fixes. What depends on constants alone becomes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.backends.parser_support import refused_nodes
from trt_native.graph.folding import Folded
from trt_native.graph.inference import infer_around, infer_values
from trt_native.graph.nodes import all_nodes, dtype_of, input_of, op_set, opset_of
from trt_native.graph.skeleton import folded_twins
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes import (
    rules_arithmetic,
    rules_resize,
    rules_sampling,
    rules_scatter,
    rules_selection,
)
from trt_native.passes.array_builder import ArrayBuilder, OperatorRule, Site
from trt_native.passes.base import GraphPass
from trt_native.passes.extent_workarounds import picks_other_nearest
from trt_native.passes.reject_unsupported import unsupported_reason
from trt_native.passes.replacement import NameAuthority

__all__ = ["LowerOperators"]

_FIRST_OPSET = 9  # which has Where
_RULES: Mapping[str, OperatorRule] = {
    **rules_arithmetic.RULES,
    **rules_resize.RULES,
    **rules_sampling.RULES,
    **rules_scatter.RULES,
    **rules_selection.RULES,
}
_CONSTANT = op_set("MelWeightMatrix NonZero Range Unique")  # written where all is known
_FIXED_BOXES = (
    "NonMaxSuppression has as many rows as the model's output: -1 behind fewer boxes, and in all"
    " rows where there are more"
)
Write = Callable[[ArrayBuilder], None]


class LowerOperators(GraphPass):
    """Sums, products and selections for operators that the parser refuses or miscompiles."""

    name = "lower_operators"
    title = "Writing operators as plain ones"
    early = True  # the precision is chosen for what is computed in the end

    def needed(self, model: ir.Model) -> bool:
        """Whether the parser refuses a node with a rule, or TensorRT computes something else."""
        return bool(self._found(model))

    @wraps_graph_errors
    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Write the nodes out."""
        names, opset = NameAuthority(model), opset_of(model)
        counts: Counter[str] = Counter()
        while found := self._found(model):  # the shapes that it leaves may be known better
            for node, write in found.items():
                write(ArrayBuilder(node, names, opset))
                counts[node.op_type] += 1
        return {"nodes": dict(counts)}

    def preview(self, model: ir.Model) -> Mapping[str, Any]:
        """Counts of the nodes to write out."""
        return {"nodes": dict(Counter(node.op_type for node in self._found(model)))}

    def summarize(self, record: Mapping[str, Any]) -> str:
        """The counts, and what a number of boxes that is fixed means."""
        lines = [super().summarize(record)]
        if "NonMaxSuppression" in record["nodes"]:
            lines.append(_FIXED_BOXES)
        return "\n".join(lines)

    def _found(self, model: ir.Model) -> dict[ir.Node, Write]:
        """How to write which node."""
        backend, opset = self.context.backend, opset_of(model)
        candidates = [node for node in all_nodes(model.graph) if _is_candidate(node)]
        if self.context.config.in_place_caches:  # what cannot be is refused later
            candidates = [node for node in candidates if node.op_type != "TensorScatter"]
        if backend is None or not candidates or opset < _FIRST_OPSET:
            return {}
        infer_around(model, candidates)
        has = backend.capabilities
        refused = set(refused_nodes(candidates, model.opset_imports, backend))
        refused |= {n for n in candidates if unsupported_reason(n, has.crashing_operators)}
        refused |= {n for n in candidates if n.op_type in has.operators_elsewhere}
        refused |= {n for n in candidates if picks_other_nearest(n)}
        if not refused:
            return {}
        copy, twins = folded_twins(model, self.context.profiles)
        infer_values(copy)
        found = {
            node: _way(Site(node, twin, opset, is_inside=node.graph is not model.graph), folded)
            for node, (twin, folded) in twins.items()
            if node in refused
        }
        return {node: write for node, write in found.items() if write is not None}


def _is_candidate(node: ir.Node) -> bool:
    """Whether the parser may refuse a node of an operator that has a rule."""
    if node.domain or node.op_type not in (*_RULES, *_CONSTANT):
        return False
    x = input_of(node, 0)
    if node.op_type in ("ReduceMax", "ReduceMin"):
        return dtype_of(x) in (None, ir.DataType.BOOL)
    if node.op_type == "MaxPool":
        kind = dtype_of(x)
        return kind is None or not kind.is_floating_point()
    if node.op_type == "MatMul":
        return any(v is None or v.shape is None or len(v.shape) == 1 for v in node.inputs)
    return True


def _way(site: Site, folded: Folded | None) -> Write | None:
    if folded is not None and not isinstance(folded, str):
        return partial(_put_constants, arrays=folded)
    rule = _RULES.get(site.node.op_type)
    return None if rule is None else rule(site)


def _put_constants(new: ArrayBuilder, arrays: Mapping[str, Array]) -> None:
    new.replace(
        *(
            new.op("Identity", arrays[str(old.name)], kind=old.dtype) if old.name else None
            for old in new.node.outputs
        )
    )
