"""The number of windows of pools that round up."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["POOLS", "end_padding"]

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
