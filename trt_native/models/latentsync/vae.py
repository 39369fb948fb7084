"""The image autoencoder around the U-Net: diffusers' ``AutoencoderKL``, written for TensorRT.

Parameters have diffusers' names, so that its files load unchanged. SiLU has the module's type: at
these sizes memory limits, and TensorRT-RTX computes an FP16 SiLU within the kernel of the norm
before it, where one between casts to FP32 is a kernel of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_native.errors import ModelError, SpecError
from trt_native.files import read_text_file
from trt_native.models.latentsync.checkpoint import load_checkpoint, load_into
from trt_native.models.latentsync.layers import GroupNorm

__all__ = ["VAE_PRESETS", "Vae", "VaeConfig", "VaeDecoder", "VaeEncoder", "load_vae", "vae_files"]

_EPS = 1e-6
_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
)
# Names of attention layers before diffusers 0.14.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# What other values of diffusers' keys would need: another structure, or other arithmetic.
_MOST = 2**14  # channels
_FIXED = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
}


@dataclass(frozen=True)
class VaeConfig:
    """Everything that decides the autoencoder's structure. The defaults are Stable Diffusion 1.

    Attributes:
        in_channels: Channels of the image to encode.
        out_channels: Channels of the decoded image.
        latent_channels: Channels of the latents.
        block_out_channels: Channels per level, outermost first; each level but one halves height
            and width.
        layers_per_block: ResNet blocks per level of the encoder; one more in the decoder.
        norm_num_groups: Groups of every GroupNorm.
        scaling_factor: Factor that gives the latents unit variance; the pipeline applies it.
        shift_factor: Mean of the latents; the pipeline subtracts it.
        use_quant_conv: Whether a 1 x 1 convolution follows the encoder.
        use_post_quant_conv: Whether one precedes the decoder.
        mid_block_add_attention: Whether the mid blocks have attention over pixels.

    Raises:
        SpecError: numbers are not positive, or the groups do not divide the channels.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        counts = [*self.block_out_channels, self.in_channels, self.out_channels]
        counts += [self.latent_channels, self.layers_per_block, self.norm_num_groups]
        if not self.block_out_channels or any(type(n) is not int or n < 1 for n in counts):
            raise _unusable("channels, layers_per_block and norm_num_groups must be 1 or more")
        if max(counts) > _MOST or max(self.layers_per_block, len(self.block_out_channels)) > 64:
            raise _unusable(f"it has more than {_MOST} channels, or more than 64 layers or levels")
        factors = (self.scaling_factor, self.shift_factor)
        if any(type(x) not in (int, float) or not math.isfinite(x) for x in factors):
            raise _unusable("scaling_factor and shift_factor must be finite numbers")
        if any(n % self.norm_num_groups for n in self.block_out_channels):
            raise _unusable(
                f"block_out_channels {self.block_out_channels} are not divisible by"
                f" norm_num_groups ({self.norm_num_groups})"
            )

    @property
    def downscale(self) -> int:
        """Height and width of an image, divided by those of its latents."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> VaeConfig:
        """Read the contents of diffusers' ``config.json``.

        Keys that do not matter for the structure are ignored.

        Raises:
            SpecError: it is not the configuration of an ``AutoencoderKL``, or of one with blocks
                or arithmetic that are not implemented here.
        """
        if not isinstance(mapping, Mapping) or "block_out_channels" not in mapping:
            raise _unusable("it lacks block_out_channels; give the config.json of an AutoencoderKL")
        for key, accepted in _FIXED.items():
            if mapping.get(key, accepted[0]) not in accepted:
                raise _unusable(f"{key}={mapping[key]!r} is not supported, only {accepted[0]!r}")
        for key, kind in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            blocks = mapping.get(key, ())
            named = blocks if isinstance(blocks, list | tuple) else [blocks]
            if other := sorted({str(block) for block in named} - {kind}):
                raise _unusable(f"{key} has {', '.join(other)}, only {kind} is known")
        names = {item.name for item in dataclasses.fields(cls)}
        values = {k: v for k, v in mapping.items() if k in names and v is not None}
        channels = values["block_out_channels"]
        values["block_out_channels"] = tuple(channels) if isinstance(channels, list | tuple) else ()
        return cls(**values)

    @classmethod
    def load(cls, source: str | Path) -> VaeConfig:
        """Read a preset (``sd``, ``small``), a ``config.json``, or that of a folder of weights.

        Raises:
            SpecError: it does not exist, or does not hold a configuration.
            ModelError: it is a folder without a configuration or weights.
        """
        if str(source) in VAE_PRESETS:
            return VAE_PRESETS[str(source)]
        if Path(source).is_dir():
            return cls.load(vae_files(source)[0])
        try:
            data = json.loads(read_text_file(Path(source)))
        except FileNotFoundError:
            presets = ", ".join(VAE_PRESETS)
            raise SpecError(f"{source}: no such file, and not a preset ({presets})") from None
        except OSError as error:
            raise SpecError(f"{source}: cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{source}: not JSON: {error}") from None
        try:
            return cls.from_mapping(data)
        except SpecError as error:
            raise error.restated(f"{source}: {error.message}", SpecError) from None

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON can hold it; :meth:`from_mapping` reads it back."""
        data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return data


