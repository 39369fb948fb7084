"""Write pools that TensorRT's parser does not have as slices of the elements of their windows.

TensorRT has no pools with dilations, no indices of maxima, and of LpPool only the square root of
sums of squares over two or three axes. Every element of the windows is a slice of the padded input,
with the strides as its steps; a maximum, a mean or a sum over these slices is the pool.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import all_nodes, dtype_of, ints_of, opset_of
from trt_native.graph.pools import POOLS, end_padding, same_padding
from trt_native.passes.array_builder import BOOL, INT64, ArrayBuilder
from trt_native.passes.base import GraphPass
from trt_native.passes.replacement import KEEP_FP32_KEY, NameAuthority

__all__ = ["LowerPools"]

_FIRST_OPSET = 11  # whose Pad takes a value of the input's type
_LAST = np.iinfo(np.int64).max


class _PoolWindows(NamedTuple):
    """Windows of a pool, by spatial axis.

    Attributes:
        kernel: Elements of a window.
        strides: Elements between windows.
        dilations: Elements between elements of a window.
        starts: Padding before the data.
        given_ends: Padding behind the data as the node has it.
        ends: The same, with what rounding up adds.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    starts: list[int]
    given_ends: list[int]
    ends: list[int]

    @property
    def is_padded(self) -> bool:
        return any((*self.starts, *self.ends))


