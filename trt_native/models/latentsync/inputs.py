"""Conversion of the pipeline's calls of its U-Net to the exported model's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["denoiser_inputs"]


def denoiser_inputs(
    sample: Tensor,
    timestep: Tensor | float,
    encoder_hidden_states: Tensor | None = None,
    **_others: Any,
) -> dict[str, Any]:
    """The inputs of the exported U-Net, from the arguments of one call by the pipeline.

    For :func:`trt_native.calibration.capture`, as its ``arguments``.

    Args:
        sample: The noisy latents with mask, masked image and reference: (batch, 13, frames,
            height, width).
        timestep: The scheduler's step: a number, 0-d, or (1,).
        encoder_hidden_states: Audio features, (batch*frames, tokens, features) or (batch, frames,
            tokens, features); None for a model without audio layers.

    Returns:
        ``latents``, ``timestep`` as (1,) int64, and ``encoder_hidden_states`` of rank 3.
    """
    import torch

    inputs = {"latents": sample, "timestep": torch.as_tensor(timestep).long().reshape(1)}
    if encoder_hidden_states is not None:
        audio = encoder_hidden_states
        inputs["encoder_hidden_states"] = audio.flatten(0, 1) if audio.ndim == 4 else audio
    return inputs
