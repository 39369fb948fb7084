"""A U-Net with its weights, from a checkpoint or from a seed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trt_native.models.latentsync.checkpoint import (
    Checkpoint,
    LoadReport,
    load_checkpoint,
    load_into,
)
from trt_native.models.latentsync.config import UNetConfig
from trt_native.models.latentsync.releases import without_absent_motion
from trt_native.models.latentsync.unet import UNet
from trt_native.models.latentsync.weights import check_source, choose_config
from trt_native.progress_bars import AnyProgress, shows_progress

__all__ = ["load_unet"]

_logger = logging.getLogger(__name__)


@shows_progress
def load_unet(
    *,
    config: UNetConfig | str | Path | None = None,
    checkpoint: Checkpoint | Mapping[str, Tensor] | str | Path | None = None,
    random_seed: int | None = None,
    dtype: str = "float32",
    allow_mismatch: bool = False,
    progress: AnyProgress = None,
) -> tuple[UNet, str | None]:
    """Make a U-Net on the CPU, in evaluation mode, without a second copy of its weights.

    Motion modules that a checkpoint has no weights of are left out, which the log and the
    module's configuration say: LatentSync's own module starts with ones that change nothing.

    Args:
        config: A configuration, its YAML or JSON file, or a preset's name. Default: the
            checkpoint's own, else ``latentsync-1.6``.
        checkpoint: A checkpoint, its file, or a state dict. Weights that have ``dtype`` already
            stay mapped from the file.
        random_seed: Random weights that depend on this number alone, instead of a checkpoint.
        dtype: Type of the weights, by torch's name.
        allow_mismatch: Whether to go on where the checkpoint does not fit: what is unexpected is
            ignored, and what is missing gets random values; the log names them.
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.

    Returns:
        The module, and the SHA-256 of the checkpoint's file if there is one.

    Raises:
        SpecError: the configuration is not valid, or not exactly one source of weights is given.
        ModelError: the checkpoint cannot be read, or does not fit the configuration.
    """
    check_source(checkpoint, random_seed)
    weights = checkpoint
    if isinstance(weights, str | Path):
        weights = load_checkpoint(weights, progress=progress)
    own = weights.config if isinstance(weights, Checkpoint) else None
    state = weights.state_dict if isinstance(weights, Checkpoint) else weights
    chosen = choose_config(config, own)
    if state is not None:
        chosen = without_absent_motion(chosen, state)
    with torch.device("meta"):
        unet = UNet(chosen)
    unet = unet.to(getattr(torch, dtype))
    if state is None or allow_mismatch:
        unet.to_empty(device="cpu")
        unet.init_random(random_seed or 0)
    if state is not None:
        report = load_into(unet, state, strict=not allow_mismatch, progress=progress)
        if report != LoadReport():
            _logger.warning("the checkpoint does not fit: %s", report)
    sha256 = weights.sha256 if isinstance(weights, Checkpoint) else None
    return unet.requires_grad_(False).eval(), sha256
