"""Fusions that TensorRT plans, but has no kernel for on the GPU at hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["MissingKernel", "missing_kernel"]

_MESSAGE = re.compile(
    r"No valid (?:engine configs|execution plans built\.?) for (?P<fusion>\w+)"
    r"(?::insn:(?P<node>[^\s:]+):)?"
)
_PRODUCTS = {
    "convfwd": ("Conv",),
    "convbwddata": ("ConvTranspose",),
    "conv": ("Conv", "ConvTranspose"),
    "matmul": ("MatMul", "Gemm"),
    "pooling": ("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"),
}


@dataclass(frozen=True, slots=True)
class MissingKernel:
    """A fusion without a kernel.

    Attributes:
        fusion: Its operations in TensorRT's words, such as ``ConvFwd_MUL_ADD_SWISH``.
        node: The layer that is named; empty where none is.
    """

    fusion: str
    node: str

    def __str__(self) -> str:
        return f"{self.fusion} ({self.node})" if self.node else self.fusion

    def tensors(self, model: ir.Model) -> tuple[str, ...]:
        """The tensors of a model across which nodes may have been fused so.

        They are what the node makes that is named, or else the nodes of the fusion's first
        operation, where other nodes read that or it includes a bias.
        """
        named = [node for node in model.graph if self.node and node.name == self.node]
        operators = _PRODUCTS.get(self.fusion.partition("_")[0].lower(), ())
        nodes = named or [node for node in model.graph if node.op_type in operators]
        return tuple(
            str(value.name)
            for node in nodes
            for value in node.outputs
            if value.name and (value.uses() or _adds_bias(node))
        )


def _adds_bias(node: ir.Node) -> bool:
    convolves = node.op_type in ("Conv", "ConvTranspose")
    return convolves and len(node.inputs) > 2 and node.inputs[2] is not None


def missing_kernel(errors: Sequence[str]) -> MissingKernel | None:
    """The fusion that lines of TensorRT's log say has no kernel; None where they do not."""
    for line in errors:
        if match := _MESSAGE.search(line):
            return MissingKernel(match["fusion"].strip("_"), match["node"] or "")
    return None
