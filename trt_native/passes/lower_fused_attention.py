"""Attention of the domain ``com.microsoft`` as two products and a softmax between them."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trt_native.graph.nodes import input_of
from trt_native.passes.fused_builder import (
    BOOL,
    INT64,
    Extent,
    FusedBuilder,
    identity,
    is_read,
    known_extent,
)

__all__ = [
    "Scores",
    "attend",
    "attention_refusal",
    "merged_heads",
    "multi_head_refusal",
    "rewrite_attention",
    "rewrite_multi_head",
    "split_heads",
]

_MASKED = -10000.0  # mask_filter_value by default


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What happens to the scores of an attention before the softmax.

    Attributes:
        scale: Factor of the products.
        softcap: Limit of their magnitude; 0 for none.
        added: Values to add, which broadcast to [batch, heads, length, total].
        sink: A score [1, heads, 1, 1] that takes part in the softmax, and has no value.
    """

    scale: float
    softcap: float = 0.0
    added: tuple[ir.Value, ...] = ()
    sink: ir.Value | None = None


def attend(
    new: FusedBuilder, query: ir.Value, key: ir.Value, value: ir.Value, options: Scores
) -> ir.Value:
    """Attend to values; all of [batch, heads, length, size], and so is the result."""
    scores = new.add("MatMul", [query, new.transposed(key, 0, 1, 3, 2)])
    scores = new.add("Mul", [scores, new.scalar(options.scale)])
    if options.softcap:
        bent = new.add("Tanh", [new.add("Mul", [scores, new.scalar(1 / options.softcap)])])
        scores = new.add("Mul", [bent, new.scalar(options.softcap)])
    for added in options.added:
        scores = new.add("Add", [scores, added])
    if options.sink is None:
        return new.add("MatMul", [new.add("Softmax", [scores], axis=-1), value])
    rows = new.add("Shape", [new.sliced(scores, 3, 0, 1)], INT64)
    column = new.add("Expand", [options.sink, rows])
    shares = new.add("Softmax", [new.joined(3, column, scores)], axis=-1)
    return new.add("MatMul", [new.sliced(shares, 3, 1), value])


def split_heads(new: FusedBuilder, value: ir.Value, heads: int) -> ir.Value:
    """[batch, length, heads * size] as [batch, heads, length, size]."""
    return new.transposed(new.shaped(value, 0, 0, heads, -1), 0, 2, 1, 3)


def merged_heads(new: FusedBuilder, value: ir.Value) -> ir.Value:
    """[batch, heads, length, size] as [batch, length, heads * size]."""
    return new.shaped(new.transposed(value, 0, 2, 1, 3), 0, 0, -1)


def multi_head_refusal(node: ir.Node) -> str:
    """What a MultiHeadAttention has that is not written out."""
    if node.attributes.get_int("num_heads", 0) < 1:
        return "lacks num_heads"
    if any(input_of(node, index) is not None for index in (8, 9)):
        return "shares the buffers of past and present, or selects beams (inputs 8 and 9)"
    if any(map(is_read, node.outputs[3:])):
        return "returns its scores (output 3)"
    return _has_whole_past(node, 6, 7)


def attention_refusal(node: ir.Node) -> str:
    """What an Attention has that is not written out."""
    if node.attributes.get_int("num_heads", 0) < 1:
        return "lacks num_heads"
    if node.attributes.get_int("past_present_share_buffer", 0) or input_of(node, 6) is not None:
        return "shares the buffers of past and present"
    return "rotates (do_rotary)" if node.attributes.get_int("do_rotary", 0) else ""


def _has_whole_past(node: ir.Node, *places: int) -> str:
    given = [input_of(node, place) is not None for place in places]
    return "" if all(given) or not any(given) else "has past keys or past values alone"


