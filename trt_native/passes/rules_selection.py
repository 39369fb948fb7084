"""Rules of :mod:`~trt_native.passes.lower_operators` that select and count elements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.nodes import FLOAT, all_nodes
from trt_native.passes.array_builder import BOOL, ArrayBuilder, OperatorRule, Site, terms_at
from trt_native.passes.replacement import KEEP_FP32_KEY

__all__ = ["RULES"]

Write = Callable[[ArrayBuilder], None]


def _compress(site: Site) -> Write | None:
    """Take the elements whose positions are known."""
    condition, extents = site.constant(1), site.extents(0)
    if condition is None or extents is None:
        return None
    positions = np.flatnonzero(condition)
    axis = site.int("axis") if "axis" in site.node.attributes else None

    def write(new: ArrayBuilder) -> None:
        x = new.node.inputs[0]
        if axis is None:
            new.finish(new.op("Gather", new.reshape(x, [-1]), positions, axis=0))
        else:
            new.finish(new.op("Gather", x, positions, axis=axis % len(extents)))

    return write


class _Grams(NamedTuple):
    """N-grams of one size.

    Attributes:
        pool: The n-grams, (number, size).
        places: Where their counts go, (number,).
    """

    pool: Array
    places: Array


def _tf_idf(site: Site) -> Write | None:
    """Compare the n-grams with all windows of the input."""
    node, extents = site.node, site.extents(0)
    grams = _grams(site)
    if not extents or extents[-1] is None or len(extents) > 2 or not grams:
        return None
    count, skips = extents[-1], site.int("max_skip_count")
    indexes = site.ints("ngram_indexes")
    weights = np.array(node.attributes.get_floats("weights", []), np.float32)
    if weights.size and indexes != list(range(len(weights))):
        return None  # whether a weight belongs to an n-gram or to a place is not specified
    places = np.concatenate([one.places for one in grams])
    table = terms_at(places, max(indexes) + 1)
    mode = site.string("mode", "TF")

    def write(new: ArrayBuilder) -> None:
        new.keep_fp32("counts")
        x = new.node.inputs[0]
        if len(extents) == 1:
            x = new.unsqueeze(x, [0])
        counted = [_counts(new, x, one.pool, count, skips) for one in grams]
        found = new.op("Concat", *counted, axis=1) if len(counted) > 1 else counted[0]
        found = new.weighted(new.pad(found, 2, 1, 0, 1), 1, 2, table, None)
        if mode == "IDF":
            found = new.cast(new.op("Greater", found, new.number(0, found), kind=BOOL), FLOAT)
        if mode != "TF" and weights.size:
            found = new.op("Mul", found, weights)
        new.finish(new.squeeze(found, [0]) if len(extents) == 1 else found)

    return write


def _grams(site: Site) -> list[_Grams]:
    """The n-grams that count, by size; of equal ones the last."""
    pool = np.array(site.ints("pool_int64s"), np.int64)
    starts = [*site.ints("ngram_counts"), len(pool)]
    indexes = site.ints("ngram_indexes")
    found, first = [], 0
    for size, (start, end) in enumerate(itertools.pairwise(starts), 1):
        grams = pool[start:end].reshape(-1, size)
        places = indexes[first : first + len(grams)]
        first += len(grams)
        last = {tuple(gram): place for gram, place in zip(grams.tolist(), places, strict=True)}
        if last and site.int("min_gram_length") <= size <= site.int("max_gram_length"):
            found.append(_Grams(np.array(list(last)), np.array(list(last.values()))))
    return found


def _counts(new: ArrayBuilder, x: ir.Value | None, pool: Array, count: int, skips: int) -> ir.Value:
    """How often each n-gram occurs, (rows, number)."""
    assert x is not None  # noqa: S101  # for the type checker
    size = pool.shape[1]
    totals = []
    for step in range(1, 2 + (skips if size > 1 else 0)):
        windows = count - (size - 1) * step
        if windows < 1:
            continue
        equal: ir.Value | None = None
        for index in range(size):
            part = new.unsqueeze(new.slice(x, 1, index * step, index * step + windows), [2])
            gram = pool[:, index].astype(new.number(0, x).dtype)
            one = new.op("Equal", part, gram, kind=BOOL)
            equal = one if equal is None else new.op("And", equal, one)
        totals.append(new.reduce("ReduceSum", new.cast(equal, FLOAT), [1]))
    if not totals:
        rows = new.joined([new.extent(x, 0), len(pool)])
        return new.op("Expand", np.array(0, np.float32), rows)
    return totals[0] if len(totals) == 1 else new.op("Sum", *totals)


_CORNERS = """
    top = Min (first, third)  left = Min (second, fourth)
    bottom = Max (first, third)  right = Max (second, fourth)
