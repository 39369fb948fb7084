"""Rules for nodes whose output TensorRT's parser gives other extents or another name than ONNX.

:class:`~trt_native.passes.parser_workarounds.ParserWorkarounds` applies them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from trt_native.graph.nodes import FLOAT, constant_of, dtype_of, input_of, ints_of
from trt_native.graph.pools import end_padding
from trt_native.passes.replacement import ORIGIN_KEY, ReplacementBuilder, RewriteRule

__all__ = [
    "CONV_TRANSPOSE_PADDING",
    "LEAST_NUMBER",
    "LOOP_CONDITION",
    "POOL_PADDING",
    "RESIZE_BY_SCALES",
    "RMS_NORM_TYPES",
    "computes_condition",
    "padded",
    "picks_other_nearest",
    "resize_reason",
]

_PADS_AS_INPUT = 11  # since this opset Pad takes them so
_FREE_OF_SIZE = ("half_pixel", "pytorch_half_pixel", "asymmetric")
_LEAST = -(2**63)
_MOST_TRIPS = 2**31 - 2  # TensorRT takes larger limits for none


# Pools


def _end_padding(node: ir.Node) -> list[int]:
    names = ("kernel_shape", "strides", "dilations", "pads")
    return end_padding(*(ints_of(node, name) for name in names))


def _counts_padding(node: ir.Node) -> bool:
    return node.op_type == "AveragePool" and bool(node.attributes.get_int("count_include_pad", 0))


def _rounds_up_too_far(node: ir.Node) -> bool:
    """Whether a pool's last window may start in the padding, or count elements past it."""
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if not node.attributes.get_int("ceil_mode", 0) or auto_pad.startswith("SAME"):
        return False
    if auto_pad == "VALID" or _counts_padding(node):  # VALID rounds down by ONNX's text
        return True
    ends = _end_padding(node)
    given = ints_of(node, "pads")[len(ends) :] or [0] * len(ends)
    strides = ints_of(node, "strides") or [1] * len(ends)
    return ends != [pad + stride - 1 for pad, stride in zip(given, strides, strict=True)]


def _rewrite_pool(new: ReplacementBuilder) -> None:
    """Round down, with the padding that makes it the number of windows of ONNX."""
    node = new.node
    attributes: dict[str, object] = {**node.attributes, "ceil_mode": 0}
    (x,) = node.inputs
    if node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET":
        ends = _end_padding(node)
        pads = ints_of(node, "pads") or [0] * 2 * len(ends)
        starts, given = pads[: len(ends)], pads[len(ends) :]
        if _counts_padding(node):  # elements of the padding count, those past it do not
            counted = [min(pair) for pair in zip(given, ends, strict=True)]
            x = padded(new, x, starts, counted)
            attributes["count_include_pad"] = 0
            starts = [0] * len(ends)
            ends = [end - count for end, count in zip(ends, counted, strict=True)]
        attributes["pads"] = [*starts, *ends]
    new.replace(*new.add_with(node.op_type, [x], len(node.outputs), attributes))


def padded(
    new: ReplacementBuilder, x: ir.Value | None, starts: Sequence[int], ends: Sequence[int]
) -> ir.Value | None:
    """Zeros before and behind each spatial axis."""
    if not any((*starts, *ends)):
        return x
    around = [0, 0, *starts, 0, 0, *ends]
    if new.opset < _PADS_AS_INPUT:
        return new.add("Pad", [x], pads=around)
    return new.add("Pad", [x, new.constant(np.array(around))])


# Resize


def _scales(node: ir.Node) -> list[float] | None:
    """The scales of a Resize, where it has constant ones and no sizes."""
    index = 1 if len(node.inputs) == 2 else 2
    value = input_of(node, index)
    tensor = None if value is None else constant_of(value)
    if tensor is None or tensor.size == 0 or input_of(node, 3) is not None:
        return None
    return [float(scale) for scale in tensor.numpy().reshape(-1)]


def _axes(node: ir.Node, scales: Sequence[float]) -> list[int]:
    given = node.attributes.get_ints("axes", list(range(len(scales))))
    rank = len(node.inputs[0].shape) if node.inputs[0] and node.inputs[0].shape else len(scales)
    return [axis % rank for axis in given]


def _extent(value: ir.Value | None, axis: int) -> int | None:
    shape = None if value is None else value.shape
    if shape is None or axis >= len(shape):
        return None
    extent = shape[axis]
    return extent if isinstance(extent, int) else None


def _may_round_up(node: ir.Node, axis: int, scale: float) -> bool:
    """Whether the FP32 product of an extent and a scale may be larger than the exact one."""
    extent = _extent(node.inputs[0], axis)
    if extent is None:
        return Fraction(scale).numerator >= 2**10  # else exact for all extents below 2**14
    rounded = math.floor(np.float32(extent) * np.float32(scale))
    exact = math.floor(extent * Fraction(scale))
    # An exporter that rounded the scale knows the size that it stands for.
    return bool(rounded != exact) and _extent(node.outputs[0], axis) != rounded


