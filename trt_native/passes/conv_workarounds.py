"""Rules for convolutions of a single element, transposed and not.

Where an axis has one element, TensorRT-RTX has no kernel for a stride above 1, and an activation
behind a single pixel was computed wrong in FP16. The stride of such an axis says nothing but how
large its output padding may be, which is zeros there, before the bias.

A convolution to a single pixel was computed wrong for other batches than the optimum of 1, by the
kernels that TensorRT-RTX compiles for a shape.

A transposed convolution along one axis leaves elements unwritten that no window reaches, where the
windows are shorter than their stride; it is wrong in groups for dynamic lengths. Along any number
of axes it has no kernel for a stride and a dilation together.
:class:`~trt_native.passes.parser_workarounds.ParserWorkarounds` applies them.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from trt_native.graph.nodes import constant_of, input_of, ints_of
from trt_native.graph.pools import same_padding
from trt_native.passes.extent_workarounds import CONV_TRANSPOSE_PADDING, padded
from trt_native.passes.replacement import ReplacementBuilder, RewriteRule

__all__ = ["CONV", "CONV_TRANSPOSE"]

_LONGEST_GAP = 4096


def _is_rewritten(node: ir.Node) -> bool:
    return (
        CONV_TRANSPOSE_PADDING.check(node)
        or _is_pixel(node)
        or bool(_idle_strides(node))
        or _is_spread(node)
        or _gap(node) > 0
        or _is_dilated(node)
    )


def _rewrite(new: ReplacementBuilder) -> None:
    if CONV_TRANSPOSE_PADDING.check(new.node):
        CONV_TRANSPOSE_PADDING.rewrite(new)  # in place
    if _is_pixel(new.node):
        _rewrite_pixel(new)
    elif _idle_strides(new.node):
        _rewrite_strides(new)
    elif _is_spread(new.node):
        _rewrite_spread(new)
    elif _gap(new.node) > 0:
        _rewrite_gaps(new)
    elif _is_dilated(new.node):
        _rewrite_dilated(new)


def _extents(node: ir.Node) -> list[int | ir.SymbolicDim]:
    x = node.inputs[0]
    return [] if x is None or x.shape is None else list(x.shape[2:])


def _is_sized_otherwise(node: ir.Node) -> bool:
    """Whether more than strides and padding says how large the output is."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    return automatic or "output_shape" in node.attributes


def _idle_strides(node: ir.Node) -> list[int]:
    """The axes, from the first spatial one on, that have one element and a stride above 1."""
    if _is_sized_otherwise(node):
        return []
    strides = ints_of(node, "strides")
    return [
        axis
        for axis, (extent, stride) in enumerate(zip(_extents(node), strides, strict=False))
        if extent == 1 and stride > 1
    ]


def _rewrite_strides(new: ReplacementBuilder) -> None:
    """Let these strides be 1, and write their output padding."""
    node, idle = new.node, _idle_strides(new.node)
    rank = len(_extents(node))
    strides, pads = ints_of(node, "strides"), ints_of(node, "pads") or [0] * 2 * rank
    paddings = ints_of(node, "output_padding") or [0] * rank
    written = [0] * rank
    for axis in idle:
        strides[axis] = 1
        kept = min(paddings[axis], pads[rank + axis])  # what the padding would cut off
        pads[rank + axis] -= kept
        written[axis], paddings[axis] = paddings[axis] - kept, 0
    attributes = {**node.attributes, "strides": strides}
    if "output_padding" in node.attributes:
        attributes |= {"pads": pads, "output_padding": paddings}
    bias = input_of(node, 2) if any(written) else None
    inputs = node.inputs if bias is None else node.inputs[:2]
    (y,) = new.add_with(node.op_type, inputs, 1, attributes)
    y = padded(new, y, [0] * rank, written) or y
    if bias is not None:
        y = new.add("Add", [y, new.reshaped(bias, [1, -1, *[1] * rank])])
    new.replace(y)


def _is_pixel(node: ir.Node) -> bool:
    """Whether each output is a product of one pixel with the weights, all of which come out."""
    extents = _extents(node)
    return (
        bool(extents)
        and all(extent == 1 for extent in extents)
        and _knows_weight(node)
        and node.attributes.get_int("group", 1) == 1
        and not any(ints_of(node, "pads"))
        and all(dilation == 1 for dilation in ints_of(node, "dilations"))
        and not _is_sized_otherwise(node)
    )