"""
_CENTERS = """
    across = Mul (third, half)  down = Mul (fourth, half)
    left = Sub (first, across)  right = Add (first, across)
    top = Sub (second, down)  bottom = Add (second, down)
"""
_SUPPRESSION = """<ir_version: 8, opset_import: ["": {opset}]> suppression (
        float[{batch}, {boxes}, 4] boxes, float[{batch}, {classes}, {boxes}] scores,
        float most_overlap, float least_score) => (int64[{rows}, 3] selected) {{
    first = Gather <axis = 2> (boxes, i0)  second = Gather <axis = 2> (boxes, i1)
    third = Gather <axis = 2> (boxes, i2)  fourth = Gather <axis = 2> (boxes, i3)
    {corners}
    height = Sub (bottom, top)  width = Sub (right, left)  area = Mul (height, width)
    table = Concat <axis = 2> (top, left, bottom, right, area)
    sides = Transpose <perm = [0, 2, 1]> (table)
    tops = Gather <axis = 1> (sides, i0)  lefts = Gather <axis = 1> (sides, i1)
    bottoms = Gather <axis = 1> (sides, i2)  rights = Gather <axis = 1> (sides, i3)
    areas = Gather <axis = 1> (sides, i4)
    have_area = Greater (areas, zero)
    finite = Max (scores, lowest)
    are_good = Greater (scores, least_score)
    candidates = {candidates}
    left_over, boxes_by_step, found_by_step = Loop (steps, yes, candidates) <body = step (
            int64 i, bool go, float[{batch}, {classes}, {boxes}] remaining) => (
            bool goes, float[{batch}, {classes}, {boxes}] rest,
            int64[{batch}, {classes}, 1] best, bool[{batch}, {classes}, 1] is_one) {{
        goes = Identity (go)
        score = {most_of}
        is_one = Greater (score, never)
        is_best = Equal (remaining, score)
        place_or_last = Where (is_best, numbers, last_box)
        best = {least_of}
        best_of_side = Expand (best, five)
        box = GatherElements <axis = 1> (table, best_of_side)
        box_top = Gather <axis = 2> (box, i0)  box_left = Gather <axis = 2> (box, i1)
        box_bottom = Gather <axis = 2> (box, i2)  box_right = Gather <axis = 2> (box, i3)
        box_area = Gather <axis = 2> (box, i4)
        low = Min (bottoms, box_bottom)  high = Max (tops, box_top)  tall = Sub (low, high)
        east = Min (rights, box_right)  west = Max (lefts, box_left)  wide = Sub (east, west)
        shared = Mul (tall, wide)
        both = Add (areas, box_area)  union = Sub (both, shared)  overlap = Div (shared, union)
        is_tall = Greater (tall, zero)  is_wide = Greater (wide, zero)
        has_shared = Greater (shared, zero)  has_area = Greater (box_area, zero)
        meets = And (is_tall, is_wide)  meets_in_area = And (meets, has_shared)
        are_boxes = And (have_area, has_area)  can_overlap = And (meets_in_area, are_boxes)
        is_too_much = Greater (overlap, most_overlap)
        is_suppressed = And (can_overlap, is_too_much)
        is_itself = Equal (best, numbers)
        is_gone = Or (is_suppressed, is_itself)
        rest = Where (is_gone, never, remaining)
    }}>
    boxes_by_class = Transpose <perm = [1, 2, 0, 3]> (boxes_by_step)
    box_column = Reshape (boxes_by_class, column)
    triples = Concat <axis = 1> (owners, box_column)
    found_by_class = Transpose <perm = [1, 2, 0, 3]> (found_by_step)
    is_found = Reshape (found_by_class, flat)
    ones = Cast <to = 6> (is_found)
    until = CumSum (ones, axis)
    place = Sub (until, one)
    fits = Less (place, behind)
    is_kept = And (is_found, fits)
    row = Where (is_kept, place, behind)
    row_column = Reshape (row, column)
    rows = Cast <to = 7> (row_column)
    filled = ScatterND (nothing, rows, triples)
    first_rows = Slice (filled, i0, end, i0)
    last_place = Gather (until, last)
    are_all = Less (last_place, too_many)
    selected = Where (are_all, first_rows, absent)
}}"""
_AXES_INPUT = 18  # since this opset reductions have their axes as an input
_REASON = "places of boxes"
_FIRST_OPSET = 11  # which has CumSum, GatherElements and ScatterND


class _Suppression(NamedTuple):
    """Sizes of a ``NonMaxSuppression``; ``rows`` is the number of boxes that the model promises."""

    batch: int
    classes: int
    boxes: int
    steps: int
    rows: int

    def constants(self) -> dict[str, Array]:
        """The constants that its text reads."""
        owners = np.moveaxis(np.indices((self.batch, self.classes)), 0, -1).reshape(-1, 2)
        return {
            **{f"i{i}": np.array([i]) for i in range(5)},
            "five": np.array([self.batch, self.classes, 5]),
            "half": np.array(0.5, np.float32),
            "zero": np.array(0, np.float32),
            "lowest": np.array(np.finfo(np.float32).min),
            "never": np.array(-math.inf, np.float32),
            "steps": np.array(self.steps),
            "yes": np.array(True),
            "numbers": np.arange(self.boxes),
            "last_box": np.array(self.boxes - 1),
            "owners": owners.repeat(self.steps, axis=0),
            "column": np.array([-1, 1]),
            "flat": np.array([-1]),
            "axis": np.array(0, np.int32),
            "one": np.array(1, np.int32),
            "behind": np.array(self.rows, np.int32),
            "nothing": np.full((self.rows + 1, 3), -1),
            "end": np.array([self.rows]),
            "last": np.array(self.batch * self.classes * self.steps - 1),
            "too_many": np.array(self.rows + 1, np.int32),
            "absent": np.array(-1),
        }

    def model(self, opset: int, *, centered: bool, has_least_score: bool) -> ir.Model:
        """A model of it, by plain operators."""
        # The first of equal ones, which ArgMax need not be.
        form = "<axes = [2]> ({})" if opset < _AXES_INPUT else "({}, i2)"
        options = {
            "most_of": "ReduceMax" + form.format("remaining"),
            "least_of": "ReduceMin" + form.format("place_or_last"),
            "corners": _CENTERS if centered else _CORNERS,
            "candidates": "Where (are_good, finite, never)"
            if has_least_score
            else "Identity (finite)",
        }
        text = _SUPPRESSION.format(opset=opset, **options, **self._asdict())
        proto = onnx.parser.parse_model(text)
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(array, name) for name, array in self.constants().items()
        )
        model = ir.from_proto(proto)
        for node in all_nodes(model.graph):  # in the body, too
            node.metadata_props[KEEP_FP32_KEY] = _REASON
        return model


def _suppression(site: Site) -> Write | None:
    """Select the best box of each class in a loop, and drop those that overlap with it.

    The model must promise a number of boxes in all, as the shape of its output. Where there are
    fewer the rows behind them are -1; where there are more, all rows are.
    """
    boxes, scores, most = site.static(0), site.static(1), site.constant(2)
    rows = _promised_rows(site)
    if not boxes or not scores or most is None or not most.size or rows is None:
        return None
    steps = min(int(np.ravel(most)[0]), scores[-1])
    if steps < 1 or rows < 1 or 0 in scores or site.opset < _FIRST_OPSET:
        return None
    batch, classes, count = scores
    sizes = _Suppression(batch, classes, count, steps, rows)
    centered, has_least_score = bool(site.int("center_point_box")), site.has(4)

    def write(new: ArrayBuilder) -> None:
        new.keep_fp32(_REASON)
        node = new.node
        zero = np.array(0, np.float32)
        least = new.reshape(node.inputs[4] if has_least_score else zero, [])
        overlap = new.reshape(node.inputs[3] if site.has(3) else zero, [])
        inputs = {
            "boxes": node.inputs[0], "scores": node.inputs[1],
            "most_overlap": overlap, "least_score": least,
        }  # fmt: skip
        model = sizes.model(new.opset, centered=centered, has_least_score=has_least_score)
        given = {name: value for name, value in inputs.items() if value is not None}
        new.finish(*new.adopt(model, given))

    return write


def _promised_rows(site: Site) -> int | None:
    """The rows of an output of the model that nothing else reads, which could take -1 for a box."""
    output = site.node.outputs[0]
    if site.is_inside or not output.is_graph_output() or output.uses():
        return None
    shape = output.shape
    first = None if shape is None or len(shape) != 2 else shape[0]
    return first if isinstance(first, int) else None


RULES: Mapping[str, OperatorRule] = {
    "Compress": _compress,
    "NonMaxSuppression": _suppression,
    "TfIdfVectorizer": _tf_idf,
}
