"""Blocks of the U-Net, and names, shapes and random values of its parameters, without PyTorch.

Names, shapes and their order are those of the module's state dict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trt_native.models.latentsync.config import MotionConfig, UNetConfig

__all__ = [
    "MOTION_GROUPS",
    "TRANSFORMER_EPS",
    "UNetBlock",
    "has_motion",
    "is_position",
    "parameter_shapes",
    "random_parameters",
    "unet_blocks",
]

MOTION_GROUPS = 32
"""Groups of the norms in motion modules, regardless of ``norm_num_groups``."""

TRANSFORMER_EPS = 1e-6
"""Epsilon of the norms in front of transformers and motion modules."""

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class UNetBlock:
    """The ResNet blocks of one level, or those in the middle.

    Attributes:
        name: Path of the module.
        inputs: Channels that enter each ResNet block.
        channels: Channels that leave each of them.
        heads: Heads of the transformers.
        attentions: Number of transformers.
        motions: Number of motion modules.
        sampler: Path of the convolution behind all of them, if any.
    """

    name: str
    inputs: tuple[int, ...]
    channels: int
    heads: int
    attentions: int
    motions: int
    sampler: str | None = None


def unet_blocks(config: UNetConfig) -> tuple[list[UNetBlock], UNetBlock, list[UNetBlock]]:
    """The blocks on the way down, in the middle and on the way up."""
    levels = range(len(config.block_out_channels))
    channels, heads = config.block_out_channels[-1], config.heads[-1]
    motions = int(config.use_motion_module and config.motion_module_mid_block)
    mid = UNetBlock("mid_block", (channels, channels), channels, heads, 1, motions)
    down = [_down_block(config, level) for level in levels]
    up = [_up_block(config, level) for level in reversed(levels)]
    return down, mid, up


def _down_block(config: UNetConfig, level: int) -> UNetBlock:
    channels, count = config.block_out_channels, config.layers_per_block
    name = f"down_blocks.{level}"
    attention = config.down_block_types[level] == "CrossAttnDownBlock3D"
    motion = has_motion(config, level) and not config.motion_module_decoder_only
    return UNetBlock(
        name,
        (channels[max(level - 1, 0)], *[channels[level]] * (count - 1)),
        channels[level],
        config.heads[level],
        count * attention,
        count * motion,
        f"{name}.downsamplers.0.conv" if level < len(channels) - 1 else None,
    )


def _up_block(config: UNetConfig, level: int) -> UNetBlock:
    channels, count = config.block_out_channels, config.layers_per_block
    last = len(channels) - 1
    name = f"up_blocks.{last - level}"
    # Skips arrive in reverse: this level's own, then what entered it from the level above.
    skips = [*[channels[level]] * count, channels[max(level - 1, 0)]]
    arriving = [channels[min(level + 1, last)], *[channels[level]] * count]
    return UNetBlock(
        name,
        tuple(x + skip for x, skip in zip(arriving, skips, strict=True)),
        channels[level],
        config.heads[level],
        (count + 1) * (config.up_block_types[last - level] == "CrossAttnUpBlock3D"),
        (count + 1) * has_motion(config, level),
        f"{name}.upsamplers.0.conv" if level else None,
    )


def has_motion(config: UNetConfig, level: int) -> bool:
    """Whether a level has motion modules on the way up."""
    return config.use_motion_module and 2**level in config.motion_module_resolutions


# Parameters --------------------------------------------------------------------------------------


def parameter_shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by name, positions among them, in the state dict's order."""
    first = config.block_out_channels[0]
    down, mid, up = unet_blocks(config)
    return dict(
        [
            *_layer("conv_in", (first, config.in_channels, 3, 3)),
            *_layer("time_embedding.linear_1", (4 * first, first)),
            *_layer("time_embedding.linear_2", (4 * first, 4 * first)),
            *(shape for block in down for shape in _block(config, block)),
            *_block(config, mid),
            *(shape for block in up for shape in _block(config, block)),
            *_layer("conv_norm_out", (first,)),
            *_layer("conv_out", (config.out_channels, first, 3, 3)),
        ]
    )


def is_position(name: str) -> bool:
    """Whether a name is that of computed positions, which are not trained."""
    return name.endswith(".pe")


def _layer(name: str, weight: tuple[int, ...]) -> Shapes:
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


