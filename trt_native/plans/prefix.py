"""Metadata in front of a plan, in the same file, as Ultralytics' exports have it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from io import BufferedReader
from typing import Any

from trt_native.errors import PlanError
from trt_native.plans.header import HEADER_BYTES, PlanHeader

__all__ = ["describe_prefix", "is_plan_file", "read_prefix"]

_LENGTH_BYTES = 4
_MOST_BYTES = 2**24
_MOST_ITEMS, _DEEPEST = 4, 3


def read_prefix(file: BufferedReader, size: int) -> tuple[int, dict[str, Any] | None]:
    """Find where the plan starts in a file, and what is in front of it.

    The layout is four bytes with the length of the metadata, little-endian; the metadata, an object
    in JSON; then the plan.

    Args:
        file: The file, at its start.
        size: Its length in bytes.

    Returns:
        The plan's offset in bytes, and the metadata; 0 and None where there are none, also where
        the file is no plan at all.

    Raises:
        PlanError: a plan follows, and what is in front of it is not such metadata.
        OSError: the file cannot be read.
    """
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    offset = _LENGTH_BYTES + length
    if not 2 <= length <= _MOST_BYTES or offset + HEADER_BYTES > size:
        return 0, None
    text = file.read(length)
    try:
        PlanHeader.parse(file.read(HEADER_BYTES))
    except PlanError:
        return 0, None
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise PlanError(
            f"the {length} bytes in front of the plan are not a JSON object; export it again"
        )
    return offset, metadata


def is_plan_file(file: BufferedReader, size: int) -> bool:
    """Whether an open file, at its start, begins like a plan, with or without metadata."""
    if file.peek(HEADER_BYTES)[:4] in PlanHeader.tags():
        return True
    try:
        return read_prefix(file, size)[0] > 0
    except PlanError:
        return True


def describe_prefix(metadata: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """The metadata for a person: name and text of each entry; long lists by their ends."""
    for name, value in (metadata or {}).items():
        yield f"in front: {name}", _text(value)


def _text(value: Any, depth: int = 0) -> str:
    if not isinstance(value, dict | list):
        return value if isinstance(value, str) else json.dumps(value)
    if depth == _DEEPEST:
        return "..."
    entries = value.items() if isinstance(value, dict) else (("", item) for item in value)
    items = [f"{name}: " * bool(name) + _text(item, depth + 1) for name, item in entries]
    if len(items) > _MOST_ITEMS:
        return f"{len(items)}: {', '.join(items[: _MOST_ITEMS - 1])}, ... {items[-1]}"
    return ", ".join(items)
