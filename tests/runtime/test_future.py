from __future__ import annotations

import weakref

import pytest

from trt_native.errors import CudaError
from trt_native.runtime.future import InferenceFuture


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
