"""The LatentSync U-Net, in one activation layout from the first convolution to the last.

Activations are (batch*frames, channels, height, width) throughout; what looks across frames
(the ResNet blocks' norms, the motion modules) views the leading axis as (batch, frames).

Parameter names and shapes are those of LatentSync's own module (github.com/bytedance/LatentSync,
``latentsync/models/unet.py``), so that its checkpoints load as they are.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_native.errors import SpecError
from trt_native.models.latentsync.config import UNetConfig
from trt_native.models.latentsync.layers import (
    BatchFrames,
    GroupNorm,
    Motion,
    Positions,
    Transformer,
    is_exporting,
    silu,
)
from trt_native.models.latentsync.structure import has_motion

__all__ = ["DeepCacheFull", "DeepCacheShallow", "UNet"]


class UNet(nn.Module):
    """Predicts the noise in video latents from a timestep and audio features.

    Args:
        config: The structure. Parameters get PyTorch's own random initialisation; none is zero
            as in the original, so that random weights give outputs worth comparing.

    Attributes:
        config: As given.
        add_audio_layer: Whether ``encoder_hidden_states`` is used.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.add_audio_layer = config.add_audio_layer
        channels = config.block_out_channels
        levels = range(len(channels))
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = _TimeEmbedding(channels[0], 4 * channels[0])
        self.down_blocks = nn.ModuleList(_DownBlock(config, level) for level in levels)
        self.mid_block = _MidBlock(config)
        self.up_blocks = nn.ModuleList(_UpBlock(config, level) for level in reversed(levels))
        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
    ) -> Tensor:
        """Run one denoising step.

        Args:
            latents: (batch, in_channels, frames, height, width), in the module's dtype.
            timestep: (1,), (batch,), 0-d or a number; the scheduler's step.
            encoder_hidden_states: (batch*frames, tokens, cross_attention_dim) or (batch, frames,
                tokens, cross_attention_dim), in the module's dtype. Not used, and may be None,
                without audio layers.

        Returns:
            The predicted noise, (batch, out_channels, frames, height, width), in the dtype of
            ``latents``.

        Raises:
            SpecError: shapes or dtypes do not fit the model or each other, or there are more
                frames than positions. Not checked while the module is exported.
        """
        return self._step(latents, timestep, encoder_hidden_states)[0]

    def _step(
        self,
        latents: Tensor,
        timestep: Tensor | float,
        audio: Tensor | None,
        deep_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The predicted noise, and the input of the last layer of the last up block.

        With ``deep_features`` these are taken for the latter, and what leads to them is skipped.
        """
        if not is_exporting():
            timestep, audio = _checked_inputs(self, latents, timestep, audio)
        batch, channels, frames, height, width = latents.shape
        clip = (batch, frames)
        x = latents.transpose(1, 2).reshape(batch * frames, channels, height, width)
        if self.config.center_input_sample:
            x = 2 * x - 1
        time = self._time_features(torch.as_tensor(timestep), frames)
        skips: list[Tensor] = [self.conv_in(x)]
        if deep_features is None:
            deep_features = self._deep(skips, time, audio, clip)
        last = cast(_UpBlock, self.up_blocks[-1])
        x = last.last_layer(deep_features, skips, time, audio, clip)
        x = self.conv_out(silu(self.conv_norm_out(x, clip)))
        noise = x.reshape(batch, frames, self.config.out_channels, height, width).transpose(1, 2)
        return noise, deep_features

    def _deep(
        self, skips: list[Tensor], time: Tensor, audio: Tensor | None, clip: BatchFrames
    ) -> Tensor:
        """All between ``conv_in`` and the last layer, which finds its skip left in ``skips``."""
        x = skips[0]
        for block in self.down_blocks:
            x, outputs = block(x, time, audio, clip)
            skips += outputs
        x = self.mid_block(x, time, audio, clip)
        *blocks, last = self.up_blocks
        for block in blocks:
            x = block(x, skips, time, audio, clip)
        return cast(_UpBlock, last).but_last_layer(x, skips, time, audio, clip)

    def init_random(self, seed: int) -> None:
        """Fill every parameter with values that depend on ``seed`` and the configuration alone.

        Weights keep the variance of what passes through them; outputs are finite and not zero.
        Works on a module that was just materialised from the meta device.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                values = torch.empty(parameter.shape).uniform_(-1, 1, generator=generator)
                if parameter.ndim > 1:
                    values *= math.sqrt(3 / parameter[0].numel())
                else:
                    values *= 0.1
                    values += 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(values)
        for module in self.modules():
            if isinstance(module, Positions):
                module.reset()

    def _time_features(self, timestep: Tensor, frames: int) -> Tensor:
        """SiLU of the time embedding: (1, features), or (batch*frames, features)."""
        time = silu(self.time_embedding(self._waves(timestep)))
        return time if time.shape[0] == 1 else time.repeat_interleave(frames, dim=0)

    def _waves(self, timestep: Tensor) -> Tensor:
        """Sines and cosines of the timestep, (1 or batch, block_out_channels[0])."""
        half = self.config.block_out_channels[0] // 2
        steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
        frequencies = torch.exp(steps * (-math.log(10000.0) / (half - self.config.freq_shift)))
        angles = timestep.float()[:, None] * frequencies
        waves = [angles.sin(), angles.cos()]
        if self.config.flip_sin_to_cos:
            waves.reverse()
        return torch.cat(waves, dim=-1).to(self.conv_in.weight.dtype)


class DeepCacheFull(UNet):
    """A U-Net whose step also returns the features that :class:`DeepCacheShallow` takes.

    The split is that of DeepCache (Ma et al., 2023, "DeepCache: Accelerating Diffusion Models for
    Free") for its branch 0: everything but ``conv_in``, the last layer of the last up block and
    the output convolution is deep.
    """

    def forward(  # type: ignore[override]
        self,
        latents: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`UNet.forward`.

        Returns:
            The predicted noise, and the deep features, (batch*frames, block_out_channels[0],
            height, width), in the module's dtype.
        """
        return self._step(latents, timestep, encoder_hidden_states)


class DeepCacheShallow(UNet):
    """A U-Net step that reuses the deep features of an earlier one; see :class:`DeepCacheFull`.

    Only the parameters of the layers that run are used.
    """

    def forward(  # type: ignore[override]
        self,
        latents: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None,
        deep_features: Tensor,
    ) -> Tensor:
        """See :meth:`UNet.forward`; ``deep_features`` come from a full step on this clip."""
        return self._step(latents, timestep, encoder_hidden_states, deep_features)[0]


def _checked_inputs(
    unet: UNet, latents: Tensor, timestep: Tensor | float, audio: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The timestep as (1,) or (batch,) on the right device, and the audio with rank 3."""
    config, weight = unet.config, unet.conv_in.weight
    if latents.ndim != 5 or latents.shape[1] != config.in_channels:
        raise SpecError(
            f"latents need (batch, {config.in_channels}, frames, height, width),"
            f" found {tuple(latents.shape)}"
        )
    batch, _, frames = latents.shape[:3]
    if config.max_frames is not None and frames > config.max_frames:
        raise SpecError(
            f"latents have {frames} frames, the model has positions for {config.max_frames};"
            " split the video into shorter chunks"
        )
    step = torch.as_tensor(timestep, device=latents.device)
    step = step[None] if step.ndim == 0 else step
    if step.ndim != 1 or len(step) not in (1, batch):
        raise SpecError(f"timestep needs 1 or {batch} values, found shape {tuple(step.shape)}")
    if not config.add_audio_layer:
        audio = None
    elif audio is None:
        raise SpecError("encoder_hidden_states are needed: this model has audio layers")
    else:
        if audio.ndim == 4 and audio.shape[:2] == (batch, frames):
            audio = audio.flatten(0, 1)
        if audio.ndim != 3 or audio.shape[::2] != (batch * frames, config.cross_attention_dim):
            raise SpecError(
                f"encoder_hidden_states need ({batch * frames}, tokens,"
                f" {config.cross_attention_dim}), found {tuple(audio.shape)}"
            )
    for name, tensor in (("latents", latents), ("encoder_hidden_states", audio)):
        if tensor is not None and tensor.dtype != weight.dtype:
            raise SpecError(f"{name} are {tensor.dtype}, the model is {weight.dtype}")
    return step, audio


class _TimeEmbedding(nn.Module):
    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, features)
        self.linear_2 = nn.Linear(features, features)

    def forward(self, waves: Tensor) -> Tensor:
        return cast(Tensor, self.linear_2(silu(self.linear_1(waves))))


class _Block(nn.Module):
    """One level's ResNet blocks, each with its transformer and its motion module, if any."""

    def __init__(
        self, config: UNetConfig, level: int, inputs: list[int], *, attention: bool, motion: bool
    ) -> None:
        super().__init__()
        channels = config.block_out_channels[level]
        self.resnets = nn.ModuleList(_ResNet(config, size, channels) for size in inputs)
        self.attentions = nn.ModuleList(
            Transformer(config, channels, config.heads[level]) for _ in inputs if attention
        )
        self.motion_modules = nn.ModuleList(
            Motion(config.motion_module_kwargs, channels) for _ in inputs if motion
        )

    def _layer(
        self, index: int, x: Tensor, time: Tensor, audio: Tensor | None, clip: BatchFrames
    ) -> Tensor:
        x = self.resnets[index](x, time, clip)
        if len(self.attentions):
            x = self.attentions[index](x, audio)
        if len(self.motion_modules):
            x = self.motion_modules[index](x, clip)
        return x


class _DownBlock(_Block):
    def __init__(self, config: UNetConfig, level: int) -> None:
        channels = config.block_out_channels
        super().__init__(
            config,
            level,
            [channels[max(level - 1, 0)]] + [channels[level]] * (config.layers_per_block - 1),
            attention=config.down_block_types[level] == "CrossAttnDownBlock3D",
            motion=has_motion(config, level) and not config.motion_module_decoder_only,
        )
        is_last = level == len(channels) - 1
        self.downsamplers = None if is_last else nn.ModuleList([_Downsample(channels[level])])

    def forward(
        self, x: Tensor, time: Tensor, audio: Tensor | None, clip: BatchFrames
    ) -> tuple[Tensor, list[Tensor]]:
        outputs = []
        for index in range(len(self.resnets)):
            x = self._layer(index, x, time, audio, clip)
            outputs.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            outputs.append(x)
        return x, outputs


class _MidBlock(nn.Module):
    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels, scale = config.block_out_channels[-1], config.mid_block_scale_factor
        self.resnets = nn.ModuleList(_ResNet(config, channels, channels, scale) for _ in range(2))
        self.attentions = nn.ModuleList([Transformer(config, channels, config.heads[-1])])
        self.motion_modules = nn.ModuleList(
            Motion(config.motion_module_kwargs, channels)
            for _ in range(config.use_motion_module and config.motion_module_mid_block)
        )

    def forward(self, x: Tensor, time: Tensor, audio: Tensor | None, clip: BatchFrames) -> Tensor:
        x = self.resnets[0](x, time, clip)
        x = self.attentions[0](x, audio)
        for motion_module in self.motion_modules:
            x = motion_module(x, clip)
        return cast(Tensor, self.resnets[1](x, time, clip))


class _UpBlock(_Block):
    def __init__(self, config: UNetConfig, level: int) -> None:
        channels, below = config.block_out_channels, level + 1
        last = len(channels) - 1
        # Skips arrive in reverse: this level's own, then what entered it from the level above.
        skips = [channels[level]] * config.layers_per_block + [channels[max(level - 1, 0)]]
        arriving = [channels[min(below, last)]] + [channels[level]] * config.layers_per_block
        super().__init__(
            config,
            level,
            [x + skip for x, skip in zip(arriving, skips, strict=True)],
            attention=config.up_block_types[last - level] == "CrossAttnUpBlock3D",
            motion=has_motion(config, level),
        )
        self.upsamplers = nn.ModuleList([_Upsample(channels[level])]) if level else None

    def forward(
        self, x: Tensor, skips: list[Tensor], time: Tensor, audio: Tensor | None, clip: BatchFrames
    ) -> Tensor:
        x = self.but_last_layer(x, skips, time, audio, clip)
        x = self.last_layer(x, skips, time, audio, clip)
        return x if self.upsamplers is None else cast(Tensor, self.upsamplers[0](x, skips[-1]))

    def but_last_layer(
        self, x: Tensor, skips: list[Tensor], time: Tensor, audio: Tensor | None, clip: BatchFrames
    ) -> Tensor:
        for index in range(len(self.resnets) - 1):
            x = self._layer(index, torch.cat((x, skips.pop()), dim=1), time, audio, clip)
        return x

    def last_layer(
        self, x: Tensor, skips: list[Tensor], time: Tensor, audio: Tensor | None, clip: BatchFrames
    ) -> Tensor:
        index = len(self.resnets) - 1
        return self._layer(index, torch.cat((x, skips.pop()), dim=1), time, audio, clip)


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Double height and width, less one where the skip came from an odd size."""
        size = skip.shape[-2:]
        return cast(Tensor, self.conv(functional.interpolate(x, size=size, mode="nearest")))


class _ResNet(nn.Module):
    def __init__(self, config: UNetConfig, inputs: int, outputs: int, scale: float = 1.0) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.scale = scale
        self.norm1 = GroupNorm(groups, inputs, eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * config.block_out_channels[0], outputs)
        self.norm2 = GroupNorm(groups, outputs, eps)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, time: Tensor, clip: BatchFrames) -> Tensor:
        h = self.conv1(silu(self.norm1(x, clip)))
        h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(silu(self.norm2(h, clip)))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out if self.scale == 1 else out / self.scale
