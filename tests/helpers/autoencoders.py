"""The VAE in PyTorch: diffusers' own, and runners in the places of the plans."""

from __future__ import annotations

import diffusers

from helpers.denoising import TorchStepRunner
from helpers.made_plans import tensor
from trt_native.models.latentsync.vae import VAE_PRESETS, VaeDecoder, VaeEncoder, load_vae

SMALL = VAE_PRESETS["small"]


def diffusers_vae(config=SMALL, **changes):
    """diffusers' ``AutoencoderKL`` of a configuration, with weights of its own."""
    levels = len(config.block_out_channels)
    options = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "latent_channels": config.latent_channels,
    }
    return diffusers.AutoencoderKL(**{**options, **changes}).requires_grad_(False).eval()


def loaded(folder):
    return load_vae(folder=folder)[0]


def runners(vae, frames="4", size=(16, 16), dtype="float32"):
    """What runs ``vae`` as if it were two plans; ``frames`` may be a range, such as ``1:2:4``."""
    config, (height, width) = vae.config, size
    scale = config.downscale

    def ranged(name, *rest):
        low, best, high = (int(n) for n in f"{frames}:{frames}:{frames}".split(":")[:3])
        if low == high:
            return tensor(name, "input", dtype, shape=(low, *rest))
        text = ":".join("x".join(map(str, (n, *rest))) for n in (low, best, high))
        return tensor(name, "input", dtype, text)

    encoder = [
        ranged("image", config.in_channels, height * scale, width * scale),
        tensor("moments", "output", dtype, shape=(-1, 2 * config.latent_channels, height, width)),
    ]
    decoder = [
        ranged("latents", config.latent_channels, height, width),
        tensor(
            "image", "output", dtype, shape=(-1, config.out_channels, scale * height, scale * width)
        ),
    ]
    return (
        TorchStepRunner("vae.encoder.plan", VaeEncoder(vae), encoder),
        TorchStepRunner("vae.decoder.plan", VaeDecoder(vae), decoder),
    )
