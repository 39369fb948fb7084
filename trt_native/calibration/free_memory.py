"""Limits for what is held in the host's memory."""

from __future__ import annotations

import os

__all__ = ["memory_limit"]


def memory_limit(most_bytes: int) -> int:
    """A number of bytes, or a quarter of the memory that is free now where that is less."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return most_bytes
    return min(most_bytes, free // 4)
