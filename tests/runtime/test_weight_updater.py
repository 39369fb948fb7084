"""Weights replaced under sessions in use. That TensorRT takes them is tested on a GPU."""

from __future__ import annotations

import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import tiny_models
from helpers.fake_gpu import FakeContext, FakeEngine, FakeTensor, array_at
from helpers.refittable import made_refittable, record_of

from trt_native import BuildConfig, Session
from trt_native.config import KernelSpecialization
from trt_native.errors import ClosedError, CudaError, PlanError, SpecError, UnsupportedError
from trt_native.runtime import engine as engine_module
from trt_native.runtime import execution
from trt_native.runtime.weight_updater import WeightUpdater

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.backend


class Native:
    """TensorRT's engine, which multiplies by the mean of its weight ``w``."""

    def __init__(self):
        self.w = np.full((64, 64), 2, np.float32)

    def __float__(self):
        return float(self.w.mean())


class Staged:
    def __init__(self, backend, native, weights):
        self.backend, self.native, self.weights = backend, native, weights

    def apply(self, stream):
        self.backend.driver.log.append(("refit", stream))
        self.native.w = array_at(self.weights["w"].pointer, (64, 64)).copy()
        if self.backend.fails:
            raise CudaError("TensorRT failed to replace the weights", ["why"])


class Backend(SimpleNamespace):
    """A backend as far as an engine's weights are concerned."""

    product = "TensorRT"
    fails = False

    def load_plugins(self, sources):
        pass

    def deserialize(self, content, host_code, *, defer_weights=False):
        self.loads.append(defer_weights)
        native = Native()
        if defer_weights:
            native.w[...] = np.nan
        return native

    def load_weights(self, native, content, stream):
        self.driver.log.append(("load", stream))
        native.w[...] = 2

    def contexts(self, native, kernels, specialization):
        assert kernels in (b"", b"kernels")
        return SimpleNamespace(
            create=lambda user_managed: FakeContext(self.driver, native), cache=lambda: b"kernels"
        )

    def stage_weights(self, native, weights, stream):
        if "w" not in weights:
            raise PlanError("a fixed part")
        return Staged(self, native, weights)


class RefittableEngine(FakeEngine):
    def __init__(self, driver, plan, *, defer_weights=False):
        super().__init__(driver)
        self.backend = Backend(
            driver=driver,
            loads=[],
            collected_errors=self.backend.collected_errors,
            output_allocator=self.backend.output_allocator,
        )
        self.plan = plan
        self.kernel_specialization = KernelSpecialization.EAGER
        self._native = self._context_factory = self._finalizer = self._weight_budget = None
        self._offloaded = None
        self._cache_file = None
        self._lock = threading.Lock()
        self._weights = WeightUpdater(plan, self.backend, 0)
        self._load(b"", defer_weights=defer_weights)

    weights_loaded = engine_module.Engine.weights_loaded
    create_context = engine_module.Engine.create_context
    close = engine_module.Engine.close


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "require_gpu", lambda ordinal: None)
    path = tiny_models.external_weights(tmp_path / "m.onnx")
    record = record_of(path, BuildConfig(precision="tf32"))
    return made_refittable(tmp_path / "m.plan", record)


@pytest.fixture
def engine(gpu, plan):
    with RefittableEngine(gpu, plan) as engine:
        yield engine


@pytest.fixture
def deferred(gpu, plan):
    with RefittableEngine(gpu, plan, defer_weights=True) as engine:
        yield engine


def values(number):
    return {"w": np.full((64, 64), number, np.float32)}


def test_all_sessions_have_the_new_weights(engine, rows):
    x = rows()
    with Session(engine) as one, Session(engine) as other:
        for session in (one, other):
            np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
        engine.refit(values(-3))
        for session in (one, other):
            np.testing.assert_array_equal(session.run({"x": x})["y"], -3 * x)
        with Session(engine) as third:
            np.testing.assert_array_equal(third.run({"x": x})["y"], -3 * x)
        engine.restore()
        for session in (one, other):
            np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)


