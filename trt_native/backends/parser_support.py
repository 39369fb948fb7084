"""Nodes that a TensorRT's ONNX parser refuses, asked of the parser itself.

Each kind of node is asked about once in a process, as a model of that node alone: the operator with
its domain, opset, attributes, and the types, shapes and small constants that it reads. An answer
takes 0.1 to 0.2 ms, so none is kept on disk. What the parser takes may still fail to build.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from trt_native.backends.base import Backend
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import all_nodes, constant_of
from trt_native.graph.onnx_file import read_model
from trt_native.graph.validity import wraps_graph_errors

__all__ = [
    "WRITTEN_WHERE",
    "OneNodeModel",
    "is_used",
    "one_node_model",
    "reads_computed_shape",
    "refusal_lines",
    "refused_in_file",
    "refused_nodes",
]

_MOST_INTEGERS = 1024  # so many values of a constant are kept: they may be a shape
_MOST_FLOATS = 16
_MOST_CONSTANT = 1 << 16  # elements of a constant that stays one; a larger one becomes an input
_NAME = "asked"
_CRASH = "its import may end the process"
_MOST_LINES = 19
_LACKING = re.compile("not supported in TensorRT|^not supported$|plugin creator|No importer")
_CONTROL_FLOW = frozenset(("If", "Loop", "Scan"))  # their bodies read values from outside

WRITTEN_WHERE = {
    "Col2Im": "its sizes are constants",
    "Compress": "its condition is a constant",
    "CumProd": "the extent of its axis is fixed",
    "DFT": "its axis, length and extent are fixed",
    "DeformConv": "all extents but the batch are fixed",
    "Det": "it is of 4 by 4 elements or fewer",
    "MaxPool": "all extents but the batch are fixed",
    "MaxUnpool": "all extents but the batch are fixed",
    "MelWeightMatrix": "its inputs are constants",
    "NonMaxSuppression": "its output is one of the model, of a fixed number of boxes",
    "NonZero": "its input is a constant",
    "Resize": "the extents that it changes are fixed",
    "RoiAlign": "it has a sampling ratio, and all extents but the batch are fixed",
    "ScatterElements": "its indices are constants, or few",
    "ScatterND": "its indices are constants, or few, and all extents but the first fixed",
    "TensorScatter": "the extents of its axis are fixed",
    "TfIdfVectorizer": "it reads whole numbers, of which each row has a fixed number",
    "Unique": "its input is a constant",
}
"""Where a build writes an operator as plain ones, if a parser refuses it."""

_ANSWERS: dict[tuple[str, str], dict[bytes, str]] = {}


def refused_in_file(path: Path, named: Collection[str], backend: Backend) -> dict[ir.Node, str]:
    """The nodes of a file that a parser refuses, with its reasons.

    Args:
        path: The ONNX file.
        named: Names of the nodes that the parser named. Others that read a computed shape are not
            asked about: alone they lack it.
        backend: The TensorRT whose parser is asked.

    Raises:
        ModelError: the file cannot be read.
    """
    model = read_model(path)
    infer_values(model)
    found = refused_nodes(all_nodes(model.graph), model.opset_imports, backend)
    return {
        node: reason
        for node, reason in found.items()
        if node.name in named or not reads_computed_shape(node)
    }


@wraps_graph_errors
def refused_nodes(
    nodes: Iterable[ir.Node],
    opsets: Mapping[str, int],
    backend: Backend,
    *,
    used_only: bool = False,
) -> dict[ir.Node, str]:
    """Find the nodes that the parser of a backend refuses.

    A node of which no single question can be made is not among them: control flow, a Range of
    computed limits, one whose inputs or outputs have unknown types or ranks, and one with strings,
    sequences or optionals.

    Args:
        nodes: The nodes, with types and shapes.
        opsets: Version by domain.
        backend: The TensorRT to ask.
        used_only: Ask about the nodes without outputs that nothing reads.

    Returns:
        The nodes that it refuses, with its reason.

    Raises:
        UnsupportedError: the backend cannot work on this machine.
    """
    answers = _ANSWERS.setdefault((backend.name, backend.version), {})
    nodes = list(nodes)
    crashing = backend.capabilities.crashing_operators
    refused = {node: _CRASH for node in nodes if node.op_type in crashing and not node.domain}
    keys = {
        node: question.model.SerializeToString(deterministic=True)
        for node in nodes
        if node not in refused and (question := one_node_model(node, opsets, used_only=used_only))
    }
    unknown = {key: node for node, key in keys.items() if key not in answers}
    for key, reason in zip(unknown, backend.parser_refusals(list(unknown)), strict=True):
        if reason and _has_large_constant(unknown[key]):  # some weights must be constants
            whole = one_node_model(unknown[key], opsets, most_constant=None, used_only=used_only)
            assert whole is not None  # noqa: S101  # for the type checker
            (reason,) = backend.parser_refusals([whole.model.SerializeToString()])
        answers[key] = reason
    return refused | {node: answers[key] for node, key in keys.items() if answers[key]}


def is_used(value: ir.Value) -> bool:
    """Whether a node, or the caller of the graph, reads a value."""
    return value.is_graph_output() or bool(value.uses())


def reads_computed_shape(node: ir.Node) -> bool:
    """Whether a node has a small integer input that the model computes, such as a shape.

    In the model it may follow from static extents; alone, the node has it as an input of unknown
    values, which the parser may refuse.
    """
    return any(
        value is not None
        and _is_computed(value)
        and value.dtype is not None
        and value.dtype.is_integer()
        and value.shape is not None
        and value.shape.rank() <= 1
        for value in node.inputs
    )


def _is_computed(value: ir.Value | None) -> bool:
    return value is not None and value.producer() is not None and constant_of(value) is None


def _has_large_constant(node: ir.Node) -> bool:
    constants = (constant_of(value) for value in node.inputs if value is not None)
    return any(constant is not None and constant.size > _MOST_CONSTANT for constant in constants)


def refusal_lines(
    refused: Mapping[ir.Node, str], unknown: Mapping[str, str], backend: Backend
) -> list[str]:
    """Describe what a parser refuses, at most 20 lines.

    Args:
        refused: Nodes to the parser's reasons, as :func:`refused_nodes` returns them.
        unknown: Operators that it has no importer for to the name of the first node that uses each;
            those among ``refused`` need not be repeated.
        backend: The TensorRT that was asked.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for node, reason in refused.items():
        name = node.name or next((value.name for value in node.outputs if value.name), "")
        groups.setdefault((node.op_type, _full_reason(node.op_type, reason, backend)), []).append(
            str(name)
        )
    for operator, name in unknown.items():
        if not any(operator.rpartition("::")[2] == key[0] for key in groups):
            groups[operator, _full_reason(operator, "not supported", backend)] = [name]
    lines = [
        f"{operator} {names[0]!r}{f' and {len(names) - 1} more' if names[1:] else ''}: {reason}"
        for (operator, reason), names in groups.items()
    ]
    more = len(lines) - _MOST_LINES
    return lines if more <= 0 else [*lines[:_MOST_LINES], f"and {more} more"]


