from __future__ import annotations

import threading

import pytest

from trt_native.errors import ClosedError, CudaError, SpecError
from trt_native.runtime import guard
from trt_native.runtime.guard import SessionGuard


@pytest.fixture
def made_current(monkeypatch):
    """The GPUs whose context was made current."""
    found = []

    def require_gpu(ordinal):
        found.append(ordinal)
        guard.CURRENT.ordinal = ordinal

    monkeypatch.setattr(guard, "require_gpu", require_gpu)
    monkeypatch.setattr(guard, "CURRENT", threading.local())
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


def test_the_context_comes_back_after_work_on_another_gpu(made_current):
    one = SessionGuard(0)
    enter(one)
    guard.require_gpu(1)  # an engine that is loaded there
    enter(one)
    assert made_current == [0, 1, 0]


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