class LowerPools(GraphPass):
    """Slices and their maximum, mean or sum for pools with dilations or indices, and for LpPool."""

    name = "lower_pools"
    title = "Writing pools out"
    typed = True

    def needed(self, model: ir.Model) -> bool:
        """Whether there is such a pool, whose padding is known."""
        return bool(_pools(model))

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Write them out."""
        pools = _pools(model)
        names, opset = NameAuthority(model), opset_of(model)
        for node, windows in pools:
            if node.op_type != "MaxPool":  # sums of many elements
                node.metadata_props[KEEP_FP32_KEY] = "sums over windows"
            elif _has_indices(node):  # maxima are compared with elements of the same digits
                node.metadata_props[KEEP_FP32_KEY] = "places of maxima"
            _write_out(ArrayBuilder(node, names, opset), windows)
        return {"nodes": dict(Counter(node.op_type for node, _ in pools))}


def _pools(model: ir.Model) -> list[tuple[ir.Node, _PoolWindows]]:
    if opset_of(model) < _FIRST_OPSET:
        return []
    nodes = [node for node in all_nodes(model.graph) if _lacks(node)]
    if any(node.inputs[0] is not None and node.inputs[0].shape is None for node in nodes):
        infer_values(model)
    found = ((node, _windows(node)) for node in nodes)
    return [(node, windows) for node, windows in found if windows is not None]


def _lacks(node: ir.Node) -> bool:
    if node.domain or node.op_type not in POOLS:
        return False
    kind = dtype_of(node.inputs[0])
    if kind is None or not kind.is_floating_point():
        return False
    dilated = any(d != 1 for d in ints_of(node, "dilations"))
    return node.op_type == "LpPool" or dilated or _has_indices(node)


def _has_indices(node: ir.Node) -> bool:
    """Whether the places of the maxima are an output."""
    return node.op_type == "MaxPool" and len(node.outputs) > 1 and bool(node.outputs[1].name)


def _windows(node: ir.Node) -> _PoolWindows | None:
    """The windows of a pool; None where its padding, or what it divides by, is not known."""
    kernel = ints_of(node, "kernel_shape")
    rank = len(kernel)
    strides = ints_of(node, "strides") or [1] * rank
    dilations = ints_of(node, "dilations") or [1] * rank
    spans = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    extents = _spatial(node)
    if auto_pad.startswith("SAME"):
        padding = same_padding(spans, strides, extents, upper=auto_pad == "SAME_UPPER")
        if padding is None:
            return None
        starts, given = padding
        ends = given
    else:
        pads = (ints_of(node, "pads") if auto_pad == "NOTSET" else []) or [0] * 2 * rank
        starts, given = pads[:rank], pads[rank:]
        ends = given
        if auto_pad == "NOTSET" and node.attributes.get_int("ceil_mode", 0) != 0:
            ends = end_padding(kernel, strides, dilations, pads)
    windows = _PoolWindows(kernel, strides, dilations, starts, given, ends)
    is_static = extents is not None and all(isinstance(extent, int) for extent in extents)
    if node.op_type == "AveragePool" and windows.is_padded and not is_static:
        return None
    if _has_indices(node) and not (is_static and isinstance(_channels(node), int)):
        return None
    return windows


def _spatial(node: ir.Node) -> list[Any] | None:
    x = node.inputs[0]
    return None if x is None or x.shape is None else list(x.shape)[2:]


def _channels(node: ir.Node) -> Any:
    x = node.inputs[0]
    return None if x is None or x.shape is None else x.shape[1]


def _write_out(new: ArrayBuilder, windows: _PoolWindows) -> None:
    node = new.node
    (x,) = node.inputs
    assert x is not None  # noqa: S101  # for the type checker
    kind = dtype_of(x)
    assert kind is not None  # noqa: S101  # for the type checker
    power = _power(node)
    if node.op_type == "LpPool":
        x = new.add("Abs", [x])
        x = new.add("Pow", [x, _number(new, power, kind)]) if power != 1 else x
    neutral = -math.inf if node.op_type == "MaxPool" else 0
    elements = _elements(new, _padded(new, x, windows, neutral, kind), windows)
    found = new.add("Max" if node.op_type == "MaxPool" else "Sum", elements)
    if node.op_type == "AveragePool":
        found = new.add("Div", [found, new.constant(_counts(node, windows).astype(kind.numpy()))])
    if node.op_type == "LpPool" and power != 1:
        found = new.add("Pow", [found, _number(new, 1 / power, kind)])
    places = [_places(new, x, elements, found, windows)] if _has_indices(node) else []
    new.replace(found, *places, *[None] * (len(node.outputs) - 1 - len(places)))


def _places(
    new: ArrayBuilder,
    x: ir.Value,
    elements: Sequence[ir.Value],
    maxima: ir.Value,
    windows: _PoolWindows,
) -> ir.Value:
    """Indices of the maxima in the flat input; of equal ones the first in the window."""
    node, extents = new.node, _spatial(new.node) or []
    rank = len(extents)
    stacked = new.op("Concat", *(new.unsqueeze(one, [2]) for one in elements), axis=2)
    is_maximum = new.op("Equal", stacked, new.unsqueeze(maxima, [2]), kind=BOOL)
    numbers = np.arange(len(elements)).reshape([-1, *[1] * rank])
    chosen = new.op("Where", is_maximum, numbers, numbers[-1:], kind=INT64)
    chosen = new.reduce("ReduceMin", chosen, [2])
    steps = [math.prod(extents[i + 1 :]) for i in range(rank)]
    if node.attributes.get_int("storage_order", 0):
        steps = [math.prod(extents[:i]) for i in range(rank)]
    offsets = [
        sum(i * d * step for i, d, step in zip(place, windows.dilations, steps, strict=True))
        for place in itertools.product(*map(range, windows.kernel))
    ]
    found = new.op("Gather", np.array(offsets), chosen, kind=INT64, axis=0)
    for axis, step in enumerate(steps):
        starts = np.arange(_count(windows, axis, extents[axis])) * windows.strides[axis]
        starts = (starts - windows.starts[axis]) * step
        found = new.op("Add", found, starts.reshape([-1, *[1] * (rank - 1 - axis)]))
    image, channels = math.prod(extents), _channels(node)
    batch = new.op("Gather", new.op("Shape", x, kind=INT64), np.array(0), axis=0)
    planes = new.op("Mul", batch, np.array(channels))
    planes = new.op("Range", np.array(0), planes, np.array(1), kind=INT64)
    planes = new.reshape(new.op("Mul", planes, np.array(image)), [-1, channels, *[1] * rank])
    return new.op("Add", found, planes)


def _count(windows: _PoolWindows, axis: int, extent: int) -> int:
    """The number of windows on an axis."""
    span = (windows.kernel[axis] - 1) * windows.dilations[axis]
    padded = windows.starts[axis] + extent + windows.ends[axis]
    return (padded - span - 1) // windows.strides[axis] + 1


def _power(node: ir.Node) -> float:
    given = node.attributes.get("p")  # a float at opset 1
    return 2.0 if given is None else float(given.value)


def _number(new: ArrayBuilder, number: float, kind: ir.DataType) -> ir.Value:
    return new.constant(np.asarray(number, kind.numpy()))


def _padded(
    new: ArrayBuilder, x: ir.Value, windows: _PoolWindows, value: float, kind: ir.DataType
) -> ir.Value:
    if not windows.is_padded:
        return x
    around = new.constant(np.array([0, 0, *windows.starts, 0, 0, *windows.ends]))
    return new.add("Pad", [x, around, _number(new, value, kind)])


def _elements(new: ArrayBuilder, x: ir.Value, windows: _PoolWindows) -> list[ir.Value]:
    """The slice of each element of the windows."""
    axes = new.constant(np.arange(2, 2 + len(windows.kernel)))
    steps = new.constant(np.array(windows.strides))
    found = []
    for place in itertools.product(*map(range, windows.kernel)):
        starts, ends = [], []
        for index, size, dilation in zip(place, windows.kernel, windows.dilations, strict=True):
            behind = (size - 1 - index) * dilation
            starts.append(index * dilation)
            ends.append(-behind if behind else _LAST)
        bounds = (new.constant(np.array(side)) for side in (starts, ends))
        found.append(new.add("Slice", [x, *bounds, axes, steps]))
    return found


def _counts(node: ir.Node, windows: _PoolWindows) -> np.ndarray[Any, Any]:
    """The number of elements that each window of a mean counts: a number, or (1, 1, ...)."""
    rank = len(windows.kernel)
    if not windows.is_padded:
        return np.array(math.prod(windows.kernel))
    includes = bool(node.attributes.get_int("count_include_pad", 0))
    counts = np.ones([1] * (2 + rank))
    for axis, extent in enumerate(_spatial(node) or []):
        start = windows.starts[axis]
        inside = np.arange(windows.kernel[axis]) * windows.dilations[axis]
        first = np.arange(_count(windows, axis, extent)) * windows.strides[axis]
        places = first[:, None] + inside
        low, high = (0, start + extent + windows.given_ends[axis])
        if not includes:
            low, high = start, start + extent
        counted = ((places >= low) & (places < high)).sum(1)
        counts = counts * counted.reshape([-1 if i == 2 + axis else 1 for i in range(2 + rank)])
    return counts
