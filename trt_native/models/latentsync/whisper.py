"""Whisper's audio encoder, which gives LatentSync its audio features, written for TensorRT.

Parameters have the names of OpenAI's implementation, so that its files load unchanged.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_native.errors import ModelError, SpecError
from trt_native.models.latentsync.checkpoint import load_checkpoint, load_into
from trt_native.models.latentsync.layers import LayerNorm

__all__ = ["WHISPER_PRESETS", "WhisperConfig", "WhisperEncoder", "load_whisper"]

_PREFIX = "encoder."


@dataclass(frozen=True)
class WhisperConfig:
    """The encoder's part of OpenAI's ``ModelDimensions``. The defaults are Whisper tiny.

    Attributes:
        n_mels: Frequencies of the spectrogram.
        n_audio_ctx: Positions; a segment has twice as many spectrogram frames.
        n_audio_state: Channels.
        n_audio_head: Attention heads.
        n_audio_layer: Blocks.

    Raises:
        SpecError: numbers are not positive, or the heads do not divide the channels.
    """

    n_mels: int = 80
    n_audio_ctx: int = 1500
    n_audio_state: int = 384
    n_audio_head: int = 6
    n_audio_layer: int = 4

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        if any(type(value) is not int or value < 1 for value in values.values()):
            raise SpecError(f"Whisper's dimensions must be integers of 1 or more, found {values}")
        if self.n_audio_state % self.n_audio_head or self.n_audio_state % 2:
            raise SpecError(
                f"Whisper's n_audio_state {self.n_audio_state} must be even and divisible by"
                f" n_audio_head ({self.n_audio_head})"
            )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> WhisperConfig:
        """Read the ``dims`` of a checkpoint; those of the text decoder are ignored.

        Raises:
            SpecError: dimensions are missing or impossible.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in mapping]:
            raise SpecError(f"Whisper's dimensions lack {', '.join(missing)}")
        return cls(**{name: mapping[name] for name in names})


WHISPER_PRESETS: Mapping[str, WhisperConfig] = {
    "tiny": WhisperConfig(),
    "small": WhisperConfig(n_audio_state=768, n_audio_head=12, n_audio_layer=12),
}
"""Whisper tiny and small, which LatentSync's configurations with 384 and 768 features use."""


class WhisperEncoder(nn.Module):
    """OpenAI's ``AudioEncoder``."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.n_audio_state
        self.conv1 = nn.Conv1d(config.n_mels, channels, 3, padding=1)
        self.conv2 = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        positions = _positions(config.n_audio_ctx, channels)
        self.positional_embedding: Tensor
        self.register_buffer("positional_embedding", positions)
        self.blocks = nn.ModuleList(
            _AudioBlock(channels, config.n_audio_head) for _ in range(config.n_audio_layer)
        )
        self.ln_post = LayerNorm(channels)

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Encode segments.

        Args:
            mel: Logarithmic mel spectrogram, (batch, n_mels, 2 * n_audio_ctx).

        Returns:
            The features, (batch, n_audio_ctx, n_audio_state), and what goes into the first block
            and comes out of each, (batch, n_audio_layer + 1, n_audio_ctx, n_audio_state).
        """
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x + self.positional_embedding
        embeddings = [x]
        for block in self.blocks:
            x = block(x)
            embeddings.append(x)
        return cast(Tensor, self.ln_post(x)), torch.stack(embeddings, dim=1)


def load_whisper(
    *,
    config: WhisperConfig | None = None,
    checkpoint: str | Path | None = None,
    random_seed: int | None = None,
    dtype: str = "float32",
) -> tuple[WhisperEncoder, str | None]:
    """Make an encoder on the CPU, in evaluation mode.

    Args:
        config: With ``random_seed``: the dimensions; by default Whisper tiny's.
        checkpoint: OpenAI's file of a whole Whisper, such as ``tiny.pt``.
        random_seed: Random weights that depend on this number alone, instead of a file.
        dtype: Type of the weights, by torch's name.

    Returns:
        The module, and the SHA-256 of the file if there is one.

    Raises:
        SpecError: not exactly one source of weights is given.
        ModelError: the file cannot be read, or is not Whisper's.
    """
    if (checkpoint is None) == (random_seed is None):
        raise SpecError("give either a checkpoint or a random_seed for Whisper's weights")
    if checkpoint is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_seed or 0)
            encoder = WhisperEncoder(config or WhisperConfig())
        return _finished(encoder, dtype), None
    if config is not None:
        raise SpecError("a checkpoint has dimensions of its own; give none with it")
    found = load_checkpoint(checkpoint)
    try:
        encoder = WhisperEncoder(WhisperConfig.from_mapping(found.config or {}))
    except SpecError as error:
        raise ModelError(
            f"{checkpoint}: not a checkpoint of OpenAI's Whisper, such as LatentSync's"
            f" checkpoints/whisper/tiny.pt: {error.message}"
        ) from None
    weights = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in found.state_dict.items()
        if name.startswith(_PREFIX)
    }
    load_into(encoder, weights)
    return _finished(encoder, dtype), found.sha256


def _finished(encoder: WhisperEncoder, dtype: str) -> WhisperEncoder:
    return encoder.to(getattr(torch, dtype)).requires_grad_(False).eval()


def _positions(length: int, channels: int) -> Tensor:
    """Sines and cosines of wavelengths from 2 pi to 10000 * 2 pi, (length, channels)."""
    steps = torch.linspace(0, math.log(10000), channels // 2)
    angles = torch.arange(length)[:, None] * torch.exp(-steps)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class _AudioAttention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        scale = q.shape[-1] ** -0.25
        scores = (q * scale) @ (k * scale).transpose(-1, -2)
        mixed = scores.float().softmax(-1).to(v.dtype) @ v
        return cast(Tensor, self.out(mixed.transpose(1, 2).flatten(2)))


class _AudioBlock(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attn = _AudioAttention(channels, heads)
        self.attn_ln = LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.mlp_ln = LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x))
        return cast(Tensor, x + self.mlp(self.mlp_ln(x)))
