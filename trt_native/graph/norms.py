"""Norms in other forms, where TensorRT has them wrong or has no kernel.

Of a group norm whose one group is all channels its ONNX parser makes statistics of each channel
(TensorRT 10.16 and TensorRT-RTX 1.6; NVIDIA/TensorRT#4756). The same as an instance norm of one
channel, which holds all, comes out right.

TensorRT-RTX 1.6 computes instance and group norms by kernels of their own. It has them for the
layout of convolutions; a tensor that an engine hands out has another one, and on some GPUs
(compute capability 9.0) the engine then has no kernel at all. Arithmetic always has one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from trt_native.graph.inference import infer_values, known_type
from trt_native.graph.naming import Names
from trt_native.graph.precision_rules import BFLOAT16, FLOAT, all_nodes, opset_of
from trt_native.graph.validity import refuses_malformed

__all__ = ["is_single_group", "join_single_groups", "write_norms_out"]

_OPERATORS = ("InstanceNormalization", "GroupNormalization")
_AXES_AS_INPUT = 18  # since this opset ReduceMean takes them so
_BFLOAT16_NORM = 22  # since this opset InstanceNormalization takes it
_SCALE_PER_CHANNEL = 21  # since this opset GroupNormalization takes it so, before per group


@refuses_malformed
def join_single_groups(model: ir.Model) -> int:
    """Write group norms of one group as instance norms of one channel, in place, in bodies too.

    Names, types and shapes of all values stay; model-local functions are inlined first.

    Returns:
        How many norms there were.

    Raises:
        ModelError: the type of a value is unknown and cannot be inferred.
    """
    if model.functions:
        passes.InlinePass()(model)
    nodes = [node for node in all_nodes(model.graph) if is_single_group(node)]
    if any(node.inputs[0] is not None and node.inputs[0].dtype is None for node in nodes):
        infer_values(model)
    names = Names(model)
    for node in nodes:
        _Writer(model, node, names).join()
    return len(nodes)


def is_single_group(node: ir.Node) -> bool:
    """Whether a node is a group norm of one group."""
    one = node.op_type == "GroupNormalization" and not node.domain
    return one and node.attributes.get_int("num_groups", 0) == 1


@refuses_malformed
def write_norms_out(model: ir.Model) -> int:
    """Write the instance and group norms of the main graph as arithmetic in FP32, in place.

    Names, types and shapes of all values stay.

    Returns:
        How many norms there were.
    """
    nodes = [node for node in model.graph if node.op_type in _OPERATORS and not node.domain]
    names = Names(model)
    for node in nodes:
        _Writer(model, node, names).write()
    return len(nodes)


class _Writer:
    """Writes one norm in another form."""

    def __init__(self, model: ir.Model, node: ir.Node, names: Names) -> None:
        self._opset = opset_of(model)
        self._node = node
        self._names = names
        self._nodes: list[ir.Node] = []

    def join(self) -> None:
        """As an instance norm of one channel."""
        x, scale, bias = self._inputs()
        kind = known_type(x)
        whole = self._add("Shape", [x], ir.DataType.INT64)
        value = self._reshaped(x, [0, 1, -1])
        wide = kind is BFLOAT16 and self._opset < _BFLOAT16_NORM
        if wide:
            value = self._add("Cast", [value], FLOAT, to=FLOAT)
        within = FLOAT if wide else kind
        per_channel = self._opset >= _SCALE_PER_CHANNEL
        if per_channel:
            one, zero = (self._constant(np.full(1, n, within.numpy())) for n in (1, 0))
        elif wide:
            one, zero = (self._add("Cast", [p], FLOAT, to=FLOAT) for p in (scale, bias))
        else:
            one, zero = scale, bias
        epsilon = self._node.attributes.get_float("epsilon", 1e-5)
        value = self._add("InstanceNormalization", [value, one, zero], within, epsilon=epsilon)
        if wide:
            value = self._add("Cast", [value], kind, to=kind)
        value = self._add("Reshape", [value, whole], kind)
        if per_channel:
            value = self._reshaped(value, [0, 0, -1])
            value = self._add("Mul", [value, self._reshaped(scale, [-1, 1])], kind)
            value = self._add("Add", [value, self._reshaped(bias, [-1, 1])], kind)
            value = self._add("Reshape", [value, whole], kind)
        self._replace(value)

    def write(self) -> None:
        """As arithmetic in FP32."""
        x, scale, bias = self._inputs()
        groups = self._node.attributes.get_int("num_groups", 0)  # of an instance norm, each channel
        whole = self._add("Shape", [x], ir.DataType.INT64)
        value = self._add("Cast", [x], FLOAT, to=FLOAT)
        value = self._normalized(self._reshaped(value, [0, groups, -1]))
        if groups and self._opset >= _SCALE_PER_CHANNEL:
            value = self._reshaped(self._add("Reshape", [value, whole], FLOAT), [0, 0, -1])
        value = self._add("Mul", [value, self._column(scale)], FLOAT)
        value = self._add("Add", [value, self._column(bias)], FLOAT)
        value = self._add("Reshape", [value, whole], FLOAT)
        kind = self._node.outputs[0].dtype or x.dtype or FLOAT
        self._replace(self._add("Cast", [value], kind, to=kind))

    def _inputs(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        x, scale, bias = self._node.inputs
        assert x is not None and scale is not None and bias is not None  # noqa: S101, PT018
        return x, scale, bias

    def _replace(self, value: ir.Value) -> None:
        graph = self._node.graph
        assert graph is not None  # noqa: S101  # for the type checker
        self._nodes[-1].name = self._node.name
        ir.convenience.replace_nodes_and_values(
            graph, self._node, [self._node], self._nodes, self._node.outputs, [value]
        )

    def _normalized(self, rows: ir.Value) -> ir.Value:
        """Rows along the last of three axes, with a mean of 0 and a variance of 1."""
        epsilon = np.float32(self._node.attributes.get_float("epsilon", 1e-5))
        centered = self._add("Sub", [rows, self._mean(rows)], FLOAT)
        variance = self._mean(self._add("Mul", [centered, centered], FLOAT))
        shifted = self._add("Add", [variance, self._constant(epsilon)], FLOAT)
        return self._add("Div", [centered, self._add("Sqrt", [shifted], FLOAT)], FLOAT)

    def _mean(self, rows: ir.Value) -> ir.Value:
        if self._opset >= _AXES_AS_INPUT:
            return self._add("ReduceMean", [rows, self._constant(np.array([2]))], FLOAT)
        return self._add("ReduceMean", [rows], FLOAT, axes=[2])

    def _column(self, parameter: ir.Value) -> ir.Value:
        return self._reshaped(self._add("Cast", [parameter], FLOAT, to=FLOAT), [-1, 1])

    def _reshaped(self, value: ir.Value, shape: list[int]) -> ir.Value:
        return self._add("Reshape", [value, self._constant(np.array(shape))], value.dtype)

    def _add(
        self,
        operator: str,
        inputs: Sequence[ir.Value],
        kind: ir.DataType | None,
        **attributes: int | float | list[int],
    ) -> ir.Value:
        name = self._names.unique(self._named(operator.lower()))
        output = ir.Value(name=name, type=None if kind is None else ir.TensorType(kind))
        suffix = f"__{operator.lower()}_{len(self._nodes)}"
        named = f"{self._node.name}{suffix}" if self._node.name else None
        self._nodes.append(ir.node(operator, inputs, attributes, outputs=[output], name=named))
        return output

    def _constant(self, number: np.ndarray | np.float32) -> ir.Value:
        return self._names.initializer(self._named("value"), ir.Tensor(np.asarray(number)))

    def _named(self, suffix: str) -> str:
        return f"{self._node.outputs[0].name}__{suffix}"
