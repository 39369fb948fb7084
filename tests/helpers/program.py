"""The program, run in this process: what it prints and its exit code, without starting Python."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
from types import SimpleNamespace
from unittest import mock

from trt_native.cuda import gpu_info

__all__ = ["DIMS", "HAS_GPU", "failing", "trt_native"]

DIMS = ("--dim", "batch=1:2:4", "--dim", "height=8:8:16", "--dim", "width=8")
"""Shapes for the model of :func:`helpers.tiny_models.conv`."""

HAS_GPU = gpu_info() is not None


def trt_native(*arguments, cwd=None, env=None, width=120):
    """Run the program with these words; builds have a process of their own all the same.

    Tests of signals, of closed streams and of what the program imports start a real process.
    """
    from trt_native.cli import console, main

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in "oe")
    before = os.getcwd(), signal.getsignal(signal.SIGTERM)
    logger = logging.getLogger("trt_native")
    handlers, level = logger.handlers[:], logger.level
    logger.handlers.clear()
    code = 0
    with contextlib.ExitStack() as changes:
        for patch in (
            mock.patch.dict(os.environ, {"COLUMNS": str(width), **(env or {})}),
            mock.patch.object(console.stdout, "_width", width),
            mock.patch.object(console.stderr, "_width", width),
            mock.patch("sys.argv", ["trt-native", *map(str, arguments)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            changes.enter_context(patch)
        try:
            os.chdir(cwd or before[0])
            main([*map(str, arguments)])
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            os.chdir(before[0])
            signal.signal(signal.SIGTERM, before[1])
            logger.handlers[:] = handlers
            logger.setLevel(level)
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    assert "Traceback" not in texts[1], texts[1]
    return SimpleNamespace(returncode=code, stdout=texts[0], stderr=texts[1])


def failing(*arguments, code=1, **options):
    """Run a command that must fail with a clear message; return the message."""
    result = trt_native(*arguments, **options)
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    return result.stderr