def _unusable(problem: str) -> SpecError:
    return SpecError(f"the VAE configuration is not usable: {problem}")


VAE_PRESETS: Mapping[str, VaeConfig] = {
    "sd": VaeConfig(),
    "small": VaeConfig(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4),
}
"""Configurations known by name: Stable Diffusion's, as LatentSync uses it, and a tiny one."""


class Vae(nn.Module):
    """Encoder and decoder with the parameters of diffusers' ``AutoencoderKL``."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if config.use_quant_conv else None
        has_post = config.use_post_quant_conv
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if has_post else None


class VaeEncoder(nn.Module):
    """The way from images to the moments of their latents."""

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, image: Tensor) -> Tensor:
        """(frames, channels, height, width) to (frames, 2 * latent_channels, ...).

        The first half of the result's channels are means, the second half logarithms of variances.
        """
        moments: Tensor = self.encoder(image)
        return moments if self.quant_conv is None else cast(Tensor, self.quant_conv(moments))


class VaeDecoder(nn.Module):
    """The way from latents to images."""

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    def forward(self, latents: Tensor) -> Tensor:
        """(frames, latent_channels, height, width) to (frames, out_channels, ...)."""
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return cast(Tensor, self.decoder(latents))


def load_vae(
    *,
    config: VaeConfig | None = None,
    folder: str | Path | None = None,
    random_seed: int | None = None,
    dtype: str = "float32",
) -> tuple[Vae, str | None]:
    """Make an autoencoder on the CPU, in evaluation mode.

    Args:
        config: With ``random_seed``: the configuration; by default Stable Diffusion's.
        folder: A folder of diffusers' ``AutoencoderKL`` with ``config.json`` and weights, or that
            of a whole pipeline, with a subfolder ``vae``.
        random_seed: Random weights that depend on this number alone, instead of a folder.
        dtype: Type of the weights, by torch's name.

    Returns:
        The module, and the SHA-256 of the file of weights if there is one.

    Raises:
        SpecError: the folder's configuration is not usable, or not exactly one source of weights
            is given.
        ModelError: the weights are missing, cannot be read, or do not fit the configuration.
    """
    if (folder is None) == (random_seed is None):
        raise SpecError("give either a folder or a random_seed for the VAE's weights")
    if folder is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_seed or 0)
            vae, sha256 = Vae(config or VaeConfig()).to(getattr(torch, dtype)), None
        return vae.requires_grad_(False).eval(), sha256
    if config is not None:
        raise SpecError("a folder has a configuration of its own; give none with it")
    path, file = vae_files(folder)
    checkpoint = load_checkpoint(file)
    with torch.device("meta"):
        vae = Vae(VaeConfig.load(path))
    vae = vae.to(getattr(torch, dtype))
    load_into(vae, {_today(name): t for name, t in checkpoint.state_dict.items()})
    return vae.requires_grad_(False).eval(), checkpoint.sha256


def vae_files(folder: str | Path) -> tuple[Path, Path]:
    """The configuration and the weights in a folder of diffusers' ``AutoencoderKL``.

    Raises:
        ModelError: one of them is missing.
    """
    path = Path(folder)
    path = path / "vae" if (path / "vae" / "config.json").is_file() else path
    file = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if file is None or not (path / "config.json").is_file():
        raise ModelError(
            f"{folder}: not a folder of diffusers' AutoencoderKL, with config.json and"
            f" {_WEIGHTS[0]}; LatentSync's is stabilityai/sd-vae-ft-mse, to be downloaded first"
        )
    return path / "config.json", file


def _today(name: str) -> str:
    """The name that a parameter has in today's diffusers."""
    head, _, tail = name.rpartition(".")
    stem, _, layer = head.rpartition(".")
    return f"{stem}.{_OLD_NAMES[layer]}.{tail}" if layer in _OLD_NAMES else name


