"""A graph as a page draws it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trt_native.errors import on_one_line, shortened
from trt_native.page.modules import module_tree

__all__ = ["Graph", "Node", "Tensor", "for_display", "in_order", "precision_of", "shape_text"]

_PRECISIONS = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "float4_e2m1fn": "fp4",
}
_MOST_TEXT = 300


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value between nodes.

    Attributes:
        name: Its name.
        dtype: Its type, for a person.
        shape: Its shape, for a person; empty where it is unknown.
        constant: Whether it is a weight or another constant.
    """

    name: str
    dtype: str = ""
    shape: str = ""
    constant: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of a model, or a kernel of a plan.

    Attributes:
        name: Its name.
        kind: Operator or type.
        path: Modules that it is in, outermost first.
        inputs: Indices of the tensors that it reads.
        outputs: Indices of the tensors that it writes.
        attributes: Names and values, for a person.
        precision: Such as ``fp16``; decides the colour.
        computes_shapes: Whether all that it writes follows from constants and shapes.
        weight_bytes: Size of its weights.
        multiply_adds: Their number; None where it is unknown.
        milliseconds: Time it takes; None where it is unknown.
        mark: What is wrong with it, or differs; empty for nothing.
    """

    name: str
    kind: str
    path: tuple[str, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    precision: str = ""
    computes_shapes: bool = False
    weight_bytes: int = 0
    multiply_adds: int | None = None
    milliseconds: float | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in the order in which they run.

    Attributes:
        title: Name among the graphs of a page.
        nodes: The nodes.
        tensors: The tensors, which nodes name by index.
        inputs: Indices of the graph's inputs.
        outputs: Indices of the graph's outputs.
    """

    title: str
    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def document(self) -> dict[str, Any]:
        """As the page's script reads it; what a node lacks is left out."""
        tree = module_tree([node.path for node in self.nodes])
        return {
            "title": self.title,
            "modules": [[for_display(name), parent] for name, parent in tree.modules],
            "nodes": [
                _node_document(node, place)
                for node, place in zip(self.nodes, tree.places, strict=True)
            ],
            "tensors": [
                [for_display(t.name), t.dtype, t.shape, int(t.constant)] for t in self.tensors
            ],
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
        }


def _node_document(node: Node, place: int) -> dict[str, Any]:
    fields = {
        "m": place,
        "n": for_display(node.name),
        "k": for_display(node.kind),
        "i": list(node.inputs),
        "o": list(node.outputs),
        "a": [[for_display(key), for_display(value)] for key, value in node.attributes],
        "p": node.precision,
        "c": int(node.computes_shapes),
        "w": node.weight_bytes,
        "f": node.multiply_adds,
        "t": node.milliseconds,
        "d": node.mark,
    }
    return {key: value for key, value in fields.items() if value or key == "m"}


def for_display(text: str) -> str:
    """Text of a model as the page has it: on one line, and not without end."""
    return shortened(on_one_line(text), _MOST_TEXT)


def precision_of(dtype: str) -> str:
    """The precision by which a type is counted, such as ``fp16`` for ``float16``."""
    return _PRECISIONS.get(dtype, dtype)


def shape_text(shape: Iterable[int | str | None]) -> str:
    """A shape for a person; an extent that is -1 or None is unknown."""
    axes = ("?" if axis in (None, -1) else str(axis) for axis in shape)
    return for_display("×".join(axes)) or "scalar"


def in_order(values: Iterable[str]) -> list[str]:
    """Precisions from the widest to the narrowest, then other types by name."""
    known = ["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "int4", "fp4"]
    return sorted(set(values), key=lambda v: (known.index(v) if v in known else len(known), v))
