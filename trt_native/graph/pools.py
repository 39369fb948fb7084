"""Padding of the windows of pools and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["POOLS", "end_padding", "same_padding"]

POOLS = ("MaxPool", "AveragePool", "LpPool")


def end_padding(
    kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> list[int]:
    """Padding behind each axis with which rounding down gives what ``ceil_mode`` should.

    ONNX since opset 22, and PyTorch, leave out a last window that starts in the padding behind the
    data. The last one starts at or before the last element, so it ends at most
    ``(kernel - 1) * dilation`` behind it.

    Args:
        kernel: Elements of a window, by spatial axis.
        strides: Elements between windows; empty for 1.
        dilations: Elements between elements of a window; empty for 1.
        pads: Padding before every axis, then behind every axis; empty for none.
    """
    rank = len(kernel)
    ends = [*pads[rank:]] or [0] * rank
    spans = [(k - 1) * d for k, d in zip(kernel, dilations or [1] * rank, strict=True)]
    return [
        min(end + stride - 1, span)
        for end, stride, span in zip(ends, strides or [1] * rank, spans, strict=True)
    ]


def same_padding(
    spans: Sequence[int], strides: Sequence[int], extents: Sequence[Any] | None, *, upper: bool
) -> tuple[list[int], list[int]] | None:
    """Padding before and behind each axis that ``auto_pad`` SAME_UPPER or SAME_LOWER stands for.

    There are as many windows as strides begin in an axis. Of an odd number the larger half is
    behind the axis, or before it.

    Args:
        spans: Elements from the first to the last of a window, by spatial axis.
        strides: Elements between windows.
        extents: Elements of each axis, where they are known.
        upper: Whether the larger half is behind the axis.

    Returns:
        None where the padding depends on an extent that is not known.
    """
    totals = []
    for span, stride, extent in zip(spans, strides, extents or [None] * len(spans), strict=True):
        if stride == 1:
            totals.append(span)
        elif isinstance(extent, int):
            totals.append(max((-(-extent // stride) - 1) * stride + span + 1 - extent, 0))
        else:
            return None
    less, more = [n // 2 for n in totals], [n - n // 2 for n in totals]
    return (less, more) if upper else (more, less)