# Blocks -------------------------------------------------------------------------------------------


class _Encoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = _conv(config.in_channels, channels[0])
        pairs = zip((channels[0], *channels), channels, strict=False)
        self.down_blocks = nn.ModuleList(
            _Level(config, a, b, config.layers_per_block, "down" * (level < len(channels) - 1))
            for level, (a, b) in enumerate(pairs)
        )
        self.mid_block = _VaeMidBlock(config, channels[-1])
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[-1], _EPS)
        self.conv_out = _conv(channels[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return cast(Tensor, self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(x)))))


class _Decoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[::-1]
        self.conv_in = _conv(config.latent_channels, channels[0])
        self.mid_block = _VaeMidBlock(config, channels[0])
        pairs = zip((channels[0], *channels), channels, strict=False)
        self.up_blocks = nn.ModuleList(
            _Level(config, a, b, config.layers_per_block + 1, "up" * (level < len(channels) - 1))
            for level, (a, b) in enumerate(pairs)
        )
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[-1], _EPS)
        self.conv_out = _conv(channels[-1], config.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return cast(Tensor, self.conv_out(functional.silu(self.conv_norm_out(x))))


class _Level(nn.Module):
    """ResNet blocks, then perhaps a sampler; the names follow diffusers' two kinds of blocks."""

    def __init__(
        self, config: VaeConfig, inputs: int, outputs: int, layers: int, sampler: str
    ) -> None:
        super().__init__()
        widths = [inputs, *[outputs] * layers]
        pairs = itertools.pairwise(widths)
        self.resnets = nn.ModuleList(_VaeResNet(config, a, b) for a, b in pairs)
        if sampler == "down":
            self.downsamplers = nn.ModuleList([_Halving(outputs)])
        if sampler == "up":
            self.upsamplers = nn.ModuleList([_Doubling(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        for part in (part for parts in self.children() for part in cast(nn.ModuleList, parts)):
            x = part(x)
        return x


class _VaeMidBlock(nn.Module):
    def __init__(self, config: VaeConfig, channels: int) -> None:
        super().__init__()
        has_attention = config.mid_block_add_attention
        blocks = [_PixelAttention(config, channels)] if has_attention else []
        self.attentions = nn.ModuleList(blocks)
        self.resnets = nn.ModuleList(_VaeResNet(config, channels, channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.resnets
        x = first(x)
        for attention in self.attentions:
            x = attention(x)
        return cast(Tensor, second(x))


class _VaeResNet(nn.Module):
    def __init__(self, config: VaeConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(config.norm_num_groups, inputs, _EPS)
        self.conv1 = _conv(inputs, outputs)
        self.norm2 = GroupNorm(config.norm_num_groups, outputs, _EPS)
        self.conv2 = _conv(outputs, outputs)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return cast(Tensor, (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h)


class _PixelAttention(nn.Module):
    """Attention of one head over the pixels of each frame."""

    def __init__(self, config: VaeConfig, channels: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(config.norm_num_groups, channels, _EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (linear(tokens) for linear in (self.to_q, self.to_k, self.to_v))
        # Both are scaled before the product, whose sums over all channels FP16 may not hold.
        scale = q.shape[-1] ** -0.25
        scores = (q * scale) @ (k * scale).transpose(1, 2)
        weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
        out: Tensor = self.to_out[0](weights @ v)
        return x + out.transpose(1, 2).reshape(x.shape)


class _Halving(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(functional.pad(x, (0, 1, 0, 1))))


class _Doubling(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest")))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
