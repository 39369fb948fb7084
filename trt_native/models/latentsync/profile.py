"""Shapes that LatentSync's pipeline runs the U-Net with."""

from __future__ import annotations

import json
from pathlib import Path

from trt_native.errors import ModelError, SpecError
from trt_native.graph.onnx_file import read_model, tensor_specs
from trt_native.models.latentsync.config import UNetConfig
from trt_native.shapes import DimRange

__all__ = ["FRAMES", "pipeline_dims", "profile_dims"]

FRAMES = 16
"""Frames of a chunk; the last chunk of a video may have any number down to 1."""

_SAMPLE_SIZE = 64
_PIXELS_PER_LATENT = 8


def pipeline_dims(config: UNetConfig, resolution: int | None = None) -> dict[str, DimRange]:
    """The range of each dimension, with the extents of a full chunk as the optimum.

    ``batch`` is 2 with classifier-free guidance, else 1.

    Args:
        config: The U-Net's configuration.
        resolution: Height and width of the video in pixels. None: the size that the model was
            trained for, down to half of it.

    Raises:
        SpecError: the resolution is not a positive multiple of 8 pixels.
    """
    full = config.sample_size or _SAMPLE_SIZE
    size = DimRange((full + 1) // 2, full, full)
    if resolution is not None:
        if resolution <= 0 or resolution % _PIXELS_PER_LATENT:
            raise SpecError(
                f"resolution {resolution}: give a multiple of {_PIXELS_PER_LATENT} pixels, such as"
                " 512 or 256",
                options=("resolution",),
            )
        extent = resolution // _PIXELS_PER_LATENT
        size = DimRange(extent, extent, extent)
    frames = min(FRAMES, config.max_frames or FRAMES)
    return {
        "batch": DimRange(1, 2, 2),
        "frames": DimRange(1, frames, frames),
        "height": size,
        "width": size,
    }


def profile_dims(model: Path, resolution: int | None = None) -> dict[str, DimRange]:
    """:func:`pipeline_dims` for those dimensions that are dynamic in an exported U-Net.

    Args:
        model: The ONNX file. Its configuration is read from its key-value pairs.
        resolution: See :func:`pipeline_dims`.

    Returns:
        The ranges; none for a model that is not an exported U-Net.

    Raises:
        ModelError: the file cannot be read, or the configuration in it.
        SpecError: the resolution is not a positive multiple of 8 pixels.
    """
    graph = read_model(model)
    text = graph.metadata_props.get("trt_native.config")
    if text is None:
        return {}
    try:
        config = UNetConfig.from_mapping(json.loads(text))
    except ValueError as error:  # a SpecError is one
        raise ModelError(f"{model}: the U-Net configuration in it: {error}") from None
    inputs, _ = tensor_specs(graph)
    dynamic = {axis for tensor in inputs for axis in tensor.shape or () if isinstance(axis, str)}
    ranges = pipeline_dims(config, resolution)
    return {name: ranges[name] for name in ranges if name in dynamic}
