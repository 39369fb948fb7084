"""What TensorRT may compute in one kernel: the nodes around a value, and where to break that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from trt_native.graph.nodes import op_set

__all__ = [
    "BREAK_KEY",
    "CHANNEL_NORMS",
    "COMPARISONS",
    "ELEMENTWISE",
    "FUSED",
    "GLOBAL_POOLS",
    "MOVING",
    "POINTWISE",
    "POOLS",
    "RECURRENT",
    "REDUCE",
    "REDUCTIONS",
    "SOFTMAX",
    "SPATIAL",
    "SPREADING",
    "TRAILING",
    "Point",
    "back",
    "behind",
    "has_one_operand",
    "is_broken",
    "made_in_turn",
    "may_be_as_large",
    "nodes_of",
    "read_values",
]

BREAK_KEY = "trt_native.break_fusion"
"""In the metadata of the nodes that break one."""
SOFTMAX = op_set("Softmax LogSoftmax Hardmax")
REDUCE = op_set(
    "ReduceMax ReduceMin ReduceMean ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceLogSum"
    " ReduceLogSumExp ReduceSumSquare"
)
TRAILING = op_set("LayerNormalization RMSNormalization")
GLOBAL_POOLS = op_set("GlobalAveragePool GlobalMaxPool GlobalLpPool")
POOLS = op_set("AveragePool MaxPool")
CHANNEL_NORMS = op_set("InstanceNormalization GroupNormalization")
SPATIAL = GLOBAL_POOLS | CHANNEL_NORMS
REDUCTIONS = (
    SOFTMAX | REDUCE | TRAILING | SPATIAL | op_set("LpNormalization MeanVarianceNormalization")
)
ELEMENTWISE = op_set(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Cos Cosh Div Dropout"
    " Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity LeakyRelu"
    " Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round"
    " Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh"
    " ThresholdedRelu Where Xor"
)
POINTWISE = ELEMENTWISE | {"BatchNormalization"}
MOVING = op_set("Expand Flatten Reshape Squeeze Transpose Unsqueeze")
FUSED = ELEMENTWISE | MOVING
SPREADING = op_set("Concat Pad Slice Tile")
RECURRENT = op_set("GRU LSTM RNN")
COMPARISONS = op_set("Equal Greater GreaterOrEqual Less LessOrEqual")


@dataclass(frozen=True, slots=True)
class Point:
    """A fusion to break.

    Attributes:
        value: The tensor.
        reads: Nodes that are to read another one, and which of their inputs it is.
        reason: The reason.
        copied: Whether the other one is a copy that TensorRT cannot remove, or an ``Identity``.
    """

    value: ir.Value
    reads: tuple[tuple[ir.Node, int], ...]
    reason: str
    copied: bool = True


def is_broken(value: ir.Value) -> bool:
    """Whether the last of the nodes that break a fusion makes a value."""
    node = value.producer()
    return node is not None and BREAK_KEY in node.metadata_props


def made_in_turn(value: ir.Value | None) -> Iterator[tuple[ir.Value, ir.Node]]:
    """What makes a value, and the first input of that, and so on; a bad graph may be a circle."""
    seen: set[ir.Value] = set()
    while value is not None and value not in seen and (node := value.producer()) is not None:
        seen.add(value)
        yield value, node
        value = node.inputs[0] if node.inputs else None


def has_one_operand(node: ir.Node) -> bool:
    """Whether a node is an Einsum of one operand: a reduction, a permutation, or nothing at all."""
    return node.op_type == "Einsum" and len(node.inputs) == 1 and not node.domain


def may_be_as_large(one: ir.Value, other: ir.Value) -> bool:
    """Whether two values may have one shape but for axes of 1, as far as shapes are known."""
    if one.shape is None or other.shape is None:
        return True
    extents, others = ([dim for dim in shape if dim != 1] for shape in (one.shape, other.shape))
    unlike = (
        isinstance(a, int) and isinstance(b, int) and a != b
        for a, b in zip(extents, others, strict=False)
    )
    return len(extents) == len(others) and not any(unlike)


def nodes_of(model: ir.Model, *operators: str) -> Iterator[ir.Node]:
    """Nodes of some of ONNX's own operators."""
    return (node for node in model.graph if node.op_type in operators and not node.domain)


def back(
    values: Sequence[ir.Value | None],
    operators: frozenset[str],
    moving: frozenset[str] = MOVING,
) -> Iterator[tuple[ir.Node, bool]]:
    """Nodes of some operators behind elementwise and moving nodes alone; whether axes move."""
    for _, node, moved in behind(values, operators, moving):
        if node.op_type in operators:
            yield node, moved


def behind(
    values: Sequence[ir.Value | None],
    ends: frozenset[str] = frozenset(),
    moving: frozenset[str] = MOVING,
) -> Iterator[tuple[ir.Value, ir.Node, bool]]:
    """What nodes made of some values, and all that is behind it by elementwise and moving nodes.

    Args:
        values: The values.
        ends: Operators behind which there is nothing more, either.
        moving: Operators that move elements.

    Yields:
        A value, the node that makes it, and whether axes move between.
    """
    pending = [(value, False) for value in values]
    seen: set[ir.Value] = set()
    while pending:
        value, moved = pending.pop()
        node = value.producer() if value is not None else None
        if value is None or node is None or value in seen or BREAK_KEY in node.metadata_props:
            continue
        seen.add(value)
        yield value, node, moved
        if node.op_type in ends:
            continue
        if node.op_type in POINTWISE:
            pending += [(one, moved) for one in read_values(node)]
        elif node.op_type in moving:
            pending += [(one, True) for one in _moved_values(node)]


def read_values(node: ir.Node) -> Sequence[ir.Value | None]:
    """What an elementwise node computes with: not what it reads the type or statistics of."""
    return node.inputs[:1] if node.op_type in ("CastLike", "BatchNormalization") else node.inputs


def _moved_values(node: ir.Node) -> Sequence[ir.Value | None]:
    return node.inputs if node.op_type == "Concat" else node.inputs[:1]
