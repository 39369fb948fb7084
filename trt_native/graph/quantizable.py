"""The tensors of a graph for which INT8 or FP8 arithmetic needs a range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from trt_native.errors import SpecError
from trt_native.graph.inference import infer_types
from trt_native.graph.nodes import RANDOM_OPS, bodies
from trt_native.graph.validity import wraps_graph_errors

__all__ = ["QUANTIZABLE_OPS", "constant_values", "quantizable_tensors", "residual_adds"]

QUANTIZABLE_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators whose inputs are quantized."""

_FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)
_OPERANDS = 2  # a third input is the bias, which stays as it is


@wraps_graph_errors
def quantizable_tensors(model: ir.Model, ops: Iterable[str] = QUANTIZABLE_OPS) -> list[str]:
    """Name the floating-point activations that operators of these types multiply.

    With ``Conv`` go the other sides of the residual sums that convolutions end in. Weights are not
    among them, nor anything computed from weights alone, nor biases. Only nodes of the main
    graph count: inline model-local functions first to see into them; bodies of ``If``, ``Loop`` and
    ``Scan`` are not entered. Fills in missing value types; changes nothing else.

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
    products = [node for node in model.graph if node.domain == "" and node.op_type in wanted]
    operands = {node: list(node.inputs[:_OPERANDS]) for node in products}
    for add, index in residual_adds(model.graph, [n for n in products if n.op_type == "Conv"]):
        operands[add] = [add.inputs[index]]
    names = (
        value.name
        for node in model.graph
        for value in operands.get(node, ())
        if value is not None and value.dtype in _FLOATS and value not in constants
    )
    return list(dict.fromkeys(name for name in names if name))


def residual_adds(
    graph: ir.Graph, convolutions: Iterable[ir.Node]
) -> Iterator[tuple[ir.Node, int]]:
    """Find the residual sums that a convolution's own kernel can compute.

    That is so where nothing else reads the convolution's output and the other side of the sum has
    the same shape. Of two convolutions that meet, the later one computes the sum.

    Returns:
        Each ``Add`` node, and the index of the input that comes past the convolution.
    """
    order = {node: i for i, node in enumerate(graph)}
    taken: set[ir.Node] = set()
    for node in sorted(convolutions, key=lambda node: order[node], reverse=True):
        result = node.outputs[0]
        users = list(result.uses())
        if len(users) != 1 or result.is_graph_output():
            continue
        add, index = users[0]
        if add.op_type != "Add" or add.domain or add.graph is not graph or add in taken:
            continue
        taken.add(add)
        other = add.inputs[1 - index]
        if other is not None and other is not result and _same_shape(other, result):
            yield add, 1 - index


def _same_shape(left: ir.Value, right: ir.Value) -> bool:
    """Whether two shapes are known, as far as they have names, and equal."""
    if left.shape is None or right.shape is None:
        return False
    return len(left.shape) == len(right.shape) and all(
        a == b for a, b in zip(left.shape, right.shape, strict=True)
    )


def constant_values(graph: ir.Graph) -> set[ir.Value]:
    """Values that do not depend on the graph's inputs."""
    constants = set(graph.initializers.values())
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        computed = inputs and node.op_type not in RANDOM_OPS and not list(bodies(node))
        if node.op_type == "Constant" or (computed and constants.issuperset(inputs)):
            constants.update(node.outputs)
    return constants
