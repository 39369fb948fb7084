"""Standard streams that a program can rely on."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from trt_native.files import open_standard_descriptors

__all__ = ["prepare_streams"]


class _Dispensable:
    """A stream whose text may be lost: a full disk or a closed pipe ends no work."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare_streams() -> None:
    """Make standard output and standard error ready for any text, and for being closed or full."""
    open_standard_descriptors()
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may not exist in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stderr, _Dispensable):
        sys.stderr = _Dispensable(sys.stderr)