def _block(config: UNetConfig, block: UNetBlock) -> Shapes:
    time = 4 * config.block_out_channels[0]
    for index, inputs in enumerate(block.inputs):
        yield from _resnet(f"{block.name}.resnets.{index}", inputs, block.channels, time)
    for index in range(block.attentions):
        yield from _transformer(config, f"{block.name}.attentions.{index}", block.channels)
    for index in range(block.motions):
        name = f"{block.name}.motion_modules.{index}.temporal_transformer"
        yield from _motion(config.motion_module_kwargs, name, block.channels)
    if block.sampler is not None:
        yield from _layer(block.sampler, (block.channels, block.channels, 3, 3))


def _resnet(name: str, inputs: int, outputs: int, time: int) -> Shapes:
    yield from _layer(f"{name}.norm1", (inputs,))
    yield from _layer(f"{name}.conv1", (outputs, inputs, 3, 3))
    yield from _layer(f"{name}.time_emb_proj", (outputs, time))
    yield from _layer(f"{name}.norm2", (outputs,))
    yield from _layer(f"{name}.conv2", (outputs, outputs, 3, 3))
    if inputs != outputs:
        yield from _layer(f"{name}.conv_shortcut", (outputs, inputs, 1, 1))


def _transformer(config: UNetConfig, name: str, channels: int) -> Shapes:
    block = f"{name}.transformer_blocks.0"
    yield from _layer(f"{name}.norm", (channels,))
    yield from _layer(f"{name}.proj_in", (channels, channels, 1, 1))
    yield from _layer(f"{block}.norm1", (channels,))
    yield from _attention(f"{block}.attn1", channels, channels)
    if config.add_audio_layer:
        yield from _layer(f"{block}.norm2", (channels,))
        yield from _attention(f"{block}.attn2", channels, config.cross_attention_dim)
    yield from _layer(f"{block}.norm3", (channels,))
    yield from _feed_forward(f"{block}.ff", channels)
    yield from _layer(f"{name}.proj_out", (channels, channels, 1, 1))


def _attention(name: str, channels: int, context: int) -> Shapes:
    yield f"{name}.to_q.weight", (channels, channels)
    yield f"{name}.to_k.weight", (channels, context)
    yield f"{name}.to_v.weight", (channels, context)
    yield from _layer(f"{name}.to_out.0", (channels, channels))


def _feed_forward(name: str, channels: int) -> Shapes:
    yield from _layer(f"{name}.net.0.proj", (8 * channels, channels))
    yield from _layer(f"{name}.net.2", (channels, 4 * channels))


def _motion(config: MotionConfig, name: str, channels: int) -> Shapes:
    inner = config.inner_channels(channels)
    yield from _layer(f"{name}.norm", (channels,))
    yield from _layer(f"{name}.proj_in", (inner, channels))
    for number in range(config.num_transformer_block):
        block = f"{name}.transformer_blocks.{number}"
        kinds = range(len(config.attention_block_types))
        for index in kinds:
            yield from _attention(f"{block}.attention_blocks.{index}", inner, inner)
            if config.temporal_position_encoding:
                count = config.temporal_position_encoding_max_len
                yield f"{block}.attention_blocks.{index}.pos_encoder.pe", (1, count, inner)
        for index in kinds:
            yield from _layer(f"{block}.norms.{index}", (inner,))
        yield from _feed_forward(f"{block}.ff", inner)
        yield from _layer(f"{block}.ff_norm", (inner,))
    yield from _layer(f"{name}.proj_out", (channels, inner))


def random_parameters(
    config: UNetConfig, seed: int
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Values in FP32, one parameter at a time, those of ``UNet.init_random`` with the same seed.

    PyTorch's generator is NumPy's, of whose numbers it takes the low 24 bits.
    """
    generator = np.random.RandomState(seed & 0xFFFFFFFF)  # the same Mersenne twister
    for name, shape in parameter_shapes(config).items():
        if is_position(name):
            yield name, _positions(*shape[1:])[None]
            continue
        drawn = generator.randint(0, 2**32, math.prod(shape), dtype=np.uint32)
        drawn &= 0xFFFFFF
        values = drawn.astype(np.float32).reshape(shape)
        values *= np.float32(2.0**-23)
        values -= 1
        if len(shape) > 1:
            values *= np.float32(math.sqrt(3 / math.prod(shape[1:])))
        else:
            values *= np.float32(0.1)
            values += np.float32("norm" in name and name.endswith("weight"))
        yield name, values


def _positions(count: int, channels: int) -> npt.NDArray[np.float32]:
    """Sines and cosines of each position, (count, channels)."""
    exponents = np.arange(0, channels, 2, dtype=np.float32)
    rates = np.exp(exponents * np.float32(-math.log(10000.0) / channels))
    angles = np.arange(count, dtype=np.float32)[:, None] * rates
    return np.stack((np.sin(angles), np.cos(angles)), axis=-1).reshape(count, channels)
