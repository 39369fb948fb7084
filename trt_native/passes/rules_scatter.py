"""Rules of :mod:`~trt_native.passes.lower_operators` for operators that write into an array."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.passes.array_builder import BOOL, INT64, ArrayBuilder, OperatorRule, Site

__all__ = ["RULES"]

_FIRST_OPSET = 11  # which has ScatterElements
_MOST_TERMS = 1 << 22  # constant indices
_MOST_COMPARED = 1 << 24  # pairs of elements and indices

Write = Callable[[ArrayBuilder], None]


class _Reduction(NamedTuple):
    """How updates of one element are joined, with each other and with the element."""

    operator: str
    reduces: str

    def neutral(self, kind: ir.DataType) -> float:
        """The number that changes nothing."""
        if self.operator in ("Add", "Mul"):
            return 0 if self.operator == "Add" else 1
        if kind.is_floating_point():
            return -math.inf if self.operator == "Max" else math.inf
        limits = np.iinfo(kind.numpy())
        return limits.min if self.operator == "Max" else limits.max


_REDUCTIONS = {
    "add": _Reduction("Add", "ReduceSum"),
    "mul": _Reduction("Mul", "ReduceProd"),
    "max": _Reduction("Max", "ReduceMax"),
    "min": _Reduction("Min", "ReduceMin"),
}


def _scatter_nd(site: Site) -> Write | None:
    reduction, extents, kind = _of_scatter(site)
    if reduction is None or not extents or kind is None:
        return None
    indices, given = site.constant(1), site.extents(1)
    if indices is None:
        depth = given[-1] if given else None
        return _scatter_nd_by_masks(site, reduction, kind, depth) if depth else None
    shape = list(indices.shape)
    depth, count = shape[-1], math.prod(shape[:-1])
    rest = [-1 if extent is None else extent for extent in extents[depth:]]
    if rest.count(-1) > 1 or 0 in shape:
        return None
    places = _positive(indices.reshape(-1, depth), extents[:depth])
    table = None if places is None else _join_table(places)
    if places is None or table is None:
        return None

    def write(new: ArrayBuilder) -> None:
        data, _, updates = new.node.inputs
        flat = updates if len(shape) == 2 else new.reshape(updates, [count, *rest])
        new.finish(_joined(new, data, places, table, flat, 1 + len(rest), reduction, kind))

    return write


def _scatter_elements(site: Site) -> Write | None:
    reduction, extents, kind = _of_scatter(site)
    if reduction is None or not extents or kind is None:
        return None
    axis = site.int("axis") % len(extents)
    indices = site.constant(1)
    if indices is None:
        return _scatter_elements_by_masks(site, reduction, kind, axis)
    shape = indices.shape
    if 0 in shape:
        return None
    found = _positive(indices.reshape(-1, 1), [extents[axis]])
    if found is None:
        return None
    places = np.stack([one.reshape(-1) for one in np.indices(shape)], axis=1)
    places[:, axis] = found[:, 0]
    table = _join_table(places)
    if table is None:
        return None

    def write(new: ArrayBuilder) -> None:
        data, _, updates = new.node.inputs
        flat = new.reshape(updates, [-1])
        new.finish(_joined(new, data, places, table, flat, 1, reduction, kind))

    return write


def _of_scatter(
    site: Site,
) -> tuple[_Reduction | None, list[int | None] | None, ir.DataType | None]:
    return _REDUCTIONS.get(site.string("reduction", "none")), site.extents(0), site.kind()


def _positive(places: Array, extents: Sequence[int | None]) -> Array | None:
    """Places counted from the start; None where the extent that negative ones need is unknown."""
    if any(extent is None and (places[:, i] < 0).any() for i, extent in enumerate(extents)):
        return None
    ends = np.array([extent or 0 for extent in extents])
    return np.where(places < 0, places + ends, places).astype(np.int64)


def _join_table(places: Array) -> Array | None:
    """Which updates belong to each distinct place in order, (most updates, places).

    Where a place has fewer, the number of updates stands. None where that is too large.
    """
    _, groups, counts = np.unique(places, axis=0, return_inverse=True, return_counts=True)
    groups = groups.reshape(-1)
    if counts.max() * len(counts) > _MOST_TERMS:
        return None
    order = np.argsort(groups, kind="stable")
    starts = np.cumsum(counts) - counts
    table = np.full((counts.max(), len(counts)), len(places))
    table[np.arange(len(places)) - starts[groups[order]], groups[order]] = order
    return table


def _joined(
    new: ArrayBuilder,
    data: ir.Value | None,
    places: Array,
    table: Array,
    updates: ir.Value | None,
    rank: int,
    reduction: _Reduction,
    kind: ir.DataType,
) -> ir.Value:
    """Data with updates (number, ...) joined to the elements or parts at their places."""
    assert updates is not None  # noqa: S101  # for the type checker
    if len(table) > 1:
        if (table == len(places)).any():
            updates = new.pad(updates, rank, 0, 0, 1, reduction.neutral(kind))
        terms = new.op("Gather", updates, table, axis=0)
        updates = new.reduce(reduction.reduces, terms, [0])
    else:
        updates = new.op("Gather", updates, table[0], axis=0)
    distinct = places[table[0]]
    present = new.op("GatherND", data, distinct)
    return new.op("ScatterND", data, distinct, new.op(reduction.operator, present, updates))


def _scatter_nd_by_masks(
    site: Site, reduction: _Reduction, kind: ir.DataType, depth: int
) -> Write | None:
    """Compare every index with every place: several may name one place."""
    extents, shape = site.extents(0), site.extents(1)
    if not extents or not shape or None in extents[1:]:
        return None
    outer, inner = extents[:depth], math.prod(extent or 1 for extent in extents[depth:])
    compared = math.prod(extent or 1 for extent in (*outer, *shape[:-1], inner))
    if compared > _MOST_COMPARED:
        return None
    strides = [math.prod(extent or 1 for extent in outer[i + 1 :]) for i in range(depth)]

    def write(new: ArrayBuilder) -> None:
        data, given, updates = new.node.inputs
        sizes = new.slice(new.op("Shape", data, kind=INT64), 0, 0, depth)
        indices = new.cast(new.reshape(given, [-1, depth]), INT64)
        indices = _from_start(new, indices, sizes)
        linear = new.reduce("ReduceSum", new.op("Mul", indices, np.array(strides)), [1])
        count = new.op("Mul", new.extent(data, 0), np.array([strides[0]]))
        mask = new.op("Equal", _numbers(new, count), linear, kind=BOOL)
        terms = new.op(
            "Where", new.unsqueeze(mask, [2]), new.reshape(updates, [1, -1, inner]),
            new.number(reduction.neutral(kind), data), kind=kind,
        )  # fmt: skip
        added = new.reduce(reduction.reduces, terms, [1])
        found = new.op(reduction.operator, new.reshape(data, [-1, inner]), added)
        new.finish(new.op("Reshape", found, new.op("Shape", data, kind=INT64)))

    return write


def _scatter_elements_by_masks(
    site: Site, reduction: _Reduction, kind: ir.DataType, axis: int
) -> Write | None:
    """Compare every index with every place of its axis: several may name one place."""
    extents, shape = site.extents(0), site.extents(1)
    if not extents or not shape:
        return None
    if math.prod(extent or 1 for extent in (*shape, extents[axis])) > _MOST_COMPARED:
        return None
    rank = len(extents)
    order = [*(i for i in range(rank) if i != axis), axis]
    back = [int(i) for i in np.argsort(order)]
    pairs = zip(extents, shape, strict=True)
    fills = all(i == axis or (one == two and one is not None) for i, (one, two) in enumerate(pairs))

    def write(new: ArrayBuilder) -> None:
        data, given, updates = new.node.inputs
        size = new.extent(data, axis)
        indices = _from_start(new, new.cast(given, INT64), size)
        indices = new.unsqueeze(new.op("Transpose", indices, perm=order), [rank - 1])
        updates = new.unsqueeze(new.op("Transpose", updates, perm=order), [rank - 1])
        mask = new.op("Equal", indices, _numbers(new, size), kind=BOOL)
        neutral = new.number(reduction.neutral(kind), data)
        terms = new.op("Where", mask, updates, neutral, kind=kind)
        added = new.reduce(reduction.reduces, terms, [rank])
        added = new.op("Transpose", added, perm=back)
        if not fills:  # the indices may cover a part of the other axes
            shapes = [new.op("Shape", one, kind=INT64) for one in (data, added)]
            pads = new.op("Concat", np.zeros(rank, np.int64), new.op("Sub", *shapes), axis=0)
            added = new.op("Pad", added, pads, neutral)
        new.finish(new.op(reduction.operator, data, added))

    return write


def _numbers(new: ArrayBuilder, count: ir.Value) -> ir.Value:
    """The numbers from 0 on, (count, 1); the count is a vector of one element."""
    limit = new.reshape(count, [])
    numbers = new.op("Range", np.array(0), limit, np.array(1), kind=INT64)
    return new.reshape(numbers, [-1, 1])


def _from_start(new: ArrayBuilder, indices: ir.Value, extents: ir.Value) -> ir.Value:
    """Indices counted from the start of their axes."""
    is_behind = new.op("Less", indices, np.array(0), kind=BOOL)
    return new.op("Where", is_behind, new.op("Add", indices, extents), indices, kind=INT64)


def _tensor_scatter(site: Site) -> Write | None:
    """Choose between the cache and the update at each place."""
    cache, update = site.extents(0), site.extents(1)
    if not cache or not update or len(cache) < 3:
        return None
    axis = site.int("axis", -2) % len(cache)
    size, count = cache[axis], update[axis]
    if not size or not count or axis == 0:
        return None
    rank, circular = len(cache), site.string("mode", "linear") == "circular"
    length, most = size, count

    def write(new: ArrayBuilder) -> None:
        past, values = new.node.inputs[:2]
        starts = new.node.inputs[2] if site.has(2) else None
        if starts is None:
            first = new.extent(past, 0)
            starts = new.op("Expand", np.array([0]), first, kind=INT64)
        numbers = np.arange(length).astype((starts.dtype or INT64).numpy())
        places = new.op("Sub", numbers, new.unsqueeze(starts, [1]), kind=starts.dtype)
        if circular:
            behind = new.op("Less", places, new.number(0, places), kind=BOOL)
            around = new.op("Add", places, new.number(length, places))
            places = new.op("Where", behind, around, places, kind=places.dtype)
        inside = new.op(
            "And",
            new.op("GreaterOrEqual", places, new.number(0, places), kind=BOOL),
            new.op("Less", places, new.number(most, places), kind=BOOL),
        )
        chosen = new.op("Min", places, new.number(most - 1, places))
        chosen = new.cast(new.op("Max", chosen, new.number(0, places)), INT64)
        order = [0, axis, *(i for i in range(1, rank) if i != axis)]
        moved = new.op("Transpose", values, perm=order)
        found = new.op("GatherND", moved, new.unsqueeze(chosen, [2]), batch_dims=1)
        found = new.op("Transpose", found, perm=[int(i) for i in np.argsort(order)])
        mask = new.unsqueeze(inside, [i for i in range(1, rank) if i != axis])
        new.finish(new.op("Where", mask, found, past, kind=found.dtype))

    return write


def _max_unpool(site: Site) -> Write | None:
    """Write the elements into zeros at their flat indices."""
    extents, wanted = site.extents(0), site.constant(2)
    if not extents or None in extents[1:] or (wanted is None and site.has(2)):
        return None
    if site.opset < _FIRST_OPSET:
        return None
    spatial = [extent or 0 for extent in extents[2:]]
    rank, channels = len(spatial), extents[1] or 0
    kernel = site.ints("kernel_shape")
    strides = site.ints("strides") or [1] * rank
    pads = site.ints("pads") or [0] * 2 * rank
    sizes = [
        (extent - 1) * strides[i] - pads[i] - pads[i + rank] + kernel[i]
        for i, extent in enumerate(spatial)
    ]
    whole = sizes if wanted is None else [int(extent) for extent in wanted[2:]]
    if any(extent < size for extent, size in zip(whole, sizes, strict=True)):
        return None
    image = channels * math.prod(sizes)

    def write(new: ArrayBuilder) -> None:
        x, indices = new.node.inputs[:2]
        count = new.op("Mul", new.extent(x, 0), np.array([image]), kind=INT64)
        zeros = new.op("Expand", new.number(0, x), count, kind=x.dtype if x else None)
        flat = [new.reshape(one, [-1]) for one in (indices, x)]
        found = new.op("ScatterElements", zeros, *flat, axis=0)
        found = new.reshape(found, [-1, channels, *sizes])
        for axis, (extent, size) in enumerate(zip(whole, sizes, strict=True)):
            if extent > size:
                found = new.pad(found, 2 + rank, 2 + axis, 0, extent - size)
        new.finish(found)

    return write


RULES: Mapping[str, OperatorRule] = {
    "MaxUnpool": _max_unpool,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TensorScatter": _tensor_scatter,
}
