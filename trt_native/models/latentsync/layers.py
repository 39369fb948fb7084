"""Layers of the U-Net's levels besides convolutions: norms, attention, transformers.

The forms are those that TensorRT runs fast, as measured in ``docs/unet_performance.md``. Statistics
of norms and softmax are taken in FP32 regardless of the module's type, and stay so in an export.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_native.models.latentsync.config import MotionConfig, UNetConfig
from trt_native.models.latentsync.structure import MOTION_GROUPS, TRANSFORMER_EPS

__all__ = [
    "BatchFrames",
    "GroupNorm",
    "LayerNorm",
    "Motion",
    "Positions",
    "Transformer",
    "is_exporting",
    "silu",
]

# torch before 2.7, such as LatentSync's, has no such function, and is not one that exports this.
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)
"""Whether the call is traced by ``torch.export``."""

BatchFrames = tuple[int, int]
"""(batch, frames): how the leading axis of an activation is made up."""


class GroupNorm(nn.GroupNorm):
    """GroupNorm as the operator, whose statistics TensorRT always takes in FP32.

    TensorRT-RTX has a kernel of one pass for it where height and width are fixed. A cast to FP32
    around the operator, or the same in arithmetic, costs that kernel. Groups of one channel are
    written as arithmetic: of those it makes another kernel, which fails on a single pixel whose
    place in the shape is dynamic.
    """

    def forward(self, input: Tensor, clip: BatchFrames | None = None) -> Tensor:  # noqa: A002
        """Normalise per frame, or over all frames of each (batch, frames) ``clip``."""
        if self.num_groups == self.num_channels:
            return self._per_channel(input, clip or (input.shape[0], 1))
        if clip is None:
            return super().forward(input)
        _, channels, height, width = input.shape
        whole = input.reshape(*clip, channels, height, width).transpose(1, 2)
        return super().forward(whole).transpose(1, 2).reshape(input.shape)

    def _per_channel(self, input: Tensor, clip: BatchFrames) -> Tensor:  # noqa: A002
        channels = input.shape[1]
        x = _fp32(input).reshape(*clip, channels, -1)
        x = x - x.mean((1, 3), keepdim=True)
        x = x * torch.rsqrt((x * x).mean((1, 3), keepdim=True) + self.eps)
        weight, bias = (_fp32(p).reshape(-1, 1, 1) for p in (self.weight, self.bias))
        return _like(x.reshape(input.shape) * weight + bias, input)


def silu(x: Tensor) -> Tensor:
    """SiLU in FP32, because TensorRT-RTX computes it coarsely in FP16; the cast costs nothing."""
    return _like(functional.silu(_fp32(x)), x)


# Conversions that change nothing are left out: traced, each costs nodes and time.
def _fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 else x.float()


def _like(x: Tensor, other: Tensor) -> Tensor:
    return x if x.dtype == other.dtype else x.to(other.dtype)


class LayerNorm(nn.LayerNorm):
    """LayerNorm in FP32, whatever the module's type."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise over the last axes."""
        weight, bias = _fp32(self.weight), _fp32(self.bias)
        out = functional.layer_norm(_fp32(input), self.normalized_shape, weight, bias, self.eps)
        return _like(out, input)


