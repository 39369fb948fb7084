"""ConvTranspose, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.reference_nodes import run_node

torch = pytest.importorskip("torch")
F = torch.nn.functional

BY_RANK = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def operands(rng, group, rank, kernel=3):
    x = rng.standard_normal((2, 2 * group, 4, 5, 3)[: 2 + rank]).astype(np.float32)
    w = rng.standard_normal((2 * group, 3, *[kernel] * rank)).astype(np.float32)
    return x, w, rng.standard_normal(3 * group).astype(np.float32)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    ("stride", "padding", "extra", "dilation"),
    [(1, 0, 0, 1), (2, 1, 1, 1), (3, 2, 2, 2), (2, 0, 0, 2)],
)
def test_as_in_pytorch(rank, group, stride, padding, extra, dilation, rng):
    x, w, b = operands(rng, group, rank)
    found = run_node(
        "ConvTranspose",
        x,
        w,
        b,
        group=group,
        strides=[stride] * rank,
        pads=[padding] * 2 * rank,
        output_padding=[extra] * rank,
        dilations=[dilation] * rank,
    )[0]
    tensors = map(torch.tensor, (x, w, b))
    expected = BY_RANK[rank](*tensors, stride, padding, extra, group, dilation)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "before", "size"),
    [
        ({"auto_pad": "SAME_UPPER"}, 0, 8),
        ({"auto_pad": "SAME_LOWER"}, 1, 8),
        ({"auto_pad": "VALID"}, 0, 9),
        ({"output_shape": [7]}, 1, 7),
        ({"output_shape": [7], "auto_pad": "SAME_UPPER"}, 1, 7),
        ({"output_shape": [6]}, 2, 6),
        ({"output_shape": [6], "auto_pad": "SAME_UPPER"}, 1, 6),
        ({"pads": [2, 1]}, 2, 6),
    ],
)
def test_what_is_cut_off(options, before, size, rng):
    x, w, _ = operands(rng, 1, 1)
    found = run_node("ConvTranspose", x, w, strides=[2], **options)[0]
    whole = F.conv_transpose1d(torch.tensor(x), torch.tensor(w), stride=2)
    np.testing.assert_allclose(found, whole[..., before : before + size], rtol=1e-5, atol=1e-5)
