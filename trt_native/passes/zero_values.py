"""What elementwise nodes make of zeros, with which TensorRT pads the operands of a product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.evaluation import evaluate_node
from trt_native.graph.nodes import constant_of

__all__ = ["ZeroValues"]

_COMMON: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "Cast": np.asarray,
    "Div": np.divide,
    "Exp": np.exp,
    "Identity": np.asarray,
    "Log": np.log,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Pow": np.power,
    "Reciprocal": np.reciprocal,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
}
"""Operators that need no evaluator, with as many operands as NumPy's functions take."""


class ZeroValues:
    """Values of a model where all that elementwise nodes compute them from is zero.

    Args:
        model: The model.
        elementwise: Operators that are computed; what others make, and inputs, are zero.
        moving: Operators whose first input has the same elements.
    """

    def __init__(
        self, model: ir.Model, elementwise: frozenset[str], moving: frozenset[str]
    ) -> None:
        self._opsets = dict(model.opset_imports)
        self._elementwise, self._moving = elementwise, moving
        self._known: dict[ir.Value, Array] = {}

    def is_finite(self, value: ir.Value) -> bool:
        """Whether a value is neither infinite nor NaN anywhere; so it is where that is unknown."""
        pending = [value]
        while pending:  # not by recursion: chains may be longer than Python's stack
            one = pending[-1]
            lacking = [v for v in self._sources(one) if v not in self._known]
            if lacking and one not in self._known:
                self._known[one] = np.zeros((), np.float32)  # a bad graph may be a circle
                pending += lacking
                continue
            pending.pop()
            self._known[one] = self._computed(one)
        found = self._known[value]
        return found.dtype.kind not in "fV" or bool(np.isfinite(found.astype(np.float64)).all())

    def _sources(self, value: ir.Value) -> list[ir.Value]:
        node = value.producer()
        if node is None or node.domain or constant_of(value) is not None:
            return []
        read = node.inputs[:1] if node.op_type in self._moving else node.inputs
        is_passed = node.op_type in self._elementwise | self._moving
        return [one for one in read if one is not None and one.name] if is_passed else []

    def _computed(self, value: ir.Value) -> Array:
        constant, node, sources = constant_of(value), value.producer(), self._sources(value)
        if constant is not None:
            return np.asarray(constant.numpy())
        if node is None or not sources:
            return np.zeros((), np.float32 if value.dtype is None else value.dtype.numpy())
        arrays = [self._known[one] for one in sources]
        if node.op_type in self._moving:
            return arrays[0]
        with np.errstate(all="ignore"):
            function = _COMMON.get(node.op_type)
            if function is not None and getattr(function, "nin", 1) == len(arrays):
                return np.asarray(function(*arrays))
            inputs = {str(one.name): self._known[one] for one in sources}
            found = evaluate_node(ir.serde.serialize_node(node), self._opsets, inputs)
        return np.zeros((), np.float32) if found is None else found[str(value.name)]
