"""Shapes, ranges of shapes and profiles as text."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_native.config import Precision
from trt_native.errors import SpecError, UnsupportedError
from trt_native.shapes import DimRange, ProfileSpec, ShapeRange, parse_shape
from trt_native.units import parse_bytes


@pytest.mark.parametrize(
    ("text", "shape"),
    [("1x3x8x8", (1, 3, 8, 8)), ("scalar", ()), ("", ()), ("0x4", (0, 4)), ("2,3", (2, 3))],
)
def test_shapes(text, shape):
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["1x-3", "1xx3", "axb", "1x3x", "1.5x2"])
def test_bad_shapes(text):
    with pytest.raises(SpecError, match="not a shape"):
        parse_shape(text)


@given(st.lists(st.tuples(*[st.integers(0, 99)] * 3).map(sorted), min_size=1, max_size=5))
def test_ranges_survive_their_text(axes):
    low, best, high = (tuple(axis[i] for axis in axes) for i in range(3))
    shapes = ShapeRange(low, best, high)
    assert ShapeRange.parse(str(shapes)) == shapes
    dim = DimRange(*axes[0])
    assert DimRange.parse(str(dim)) == dim


@given(st.text(max_size=12))
def test_parsers_answer_any_text_with_a_value_or_a_spec_error(text):
    for parse in (DimRange.parse, ShapeRange.parse, parse_bytes, parse_shape, Precision.parse):
        with contextlib.suppress(SpecError, UnsupportedError):
            parse(text)


@pytest.mark.parametrize("text", ["2:1:3", "1:4:3", "1:2", "1:2:3:4", "a", "-1", ""])
def test_bad_dim_ranges(text):
    with pytest.raises(SpecError):
        DimRange.parse(text)


def test_a_shape_range_needs_one_rank_and_order_on_every_axis():
    with pytest.raises(SpecError, match="ranks differ"):
        ShapeRange.parse("1x3:2x3:2x3x3")
    with pytest.raises(SpecError, match="not ordered"):
        ShapeRange.parse("1x3:2x2:2x3")


def test_contains():
    shapes = ShapeRange.parse("1x3:2x3:4x3")
    assert shapes.contains((1, 3))
    assert shapes.contains((4, 3))
    assert not shapes.contains((5, 3))
    assert not shapes.contains((2, 4))
    assert not shapes.contains((2,))


def test_profile_entries_are_checked_together():
    with pytest.raises(SpecError) as caught:
        ProfileSpec.parse(dims=["batch=2:1:1", "frames", "h=1:2:3"], shapes=["x=1y2"])
    assert "batch" in str(caught.value)
    assert "'frames'" in str(caught.value)
    assert "x: " in str(caught.value)
    assert "h" not in caught.value.details


def test_the_name_of_an_expression_may_hold_an_equals_sign():
    spec = ProfileSpec.parse(dims=["a==b=1:2:3"])
    assert spec.dims == {"a==b": DimRange(1, 2, 3)}


def test_later_profile_entries_win():
    first = ProfileSpec.parse(dims=["a=1", "b=2"], shapes=["x=1x1"])
    later = ProfileSpec.parse(dims=["b=3"])
    merged = first.overridden_by(later)
    assert merged.dims == {"a": DimRange(1, 1, 1), "b": DimRange(3, 3, 3)}
    assert merged.shapes == first.shapes


@pytest.mark.parametrize(
    ("dims", "shapes", "problem"),
    [
        (["n=1:2:4", "n=2"], [], "n is given twice, as 1:2:4 and as 2; give it once"),
        ([], ["x=1x2", "m=1", "x=2x2"], "x is given twice, as 1x2 and as 2x2; give it once"),
    ],
)
def test_ranges_that_contradict_each_other(dims, shapes, problem):
    with pytest.raises(SpecError) as caught:
        ProfileSpec.parse(dims, shapes)
    assert str(caught.value) == problem


def test_the_same_range_twice_is_one():
    assert ProfileSpec.parse(["n=2", "n=2:2:2"]) == ProfileSpec.parse(["n=2"])


@pytest.mark.parametrize("given", ["1:2:4", (1, 2, 4), [1, 2, 4], DimRange(1, 2, 4)], ids=repr)
def test_dimensions_as_they_are_typed(given):
    assert ProfileSpec(dims={"b": given}) == ProfileSpec.parse(["b=1:2:4"])
    assert ProfileSpec(dims={"b": 4}) == ProfileSpec.parse(["b=4"])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("1x8:2x8:4x8", "1x8:2x8:4x8"),
        (((1, 8), (2, 8), (4, 8)), "1x8:2x8:4x8"),
        (["1x8", "2x8", "4x8"], "1x8:2x8:4x8"),
        ((1, 8), "1x8"),
        ([1, 3, 8, 8], "1x3x8x8"),
        ((), "scalar"),
    ],
)
def test_shapes_as_they_are_typed(given, meant):
    assert ProfileSpec(shapes={"x": given}) == ProfileSpec.parse(shapes=[f"x={meant}"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dims": {"b": (1, 4)}}, "b: not a range: '1:4'"),
        ({"dims": {"b": True}}, "b: not a range of extents: 'True'"),
        ({"dims": {"b": 2.5}}, "b: not a range of extents: '2.5'"),
        ({"dims": "b=4"}, "'dims' of a profile needs NAME: RANGE entries, found a str"),
        ({"shapes": {"x": (1, 2, 4)}}, "may be the shape 1x2x4 or the range 1:2:4"),
        ({"dims": {"b": None}, "shapes": {"x": None}}, "2 problems:"),
    ],
    ids=str,
)
def test_profiles_of_other_types(given, message):
    with pytest.raises(SpecError, match=message):
        ProfileSpec(**given)
