"""Structural signature used to check that a model's weights can be refitted into a plan."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from trt_native.graph.onnx_file import dtype_name
from trt_native.graph.validity import wraps_graph_errors
from trt_native.shapes import format_shape

__all__ = [
    "STRUCTURAL",
    "RefitSignature",
    "constant_tensor",
    "describe_tensor",
    "differences",
    "fold_sources",
    "norm_scales",
    "refit_signature",
    "unmapped",
]

STRUCTURAL = frozenset(
    dtype
    for dtype in ir.DataType
    if dtype.name in ("BOOL", "STRING", "INT16", "INT32", "INT64", "UINT16", "UINT32", "UINT64")
)
"""Types that shapes and indices are made of. TensorRT builds them into the plan."""


@dataclass(frozen=True, slots=True)
class RefitSignature:
    """A graph without the values of its weights, and its weights.

    Attributes:
        structure: SHA-256 over operators, attributes, connections, integer constants, and the
            names of the weights, in hexadecimal. Names of other values do not matter.
        weights: Name of each weight, as TensorRT's refitter calls it, to its type, shape and the
            SHA-256 of its bytes: ``float16 320x4x3x3 HEX``, with ``scalar`` for no axes.
    """

    structure: str
    weights: Mapping[str, str]


@wraps_graph_errors
def refit_signature(model: ir.Model) -> RefitSignature:
    """Read a model's weights, one at a time, and describe it.

    A weight is a floating-point or quantized initializer, or the output of such a ``Constant``,
    in the main graph or in a body; constants of model-local functions count as structure.
    """
    return _Reader().read(model)


class _Reader:
    def __init__(self) -> None:
        self._weights: dict[str, str] = {}
        self._tokens: dict[ir.Value, list[Any]] = {}
        self._digest = hashlib.sha256()
        self._count = itertools.count()
        self._in_function = False

    def read(self, model: ir.Model) -> RefitSignature:
        self._add("opsets", sorted(model.opset_imports.items()))
        self._graph(model.graph)
        self._in_function = True  # the parser gives what it inlines names of its own
        for key, function in sorted(model.functions.items()):
            self._add("function", list(key))
            self._values("inputs", function.inputs)
            for node in function:
                self._node(node)
            self._values("outputs", function.outputs)
        return RefitSignature(self._digest.hexdigest(), self._weights)

    def _add(self, *parts: Any) -> None:
        self._digest.update(json.dumps(parts).encode() + b"\n")

    def _graph(self, graph: ir.Graph) -> None:
        self._add("graph", [_io_type(value) for value in (*graph.inputs, *graph.outputs)])
        for value in graph.initializers.values():
            if value.const_value is not None and (value.uses() or value.is_graph_output()):
                self._constant(value, value.const_value)
        self._values("inputs", graph.inputs)
        for node in graph:
            self._node(node)
        self._values("outputs", graph.outputs)

    def _node(self, node: ir.Node) -> None:
        tensor = constant_tensor(node)
        if tensor is not None:
            self._constant(node.outputs[0], tensor)
            return
        self._add("node", node.domain, node.op_type)
        self._values("inputs", node.inputs)
        self._values("outputs", node.outputs)
        for name, attribute in sorted(node.attributes.items()):
            self._attribute(name, attribute)

    def _attribute(self, name: str, attribute: ir.Attr) -> None:
        kind = ir.AttributeType
        if attribute.is_ref():
            self._add("attribute", name, "ref", attribute.ref_attr_name)
        elif attribute.type in (kind.GRAPH, kind.GRAPHS):
            many = attribute.type == kind.GRAPHS
            graphs = attribute.as_graphs() if many else [attribute.as_graph()]
            self._add("attribute", name, "graphs", len(graphs))
            for graph in graphs:
                self._graph(graph)
        elif attribute.type in (kind.TENSOR, kind.TENSORS):
            many = attribute.type == kind.TENSORS
            tensors = attribute.as_tensors() if many else [attribute.as_tensor()]
            self._add("attribute", name, [describe_tensor(tensor) for tensor in tensors])
        else:
            self._add("attribute", name, attribute.type.name, repr(attribute.value))

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        text = describe_tensor(tensor)
        if self._in_function or tensor.dtype in STRUCTURAL:
            self._tokens[value] = ["constant", text]
        else:
            self._tokens[value] = ["weight", value.name]
            self._weights[value.name or ""] = text

    def _values(self, kind: str, values: Sequence[ir.Value | None]) -> None:
        # A value without a constant's content or a weight's name is identified by its number.
        for value in values:
            if value is not None and value not in self._tokens:
                self._tokens[value] = [next(self._count)]
        self._add(kind, [None if value is None else self._tokens[value] for value in values])


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a ``Constant``; None for any other node."""
    attribute = node.attributes.get("value")
    if node.op_type != "Constant" or node.domain or attribute is None or attribute.is_ref():
        return None
    return attribute.as_tensor() if attribute.type == ir.AttributeType.TENSOR else None


