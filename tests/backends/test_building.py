"""Workspace, temporary files and the thread of a build; no TensorRT is needed."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import onnx
import pytest
from helpers import tiny_models

from trt_native.backends.building import (
    CancelRequest,
    default_workspace,
    run_interruptible,
    save_temporary,
)
from trt_native.cuda import GpuInfo
from trt_native.errors import BuildError
from trt_native.graph.onnx_file import read_model

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


def test_a_temporary_model_has_its_weights_next_to_it(tmp_path):
    source = tiny_models.dense(tmp_path / "m.onnx")
    (tmp_path / "scratch").mkdir()
    target = tmp_path / "scratch" / "g.onnx"
    save_temporary(read_model(source), target)
    assert sorted(os.listdir(target.parent)) == ["g.onnx", "g.onnx.data"]
    before, after = (
        {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
        for path in (source, target)
    )
    assert before.keys() == after.keys()
    for name, weight in before.items():
        np.testing.assert_array_equal(after[name], weight)
    assert target.stat().st_size < 64 * 64 * 4 < (target.parent / "g.onnx.data").stat().st_size


def test_a_folder_that_cannot_be_written_to(tmp_path):
    model = read_model(tiny_models.dense(tmp_path / "m.onnx"))
    missing = tmp_path / "none"
    with pytest.raises(
        BuildError, match=f"cannot write the rewritten model to {missing}: .*TMPDIR"
    ):
        save_temporary(model, missing / "g.onnx")


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
