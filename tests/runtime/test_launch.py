"""The three launches, on a GPU in ordinary memory."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.fake_gpu import CURRENT_STREAM, FakeTensor

from trt_native.cuda import DeviceArray
from trt_native.errors import CudaError, SpecError
from trt_native.runtime.launch import CheckedLaunch, DeviceLaunch, HostLaunch, input_signature


def test_arrays_that_are_checked_alike_have_one_key(rng):
    x = rng.standard_normal((2, 3), np.float32)
    key = input_signature({"x": x, "n": np.int64(4).reshape(1)})
    assert key is not None
    assert input_signature({"x": np.ones((3, 2), np.float32).T, "n": np.zeros(1, np.int64)}) == key
    others = [
        {"x": x},
        {"y": x, "n": np.zeros(1, np.int64)},
        {"x": x[:1], "n": np.zeros(1, np.int64)},
        {"x": x, "n": np.zeros(1, np.int32)},
        {"x": x.astype(">f4"), "n": np.zeros(1, np.int64)},
        {"n": np.zeros(1, np.int64), "x": x},
    ]
    keys = {key, *map(input_signature, others)}
    assert None not in keys
    assert len(keys) == 1 + len(others)


def test_what_has_no_key(rng, tmp_path):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal(4, np.float32)
    kept = np.memmap(tmp_path / "x", np.float32, "w+", shape=4)
    for inputs in (
        {},
        {"x": torch.zeros(4)},
        {"x": x, "y": torch.zeros(4)},
        {"x": torch.zeros(4), "y": x},
        {"x": x, "y": [1.0]},
        {"x": [1.0]},
        {"x": kept},
        {"x": np.float32(1)},
    ):
        assert input_signature(inputs) is None, inputs


def started(session, inputs, stream=None, *, spread=False, **options):
    """Start a run with all checks; returns it and the launch for inputs like these."""
    launch = CheckedLaunch(session._resources, **options)
    return launch.start(inputs, stream, spread=spread), launch.cached


class TestCheckedLaunch:
    def test_arrays_on_the_host(self, session, rows, gpu):
        x = rows()
        run, cached = started(session, {"x": x}, cacheable=True)
        np.testing.assert_array_equal(run.outputs["y"], 2 * x)
        assert run.event is not None
        assert run.stream == session.compute_stream.handle
        assert isinstance(cached, HostLaunch)
        assert [what for what, _ in gpu.log if what != "record"] == [
            "upload",
            "enqueue",
            "download",
        ]
        assert {stream for _, stream in gpu.log} == {run.stream}

    def test_tensors_on_the_gpu(self, session, rows, gpu, torch_cuda):
        x = FakeTensor(rows())
        run, cached = started(session, {"x": x}, cacheable=True)
        np.testing.assert_array_equal(run.outputs["y"].array, 2 * x.array)
        assert (run.event, run.stream) == (None, CURRENT_STREAM)
        assert isinstance(cached, DeviceLaunch)
        assert [what for what, _ in gpu.log if what not in ("record", "wait")] == ["enqueue"]

    def test_what_was_given_besides_inputs_is_not_cached(self, session, rows, torch_cuda):
        y = np.empty((2, 3), np.float32)
        run, cached = started(session, {"x": rows()}, out={"y": y})
        assert run.outputs["y"] is y
        assert cached is None
        run, cached = started(session, {"x": FakeTensor(rows())}, device="cpu")
        assert run.outputs["y"][0] == "from_numpy"
        assert cached is None
        run, cached = started(session, {"x": rows()}, device="cuda")
        assert isinstance(run.outputs["y"], DeviceArray)
        assert cached is None

    def test_inputs_are_cast_before_they_are_checked(self, session, rows):
        x = rows().astype(np.float64)
        with pytest.raises(SpecError, match="needs float32, found float64"):
            started(session, {"x": x})
        run, _ = started(session, {"x": x}, cast=True)
        np.testing.assert_array_equal(run.outputs["y"], 2 * x)

    def test_an_unknown_device(self, session, rows):
        with pytest.raises(SpecError, match="device='tpu': outputs can be on cpu or cuda"):
            started(session, {"x": rows()}, device="tpu")

    def test_a_captured_stream_takes_no_arrays_on_the_host(self, session, rows, gpu):
        gpu.user_captures.add(9)
        with pytest.raises(CudaError, match="inputs and outputs on the GPU only"):
            started(session, {"x": rows()}, 9)


class TestHostLaunch:
    @pytest.fixture
    def launch(self, session, rows):
        return started(session, {"x": rows()}, cacheable=True)[1]

    def test_other_values(self, launch, rows):
        for _ in range(6):
            x = rows()
            run = launch.start({"x": x}, None, spread=False)
            np.testing.assert_array_equal(run.outputs["y"], 2 * x)

    def test_after_a_run_with_other_shapes_in_the_same_memory(self, session, launch, rows):
        session._pipeline.limit = 1
        for count in (5, 2, 2):
            x = rows(count)
            if count == 2:
                run = launch.start({"x": x}, None, spread=False)
            else:
                run, _ = started(session, {"x": x})
            np.testing.assert_array_equal(run.outputs["y"], 2 * x)

    def test_copies_are_on_streams_of_their_own_if_they_may(self, session, launch, rows, gpu):
        up, down = (stream.handle for stream in session._pipeline.streams)
        compute = session.compute_stream.handle
        for stream, spread, expected in (
            (None, False, (compute, compute, compute)),
            (None, True, (up, compute, down)),
            (9, True, (9, 9, 9)),
        ):
            gpu.log.clear()
            run = launch.start({"x": rows()}, stream, spread=spread)
            log = [(what, s) for what, s in gpu.log if what not in ("record", "wait")]
            assert [s for _, s in log] == list(expected)
            assert run.stream == expected[2]

    def test_on_the_callers_stream_the_run_is_tracked(self, session, launch, rows):
        launch.start({"x": rows()}, None, spread=False)
        assert not session._tracker.futures
        run = launch.start({"x": rows()}, 9, spread=False)
        (future,) = session._tracker.futures
        assert future.event is run.event

    def test_a_captured_stream_is_refused(self, launch, rows, gpu):
        gpu.user_captures.add(9)
        with pytest.raises(CudaError, match="inputs and outputs on the GPU only"):
            launch.start({"x": rows()}, 9, spread=False)


class TestDeviceLaunch:
    @pytest.fixture
    def launch(self, session, rows, torch_cuda):
        return started(session, {"x": FakeTensor(rows())}, cacheable=True)[1]

    def test_other_tensors(self, launch, rows):
        for _ in range(3):
            x = FakeTensor(rows())
            run = launch.start({"x": x}, None, spread=True)
            np.testing.assert_array_equal(run.outputs["y"].array, 2 * x.array)
            assert (run.event, run.stream) == (None, CURRENT_STREAM)
            assert x.recorded == []

    def test_the_same_addresses_are_replayed(self, session, launch, rows, gpu):
        x, y = FakeTensor(rows()), FakeTensor(rows())
        launch._outputs = (("y", None, lambda: y),)
        found = []
        for _ in range(4):
            gpu.log.clear()
            x.array[...] += 1
            launch.start({"x": x}, None, spread=False)
            np.testing.assert_array_equal(y.array, 2 * x.array)
            found += [what for what, _ in gpu.log if what in ("enqueue", "replay")]
        assert found == ["enqueue", "replay", "replay", "replay"]
        assert session.graph_count == 1

    def test_another_stream_waits_for_pytorchs_and_keeps_the_memory(self, launch, rows, gpu):
        x = FakeTensor(rows())
        gpu.log.clear()
        run = launch.start({"x": x}, 9, spread=False)
        assert gpu.log[:2] == [("record", CURRENT_STREAM), ("wait", 9)]
        assert ("enqueue", 9) in gpu.log
        assert run.stream == 9
        assert (x.recorded, run.outputs["y"].recorded) == ([9], [9])

    def test_the_current_stream_is_asked_for_each_time(self, launch, rows, torch_cuda):
        torch_cuda.stream = 8
        assert launch.start({"x": FakeTensor(rows())}, None, spread=False).stream == 8
