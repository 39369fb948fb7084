"""Rotary embeddings of the domain ``com.microsoft`` as arithmetic."""

from __future__ import annotations

import onnx_ir as ir

from trt_native.passes.fused_builder import INT64, FusedBuilder

__all__ = ["rewrite_rotary", "rotary_refusal", "rotated"]


def rotary_refusal(node: ir.Node) -> str:
    """Sequences must not be packed without padding."""
    return "packs its batch (is_packed_batching)" if _packs(node) else ""


def _packs(node: ir.Node) -> bool:
    return node.attributes.get_int("is_packed_batching", 0) != 0


def rewrite_rotary(new: FusedBuilder) -> None:
    """Rotate [batch, length, heads * size], or [batch, heads, length, size]."""
    x, places, cos, sin = (new.operand(index) for index in range(4))
    attributes = new.node.attributes
    flat = new.rank(x) == 3
    lengths_at = 1 if flat else 2
    if new.rank(places) == 1:
        steps = new.positions(new.extent(x, lengths_at))
        places = new.unsqueezed(new.add("Add", [steps, new.cast(places, INT64)], INT64), 0)
    halves = new.fixed(cos, 1)
    if flat:
        size = 2 * halves
        if attributes.get_int("rotary_embedding_dim", 0):
            size = new.fixed(x, 2) // max(attributes.get_int("num_heads", 0), 1)
        value = new.shaped(x, 0, 0, -1, size)
    else:
        value, size = x, new.fixed(x, 3)
    tables = tuple(
        new.unsqueezed(new.add("Gather", [table, places], table.dtype), 2 if flat else 1)
        for table in (cos, sin)
    )
    value = rotated(new, value, tables, bool(attributes.get_int("interleaved", 0)), size, halves)
    new.replace(new.shaped(value, 0, 0, -1) if flat else value)


def rotated(
    new: FusedBuilder,
    x: ir.Value,
    tables: tuple[ir.Value, ...],
    interleaved: bool,
    size: int,
    halves: int,
) -> ir.Value:
    """Rotate pairs of the first elements of the last axis of four.

    Args:
        new: Gets the nodes.
        x: [.., .., .., size].
        tables: Cosines and sines, which broadcast to [.., .., .., halves].
        interleaved: Whether pairs are neighbors; else halves of the elements.
        size: Extent of the last axis.
        halves: Number of pairs; elements behind them stay.
    """
    cos, sin = tables
    first, second = (
        new.sliced(x, 3, start, 2 * halves, 2)
        if interleaved
        else new.sliced(x, 3, start * halves, (start + 1) * halves)
        for start in (0, 1)
    )
    real = new.add("Sub", [new.add("Mul", [first, cos]), new.add("Mul", [second, sin])])
    imaginary = new.add("Add", [new.add("Mul", [second, cos]), new.add("Mul", [first, sin])])
    rest = [new.sliced(x, 3, 2 * halves)] if size > 2 * halves else []
    if not interleaved:
        return new.joined(3, real, imaginary, *rest)
    pairs = new.joined(4, new.unsqueezed(real, 4), new.unsqueezed(imaginary, 4))
    merged = new.shaped(pairs, 0, 0, 0, 2 * halves)
    return new.joined(3, merged, *rest) if rest else merged
