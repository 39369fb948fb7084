"""CUDA graphs of a session, by shapes and addresses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from trt_native.cuda import Graph

__all__ = ["GraphCache"]

_SEEN_PER_GRAPH = 4


class GraphCache:
    """Least-recently-used cache of graphs.

    A graph pays off once its key recurs: where addresses change in every call, capturing is wasted.

    Args:
        limit: Number of graphs to keep; 0 for none.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def find(self, key: Hashable) -> Graph | None:
        """Return the graph of a key, and mark it as used last."""
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
        return graph

    def seen_before(self, key: Hashable) -> bool:
        """Whether the key was seen before; remembers it."""
        if not self._limit:
            return False
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > self._limit * _SEEN_PER_GRAPH:
            self._seen.popitem(last=False)
        return False

    def add(self, key: Hashable, graph: Graph) -> Graph | None:
        """Keep a graph; returns the one that was evicted, for the caller to close."""
        self._seen.pop(key, None)
        self._graphs[key] = graph
        if len(self._graphs) <= self._limit:
            return None
        return self._graphs.popitem(last=False)[1]

    def close(self) -> None:
        """Free all graphs, none of which may be running. Idempotent."""
        while self._graphs:
            self._graphs.popitem()[1].close()
        self._seen.clear()
