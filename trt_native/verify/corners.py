"""Shapes at the corners of a plan's optimization profiles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trt_native.graph.dims import dimension_symbols, evaluate_dimension
from trt_native.plans.manifest import PlanTensor
from trt_native.shapes import Shape, ShapeRange

__all__ = ["Corner", "profile_corners"]

_REST = ""  # the axes without a dimension of their own, which all go to the same end


@dataclass(frozen=True, slots=True)
class Corner:
    """Shapes of all inputs for one run.

    Attributes:
        label: The extents that it is about, such as ``batch=1, height=64``.
        shapes: For each input with a dynamic shape the shape.
        values: For each input that is itself a shape its values.
        mixed: Whether some dimensions are at their minimum and others at their maximum. A model
            may not allow that where dimensions depend on each other.
    """

    label: str
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    values: Mapping[str, Shape] = field(default_factory=dict)
    mixed: bool = False


def profile_corners(inputs: Sequence[PlanTensor], most: int) -> list[Corner]:
    """The optimum of each profile, and every combination of minima and maxima of its dimensions.

    Axes that name the same dimension move together, expressions of dimensions follow them, and the
    axes without a name form one dimension. The optimum comes first, then all minima, then all
    maxima; of the other combinations those that fit into ``most``.

    Args:
        inputs: The plan's inputs.
        most: Corners of each profile at most, besides its optimum.

    Returns:
        The corners, each shape once; a single one for a plan of static shapes.
    """
    count = max((len(t.profiles or t.values) for t in inputs), default=0)
    found: list[Corner] = []
    for index in range(max(1, count)):
        profile = _Profile(inputs, index, f"profile {index}: " if count > 1 else "")
        found += itertools.islice(profile.corners(), 1 + most)
    unique: dict[object, Corner] = {}
    for corner in found:
        key = tuple(sorted((*corner.shapes.items(), *corner.values.items())))
        unique.setdefault(key, corner)
    return list(unique.values())


class _Profile:
    def __init__(self, inputs: Sequence[PlanTensor], index: int, where: str) -> None:
        self._where = where
        self._shapes = {t.name: t.profiles[index] for t in inputs if len(t.profiles) > index}
        self._values = {t.name: t.values[index] for t in inputs if len(t.values) > index}
        self._names = {t.name: t.dims or (None,) * len(t.shape) for t in inputs}
        self._dims: dict[str, tuple[int, int, int]] = {}
        for name, ranges in self._shapes.items():
            for axis, dim in enumerate(self._names[name]):
                if dim is not None and dimension_symbols(dim) == {dim}:
                    self._dims[dim] = ranges.min[axis], ranges.opt[axis], ranges.max[axis]

    def corners(self) -> Iterator[Corner]:
        moving = sorted(dim for dim, (low, _, high) in self._dims.items() if low < high)
        if self._rest_moves():
            moving.append(_REST)
        if optimum := self._corner(dict.fromkeys(moving, 1), moving):
            yield optimum
        uniform = [dict.fromkeys(moving, end) for end in (0, 2)] if moving else []
        others = itertools.product((0, 2), repeat=len(moving))
        mixed = (dict(zip(moving, ends, strict=True)) for ends in others if len(set(ends)) > 1)
        for ends in itertools.chain(uniform, mixed):
            if corner := self._corner(ends, moving):
                yield corner

    def _rest_moves(self) -> bool:
        values = any(r.min != r.max for r in self._values.values())
        return values or any(
            ranges.min[axis] < ranges.max[axis] and self._extent(dim, {}) is None
            for name, ranges in self._shapes.items()
            for axis, dim in enumerate(self._names[name])
        )

    def _corner(self, ends: Mapping[str, int], moving: Sequence[str]) -> Corner | None:
        """The corner; None where an expression of dimensions leaves its range."""
        shapes = {}
        for name, ranges in self._shapes.items():
            shape = []
            for axis, dim in enumerate(self._names[name]):
                extent = self._extent(dim, ends)
                rest = _bounds(ranges)[ends.get(_REST, 1)][axis]
                shape.append(rest if extent is None else extent)
            shapes[name] = tuple(shape)
            if not ranges.contains(shapes[name]):
                return None
        rest = ends.get(_REST, 1)
        values = {name: _bounds(ranges)[rest] for name, ranges in self._values.items()}
        return Corner(
            self._where + self._label(ends, moving), shapes, values, len({*ends.values()}) > 1
        )

    def _extent(self, dim: str | None, ends: Mapping[str, int]) -> int | None:
        """The extent of a dimension or of an expression of dimensions; None for another axis."""
        if dim is None or not dimension_symbols(dim) <= set(self._dims):
            return None
        extents = {name: bounds[ends.get(name, 1)] for name, bounds in self._dims.items()}
        if dim in extents:
            return extents[dim]
        found = evaluate_dimension(dim, extents)
        return found if isinstance(found, int) else None

    def _label(self, ends: Mapping[str, int], moving: Sequence[str]) -> str:
        if not moving or 1 in ends.values():
            return "opt"
        words = [f"{name}={self._dims[name][ends[name]]}" for name in moving if name]
        if _REST in moving:
            words.append(("unnamed axes " if words else "") + ("min", "", "max")[ends[_REST]])
        return ", ".join(words)


def _bounds(ranges: ShapeRange) -> tuple[Shape, Shape, Shape]:
    return ranges.min, ranges.opt, ranges.max
