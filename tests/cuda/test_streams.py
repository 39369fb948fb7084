from __future__ import annotations

import pytest

from trt_native.cuda import Event, stream_handle
from trt_native.errors import SpecError


def test_streams_by_whatever_stands_for_them():
    class Protocol:
        def __cuda_stream__(self):
            return (0, 5)

    class Torch:
        cuda_stream = 6

    class Cupy:
        ptr = 7

    assert [stream_handle(s) for s in (4, Protocol(), Torch(), Cupy())] == [4, 5, 6, 7]
    with pytest.raises(SpecError, match="str is no CUDA stream"):
        stream_handle("0")


def test_an_event_that_was_reached_is_not_asked_again(driver):
    event = Event()
    assert event.done(), "never recorded"
    event.hold(7)
    event.synchronize()
    assert driver.log == []
    event.record(7)
    assert not event.done()
    event.hold(8)
    driver.reached = True
    assert event.done()
    event.hold(8)
    event.synchronize()
    assert driver.log == ["record", "query", "hold", "query"]
    event.record(7)
    event.hold(8)
    event.synchronize()
    event.synchronize()
    assert driver.log[4:] == ["record", "hold", "wait"]


def test_a_recording_has_passed_when_it_was_seen_or_another_followed(driver):
    event = Event()
    first = event.record(7)
    assert not event.passed(first)
    event.synchronize()
    assert event.passed(first)
    second = event.record(7)
    assert event.passed(first)
    assert not event.passed(second)
    event.synchronize()
    assert event.passed(first)
    assert event.passed(second)
