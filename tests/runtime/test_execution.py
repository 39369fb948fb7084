from __future__ import annotations

import numpy as np
import pytest
from helpers.fake_gpu import FakeEngine, Memory, array_at

from trt_native.errors import CudaError
from trt_native.runtime.execution import ExecutionContext
from trt_native.runtime.tensor_views import read


@pytest.fixture
def context(gpu):
    context = ExecutionContext(FakeEngine(gpu), 1)
    yield context
    context.close()


def views(count=2):
    return {"x": read(np.zeros((count, 3), np.float32))}


def addresses(x):
    """Device addresses of an input with these values and of an output, and what keeps them."""
    kept = Memory(x.nbytes), Memory(x.nbytes)
    array_at(kept[0].handle, x.shape)[...] = x
    return (kept[0].handle, kept[1].handle), kept


def test_equal_inputs_share_their_shapes(context):
    bound = context.shapes_for(views(), [])
    assert (bound.inputs, bound.outputs, bound.profile) == (((2, 3),), {"y": (2, 3)}, 0)
    assert bound.replayable
    assert not bound.has_dynamic_outputs
    assert context.shapes_for(views(), []) is bound
    assert context.shapes_for(views(3), []) is not bound


def test_runs_are_captured_when_they_recur(context, gpu, rows):
    bound = context.shapes_for(views(), [])
    x = rows()
    pointers, _kept = addresses(x)
    found = []
    for _ in range(3):
        array_at(pointers[1], x.shape)[...] = np.nan
        gpu.log.clear()
        context.launch(bound, pointers, 9)
        np.testing.assert_array_equal(array_at(pointers[1], x.shape), 2 * x)
        found += [what for what, stream in gpu.log if stream == 9 and what != "record"]
    assert [what for what in found if what != "wait"] == ["enqueue", "replay", "replay"]
    assert context.graph_count == 1
    gpu.log.clear()
    context.launch(bound, pointers, 9, graph=False)
    assert ("enqueue", 9) in gpu.log


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_the_default_streams_are_left_to_the_contexts_own(context, gpu, rows, stream):
    bound = context.shapes_for(views(), [])
    pointers, _kept = addresses(rows())
    context.launch(bound, pointers, stream, graph=False)
    own = context.stream.handle
    log = [entry for entry in gpu.log if entry[0] != "record"]
    assert log == [("wait", own), ("enqueue", own), ("wait", stream)]


def test_a_stream_that_the_caller_captures(context, gpu, rows):
    bound = context.shapes_for(views(), [])
    pointers, _kept = addresses(rows())
    gpu.user_captures.add(9)
    assert context.is_captured(9)
    with pytest.raises(CudaError, match="run it once before you capture it"):
        context.launch(bound, pointers, 9)
    context.launch(bound, pointers, 8)
    gpu.log.clear()
    context.launch(bound, pointers, 9)
    assert gpu.log == [("enqueue", 9)], "the caller's graph orders it"
    bound.has_dynamic_outputs = True
    with pytest.raises(CudaError, match="output shapes depend on data cannot be captured"):
        context.launch(bound, pointers, 9)
