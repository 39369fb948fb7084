"""Which tensors of a graph INT8 or FP8 arithmetic needs a range for."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from trt_native.errors import SpecError
from trt_native.graph.precision import infer_types
from trt_native.graph.precision_rules import bodies, op_set

__all__ = ["QUANTIZABLE_OPS", "constant_values", "quantizable_tensors"]

QUANTIZABLE_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators whose inputs are quantized."""

_FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)
_RANDOM = op_set("RandomNormalLike RandomUniformLike Bernoulli Multinomial")
_OPERANDS = 2  # a third input is the bias, which stays as it is


def quantizable_tensors(model: ir.Model, ops: Iterable[str] = QUANTIZABLE_OPS) -> list[str]:
    """Name the floating-point activations that operators of these types multiply.

    Weights are not among them, nor whatever is computed from weights alone, nor biases. Only nodes
    of the main graph count: inline model-local functions first to see into them; bodies of ``If``,
    ``Loop`` and ``Scan`` are not entered. Fills in missing value types; changes nothing else.

    Args:
        model: The model.
        ops: Some of :data:`QUANTIZABLE_OPS`.

    Returns:
        Each tensor once, in the order in which the graph's nodes first read them.

    Raises:
        SpecError: an operator is none of :data:`QUANTIZABLE_OPS`.
        ModelError: a value's type is unknown.
    """
    wanted = set(ops)
    if unknown := wanted - set(QUANTIZABLE_OPS):
        raise SpecError(
            f"operators that cannot be quantized: {', '.join(sorted(unknown))};"
            f" choose from {', '.join(QUANTIZABLE_OPS)}"
        )
    infer_types(model)
    constants = constant_values(model.graph)
    names = (
        value.name
        for node in model.graph
        if node.domain == "" and node.op_type in wanted
        for value in node.inputs[:_OPERANDS]
        if value is not None and value.dtype in _FLOATS and value not in constants
    )
    return list(dict.fromkeys(name for name in names if name))


def constant_values(graph: ir.Graph) -> set[ir.Value]:
    """Values that are the same whatever the graph's inputs are."""
    constants = set(graph.initializers.values())
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        computed = inputs and node.op_type not in _RANDOM and not list(bodies(node))
        if node.op_type == "Constant" or (computed and constants.issuperset(inputs)):
            constants.update(node.outputs)
    return constants
