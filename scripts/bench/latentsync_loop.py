"""What LatentSync's pipeline does with a chunk of frames, on synthetic faces and audio.

Written from a description of the pipeline, none of whose code is here: from cropped faces on the
host to images on the host. Left out is what is the same with any U-Net and VAE: reading and
writing the video, finding and cropping faces, and pasting them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from naive_unet import NaiveUNet
from torch import Tensor

from trt_native.models.latentsync.export import AUDIO_TOKENS

__all__ = ["SCHEDULERS", "SkippingUNet", "Video", "denoise", "run_chunks", "synthetic_video"]

SCALING_FACTOR, SHIFT_FACTOR = 0.18215, 0.0

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _ddim() -> Any:
    """LatentSync's own scheduler, with the settings of its configs folder."""
    from diffusers import DDIMScheduler

    kind: Any = DDIMScheduler
    return kind(**_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _dpm() -> Any:
    """DPM-Solver++ of second order, deterministic, with Karras' noise levels."""
    from diffusers import DPMSolverMultistepScheduler

    kind: Any = DPMSolverMultistepScheduler
    return kind(**_BETAS, use_karras_sigmas=True, steps_offset=1)


SCHEDULERS: dict[str, Callable[[], Any]] = {"DDIM": _ddim, "DPM++": _dpm}
"""Schedulers of diffusers by a short name, each call a new one."""


@dataclass(frozen=True)
class Video:
    """Input of the loop, on the host as in the pipeline.

    Attributes:
        faces: (frames, 3, height, width), uint8.
        audio: Features, (frames, tokens, features), FP32.
        mask: (1, height, width), FP32: 0 where the mouth is.
    """

    faces: Tensor
    audio: Tensor
    mask: Tensor


def synthetic_video(frames: int, size: int, features: int, seed: int = 0) -> Video:
    """Faces and audio that change little from frame to frame."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 2, 8, 8, generator=random) * 255
    shape = (frames, size, size)
    smooth = torch.nn.functional.interpolate(coarse, shape, mode="trilinear", align_corners=True)
    mask = torch.ones(1, size, size)
    mask[:, size // 2 :, size // 4 : -size // 4] = 0
    length = AUDIO_TOKENS + 2 * frames
    track = torch.randn(length, features, generator=random).cumsum(0) / length**0.5
    audio = torch.stack([track[2 * i : 2 * i + AUDIO_TOKENS] for i in range(frames)])
    return Video(smooth[0].transpose(0, 1).round().to(torch.uint8).contiguous(), audio, mask)


class SkippingUNet:
    """PyTorch that skips as DeepCache's helper does for branch 0 and uniform intervals.

    Args:
        unet: LatentSync's layout.
        timesteps: The scheduler's; the place of a timestep in it decides.
        interval: Number of timesteps per full step.
    """

    def __init__(self, unet: NaiveUNet, timesteps: Tensor, interval: int) -> None:
        self._unet, self._interval = unet, interval
        self._places = [float(step) for step in timesteps]
        self._features: Tensor | None = None

    def __call__(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> tuple[Tensor]:
        """Run a step, as the pipeline calls its U-Net."""
        skips = self._places.index(float(timestep)) % self._interval
        noise, self._features = self._unet.step(
            sample, timestep, encoder_hidden_states, self._features if skips else None
        )
        return (noise,)


def denoise(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    condition: Tensor,
    audio: Tensor,
    guidance: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """All steps of one chunk.

    Args:
        unet: Called as the pipeline does, it returns a tuple whose first entry is the noise.
        scheduler: With its timesteps set.
        latents: Noise, (1, 4, frames, height, width).
        condition: Mask, masked image and reference, (1, 9, frames, height, width).
        audio: (frames, tokens, features).
        guidance: The scale of classifier-free guidance; 1 or less runs without.
        generator: For schedulers that add noise.
    """
    guided = guidance > 1
    if guided:
        condition = torch.cat([condition] * 2)
        audio = torch.cat([torch.zeros_like(audio), audio])
    extra = {} if generator is None else {"generator": generator}
    for timestep in scheduler.timesteps:
        given = torch.cat([latents] * 2) if guided else latents
        given = torch.cat([scheduler.scale_model_input(given, timestep), condition], dim=1)
        noise = unet(given, timestep, encoder_hidden_states=audio)[0]
        if guided:
            without, with_audio = noise.chunk(2)
            noise = without + guidance * (with_audio - without)
        latents = scheduler.step(noise, timestep, latents, **extra).prev_sample
    return latents


def run_chunks(
    vae: Any,
    unet: Any,
    scheduler: Any,
    video: Video,
    *,
    chunk: int,
    guidance: float,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
) -> Tensor:
    """Run a whole video, in the order in which the pipeline does.

    Returns:
        Images, (frames, 3, height, width), uint8, on the host.
    """
    generator = torch.Generator(device).manual_seed(seed)
    size = video.faces.shape[-1] // 2 ** (len(vae.config.block_out_channels) - 1)
    shape = (1, vae.config.latent_channels, 1, size, size)
    noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    noise = noise * scheduler.init_noise_sigma
    done = [
        _chunk(vae, unet, scheduler, part, noise, guidance, generator)
        for part in _chunks(video, chunk)
    ]
    images = torch.cat(done)
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _chunks(video: Video, length: int) -> Iterator[Video]:
    for start in range(0, len(video.faces), length):
        part = slice(start, start + length)
        yield Video(video.faces[part], video.audio[part], video.mask)


def _chunk(
    vae: Any,
    unet: Any,
    scheduler: Any,
    part: Video,
    noise: Tensor,
    guidance: float,
    generator: torch.Generator,
) -> Tensor:
    faces = part.faces.float() / 127.5 - 1
    mask = part.mask[None].expand(len(faces), -1, -1, -1)

    def given(tensor: Tensor) -> Tensor:
        return tensor.to(noise.device, noise.dtype)

    small = given(torch.nn.functional.interpolate(mask, noise.shape[-2:]))
    masked_latents = _encode(vae, given(faces * mask), generator)
    reference = _encode(vae, given(faces), generator)
    condition = torch.cat((small, masked_latents, reference), dim=1).transpose(0, 1)[None]
    latents = noise.repeat(1, 1, len(faces), 1, 1)
    latents = denoise(unet, scheduler, latents, condition, given(part.audio), guidance)
    latents = latents / SCALING_FACTOR + SHIFT_FACTOR
    decoded = vae.decode(latents[0].transpose(0, 1).contiguous()).sample
    mouth = 1 - given(mask)
    return decoded * mouth + given(faces) * (1 - mouth)  # type: ignore[no-any-return]


def _encode(vae: Any, images: Tensor, generator: torch.Generator) -> Tensor:
    latents = vae.encode(images).latent_dist.sample(generator=generator)
    return (latents - SHIFT_FACTOR) * SCALING_FACTOR  # type: ignore[no-any-return]
