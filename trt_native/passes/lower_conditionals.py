"""Write an ``If`` whose result has a dynamic shape as nodes of the graph around it.

TensorRT-RTX 1.6 computes such an ``If`` correctly up to the optimum shape of the profile, and
something else at larger ones. Both branches are computed, and a ``Where`` chooses between their
results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_native.errors import UnsupportedError
from trt_native.graph.dims import fixed_dimensions
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import all_nodes, bodies, constant_of, input_of, op_set, opset_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass
from trt_native.passes.branches import BRANCHES, BranchInliner
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder

__all__ = ["LowerConditionals"]

_OPSET = 9  # has Where
_LOOPS = op_set("Loop Scan")
# Data says which elements these read or write: to compute them may not be allowed.
_INDEXING = op_set("Gather GatherElements GatherND Scatter ScatterElements ScatterND OneHot")


class LowerConditionals(GraphPass):
    """``Where`` in the place of an ``If`` whose result has a dynamic shape."""

    name = "lower_conditionals"
    title = "Writing conditionals as selections"
    early = True

    def needed(self, model: ir.Model) -> bool:
        """Whether there is such an ``If``, on a backend that computes it wrong.

        Raises:
            UnsupportedError: there is, and it has no other form.
        """
        return bool(self._found(model))

    @wraps_graph_errors
    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Write them as nodes of the graph around them.

        Names of values stay, but for those that both branches have.
        """
        found, names = self._found(model), NameAuthority(model)
        branches = BranchInliner(model, names)
        for node in found:
            _lower(node, branches, names, opset_of(model))
        return {"nodes": {"If": len(found)}}

    def _found(self, model: ir.Model) -> list[ir.Node]:
        backend = self.context.backend
        nodes = [n for n in all_nodes(model.graph) if n.op_type == "If" and not n.domain]
        if not nodes or backend is None or backend.capabilities.dynamic_conditionals:
            return []
        dims, static = fixed_dimensions(model.graph.inputs, self.context.profiles)
        if static:
            return []
        _infer(model, nodes)
        found = [node for node in nodes if not _is_static(node, dims)]
        problems = [
            f"{node.name or node.outputs[0].name!r}: {reason}"
            for node in found
            if (reason := _unsupported_reason(node, opset_of(model)))
        ]
        if problems:
            raise UnsupportedError(
                f"{backend.product} {backend.version} computes an If of a dynamic shape wrong"
                " above the optimum shape, and these cannot be written otherwise; build with fixed"
                " dimensions, or use Where in the model:",
                problems=problems,
            )
        return found


def _infer(model: ir.Model, nodes: list[ir.Node]) -> None:
    """Fill in shapes, also of results of branches of which the rank alone is given."""
    results = [value for node in nodes for body in bodies(node) for value in body.outputs]
    given = [value.shape for value in results]
    for value in results:
        if value.shape is not None and not all(_is_known(dim) for dim in value.shape):
            value.shape = None
    infer_values(model)
    for value, shape in zip(results, given, strict=True):
        value.shape = value.shape or shape


def _is_known(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) or dim.value is not None


def _is_static(node: ir.Node, dims: Mapping[str, int]) -> bool:
    """Whether the shapes of all results are known at build time."""
    return all(
        value.shape is not None and None not in _extents(value, dims)
        for value in node.outputs
        if value.name
    )


def _extents(value: ir.Value, dims: Mapping[str, int]) -> list[int | None]:
    return [dim if isinstance(dim, int) else dims.get(dim.value or "") for dim in value.shape or ()]


def _unsupported_reason(node: ir.Node, opset: int) -> str:
    """Explain why an ``If`` cannot be written as a ``Where``; empty if it can."""
    if opset < _OPSET:
        return f"Where needs opset {_OPSET}, the model has {opset}"
    branches = [node.attributes[name].as_graph() for name in BRANCHES]
    for inner in (inner for branch in branches for inner in all_nodes(branch)):
        if inner.domain:
            return f"a branch has the custom operator {inner.domain}::{inner.op_type}"
        if inner.op_type in _LOOPS:
            return f"a branch has a {inner.op_type}, which may not end where it is not chosen"
        if inner.op_type in _INDEXING and not _has_constant_indices(inner):
            return f"a branch has a {inner.op_type} whose indices may be invalid if not chosen"
    for value, one, other in zip(node.outputs, *(b.outputs for b in branches), strict=True):
        if value.name and not _are_alike(one, other):
            shapes = f"{_shape_text(one)} and {_shape_text(other)}"
            return f"the shapes of its branches may differ: {shapes}"
    return ""


def _has_constant_indices(node: ir.Node) -> bool:
    indices = input_of(node, 0 if node.op_type == "OneHot" else 1)
    return indices is not None and constant_of(indices) is not None


def _are_alike(one: ir.Value, other: ir.Value) -> bool:
    """Whether two values are tensors of the same known shape."""
    if not all(isinstance(value.type, ir.TensorType) for value in (one, other)):
        return False
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    return all(a == b and _is_known(a) for a, b in zip(one.shape, other.shape, strict=True))


def _shape_text(value: ir.Value) -> str:
    if value.shape is None:
        return "unknown"
    dims = (dim if isinstance(dim, int) else dim.value or "?" for dim in value.shape)
    return f"({', '.join(map(str, dims))})"


def _lower(node: ir.Node, branches: BranchInliner, names: NameAuthority, opset: int) -> None:
    """Replace an ``If`` by both of its branches, and a ``Where``."""
    results = [branches.inline(node, name) for name in BRANCHES]
    new = ReplacementBuilder(node, names, opset)
    condition = node.inputs[0]
    if condition is None or condition.shape is None or condition.shape:
        condition = new.add(
            "Reshape", [condition, new.constant(np.zeros(0, np.int64))], ir.DataType.BOOL
        )
    new.replace(
        *(
            new.add("Where", [condition, *values], output.dtype) if output.name else None
            for output, *values in zip(node.outputs, *results, strict=True)
        )
    )
