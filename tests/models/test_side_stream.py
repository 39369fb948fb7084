"""Results of a side stream, with streams that only record what waits for what."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from trt_native.models.latentsync.side_stream import SideStream


class Stream:
    """Stands for a CUDA stream; ``log`` has what it waited for, and what ran on it."""

    def __init__(self, name, log):
        self.name, self._log, self._events = name, log, 0
        self.device = torch.device("cuda", 0)

    def wait_stream(self, other):
        self._log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self._log.append(f"{self.name} waits for {event}")

    def record_event(self):
        self._events += 1
        return f"{self.name}#{self._events}"


@pytest.fixture
def log():
    return []


@pytest.fixture
def side(monkeypatch, log):
    current = [Stream("main", log)]

    @contextlib.contextmanager
    def stream(inner):
        current.append(inner)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    return SideStream(torch.device("cuda"))


def double(tensor):
    return 2 * tensor


def test_work_follows_what_came_before(side, log):
    side.run(double, torch.ones(2))
    assert log == ["side waits for main"]


def test_sums_and_products_stay_on_the_side_stream(side, log):
    found = side.run(double, torch.ones(2))
    mask = torch.tensor([0.25, 0.5])
    pasted = 3 + found * mask - (1 - mask) / found
    assert "main waits for" not in "".join(log)
    torch.testing.assert_close(pasted.tolist(), [3.5 - 0.375, 4.0 - 0.25])
    assert log[-1].startswith("main waits for side#")


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda t: torch.cat([torch.zeros(1), t]), [0, 2, 4]),
        (lambda t: t[1:], [4]),
        (lambda t: t.cpu(), [2, 4]),
        (lambda t: t.data, [2, 4]),
        (lambda t: torch.zeros(2).copy_(t), [2, 4]),
        (lambda t: torch.add(t, 1, out=torch.zeros(2)), [3, 5]),
        (lambda t: t.add_(1), [3, 5]),
        (lambda t: torch.from_numpy(np.asarray(t)), [2, 4]),
        (lambda t: torch.nn.functional.pad(t, (1, 0)), [0, 2, 4]),
        (lambda t: torch.stack(list(t)), [2, 4]),
    ],
)
def test_everything_else_waits(side, log, read, expected):
    found = side.run(double, torch.tensor([1.0, 2.0]))
    result = read(found)
    assert "main waits for side#1" in log
    assert type(result) is torch.Tensor
    assert result.tolist() == expected


def test_shapes_and_types_are_known_without_waiting(side, log):
    found = side.run(double, torch.ones(2, 3))
    assert (found.shape, found.dtype, found.ndim) == ((2, 3), torch.float32, 2)
    assert found.device == torch.device("cpu")
    assert isinstance(found, torch.Tensor)
    assert log == ["side waits for main"]


def test_the_address_is_not(side, log):
    found = side.run(double, torch.ones(2))
    assert found.data_ptr()
    assert log[-1] == "main waits for side#1"