def test_captured_graphs_are_dropped(engine, rows):
    x = rows()
    with Session(engine) as session:
        for change, factor in (
            (lambda: None, 2),
            (lambda: engine.refit(values(5)), 5),
            (engine.restore, 2),
            (engine.restore, 2),
        ):
            change()
            for _ in range(3):
                np.testing.assert_array_equal(session.run({"x": x})["y"], factor * x)
            assert session.graph_count == 1


def test_runs_before_and_behind_are_ordered(engine, gpu, rows):
    x = rows()
    with Session(engine) as session:
        session.run({"x": x})
        gpu.log.clear()
        engine.refit(values(4), stream=20)
        done = gpu.log.index(("refit", 20))
        assert ("record", 20) in gpu.log[done:]
        session.run({"x": x}, stream=21)
        assert ("wait", 21) in gpu.log[done:]
        gpu.log.clear()
        engine.refit(values(4), stream=0)
        (own,) = {stream for what, stream in gpu.log if what == "refit"}
        waits = [stream for what, stream in gpu.log if what == "wait"]
        assert own != 0
        assert waits == [own, 0], "the null stream is ordered with the engine's own"


def test_nothing_is_started_meanwhile(engine, rows):
    """A run of another thread waits until the weights are replaced."""
    x, found = rows(), []
    with Session(engine) as session:
        run = threading.Thread(target=lambda: found.append(session.run({"x": x})["y"]))
        with engine.contexts.paused():
            run.start()
            run.join(0.05)
            assert not found
            engine.refit(values(7))
        run.join()
    np.testing.assert_array_equal(found[0], 7 * x)


def test_arrays_are_kept_until_the_gpu_has_them(engine, gpu, monkeypatch):
    class Array(FakeTensor):
        """An array of neither NumPy nor PyTorch on the GPU."""

        alive = 0

        def __init__(self, array):
            super().__init__(array)
            Array.alive += 1

        def __del__(self):
            Array.alive -= 1

        @property
        def __cuda_array_interface__(self):
            data = (self.data_ptr(), False)
            return {"shape": self.shape, "typestr": "<f4", "data": data, "version": 3}

    monkeypatch.setattr(gpu, "cuEventQuery", lambda handle: (600,))
    engine.refit({"w": Array(values(3)["w"])}, stream=20)
    assert Array.alive == 1
    monkeypatch.undo()
    monkeypatch.setattr(engine_module, "require_gpu", lambda ordinal: None)
    engine._weights.finish()
    assert Array.alive == 0
    assert float(engine.native) == 3


def test_weights_that_do_not_fit_change_nothing(engine, gpu, rows):
    x = rows()
    with Session(engine) as session:
        for _ in range(2):
            session.run({"x": x})
        for weights in ({"v": 1}, {"w": np.zeros((2, 2), np.float32)}):
            with pytest.raises(SpecError):
                engine.refit(weights)
        gpu.user_captures.add(20)
        with pytest.raises(CudaError, match="being captured"):
            engine.refit(values(3), stream=20)
        assert session.graph_count == 1
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)


def test_a_failure_halfway_puts_the_plans_own_weights_back(engine, rows):
    x = rows()
    with Session(engine) as session:
        session.run({"x": x})
        engine.refit(values(3))
        engine.backend.fails = True
        with pytest.raises(CudaError, match="failed to replace the weights; the plan's own were"):
            engine.refit(values(9))
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)


def test_an_engine_of_which_nobody_knows_the_weights_is_closed(engine, rows):
    def deserialize(content, host_code, *, defer_weights=False):
        raise PlanError("the file has changed")

    x = rows()
    with Session(engine) as session:
        session.run({"x": x})
        engine.backend.fails = True
        engine.backend.deserialize = deserialize
        with pytest.raises(PlanError, match="the file has changed"):
            engine.refit(values(9))
        with pytest.raises(ClosedError):
            session.run({"x": x})
        with pytest.raises(ClosedError):
            Session(engine)