def _io_type(value: ir.Value) -> str:
    # Names of symbolic dimensions are not what a weight depends on.
    shape = None if value.shape is None else [d if isinstance(d, int) else "?" for d in value.shape]
    return f"{value.dtype} {shape}"


def describe_tensor(tensor: ir.TensorProtocol) -> str:
    """Type, shape and SHA-256 of a tensor, as in :attr:`RefitSignature.weights`."""
    extents = [int(extent) for extent in tensor.shape.numpy()]
    shape = format_shape(extents)
    return f"{dtype_name(tensor.dtype)} {shape} {hashlib.sha256(_content(tensor)).hexdigest()}"


def _content(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist()).encode()
    return unmapped(tensor).tobytes()


def unmapped(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor; if its data is external, a copy that maps it only as long as it is read."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.ExternalTensor(
        tensor.location, tensor.offset, tensor.length, tensor.dtype,
        shape=tensor.shape, name=tensor.name or "", base_dir=tensor.base_dir,
    )  # fmt: skip


def norm_scales(model: ir.Model) -> frozenset[str]:
    """Names of the constants that scale an ``InstanceNormalization``."""
    return frozenset(
        scale.name
        for node in model.graph.all_nodes()
        if node.op_type == "InstanceNormalization" and node.domain == ""
        if (scale := node.inputs[1]) is not None and scale.name
        if ir.convenience.get_const_tensor(scale) is not None
    )


def fold_sources(model: ir.Model) -> frozenset[str]:
    """Names of the weights that TensorRT's parser folds into others, of names of its own.

    It makes one scale and one bias of the four parameters of a ``BatchNormalization``, and its
    refitter does the same again.
    """
    return frozenset(
        value.name
        for node in model.graph.all_nodes()
        if node.op_type == "BatchNormalization" and node.domain == ""
        for value in node.inputs[1:]
        if value is not None and value.name
    )


def differences(old: RefitSignature, new: RefitSignature, source: str) -> list[str]:
    """Why the weights of a model do not fit a plan, a line each; none if they do.

    Args:
        old: Of the model that the plan was built from.
        new: Of the other.
        source: What the other is called.
    """
    problems = list(_weight_problems(old.weights, new.weights, source))
    if not problems and old.structure != new.structure:
        problems.append(
            f"the weights have the names, types and shapes of the plan's, but the graph of {source}"
            " is another: an operator, an attribute, an integer constant or an input differs"
        )
    return problems


def _weight_problems(old: Mapping[str, str], new: Mapping[str, str], source: str) -> Iterator[str]:
    for name, text in old.items():
        wanted = text.rpartition(" ")[0]
        if name not in new:
            yield f"{name!r} ({wanted}) is missing in {source}"
        elif (found := new[name].rpartition(" ")[0]) != wanted:
            yield f"{name!r} is {found} in {source}, the plan needs {wanted}"
    for name in new.keys() - old.keys():
        yield f"{name!r} ({new[name].rpartition(' ')[0]}) is unknown to the plan"
