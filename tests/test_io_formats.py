"""Layouts of inputs and outputs, against the subscripts that TensorRT documents for each."""

from __future__ import annotations

import numpy as np
import pytest

from trt_native.errors import UnsupportedError
from trt_native.io_formats import IO_FORMATS, find_format

# The array's extents and the subscripts of an element, in the words of the documentation of
# TensorFormat, with commas for brackets.
DOCUMENTED = {
    "CHW2": ("N, (C+1)/2, H, W, 2", "n, c/2, h, w, c%2"),
    "CHW4": ("N, (C+3)/4, H, W, 4", "n, c/4, h, w, c%4"),
    "CHW16": ("N, (C+15)/16, H, W, 16", "n, c/16, h, w, c%16"),
    "CHW32": ("N, (C+31)/32, H, W, 32", "n, c/32, h, w, c%32"),
    "HWC": ("N, H, W, C", "n, h, w, c"),
    "HWC8": ("N, H, W, (C+7)/8*8", "n, h, w, c"),
    "HWC16": ("N, H, W, (C+15)/16*16", "n, h, w, c"),
    "CDHW32": ("N, (C+31)/32, D, H, W, 32", "n, c/32, d, h, w, c%32"),
    "DHWC": ("N, D, H, W, C", "n, d, h, w, c"),
    "DHWC8": ("N, D, H, W, (C+7)/8*8", "n, d, h, w, c"),
}


def evaluated(text, axes, numbers):
    """A text of indices, for axes of such numbers."""
    values = dict(zip(axes, numbers, strict=True))
    return eval(f"({text.replace('/', '//')})", {}, values)  # noqa: S307  (a text of this file)


def move(copies, source, target, *, pack):
    """Do copies on the bytes of two arrays, as the GPU's memory is copied."""
    read, written = source.reshape(-1).view(np.uint8), target.reshape(-1).view(np.uint8)
    for copy in copies:
        plain, packed = (copy.plain, copy.plain_pitch), (copy.packed, copy.packed_pitch)
        (start, pitch), (to, to_pitch) = (plain, packed) if pack else (packed, plain)
        for row in range(copy.rows):
            a, b = start + row * pitch, to + row * to_pitch
            assert b + copy.width <= written.size
            written[b : b + copy.width] = read[a : a + copy.width]


def test_every_format_is_documented():
    assert set(DOCUMENTED) == set(IO_FORMATS)


@pytest.mark.parametrize("name", DOCUMENTED)
@pytest.mark.parametrize("channels", [1, 3, 8, 33, 64])
@pytest.mark.parametrize("sides", [(1, 1, 1), (2, 3, 5)])
@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_packing_is_as_documented(name, channels, sides, dtype):
    layout = IO_FORMATS[name]
    shape = (2, channels, *sides[-layout.spatial :])
    extents, subscripts = DOCUMENTED[name]
    axes = "NCHW" if layout.spatial == 2 else "NCDHW"
    plain = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    expected = np.zeros(evaluated(extents, axes, shape), dtype)
    for index in np.ndindex(*shape):
        expected[evaluated(subscripts, axes.lower(), index)] = plain[index]

    itemsize = plain.itemsize
    assert layout.nbytes(shape, itemsize) == expected.nbytes
    assert layout.is_padded(shape) == (expected.size > plain.size)
    packed = np.zeros_like(expected)
    move(layout.copies(shape, itemsize), plain, packed, pack=True)
    np.testing.assert_array_equal(packed, expected)
    back = np.zeros_like(plain)
    move(layout.copies(shape, itemsize), packed, back, pack=False)
    np.testing.assert_array_equal(back, plain)


def test_the_fewer_copies_are_made():
    assert len(IO_FORMATS["HWC"].copies((1, 3, 640, 640), 4)) == 3
    assert len(IO_FORMATS["HWC8"].copies((2, 512, 2, 2), 2)) == 8
    assert IO_FORMATS["HWC8"].copies((2, 0, 2, 2), 2) == ()


def test_images_without_a_batch():
    (first, second) = IO_FORMATS["CHW32"].copies((2, 4, 4), 1)
    assert (first.packed, second.packed, first.packed_pitch) == (0, 1, 32)


@pytest.mark.parametrize(
    ("name", "dtype", "rank", "components", "axis"),
    [
        ("DLA_LINEAR", "float16", 4, -1, -1),
        ("HWC8", "float16", 4, 4, 1),
        ("CHW32", "float16", 4, 32, 2),
        ("HWC", "float32", 2, -1, -1),
        ("LINEAR", "float32", 4, 2, 1),
        ("NEW", "float32", 4, -1, -1),
        ("CHW4", "float16", 4, 4, 1),
    ],
)
def test_what_is_not_known_is_refused_by_the_name_of_the_tensor(
    name, dtype, rank, components, axis
):
    with pytest.raises(
        UnsupportedError, match=rf"tensor 'x' of {rank} axes in {dtype} has the format {name}"
    ):
        find_format("x", name, dtype, (-1,) * rank, components=components, axis=axis)


def test_what_engines_say_of_known_formats():
    assert find_format("x", "LINEAR", "float32", (2,), components=-1, axis=-1) is None
    assert find_format("x", "LINEAR", "float32", (2,), components=1, axis=-1) is None
    for name, layout in IO_FORMATS.items():
        shape = (1,) * (layout.spatial + 2)
        for components, axis in ((-1, -1), (layout.channels, 1)):
            assert find_format("x", name, "int8", shape, components=components, axis=axis) is layout