def _is_one_too_large(node: ir.Node) -> bool:
    scales = None if ORIGIN_KEY in node.metadata_props else _scales(node)
    return scales is not None and any(
        _may_round_up(node, axis, scale)
        for axis, scale in zip(_axes(node, scales), scales, strict=False)
    )


def _rewrite_resize(new: ReplacementBuilder) -> None:
    """Cut off what is past the exact product of extents and scales."""
    node = new.node
    scales = _scales(node) or []
    axes = _axes(node, scales)
    (resized,) = new.add_with("Resize", node.inputs, 1, node.attributes)
    ends = _exact_sizes(new, axes, scales)
    starts = new.constant(np.zeros(len(axes), np.int64))
    new.replace(new.add("Slice", [resized, starts, ends, new.constant(np.array(axes))]))


def _exact_sizes(new: ReplacementBuilder, axes: Sequence[int], scales: Sequence[float]) -> ir.Value:
    x = new.node.inputs[0]
    extents = [_extent(x, axis) for axis in axes]
    ratios = [Fraction(scale) for scale in scales]
    if None not in extents:
        exact = [math.floor(e * r) for e, r in zip(extents, ratios, strict=True) if e is not None]
        return new.constant(np.array(exact))
    whole = ir.DataType.INT64
    shape = new.add("Shape", [x], whole)
    chosen = new.add("Gather", [shape, new.constant(np.array(axes))], whole)
    above = new.constant(np.array([ratio.numerator for ratio in ratios]))
    below = new.constant(np.array([ratio.denominator for ratio in ratios]))
    return new.add("Div", [new.add("Mul", [chosen, above], whole), below], whole)


def resize_reason(node: ir.Node) -> str:
    """Explain how TensorRT miscompiles a Resize that no rule rewrites; empty if it does not."""
    coordinates = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if len(node.inputs) == 2:  # opset 10
        coordinates = "asymmetric"
    nearest = node.attributes.get_string("mode", "nearest") == "nearest"
    ceil = node.attributes.get_string("nearest_mode", "round_prefer_floor") == "ceil"
    if nearest and ceil and coordinates == "align_corners":
        return "nearest_mode ceil with align_corners picks other elements; use another nearest_mode"
    if nearest and any(_ceils(node)):
        return (
            f"nearest_mode ceil with {coordinates} may pick other elements where extents are not"
            " fixed; use another nearest_mode, or fix them"
        )
    scale = None if coordinates in _FREE_OF_SIZE else _broken_scale(node)
    if scale is None:
        return ""
    return (
        f"with {coordinates} a scale of {scale:g} that may give no whole number of elements"
        " is rounded first; give sizes instead of scales"
    )


def picks_other_nearest(node: ir.Node) -> bool:
    """Whether TensorRT may take other elements for the nearest.

    It does by scales that may give no whole number of elements, and, rounding up, where it computes
    a little more than a whole number.
    """
    if node.op_type != "Resize" or node.attributes.get_string("mode", "nearest") != "nearest":
        return False
    return _broken_scale(node) is not None or any(_ceils(node))


def _ceils(node: ir.Node) -> Iterator[bool]:
    """For each axis, whether coordinates may be rounded up that are whole; with inexact steps."""
    attributes = node.attributes
    coordinates = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    ceil = attributes.get_string("nearest_mode", "round_prefer_floor") == "ceil"
    if not ceil or "half_pixel" not in coordinates or not node.outputs[0].shape:
        return
    for axis in range(len(node.outputs[0].shape)):
        extent, size = _extent(node.inputs[0], axis), _extent(node.outputs[0], axis)
        if extent is None or size is None:
            yield _extents_differ(node, axis)
            continue
        step = Fraction(extent, size)
        inexact = step.denominator & (step.denominator - 1)
        half = Fraction(1, 2)
        yield bool(inexact) and any(
            ((index + half) * step - half).denominator == 1 for index in range(size)
        )


