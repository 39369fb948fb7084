"""Engines whose weights and activations are on the GPU only while they are needed."""

from __future__ import annotations

import contextlib
import gc

import numpy as np
import pytest
from helpers import tiny_models

from trt_native import BuildConfig, Engine, Plan, ProfileSpec, Session, build_plan
from trt_native.cuda import Stream, memory_info
from trt_native.errors import ClosedError, SpecError, UnsupportedError

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

WIDTH, LAYERS = 2048, 4
WEIGHT_BYTES = LAYERS * WIDTH * WIDTH * 4
SLACK = 8 << 20  # of TensorRT's and the driver's own memory
X = {"h0": np.random.default_rng(1).standard_normal((4, WIDTH), np.float32)}
OUTPUT = f"h{LAYERS}"


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Four linear layers with 64 MiB of weights, in a file."""
    path = tmp_path_factory.mktemp("memory") / "m.onnx"
    tiny_models.dense(path, width=WIDTH, layers=LAYERS)
    config = BuildConfig(profiles=(ProfileSpec.parse(["batch=1:4:8"]),), precision="tf32")
    return Plan.open(build_plan(path, config).save(path.with_suffix(".plan")))


@pytest.fixture(scope="module")
def expected(plan):
    with Session(plan) as session:
        return session.run(X)[OUTPUT]


def used():
    gc.collect()
    free, total = memory_info()
    return total - free


def check(session, expected):
    for _ in range(3):  # plainly, captured, replayed
        np.testing.assert_array_equal(session.run(X)[OUTPUT], expected)


def test_offload_frees_the_memory_and_restore_gives_the_same(plan, expected):
    with Engine(plan) as engine, Session(engine) as one, Session(engine) as other:
        check(one, expected)
        check(other, expected)
        loaded = used()
        engine.offload()
        offloaded = used()
        assert loaded - offloaded >= WEIGHT_BYTES
        with pytest.raises(ClosedError, match="offloaded"):
            one.run(X)
        for _ in range(20):
            engine.restore()
            check(one, expected)
            check(other, expected)
            assert used() <= loaded + SLACK
            engine.offload()
            assert used() <= offloaded + SLACK
        engine.restore()
        check(other, expected)


def test_one_engine_at_a_time(plan, expected):
    """Engines that are loaded in turn take the memory of one."""
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(Engine(plan)) for _ in range(2)]
        sessions = [stack.enter_context(Session(engine)) for engine in engines]
        for session in sessions:
            check(session, expected)
        engines[1].offload()
        one = used()
        for _ in range(3):
            engines.reverse()
            sessions.reverse()
            engines[1].offload()
            engines[0].restore()
            check(sessions[0], expected)
            assert used() <= one + SLACK


@pytest.mark.parametrize("on_stream", [False, True], ids=["host", "stream"])
@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
def test_weights_that_are_loaded_later(plan, expected, on_stream, in_memory):
    source = Plan.load(plan.path) if in_memory else plan
    before = used()
    try:
        engine = Engine(source, defer_weights=True)
    except UnsupportedError as error:
        pytest.skip(error.message)
    with engine, Session(engine) as session:
        assert not engine.weights_loaded
        deferred = used()
        assert deferred - before < WEIGHT_BYTES
        with pytest.raises(ClosedError, match="no weights yet"):
            session.run(X)
        if on_stream:
            with Stream(0) as stream:
                engine.load_weights(stream=stream)
                check(session, expected)
        else:
            engine.load_weights()
        check(session, expected)
        assert used() - deferred >= WEIGHT_BYTES - SLACK
        engine.offload()
        engine.restore()
        check(session, expected)


def test_the_automatic_budget_of_streamed_weights(plan, tmp_path):
    with Engine(plan) as engine:
        assert engine.weight_budget_bytes is None
    path = tiny_models.dense(tmp_path / "m.onnx", width=WIDTH, layers=LAYERS)
    profiles = (ProfileSpec.parse(["batch=1:4:8"]),)
    streamed = build_plan(path, BuildConfig(profiles=profiles, weight_streaming=True))
    with Session(streamed) as session:
        expected = session.run(X)[OUTPUT]
    with Engine(streamed, weight_budget_bytes="auto") as engine, Session(engine) as session:
        assert 0 <= engine.weight_budget_bytes <= int(engine.native.streamable_weights_size)
        check(session, expected)
        engine.offload()
        engine.restore()
        check(session, expected)
    with pytest.raises((SpecError, UnsupportedError), match="defer"):
        Engine(streamed, weight_budget_bytes="auto", defer_weights=True)


def test_activation_memory_for_the_shapes_that_are_run(tmp_path, rng):
    profiles = tuple(ProfileSpec.parse([f"batch=1:1:{most}"]) for most in (2, 64))
    path = tiny_models.conv_chain(tmp_path / "m.onnx", length=8)
    plan = build_plan(path, BuildConfig(profiles=profiles, precision="tf32"))
    with Engine(plan) as engine:
        sizes = [engine.activation_bytes_of(profile) for profile in range(2)]
        assert max(sizes) == engine.activation_bytes
        with Session(engine) as fixed, Session(engine, activation_memory="shapes") as fitted:
            seen = 0
            for batch in (1, 4, 1, 16):
                x = {"x0": rng.standard_normal((batch, 32, 32, 32), np.float32)}
                want = fixed.run(x)["x8"]
                for _ in range(3):
                    np.testing.assert_array_equal(fitted.run(x)["x8"], want)
                assert fitted.activation_bytes >= seen
                seen = fitted.activation_bytes
            assert seen < fixed.activation_bytes
            engine.offload()
            assert fitted.activation_bytes == 0
            engine.restore()
            np.testing.assert_array_equal(fitted.run(x)["x8"], want)
