"""Capture and launch, on the stand-in driver; tests/gpu has the same on a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from helpers.fake_gpu import FakeDriver

from trt_native.cuda import graphs
from trt_native.cuda.graphs import Graph
from trt_native.errors import CudaError


class CountingDriver(FakeDriver):
    """Knows the graphs that are alive."""

    def __init__(self):
        super().__init__()
        self.alive = []

    def cuStreamEndCapture(self, stream):  # noqa: N802
        code, captured = super().cuStreamEndCapture(stream)
        self.alive.append("captured")
        return code, captured

    def cuGraphInstantiate(self, captured, flags):  # noqa: N802
        self.alive.append("executable")
        return super().cuGraphInstantiate(captured, flags)

    def cuGraphDestroy(self, captured):  # noqa: N802
        self.alive.remove("captured")
        return (0,)

    def cuGraphExecDestroy(self, handle):  # noqa: N802
        self.alive.remove("executable")
        return (0,)


@pytest.fixture
def driver(monkeypatch):
    made = CountingDriver()
    monkeypatch.setattr(graphs, "bindings", lambda: made)
    return made


STREAM = SimpleNamespace(handle=5)


def test_work_is_recorded_once_and_launched_often(driver):
    found = []
    graph = Graph(STREAM, lambda: driver.work("enqueue", 5, lambda: found.append(1)))
    assert found == []
    graph.launch(8)
    graph.launch(9)
    assert found == [1, 1]
    assert driver.log == [("replay", 8), ("replay", 9)]
    assert driver.alive == ["executable"]
    graph.close()
    graph.close()
    assert driver.alive == []


def test_work_that_fails_leaves_no_graph(driver):
    with pytest.raises(CudaError, match="cannot capture a CUDA graph: 'broken'"):
        Graph(STREAM, lambda: {}["broken"])
    assert driver.alive == []
    assert driver.captured is None, "the capture has ended"


def test_a_graph_that_cannot_be_instantiated(driver):
    class Code(int):
        name = "CUDA_ERROR_NOT_SUPPORTED"

    driver.cuGraphInstantiate = lambda captured, flags: (Code(801), None)
    with pytest.raises(CudaError, match="cannot capture a CUDA graph: CUDA_ERROR_NOT_SUPPORTED"):
        Graph(STREAM, lambda: None)
    assert driver.alive == []
