"""Norms of the domain ``com.microsoft`` as arithmetic, in FP32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trt_native.graph.nodes import FLOAT, input_of
from trt_native.passes.fused_builder import BOOL, INT64, FusedBuilder, is_read
from trt_native.passes.replacement import KEEP_FP32_KEY

__all__ = [
    "axis_refusal",
    "group_norm_refusal",
    "rewrite_embedding_norm",
    "rewrite_group_norm",
    "rewrite_norm",
    "rewrite_skip_norm",
    "segments_refusal",
    "statistics_refusal",
]

_INT32 = ir.DataType.INT32


def statistics_refusal(node: ir.Node) -> str:
    """The mean and deviation, which only training uses, must not be read."""
    return "returns statistics" if any(map(is_read, node.outputs[1:3])) else ""


def axis_refusal(node: ir.Node) -> str:
    """The norm must be along the last axis."""
    axis, x = node.attributes.get_int("axis", -1), input_of(node, 0)
    rank = None if x is None or x.shape is None else len(x.shape)
    if axis != -1 and (rank is None or axis != rank - 1):
        return "is not along the last axis (-1)"
    return statistics_refusal(node)


def rewrite_norm(new: FusedBuilder) -> None:
    """Take the norm."""
    new.node.metadata_props[KEEP_FP32_KEY] = "norm"
    bias = input_of(new.node, 2)
    new.finish(_normed(new, new.operand(0), new.operand(1), bias))


def rewrite_skip_norm(new: FusedBuilder) -> None:
    """Add the other input and the bias, and take the norm of the sum."""
    node = new.node
    node.metadata_props[KEEP_FP32_KEY] = "norm"
    x, skip, scale = (new.operand(index) for index in range(3))
    simplified = node.op_type.startswith("SkipSimplified")
    beta, bias = (None if simplified else input_of(node, 3)), input_of(node, 3 if simplified else 4)
    total = new.add("Add", [x, skip])
    if bias is not None:
        total = new.add("Add", [total, bias])
    outputs: list[ir.Value | None] = [None] * len(node.outputs)
    outputs[0] = _normed(new, total, scale, beta)
    if len(outputs) > 3 and node.outputs[3].name:
        outputs[3] = total
    new.replace(*outputs)


def _normed(new: FusedBuilder, x: ir.Value, scale: ir.Value, bias: ir.Value | None) -> ir.Value:
    """The norm of the last axis in FP32, which autocast keeps, in the type of the input."""
    node, kind = new.node, new.kind
    value = new.cast(x, FLOAT)
    if "Simplified" not in node.op_type:
        value = new.add("Sub", [value, new.mean(value)], FLOAT)
    variance = new.mean(new.add("Mul", [value, value], FLOAT))
    default = 1e-12 if node.op_type.startswith(("Skip", "Embed")) else 1e-5
    epsilon = new.constant(np.float32(node.attributes.get_float("epsilon", default)))
    root = new.add("Sqrt", [new.add("Add", [variance, epsilon], FLOAT)], FLOAT)
    value = new.add("Mul", [new.add("Div", [value, root], FLOAT), new.cast(scale, FLOAT)], FLOAT)
    if bias is not None:
        value = new.add("Add", [value, new.cast(bias, FLOAT)], FLOAT)
    return new.cast(value, kind)


def segments_refusal(node: ir.Node) -> str:
    """Segments are given with their table, or not at all."""
    segments = [input_of(node, index) is not None for index in (1, 4)]
    return "" if all(segments) or not any(segments) else "has segments or their table alone"


def rewrite_embedding_norm(new: FusedBuilder) -> None:
    """Add the rows of the tables, and take the norm; the lengths count the ones of the mask."""
    node = new.node
    node.metadata_props[KEEP_FP32_KEY] = "norm"
    ids, segments = new.operand(0), input_of(node, 1)
    total = new.add("Gather", [new.operand(2), ids])
    places = input_of(node, 8)
    if places is None:
        rows = new.sliced(new.operand(3), 0, 0, new.extent(ids, 1))
    else:
        rows = new.add("Gather", [new.operand(3), places])
    total = new.add("Add", [total, rows])
    width = new.operand(2).shape
    if ids.shape is not None and width is not None:
        total.shape = ir.Shape([*ids.shape, width[1]])  # ONNX does not infer it from the slice
    if segments is not None:
        total = new.add("Add", [total, new.add("Gather", [new.operand(4), segments])])
    outputs: list[ir.Value | None] = [None] * len(node.outputs)
    outputs[0] = _normed(new, total, new.operand(5), new.operand(6))
    if len(outputs) > 1 and is_read(node.outputs[1]):
        outputs[1] = _lengths(new, ids, input_of(node, 7))
    if len(outputs) > 2 and is_read(node.outputs[2]):
        outputs[2] = total
    new.replace(*outputs)


def _lengths(new: FusedBuilder, ids: ir.Value, mask: ir.Value | None) -> ir.Value:
    """INT32[batch]: how many elements of each row of a mask are 1; 0 without a mask."""
    if mask is None:
        equal = new.add("Not", [new.add("Equal", [ids, ids], BOOL)], BOOL)
    else:
        one = new.constant(np.array(1, mask.dtype.numpy() if mask.dtype else np.int32))
        equal = new.add("Equal", [mask, one], BOOL)
    return new.sum_along(new.cast(equal, _INT32), 1)


def rewrite_group_norm(new: FusedBuilder) -> None:
    """Take the norm of each group of channels in FP32; SkipGroupNorm adds inputs before."""
    node = new.node
    node.metadata_props[KEEP_FP32_KEY] = "norm"
    x, gamma, beta = (new.operand(index) for index in range(3))
    rank, last = new.rank(x), bool(node.attributes.get_int("channels_last", 1))
    total = _with_skip(new, x, rank, last)
    first = new.transposed(total, 0, rank - 1, *range(1, rank - 1)) if last else total
    wide = new.cast(first, FLOAT)
    groups = node.attributes.get_int("groups", 0)
    parts = new.shaped(wide, 0, groups, -1)
    factors = [new.constant(np.full(groups, number, np.float32)) for number in (1, 0)]
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    normed = new.add("InstanceNormalization", [parts, *factors], FLOAT, epsilon=epsilon)
    value = new.add("Reshape", [normed, new.add("Shape", [wide], INT64)], FLOAT)
    for operator, factor in (("Mul", gamma), ("Add", beta)):
        by_channel = new.shaped(new.cast(factor, FLOAT), -1, *[1] * (rank - 2))
        value = new.add(operator, [value, by_channel], FLOAT)
    if _activation(node):
        value = new.add("Mul", [value, new.add("Sigmoid", [value], FLOAT)], FLOAT)
    value = new.cast(value, new.kind)
    outputs: list[ir.Value | None] = [None] * len(node.outputs)
    outputs[0] = new.transposed(value, 0, *range(2, rank), 1) if last else value
    if len(outputs) > 1 and is_read(node.outputs[1]):
        outputs[1] = total
    new.replace(*outputs)


def _with_skip(new: FusedBuilder, x: ir.Value, rank: int, last: bool) -> ir.Value:
    """What a SkipGroupNorm takes the norm of."""
    skip, bias = input_of(new.node, 3), input_of(new.node, 4)
    if skip is None:
        return x
    if new.rank(skip) == 2:
        skip = new.unsqueezed(skip, *(range(1, rank - 1) if last else range(2, rank)))
    total = new.add("Add", [x, skip])
    if bias is None:
        return total
    return new.add("Add", [total, bias if last else new.shaped(bias, -1, *[1] * (rank - 2))])


def _activation(node: ir.Node) -> int:
    """Whether a SiLU follows; the operator's first version calls it ``swish``."""
    return node.attributes.get_int("activation", node.attributes.get_int("swish", 0))


def group_norm_refusal(node: ir.Node) -> str:
    """The groups must be given, and the activation known."""
    if node.attributes.get_int("groups", 0) < 1:
        return "lacks its groups"
    activation = _activation(node)
    return "" if activation in (0, 1) else f"has an activation of {activation}"
