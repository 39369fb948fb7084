"""The ``trt-native`` command. Each command parses, calls the package, and prints."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["interrupted", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 after an error, 2 after wrong usage, 130 after Ctrl-C.

    Args:
        arguments: The words after the program's name; those of the process by default.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may not exist in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        from trt_native.cli.app import app

        app(None if arguments is None else list(arguments), prog_name="trt-native")
    except KeyboardInterrupt:
        interrupted()


def interrupted() -> NoReturn:
    """End the process at once, with the exit code that Ctrl-C has in a shell.

    TensorRT may still be at work in a thread, which a regular exit would crash into.
    """
    print("\ninterrupted", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(130)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
