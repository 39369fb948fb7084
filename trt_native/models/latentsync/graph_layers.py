"""Layers of the U-Net as nodes: convolutions, products, norms, activations.

Statistics of norms, SiLU and GELU are in FP32, regardless of the graph's type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trt_native.models.latentsync.graph_writer import Extent, GraphWriter

__all__ = [
    "FLOAT",
    "Size",
    "add_conv",
    "add_gelu",
    "add_gemm",
    "add_group_norm",
    "add_layer_norm",
    "add_linear",
    "add_product",
    "add_silu",
    "as_images",
    "as_videos",
]

FLOAT = ir.DataType.FLOAT
_REDUCTION_AXES_OPSET = 18  # they are an input since then
_GELU_OPSET, _GROUP_NORM_OPSET = 20, 21  # operators in their present form
_LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Size:
    """Extents of activations: (images, channels, height, width).

    Attributes:
        batch: Videos.
        frames: Frames of each.
        images: Frames of all videos.
        height: Of an image.
        width: Of an image.
        pixels: Of an image.
    """

    batch: Extent
    frames: Extent
    images: Extent
    height: Extent
    width: Extent
    pixels: Extent


def as_images(w: GraphWriter, module: str, x: ir.Value, channels: int, size: Size) -> ir.Value:
    """(batch, frames, channels, height, width) as (images, channels, height, width)."""
    return w.reshape(module, x, (size.images, channels, size.height, size.width))


def as_videos(w: GraphWriter, module: str, x: ir.Value, channels: int, size: Size) -> ir.Value:
    """The inverse of :func:`as_images`."""
    return w.reshape(module, x, (size.batch, size.frames, channels, size.height, size.width))


# Products ----------------------------------------------------------------------------------------


def add_conv(
    w: GraphWriter,
    module: str,
    x: ir.Value,
    channels: int,
    size: Size,
    *,
    kernel: int = 3,
    stride: int = 1,
) -> ir.Value:
    """A convolution to ``channels`` of the given size."""
    inputs = [x, w.parameter(f"{module}.weight"), w.parameter(f"{module}.bias")]
    return w.add(
        module,
        "Conv",
        inputs,
        (size.images, channels, size.height, size.width),
        kernel_shape=[kernel, kernel],
        pads=[kernel // 2] * 4,
        strides=[stride, stride],
    )


def add_gemm(w: GraphWriter, module: str, x: ir.Value, channels: int) -> ir.Value:
    """A linear layer on (rows, inputs)."""
    inputs = [x, w.parameter(f"{module}.weight"), w.parameter(f"{module}.bias")]
    return w.add(module, "Gemm", inputs, (1, channels), transB=1)


def add_product(w: GraphWriter, module: str, x: ir.Value, channels: int) -> ir.Value:
    """A linear layer without bias on (tokens, sequences, inputs)."""
    assert x.shape is not None  # noqa: S101  # for the type checker
    inputs = [x, w.transposed(f"{module}.weight")]
    return w.add(module, "MatMul", inputs, (*x.shape[:-1], channels))


def add_linear(w: GraphWriter, module: str, x: ir.Value, channels: int) -> ir.Value:
    """A linear layer on (tokens, sequences, inputs)."""
    x = add_product(w, module, x, channels)
    return w.add(module, "Add", [x, w.parameter(f"{module}.bias")])


# Norms -------------------------------------------------------------------------------------------


def add_group_norm(
    w: GraphWriter,
    module: str,
    x: ir.Value,
    channels: int,
    size: Size,
    groups: int,
    eps: float,
    *,
    across_frames: bool = False,
) -> ir.Value:
    """GroupNorm of each image, or over all frames of each video.

    As the operator, whose statistics TensorRT takes in FP32 for tensors of any type: a cast around
    it would cost the kernel of one pass that TensorRT-RTX has for it. Groups of one channel are
    arithmetic: of those it makes another kernel, which fails on a single pixel whose place in the
    shape is dynamic.
    """
    if groups == channels:
        return _channel_norm(w, module, x, channels, size, eps, across_frames=across_frames)
    if not across_frames:
        return _grouped(w, module, x, channels, size, groups, eps, (size.images, channels))
    x = w.transpose(module, as_videos(w, module, x, channels, size), 0, 2, 1, 3, 4)
    x = _grouped(w, module, x, channels, size, groups, eps, (size.batch, channels, size.frames))
    return as_images(w, module, w.transpose(module, x, 0, 2, 1, 3, 4), channels, size)


def _grouped(
    w: GraphWriter,
    module: str,
    x: ir.Value,
    channels: int,
    size: Size,
    groups: int,
    eps: float,
    leading: tuple[Extent, ...],
) -> ir.Value:
    """The operator on (*leading, height, width), whose second axis is the channels."""
    if w.opset >= _GROUP_NORM_OPSET:
        inputs = [x, w.parameter(f"{module}.weight"), w.parameter(f"{module}.bias")]
        return w.add(module, "GroupNormalization", inputs, epsilon=eps, num_groups=groups)
    per_group = w.product(channels // groups, *leading[2:], size.pixels)
    h = w.flatten(module, x, (leading[0], groups), per_group)
    ones, zeros = w.constant(np.ones(groups)), w.constant(np.zeros(groups))
    h = w.add(module, "InstanceNormalization", [h, ones, zeros], epsilon=eps)
    h = w.reshape(module, h, (*leading, size.height, size.width))
    shape = (channels, *[1] * len(leading))
    h = w.add(module, "Mul", [h, w.parameter(f"{module}.weight", shape)])
    return w.add(module, "Add", [h, w.parameter(f"{module}.bias", shape)])


def _channel_norm(
    w: GraphWriter,
    module: str,
    x: ir.Value,
    channels: int,
    size: Size,
    eps: float,
    *,
    across_frames: bool,
) -> ir.Value:
    batch, frames = (size.batch, size.frames) if across_frames else (size.images, 1)
    h = w.cast(module, x, FLOAT)
    h = w.flatten(module, h, (batch, frames, channels), size.pixels)
    h = w.add(module, "Sub", [h, _mean(w, module, h, (batch, 1, channels, 1))])
    squares = w.add(module, "Mul", [h, h])
    variance = _mean(w, module, squares, (batch, 1, channels, 1))
    variance = w.add(module, "Add", [variance, w.constant(eps, FLOAT)])
    deviation = w.add(module, "Sqrt", [variance])
    h = w.add(module, "Mul", [h, w.add(module, "Reciprocal", [deviation])])
    h = as_images(w, module, h, channels, size)
    shape = (channels, 1, 1)
    h = w.add(module, "Mul", [h, w.parameter(f"{module}.weight", shape, FLOAT)])
    h = w.add(module, "Add", [h, w.parameter(f"{module}.bias", shape, FLOAT)])
    return w.cast(module, h, w.dtype)


def _mean(w: GraphWriter, module: str, x: ir.Value, extents: tuple[Extent, ...]) -> ir.Value:
    if w.opset < _REDUCTION_AXES_OPSET:
        return w.add(module, "ReduceMean", [x], extents, axes=[1, 3])
    return w.add(module, "ReduceMean", [x, w.integers(1, 3)], extents)


def add_layer_norm(w: GraphWriter, module: str, x: ir.Value) -> ir.Value:
    """LayerNorm over the last axis."""
    weight, bias = (w.parameter(f"{module}.{part}", None, FLOAT) for part in ("weight", "bias"))
    h = w.cast(module, x, FLOAT)
    h = w.add(module, "LayerNormalization", [h, weight, bias], epsilon=_LAYER_NORM_EPS)
    return w.cast(module, h, w.dtype)


# Activations -------------------------------------------------------------------------------------


def add_silu(w: GraphWriter, module: str, x: ir.Value) -> ir.Value:
    """SiLU: TensorRT-RTX computes it coarsely in FP16; the casts cost nothing."""
    x = w.cast(module, x, FLOAT)
    x = w.add(module, "Mul", [x, w.add(module, "Sigmoid", [x])])
    return w.cast(module, x, w.dtype)


def add_gelu(w: GraphWriter, module: str, x: ir.Value) -> ir.Value:
    """GELU: in FP32 it stays out of products, with which TensorRT-RTX compiles a slow kernel."""
    x = w.cast(module, x, FLOAT)
    if w.opset >= _GELU_OPSET:
        return w.cast(module, w.add(module, "Gelu", [x]), w.dtype)
    h = w.add(module, "Div", [x, w.constant(math.sqrt(2), FLOAT)])
    h = w.add(module, "Erf", [h])
    h = w.add(module, "Add", [h, w.constant(1, FLOAT)])
    h = w.add(module, "Mul", [h, w.constant(0.5, FLOAT)])
    return w.cast(module, w.add(module, "Mul", [x, h]), w.dtype)
