"""Resize, Upsample, GridSample and RoiAlign."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op

from trt_native.arrays import Array
from trt_native.reference.kernels import Kernel, widened

__all__ = ["KERNELS"]

_Tap: TypeAlias = tuple[Array, Array]
"""Indices along an axis, and the weights of the values there."""

_resize_of_onnx: Any = load_op("", "Resize", 19)
_roi_align_of_onnx: Any = load_op("", "RoiAlign", 22)
# (x + 0.5) / scale, rounded one way, is half a pixel less, rounded another.
_FOR_NEAREST_OF_TF = {"floor": "round_prefer_ceil", "round_prefer_floor": "ceil"}
_RESIZE_DEFAULTS: dict[str, Any] = {
    "antialias": 0,
    "cubic_coeff_a": -0.75,
    "exclude_outside": 0,
    "extrapolation_value": 0.0,
    "keep_aspect_ratio_policy": "stretch",
    "nearest_mode": "round_prefer_floor",
}


def _upsample(
    node: OpRun, x: Array, scales: Array | Sequence[float], *, mode: str
) -> tuple[Array, ...]:
    """Upsample, and Resize 10: from the corner, and down to the nearest."""
    factors = np.asarray(scales, np.float64)
    steps = np.rint(1 / factors)
    whole = np.abs(1 / factors - steps) < 1e-5
    if mode == "nearest" and ((factors < 1) & ~whole).any():
        raise NotImplementedError(
            "before opset 11 it is not specified which value is nearest where scales reduce"
        )
    factors = np.where(whole, 1 / np.maximum(steps, 1), factors)
    values = _resized(
        node,
        x.astype(np.float64),
        scales=factors,
        mode="linear" if mode == "bilinear" else mode,
        coordinate_transformation_mode="asymmetric",
        **(_RESIZE_DEFAULTS | {"nearest_mode": "floor"}),
    )
    return (onnx.numpy_helper.saturate_cast(values, x.dtype),)


def _resize(
    node: OpRun,
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str,
    **options: Any,
) -> tuple[Array]:
    options = {**_RESIZE_DEFAULTS, **options}
    scales = None if scales is None or scales.size == 0 else scales
    if coordinate_transformation_mode == "tf_half_pixel_for_nn":
        rounding = options["nearest_mode"]
        if options["mode"] != "nearest" or rounding not in _FOR_NEAREST_OF_TF:
            raise NotImplementedError(f"tf_half_pixel_for_nn with {options['mode']} {rounding}")
        options["nearest_mode"] = _FOR_NEAREST_OF_TF[rounding]
        coordinate_transformation_mode = "half_pixel"
    values = x.astype(np.float64)
    options |= {"coordinate_transformation_mode": coordinate_transformation_mode}
    chosen = [axis % x.ndim for axis in (range(x.ndim) if axes is None else axes)]
    if coordinate_transformation_mode == "pytorch_half_pixel":
        values = _to_one(node, values, chosen, scales, sizes, options)
        kept = [i for i, axis in enumerate(chosen) if values.shape[axis] == x.shape[axis]]
        chosen = [chosen[i] for i in kept]
        scales = None if scales is None else scales[kept]
        sizes = None if sizes is None else sizes[kept]
    if chosen:
        limits = {"roi": roi, "scales": scales, "sizes": sizes}
        values = _resized(node, values, axes=chosen, **limits, **options)
    return (onnx.numpy_helper.saturate_cast(values, x.dtype),)


def _to_one(
    node: OpRun,
    values: Array,
    axes: Sequence[int],
    scales: Array | None,
    sizes: Array | None,
    options: dict[str, Any],
) -> Array:
    """Reduce those axes that end with one element, which is taken at coordinate 0."""
    if options["keep_aspect_ratio_policy"] != "stretch":
        return values
    for i, axis in enumerate(axes):
        extent = values.shape[axis]
        new = int(sizes[i]) if scales is None and sizes is not None else int(extent * scales[i])  # type: ignore[index]
        if new == 1 and extent > 1:
            limits = (
                {"scales": scales[i : i + 1]} if scales is not None else {"sizes": np.array([1])}
            )
            corner = {**options, "coordinate_transformation_mode": "asymmetric"}
            values = _resized(node, values, axes=[axis], **limits, **corner)
    return values


def _resized(node: OpRun, x: Array, roi: Array | None = None, **options: Any) -> Array:
    found: Array = _resize_of_onnx._run(node, x, roi, **options)[0]
    return found


def _roi_align(
    node: OpRun, x: Array, rois: Array, batch_indices: Array, **options: Any
) -> tuple[Array]:
    """RoiAlign 10, which knows no half pixels."""
    options["coordinate_transformation_mode"] = "output_half_pixel"
    runner = _roi_align_of_onnx(node.onnx_node, node.run_params)
    found: tuple[Array] = runner._run(widened(x), widened(rois), batch_indices, **options)
    return (found[0].astype(x.dtype),)


def _grid_sample(
    _node: OpRun, x: Array, grid: Array, *, mode: str, padding_mode: str, align_corners: int
) -> tuple[Array]:
    values, grid = widened(x), widened(grid)
    extents = x.shape[2:]
    taps = []
    for axis, extent in enumerate(extents):
        at = grid[..., len(extents) - 1 - axis] + 1
        position = at / 2 * (extent - 1) if align_corners else (at * extent - 1) / 2
        taps.append(_taps(position, extent, mode.removeprefix("bi"), padding_mode, align_corners))
    batch = np.arange(x.shape[0]).reshape(-1, *[1] * len(extents))
    by_channel = np.moveaxis(values, 1, -1)
    found = np.zeros((*grid.shape[:-1], x.shape[1]), values.dtype)
    for corner in itertools.product(*taps):
        weight = np.prod([weights for _, weights in corner], axis=0)
        where: Any = (batch, *(index for index, _ in corner))
        found += by_channel[where] * weight[..., np.newaxis]
    return (np.moveaxis(found, -1, 1).astype(x.dtype),)


def _taps(
    position: Array, extent: int, mode: str, padding_mode: str, align_corners: int
) -> list[_Tap]:
    """The values of an axis that a position is interpolated from."""
    if mode != "cubic":  # where single values are moved inside, as in PyTorch
        position = _inside(position, extent, padding_mode, align_corners)
    if mode == "nearest":
        position = np.rint(position)
    start = np.floor(position)
    fraction = position - start
    weights = {"nearest": _nearest, "linear": _linear, "cubic": _cubic}[mode](fraction)
    taps = []
    for offset, weight in weights.items():
        index = start + offset
        if mode == "cubic":
            index = _inside(index, extent, padding_mode, align_corners)
        outside = (index < 0) | (index >= extent)
        taps.append((np.clip(index, 0, extent - 1).astype(np.int64), np.where(outside, 0, weight)))
    return taps


def _inside(position: Array, extent: int, padding_mode: str, align_corners: int) -> Array:
    if padding_mode == "zeros":
        return position
    if padding_mode == "reflection":
        low, high = (0, extent - 1) if align_corners else (-0.5, extent - 0.5)
        length = high - low
        if length == 0:
            return np.zeros_like(position)
        turns = np.abs(position - low) % (2 * length)
        position = low + np.minimum(turns, 2 * length - turns)
    return np.clip(position, 0, extent - 1)


def _nearest(fraction: Array) -> dict[int, Array]:
    return {0: np.ones_like(fraction)}


def _linear(fraction: Array) -> dict[int, Array]:
    return {0: 1 - fraction, 1: fraction}


def _cubic(fraction: Array, a: float = -0.75) -> dict[int, Array]:
    """Keys' cubic convolution."""

    def near(t: Array) -> Array:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: Array) -> Array:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    return {-1: far(fraction + 1), 0: near(fraction), 1: near(1 - fraction), 2: far(2 - fraction)}


KERNELS = (
    Kernel("Upsample", _upsample, since=7),
    Kernel("Resize", _upsample, since=10, below=11),
    Kernel("Resize", _resize, since=11),
    Kernel("RoiAlign", _roi_align, since=10, below=16),
    Kernel("GridSample", _grid_sample),
)
