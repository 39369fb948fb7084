"""Compute recurrent layers of one small sequence as a batch of two.

TensorRT-RTX writes products of a batch of 1 and at most 6 hidden units as sums of numbers. In a GRU
or LSTM these grow with each step, so that a build takes minutes from about five steps on, or does
not end. With a batch of 2 it takes a fraction of a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_native.graph.dims import fixed_dimensions
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import all_nodes, input_of, opset_of
from trt_native.passes.base import GraphPass
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder
from trt_native.shapes import Profile

__all__ = ["WidenRecurrent"]

_OPERATORS = ("GRU", "LSTM")
_FEW = 6  # hidden units; with 7 a build takes as long as with 64
# The axis of the batch, by layout.
_INPUT_AXES = ({0: 1, 4: 0, 5: 1, 6: 1}, {0: 0, 4: 0, 5: 0, 6: 0})
_OUTPUT_AXES = ((2, 1, 1), (0, 0, 0))


class WidenRecurrent(GraphPass):
    """A batch of 2 for a GRU or LSTM whose batch is 1, and which has few hidden units."""

    name = "widen_recurrent"
    title = "Widening recurrent layers"
    typed = True

    def needed(self, model: ir.Model) -> bool:
        """Whether there is such a layer, on a backend that cannot build it in time."""
        backend = self.context.backend
        if backend is None or backend.capabilities.small_recurrent:
            return False
        return bool(_narrow_layers(model, self.context.profiles))

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Give each such layer every sequence twice, and take the first result."""
        nodes = _narrow_layers(model, self.context.profiles)
        names, opset = NameAuthority(model), opset_of(model)
        for node in nodes:
            _widen(ReplacementBuilder(node, names, opset))
        return {"nodes": dict(Counter(node.op_type for node in nodes))}


def _narrow_layers(model: ir.Model, profiles: Sequence[Profile]) -> list[ir.Node]:
    found = [
        node
        for node in all_nodes(model.graph)
        if node.op_type in _OPERATORS and not node.domain and _hidden_units(node) <= _FEW
    ]
    if any(node.inputs[0] is not None and node.inputs[0].shape is None for node in found):
        infer_values(model)
    dims, _ = fixed_dimensions(model.graph.inputs, profiles)
    return [node for node in found if _batch(node, dims) == 1]


def _hidden_units(node: ir.Node) -> int:
    weights = input_of(node, 2)
    shape = None if weights is None else weights.shape
    last = shape[-1] if shape else None
    return node.attributes.get_int("hidden_size", last if isinstance(last, int) else 0)


def _layout(node: ir.Node) -> int:
    return node.attributes.get_int("layout", 0)


def _batch(node: ir.Node, dims: Mapping[str, int]) -> int | None:
    """The batch of a layer, where it is known at build time."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    extent = value.shape[_INPUT_AXES[_layout(node)][0]]
    return extent if isinstance(extent, int) else dims.get(extent.value or "")


def _widen(new: ReplacementBuilder) -> None:
    node = new.node
    inputs = list(node.inputs)
    for index, axis in _INPUT_AXES[_layout(node)].items():
        value = input_of(node, index)
        if value is None:
            continue
        inputs[index] = twice = new.add("Concat", [value, value], value.dtype, axis=axis)
        if value.shape is not None:
            twice.shape = ir.Shape([2 if i == axis else d for i, d in enumerate(value.shape)])
    made = new.add_with(node.op_type, inputs, len(node.outputs), node.attributes)
    first = new.constant(np.array([0]))
    results: list[ir.Value | None] = []
    for old, value, axis in zip(node.outputs, made, _OUTPUT_AXES[_layout(node)], strict=False):
        if old.name:
            results.append(new.add("Gather", [value, first], axis=axis))
        else:  # not used
            value.name = ""
            results.append(None)
    new.replace(*results)