def _rewrite_pixel(new: ReplacementBuilder) -> None:
    """Multiply the channels by the weights as matrices."""
    x, weight = new.node.inputs[:2]
    assert x is not None  # noqa: S101  # for the type checker
    assert weight is not None  # noqa: S101
    tensor = _constant_weight(new.node)
    channels, outputs, *kernel = (int(extent) for extent in tensor.shape.numpy())
    rows = new.reshaped(x, [-1, channels])
    columns = new.reshaped(weight, [channels, outputs * prod(kernel)])
    y = new.reshaped(new.add("MatMul", [rows, columns]), [-1, outputs, *kernel])
    padding = ints_of(new.node, "output_padding") or [0] * len(kernel)
    y = padded(new, y, [0] * len(kernel), padding) or y
    bias = input_of(new.node, 2)
    if bias is not None:
        y = new.add("Add", [y, new.reshaped(bias, [1, outputs, *[1] * len(kernel)])])
    new.replace(y)


def _knows_weight(node: ir.Node) -> bool:
    weight = input_of(node, 1)
    return weight is not None and constant_of(weight) is not None


def _constant_weight(node: ir.Node) -> ir.TensorProtocol:
    """The weight of a convolution whose weight is known to be a constant."""
    weight = input_of(node, 1)
    tensor = None if weight is None else constant_of(weight)
    assert tensor is not None  # noqa: S101  # for the type checker
    return tensor


def _number(node: ir.Node, name: str, default: int) -> int:
    """An attribute with a number for each axis, of a node that has one axis."""
    return (ints_of(node, name) or [default])[0]


def _along_one_axis(node: ir.Node) -> bool:
    """Whether a convolution of known weights goes along one axis, and no more says its extent."""
    return _knows_weight(node) and len(_extents(node)) == 1 and not _is_sized_otherwise(node)


def _span(node: ir.Node) -> int:
    """Elements from the first to the last of a window along one axis."""
    tensor = _constant_weight(node)
    return _number(node, "dilations", 1) * (tensor.shape.numpy()[2] - 1) + 1


def _gap(node: ir.Node) -> int:
    """Elements between two windows; 0 where there are too many to write them as zeros."""
    gap = _number(node, "strides", 1) - _span(node) if _along_one_axis(node) else 0
    return gap if gap <= _LONGEST_GAP else 0


def _rewrite_gaps(new: ReplacementBuilder) -> None:
    """Make the windows longer by zeros, and cut off as much at the end."""
    node, (x, _, *bias) = new.node, new.node.inputs
    more = _gap(node)
    values = _constant_weight(node).numpy()
    zeros = np.zeros((*values.shape[:2], more), values.dtype)
    longer = new.constant(np.concatenate([values, zeros], axis=2))
    begin, end = ints_of(node, "pads") or [0, 0]
    attributes = {**node.attributes, "pads": [begin, end + more]}
    attributes["kernel_shape"] = [values.shape[2] + more]
    new.replace(*new.add_with(node.op_type, [x, longer, *bias], 1, attributes))


def _is_spread(node: ir.Node) -> bool:
    """Whether a convolution with a stride has groups of a dynamic length, or dilated windows."""
    if not _along_one_axis(node) or _number(node, "strides", 1) == 1:
        return False
    dynamic = not isinstance(_extents(node)[0], int)
    grouped = node.attributes.get_int("group", 1) > 1
    return (dynamic and grouped) or _number(node, "dilations", 1) > 1


