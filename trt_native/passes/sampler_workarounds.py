"""Rules for GridSample.

TensorRT-RTX 1.6 reads beyond the image where it interpolates cubically between few pixels that
another node makes. Zeros around the image are the zeros that it would take there.
:class:`~trt_native.passes.parser_workarounds.ParserWorkarounds` applies them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trt_native.graph.nodes import FLOAT, dtype_of
from trt_native.passes.extent_workarounds import padded
from trt_native.passes.replacement import ReplacementBuilder, RewriteRule

__all__ = ["GRID_SAMPLE"]

_MODES = {"linear": "bilinear", "cubic": "bicubic"}
_FEW = 4  # pixels that a cubic interpolation reads along an axis
_AROUND = 2  # zeros before and behind them


def _is_rewritten(node: ir.Node) -> bool:
    return _has_new_mode(node) or _has_few_pixels(node)


def _rewrite(new: ReplacementBuilder) -> None:
    node = new.node
    if _has_new_mode(node):
        # Some parsers take the name of opset 20 as nearest.
        mode = node.attributes.get_string("mode", "linear")
        node.attributes["mode"] = ir.AttrString("mode", _MODES[mode])
    if _has_few_pixels(node):
        _rewrite_few_pixels(new)


def _has_new_mode(node: ir.Node) -> bool:
    return node.attributes.get_string("mode", "linear") in _MODES


def _has_few_pixels(node: ir.Node) -> bool:
    image = node.inputs[0]
    if image is None or image.shape is None or image.producer() is None:
        return False
    few = any(isinstance(extent, int) and extent < _FEW for extent in image.shape[2:])
    cubic = node.attributes.get_string("mode", "linear") in ("cubic", "bicubic")
    return few and cubic and node.attributes.get_string("padding_mode", "zeros") == "zeros"


def _rewrite_few_pixels(new: ReplacementBuilder) -> None:
    """Put zeros around the image, and let the grid say where the same pixels are now."""
    node = new.node
    image, grid = node.inputs[:2]
    assert image is not None  # noqa: S101  # for the type checker
    assert image.shape is not None  # noqa: S101
    rank = len(image.shape) - 2
    wider = padded(new, image, [_AROUND] * rank, [_AROUND] * rank)
    # Positions count from -1 to 1 between the middles of the first and last pixel, or their edges.
    corners = node.attributes.get_int("align_corners", 0)
    shape = new.add("Shape", [image], ir.DataType.INT64)
    backwards = new.constant(np.arange(1 + rank, 1, -1))
    counts = new.add("Gather", [shape, backwards], ir.DataType.INT64)
    widths = new.add("Cast", [counts], FLOAT, to=FLOAT.value)
    lengths = new.add("Sub", [widths, new.constant(np.array(corners, np.float32))], FLOAT)
    more = new.constant(np.array(2 * _AROUND, np.float32))
    scale = new.add("Div", [lengths, new.add("Add", [lengths, more], FLOAT)], FLOAT)
    kind = dtype_of(grid) or FLOAT
    if kind != FLOAT:
        scale = new.add("Cast", [scale], kind, to=kind.value)
    moved = new.add("Mul", [grid, scale], kind)
    new.replace(*new.add_with("GridSample", [wider, moved], 1, node.attributes))


GRID_SAMPLE = RewriteRule(_is_rewritten, _rewrite)
