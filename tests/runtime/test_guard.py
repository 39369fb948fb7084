"""Who may use a session, runs on their way, and the order of many: all without a GPU."""

from __future__ import annotations

import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from trt_native.errors import ClosedError, CudaError, SpecError
from trt_native.runtime import Session, guard
from trt_native.runtime.future import InferenceFuture
from trt_native.runtime.guard import SessionGuard


@pytest.fixture
def made_current(monkeypatch):
    """The GPUs whose context was made current."""
    found = []
    monkeypatch.setattr(guard, "require_gpu", found.append)
    monkeypatch.setattr(guard, "_THREAD", threading.local())
    return found


def in_a_thread(work):
    caught = []

    def catch():
        try:
            work()
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    thread.join()
    return caught[0] if caught else None


# Turns


def enter(one):
    with one:
        pass


def test_one_thread_at_a_time(made_current):
    one = SessionGuard(0)
    with one:
        error = in_a_thread(lambda: enter(one))
    assert isinstance(error, SpecError)
    assert "used by another thread" in error.message
    assert in_a_thread(lambda: enter(one)) is None


def test_each_thread_gets_the_context_of_its_gpu_once(made_current):
    first, second = SessionGuard(0), SessionGuard(1)
    for one in (first, first, second, second, first):
        enter(one)
    assert made_current == [0, 1, 0]
    in_a_thread(lambda: enter(first))
    assert made_current == [0, 1, 0, 0]


def test_a_closed_session_is_not_used(made_current):
    one = SessionGuard(0)
    one.closed = True
    for _ in range(2):  # the refusal has left no lock behind
        with pytest.raises(ClosedError, match="is closed"):
            enter(one)


def test_only_the_loss_of_the_gpu_breaks_a_session(made_current):
    one = SessionGuard(0)
    for error in (SpecError("no"), CudaError("full", code=2)):
        with pytest.raises(type(error)), one:
            raise error
        enter(one)
    with pytest.raises(CudaError, match="lost by 700"), one:
        raise CudaError("lost by 700", code=700)
    one.note(CudaError("lost by 719", code=719))  # the first one counts
    for _ in range(2):
        with pytest.raises(
            CudaError, match=r"broken since an earlier error \(lost by 700"
        ) as found:
            enter(one)
        assert found.value.code == 700


# Runs on their way


class Point:
    """An event that is reached when the test says so."""

    def __init__(self):
        self.reached = False
        self.asked = 0
        self.waited = 0
        self.error = None

    def done(self):
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.reached

    def synchronize(self):
        self.waited += 1
        if self.error is not None:
            raise self.error
        self.reached = True


class Held:
    pass


@pytest.mark.parametrize("collect", [InferenceFuture.result, InferenceFuture.done])
def test_what_is_done_is_neither_asked_for_nor_held_again(collect):
    point, held = Point(), Held()
    pending = InferenceFuture({"y": 1}, point, held, pytest.fail)
    known = weakref.ref(held)
    del held
    assert not pending.done()
    assert known() is not None
    point.reached = True
    collect(pending)
    assert known() is None
    before = point.asked, point.waited
    assert pending.done()
    assert pending.result() == {"y": 1}
    assert (point.asked, point.waited) == before
    assert pending.complete


@pytest.mark.parametrize("collect", [InferenceFuture.result, InferenceFuture.done])
def test_a_failed_run_is_told_every_time(collect):
    point, told = Point(), []
    point.error = CudaError("lost", code=700)
    pending = InferenceFuture({}, point, None, told.append)
    for _ in range(2):
        with pytest.raises(CudaError, match="lost"):
            collect(pending)
    assert told == [point.error] * 2


# Many


class Submitting:
    """What ``map`` needs of a session: runs that are done once their result is asked for."""

    def __init__(self):
        self._most_calls = 4
        self.log = []

    def submit(self, inputs):
        if inputs is None:
            raise SpecError("no input")
        self.log.append(f"submit {inputs}")

        def result():
            self.log.append(f"result {inputs}")
            return {"y": inputs}

        return SimpleNamespace(result=result)


@pytest.mark.parametrize("depth", [1, 2, 9])
def test_map_keeps_order_and_depth(depth):
    session = Submitting()
    found = [outputs["y"] for outputs in Session.map(session, range(6), depth=depth)]
    assert found == list(range(6))
    ahead = most = 0
    for line in session.log:
        ahead += 1 if line.startswith("submit") else -1
        most = max(most, ahead)
    assert most == min(depth + 1, 6)
    assert session._most_calls == max(4, depth + 1)


@pytest.mark.parametrize("depth", [1, 3, 9])
@pytest.mark.parametrize("source", ["input", "iterable"])
def test_results_come_before_an_error(depth, source):
    def batches():
        yield from range(4)
        if source == "iterable":
            raise OSError("the disk is gone")
        yield None

    found = []
    with pytest.raises((SpecError, OSError), match=r"no input|the disk is gone") as caught:
        found.extend(outputs["y"] for outputs in Session.map(Submitting(), batches(), depth=depth))
    assert found == [0, 1, 2, 3]
    assert caught.value.__context__ is None


def test_inputs_are_asked_for_only_with_results():
    taken = []
    batches = (taken.append(i) or i for i in range(9))
    results = Session.map(Submitting(), batches, depth=2)
    assert taken == []
    next(results)
    assert taken == [0, 1, 2]
    next(results)
    assert taken == [0, 1, 2, 3]
    results.close()
    assert taken == [0, 1, 2, 3]


def test_a_depth_of_none():
    with pytest.raises(SpecError, match="at least 1"):
        next(Session.map(Submitting(), [np.zeros(1)], depth=0))
