"""The LatentSync U-Net, in one activation layout from the first convolution to the last.

Activations are (batch*frames, channels, height, width) throughout; what looks across frames
(the ResNet blocks' norms, the motion modules) views the leading axis as (batch, frames). Statistics
of norms and softmax are taken in FP32 whatever the module's type, and stay so in an export.

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
from trt_native.models.latentsync.config import MotionConfig, UNetConfig

__all__ = ["DeepCacheFull", "DeepCacheShallow", "UNet"]

_Clip = tuple[int, int]
"""(batch, frames): how the leading axis of an activation is made up."""

_TRANSFORMER_EPS = 1e-6
_MOTION_GROUPS = 32  # whatever norm_num_groups says


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
        self.conv_norm_out = _GroupNorm(config.norm_num_groups, channels[0], config.norm_eps)
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
        """The predicted noise, and what enters the last layer of the last up block.

        With ``deep_features`` these are taken for the latter, and what leads to them is skipped.
        """
        if not torch.compiler.is_exporting():
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
        x = self.conv_out(functional.silu(self.conv_norm_out(x, clip)))
        noise = x.reshape(batch, frames, self.config.out_channels, height, width).transpose(1, 2)
        return noise, deep_features

    def _deep(self, skips: list[Tensor], time: Tensor, audio: Tensor | None, clip: _Clip) -> Tensor:
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
            if isinstance(module, _Positions):
                module.reset()

    def _time_features(self, timestep: Tensor, frames: int) -> Tensor:
        """SiLU of the time embedding: (1, features), or (batch*frames, features)."""
        half = self.config.block_out_channels[0] // 2
        steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
        frequencies = torch.exp(steps * (-math.log(10000.0) / (half - self.config.freq_shift)))
        angles = timestep.float()[:, None] * frequencies
        waves = [angles.sin(), angles.cos()]
        if self.config.flip_sin_to_cos:
            waves.reverse()
        features = torch.cat(waves, dim=-1).to(self.conv_in.weight.dtype)
        time = functional.silu(self.time_embedding(features))
        return time if time.shape[0] == 1 else time.repeat_interleave(frames, dim=0)


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
        return cast(Tensor, self.linear_2(functional.silu(self.linear_1(waves))))


class _Block(nn.Module):
    """One level's ResNet blocks, each with its transformer and its motion module, if any."""

    def __init__(
        self, config: UNetConfig, level: int, inputs: list[int], *, attention: bool, motion: bool
    ) -> None:
        super().__init__()
        channels = config.block_out_channels[level]
        self.resnets = nn.ModuleList(_ResNet(config, size, channels) for size in inputs)
        self.attentions = nn.ModuleList(
            _Transformer(config, channels, config.heads[level]) for _ in inputs if attention
        )
        self.motion_modules = nn.ModuleList(
            _Motion(config.motion_module_kwargs, channels) for _ in inputs if motion
        )

    def _layer(
        self, index: int, x: Tensor, time: Tensor, audio: Tensor | None, clip: _Clip
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
            motion=_has_motion(config, level) and not config.motion_module_decoder_only,
        )
        is_last = level == len(channels) - 1
        self.downsamplers = None if is_last else nn.ModuleList([_Downsample(channels[level])])

    def forward(
        self, x: Tensor, time: Tensor, audio: Tensor | None, clip: _Clip
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
        self.attentions = nn.ModuleList([_Transformer(config, channels, config.heads[-1])])
        self.motion_modules = nn.ModuleList(
            _Motion(config.motion_module_kwargs, channels)
            for _ in range(config.use_motion_module and config.motion_module_mid_block)
        )

    def forward(self, x: Tensor, time: Tensor, audio: Tensor | None, clip: _Clip) -> Tensor:
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
            motion=_has_motion(config, level),
        )
        self.upsamplers = nn.ModuleList([_Upsample(channels[level])]) if level else None

    def forward(
        self, x: Tensor, skips: list[Tensor], time: Tensor, audio: Tensor | None, clip: _Clip
    ) -> Tensor:
        x = self.but_last_layer(x, skips, time, audio, clip)
        x = self.last_layer(x, skips, time, audio, clip)
        return x if self.upsamplers is None else cast(Tensor, self.upsamplers[0](x, skips[-1]))

    def but_last_layer(
        self, x: Tensor, skips: list[Tensor], time: Tensor, audio: Tensor | None, clip: _Clip
    ) -> Tensor:
        for index in range(len(self.resnets) - 1):
            x = self._layer(index, torch.cat((x, skips.pop()), dim=1), time, audio, clip)
        return x

    def last_layer(
        self, x: Tensor, skips: list[Tensor], time: Tensor, audio: Tensor | None, clip: _Clip
    ) -> Tensor:
        index = len(self.resnets) - 1
        return self._layer(index, torch.cat((x, skips.pop()), dim=1), time, audio, clip)


