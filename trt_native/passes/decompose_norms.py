"""Norms as arithmetic, for engines that return the tensors around them.

TensorRT-RTX 1.6 computes instance and group norms by kernels of their own. It has them for the
layout of convolutions; a tensor that an engine returns has another one, and on some GPUs
(compute capability 9.0) the engine then has no kernel at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_native.graph.nodes import FLOAT, opset_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder

__all__ = ["SCALE_PER_CHANNEL", "DecomposeNorms", "decompose_norm", "decompose_norms"]

SCALE_PER_CHANNEL = 21
"""Since this opset GroupNormalization takes its scale so, before per group."""

_OPERATORS = ("InstanceNormalization", "GroupNormalization")
_AXES_AS_INPUT = 18  # since this opset ReduceMean takes them so


@wraps_graph_errors
def decompose_norms(model: ir.Model) -> dict[str, int]:
    """Write the instance and group norms of the main graph as arithmetic in FP32, in place.

    Names, types and shapes of all values stay.

    Returns:
        How many norms there were, by operator.
    """
    nodes = _norms(model)
    names, opset = NameAuthority(model), opset_of(model)
    for node in nodes:
        decompose_norm(ReplacementBuilder(node, names, opset))
    return dict(Counter(node.op_type for node in nodes))


class DecomposeNorms(GraphPass):
    """Instance and group norms as arithmetic in FP32."""

    name = "decompose_norms"
    title = "Decomposing norms"

    def needed(self, model: ir.Model) -> bool:
        """Whether the main graph has such norms."""
        return bool(_norms(model))

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Decompose the norms; see :func:`decompose_norms`."""
        return {"nodes": decompose_norms(model)}


def _norms(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in _OPERATORS and not node.domain]


def decompose_norm(new: ReplacementBuilder) -> None:
    """Write one instance or group norm as arithmetic in FP32."""
    x, scale, bias = new.node.inputs
    assert x is not None  # noqa: S101  # for the type checker
    groups = new.node.attributes.get_int("num_groups", 0)  # of an instance norm, each channel
    whole = new.add("Shape", [x], ir.DataType.INT64)
    value = new.add("Cast", [x], FLOAT, to=FLOAT)
    value = _normalized(new, new.reshaped(value, [0, groups, -1]))
    if groups and new.opset >= SCALE_PER_CHANNEL:
        value = new.reshaped(new.add("Reshape", [value, whole], FLOAT), [0, 0, -1])
    value = new.add("Mul", [value, _column(new, scale)], FLOAT)
    value = new.add("Add", [value, _column(new, bias)], FLOAT)
    value = new.add("Reshape", [value, whole], FLOAT)
    kind = new.kind or FLOAT
    new.replace(new.add("Cast", [value], kind, to=kind))


def _normalized(new: ReplacementBuilder, rows: ir.Value) -> ir.Value:
    """Rows along the last of three axes, with a mean of 0 and a variance of 1."""
    epsilon = np.float32(new.node.attributes.get_float("epsilon", 1e-5))
    centered = new.add("Sub", [rows, _mean(new, rows)], FLOAT)
    variance = _mean(new, new.add("Mul", [centered, centered], FLOAT))
    shifted = new.add("Add", [variance, new.constant(epsilon)], FLOAT)
    return new.add("Div", [centered, new.add("Sqrt", [shifted], FLOAT)], FLOAT)


def _mean(new: ReplacementBuilder, rows: ir.Value) -> ir.Value:
    if new.opset >= _AXES_AS_INPUT:
        return new.add("ReduceMean", [rows, new.constant(np.array([2]))], FLOAT)
    return new.add("ReduceMean", [rows], FLOAT, axes=[2])


def _column(new: ReplacementBuilder, parameter: ir.Value | None) -> ir.Value:
    return new.reshaped(new.add("Cast", [parameter], FLOAT, to=FLOAT), [-1, 1])
