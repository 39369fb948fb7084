"""The rule of :mod:`~trt_native.passes.lower_operators` for ``Resize``.

Along each axis an element of the result is a weighted sum of elements, or an extrapolated value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from trt_native.arrays import Array
from trt_native.graph.nodes import FLOAT
from trt_native.passes.array_builder import ArrayBuilder, CopiedAxis, OperatorRule, Site

__all__ = ["RULES"]

_FIRST_OPSET = 11  # before, Resize is another operator
_MOST_TERMS = 1 << 22  # weights of an axis

Write = Callable[[ArrayBuilder], None]


@dataclass(frozen=True)
class _ResizedAxis:
    """An axis that changes.

    Attributes:
        axis: Its place.
        indices: The elements that are added for each of the result, (terms, size).
        weights: Their factors, of the same shape.
        outside: Which elements of the result lie outside of the input, (size,).
    """

    axis: int
    indices: Array
    weights: Array
    outside: Array


@dataclass(frozen=True)
class _Kernel:
    """How elements are weighted; attributes as those of ``Resize``."""

    mode: str
    nearest_mode: str
    antialias: bool
    cubic_coeff_a: float
    exclude_outside: bool
    coordinates: str


def _resize(site: Site) -> Write | None:
    kernel = _kernel(site)
    extents = site.extents(0)
    if extents is None or kernel is None or site.opset < _FIRST_OPSET:
        return None
    given = site.ints("axes") or list(range(len(extents)))
    axes = [axis % len(extents) for axis in given]
    changes = _changes(site, extents, axes)
    roi = site.constant(1)
    crops = kernel.coordinates == "tf_crop_and_resize"
    if changes is None or (
        crops and (roi is None or roi.size != 2 * len(axes) or not np.isfinite(roi).all())
    ):
        return None
    resized = []
    for i, (extent, scale, size) in enumerate(changes):
        window = (0.0, 1.0)
        if crops and roi is not None:
            window = float(roi[i]), float(roi[i + len(axes)])
        if scale == 1 and window == (0, 1) and extent in (size, None):
            continue
        if (
            extent is None
            or extent < 1
            or size < 1
            or (4 * max(1, 1 / float(scale)) + 4) * size > _MOST_TERMS
        ):
            return None
        resized.append(_axis(kernel, axes[i], extent, scale, size, window))
    fill = site.node.attributes.get_float("extrapolation_value", 0.0)
    kind, rank = site.kind(), len(extents)
    moves = all((axis.weights == 1).all() and len(axis.indices) == 1 for axis in resized)

    def write(new: ArrayBuilder) -> None:
        x = new.node.inputs[0]
        assert x is not None  # noqa: S101  # for the type checker
        value = new.op("Identity", x) if moves or kind is FLOAT else new.wide(x)
        for one in resized:
            value = new.weighted(value, one.axis, rank, one.indices, one.weights)
            if one.outside.any():
                mask = one.outside.reshape([-1, *[1] * (rank - one.axis - 1)])
                value = new.op("Where", mask, new.number(fill, value), value, kind=value.dtype)
        new.finish(value)

    if not moves and (kind is None or not kind.is_floating_point()):
        return None  # how weighted sums of whole numbers are rounded is not specified
    return write


def _kernel(site: Site) -> _Kernel | None:
    """The kind of interpolation; None where ONNX does not say what it is."""
    kernel = _Kernel(
        mode=site.string("mode", "nearest"),
        nearest_mode=site.string("nearest_mode", "round_prefer_floor"),
        antialias=bool(site.int("antialias")),
        cubic_coeff_a=site.node.attributes.get_float("cubic_coeff_a", -0.75),
        exclude_outside=bool(site.int("exclude_outside")),
        coordinates=site.string("coordinate_transformation_mode", "half_pixel"),
    )
    nearest = kernel.mode == "nearest"
    known = nearest or kernel.mode in ("linear", "cubic")
    return kernel if known and not (nearest and kernel.antialias) else None


def _changes(
    site: Site, extents: list[int | None], axes: list[int]
) -> list[tuple[int | None, Fraction, int]] | None:
    """Extent, scale and new extent of each axis; None where one that changes is not known."""
    scales = site.constant(2)
    found = [extents[axis] for axis in axes]
    if scales is not None and scales.size:
        if len(scales) != len(axes) or not np.isfinite(scales).all():
            return None
        factors = [Fraction(float(scale)) for scale in scales]
        pairs = list(zip(found, factors, strict=True))
        if any(extent is None and scale != 1 for extent, scale in pairs):
            return None
        return [(extent, scale, math.floor((extent or 0) * scale)) for extent, scale in pairs]
    wanted = _sizes(site, found, axes)
    if wanted is None:
        return None
    ratios = [
        Fraction(size, extent or size or 1) for size, extent in zip(wanted, found, strict=True)
    ]
    policy = site.string("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return list(zip(found, ratios, wanted, strict=True))
    if policy not in ("not_larger", "not_smaller") or None in found:
        return None
    ratio = (min if policy == "not_larger" else max)(ratios)
    half = Fraction(1, 2)
    return [(extent, ratio, math.floor(ratio * (extent or 0) + half)) for extent in found]


def _sizes(site: Site, extents: list[int | None], axes: list[int]) -> list[int] | None:
    """The new extents, 1 for an unknown one that stays; None where they are unknown."""
    sizes = site.elements(3, 0)
    if sizes is None or len(sizes) != len(axes):
        return None
    found = []
    for axis, extent, size in zip(axes, extents, sizes, strict=True):
        stays = isinstance(size, CopiedAxis) and size.axis == axis
        if not stays and (extent is None or isinstance(size, CopiedAxis)):
            return None
        found.append(size if isinstance(size, int) else extent or 1)
    return found


def _axis(
    kernel: _Kernel, axis: int, extent: int, scale: Fraction, size: int, window: tuple[float, float]
) -> _ResizedAxis:
    places = _places(kernel.coordinates, extent, scale, size, window)
    outside = np.zeros(size, bool)
    if kernel.coordinates == "tf_crop_and_resize":
        outside = (places < 0) | (places > extent - 1)
        places = np.where(outside, 0, places)
    if kernel.mode == "nearest":
        indices = _nearest(places, kernel.nearest_mode)[None]
        weights = np.ones(indices.shape)
    else:
        indices, weights = _weights(
            places, kernel, min(float(scale), 1.0) if kernel.antialias else 1.0
        )
    if kernel.exclude_outside:
        weights = np.where((indices < 0) | (indices >= extent), 0, weights)
        total = weights.sum(axis=0)
        weights = weights / np.where(total == 0, 1, total)
    indices = np.clip(indices, 0, extent - 1)
    used = np.flatnonzero(weights.any(axis=1))
    used = used if used.size else np.array([0])
    return _ResizedAxis(axis, indices[used].astype(np.int64), weights[used], outside)


def _places(
    coordinates: str, extent: int, scale: Fraction, size: int, window: tuple[float, float]
) -> Array:
    """Where in the input the elements of the result lie, exact before they become FP64."""
    start, end = map(Fraction, window)
    whole, half = scale * extent, Fraction(1, 2)  # ONNX's resized length before it is rounded

    def place(x: int) -> Fraction:
        if coordinates == "align_corners":
            return Fraction(0) if whole == 1 else x * (extent - 1) / (whole - 1)
        if coordinates == "tf_crop_and_resize":
            inside = half if whole == 1 else x / (whole - 1)
            return (start + inside * (end - start)) * (extent - 1)
        if coordinates == "asymmetric":
            return x / scale
        if coordinates == "tf_half_pixel_for_nn":
            return (x + half) / scale
        if coordinates == "pytorch_half_pixel" and size == 1:
            return Fraction(0)
        is_centered = coordinates == "half_pixel_symmetric"
        middle = half * extent * (1 - size / whole) if is_centered else 0
        return middle + (x + half) / scale - half

    return np.array([float(place(x)) for x in range(size)])


def _nearest(places: Array, rounding: str) -> Array:
    ways: dict[str, Callable[[Array], Any]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    }
    found: Array = ways[rounding](places)
    return found


def _weights(places: Array, kernel: _Kernel, scale: float) -> tuple[Array, Array]:
    """Elements around each place and their factors, each (terms, size).

    Args:
        places: Where the elements of the result lie in the input.
        kernel: The interpolation.
        scale: Below 1, the kernel covers more elements by its inverse.
    """
    reach = 1 if kernel.mode == "linear" else 2
    first = math.floor(-reach / scale) + 1
    # The left one of two elements counts as the one below a place on an element.
    base = np.ceil(places) - 1
    steps = np.arange(first, 2 - first)[:, None]
    distances = np.abs((base + steps - places) * scale)
    if kernel.mode == "linear":
        weights = np.clip(1 - distances, 0, 1)
    else:
        weights = _cubic(distances, kernel.cubic_coeff_a)
    return base + steps, weights / weights.sum(axis=0)


def _cubic(x: Array, a: float) -> Array:
    """Keys' cubic convolution of distances."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


RULES: Mapping[str, OperatorRule] = {"Resize": _resize}
