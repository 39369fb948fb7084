from __future__ import annotations

import weakref

import pytest

from trt_native.errors import CudaError
from trt_native.runtime.future import InferenceFuture, RunTracker, StartedRun


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
    point, called = Point(), []
    point.error = CudaError("lost", code=700)
    pending = InferenceFuture({}, point, None, called.append)
    for _ in range(2):
        with pytest.raises(CudaError, match="lost"):
            collect(pending)
    assert called == [point.error] * 2


def test_a_run_without_an_event_gets_one_on_its_stream(driver):
    tracker = RunTracker(0, pytest.fail)
    future = tracker.track(StartedRun({"y": 1}, None, 7), None)
    assert driver.log == ["record"]
    assert list(tracker.futures) == [future]
    assert future.result() == {"y": 1}


def test_events_of_runs_that_are_done_are_used_again(driver):
    tracker = RunTracker(0, pytest.fail)
    futures = [tracker.track(StartedRun({}, None, 7), None) for _ in range(3)]
    events = [future.event for future in futures]
    tracker.reap(query=False)
    assert list(tracker.futures) == futures, "none is known to be done"
    futures[1].result()
    tracker.reap(query=False)
    assert list(tracker.futures) == futures, "the first one comes first"
    driver.reached = True
    tracker.reap(query=True)
    assert not tracker.futures
    taken = [tracker.take_event() for _ in range(4)]
    assert set(events) < set(taken)


def test_the_error_of_a_failed_run_is_reported():
    point, reported = Point(), []
    point.error = CudaError("lost", code=700)
    tracker = RunTracker(0, reported.append)
    future = tracker.track(StartedRun({}, point, 7), None)
    assert future.event is point
    with pytest.raises(CudaError, match="lost"):
        tracker.reap(query=True)
    assert reported == [point.error]
