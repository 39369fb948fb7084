"""Choosing nodes of a graph by pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from trt_native.errors import SpecError, close_names

__all__ = ["match_nodes"]


def match_nodes(
    nodes: Iterable[ir.Node], patterns: Sequence[str], options: Sequence[str]
) -> dict[str, set[ir.Node]]:
    """Find the nodes that each pattern names.

    Args:
        nodes: The nodes to choose from.
        patterns: Shell patterns (``fnmatch``, case-sensitive) of node names, or with the prefix
            ``op:`` of operator types (``op:Resize``).
        options: The options that the patterns may come from, for the error.

    Raises:
        SpecError: a pattern matches no node.
    """
    candidates = list(nodes)
    matches: dict[str, set[ir.Node]] = {}
    for pattern in patterns:
        by_op, wanted = pattern.startswith("op:"), pattern.removeprefix("op:")
        names = {n: (n.op_type if by_op else n.name or "") for n in candidates}
        matches[pattern] = {n for n, name in names.items() if fnmatch.fnmatchcase(name, wanted)}
        if not matches[pattern]:
            close = close_names(wanted, sorted(set(names.values())), 3, 0.4)
            hint = f"; close: {', '.join(close)}" if close else ""
            kind = "operator type" if by_op else "node name"
            origin = " or ".join(options)
            raise SpecError(
                f"{origin} pattern {pattern!r} matches no {kind}{hint}", options=options
            )
    return matches
