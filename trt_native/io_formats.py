"""Layouts in memory that TensorRT gives inputs and outputs besides C order (``TensorFormat``)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from trt_native.errors import UnsupportedError
from trt_native.shapes import Shape

__all__ = ["IO_FORMATS", "OTHER_LAYOUTS", "IoFormat", "StridedCopy", "find_format"]


@dataclass(frozen=True, slots=True)
class StridedCopy:
    """Rows of bytes that lie apart in C order, and in a format.

    Attributes:
        width: Bytes of a row.
        rows: Number of rows.
        plain: Offset of the first row in C order, in bytes.
        plain_pitch: From there to the next row.
        packed: Offset of the first row in the format.
        packed_pitch: From there to the next row.
    """

    width: int
    rows: int
    plain: int
    plain_pitch: int
    packed: int
    packed_pitch: int


@dataclass(frozen=True, slots=True)
class IoFormat:
    """A layout, in which so many channels lie next to one another.

    Attributes:
        name: TensorRT's name of it.
        spatial: Number of axes behind that of the channels.
        channels: Channels of one vector, which is filled up where they are fewer; 1 for layouts
            that are not vectorized.
        last: The channels are the last axis, filled up to a multiple of ``channels``. Otherwise
            vectors of channels are last, and the number of vectors is where the channels were.
    """

    name: str
    spatial: int
    channels: int
    last: bool

    def nbytes(self, shape: Shape, itemsize: int) -> int:
        """Size in memory of a tensor of this shape, with what fills it up."""
        outer, channels, inner = self._extents(shape)
        return outer * inner * self._padded(channels) * itemsize

    def is_padded(self, shape: Shape) -> bool:
        """Whether there is memory that no element of the tensor is in."""
        channels = self._extents(shape)[1]
        return self._padded(channels) != channels

    def copies(self, shape: Shape, itemsize: int) -> tuple[StridedCopy, ...]:
        """Copies that together move a tensor from C order to the format, or back.

        Args:
            shape: Its shape, as in C order.
            itemsize: Bytes of an element.
        """
        return _copies(self, shape, itemsize)

    def _extents(self, shape: Shape) -> tuple[int, int, int]:
        """Numbers of elements before the channels, of channels, and behind them."""
        axis = len(shape) - self.spatial - 1
        return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])

    def _padded(self, channels: int) -> int:
        return -(-channels // self.channels) * self.channels

    def _make_copies(self, shape: Shape, itemsize: int) -> Iterator[StridedCopy]:
        outer, channels, inner = self._extents(shape)
        padded = self._padded(channels)
        group = channels if self.last else self.channels
        row = (padded if self.last else group) * itemsize
        for first in range(0, outer * channels, channels):
            for start in range(0, channels, group):
                count = min(group, channels - start)
                plain = (first + start) * inner * itemsize
                packed = (first // channels * padded + start) * inner * itemsize
                if self.last:
                    packed = first // channels * padded * inner * itemsize
                if count <= inner:
                    for channel in range(count):
                        yield StridedCopy(
                            itemsize,
                            inner,
                            plain + channel * inner * itemsize,
                            itemsize,
                            packed + channel * itemsize,
                            row,
                        )
                else:
                    for place in range(inner):
                        yield StridedCopy(
                            itemsize,
                            count,
                            plain + place * itemsize,
                            inner * itemsize,
                            packed + place * row,
                            itemsize,
                        )


@functools.lru_cache(1024)
def _copies(layout: IoFormat, shape: Shape, itemsize: int) -> tuple[StridedCopy, ...]:
    if 0 in shape:
        return ()
    return tuple(layout._make_copies(shape, itemsize))


IO_FORMATS = {
    layout.name: layout
    for layout in (
        IoFormat("CHW2", 2, 2, False),
        IoFormat("CHW4", 2, 4, False),
        IoFormat("CHW16", 2, 16, False),
        IoFormat("CHW32", 2, 32, False),
        IoFormat("CDHW32", 3, 32, False),
        IoFormat("HWC", 2, 1, True),
        IoFormat("HWC8", 2, 8, True),
        IoFormat("HWC16", 2, 16, True),
        IoFormat("DHWC", 3, 1, True),
        IoFormat("DHWC8", 3, 8, True),
    )
}
"""The formats by name, as the documentation of TensorRT's ``TensorFormat`` describes them."""

OTHER_LAYOUTS = frozenset({("CHW4", "float16")})
"""Formats of a type whose memory is another than documented, with TensorRT-RTX 1.6 on an H200."""


def find_format(
    tensor: str, name: str, dtype: str, shape: Shape, *, components: int, axis: int
) -> IoFormat | None:
    """Look up the format of an engine's tensor, and compare it with what the engine says of it.

    Args:
        tensor: Name of the tensor.
        name: The engine's name of the format.
        dtype: The tensor's type, by NumPy's name.
        shape: The tensor's extents; -1 where dynamic.
        components: How many elements lie in one vector, or -1 for one.
        axis: Axis along which they do, or -1.

    Returns:
        None for C order.

    Raises:
        UnsupportedError: the format is unknown, or something else than it is taken for.
    """
    if name == "LINEAR" and components in (-1, 1):
        return None
    layout = IO_FORMATS.get(name)
    own_axis = len(shape) - (layout.spatial if layout else 0) - 1
    if (
        layout is None
        or (name, dtype) in OTHER_LAYOUTS
        or own_axis < 0
        or components not in (-1, 1, layout.channels)
        or axis not in (-1, own_axis)
    ):
        vector = f", {components} components along axis {axis}" if components > 1 else ""
        raise UnsupportedError(
            f"tensor {tensor!r} of {len(shape)} axes in {dtype} has the format {name}{vector},"
            " which cannot be read and written here; build the plan with linear inputs and outputs"
        )
    return layout
