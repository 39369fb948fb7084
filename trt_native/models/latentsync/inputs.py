"""Conversion of the pipeline's calls of its U-Net to the exported model's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trt_native.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["denoiser_inputs", "fractional_timestep"]


def denoiser_inputs(
    sample: Tensor,
    timestep: Tensor | float,
    encoder_hidden_states: Tensor | None = None,
    *,
    timestep_dtype: str = "int64",
    **_others: Any,
) -> dict[str, Any]:
    """The inputs of the exported U-Net, from the arguments of one call by the pipeline.

    For :func:`trt_native.calibration.capture`, as its ``arguments``; for a model exported with a
    timestep in float32, ``functools.partial(denoiser_inputs, timestep_dtype="float32")``.

    Args:
        sample: The noisy latents with mask, masked image and reference: (batch, 13, frames,
            height, width).
        timestep: The scheduler's step: a number, 0-d, or (1,).
        encoder_hidden_states: Audio features, (batch*frames, tokens, features) or (batch, frames,
            tokens, features); None for a model without audio layers.
        timestep_dtype: Type of the model's timestep, ``int64`` or ``float32``.

    Returns:
        ``latents``, ``timestep`` as (1,) and ``encoder_hidden_states`` of rank 3.

    Raises:
        SpecError: the timestep has a fraction, and the model takes int64.
    """
    import torch

    step = torch.as_tensor(timestep).reshape(1)
    if timestep_dtype == "int64" and step.is_floating_point() and step != step.round():
        raise fractional_timestep(step.item(), timestep_dtype)
    inputs = {"latents": sample, "timestep": step.to(getattr(torch, timestep_dtype))}
    if encoder_hidden_states is not None:
        audio = encoder_hidden_states
        inputs["encoder_hidden_states"] = audio.flatten(0, 1) if audio.ndim == 4 else audio
    return inputs


def fractional_timestep(timestep: float, dtype: str) -> SpecError:
    """The error of a timestep that a model's type of timesteps cannot hold."""
    return SpecError(
        f"timestep {timestep} is not an integer, and the model takes {dtype}; export it with a"
        " timestep in float32, or use a scheduler with integer timesteps, such as LatentSync's"
        " DDIMScheduler",
        options=["timestep_dtype"],
    )
