"""Groups of nodes that are to become one, from the file that names them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from trt_native.errors import SpecError
from trt_native.files import read_text_file
from trt_native.graph.nodes import bodies, constant_of

__all__ = ["Replacement", "Subgraph", "find_subgraphs", "read_replacements"]

_FIELDS = {"nodes": str, "operator": str, "domain": str, "attributes": dict, "constants": bool}
_SIMPLE = (bool, int, float, str)
_OPTIONS = ("replacement_map",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    r"""Nodes, and the operator that one node has in their place.

    Attributes:
        nodes: Regular expression that the whole name of a node matches. Nodes with equal groups
            belong together, so that ``(/layers\.\d+/attn)/.*`` makes one node of each layer.
        operator: Name of the operator, which is that of a plugin.
        domain: Its domain.
        attributes: Its attributes, which are the plugin's fields.
        constants: Whether constants that the nodes read become inputs, behind all others. Otherwise
            the plugin has its own.
    """

    nodes: re.Pattern[str]
    operator: str
    domain: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: bool = True


@dataclass(frozen=True, slots=True)
class Subgraph:
    """Nodes that become one.

    Attributes:
        nodes: The nodes, in the graph's order.
        inputs: What they read from elsewhere, in the order of its first use; constants come last.
        outputs: What others read of them, or the model returns, in the graph's order.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def read_replacements(path: Path) -> list[Replacement]:
    """Read a JSON list of objects with the fields of :class:`Replacement`.

    Raises:
        SpecError: the file cannot be read, or an entry is malformed.
    """
    try:
        data = json.loads(read_text_file(path))
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}", options=_OPTIONS) from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not JSON: {error}", options=_OPTIONS) from None
    if not isinstance(data, list) or not data:
        raise SpecError(f"{path}: a list of replacements is needed", options=_OPTIONS)
    return [_read_entry(path, number, entry) for number, entry in enumerate(data, 1)]


def _read_entry(path: Path, number: int, entry: Any) -> Replacement:
    def refuse(reason: str) -> SpecError:
        return SpecError(f"{path}: replacement {number}: {reason}", options=_OPTIONS)

    if not isinstance(entry, dict) or not {"nodes", "operator"} <= entry.keys():
        raise refuse("an object with 'nodes' and 'operator' is needed")
    for name, value in entry.items():
        if name not in _FIELDS:
            raise refuse(f"no field {name!r}; there are {', '.join(_FIELDS)}")
        if not isinstance(value, _FIELDS[name]):
            raise refuse(f"{name} is not a {_FIELDS[name].__name__}: {value!r}")
    for name, value in entry.get("attributes", {}).items():
        items = value if isinstance(value, list) else [value]
        if not items or not isinstance(items[0], _SIMPLE) or len({type(i) for i in items}) > 1:
            raise refuse(f"attribute {name!r} is neither a number, a text nor a list of such")
    try:
        pattern = re.compile(entry["nodes"])
    except re.error as error:
        raise refuse(f"nodes is not a regular expression: {error}") from None
    return Replacement(**{**entry, "nodes": pattern})


def find_subgraphs(graph: ir.Graph, wanted: Replacement) -> list[Subgraph]:
    """Find the groups of nodes of a replacement.

    Raises:
        SpecError: no node matches, or a group cannot be one node: another node needs a part of it
            and is needed by another part.
    """
    groups: dict[tuple[str | None, ...], list[ir.Node]] = {}
    for node in graph:
        if match := wanted.nodes.fullmatch(node.name or ""):
            groups.setdefault(match.groups(), []).append(node)
    if not groups:
        raise SpecError(
            f"replacement by {wanted.operator}: no node matches {wanted.nodes.pattern!r}",
            options=_OPTIONS,
        )
    found = []
    for nodes in groups.values():
        _check_convex(graph, nodes, wanted)
        found.append(_subgraph(nodes, wanted))
    return found


def _check_convex(graph: ir.Graph, nodes: Sequence[ir.Node], wanted: Replacement) -> None:
    inside = set(nodes)
    behind: set[ir.Node] = set()  # other nodes that need one of these
    for node in graph:
        producers = [made for value in _read(node) if (made := value.producer()) is not None]
        if node in inside:
            between = next((made for made in producers if made in behind), None)
            if between is not None:
                raise SpecError(
                    f"replacement by {wanted.operator}: {between.name!r} is between nodes that are"
                    f" to be one, such as {node.name!r}; add it, or match fewer nodes",
                    options=_OPTIONS,
                )
        elif any(made in inside or made in behind for made in producers):
            behind.add(node)


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, also in its bodies."""
    yield from (value for value in node.inputs if value is not None)
    for body in bodies(node):
        for inner in body:
            yield from _read(inner)


def _subgraph(nodes: Sequence[ir.Node], wanted: Replacement) -> Subgraph:
    inside = set(nodes)
    made = {value for node in nodes for value in node.outputs}
    read = dict.fromkeys(value for node in nodes for value in _read(node) if value not in made)
    constants = [value for value in read if constant_of(value) is not None]
    outer = [value for value in read if constant_of(value) is None]
    outputs = (
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(use.node not in inside for use in value.uses())
    )
    inputs = (*outer, *(constants if wanted.constants else ()))
    return Subgraph(tuple(nodes), inputs, tuple(outputs))