def test_a_restore_that_fails_keeps_the_new_weights(engine, rows):
    def deserialize(content, host_code, *, defer_weights=False):
        raise PlanError("the file has changed")

    x = rows()
    with Session(engine) as session:
        engine.refit(values(3))
        engine.backend.deserialize = deserialize
        with pytest.raises(PlanError):
            engine.restore()
        np.testing.assert_array_equal(session.run({"x": x})["y"], 3 * x)


def test_a_session_without_a_context_is_closed(engine, rows, monkeypatch):
    x = rows()
    with Session(engine) as session:
        session.run({"x": x})
        engine.refit(values(3))
        monkeypatch.setattr(execution.ExecutionContext, "recreate", lambda self: None)
        engine.restore()
        for _ in range(2):
            with pytest.raises(ClosedError, match="no execution context left"):
                session.run({"x": x})
            engine.refit(values(4))


def test_a_closed_engine(engine):
    engine.close()
    for use in (lambda: engine.refit(values(3)), engine.restore):
        with pytest.raises(ClosedError):
            use()


def test_an_engine_that_was_offloaded_is_as_before(engine, rows):
    x = rows()
    with Session(engine) as one, Session(engine) as other:
        one.run({"x": x})
        native = weakref.ref(engine.native)
        for _ in range(2):
            engine.offload()
        assert native() is None
        assert "offloaded" in repr(engine)
        for session in (one, other):
            with pytest.raises(ClosedError, match=r"offloaded: call restore\(\)"):
                session.run({"x": x})
        for use in (lambda: engine.refit(values(3)), lambda: Session(engine), engine.load_weights):
            with pytest.raises(ClosedError, match="offloaded"):
                use()
        for _ in range(2):
            engine.restore()
        assert engine.backend.loads == [False, False]
        for session in (one, other):
            np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
        engine.refit(values(3))
        np.testing.assert_array_equal(one.run({"x": x})["y"], 3 * x)


def test_weights_that_were_replaced_are_not_lost_unasked(engine, rows):
    x = rows()
    with Session(engine) as session:
        engine.refit(values(3))
        with pytest.raises(UnsupportedError, match="that no plan holds"):
            engine.offload()
        np.testing.assert_array_equal(session.run({"x": x})["y"], 3 * x)
        engine.restore()
        engine.offload()


def test_an_engine_that_cannot_be_restored_stays_offloaded(engine, rows, monkeypatch):
    x = rows()
    with Session(engine) as one, Session(engine) as other:
        engine.offload()
        with monkeypatch.context() as patch:
            patch.setattr(other._context, "recreate", _fail)
            with pytest.raises(CudaError, match="too little"):
                engine.restore()
        for session in (one, other):
            with pytest.raises(ClosedError, match="offloaded"):
                session.run({"x": x})
        engine.restore()
        for session in (one, other):
            np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)


def _fail():
    raise CudaError("too little GPU memory")


def test_an_offloaded_engine_is_closed(engine, rows):
    session = Session(engine)
    engine.offload()
    session.close()
    engine.close()
    for use in (engine.offload, engine.restore):
        with pytest.raises(ClosedError, match="is closed"):
            use()


@pytest.mark.parametrize("stream", [None, 77])
def test_weights_that_are_loaded_later(deferred, rows, gpu, stream):
    x = rows()
    with Session(deferred) as session:
        assert deferred.backend.loads == [True]
        for use in (lambda: session.run({"x": x}), lambda: deferred.refit(values(3))):
            with pytest.raises(ClosedError, match=r"no weights yet: call load_weights\(\)"):
                use()
        assert not deferred.weights_loaded
        for _ in range(2):
            deferred.load_weights(stream=stream)
        assert [entry for entry in gpu.log if entry[0] == "load"] == [("load", stream)]
        assert deferred.weights_loaded
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
        deferred.offload()
        deferred.restore()
        assert deferred.backend.loads == [True, False]
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