def _extents_differ(node: ir.Node, axis: int) -> bool:
    """Whether an axis of an unknown extent is resized, as far as can be seen."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or y.shape is None:
        return True
    one, other = x.shape[axis], y.shape[axis]
    named = isinstance(one, ir.SymbolicDim) and one.value is not None
    return not (named and one == other)


def _broken_scale(node: ir.Node) -> float | None:
    """A scale of a Resize that may give no whole number of elements."""
    scales = _scales(node) or []
    for axis, scale in zip(_axes(node, scales), scales, strict=False):
        extent, ratio = _extent(node.inputs[0], axis), Fraction(scale)
        if (ratio if extent is None else extent * ratio).denominator != 1:
            return scale
    return None


# Others


def _loses_output_padding(node: ir.Node) -> bool:
    padded = any(node.attributes.get_ints("output_padding", []))
    return padded and node.attributes.get_string("auto_pad", "NOTSET") == "VALID"


def _rewrite_auto_pad(new: ReplacementBuilder) -> None:
    """Give no padding explicitly: with auto_pad VALID TensorRT ignores output_padding."""
    del new.node.attributes["auto_pad"]


def _renames_condition(node: ir.Node) -> bool:
    condition = input_of(node, 1)
    return condition is not None and (condition.is_graph_input() or condition.is_graph_output())


def _lacks_trips(node: ir.Node) -> bool:
    """Whether the body reads the number of an iteration of a loop without a limit."""
    iteration, limit = node.attributes["body"].as_graph().inputs[0], input_of(node, 0)
    constant = None if limit is None else constant_of(limit)
    unlimited = limit is None or (
        constant is not None and constant.size == 1 and constant.numpy().item() > _MOST_TRIPS
    )
    return unlimited and bool(iteration.uses() or iteration.is_graph_output())


def computes_condition(loop: ir.Node) -> bool:
    """Whether the body of a ``Loop`` returns another condition than the one that it gets, or true.

    Of a loop without a condition ONNX ignores that one, and not all runtimes do.
    """
    body = loop.attributes["body"].as_graph()
    value: ir.Value | None = body.outputs[0]
    while value is not None and (node := value.producer()) and node.op_type == "Identity":
        value = node.inputs[0]
    constant = None if value is None else constant_of(value)
    return value is not body.inputs[1] and (constant is None or not constant.numpy().all())


def _is_incomplete(node: ir.Node) -> bool:
    return _renames_condition(node) or _lacks_trips(node) or input_of(node, 1) is None


def _rewrite_loop(new: ReplacementBuilder) -> None:
    """Give a loop the limit and the condition that it lacks, and copy a condition.

    TensorRT knows the values of a body that belong to a limit or a condition only if there is one,
    and gives a condition the name that it has in the body.
    """
    node = new.node
    if _lacks_trips(node):
        node.replace_input_with(0, new.constant(np.array(_MOST_TRIPS)))
    if input_of(node, 1) is None:
        if len(node.inputs) < 2:
            node.resize_inputs(2)
        node.replace_input_with(1, new.constant(np.array(True)))
    elif _renames_condition(node):
        copy = new.add("Identity", [node.inputs[1]], ir.DataType.BOOL)
        new.insert_before()
        node.replace_input_with(1, copy)


def _has_other_scale_type(node: ir.Node) -> bool:
    kinds = [dtype_of(value) for value in node.inputs[:2]]
    return None not in kinds and len(set(kinds)) > 1


def _rewrite_rms_norm(new: ReplacementBuilder) -> None:
    """Compute in FP32 and cast to the type of the scale; TensorRT takes that of the input."""
    node = new.node
    kind = dtype_of(node.inputs[1])
    wide = [new.add("Cast", [value], FLOAT, to=FLOAT) for value in node.inputs]
    (normed,) = new.add_with(node.op_type, wide, 1, node.attributes, FLOAT)
    new.replace(new.add("Cast", [normed], kind, to=kind))


def _least_number(value: ir.Value | None) -> ir.TensorProtocol | None:
    """One number, the least of INT64, for which TensorRT takes 0 in a sum."""
    tensor = None if value is None else constant_of(value)
    if tensor is None or tensor.dtype != ir.DataType.INT64 or tensor.size != 1:
        return None
    return tensor if tensor.numpy().item() == _LEAST else None


def _adds_least_number(node: ir.Node) -> bool:
    return any(_least_number(value) is not None for value in node.inputs)


def _rewrite_sum(new: ReplacementBuilder) -> None:
    """Subtract the half of it twice, which also adds it, as INT64 wraps; sums would be joined."""
    node = new.node
    operands = list(node.inputs)
    halves: list[ir.Value] = []
    for position, value in enumerate(node.inputs):
        least = _least_number(value)
        if least is not None:
            array = np.full_like(least.numpy(), _LEAST // 2)
            operands[position] = new.constant(np.zeros_like(array))
            halves += 2 * [new.constant(array)]
    total = new.add(node.op_type, operands)
    for half in halves:
        total = new.add("Sub", [total, half])
    new.replace(total)


POOL_PADDING = RewriteRule(_rounds_up_too_far, _rewrite_pool)
LEAST_NUMBER = RewriteRule(_adds_least_number, _rewrite_sum)
RESIZE_BY_SCALES = RewriteRule(_is_one_too_large, _rewrite_resize)
CONV_TRANSPOSE_PADDING = RewriteRule(_loses_output_padding, _rewrite_auto_pad)
LOOP_CONDITION = RewriteRule(_is_incomplete, _rewrite_loop)
RMS_NORM_TYPES = RewriteRule(_has_other_scale_type, _rewrite_rms_norm)
