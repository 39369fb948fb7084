"""A building process that is started before it is known what to build.

It imports what a build needs, while this process reads the command line, and then waits for a job,
which :mod:`trt_native.builder.isolated` gives it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from trt_native.errors import UnsupportedError

__all__ = ["LINE_BYTES", "Channels", "spare_process", "start_channels", "take_spare"]

LINE_BYTES = 1024
"""Room in shared memory for the node that was last parsed, and again for TensorRT's last line."""

# The child imports from where this process does, not from its working folder.
_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:];"
    " from trt_native.builder.worker import main; main(int(sys.argv[1]))"
)
_spares: list[Channels] = []


@dataclass(frozen=True, slots=True)
class Channels:
    """A building process, and the descriptors to talk to it, which the owner closes.

    Attributes:
        process: It; its standard input ends its wait, and itself when it is closed.
        events: What it reports.
        output: What it prints.
        record: Shared memory of two times :data:`LINE_BYTES`.
        request: Shared memory of its request.
        events_there: The descriptor of its events in the process.
    """

    process: subprocess.Popen[bytes]
    events: int
    output: int
    record: int
    request: int
    events_there: int

    def close(self) -> None:
        """Close the descriptors of a process that was killed."""
        with suppress(subprocess.TimeoutExpired):  # stuck in a driver
            self.process.wait(timeout=5)
        if self.process.stdin is not None:
            self.process.stdin.close()
        for descriptor in (self.events, self.output, self.record, self.request):
            os.close(descriptor)

    def write(self, request: dict[str, object]) -> None:
        """Write a request, which the process reads when it starts, and again when it waited."""
        _write(self.request, {**request, "events": self.events_there, "record": self.record})


@contextmanager
def spare_process() -> Iterator[None]:
    """A process that waits for a job, which :func:`take_spare` returns; it ends with the block."""
    if _has_channels():  # else it is an error where a process is needed
        _spares.append(start_channels({"job": None, "waits": True}))
    try:
        yield
    finally:
        while (spare := take_spare()) is not None:
            spare.process.kill()
            spare.close()


def take_spare() -> Channels | None:
    """The process that waits for a job; None where there is none."""
    return _spares.pop() if _spares else None


def _has_channels() -> bool:
    return hasattr(os, "memfd_create")


def start_channels(request: dict[str, object]) -> Channels:
    """Start a process with a request.

    Raises:
        UnsupportedError: the system is not Linux.
    """
    if not _has_channels():
        raise UnsupportedError(
            "this needs a process of its own, which is there on Linux alone and not on"
            f" {sys.platform}; build in Python with trt_native.build_plan, which needs none"
        )
    with ExitStack() as files:
        events, events_there = os.pipe()
        output, output_there = os.pipe()
        files.callback(os.close, events_there)
        files.callback(os.close, output_there)
        # Shared memory, which is there to be read when the child is gone.
        record = os.memfd_create("trt-native-record")
        os.ftruncate(record, 2 * LINE_BYTES)
        job = os.memfd_create("trt-native-job")
        _write(job, {**request, "events": events_there, "record": record})
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(job), *sys.path],
            stdin=subprocess.PIPE,
            stdout=output_there,
            stderr=output_there,
            pass_fds=(events_there, record, job),
            start_new_session=True,  # a terminal's Ctrl-C is for this process alone
        )
    return Channels(process, events, output, record, job, events_there)


def _write(descriptor: int, request: dict[str, object]) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(request).encode(), 0)
