"""Sizes in bytes and durations, as text."""

from __future__ import annotations

import re

from trt_native.errors import SpecError

__all__ = ["counted", "format_age", "format_bytes", "parse_bytes", "parse_duration"]


_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SECONDS = (86400, 3600, 60, 1)
INT64_MAX = 2**63 - 1


def parse_bytes(text: str | int) -> int:
    """Read a size such as ``8GiB``, ``512 MiB``, ``2GB`` or a plain number of bytes.

    Raises:
        SpecError: the text is not a number with one of the known units.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if match is None or match[2].lower() not in _UNITS or len(match[1]) > 100:
        raise SpecError(f"not a size: {text!r}; write for example 8GiB, 512MiB or 4000000000")
    count = int(float(match[1]) * _UNITS[match[2].lower()])
    if count > INT64_MAX:
        raise SpecError(f"not a size: {text!r}; that is more than any machine has")
    return count


def format_bytes(count: int) -> str:
    """Write a size in bytes with the largest binary unit that keeps it at 1 or more."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_age(seconds: float) -> str:
    """Write a time that has passed in the largest unit of which it has two, as ``3 min``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def counted(count: int, noun: str, ending: str = "s") -> str:
    """Write a count with its noun, as ``1 node`` or ``1,024 nodes``."""
    return f"{count:,} {noun}{ending * (count != 1)}"


def parse_duration(text: str) -> float:
    """Read a duration such as ``90``, ``90s``, ``15m``, ``1h30m`` or ``7d``; returns seconds.

    Raises:
        SpecError: the text has another form, or is not a time.
    """
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(
        rf"(?:{number}d)?(?:{number}h)?(?:{number}m)?(?:{number}s?)?",
        "".join(text.lower().split()),
    )
    counts = match.groups() if match else ()
    seconds = sum(float(n or 0) * unit for n, unit in zip(counts, _SECONDS, strict=False))
    if not 0 < seconds < INT64_MAX:
        raise SpecError(f"not a duration: {text!r}; write for example 90s, 15m or 1h30m")
    return seconds