def _full_reason(operator: str, reason: str, backend: Backend) -> str:
    """The reason, and which other TensorRT has what this one lacks."""
    elsewhere = backend.capabilities.operators_elsewhere.get(operator)
    text = reason
    if elsewhere is not None or _LACKING.search(reason):
        release = ".".join(backend.version.split(".")[:2])
        text = f"{backend.product} {release} has no {operator}"
    form = WRITTEN_WHERE.get(operator)
    parts = (text, elsewhere, form and f"written as plain operators where {form}")
    return "; ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class OneNodeModel:
    """A model of a single node.

    Attributes:
        model: The model; inputs and outputs are called ``i0`` and ``o0`` by their places in the
            node.
        inputs: The values that are inputs of the model too, by their name there.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, ir.Value]


def one_node_model(
    node: ir.Node,
    opsets: Mapping[str, int],
    *,
    most_constant: int | None = _MOST_CONSTANT,
    exact: bool = False,
    used_only: bool = False,
) -> OneNodeModel | None:
    """Make a model of a node, with small constants as they are and ones in larger ones.

    Args:
        node: The node.
        opsets: Version by domain.
        most_constant: So many elements a constant may have to stay one; a larger one becomes an
            input. None: all stay constants.
        exact: Make inputs of larger constants, too, so that what is computed stays.
        used_only: Leave out outputs that nothing reads.

    Returns:
        The model; None for control flow, a Range of computed limits, and where the type or rank of
        an input, or the type of an output, is unknown.
    """
    if node.op_type == "Constant" or (node.op_type in _CONTROL_FLOW and not node.domain):
        return None
    if node.op_type == "Range" and any(_is_computed(value) for value in node.inputs):
        return None  # the parser takes one whose limits it knows to follow from shapes
    graph = onnx.GraphProto(name=_NAME)
    proto = graph.node.add()
    proto.CopyFrom(_bare(node))
    names: dict[ir.Value, str] = {}
    inputs: dict[str, ir.Value] = {}
    for index, value in enumerate(node.inputs):
        if value is None:
            proto.input.append("")
            continue
        name = names.get(value)
        if name is None:
            name = names[value] = f"i{index}"
            constant = constant_of(value)
            if constant is not None and (
                constant.size <= _most_kept(constant)
                or (not exact and (most_constant is None or constant.size <= most_constant))
            ):
                graph.initializer.append(_stand_in(constant, name))
            elif (info := _info(value, name)) is None:
                return None
            else:
                graph.input.append(info)
                inputs[name] = value
        proto.input.append(name)
    for index, value in enumerate(node.outputs):
        asked = bool(value.name) and (not used_only or is_used(value))
        proto.output.append(f"o{index}" if asked else "")
        if asked:
            if (info := _info(value, f"o{index}", ranked=False)) is None:
                return None
            graph.output.append(info)
    imports = [onnx.helper.make_opsetid(domain, opset) for domain, opset in sorted(opsets.items())]
    return OneNodeModel(onnx.helper.make_model(graph, opset_imports=imports), inputs)


def _bare(node: ir.Node) -> onnx.NodeProto:
    """The node with its attributes alone, in one order."""
    proto = onnx.NodeProto(name=_NAME, op_type=node.op_type, domain=node.domain)
    proto.attribute.extend(
        ir.serde.serialize_attribute(node.attributes[name]) for name in sorted(node.attributes)
    )
    return proto


def _stand_in(constant: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    """A constant of which only few values are kept."""
    if constant.size > _most_kept(constant):
        array = np.ones(constant.shape.numpy(), constant.dtype.numpy())
        constant = ir.Tensor(array, dtype=constant.dtype)
    proto = ir.serde.serialize_tensor(ir.Tensor(constant.numpy(), dtype=constant.dtype))
    proto.name = name
    return proto


def _most_kept(constant: ir.TensorProtocol) -> int:
    kind = constant.dtype
    whole = kind.is_integer() or kind in (ir.DataType.BOOL, ir.DataType.STRING)
    return _MOST_INTEGERS if whole else _MOST_FLOATS


def _info(value: ir.Value, name: str, *, ranked: bool = True) -> onnx.ValueInfoProto | None:
    """The type and shape of a value; None where the type, or a rank that must be, is unknown."""
    dtype, shape = value.dtype, value.shape
    if not isinstance(value.type, ir.TensorType) or dtype is None or (ranked and shape is None):
        return None
    if dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    return onnx.helper.make_tensor_value_info(
        name, dtype.value, None if shape is None else list(_extents(shape))
    )


def _extents(shape: ir.Shape) -> Iterator[int | str]:
    for index, axis in enumerate(shape):
        yield axis if isinstance(axis, int) else (axis.value or f"axis{index}")
