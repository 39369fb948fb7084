"""Code for the CPU that a plan carries: TensorRT's lean runtime, and libraries of plugins."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HEAD_BYTES", "LEAN_RUNTIME", "PLUGINS", "HostCode", "carried_code"]

LEAN_RUNTIME, PLUGINS = "TensorRT's lean runtime", "a library of plugins"

_TABLE_START, _ENTRY_BYTES = 64, 24
_MOST_SECTIONS = 40
_CODE = {b"NAEL": LEAN_RUNTIME, b"NGLP": PLUGINS}

HEAD_BYTES = _TABLE_START + _MOST_SECTIONS * _ENTRY_BYTES
"""How many of a plan's first bytes :func:`carried_code` looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCode:
    """Code for the CPU that comes with a plan, and whether it may run.

    Attributes:
        carried: What the plan contains, :data:`LEAN_RUNTIME` or :data:`PLUGINS` or both; None where
            its layout is not known.
        allowed: Whether code in the plan may run in this process.
        lean_runtime: Library of the lean runtime to load the plan with, for one that was built
            version compatible without it.
    """

    carried: tuple[str, ...] | None = ()
    allowed: bool = False
    lean_runtime: Path | None = None


def carried_code(head: bytes | memoryview, size: int) -> tuple[str, ...] | None:
    """Read from a plan's table of sections what code it carries.

    The table was read off plans of TensorRT-RTX 1.4 to 1.7, with and without such code: the number
    of sections at byte 8; from byte 64 on, 24 bytes for each: its tag, four characters in reverse
    order in the first eight bytes; its offset; its length.

    Args:
        head: The first :data:`HEAD_BYTES` of the plan, or the whole of a shorter one.
        size: Length of the plan in bytes.

    Returns:
        None where there is no such table.
    """
    if len(head) < _TABLE_START:
        return None
    (count,) = struct.unpack_from("<Q", head, 8)
    end = _TABLE_START + count * _ENTRY_BYTES
    if not 1 <= count <= _MOST_SECTIONS or end > len(head):
        return None
    tags, start = [], end
    for tag, offset, length in struct.iter_unpack("<8sQQ", bytes(head[_TABLE_START:end])):
        if offset < start or offset + length > size:
            return None
        tags.append(tag.rstrip(b"\0"))
        start = offset + length
    return tuple(text for tag, text in _CODE.items() if tag in tags)
