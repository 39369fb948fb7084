"""Measuring in a process of its own: running it to a deadline, and the GPU memory it takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from trt_native.errors import TrtNativeError

__all__ = ["PeakMemory", "ProcessError", "Row", "read_lines"]

Row = dict[str, Any]
"""One line that a process prints: where it belongs in the results, and what was found."""


class ProcessError(TrtNativeError):
    """A process did not do what it was started for."""


def read_lines(words: list[str], note: Callable[[Row], None] | None, seconds: float) -> None:
    """Run a program; ``note`` gets each line of JSON when it is there.

    Raises:
        ProcessError: the process ended with an error, was killed, or took too long.
    """
    late = threading.Event()
    # In a group of its own: what compiles starts processes too, and they must not stay.
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:

        def kill() -> None:
            late.set()
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), kill)
        timer.start()
        error = ""
        try:
            for line in process.stdout or ():
                if not line.startswith("{"):  # a library's
                    print(line, end="", file=sys.stderr)
                    continue
                row = json.loads(line)
                error = row.get("error", "")
                if note is not None and not error:
                    note(row)
        except BaseException:
            kill()
            raise
        finally:
            timer.cancel()
    if late.is_set():
        raise ProcessError(f"not ready after {seconds:.0f} s")
    if process.returncode or error:
        raise ProcessError(error or f"the process ended with {process.returncode}")


class PeakMemory:
    """The most of the GPU's memory that was taken meanwhile, by all libraries, in bytes.

    That counts what PyTorch's allocator keeps without using it, as other programs feel it too.
    """

    def __enter__(self) -> PeakMemory:
        self._least = self._free = torch.cuda.mem_get_info()[0]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self._least = min(self._least, torch.cuda.mem_get_info()[0])

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        """Bytes taken since the block began."""
        return self._free - self._least

    @property
    def used(self) -> int:
        """Bytes taken on the GPU altogether, the context and other processes included."""
        return torch.cuda.mem_get_info()[1] - self._least
