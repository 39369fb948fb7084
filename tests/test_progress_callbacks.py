"""Callbacks of long operations."""

from __future__ import annotations

import inspect

import pytest

from trt_native.progress import Progress, byte_phase, phase


class Recorder:
    def __init__(self):
        self.calls = []

    def phase_start(self, phase, parent, steps):
        self.calls.append(("start", phase, parent, steps))

    def step_complete(self, phase, step):
        self.calls.append(("step", phase, step))

    def phase_finish(self, phase):
        self.calls.append(("finish", phase))


def test_a_phase_starts_before_its_work_and_ends_after_it():
    recorder = Recorder()
    with phase(recorder, "outer"):
        recorder.calls.append("work")
        with phase(recorder, "inner"):
            recorder.calls.append("more work")
    assert recorder.calls == [
        ("start", "outer", None, 1),
        "work",
        ("start", "inner", None, 1),
        "more work",
        ("finish", "inner"),
        ("finish", "outer"),
    ]


def test_steps_are_reported_in_their_phase():
    recorder = Recorder()
    with phase(recorder, "many", 2) as step:
        step(0)
        step(1)
    assert recorder.calls == [
        ("start", "many", None, 2),
        ("step", "many", 0),
        ("step", "many", 1),
        ("finish", "many"),
    ]


def test_without_a_receiver_the_work_is_done():
    done = []
    with phase(None, "quiet") as step:
        done.append(1)
        step(0)
    assert done == [1]


def test_errors_of_the_work_come_through():
    recorder = Recorder()

    def work():
        with phase(recorder, "broken"):
            raise KeyError("x")

    with pytest.raises(KeyError):
        work()
    assert recorder.calls[0] == ("start", "broken", None, 1)
    with pytest.raises(KeyError), phase(None, "broken"):
        raise KeyError("x")


def test_bytes_are_steps_of_a_mebibyte():
    recorder = Recorder()
    with byte_phase(recorder, "Reading", (3 << 20) + 1) as read:
        for done in (0, 5, 10, 1 << 20, (1 << 20) + 1, (3 << 20) + 1):
            read(done)
    with byte_phase(recorder, "Nothing", 0):
        pass
    assert recorder.calls == [
        ("start", "Reading (MiB)", None, 4),
        *(("step", "Reading (MiB)", step) for step in (0, 1, 3)),
        ("finish", "Reading (MiB)"),
        ("start", "Nothing (MiB)", None, 1),
        ("finish", "Nothing (MiB)"),
    ]
    with byte_phase(None, "Reading", 5) as read:
        read(5)


@pytest.mark.parametrize("name", ["phase_start", "step_complete", "phase_finish"])
def test_receivers_have_the_methods_of_the_protocol(name):
    own, expected = (inspect.signature(getattr(kind, name)) for kind in (Recorder, Progress))
    assert list(own.parameters) == list(expected.parameters)
