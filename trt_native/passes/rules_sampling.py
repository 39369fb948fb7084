"""Rules of :mod:`~trt_native.passes.lower_operators` that read images between their elements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.nodes import FLOAT
from trt_native.passes.array_builder import BOOL, INT64, ArrayBuilder, OperatorRule, Site

__all__ = ["RULES"]

Write = Callable[[ArrayBuilder], None]
_HALF_PIXEL_OPSET = 16  # since which RoiAlign knows half pixels


def _roi_align(site: Site) -> Write | None:
    """Read the four elements around each sample, and take their mean or maximum."""
    extents, ratio = site.extents(0), site.int("sampling_ratio")
    if not extents or len(extents) != 4 or None in extents[1:] or ratio < 1:
        return None  # without a ratio the number of samples follows from each region
    channels, *image = (extent or 0 for extent in extents[1:])
    sizes = [site.int("output_height", 1), site.int("output_width", 1)]
    scale = site.node.attributes.get_float("spatial_scale", 1.0)
    default = "half_pixel" if site.opset >= _HALF_PIXEL_OPSET else "output_half_pixel"
    halves = site.string("coordinate_transformation_mode", default) == "half_pixel"
    maximum = site.string("mode", "avg").lower() == "max"

    def write(new: ArrayBuilder) -> None:
        new.keep_fp32("places in an image")
        x, regions, batch = new.node.inputs
        regions = new.op("Mul", new.wide(regions), np.array(scale, np.float32))
        if halves:
            regions = new.op("Sub", regions, np.array(0.5, np.float32))
        sides = []
        for axis in (0, 1):
            start, end = (new.slice(regions, 1, i, i + 1) for i in (1 - axis, 3 - axis))
            length = new.op("Sub", end, start)
            if not halves:
                length = new.op("Max", length, np.array(1, np.float32))
            places = (np.arange(sizes[axis] * ratio) + 0.5) / (sizes[axis] * ratio)
            steps = new.op("Mul", length, places.astype(np.float32)[None])
            sides.append(_corners(new, new.op("Add", steps, start), image[axis]))
        elements = new.reshape(new.op("Transpose", x, perm=[0, 2, 3, 1]), [-1, channels])
        first = new.op("Mul", new.cast(batch, INT64), np.array(math.prod(image)))
        first = new.unsqueeze(first, [1, 2])
        terms = []
        for (low, share_y), (left, share_x) in itertools.product(*sides):
            row = new.op("Mul", new.unsqueeze(low, [2]), np.array(image[1]))
            index = new.op("Add", new.op("Add", row, new.unsqueeze(left, [1])), first)
            weight = new.op("Mul", new.unsqueeze(share_y, [2]), new.unsqueeze(share_x, [1]))
            found = new.wide(new.op("Gather", elements, index, axis=0))
            terms.append(new.op("Mul", found, new.unsqueeze(weight, [3])))
        found = new.op("Max" if maximum else "Sum", *terms)
        split = [-1, sizes[0], ratio, sizes[1], ratio, channels]
        found = new.reduce(
            "ReduceMax" if maximum else "ReduceMean", new.reshape(found, split), [2, 4]
        )
        new.finish(new.op("Transpose", found, perm=[0, 3, 1, 2]))

    return write


def _corners(new: ArrayBuilder, places: ir.Value, extent: int) -> list[tuple[ir.Value, ir.Value]]:
    """The two elements around each place on an axis and their shares; 0 far outside."""
    last = np.array(extent - 1, np.float32)
    below = new.op("Less", places, np.array(-1, np.float32), kind=BOOL)
    above = new.op("Greater", places, np.array(extent, np.float32), kind=BOOL)
    outside = new.op("Or", below, above)
    inside = new.op("Min", new.op("Max", places, np.array(0, np.float32)), last)
    low = new.op("Floor", inside)
    high = new.op("Min", new.op("Add", low, np.array(1, np.float32)), last)
    share = new.op("Sub", inside, low)
    rest = new.op("Sub", np.array(1, np.float32), share, kind=FLOAT)
    zero = np.array(0, np.float32)
    return [
        (new.cast(element, INT64), new.op("Where", outside, zero, weight, kind=FLOAT))
        for element, weight in ((low, rest), (high, share))
    ]


def _deform_conv(site: Site) -> Write | None:
    """Read the elements that the offsets lead to, and multiply them by the weights."""
    extents, weights, offsets = site.extents(0), site.static(1), site.extents(2)
    if not extents or len(extents) != 4 or not weights or not offsets:
        return None
    if None in extents[1:] or None in offsets[1:]:
        return None
    channels, height, width = (extent or 0 for extent in extents[1:])
    kernel = weights[2:]
    shape = [extent or 0 for extent in offsets[2:]]
    groups, offset_groups = site.int("group", 1), site.int("offset_group", 1)
    grid = _kernel_grid(site, kernel, shape)
    taps, places = math.prod(kernel), math.prod(shape)

    def write(new: ArrayBuilder) -> None:
        new.keep_fp32("places in an image")
        x, factors, offset = new.node.inputs[:3]
        moved = new.reshape(new.wide(offset), [-1, offset_groups, taps, 2, *shape])
        at = new.reshape(new.op("Add", moved, grid), [-1, taps, 2, places])
        axes = [
            _inside(new, new.op("Gather", at, np.array(i), axis=2), extent)
            for i, extent in enumerate((height, width))
        ]
        elements = new.reshape(x, [-1, channels // offset_groups, height * width])
        elements = new.op("Transpose", elements, perm=[0, 2, 1])
        terms = []
        for (row, share_y), (column, share_x) in itertools.product(*axes):
            index = new.op("Add", new.op("Mul", row, np.array(width)), column)
            index = new.reshape(index, [-1, taps * places, 1])
            found = new.wide(new.op("GatherND", elements, index, batch_dims=1))
            share = new.reshape(new.op("Mul", share_y, share_x), [-1, taps * places, 1])
            terms.append(new.op("Mul", found, share))
        columns = new.op("Sum", *terms)
        if site.has(4):
            mask = new.reshape(new.wide(new.node.inputs[4]), [-1, taps * places, 1])
            columns = new.op("Mul", columns, mask)
        new.keep_fp32()
        columns = new.cast(columns, site.kind())
        split = [-1, offset_groups, taps, places, channels // offset_groups]
        columns = new.op("Transpose", new.reshape(columns, split), perm=[0, 1, 4, 2, 3])
        columns = new.reshape(columns, [-1, groups, channels // groups * taps, places])
        rows = [groups, weights[0] // groups, channels // groups * taps]
        found = new.op("MatMul", new.reshape(factors, rows), columns)
        found = new.reshape(found, [-1, weights[0], *shape])
        if site.has(3):
            bias = new.reshape(new.node.inputs[3], [-1, 1, 1])
            found = new.op("Add", found, bias)
        new.finish(found)

    return write


def _kernel_grid(site: Site, kernel: Sequence[int], shape: Sequence[int]) -> Array:
    """Where the kernel reads without offsets, (taps, 2, height, width)."""
    pads = site.ints("pads", [0] * 4)
    strides, dilations = site.ints("strides", [1, 1]), site.ints("dilations", [1, 1])
    found = np.zeros((*kernel, 2, *shape), np.float32)
    for axis in (0, 1):
        taps = np.arange(kernel[axis]) * dilations[axis] - pads[axis]
        starts = np.arange(shape[axis]) * strides[axis]
        both = taps[:, None] + starts
        found[:, :, axis] = both[:, None, :, None] if axis == 0 else both[None, :, None, :]
    return found.reshape(-1, 2, *shape)


def _inside(new: ArrayBuilder, places: ir.Value, extent: int) -> list[tuple[ir.Value, ir.Value]]:
    """The two elements around each place on an axis and their shares; 0 outside."""
    low = new.op("Floor", places)
    share = new.op("Sub", places, low)
    found = []
    for step in (0, 1):
        element = new.op("Add", low, np.array(step, np.float32)) if step else low
        weight = share if step else new.op("Sub", np.array(1, np.float32), share, kind=FLOAT)
        kept = new.op(
            "Max", new.op("Min", element, np.array(extent - 1, np.float32)), np.array(0, np.float32)
        )
        same = new.op("Equal", kept, element, kind=BOOL)
        weight = new.op("Where", same, weight, np.array(0, np.float32), kind=FLOAT)
        found.append((new.cast(kept, INT64), weight))
    return found


RULES: Mapping[str, OperatorRule] = {"DeformConv": _deform_conv, "RoiAlign": _roi_align}
