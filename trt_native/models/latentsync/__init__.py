"""The LatentSync 1.6 U-Net: configuration, checkpoints and the module itself.

Importing this package does not import torch; only :class:`UNet` and the checkpoint functions do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_native._lazy import lazy_exports
from trt_native.models.latentsync.config import UNET_PRESETS, MotionConfig, UNetConfig

if TYPE_CHECKING:
    from trt_native.models.latentsync.checkpoint import Checkpoint as Checkpoint
    from trt_native.models.latentsync.checkpoint import load_checkpoint as load_checkpoint
    from trt_native.models.latentsync.checkpoint import load_into as load_into
    from trt_native.models.latentsync.inputs import denoiser_inputs as denoiser_inputs
    from trt_native.models.latentsync.loading import load_unet as load_unet
    from trt_native.models.latentsync.unet import DeepCacheFull as DeepCacheFull
    from trt_native.models.latentsync.unet import DeepCacheShallow as DeepCacheShallow
    from trt_native.models.latentsync.unet import UNet as UNet

_LAZY_EXPORTS = {
    "Checkpoint": "checkpoint",
    "DeepCacheFull": "unet",
    "DeepCacheShallow": "unet",
    "UNet": "unet",
    "denoiser_inputs": "inputs",
    "load_checkpoint": "checkpoint",
    "load_into": "checkpoint",
    "load_unet": "loading",
}

__all__ = ["UNET_PRESETS", "MotionConfig", "UNetConfig", *_LAZY_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _LAZY_EXPORTS)