def rewrite_multi_head(new: FusedBuilder) -> None:
    """Write a MultiHeadAttention out, whose operands are separate or packed."""
    node = new.node
    heads = node.attributes.get_int("num_heads", 0)
    query = new.operand(0)
    packed = new.rank(query) == 5
    width = heads * new.fixed(query, 4) if packed else new.fixed(query, 2)
    parts = _operands(new, heads, width)
    past = [input_of(node, index) for index in (6, 7)]
    key, value = (
        part if before is None else new.joined(2, before, part)
        for part, before in zip(parts[1:], past, strict=True)
    )
    lengths = _Lengths(new, query, query if packed else new.operand(1), past[0])
    added = [v for v in (input_of(node, 5), _mask(new, input_of(node, 4), lengths)) if v]
    options = Scores(scale=_scale(new, width // heads), added=tuple(added))
    new.finish(merged_heads(new, attend(new, parts[0], key, value, options)), key, value)


def _operands(new: FusedBuilder, heads: int, width: int) -> list[ir.Value]:
    """Query, key and value of [batch, heads, length, size], with the bias added."""
    query, bias = new.operand(0), input_of(new.node, 3)
    if new.rank(query) == 5:
        parts = [new.taken(query, 3, index) for index in range(3)]
    else:
        key = new.operand(1)
        parts = [new.shaped(query, 0, 0, heads, -1)]
        if new.rank(key) == 5:
            parts += [new.taken(key, 3, index) for index in range(2)]
        elif new.rank(key) == 3:
            parts += [new.shaped(part, 0, 0, heads, -1) for part in (key, new.operand(2))]
        elif bias is not None:
            raise new.unsupported("adds a bias to keys that are split into heads")
        else:
            return [new.transposed(parts[0], 0, 2, 1, 3), key, new.operand(2)]
    if bias is not None:
        ends = [0, width, 2 * width, None]
        shares = [
            new.sliced(bias, 0, start or 0, *([] if end is None else [end]))
            for start, end in itertools.pairwise(ends)
        ]
        parts = [
            new.add("Add", [part, new.shaped(share, heads, -1)])
            for part, share in zip(parts, shares, strict=True)
        ]
    return [new.transposed(part, 0, 2, 1, 3) for part in parts]


def rewrite_attention(new: FusedBuilder) -> None:
    """Write an Attention out, whose weights of queries, keys and values are one matrix."""
    node = new.node
    heads = node.attributes.get_int("num_heads", 0)
    x, weights = new.operand(0), new.operand(1)
    product, bias = new.add("MatMul", [x, weights]), input_of(node, 2)
    if bias is not None:
        product = new.add("Add", [product, bias])
    sizes = list(node.attributes.get_ints("qkv_hidden_sizes", ()))
    sizes = sizes or [new.fixed(weights, 1) // 3] * 3
    ends = [0, *itertools.accumulate(sizes)]
    query, key, value = (
        split_heads(new, new.sliced(product, 2, start, end), heads)
        for start, end in itertools.pairwise(ends)
    )
    past = input_of(node, 4)
    if past is not None:
        key, value = (
            new.joined(2, new.taken(past, 0, index), part)
            for index, part in enumerate((key, value))
        )
    before = None if past is None else new.taken(past, 0, 0)
    lengths = _Lengths(new, x, x, before)
    added = [v for v in (input_of(node, 5), _mask(new, input_of(node, 3), lengths)) if v]
    options = Scores(scale=_scale(new, sizes[0] // heads), added=tuple(added))
    found = merged_heads(new, attend(new, query, key, value, options))
    if len(node.outputs) > 1 and is_read(node.outputs[1]):
        new.finish(found, new.joined(0, new.unsqueezed(key, 0), new.unsqueezed(value, 0)))
    else:
        new.finish(found)


def _scale(new: FusedBuilder, size: int) -> float:
    return new.node.attributes.get_float("scale", 0.0) or size**-0.5


class _Lengths:
    """How many queries and keys there are; computed where they are asked for."""

    def __init__(
        self, new: FusedBuilder, query: ir.Value, key: ir.Value, past: ir.Value | None
    ) -> None:
        self._new, self._query, self._key, self._past = new, query, key, past
        self._axis = 2 if new.rank(key) == 4 else 1

    @property
    def batch(self) -> Extent:
        return self._new.extent(self._query, 0)

    @property
    def total(self) -> Extent:
        """Number of keys, past ones included."""
        return self._new.sum_of(self._before, self._new.extent(self._key, self._axis))

    @property
    def _before(self) -> Extent:
        return 0 if self._past is None else self._new.extent(self._past, 2)

    def later_keys(self) -> ir.Value:
        """BOOL[length, total]: which keys come after a query.

        Raises:
            UnsupportedError: there may be more keys than queries and past keys.
        """
        new = self._new
        mine, others = known_extent(self._query, 1), known_extent(self._key, self._axis)
        if self._key is not self._query and (mine is None or mine != others):
            raise new.unsupported(
                "is unidirectional, and its keys are not known to be as many as its queries"
            )
        queries = new.positions(new.extent(self._query, 1), self._before)
        keys = new.positions(self.total)
        return new.add("Greater", [keys, new.unsqueezed(queries, 1)], BOOL)

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Equal where the numbers are known to be equal."""
        past = 0 if self._past is None else known_extent(self._past, 2)
        known = [known_extent(self._query, axis) for axis in (0, 1)]
        return identity(*known, known_extent(self._key, self._axis), past)


def _mask(new: FusedBuilder, mask: ir.Value | None, lengths: _Lengths) -> ir.Value | None:
    """What a mask and causality add to the scores, once for all layers with the same."""
    causal = new.node.attributes.get_int("unidirectional", 0) != 0
    if mask is None and not causal:
        return None
    number = new.node.attributes.get_float("mask_filter_value", _MASKED)
    key = (new.node.op_type, mask, causal, number, lengths.identity)
    return new.once(key, lambda: _added(new, mask, lengths, number, causal=causal))


def _added(
    new: FusedBuilder, mask: ir.Value | None, lengths: _Lengths, number: float, *, causal: bool
) -> ir.Value:
    """[batch or 1, 1, length or 1, total] from a mask of any form; later keys of a query win."""
    zero, found = new.scalar(0), None
    if mask is not None:
        filtered = new.scalar(number)
        rank = new.rank(mask)
        if rank == 1:
            absent = _beyond(new, mask, lengths)
        elif rank in (2, 3):
            nothing = new.constant(np.array(0, (mask.dtype or ir.DataType.INT32).numpy()))
            absent = new.add("Not", [new.add("Greater", [mask, nothing], BOOL)], BOOL)
        else:
            raise new.unsupported(f"has a mask of {rank} axes")
        found = new.add("Where", [absent, filtered, zero])
        found = new.unsqueezed(found, 1) if rank == 3 else new.unsqueezed(found, 1, 2)
    if found is not None and not causal:
        return found
    lowest = new.scalar(-new.largest)
    return new.add("Where", [lengths.later_keys(), lowest, zero if found is None else found])


def _beyond(new: FusedBuilder, mask: ir.Value, lengths: _Lengths) -> ir.Value:
    """BOOL[batch, total]: keys outside of the lengths, or of the ends and starts, that are given.

    Behind lengths there may be sums of lengths, which are not needed.
    """
    batch, count = (known_extent(value, 0) for value in (new.operand(0), mask))
    whole, has_starts = count is not None and count == batch, False
    if new.node.op_type == "Attention" and not whole:
        given = isinstance(batch, int) and isinstance(count, int)
        has_starts = given and count == 2 * batch  # type: ignore[operator]
        if not has_starts and not (given and count == 3 * batch + 2):  # type: ignore[operator]
            raise new.unsupported(
                f"has mask indices {mask.name!r} of one axis that are not known to be as many as"
                " the batch, or twice that; add a value_info with its shape to the model"
            )
    every = new.positions(lengths.total)
    numbers = new.cast(mask, INT64)
    ends = new.unsqueezed(numbers if whole else new.sliced(numbers, 0, 0, lengths.batch), 1)
    beyond = new.add("Not", [new.add("Greater", [ends, every], BOOL)], BOOL)
    if not has_starts:
        return beyond
    starts = new.unsqueezed(new.sliced(numbers, 0, new.fixed(new.operand(0), 0)), 1)
    return new.add("Or", [beyond, new.add("Greater", [starts, every], BOOL)], BOOL)