def _has_motion(config: UNetConfig, level: int) -> bool:
    return config.use_motion_module and 2**level in config.motion_module_resolutions


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
        self.norm1 = _GroupNorm(groups, inputs, eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * config.block_out_channels[0], outputs)
        self.norm2 = _GroupNorm(groups, outputs, eps)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, time: Tensor, clip: _Clip) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x, clip)))
        h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(functional.silu(self.norm2(h, clip)))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out if self.scale == 1 else out / self.scale


class _GroupNorm(nn.GroupNorm):
    """GroupNorm as plain reductions, for TensorRT has no kernel for the operator on some GPUs.

    The statistics are taken over the grouped view in one step. Means per channel that are then
    combined would be cheaper to write, but TensorRT-RTX 1.6 fails to build them in FP32.
    """

    def forward(self, input: Tensor, clip: _Clip | None = None) -> Tensor:  # noqa: A002
        """Normalise per frame, or over all frames of each (batch, frames) ``clip``."""
        images, channels, height, width = input.shape
        size = channels // self.num_groups
        grouped = (*(clip or (images, 1)), self.num_groups, size, height * width)
        x = _fp32(input).reshape(grouped)
        x = x - x.mean((1, 3, 4), keepdim=True)
        variance = (x * x).mean((1, 3, 4), keepdim=True)
        x = (x * torch.rsqrt(variance + self.eps)).reshape(input.shape)
        weight, bias = (_fp32(p).reshape(-1, 1, 1) for p in (self.weight, self.bias))
        return _like(x * weight + bias, input)


# Conversions that change nothing are left out: traced, each costs nodes and time.
def _fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 else x.float()


def _like(x: Tensor, other: Tensor) -> Tensor:
    return x if x.dtype == other.dtype else x.to(other.dtype)


class _LayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        weight, bias = _fp32(self.weight), _fp32(self.bias)
        out = functional.layer_norm(_fp32(input), self.normalized_shape, weight, bias, self.eps)
        return _like(out, input)


