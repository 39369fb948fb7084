"""Reshape tokens to an image before their axes are swapped.

TensorRT-RTX 1.6 miscompiles, in FP16 and on the GPU alone, transformers whose blocks have attention
of several heads and a convolution over the image that the tokens form: from the second block on,
and from a batch of 2 on, with a relative error above 0.1. It computes the same right where the
tokens are first reshaped to an image with the channels last and then transposed, at the same cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import opset_of
from trt_native.passes.base import GraphPass
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder

__all__ = ["ReshapeTokens"]

_SHAPES_AS_INPUT = 5  # since this opset Reshape takes them so
_REDUCED = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class _Image(NamedTuple):
    """Tokens whose axes are swapped, and which are then reshaped.

    Attributes:
        transpose: Of (batch, tokens, channels).
        reshape: To (batch, channels, axes of the image).
        axes: Extents of the image.
        channels: Their number.
    """

    transpose: ir.Node
    reshape: ir.Node
    axes: list[int | ir.SymbolicDim]
    channels: int


class ReshapeTokens(GraphPass):
    """Tokens of reduced types as images, with the axes swapped last."""

    name = "reshape_tokens"
    title = "Reshaping tokens before transposing them"
    typed = True

    def needed(self, model: ir.Model) -> bool:
        """Whether there are such tokens, of which the axes are swapped first."""
        return any(self._images(model, infer=not self.record))

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Swap the axes last; what is swapped first stays, for who asks for it."""
        images, names = list(self._images(model, infer=True)), NameAuthority(model)
        for image in images:
            _rewrite(ReplacementBuilder(image.reshape, names, opset_of(model)), image)
        return {"nodes": {"Reshape": len(images)}}

    def preview(self, model: ir.Model) -> Mapping[str, Any]:
        """The number of images."""
        return {"nodes": {"Reshape": len(list(self._images(model, infer=False)))}}

    def _images(self, model: ir.Model, *, infer: bool) -> Iterator[_Image]:
        if opset_of(model) < _SHAPES_AS_INPUT:
            return
        lowered = self.context.precision.lowered_to is not None
        for image in _images(model, infer=infer):
            if lowered or image.reshape.outputs[0].dtype in _REDUCED:
                yield image


def _images(model: ir.Model, *, infer: bool) -> Iterator[_Image]:
    pairs = [pair for node in model.graph if (pair := _pair(node)) is not None]
    if infer and any(v is None or v.shape is None for pair in pairs for v in _ends(*pair)):
        infer_values(model)
    for transpose, reshape in pairs:
        tokens, image = _ends(transpose, reshape)
        if tokens is None or tokens.shape is None or image.shape is None:
            continue
        rows, (batch, *extents) = [*tokens.shape], [*image.shape]
        if len(extents) < len(rows) or extents[0] != rows[2] or not isinstance(rows[2], int):
            continue
        axes = extents[1:]
        if _same(rows[0], batch) or rows[1] == _count(axes):
            yield _Image(transpose, reshape, axes, rows[2])


def _pair(reshape: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """A Transpose that swaps the last of three axes, and a Reshape that alone reads its output."""
    value = reshape.inputs[0] if reshape.op_type == "Reshape" and not reshape.domain else None
    node = value.producer() if value is not None else None
    if value is None or node is None or node.op_type != "Transpose" or node.domain:
        return None
    swapped = tuple(node.attributes.get_ints("perm", ())) == (0, 2, 1)
    alone = len(value.uses()) == 1 and not value.is_graph_output()
    return (node, reshape) if swapped and alone else None


def _ends(transpose: ir.Node, reshape: ir.Node) -> tuple[ir.Value | None, ir.Value]:
    return transpose.inputs[0], reshape.outputs[0]


def _same(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    if isinstance(one, int) or isinstance(other, int):
        return one == other
    return one.value is not None and one.value == other.value


def _count(axes: Sequence[int | ir.SymbolicDim]) -> int | None:
    known = [axis for axis in axes if isinstance(axis, int)]
    return prod(known) if len(known) == len(axes) else None


def _rewrite(new: ReplacementBuilder, image: _Image) -> None:
    last = new.add("Reshape", [image.transpose.inputs[0], _shape(new, image)])
    rank = len(image.axes) + 2
    new.replace(new.add("Transpose", [last], perm=[0, rank - 1, *range(1, rank - 1)]))


def _shape(new: ReplacementBuilder, image: _Image) -> ir.Value:
    """The batch, which is that of the tokens, the axes of the image, and the channels."""
    axes = [axis if isinstance(axis, int) else -1 for axis in image.axes]
    if axes.count(-1) <= 1:
        return new.constant(np.array([0, *axes, image.channels], np.int64))
    order = new.constant(np.arange(2, len(axes) + 2))
    whole = image.reshape.inputs[1]
    parts = [
        new.constant(np.zeros(1, np.int64)),
        new.add("Gather", [whole, order], ir.DataType.INT64),
        new.constant(np.array([image.channels], np.int64)),
    ]
    return new.add("Concat", parts, ir.DataType.INT64, axis=0)
