"""Dynamic axes as they are written, and their ranges."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

from trt_native import DimRange
from trt_native.compilation.dynamic_axes import read_dynamic
from trt_native.errors import SpecError

X = {"x": torch.zeros(2, 3, 8), "y": torch.zeros(6, 4)}


@pytest.mark.parametrize(
    ("dynamic", "axes", "dims"),
    [
        ({}, {}, None),
        ({"x": {0: "n"}}, {"x": {0: "n"}}, {"n": (1, 2, 2)}),
        ({"x": {0: "n=1:4:9"}}, {"x": {0: "n"}}, {"n": (1, 4, 9)}),
        ({"x": {0: "n=2"}}, {"x": {0: "n"}}, {"n": (2, 2, 2)}),
        ({"x": {0: " n = 1:2:2"}}, {"x": {0: "n"}}, {"n": (1, 2, 2)}),
        ({"x": [None, Dim("m")]}, {"x": {1: "m"}}, {"m": (1, 3, 3)}),
        ({"x": {0: Dim("n", min=2, max=16)}}, {"x": {0: "n"}}, {"n": (2, 2, 16)}),
        ({"x": {0: Dim("n", max=16)}}, {"x": {0: "n"}}, {"n": (1, 2, 16)}),
        (
            {"x": ["b=1:2:4", "f", None], "y": {0: "b*f"}},
            {"x": {0: "b", 1: "f"}, "y": {0: "b*f"}},
            {"b": (1, 2, 4), "f": (1, 3, 3)},
        ),
        ({"x": {2: "h*4"}}, {"x": {2: "h*4"}}, {"h": (1, 2, 2)}),
        ({"x": {2: "h*4=4:8:16"}}, {"x": {2: "h*4"}}, {"h": (1, 2, 4)}),
        ({"x": {2: "2*h*2=8"}}, {"x": {2: "2*h*2"}}, {"h": (2, 2, 2)}),
        (
            {"x": {0: "n"}, "y": {1: "n=1:2:8"}},
            {"x": {0: "n"}, "y": {1: "n"}},
            {"n": (1, 2, 8)},
        ),
    ],
)
def test_ranges(dynamic, axes, dims):
    tensors = {**X, "y": torch.zeros(6, 2)} if dynamic.get("y", {}).get(1) else X
    found, profiles = read_dynamic(dynamic, tensors, has_profiles=False)
    assert found == axes
    expected = [] if dims is None else [{n: DimRange(*r) for n, r in dims.items()}]
    assert [dict(profile.dims) for profile in profiles] == expected


def test_profiles_elsewhere_leave_the_names():
    assert read_dynamic({"x": {0: "n"}}, X, has_profiles=True) == ({"x": {0: "n"}}, ())


def test_ranges_that_are_not_multiples():
    with pytest.raises(SpecError) as caught:
        read_dynamic({"x": {2: "h*4=4:6:8"}}, X, has_profiles=False)
    assert caught.value.problems == ("h*4 has the range 4:6:8: not multiples of 4",)


def test_two_ranges_of_one_dimension_and_an_example_outside():
    with pytest.raises(SpecError) as caught:
        read_dynamic({"x": {0: "n=1:2:4", 1: "n=1:2:8", 2: "m=1:2:4"}}, X, has_profiles=False)
    assert caught.value.problems == (
        "n has two ranges: 1:2:4 and 1:2:8",
        "m is 8 in the inputs, outside 1:2:4",
    )
