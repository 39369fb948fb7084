"""Write an ``If`` whose result has a dynamic shape as nodes of the graph around it.

TensorRT-RTX 1.6 computes such an ``If`` correctly up to the optimum shape of the profile, and
something else at larger ones. Of a condition that is known the branch that it chooses is left;
else both branches are computed, and a ``Where`` chooses between their results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.errors import UnsupportedError
from trt_native.graph.dims import fixed_dimensions
from trt_native.graph.evaluation import evaluate_node
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import all_nodes, bodies, constant_of, input_of, op_set, opset_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder

__all__ = ["LowerConditionals"]

_BRANCHES = ("then_branch", "else_branch")
_OPSET = 9  # has Where
_SMALL = 1024  # elements of what a condition is computed from
_DEEPEST = 40  # nodes in a row that a condition is computed by
_FOLDED = op_set(
    "Add And Cast Concat Div Equal Gather Greater GreaterOrEqual Identity Less LessOrEqual Max Min"
    " Mul Not Or ReduceProd Reshape Shape Slice Squeeze Sub Unsqueeze Xor"
)
_LOOPS = op_set("Loop Scan")
# Data says which elements these read or write: to compute them may not be allowed.
_INDEXING = op_set("Gather GatherElements GatherND Scatter ScatterElements ScatterND OneHot")


@dataclass(frozen=True, slots=True)
class _ConditionalLowering:
    """How an ``If`` is written.

    Attributes:
        node: The node.
        taken: The branch that a known condition chooses; None: both, and a ``Where``.
    """

    node: ir.Node
    taken: str | None


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
        return bool(self._lowerings(model))

    @wraps_graph_errors
    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Write them as nodes of the graph around them.

        Names of values stay, but for those that both branches have.
        """
        found = self._lowerings(model)
        inliner = _Inliner(model)
        for one in found:
            inliner.lower(one)
        return {"nodes": {"If": len(found)}}

    def _lowerings(self, model: ir.Model) -> list[_ConditionalLowering]:
        backend = self.context.backend
        nodes = [n for n in all_nodes(model.graph) if n.op_type == "If" and not n.domain]
        if not nodes or backend is None or backend.capabilities.dynamic_conditionals:
            return []
        dims, static = fixed_dimensions(model.graph.inputs, self.context.profiles)
        if static:
            return []
        _infer(model, nodes)
        found, problems, dropped = [], [], set[ir.Node]()
        for node in nodes:
            if node in dropped or _is_static(node, dims):
                continue
            taken = _taken_branch(node, model.opset_imports, dims)
            if taken is None and (reason := _unsupported_reason(node, opset_of(model))):
                problems.append(f"{node.name or node.outputs[0].name!r}: {reason}")
            elif taken is not None:
                (other,) = set(_BRANCHES) - {taken}
                dropped |= set(all_nodes(node.attributes[other].as_graph()))
            found.append(_ConditionalLowering(node, taken))
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


def _taken_branch(node: ir.Node, opsets: Mapping[str, int], dims: Mapping[str, int]) -> str | None:
    """The branch that is always taken; None where that depends on the inputs."""
    condition = input_of(node, 0)
    known = None if condition is None else _known(condition, opsets, dims, _DEEPEST)
    if known is None or known.size != 1:
        return None
    return _BRANCHES[0] if known.item() else _BRANCHES[1]


def _known(
    value: ir.Value, opsets: Mapping[str, int], dims: Mapping[str, int], depth: int
) -> Array | None:
    """A small value that follows from constants and fixed extents; None for others."""
    tensor = constant_of(value)
    if tensor is not None:
        return tensor.numpy() if tensor.size <= _SMALL else None
    node = value.producer()
    if node is None or node.domain or node.op_type not in _FOLDED or not depth:
        return None
    if node.op_type == "Shape":
        return _whole(_shape_of(node, dims))
    inputs: dict[str, Array] = {}
    source, *others = node.inputs
    extents = _extents_read(node, dims)
    for one in others if extents else node.inputs:
        known = None if one is None else _known(one, opsets, dims, depth - 1)
        if one is not None and known is None:
            return None
        if one is not None and known is not None:
            inputs[one.name or ""] = known
    if extents and source is not None:
        inputs[source.name or ""] = np.arange(len(extents))
    found = evaluate_node(ir.to_proto(node), opsets, inputs)
    result = None if found is None else found[value.name or ""]
    if result is None or not extents:
        return result
    chosen = _whole(extents[i] for i in result.flat)
    return None if chosen is None else chosen.reshape(result.shape)


def _extents_read(node: ir.Node, dims: Mapping[str, int]) -> list[int | None]:
    """The extents of which a ``Gather`` or ``Slice`` of a ``Shape`` takes some; else empty."""
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    if node.op_type not in ("Gather", "Slice") or producer is None or producer.op_type != "Shape":
        return []
    return _shape_of(producer, dims)


def _shape_of(node: ir.Node, dims: Mapping[str, int]) -> list[int | None]:
    """What a ``Shape`` returns, None for extents that are not fixed."""
    (value,) = node.inputs
    if value is None or value.shape is None:
        return [None]
    end = node.attributes.get_int("end", len(value.shape))
    return _extents(value, dims)[node.attributes.get_int("start", 0) : end]


def _whole(extents: Any) -> Array | None:
    known = list(extents)
    return None if None in known else np.array(known, np.int64)


def _unsupported_reason(node: ir.Node, opset: int) -> str:
    """Explain why an ``If`` cannot be written as a ``Where``; empty if it can."""
    if opset < _OPSET:
        return f"Where needs opset {_OPSET}, the model has {opset}"
    branches = [node.attributes[name].as_graph() for name in _BRANCHES]
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


class _Inliner:
    """Moves branches into the graph around them."""

    def __init__(self, model: ir.Model) -> None:
        self._opset = opset_of(model)
        self._names = NameAuthority(model)
        self._uses = Counter(value.name for graph in model.graphs() for value in _made_in(graph))

    def lower(self, lowering: _ConditionalLowering) -> None:
        """Replace an ``If``."""
        node, taken = lowering.node, lowering.taken
        branches = [self._inlined(node, name) for name in ([taken] if taken else _BRANCHES)]
        new = ReplacementBuilder(node, self._names, self._opset)
        condition = node.inputs[0]
        if taken is None and (condition is None or condition.shape is None or condition.shape):
            condition = new.add(
                "Reshape", [condition, new.constant(np.zeros(0, np.int64))], ir.DataType.BOOL
            )
        results: list[ir.Value | None] = []
        for output, *values in zip(node.outputs, *branches, strict=True):
            if not output.name:
                results.append(None)
            elif taken:
                results.append(new.add("Identity", values, output.dtype))
            else:
                results.append(new.add("Where", [condition, *values], output.dtype))
        new.replace(*results)

    def _inlined(self, node: ir.Node, name: str) -> list[ir.Value]:
        """Move the nodes of a branch in front of its ``If``; returns the results."""
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
