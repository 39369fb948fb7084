"""LatentSync's U-Net with the layout of LatentSync's own module, to measure what that costs.

Activations are (batch, channels, frames, height, width) and are rearranged to (batch*frames,
channels, height, width) and back around every convolution and every transformer; norms and softmax
work in the module's type. Written from a description of that module, none of whose code is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trt_native.models.latentsync import UNet

__all__ = ["NaiveUNet"]

# Of the modules, whose classes are private to the package, only names and parameters are used.
_Module = Any


class NaiveUNet(UNet):
    """Computes what :class:`UNet` does, from the same parameters."""

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`UNet.forward`; the audio has rank 3 here."""
        return self.step(latents, timestep, encoder_hidden_states)[0]

    def step(
        self,
        latents: Tensor,
        timestep: Tensor | float,
        audio: Tensor | None,
        deep_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The noise and the deep features, (batch, channels, frames, height, width) both.

        With ``deep_features`` the step is DeepCache's shallow one, of branch 0.
        """
        x = 2 * latents - 1 if self.config.center_input_sample else latents
        time = self._time(torch.as_tensor(timestep, device=latents.device).reshape(-1))
        skips = [_conv(self.conv_in, x)]
        if deep_features is None:
            deep_features = self._until_last(skips, time, audio)
        last = self.up_blocks[-1]
        x = torch.cat((deep_features, skips.pop()), dim=1)
        x = _layer(last, len(_list(last.resnets)) - 1, x, time, audio)
        return _conv(self.conv_out, functional.silu(_norm(self.conv_norm_out, x))), deep_features

    def _until_last(self, skips: list[Tensor], time: Tensor, audio: Tensor | None) -> Tensor:
        """All between ``conv_in`` and the last layer, which finds its skip left in ``skips``."""
        x = skips[0]
        for block in _list(self.down_blocks):
            for index in range(len(block.resnets)):
                x = _layer(block, index, x, time, audio)
                skips.append(x)
            if block.downsamplers is not None:
                x = _conv(block.downsamplers[0].conv, x)
                skips.append(x)
        x = self._middle(x, time, audio)
        for block in _list(self.up_blocks):
            is_last = block is self.up_blocks[-1]
            for index in range(len(block.resnets) - is_last):
                x = _layer(block, index, torch.cat((x, skips.pop()), dim=1), time, audio)
            if block.upsamplers is not None:
                x = functional.interpolate(x, size=skips[-1].shape[2:], mode="nearest")
                x = _conv(block.upsamplers[0].conv, x)
        return x

    def _middle(self, x: Tensor, time: Tensor, audio: Tensor | None) -> Tensor:
        block: _Module = self.mid_block
        first, second = block.resnets
        x = _transformer(block.attentions[0], _resnet(first, x, time), audio)
        for motion in block.motion_modules:
            x = _motion(motion.temporal_transformer, x)
        return _resnet(second, x, time)

    def _time(self, timestep: Tensor) -> Tensor:
        embedding: _Module = self.time_embedding
        waves = embedding.linear_1(self._waves(timestep))
        out: Tensor = embedding.linear_2(functional.silu(waves))
        return out


def _list(modules: Any) -> list[_Module]:
    return list(modules)


def _to_images(x: Tensor) -> Tensor:
    """(batch, channels, frames, height, width) to (batch*frames, channels, height, width)."""
    return x.transpose(1, 2).flatten(0, 1)


def _to_clips(x: Tensor, batch: int) -> Tensor:
    return _split(x, 0, (batch, -1)).transpose(1, 2)


def _split(x: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    out: Tensor = x.unflatten(axis, sizes)  # type: ignore[no-untyped-call]
    return out


def _conv(conv: _Module, x: Tensor) -> Tensor:
    return _to_clips(_conv2d(conv, _to_images(x)), x.shape[0])


def _conv2d(conv: _Module, x: Tensor) -> Tensor:
    out: Tensor = functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    return out


def _norm(norm: _Module, x: Tensor) -> Tensor:
    """GroupNorm over all axes after the channels: also the frames, where there are any."""
    return functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _layer(block: _Module, index: int, x: Tensor, time: Tensor, audio: Tensor | None) -> Tensor:
    x = _resnet(block.resnets[index], x, time)
    if len(block.attentions):
        x = _transformer(block.attentions[index], x, audio)
    if len(block.motion_modules):
        x = _motion(block.motion_modules[index].temporal_transformer, x)
    return x


def _resnet(block: _Module, x: Tensor, time: Tensor) -> Tensor:
    h = _conv(block.conv1, functional.silu(_norm(block.norm1, x)))
    h = h + block.time_emb_proj(functional.silu(time))[:, :, None, None, None]
    h = _conv(block.conv2, functional.silu(_norm(block.norm2, h)))
    if block.conv_shortcut is not None:
        x = _conv(block.conv_shortcut, x)
    out: Tensor = (x + h) / block.scale
    return out


def _transformer(module: _Module, x: Tensor, audio: Tensor | None) -> Tensor:
    images = _to_images(x)
    h = _conv2d(module.proj_in, _norm(module.norm, images))
    tokens = h.permute(0, 2, 3, 1).flatten(1, 2)
    for block in module.transformer_blocks:
        tokens = tokens + _attention(block.attn1, _layer_norm(block.norm1, tokens))
        if hasattr(block, "attn2"):
            tokens = tokens + _attention(block.attn2, _layer_norm(block.norm2, tokens), audio)
        tokens = tokens + _feed_forward(block.ff, _layer_norm(block.norm3, tokens))
    h = _split(tokens, 1, h.shape[2:]).permute(0, 3, 1, 2).contiguous()
    return _to_clips(_conv2d(module.proj_out, h) + images, x.shape[0])


def _motion(module: _Module, x: Tensor) -> Tensor:
    images, frames = _to_images(x), x.shape[2]
    h = _norm(module.norm, images)
    tokens = module.proj_in(h.permute(0, 2, 3, 1).flatten(1, 2))
    for block in module.transformer_blocks:
        for attention, norm in zip(block.attention_blocks, block.norms, strict=True):
            tokens = tokens + _over_frames(attention, _layer_norm(norm, tokens), frames)
        tokens = tokens + _feed_forward(block.ff, _layer_norm(block.ff_norm, tokens))
    h = _split(module.proj_out(tokens), 1, h.shape[2:])
    h = h.permute(0, 3, 1, 2).contiguous()
    return _to_clips(h + images, x.shape[0])


def _over_frames(attention: _Module, tokens: Tensor, frames: int) -> Tensor:
    """Attention between the frames of (batch*frames, pixels, channels), and back."""
    pixels = tokens.shape[1]
    h = _split(tokens, 0, (-1, frames)).transpose(1, 2).flatten(0, 1)
    if attention.pos_encoder is not None:
        h = h + attention.pos_encoder.pe[:, :frames]
    return _split(_attention(attention, h), 0, (-1, pixels)).transpose(1, 2).flatten(0, 1)


def _attention(module: _Module, x: Tensor, context: Tensor | None = None) -> Tensor:
    source = x if context is None else context
    q, k, v = (
        _split(linear(tokens), -1, (module.heads, -1)).transpose(1, 2)
        for linear, tokens in ((module.to_q, x), (module.to_k, source), (module.to_v, source))
    )
    # PyTorch has kernels for it; an export writes products and a softmax in the module's type.
    out = functional.scaled_dot_product_attention(q, k, v)
    result: Tensor = module.to_out[0](out.transpose(1, 2).flatten(-2))
    return result


def _layer_norm(norm: _Module, x: Tensor) -> Tensor:
    return functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _feed_forward(module: _Module, x: Tensor) -> Tensor:
    value, gate = module.net[0].proj(x).chunk(2, dim=-1)
    out: Tensor = module.net[2](value * functional.gelu(gate))
    return out
