"""Progress, cancelling, TensorRT's log and output allocators, on the real TensorRT."""

from __future__ import annotations

import logging
import os
import threading

import pytest
from helpers.backend_builds import DYNAMIC, build

from trt_native.backends.callbacks import Log, make_stream_writer
from trt_native.errors import BuildError
from trt_native.plans.plan_file import PlanFile

HEADER = b"vtrt" + bytes(12) + (99).to_bytes(8, "little") + bytes(8)

pytestmark = pytest.mark.backend


class Recorder:
    def __init__(self, fail_at=None, cancel=None):
        self.events, self.fail_at, self.cancel = [], fail_at, cancel

    def phase_start(self, phase, parent, steps):
        self.events.append(("start", phase))
        if self.fail_at == phase:
            raise ZeroDivisionError("planted")

    def step_complete(self, phase, step):
        self.events.append(("step", phase))
        if self.cancel is not None:
            self.cancel.set()

    def phase_finish(self, phase):
        self.events.append(("finish", phase))


def test_progress_is_reported_phase_by_phase(backend, request_for):
    recorder = Recorder()
    build(backend, request_for(shapes=DYNAMIC), recorder)
    started = [phase for kind, phase in recorder.events if kind == "start"]
    finished = [phase for kind, phase in recorder.events if kind == "finish"]
    assert started[0] == finished[-1] == "Building engine"
    assert sorted(started) == sorted(finished)
    assert ("step", "Building engine") in recorder.events


def test_a_cancelled_build_stops(backend, request_for):
    cancelled = threading.Event()
    recorder = Recorder(cancel=cancelled)
    with pytest.raises(BuildError, match="cancelled"):
        backend.build(request_for(shapes=DYNAMIC), recorder, cancelled)
    assert sum(kind == "step" for kind, _ in recorder.events) == 1


def test_an_exception_of_a_callback_ends_the_build_and_is_raised_again(backend, request_for):
    with pytest.raises(ZeroDivisionError, match="planted"):
        build(backend, request_for(shapes=DYNAMIC), Recorder(fail_at="Building engine"))


class TestWriting:
    @pytest.fixture
    def output(self, tmp_path):
        with PlanFile(tmp_path / "m.plan") as output:
            yield output
        assert not [name for name in os.listdir(tmp_path) if "plan" in name]

    def test_an_exception_ends_the_build_and_is_raised_again(
        self, streaming, request_for, output, monkeypatch
    ):
        writes = []

        def write(chunk):
            writes.append(type(chunk))
            raise KeyboardInterrupt

        monkeypatch.setattr(output, "write", write)
        with pytest.raises(KeyboardInterrupt):
            build(streaming, request_for(shapes=DYNAMIC, output=output))
        assert writes == [bytes]

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "something else than a plan"), (b"vtrt", "only 4 bytes"), (HEADER, "of 99")],
    )
    def test_success_without_a_whole_plan_is_an_error(
        self, streaming, request_for, output, monkeypatch, content, message
    ):
        real = output.write
        monkeypatch.setattr(output, "write", lambda chunk: real(content))
        if content == HEADER and streaming.name != "rtx":
            pytest.skip("the header of these plans has no length")
        with pytest.raises(BuildError, match=message):
            build(streaming, request_for(shapes=DYNAMIC, output=output))

    def test_a_cancelled_build_writes_nothing(self, backend, request_for, output):
        cancelled = threading.Event()
        writer = make_stream_writer(backend._trt, output.write, cancelled)
        assert writer.write(b"vtrt") == 4
        cancelled.set()
        assert writer.write(b"more") == 0
        assert bytes(output.content()) == b"vtrt"


def test_tensorrts_log_goes_to_logging(backend, request_for, caplog):
    with caplog.at_level(logging.DEBUG, "trt_native.tensorrt"):
        build(backend, request_for(shapes=DYNAMIC))
    assert any(record.name == "trt_native.tensorrt" for record in caplog.records)


def test_an_interrupt_during_tensorrts_log_is_raised_afterwards(backend, request_for):
    # TensorRT's bindings swallow what its calls back into Python raise.
    class Interrupting(logging.Handler):
        def emit(self, record):
            raise KeyboardInterrupt

    logger = logging.getLogger("trt_native.tensorrt")
    handler = Interrupting(logging.DEBUG)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(backend, request_for(shapes=DYNAMIC))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_an_output_allocator_keeps_the_exception_of_its_allocation(backend):
    def allocate(name, size):
        if size > 100:
            raise MemoryError(f"{name} needs {size}")
        return 4096

    allocator = backend.output_allocator(allocate)
    assert allocator.reallocate_output_async("y", 0, 16, 256, 0) == 4096
    allocator.notify_shape("y", backend._trt.Dims([2, 3]))
    assert allocator.shape("y") == (2, 3)
    assert allocator.reallocate_output_async("y", 0, 101, 256, 0) == 0
    with pytest.raises(MemoryError, match="y needs 101"):
        allocator.shape("y")
    assert allocator.shape("y") == (2, 3)


def test_harmless_warnings_are_information(caplog):
    with caplog.at_level(logging.DEBUG, "trt_native.tensorrt"):
        Log().write(2, "ModelImporter.cpp:826: Make sure input i1 has Int64 binding.")
        Log().write(2, "another warning")
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
