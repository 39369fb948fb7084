"""The denoising loop that calib_data/latentsync_small was captured from.

LatentSync's loop, on the small U-Net of the tests: one chunk of 4 frames, 20 DDIM steps, guidance
1.5, with the conditional and the unconditional half in one call. The images are smooth random
fields with the mouth masked out, the audio features overlap from frame to frame as Whisper's do.
See scripts/capture_calibration.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from trt_native.files import sha256_of_file
from trt_native.models.latentsync import denoiser_inputs, load_unet
from trt_native.models.latentsync.export import AUDIO_TOKENS

CHECKPOINT = Path(__file__).parents[1] / "tests" / "data" / "unet_small.pt"
SEED, STEPS, GUIDANCE = 0, 20, 1.5
FRAMES, SIZE = 4, 16
_TOKENS_PER_FRAME = 2  # by which Whisper's window moves on, at 25 frames a second


def sample(hook: Callable[..., Any]) -> None:
    """Run the loop with the U-Net hooked."""
    unet, _ = load_unet(config="small", checkpoint=CHECKPOINT)
    origin = {
        "pipeline": "scripts/latentsync_small.py",
        "checkpoint": f"tests/data/{CHECKPOINT.name}",
        "checkpoint_sha256": sha256_of_file(CHECKPOINT),
        "steps": STEPS,
        "guidance": GUIDANCE,
    }
    model = "LatentSync U-Net, preset small"
    with hook(unet, arguments=denoiser_inputs, model=model, origin=origin), torch.inference_mode():
        denoise(unet, torch.Generator().manual_seed(SEED))


def denoise(unet: Any, random: torch.Generator) -> Tensor:
    """Denoise one chunk, as LatentSync's pipeline does.

    Returns:
        Latents, (1, 4, frames, height, width).
    """
    noise = torch.randn(1, 4, 1, SIZE, SIZE, generator=random)
    latents = noise.expand(-1, -1, FRAMES, -1, -1)  # the same for every frame
    image = _images(random)
    mask = torch.ones(1, 1, FRAMES, SIZE, SIZE)
    mask[..., SIZE // 2 :, SIZE // 4 : -SIZE // 4] = 0
    condition = torch.cat([mask, image * mask, _images(random)], dim=1)
    audio = _audio(random, unet.config.cross_attention_dim)
    audio = torch.cat([torch.zeros_like(audio), audio])
    ddim = Ddim(STEPS)
    for step in ddim.timesteps:
        inputs = torch.cat([torch.cat([latents, condition], dim=1)] * 2)
        without, with_audio = unet(inputs, step, encoder_hidden_states=audio).chunk(2)
        noise = without + GUIDANCE * (with_audio - without)
        latents = ddim.step(noise, step, latents)
    return latents


def _images(random: torch.Generator) -> Tensor:
    """Latents of frames that change little from one to the next."""
    coarse = torch.randn(1, 4, 2, 4, 4, generator=random)
    size = (FRAMES, SIZE, SIZE)
    return interpolate(coarse, size, mode="trilinear", align_corners=True)


def _audio(random: torch.Generator, features: int) -> Tensor:
    """(frames, tokens, features): a window over features that change slowly."""
    length = AUDIO_TOKENS + _TOKENS_PER_FRAME * (FRAMES - 1)
    coarse = torch.randn(1, features, length // 4, generator=random)
    track = interpolate(coarse, length, mode="linear", align_corners=True)[0].T
    starts = range(0, _TOKENS_PER_FRAME * FRAMES, _TOKENS_PER_FRAME)
    return torch.stack([track[start : start + AUDIO_TOKENS] for start in starts])


class Ddim:
    """LatentSync's scheduler: DDIM (Song et al. 2021, eta 0) for a model that predicts noise.

    As diffusers' ``DDIMScheduler`` with LatentSync's settings: ``scaled_linear`` betas from 0.00085
    to 0.012 in 1000 steps, ``leading`` spacing, ``steps_offset`` 1, ``set_alpha_to_one`` False.
    diffusers itself would bring 18 packages along, an HTTP client and an image library among them,
    for these few lines.

    Attributes:
        timesteps: In descending order, as 0-d int64 tensors.
    """

    def __init__(self, steps: int) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self._alphas = torch.cumprod(1 - betas, dim=0)
        self._stride = 1000 // steps
        self.timesteps = torch.arange(steps).flip(0) * self._stride + 1

    def step(self, noise: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        """The latents one step less noisy."""
        alpha = self._alphas[timestep]
        before = self._alphas[max(int(timestep) - self._stride, 0)]
        image = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        return before.sqrt() * image + (1 - before).sqrt() * noise
