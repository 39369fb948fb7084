"""The U-Net as an ONNX graph, written from its configuration; the module is ``unet.py``'s.

The forms of norms, attention and activations are those that TensorRT runs fast, as measured in
``docs/unet_performance.md``. Statistics of norms and softmax, SiLU and GELU are in FP32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trt_native.models.latentsync.config import UNetConfig
from trt_native.models.latentsync.graph_layers import (
    FLOAT,
    Size,
    add_conv,
    add_gelu,
    add_gemm,
    add_group_norm,
    add_layer_norm,
    add_linear,
    add_product,
    add_silu,
    as_images,
    as_videos,
)
from trt_native.models.latentsync.graph_writer import Extent, GraphWriter
from trt_native.models.latentsync.structure import (
    MOTION_GROUPS,
    TRANSFORMER_EPS,
    UNetBlock,
    unet_blocks,
)
from trt_native.models.latentsync.weights import Weights

__all__ = ["DEEP_FEATURES", "OLDEST_OPSET", "Dims", "write_graph"]

DEEP_FEATURES = "deep_features"

OLDEST_OPSET = 17
"""The first with LayerNormalization."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Extents of the inputs, each a number or the name of a dynamic dimension.

    Attributes:
        batch: Videos.
        frames: Frames of each.
        height: Height of the latents.
        width: Width of the latents.
        tokens: Audio features per frame.
    """

    batch: int | str
    frames: int | str
    height: int | str
    width: int | str
    tokens: int | str

    @property
    def images(self) -> int | str:
        """Frames of all videos."""
        if isinstance(self.batch, int) and isinstance(self.frames, int):
            return self.batch * self.frames
        return "*".join(str(factor) for factor in (self.batch, self.frames) if factor != 1)


def write_graph(
    weights: Weights,
    dims: Dims,
    *,
    dtype: ir.DataType,
    timestep: ir.DataType,
    opset: int,
    deepcache: str | None = None,
) -> ir.Graph:
    """Write the graph of one step.

    Args:
        weights: Configuration and parameters, which are read when the graph is saved.
        dims: Extents of the inputs.
        dtype: Type of latents, audio, parameters and activations.
        timestep: Type of the timestep.
        opset: ONNX operator-set version, at least :data:`OLDEST_OPSET`.
        deepcache: ``full`` for the step that also returns its deep features, ``shallow`` for the
            one that takes them instead of computing them.

    Returns:
        The graph, its nodes in order.
    """
    writer = GraphWriter(weights.tensors, dtype, opset)
    config = weights.config
    shape = (dims.batch, config.in_channels, dims.frames, dims.height, dims.width)
    latents = writer.input("latents", dtype, shape)
    step = writer.input("timestep", timestep, [1])
    audio = features = None
    if config.add_audio_layer:
        shape_of_audio = (dims.images, dims.tokens, config.cross_attention_dim)
        audio = writer.input("encoder_hidden_states", dtype, shape_of_audio)
    if deepcache == "shallow":
        channels = config.block_out_channels[0]
        features = writer.input(
            DEEP_FEATURES, dtype, (dims.images, channels, dims.height, dims.width)
        )
    noise, features = _UNetGraph(writer, config, latents, step, audio).write(features)
    writer.output(noise, "noise_pred")
    if deepcache == "full":
        writer.output(features, DEEP_FEATURES)
    return writer.graph


class _UNetGraph:
    """Writes the U-Net's nodes, in the order of its module's ``forward``."""

    def __init__(
        self,
        writer: GraphWriter,
        config: UNetConfig,
        latents: ir.Value,
        timestep: ir.Value,
        audio: ir.Value | None,
    ) -> None:
        self._w = writer
        self._config = config
        batch, frames, height, width = (writer.extent(latents, axis) for axis in (0, 2, 3, 4))
        images, pixels = writer.product(batch, frames), writer.product(height, width)
        self._size = Size(batch, frames, images, height, width, pixels)
        self._latents = latents
        self._time = self._time_features(timestep)
        self._tokens: Extent = writer.extent(audio, 1) if audio is not None else 0
        self._audio = writer.transpose("", audio, 1, 0, 2) if audio is not None else None

    def write(self, features: ir.Value | None) -> tuple[ir.Value, ir.Value]:
        """Write a step; returns the noise, and the deep features, which may be given."""
        config, writer, size = self._config, self._w, self._size
        down, mid, up = unet_blocks(config)
        x = writer.transpose("", self._latents, 0, 2, 1, 3, 4)
        x = as_images(writer, "", x, config.in_channels, size)
        if config.center_input_sample:
            x = writer.add("", "Mul", [x, writer.constant(2)])
            x = writer.add("", "Sub", [x, writer.constant(1)])
        # What the way down leaves for the way up, each with its channels and size.
        skips = [(add_conv(writer, "conv_in", x, config.block_out_channels[0], size), size)]
        if features is None:
            x = self._way_down(down, skips)
            x = self._mid(mid, x, skips[-1][1])
            for block in up[:-1]:
                x = self._up_layers(block, range(len(block.inputs)), x, skips)
                x = self._upsampled(block, x, skips[-1])
            features = self._up_layers(up[-1], range(len(up[-1].inputs) - 1), x, skips)
        last = len(up[-1].inputs) - 1
        x = self._up_layers(up[-1], range(last, last + 1), features, skips)
        groups, eps = config.norm_num_groups, config.norm_eps
        channels = config.block_out_channels[0]
        x = add_group_norm(
            writer, "conv_norm_out", x, channels, size, groups, eps, across_frames=True
        )
        x = add_conv(writer, "conv_out", add_silu(writer, "", x), config.out_channels, size)
        x = as_videos(writer, "", x, config.out_channels, size)
        return writer.transpose("", x, 0, 2, 1, 3, 4), features

    def _time_features(self, timestep: ir.Value) -> ir.Value:
        """SiLU of the time embedding, (1, features)."""
        writer, config = self._w, self._config
        waves = _frequencies(config)[None]
        angles = writer.add(
            "",
            "Mul",
            [writer.cast("", timestep, FLOAT), writer.constant(waves, FLOAT)],
            waves.shape,
        )
        parts = [writer.add("", operator, [angles]) for operator in ("Sin", "Cos")]
        if config.flip_sin_to_cos:
            parts.reverse()
        extents = (1, config.block_out_channels[0])
        x = writer.cast("", writer.add("", "Concat", parts, extents, axis=-1), writer.dtype)
        features = 4 * config.block_out_channels[0]
        x = add_gemm(writer, "time_embedding.linear_1", x, features)
        x = add_gemm(
            writer, "time_embedding.linear_2", add_silu(writer, "time_embedding", x), features
        )
        return add_silu(writer, "", x)

    # Blocks --------------------------------------------------------------------------------------

    def _way_down(self, blocks: list[UNetBlock], skips: list[tuple[ir.Value, Size]]) -> ir.Value:
        x, size = skips[0]
        for block in blocks:
            for index in range(len(block.inputs)):
                x = self._layer(block, index, x, size)
                skips.append((x, size))
            if block.sampler is not None:
                x, size = self._downsampled(block.sampler, x, block.channels, size)
                skips.append((x, size))
        return x

    def _mid(self, block: UNetBlock, x: ir.Value, size: Size) -> ir.Value:
        scale, channels = self._config.mid_block_scale_factor, block.channels
        x = self._resnet(f"{block.name}.resnets.0", x, channels, channels, size, scale)
        x = self._transformer(f"{block.name}.attentions.0", x, channels, block.heads, size)
        if block.motions:
            x = self._motion(f"{block.name}.motion_modules.0", x, channels, size)
        return self._resnet(f"{block.name}.resnets.1", x, channels, channels, size, scale)

    def _up_layers(
        self, block: UNetBlock, layers: range, x: ir.Value, skips: list[tuple[ir.Value, Size]]
    ) -> ir.Value:
        for index in layers:
            skip, size = skips.pop()
            extents = (size.images, block.inputs[index], size.height, size.width)
            x = self._w.add(block.name, "Concat", [x, skip], extents, axis=1)
            x = self._layer(block, index, x, size)
        return x

    def _layer(self, block: UNetBlock, index: int, x: ir.Value, size: Size) -> ir.Value:
        name, channels = block.name, block.channels
        x = self._resnet(f"{name}.resnets.{index}", x, block.inputs[index], channels, size)
        if block.attentions:
            x = self._transformer(f"{name}.attentions.{index}", x, channels, block.heads, size)
        if block.motions:
            x = self._motion(f"{name}.motion_modules.{index}", x, channels, size)
        return x

    def _downsampled(
        self, module: str, x: ir.Value, channels: int, size: Size
    ) -> tuple[ir.Value, Size]:
        height, width = self._w.halved(size.height), self._w.halved(size.width)
        pixels = self._w.product(height, width)
        smaller = replace(size, height=height, width=width, pixels=pixels)
        return add_conv(self._w, module, x, channels, smaller, stride=2), smaller

    def _upsampled(self, block: UNetBlock, x: ir.Value, skip: tuple[ir.Value, Size]) -> ir.Value:
        """Double height and width, less one where the skip came from an odd size."""
        assert block.sampler is not None  # noqa: S101  # for the type checker
        size = skip[1]
        extents = (size.images, block.channels, size.height, size.width)
        x = self._w.add(
            block.sampler.removesuffix(".conv"),
            "Resize",
            [x, None, None, self._w.integers(*extents)],
            extents,
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )
        return add_conv(self._w, block.sampler, x, block.channels, size)

    def _resnet(
        self,
        module: str,
        x: ir.Value,
        inputs: int,
        outputs: int,
        size: Size,
        scale: float = 1.0,
    ) -> ir.Value:
        writer, config = self._w, self._config
        groups, eps = config.norm_num_groups, config.norm_eps
        h = add_group_norm(
            writer, f"{module}.norm1", x, inputs, size, groups, eps, across_frames=True
        )
        h = add_conv(writer, f"{module}.conv1", add_silu(writer, module, h), outputs, size)
        time = add_gemm(writer, f"{module}.time_emb_proj", self._time, outputs)
        axes = writer.integers(2, 3)
        time = writer.add(module, "Unsqueeze", [time, axes], (1, outputs, 1, 1))
        h = writer.add(module, "Add", [h, time])
        h = add_group_norm(
            writer, f"{module}.norm2", h, outputs, size, groups, eps, across_frames=True
        )
        h = add_conv(writer, f"{module}.conv2", add_silu(writer, module, h), outputs, size)
        if inputs != outputs:
            x = add_conv(writer, f"{module}.conv_shortcut", x, outputs, size, kernel=1)
        h = writer.add(module, "Add", [h, x])
        return h if scale == 1 else writer.add(module, "Div", [h, writer.constant(scale)])

    # Attention -----------------------------------------------------------------------------------

    def _transformer(
        self, module: str, x: ir.Value, channels: int, heads: int, size: Size
    ) -> ir.Value:
        """Attention over the pixels of each image, and to the audio of that frame."""
        writer, groups = self._w, self._config.norm_num_groups
        h = add_group_norm(writer, f"{module}.norm", x, channels, size, groups, TRANSFORMER_EPS)
        h = add_conv(writer, f"{module}.proj_in", h, channels, size, kernel=1)
        # Tokens are (pixels, images, channels): TensorRT's attention takes what products give.
        h = writer.reshape(module, h, (size.images, channels, size.pixels))
        h = writer.transpose(module, h, 2, 0, 1)
        h = self._transformer_block(f"{module}.transformer_blocks.0", h, channels, heads, size)
        h = writer.transpose(module, h, 1, 2, 0)
        h = writer.reshape(module, h, (size.images, channels, size.height, size.width))
        h = add_conv(writer, f"{module}.proj_out", h, channels, size, kernel=1)
        return writer.add(module, "Add", [x, h])

    def _transformer_block(
        self, module: str, x: ir.Value, channels: int, heads: int, size: Size
    ) -> ir.Value:
        writer, pixels, images = self._w, size.pixels, size.images
        h = add_layer_norm(writer, f"{module}.norm1", x)
        h = self._attention(f"{module}.attn1", h, h, pixels, pixels, images, channels, heads)
        x = writer.add(module, "Add", [x, h])
        if self._audio is not None:
            h, tokens = add_layer_norm(writer, f"{module}.norm2", x), self._tokens
            h = self._attention(
                f"{module}.attn2", h, self._audio, pixels, tokens, images, channels, heads
            )
            x = writer.add(module, "Add", [x, h])
        h = self._feed_forward(
            f"{module}.ff", add_layer_norm(writer, f"{module}.norm3", x), channels
        )
        return writer.add(module, "Add", [x, h])

    def _motion(self, module: str, x: ir.Value, channels: int, size: Size) -> ir.Value:
        """Attention of every pixel over the frames of its video."""
        writer, config = self._w, self._config.motion_module_kwargs
        module = f"{module}.temporal_transformer"
        batch, frames, pixels = size.batch, size.frames, size.pixels
        inner = config.inner_channels(channels)
        # (images, channels, height, width) -> (frames, batch*pixels, channels), and back
        h = add_group_norm(
            writer, f"{module}.norm", x, channels, size, MOTION_GROUPS, TRANSFORMER_EPS
        )
        h = writer.reshape(module, h, (batch, frames, channels, pixels))
        h = writer.transpose(module, h, 1, 0, 3, 2)
        h = writer.reshape(module, h, (frames, writer.product(batch, pixels), channels))
        h = add_linear(writer, f"{module}.proj_in", h, inner)
        for number in range(config.num_transformer_block):
            h = self._temporal_block(f"{module}.transformer_blocks.{number}", h, inner, size)
        h = add_linear(writer, f"{module}.proj_out", h, channels)
        h = writer.reshape(module, h, (frames, batch, pixels, channels))
        h = writer.transpose(module, h, 1, 0, 3, 2)
        h = writer.reshape(module, h, (size.images, channels, size.height, size.width))
        return writer.add(module, "Add", [x, h])

    def _temporal_block(self, module: str, x: ir.Value, channels: int, size: Size) -> ir.Value:
        writer, config = self._w, self._config.motion_module_kwargs
        frames, sequences = size.frames, self._w.product(size.batch, size.pixels)
        heads = config.num_attention_heads
        for index in range(len(config.attention_block_types)):
            attention = f"{module}.attention_blocks.{index}"
            h = add_layer_norm(writer, f"{module}.norms.{index}", x)
            if config.temporal_position_encoding:
                h = self._with_positions(f"{attention}.pos_encoder", h, channels, frames)
            h = self._attention(attention, h, h, frames, frames, sequences, channels, heads)
            x = writer.add(module, "Add", [x, h])
        h = self._feed_forward(
            f"{module}.ff", add_layer_norm(writer, f"{module}.ff_norm", x), channels
        )
        return writer.add(module, "Add", [x, h])

    def _with_positions(self, module: str, x: ir.Value, channels: int, frames: Extent) -> ir.Value:
        writer = self._w
        count = self._config.motion_module_kwargs.temporal_position_encoding_max_len
        if isinstance(frames, int):
            positions = writer.parameter(f"{module}.pe", (frames, 1, channels))
        else:
            positions = writer.parameter(f"{module}.pe", (count, 1, channels))
            first = axis = writer.integers(0)
            inputs = [positions, first, frames.value, axis]
            positions = writer.add(module, "Slice", inputs, (frames, 1, channels))
        return writer.add(module, "Add", [x, positions])

    def _attention(
        self,
        module: str,
        x: ir.Value,
        context: ir.Value,
        tokens: Extent,
        context_tokens: Extent,
        sequences: Extent,
        channels: int,
        heads: int,
    ) -> ir.Value:
        """Multi-head attention of (tokens, sequences, channels) to the tokens of a context."""
        writer, head = self._w, channels // heads
        q, k, v = (
            self._heads(module, part, source, (count, sequences, heads, head))
            for part, source, count in (
                ("to_q", x, tokens),
                ("to_k", context, context_tokens),
                ("to_v", context, context_tokens),
            )
        )
        extents = (sequences, heads, tokens, context_tokens)
        scores = writer.add(module, "MatMul", [q, writer.transpose(module, k, 0, 1, 3, 2)], extents)
        scores = writer.add(module, "Mul", [scores, writer.constant(head**-0.5)])
        scores = writer.add(module, "Softmax", [writer.cast(module, scores, FLOAT)], axis=-1)
        scores = writer.cast(module, scores, writer.dtype)
        h = writer.add(module, "MatMul", [scores, v], (sequences, heads, tokens, head))
        h = writer.transpose(module, h, 2, 0, 1, 3)
        h = writer.reshape(module, h, (tokens, sequences, channels))
        return add_linear(writer, f"{module}.to_out.0", h, channels)

    def _heads(
        self, module: str, part: str, x: ir.Value, extents: tuple[Extent, Extent, int, int]
    ) -> ir.Value:
        """Project tokens, and return (sequences, heads, tokens, head size)."""
        _, _, heads, head = extents
        h = add_product(self._w, f"{module}.{part}", x, heads * head)
        return self._w.transpose(module, self._w.reshape(module, h, extents), 1, 2, 0, 3)

    def _feed_forward(self, module: str, x: ir.Value, channels: int) -> ir.Value:
        """GEGLU with four times the channels inside."""
        writer, geglu = self._w, f"{module}.net.0"
        h = add_linear(writer, f"{geglu}.proj", x, 8 * channels)
        value, gate = writer.halves(geglu, h, 4 * channels)
        h = writer.add(geglu, "Mul", [value, add_gelu(writer, geglu, gate)])
        return add_linear(writer, f"{module}.net.2", h, channels)


def _frequencies(config: UNetConfig) -> npt.NDArray[np.float32]:
    """Of the timestep's sines and cosines, in the precision that the module has them in."""
    half = config.block_out_channels[0] // 2
    exponents = np.arange(half, dtype=np.float32)
    exponents *= np.float32(-math.log(10000.0) / (half - config.freq_shift))
    return np.exp(exponents)
