"""Workspace, temporary files and the thread of a build; no TensorRT is needed."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from trt_native.backends.building import (
    CancelRequest,
    default_workspace,
    run_interruptible,
)
from trt_native.cuda import GpuInfo

GIB = 2**30


@pytest.mark.parametrize(
    ("free", "workspace"),
    [
        (80 * GIB, 8 * GIB),
        (8 * GIB, 8 * GIB),
        (8 * GIB - 1, 4 * GIB),
        (3 * GIB, 2 * GIB),
        (GIB, GIB),
        (1, 1),
    ],
)
def test_the_workspace_is_a_power_of_two_that_is_free(free, workspace):
    assert default_workspace(GpuInfo("any", "8.9", "13.0", 96 * GIB, free)) == workspace


def test_the_workspace_without_a_gpu():
    assert default_workspace(None) == 8 * GIB


def test_work_runs_in_another_thread_and_returns_its_result():
    worker = run_interruptible(threading.get_ident, threading.Event())
    assert isinstance(worker, int)
    assert worker != threading.get_ident()


def test_an_exception_of_the_work_is_raised_by_the_caller():
    cancelled = threading.Event()
    with pytest.raises(ZeroDivisionError):
        run_interruptible(lambda: 1 / 0, cancelled)
    assert not cancelled.is_set()


def test_an_interrupt_cancels_and_waits_for_the_end(caplog):
    cancelled, events = threading.Event(), []
    main = threading.main_thread().ident

    def work():
        time.sleep(0.05)  # so that the caller waits for the end
        signal.pthread_kill(main, signal.SIGINT)
        events.append(cancelled.wait(60))
        time.sleep(0.1)
        events.append("ended")

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_interruptible(work, cancelled)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert events == [True, "ended"]
    assert "press Ctrl-C again to abort immediately" in caplog.text


def test_a_request_of_another_process_to_stop_names_no_ctrl_c(caplog):
    cancelled = threading.Event()
    request = threading.Timer(0.05, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])

    def handle(*_):
        raise CancelRequest

    previous = signal.signal(signal.SIGINT, handle)
    try:
        request.start()
        with pytest.raises(KeyboardInterrupt):
            run_interruptible(lambda: cancelled.wait(60), cancelled)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert cancelled.is_set()
    assert caplog.text == ""
