"""The ``trt-native`` command. Each command parses, calls the package, and prints."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

__all__ = ["interrupted", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 after an error, 2 after wrong usage, 130 after Ctrl-C.

    Args:
        arguments: The words after the program's name; those of the process by default.
    """
    from trt_native._lazy import HEAVY_MODULES, delay_imports
    from trt_native.cli.streams import prepare_streams

    prepare_streams()
    delay_imports(*HEAVY_MODULES)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        with _spare_process(words):
            from trt_native.cli.app import app

            app(words, prog_name="trt-native")
    except KeyboardInterrupt:
        interrupted()
    except OSError as error:  # of standard output: commands report their own
        print(f"error: standard output: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the other cannot be flushed at exit
        sys.exit(1)


def _spare_process(words: Sequence[str]) -> AbstractContextManager[None]:
    """A process that imports what a build needs, while this one does the same for itself."""
    names = {word.partition("=")[0] for word in words}
    if "build" not in words[:2] or {"-h", "--help", "--device"} & names:
        return nullcontext()  # one that has started does not see which GPU is selected
    if any(word.startswith("--device") for word in words):  # which it could not be told any more
        return nullcontext()
    from trt_native.builder.spare import spare_process

    return spare_process()


def interrupted() -> NoReturn:
    """End the process at once, with the exit code that Ctrl-C has in a shell.

    TensorRT may still be at work in a thread, which a regular exit would crash into.
    """
    print("\ninterrupted", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(130)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
