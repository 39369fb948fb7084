"""Grouped-query attention of the domain ``com.microsoft``, with past and present keys."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from trt_native.graph.nodes import input_of
from trt_native.passes.fused_builder import (
    BOOL,
    INT64,
    Extent,
    FusedBuilder,
    identity,
    known_extent,
)
from trt_native.passes.lower_fused_attention import Scores, attend, merged_heads
from trt_native.passes.lower_fused_rotary import rotated

__all__ = ["grouped_refusal", "rewrite_grouped"]

_GATHERS_ROWS = 12  # since this opset GatherND has batch_dims
_REFUSED = {
    12: "has a quantized cache (k_scale)",
    13: "has a quantized cache (v_scale)",
    14: "normalizes queries (q_norm_weight)",
    15: "normalizes keys (k_norm_weight)",
    16: "has query_seqlens",
}


def grouped_refusal(node: ir.Node) -> str:
    """What a GroupQueryAttention has that is not written out."""
    attributes = node.attributes
    heads, groups = (attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads"))
    if groups < 1 or heads % groups:
        return "lacks num_heads, or kv_num_heads that divide them"
    for index, reason in _REFUSED.items():
        if input_of(node, index) is not None:
            return reason
    if attributes.get_int("causal", 1) != 1:
        return "is not causal"
    for name in ("sliding_window_cache", "qk_output"):
        if attributes.get_int(name, 0):
            return f"has {name}"
    given = [input_of(node, index) is not None for index in (3, 4)]
    return "has past keys or past values alone" if given[0] != given[1] else ""


class _Places(NamedTuple):
    """Where the tokens of a call are.

    Attributes:
        first: INT64[batch or 1, 1]: number of keys before the call.
        prompt: BOOL[]: whether there are none; None where it is known so.
        length: Number of tokens.
        total: Number of keys of present.
        key: Equal where all of it is known to be.
    """

    first: ir.Value
    prompt: ir.Value | None
    length: Extent
    total: Extent
    key: tuple[Hashable, ...]


def rewrite_grouped(new: FusedBuilder) -> None:
    """Write a GroupQueryAttention out."""
    node, attributes = new.node, new.node.attributes
    heads, groups = (attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads"))
    query, key, value, size = _operands(new, heads, groups)
    past = input_of(node, 3), input_of(node, 4)
    lengths = input_of(node, 5), input_of(node, 6)
    extents = [known_extent(new.operand(0), axis) for axis in (0, 1)]
    if past[0] is not None:
        extents += [known_extent(past[0], 2), int(_is_shared(new, past[0]))]
    equal = (*lengths, *identity(*extents))
    places = new.once(("places", *equal), lambda: _places(new, past[0], equal))
    if attributes.get_int("do_rotary", 0):
        query, key = _rotated(new, places, (query, key), size)
    query, key, value = (new.transposed(part, 0, 2, 1, 3) for part in (query, key, value))
    if past[0] is not None and past[1] is not None:
        key, value = (
            _present(new, before, part, places, groups)
            for before, part in ((past[0], key), (past[1], value))
        )
    bias = input_of(node, 10)
    window = attributes.get_int("local_window_size", -1)
    hidden = new.once(("hidden", window, *equal), lambda: _hidden(new, places, window))
    added = [hidden] if bias is None else [bias, hidden]
    options = Scores(
        scale=attributes.get_float("scale", 0.0) or size**-0.5,
        softcap=attributes.get_float("softcap", 0.0),
        added=tuple(added),
        sink=_sink(new, heads),
    )
    keys, values = (_repeated(new, part, heads // groups, groups) for part in (key, value))
    new.finish(merged_heads(new, attend(new, query, keys, values, options)), key, value)


def _repeated(new: FusedBuilder, value: ir.Value, times: int, groups: int) -> ir.Value:
    """Keys or values with those of each group for every head in it."""
    if times == 1:
        return value
    order = new.constant(np.arange(groups).repeat(times))
    return new.add("Gather", [value, order], value.dtype, axis=1)


def _operands(
    new: FusedBuilder, heads: int, groups: int
) -> tuple[ir.Value, ir.Value, ir.Value, int]:
    """Query, key and value of [batch, length, heads, size], and the size."""
    query = new.operand(0)
    width = new.fixed(query, 2)
    if input_of(new.node, 1) is None:
        every = heads + 2 * groups
        packed = new.shaped(query, 0, 0, every, -1)
        ends = (0, heads, heads + groups, every)
        q, k, v = (new.sliced(packed, 2, *ends[index : index + 2]) for index in range(3))
        return q, k, v, width // every
    key, value = (new.shaped(new.operand(index), 0, 0, groups, -1) for index in (1, 2))
    return new.shaped(query, 0, 0, heads, -1), key, value, width // heads


def _places(new: FusedBuilder, past: ir.Value | None, key: tuple[Hashable, ...]) -> _Places:
    length = new.extent(new.operand(0), 1)
    if past is None:
        return _Places(new.constant(np.zeros((1, 1), np.int64)), None, length, length, key)
    every = new.cast(new.shaped(new.operand(6), 1), INT64)
    prompt = new.add("Equal", [every, new.shaped(new.number(length), 1)], BOOL)
    last = new.cast(new.operand(5), INT64)
    first = new.add("Add", [last, new.integers(1)], INT64)
    first = new.add("Sub", [first, new.number(length)], INT64)
    first = new.add("Where", [prompt, new.integers(0), first], INT64)
    kept = new.extent(past, 2)
    total = kept if _is_shared(new, past) else new.sum_of(kept, length)
    return _Places(new.shaped(first, -1, 1), prompt, length, total, key)


def _is_shared(new: FusedBuilder, past: ir.Value) -> bool:
    """Whether present is declared to be as long as past, which leaves room for new keys."""
    if len(new.node.outputs) < 2:
        return False
    kept = known_extent(past, 2)
    return kept is not None and kept == known_extent(new.node.outputs[1], 2)


def _present(
    new: FusedBuilder, past: ir.Value, part: ir.Value, places: _Places, groups: int
) -> ir.Value:
    """Past keys, behind those of each sequence the new ones, and zeros behind these."""
    if new.opset < _GATHERS_ROWS:
        raise new.unsupported(f"has past keys, which takes opset {_GATHERS_ROWS} or later")
    index, within = new.once(
        ("index", groups, *places.key), lambda: _index(new, new.extent(past, 2), places, groups)
    )
    found = new.add("GatherND", [new.joined(2, past, part), index], part.dtype, batch_dims=2)
    return new.add("Where", [within, found, new.scalar(0)])


def _index(
    new: FusedBuilder, kept: Extent, places: _Places, groups: int
) -> tuple[ir.Value, ir.Value]:
    """Which of the past and new keys are where in present, and whether any is.

    INT64[batch, groups, total, 1] and BOOL[batch, 1, total, 1].
    """
    every = new.positions(places.total)
    earlier = new.add("Greater", [places.first, every], BOOL)
    later = new.add("Sub", [every, places.first], INT64)
    later = new.add("Add", [later, new.number(kept)], INT64)
    index = new.add("Where", [earlier, every, later], INT64)
    most = new.number(new.sum_of(kept, places.length))
    within = new.add("Greater", [most, index], BOOL)
    index = new.add("Where", [within, index, new.constant(np.array(0))], INT64)
    index = new.unsqueezed(index, 1, 3)
    index = new.add("Expand", [index, new.integers(1, groups, 1, 1)], INT64)
    return index, new.unsqueezed(within, 1, 3)


def _hidden(new: FusedBuilder, places: _Places, window: int) -> ir.Value:
    """[batch or 1, 1, length, total]: what hides keys behind each query, and before its window."""
    mine = new.add("Add", [places.first, new.positions(places.length)], INT64)
    mine = new.unsqueezed(mine, 1, 3)
    every = new.positions(places.total)
    hidden = new.add("Greater", [every, mine], BOOL)
    if window > 0:
        oldest = new.add("Sub", [mine, new.constant(np.array(window - 1))], INT64)
        hidden = new.add("Or", [hidden, new.add("Greater", [oldest, every], BOOL)], BOOL)
    return new.add("Where", [hidden, new.scalar(-new.largest), new.scalar(0)])


def _rotated(
    new: FusedBuilder, places: _Places, parts: tuple[ir.Value, ...], size: int
) -> tuple[ir.Value, ...]:
    """Rotate queries and keys of [batch, length, heads, size] by their positions."""
    cos, sin = new.operand(7), new.operand(8)
    steps = new.positions(places.length)
    mine = new.add("Add", [places.first, steps], INT64)
    given = input_of(new.node, 9)
    if given is not None:
        # Of a prompt the first position stands for all.
        start = new.sliced(new.sliced(given, 0, 0, 1), 1, 0, 1)
        of_prompt = new.add("Add", [start, steps], INT64)
        mine = of_prompt
        if places.prompt is not None:
            mine = new.add("Where", [places.prompt, of_prompt, given], INT64)
    tables = tuple(
        new.unsqueezed(new.add("Gather", [table, mine], table.dtype), 2) for table in (cos, sin)
    )
    interleaved = bool(new.node.attributes.get_int("rotary_interleaved", 0))
    halves = new.fixed(cos, 1)
    return tuple(rotated(new, part, tables, interleaved, size, halves) for part in parts)


def _sink(new: FusedBuilder, heads: int) -> ir.Value | None:
    """A score without a value: that of each head, or 0 with smooth_softmax."""
    sink = input_of(new.node, 11)
    if sink is not None:
        return new.shaped(sink, 1, heads, 1, 1)
    if new.node.attributes.get_int("smooth_softmax", -1) > 0:
        return new.constant(np.zeros((1, heads, 1, 1), new.kind.numpy()))
    return None
