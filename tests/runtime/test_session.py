from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.fake_gpu import FakeEngine, FakeTensor

from trt_native.config import KernelSpecialization
from trt_native.errors import ClosedError, SpecError
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime import Session
from trt_native.runtime import session as session_module
from trt_native.runtime.input_checks import zeros_for
from trt_native.runtime.launch import CheckedLaunch
from trt_native.shapes import ShapeRange


class Submitting:
    """What ``map`` needs of a session: runs that are done once their result is asked for."""

    def __init__(self):
        self._pipeline = SimpleNamespace(limit=4)
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
    assert session._pipeline.limit == max(4, depth + 1)


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


# Launches


def test_inputs_of_a_known_signature_are_not_checked_again(session, rows, torch_cuda, monkeypatch):
    for inputs in ({"x": rows()}, {"x": FakeTensor(rows())}):
        first = session.run(inputs)["y"]
        with monkeypatch.context() as patch:
            patch.setattr(CheckedLaunch, "start", lambda *_, **__: pytest.fail("checked again"))
            for y in (session.run(inputs)["y"], session.submit(inputs).result()["y"]):
                assert type(y) is type(first)
                found, expected = (getattr(value, "array", value) for value in (y, first))
                np.testing.assert_array_equal(found, expected)
    assert len(session._launches) == 2


def test_what_is_checked_every_time(session, rows):
    x = rows()
    for options in ({"device": "cuda"}, {"out": {"y": np.empty((2, 3), np.float32)}}):
        session.run({"x": x}, **options)
    session.run({"x": x.astype(np.float64)}, cast=True)
    assert not session._launches


def test_few_launches_are_kept(session, rows, monkeypatch):
    monkeypatch.setattr(session_module, "_MAX_LAUNCHES", 3)
    for count in range(1, 9):
        x = rows(count)
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
        assert 1 <= len(session._launches) <= 3


def test_events_are_used_again(session, rows):
    for _ in range(8):
        session.run({"x": rows()})
    assert len(session._tracker._idle) == 1
    for _ in range(8):
        session.submit({"x": rows()}).result()
    session.run({"x": rows()})
    assert len(session._tracker._idle) == 1
    assert not session._tracker.futures


def test_arrays_are_kept_until_a_run_on_the_callers_stream_is_done(session, rows):
    session.run({"x": rows()}, stream=9)
    assert len(session._tracker.futures) == 1
    session.run({"x": rows()}, stream=9)
    assert len(session._tracker.futures) == 1, "the first one was done"


def test_map_on_real_launches(session, rows):
    batches = [rows(1 + i % 3) for i in range(12)]
    found = [outputs["y"] for outputs in session.map({"x": x} for x in batches)]
    for x, y in zip(batches, found, strict=True):
        np.testing.assert_array_equal(y, 2 * x)


def test_executions_for_measurements(session, rows):
    x = rows()
    execution = session.create_execution({"x": x})
    for step in (execution.upload, execution.enqueue, execution.download):
        step(session.compute_stream)
    np.testing.assert_array_equal(execution.results()["y"], 2 * x)
    assert (execution.input_bytes, execution.output_bytes) == (x.nbytes, x.nbytes)
    execution.close()


def test_a_closed_session_refuses_runs(session, rows):
    session.close()
    session.close()
    with pytest.raises(ClosedError, match="the session is closed"):
        session.run({"x": rows()})


def test_a_negative_number_of_graphs(gpu):
    with pytest.raises(SpecError, match="cuda_graphs=-1"):
        Session(FakeEngine(gpu), cuda_graphs=-1)


def test_a_session_has_the_tensors_of_its_engine(session):
    assert [tensor.name for tensor in session.inputs] == ["x"]
    assert [str(tensor) for tensor in session.outputs] == ["y: float32 ? x 3"]


class TestWarmUp:
    def test_each_shape_runs_twice_and_is_replayed_then(self, session, gpu):
        session.warm_up([{"x": (5, 3)}, {"x": [7, 3]}, {}])
        assert session.graph_count == 3
        before = len(gpu.log)
        for rows in (5, 7, 2):  # 2 is the optimum
            x = np.ones((rows, 3), np.float32)
            np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
        assert [kind for kind, _ in gpu.log[before:]].count("replay") == 3

    def test_the_optimum_of_every_profile(self, gpu, monkeypatch):
        engine, shapes = FakeEngine(gpu), []
        ranges = tuple(map(ShapeRange.parse, ("1x3:2x3:64x3", "9x3", "2x3")))
        engine.profile_count = 3
        engine.tensors = (replace(engine.tensors[0], profiles=ranges), engine.tensors[1])
        with Session(engine) as session:
            monkeypatch.setattr(session, "run", lambda inputs: shapes.append(inputs["x"].shape))
            session.warm_up()
        assert set(shapes) == {(2, 3), (9, 3)}

    def test_arrays_are_taken_as_they_are(self, session):
        session.warm_up([{"x": np.ones((4, 3), np.float32)}])
        assert session.graph_count == 1

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            ({"z": (1, 3)}, "not inputs of the engine: z; it has x"),
            ({"x": (-1, 3)}, "neither a shape nor an array"),
            ({"x": "1x3"}, "neither a shape nor an array"),
            ({"x": (99, 3)}, "99x3"),
        ],
    )
    def test_what_is_no_shape(self, session, shapes, message):
        with pytest.raises(SpecError, match=message):
            session.warm_up([shapes])

    def test_an_input_that_is_a_shape_has_its_optimum(self):
        values = ShapeRange.parse("1x2:2x4:4x8")
        shape = PlanTensor("shape", "input", "int64", (2,), values=(values,))
        np.testing.assert_array_equal(zeros_for([shape], {})["shape"], [2, 4])
        scalar = PlanTensor("n", "input", "int32", (), values=(ShapeRange.parse("1:2:4"),))
        assert zeros_for([scalar], {}) == {"n": 2}


def test_lazy_kernels_are_not_kept_in_graphs(gpu):
    engine = FakeEngine(gpu)
    engine.kernel_specialization = KernelSpecialization.LAZY
    x = np.ones((2, 3), np.float32)
    with Session(engine, cuda_graphs=8) as session:
        for _ in range(3):
            np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
        assert session.graph_count == 0


def test_an_engine_has_its_kernel_specialization(gpu):
    with pytest.raises(SpecError, match="an engine has one; give it to Engine"):
        Session(FakeEngine(gpu), kernel_specialization="lazy")