class _Attention(nn.Module):
    """Multi-head attention of (n, tokens, channels) to itself or to ``context``."""

    def __init__(self, channels: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context or channels, channels, bias=False)
        self.to_v = nn.Linear(context or channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        q, k, v = (
            linear(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, tokens in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
        )
        return cast(Tensor, self.to_out[0](_attend(q, k, v).transpose(1, 2).flatten(-2)))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax(q k^T / sqrt(head size)) v over (n, heads, tokens, head size)."""
    if not torch.compiler.is_exporting():
        return functional.scaled_dot_product_attention(q, k, v)
    # The operators TensorRT fuses, with the softmax in FP32.
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return _like(_fp32(scores).softmax(-1), v) @ v


class _FeedForward(nn.Module):
    """GEGLU with four times the channels inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The original has a dropout at index 1.
        self.net = nn.ModuleList(
            [_Geglu(channels), nn.Identity(), nn.Linear(4 * channels, channels)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.net[2](self.net[0](x)))


class _Geglu(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 8 * channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return cast(Tensor, value * functional.gelu(gate))


class _Transformer(nn.Module):
    """Attention over the pixels of each frame, and to the audio of that frame."""

    def __init__(self, config: UNetConfig, channels: int, heads: int) -> None:
        super().__init__()
        audio = config.cross_attention_dim if config.add_audio_layer else None
        self.norm = _GroupNorm(config.norm_num_groups, channels, _TRANSFORMER_EPS)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([_TransformerBlock(channels, heads, audio)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, audio: Tensor | None) -> Tensor:
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, audio)
        out: Tensor = self.proj_out(tokens.transpose(1, 2).reshape(x.shape))
        return x + out


class _TransformerBlock(nn.Module):
    def __init__(self, channels: int, heads: int, audio: int | None) -> None:
        super().__init__()
        self.norm1 = _LayerNorm(channels)
        self.attn1 = _Attention(channels, heads)
        if audio is not None:
            self.norm2 = _LayerNorm(channels)
            self.attn2 = _Attention(channels, heads, audio)
        self.norm3 = _LayerNorm(channels)
        self.ff = _FeedForward(channels)

    def forward(self, x: Tensor, audio: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        if hasattr(self, "attn2"):
            x = x + self.attn2(self.norm2(x), audio)
        return x + cast(Tensor, self.ff(self.norm3(x)))


class _Motion(nn.Module):
    def __init__(self, config: MotionConfig, channels: int) -> None:
        super().__init__()
        self.temporal_transformer = _TemporalTransformer(config, channels)

    def forward(self, x: Tensor, clip: _Clip) -> Tensor:
        return cast(Tensor, self.temporal_transformer(x, clip))


class _TemporalTransformer(nn.Module):
    """Attention of every pixel over the frames of its clip."""

    def __init__(self, config: MotionConfig, channels: int) -> None:
        super().__init__()
        heads = config.num_attention_heads
        inner = channels // heads // config.temporal_attention_dim_div * heads
        self.norm = _GroupNorm(_MOTION_GROUPS, channels, _TRANSFORMER_EPS)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList(
            _TemporalBlock(config, inner) for _ in range(config.num_transformer_block)
        )
        self.proj_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, clip: _Clip) -> Tensor:
        batch, frames = clip
        _, channels, height, width = x.shape
        pixels = height * width
        # (batch*frames, channels, height, width) -> (batch*pixels, frames, channels), and back
        h = self.norm(x).reshape(batch, frames, channels, pixels).permute(0, 3, 1, 2)
        h = self.proj_in(h.reshape(batch * pixels, frames, channels))
        for block in self.transformer_blocks:
            h = block(h)
        h = self.proj_out(h).reshape(batch, pixels, frames, channels).permute(0, 2, 3, 1)
        return x + cast(Tensor, h.reshape(x.shape))


class _TemporalBlock(nn.Module):
    def __init__(self, config: MotionConfig, channels: int) -> None:
        super().__init__()
        kinds = config.attention_block_types
        self.attention_blocks = nn.ModuleList(_TemporalAttention(config, channels) for _ in kinds)
        self.norms = nn.ModuleList(_LayerNorm(channels) for _ in kinds)
        self.ff = _FeedForward(channels)
        self.ff_norm = _LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x))
        return x + cast(Tensor, self.ff(self.ff_norm(x)))


class _TemporalAttention(_Attention):
    def __init__(self, config: MotionConfig, channels: int) -> None:
        super().__init__(channels, config.num_attention_heads)
        positions = config.temporal_position_encoding_max_len
        has_positions = config.temporal_position_encoding
        self.pos_encoder = _Positions(positions, channels) if has_positions else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x if self.pos_encoder is None else self.pos_encoder(x), context)


class _Positions(nn.Module):
    """Adds sinusoidal positions to (n, frames, channels)."""

    pe: Tensor

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("pe", torch.empty(1, count, channels))
        self.reset()

    def reset(self) -> None:
        _, count, channels = self.pe.shape
        rates = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
        angles = torch.arange(count)[:, None] * rates
        self.pe.copy_(torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[None])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe[:, : x.shape[1]]
