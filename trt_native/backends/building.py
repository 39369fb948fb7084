"""Helpers shared by all builds: an interruptible thread, and a workspace limit."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from typing import TypeVar

from trt_native.cuda import GpuInfo

__all__ = ["CancelRequest", "default_workspace", "run_interruptible"]

_LOGGER = logging.getLogger(__name__)
_DEFAULT_WORKSPACE = 8 * 2**30
_T = TypeVar("_T")


class CancelRequest(KeyboardInterrupt):
    """An interrupt that another process sends, and announces to the user itself."""


def default_workspace(gpu: GpuInfo | None) -> int:
    """Scratch memory in bytes that one layer may take where nothing else was asked for.

    A power of two, so that the same build comes out the same while the GPU's free memory varies.
    """
    if gpu is None:
        return _DEFAULT_WORKSPACE
    return min(_DEFAULT_WORKSPACE, 1 << max(0, gpu.free_bytes.bit_length() - 1))


def run_interruptible(work: Callable[[], _T], cancelled: threading.Event) -> _T:
    """Run ``work`` in a thread and wait; an interrupt sets ``cancelled``, then waits for the end.

    TensorRT swallows a KeyboardInterrupt that arrives during one of its callbacks, so they must not
    run in the main thread. The wait is on an event: an interrupted ``Thread.join`` would believe,
    before Python 3.13, that the thread had ended.
    """
    ended = threading.Event()
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # raised again by the thread that waits
            # TensorRT's objects go now. The garbage collector might free them during a call to the
            # log, inside a lock that they need.
            traceback.clear_frames(error.__traceback__)
            failure.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="trt-native-build", daemon=True).start()
    try:
        ended.wait()
    except BaseException as error:
        cancelled.set()
        if not isinstance(error, CancelRequest):
            _LOGGER.warning(
                "cancelling after the current TensorRT step; press Ctrl-C again to abort"
                " immediately"
            )
        ended.wait()
        raise
    if failure:
        raise failure.pop()
    return outcome[0]
