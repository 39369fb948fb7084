"""Processes of isolated builds that are forked from one that has imported everything.

A build has a process of its own all the same, which runs the same code and ends in the same ways:
only Python's start and the imports, 0.7 s of CPU time for each, happen once. Where a test plants
code in the processes that it starts, and where CUDA may be used, they start as they do for a user.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["ForkServer"]

_INTEGER = struct.Struct("i")
_MOST_DESCRIPTORS = 8


class ForkServer:
    """Stands for the module ``subprocess`` where builds are started.

    Attributes:
        PIPE, TimeoutExpired: As there.
    """

    PIPE = subprocess.PIPE
    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self):
        self._socket = self._process = None
        self._path = os.environ.get("PYTHONPATH")

    def Popen(self, words, *, pass_fds, **options):  # noqa: N802
        """Start the process of a build."""
        if os.environ.get("PYTHONPATH") != self._path:
            return subprocess.Popen(words, pass_fds=pass_fds, **options)
        if self._process is None or self._process.poll() is not None:
            self._start()
        theirs, stdin = os.pipe()
        status, written = os.pipe()
        self._send(int(words[3]), [theirs, options["stdout"], written], pass_fds, words[4:])
        os.close(theirs)
        os.close(written)
        return _Child(os.fdopen(stdin, "wb", buffering=0), status)

    def end(self):
        """End the server."""
        if self._process is not None:
            self._socket.close()
            self._process.wait()

    def _start(self):
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def _send(self, request, standard, passed, path):
        text = {
            "request": request, "passed": list(passed), "path": path,
            "folder": os.getcwd(), "environment": dict(os.environ),
        }  # fmt: skip
        data = json.dumps(text).encode()
        descriptors = array.array("i", [*standard, *passed])
        kind = (socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)
        self._socket.sendmsg([_INTEGER.pack(len(data))], [kind])
        self._socket.sendall(data)


class _Child:
    """What a build needs of ``subprocess.Popen``."""

    def __init__(self, stdin, status):
        self.stdin = stdin
        self.returncode = None
        self._status = os.fdopen(status, "rb", buffering=0)
        (self.pid,) = _INTEGER.unpack(self._status.read(_INTEGER.size))
        os.set_blocking(status, False)

    def wait(self, timeout=None):
        """Wait for its end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            data = self._status.read(_INTEGER.size)
            if data is not None:
                self.returncode = _INTEGER.unpack(data)[0]
                self._status.close()
            elif deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("build", timeout)
            else:
                time.sleep(0.002)
        return self.returncode

    def send_signal(self, number):
        """Send a signal to it if it lives."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        """Kill it if it lives."""
        self.send_signal(signal.SIGKILL)


# ---------------------------------------------------------------- the server


def _serve(connection):
    while True:
        head, ancillary, _, _ = connection.recvmsg(
            _INTEGER.size, socket.CMSG_SPACE(_MOST_DESCRIPTORS * _INTEGER.size)
        )
        if not head:
            return
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        request = json.loads(_received(connection, *_INTEGER.unpack(head)))
        if os.fork() == 0:
            connection.close()
            _watch(request, list(descriptors))
        for descriptor in descriptors:
            os.close(descriptor)


def _received(connection, size):
    parts = bytearray()
    while len(parts) < size:
        parts += connection.recv(size - len(parts))
    return bytes(parts)


def _watch(request, descriptors):
    """Fork the build, and report its identity and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = descriptors.pop(2)
    pid = os.fork()
    if pid == 0:
        os.close(status)
        _build(request, descriptors)
    os.write(status, _INTEGER.pack(pid))
    for descriptor in descriptors:
        os.close(descriptor)
    _, ended = os.waitpid(pid, 0)
    os.write(status, _INTEGER.pack(os.waitstatus_to_exitcode(ended)))
    os._exit(0)


def _build(request, descriptors):
    """Do what the child of an isolated build does after its start."""
    os.setsid()
    # Out of the way of the numbers that they had there.
    highest = max(request["passed"]) + len(descriptors) + 16
    moved = [os.dup2(one, highest + index) for index, one in enumerate(descriptors)]
    os.closerange(3, highest)
    stdin, output, *passed = moved
    for number, descriptor in [(0, stdin), (1, output), (2, output)]:
        os.dup2(descriptor, number)
    for number, descriptor in zip(request["passed"], passed, strict=True):
        os.dup2(descriptor, number)
    os.closerange(highest, highest + len(moved))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[:] = request["path"]
    from trt_native.builder.worker import main

    main(request["request"])


def _import_everything():
    import cattrs  # noqa: F401

    import trt_native.builder.build_plan
    import trt_native.builder.model_support
    import trt_native.builder.plan_cache
    import trt_native.builder.worker  # noqa: F401

    for library in ("tensorrt_rtx", "tensorrt"):
        with contextlib.suppress(ImportError):
            __import__(library)


if __name__ == "__main__":
    server = socket.socket(fileno=int(sys.argv[1]))
    here = str(Path(__file__).parent)
    sys.path[:] = [entry for entry in sys.argv[2:] if entry != here]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _import_everything()
    _serve(server)
