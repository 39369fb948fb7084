"""Builds that failed because the workspace limit was too small, read from TensorRT's log.

TensorRT-RTX reports one of these cases as an error that only says "OutOfMemory (Requested size was
N bytes.)", where N is the limit plus the weights. The reason is in a verbose line before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trt_native.units import format_bytes

__all__ = ["BUDGET_LINE", "WorkspaceShortage", "find_shortage"]

BUDGET_LINE = re.compile(r"Exceeded mem budget of \d+\. Need (\d+)")
"""Verbose line about a part of the network for which the limit is too small."""

_OUT_OF_MEMORY = re.compile(r"out ?of ?memory", re.IGNORECASE)
_STATED = re.compile(
    r"within workspace limit|insufficient workspace|increas\w+ the (allowed )?workspace size",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class WorkspaceShortage:
    """The workspace limit was too small for the network.

    Attributes:
        needed_bytes: Size that the part of the network needs which was compiled last, as TensorRT
            reports it; None where it does not.
    """

    needed_bytes: int | None

    def __str__(self) -> str:
        if self.needed_bytes is None:
            return "the workspace is too small"
        return f"the workspace is too small, it needs {format_bytes(self.needed_bytes)}"

    def larger_workspace(self, limit_bytes: int) -> int:
        """A size in bytes to try next: a power of two at least twice the limit that failed."""
        wanted = self.needed_bytes or 4 * limit_bytes
        return 1 << (max(wanted, 2 * limit_bytes) - 1).bit_length()


def find_shortage(lines: Sequence[str]) -> WorkspaceShortage | None:
    """The shortage that failed a build, from its errors and its :data:`BUDGET_LINE` lines.

    A budget line alone is not a failure: TensorRT may have gone on with another implementation.
    """
    needs = [int(found[1]) for line in lines if (found := BUDGET_LINE.search(line))]
    if needs and any(_OUT_OF_MEMORY.search(line) for line in lines):
        return WorkspaceShortage(max(needs))
    if any(_STATED.search(line) for line in lines):
        return WorkspaceShortage(max(needs, default=None))
    return None
