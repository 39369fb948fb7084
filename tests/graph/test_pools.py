"""Windows of pools that round up, against PyTorch."""

from __future__ import annotations

import itertools

import pytest

from trt_native.graph.pools import end_padding

torch = pytest.importorskip("torch")


def test_rounding_down_with_the_padding_gives_pytorchs_windows():
    cases = [
        case
        for case in itertools.product(range(1, 10), range(1, 5), range(1, 5), range(3), range(1, 3))
        if 2 * case[3] <= case[1] and case[0] + 2 * case[3] > (case[1] - 1) * case[4]
    ]
    assert len(cases) > 300
    for extent, kernel, stride, pad, dilation in cases:
        x = torch.zeros(1, 1, extent)
        expected = torch.nn.functional.max_pool1d(x, kernel, stride, pad, dilation, ceil_mode=True)
        (end,) = end_padding([kernel], [stride], [dilation], [pad, pad])
        found = (extent + pad + end - (kernel - 1) * dilation - 1) // stride + 1
        assert found == expected.shape[-1], (extent, kernel, stride, pad, dilation)


def test_defaults_are_those_of_onnx():
    assert end_padding([3, 2], [], [], []) == [0, 0]
    assert end_padding([3, 2], [2, 2], [], [0, 0, 1, 0]) == [2, 1]
