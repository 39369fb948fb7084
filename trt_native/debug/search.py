"""The smallest set of nodes that still fails, with as few questions as possible.

A failure is taken to stay when nodes are added to a set that fails. Then the last node of the
shortest prefix that fails, of any order, is in every failing subset of that prefix. Such nodes are
found one by one, each by halving, until they fail by themselves. (It is how Junker's QuickXplain
and the algorithms for minimal unsatisfiable cores find theirs; Zeller's delta debugging asks more.)
Where failures do not stay, the answer still fails, but may not be the smallest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["FailingSet", "needed_nodes", "remove_in_chunks", "smallest_failing"]

_RINGS = (1, 2, 4, 8)
"""Distances from nodes that are known to be needed, at which sets are tried."""

Fails = Callable[[frozenset[int]], bool]


@dataclass(frozen=True)
class FailingSet:
    """A set that fails.

    Attributes:
        nodes: The nodes.
        is_minimal: Whether each was found to be needed.
    """

    nodes: frozenset[int]
    is_minimal: bool


def smallest_failing(
    neighbours: Sequence[Collection[int]],
    weights: Sequence[float],
    fails: Fails,
    *,
    most: int | None = None,
) -> FailingSet:
    """Find a small set of nodes that fails, given that all of them do.

    Args:
        neighbours: For each node those next to it. Nodes are in topological order.
        weights: For each node how probable it is to be the first that is needed, in any unit;
            above 0.
        fails: Whether a set of nodes fails.
        most: Stop at so many nodes that are needed; None: go on.
    """
    pool = list(range(len(neighbours)))
    needed: list[int] = []
    while pool:
        if needed:
            if fails(frozenset(needed)):
                break
            if most is not None and len(needed) >= most:
                return FailingSet(frozenset((*needed, *pool)), is_minimal=False)
            pool = _around(neighbours, needed, pool, fails)
        last = _first_failing(pool, needed, [1.0] * len(weights) if needed else weights, fails)
        needed.append(pool[last])
        pool = pool[:last]
    return FailingSet(frozenset(needed), is_minimal=True)


def needed_nodes(weights: Mapping[int, float], fails: Fails) -> frozenset[int]:
    """Find the few of some nodes that fail together, given that all of them do.

    Args:
        weights: For each node how probable it is to be needed, in any unit; above 0.
        fails: Whether a set of nodes fails.
    """
    pool = sorted(weights, key=lambda node: -weights[node])
    needed: list[int] = []
    while pool and not (needed and fails(frozenset(needed))):
        last = _first_failing(pool, needed, weights, fails)
        needed.append(pool[last])
        pool = pool[:last]
    return frozenset(needed)


def remove_in_chunks(
    items: Sequence[int], fails_without: Fails, *, smallest: int = 1
) -> frozenset[int]:
    """Remove as many items as possible, in halves, quarters and so on, while it fails.

    Args:
        items: What may be removed.
        fails_without: Whether it fails without some.
        smallest: Size of the last chunks.

    Returns:
        What can be removed.
    """
    removed: frozenset[int] = frozenset()
    left, size = list(items), len(items)
    while left and size >= smallest:
        for chunk in [left[i : i + size] for i in range(0, len(left), size)]:
            if fails_without(removed | {*chunk}):
                removed |= {*chunk}
        left = [item for item in left if item not in removed]
        size = min(size, len(left) + 1) // 2
    return removed


def _around(
    neighbours: Sequence[Collection[int]], needed: list[int], pool: list[int], fails: Fails
) -> list[int]:
    """The pool in the order of the distance from what is needed, as little of it as rings leave."""
    distances = _distances(neighbours, needed)
    ordered = sorted(pool, key=lambda node: (distances[node], node))
    for ring in _RINGS:
        chosen = [node for node in ordered if distances[node] <= ring]
        if len(chosen) == len(ordered):
            break
        if chosen and fails(frozenset((*needed, *chosen))):
            return chosen
    return ordered


def _first_failing(
    order: Sequence[int],
    needed: Sequence[int],
    weights: Sequence[float] | Mapping[int, float],
    fails: Fails,
) -> int:
    """The index at which the shortest prefix that fails ends, given that the whole fails."""
    sums = list(itertools.accumulate(weights[node] for node in order))
    passing, failing = -1, len(order) - 1  # indexes at which prefixes end
    while failing - passing > 1:
        before = sums[passing] if passing >= 0 else 0.0
        half = (before + sums[failing]) / 2
        middle = next(i for i in range(passing + 1, failing + 1) if sums[i] >= half)
        # One node of much weight may hold more than half.
        middle = min(max(middle, passing + 1), failing - 1)
        if fails(frozenset((*needed, *order[: middle + 1]))):
            failing = middle
        else:
            passing = middle
    return failing


def _distances(neighbours: Sequence[Collection[int]], sources: Collection[int]) -> list[float]:
    found = [float("inf")] * len(neighbours)
    for distance, ring in enumerate(_rings(neighbours, sources)):
        for node in ring:
            found[node] = distance
    return found


def _rings(neighbours: Sequence[Collection[int]], sources: Collection[int]) -> Iterator[set[int]]:
    """The sources, those next to them, and so on."""
    ring, seen = set(sources), set(sources)
    while ring:
        yield ring
        ring = {other for node in ring for other in neighbours[node]} - seen
        seen |= ring
