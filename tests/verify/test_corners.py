"""Shapes at the corners of profiles, written out by hand."""

from __future__ import annotations

import pytest
from helpers.made_plans import STATIC, TWO, tensor

from trt_native.verify.corners import profile_corners

X = tensor("x", "input", "float32", "1x3x8:4x3x16:8x3x32", dims=("n", None, "h"))
MASK = tensor("mask", "input", "bool", "1x8:4x16:8x32", dims=("n", "h"))


def shapes(inputs, most=16):
    return [
        (corner.label, *corner.shapes.values(), corner.mixed)
        for corner in profile_corners(inputs, most)
    ]


def test_a_dimension_moves_in_all_inputs_that_have_it():
    assert shapes([X, MASK]) == [
        ("opt", (4, 3, 16), (4, 16), False),
        ("h=8, n=1", (1, 3, 8), (1, 8), False),
        ("h=32, n=8", (8, 3, 32), (8, 32), False),
        ("h=8, n=8", (8, 3, 8), (8, 8), True),
        ("h=32, n=1", (1, 3, 32), (1, 32), True),
    ]


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_only_so_many(most):
    assert shapes([X, MASK], most) == shapes([X, MASK])[: most + 1]


def test_expressions_follow_their_dimensions():
    both = tensor("b", "input", "float32", "8:64:256", dims=("n*h",))
    found = {label: rest for label, *rest in shapes([X, both])}
    assert found["opt"] == [(4, 3, 16), (64,), False]
    assert found["h=8, n=8"] == [(8, 3, 8), (64,), True]
    assert found["h=32, n=1"] == [(1, 3, 32), (32,), True]


def test_axes_without_a_name_move_together():
    one = tensor("a", "input", "float32", "1x2:2x4:4x8")
    other = tensor("b", "input", "float32", "1:2:4", dims=("n",))
    assert shapes([one, other]) == [
        ("opt", (2, 4), (2,), False),
        ("n=1, unnamed axes min", (1, 2), (1,), False),
        ("n=4, unnamed axes max", (4, 8), (4,), False),
        ("n=1, unnamed axes max", (4, 8), (1,), True),
        ("n=4, unnamed axes min", (1, 2), (4,), True),
    ]


def test_values_of_shape_inputs():
    size = tensor("size", "input", "int64", shape=(2,), values=("4x4:8x8:16x32",))
    found = profile_corners([size], 16)
    assert [c.values["size"] for c in found] == [(8, 8), (4, 4), (16, 32)]
    assert all(not corner.shapes for corner in found)


def test_each_profile_and_each_shape_once():
    assert shapes([TWO]) == [
        ("profile 0: opt", (2, 3), False),
        ("profile 0: min", (1, 3), False),
        ("profile 0: max", (4, 3), False),
        ("profile 1: opt", (8, 3), False),
    ]
    narrow = tensor("x", "input", "float32", "1x3:4x3:4x3", "4x3:4x3:4x3", dims=("n", None))
    assert [shape for _, shape, _ in shapes([narrow])] == [(4, 3), (1, 3)]


def test_a_static_plan_has_one():
    (corner,) = profile_corners(STATIC, 16)
    assert (corner.label, dict(corner.shapes), dict(corner.values)) == ("opt", {}, {})


def test_a_corner_outside_the_profile_is_left_out():
    """The range of an expression may be smaller than what its dimensions could make of it."""
    both = tensor("b", "input", "float32", "8:64:100", dims=("n*h",))
    assert [label for label, *_ in shapes([X, both])] == [
        "opt",
        "h=8, n=1",
        "h=8, n=8",
        "h=32, n=1",
    ]