def _rewrite_spread(new: ReplacementBuilder) -> None:
    """Put zeros between the elements, and convolve that with the reversed windows."""
    node, (x, _, *bias) = new.node, new.node.inputs
    assert x is not None  # noqa: S101  # for the type checker
    tensor = _constant_weight(node)
    stride, groups = _number(node, "strides", 1), node.attributes.get_int("group", 1)
    channels, outputs, length = tensor.shape.numpy()
    grouped = tensor.numpy().reshape(groups, channels // groups, outputs, length)
    windows = grouped.swapaxes(1, 2)[..., ::-1].reshape(-1, channels // groups, length)
    spread = new.reshaped(x, [0, 0, -1, 1])
    spread = new.reshaped(padded(new, spread, [0, 0], [0, stride - 1]) or spread, [0, 0, -1])
    begin, end = ints_of(node, "pads") or [0, 0]
    around = _span(node) - 1
    # Behind the last element there are zeros already.
    pads = [around - begin, around - end - (stride - 1) + _number(node, "output_padding", 0)]
    if min(pads) < 0:
        ends = min(pads[1], 0) or np.iinfo(np.int64).max
        cuts = [new.constant(np.array([n])) for n in (max(-pads[0], 0), ends, 2)]
        spread = new.add("Slice", [spread, *cuts])
    attributes = {
        "dilations": [_number(node, "dilations", 1)],
        "group": groups,
        "kernel_shape": [length],
        "pads": [max(pad, 0) for pad in pads],
    }
    inputs = [spread, new.constant(np.ascontiguousarray(windows)), *bias]
    new.replace(*new.add_with("Conv", inputs, 1, attributes))


def _is_dilated(node: ir.Node) -> bool:
    """Whether a convolution of known weights has both strides and dilated windows."""
    strides, dilations = ints_of(node, "strides"), ints_of(node, "dilations")
    both = any(stride > 1 for stride in strides) and any(step > 1 for step in dilations)
    return both and _knows_weight(node)


def _rewrite_dilated(new: ReplacementBuilder) -> None:
    """Put zeros between the elements of the windows."""
    node, (x, _, *bias) = new.node, new.node.inputs
    values, steps = _constant_weight(node).numpy(), ints_of(node, "dilations")
    kernel = [(k - 1) * step + 1 for k, step in zip(values.shape[2:], steps, strict=True)]
    windows = np.zeros((*values.shape[:2], *kernel), values.dtype)
    places = (range(0, extent, step) for extent, step in zip(kernel, steps, strict=True))
    windows[np.ix_(*map(range, values.shape[:2]), *places)] = values
    attributes = {**node.attributes, "dilations": [1] * len(kernel), "kernel_shape": kernel}
    new.replace(*new.add_with(node.op_type, [x, new.constant(windows), *bias], 1, attributes))


CONV_TRANSPOSE = RewriteRule(_is_rewritten, _rewrite)


def _makes_pixels(node: ir.Node) -> bool:
    """Whether all of an input comes into one pixel of each output, for any batch."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or y.shape is None or isinstance(x.shape[0], int):
        return False
    return (
        _knows_weight(node)
        and all(isinstance(extent, int) for extent in x.shape[1:])
        and all(extent == 1 for extent in y.shape[2:])
        and node.attributes.get_int("group", 1) == 1
        and all(dilation == 1 for dilation in ints_of(node, "dilations"))
    )


def _begin_padding(node: ir.Node, kernel: list[int]) -> list[int]:
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if automatic.startswith("SAME"):
        spans = [extent - 1 for extent in kernel]
        strides = ints_of(node, "strides") or [1] * len(kernel)
        upper = automatic == "SAME_UPPER"
        padding = same_padding(spans, strides, _extents(node), upper=upper)
        assert padding is not None  # noqa: S101  # the extents are known
        return padding[0]
    given = ints_of(node, "pads") if automatic == "NOTSET" else []
    return given[: len(kernel)] or [0] * len(kernel)


def _rewrite_to_pixels(new: ReplacementBuilder) -> None:
    """Multiply the window, as a vector, by the weights as a matrix."""
    node = new.node
    x, weight = node.inputs[:2]
    assert x is not None  # noqa: S101  # for the type checker
    assert weight is not None  # noqa: S101
    tensor = _constant_weight(node)
    outputs, channels, *kernel = (int(extent) for extent in tensor.shape.numpy())
    extents = [extent for extent in _extents(node) if isinstance(extent, int)]
    begins = _begin_padding(node, kernel)
    ends = [k - b - e for k, b, e in zip(kernel, begins, extents, strict=True)]
    window = padded(new, x, begins, [max(end, 0) for end in ends])
    if any(end < 0 for end in ends):
        zeros, sizes = new.constant(np.zeros(len(kernel), np.int64)), new.constant(np.array(kernel))
        window = new.add(
            "Slice", [window, zeros, sizes, new.constant(np.arange(2, 2 + len(kernel)))]
        )
    assert window is not None  # noqa: S101
    rows = new.reshaped(window, [-1, channels * prod(kernel)])
    columns = new.reshaped(weight, [outputs, channels * prod(kernel)])
    bias = input_of(node, 2)
    y = new.add("Gemm", [rows, columns, *([] if bias is None else [bias])], transB=1)
    new.replace(new.reshaped(y, [-1, outputs, *[1] * len(kernel)]))


CONV = RewriteRule(_makes_pixels, _rewrite_to_pixels)
