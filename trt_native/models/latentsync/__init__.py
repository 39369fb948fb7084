"""The LatentSync U-Net and the VAE around it: configurations, checkpoints and the modules.

Importing this package does not import torch; only the modules and the functions that load them do.
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
    from trt_native.models.latentsync.vae import Vae as Vae
    from trt_native.models.latentsync.vae import VaeConfig as VaeConfig
    from trt_native.models.latentsync.vae import load_vae as load_vae

_LAZY_EXPORTS = {
    "Checkpoint": "checkpoint",
    "DeepCacheFull": "unet",
    "DeepCacheShallow": "unet",
    "UNet": "unet",
    "Vae": "vae",
    "VaeConfig": "vae",
    "denoiser_inputs": "inputs",
    "load_checkpoint": "checkpoint",
    "load_into": "checkpoint",
    "load_unet": "loading",
    "load_vae": "vae",
}

__all__ = ["UNET_PRESETS", "MotionConfig", "UNetConfig", *_LAZY_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _LAZY_EXPORTS)