class _Attention(nn.Module):
    """Multi-head attention of (tokens, n, channels) to itself or to ``context``."""

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
            linear(tokens).unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3)
            for linear, tokens in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
        )
        return cast(Tensor, self.to_out[0](_attend(q, k, v).permute(2, 0, 1, 3).flatten(-2)))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax(q k^T / sqrt(head size)) v over (n, heads, tokens, head size)."""
    if not is_exporting():
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
        # Within a product GELU makes TensorRT-RTX compile a slow one; its FP32 keeps it outside.
        return cast(Tensor, value * _like(functional.gelu(_fp32(gate)), gate))


class Transformer(nn.Module):
    """Attention over the pixels of each frame, and to the audio of that frame."""

    def __init__(self, config: UNetConfig, channels: int, heads: int) -> None:
        super().__init__()
        audio = config.cross_attention_dim if config.add_audio_layer else None
        self.norm = GroupNorm(config.norm_num_groups, channels, TRANSFORMER_EPS)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([_TransformerBlock(channels, heads, audio)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, audio: Tensor | None) -> Tensor:
        """Add to (n, channels, height, width); ``audio`` is (n, tokens, features)."""
        tokens = self.proj_in(self.norm(x)).flatten(2).permute(2, 0, 1)
        context = None if audio is None else audio.transpose(0, 1)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        out: Tensor = self.proj_out(tokens.permute(1, 2, 0).reshape(x.shape))
        return x + out


class _TransformerBlock(nn.Module):
    """Layers on (tokens, n, channels): in this order TensorRT's attention takes what they give."""

    def __init__(self, channels: int, heads: int, audio: int | None) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels)
        self.attn1 = _Attention(channels, heads)
        if audio is not None:
            self.norm2 = LayerNorm(channels)
            self.attn2 = _Attention(channels, heads, audio)
        self.norm3 = LayerNorm(channels)
        self.ff = _FeedForward(channels)

    def forward(self, x: Tensor, audio: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        if hasattr(self, "attn2"):
            x = x + self.attn2(self.norm2(x), audio)
        return x + cast(Tensor, self.ff(self.norm3(x)))


class Motion(nn.Module):
    """Attention over the frames of each clip; the wrapper gives parameters their names."""

    def __init__(self, config: MotionConfig, channels: int) -> None:
        super().__init__()
        self.temporal_transformer = _TemporalTransformer(config, channels)

    def forward(self, x: Tensor, clip: BatchFrames) -> Tensor:
        """Add to (batch*frames, channels, height, width)."""
        return cast(Tensor, self.temporal_transformer(x, clip))


class _TemporalTransformer(nn.Module):
    """Attention of every pixel over the frames of its clip."""

    def __init__(self, config: MotionConfig, channels: int) -> None:
        super().__init__()
        heads = config.num_attention_heads
        inner = channels // heads // config.temporal_attention_dim_div * heads
        self.norm = GroupNorm(MOTION_GROUPS, channels, TRANSFORMER_EPS)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList(
            _TemporalBlock(config, inner) for _ in range(config.num_transformer_block)
        )
        self.proj_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, clip: BatchFrames) -> Tensor:
        batch, frames = clip
        _, channels, height, width = x.shape
        pixels = height * width
        # (batch*frames, channels, height, width) -> (frames, batch*pixels, channels), and back
        h = self.norm(x).reshape(batch, frames, channels, pixels).permute(1, 0, 3, 2)
        h = self.proj_in(h.reshape(frames, batch * pixels, channels))
        for block in self.transformer_blocks:
            h = block(h)
        h = self.proj_out(h).reshape(frames, batch, pixels, channels).permute(1, 0, 3, 2)
        return x + cast(Tensor, h.reshape(x.shape))


class _TemporalBlock(nn.Module):
    def __init__(self, config: MotionConfig, channels: int) -> None:
        super().__init__()
        kinds = config.attention_block_types
        self.attention_blocks = nn.ModuleList(_TemporalAttention(config, channels) for _ in kinds)
        self.norms = nn.ModuleList(LayerNorm(channels) for _ in kinds)
        self.ff = _FeedForward(channels)
        self.ff_norm = LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x))
        return x + cast(Tensor, self.ff(self.ff_norm(x)))


class _TemporalAttention(_Attention):
    def __init__(self, config: MotionConfig, channels: int) -> None:
        super().__init__(channels, config.num_attention_heads)
        positions = config.temporal_position_encoding_max_len
        has_positions = config.temporal_position_encoding
        self.pos_encoder = Positions(positions, channels) if has_positions else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x if self.pos_encoder is None else self.pos_encoder(x), context)


class Positions(nn.Module):
    """Adds sinusoidal positions to (frames, n, channels)."""

    pe: Tensor

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("pe", torch.empty(1, count, channels))
        self.reset()

    def reset(self) -> None:
        """Compute the positions, which an uninitialised module lacks."""
        _, count, channels = self.pe.shape
        rates = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
        angles = torch.arange(count)[:, None] * rates
        self.pe.copy_(torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[None])

    def forward(self, x: Tensor) -> Tensor:
        """Add them."""
        return x + self.pe[0, : x.shape[0], None]
