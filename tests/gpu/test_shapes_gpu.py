"""Shapes in the range of a profile: profiles of single shapes, warming up, specialized kernels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import tiny_models
from helpers.backends import backend_or_skip
from helpers.program import trt_native
from helpers.tolerances import FP32_PRODUCTS
from onnx.reference import ReferenceEvaluator

from trt_native import (
    BuildConfig,
    Engine,
    KernelSpecialization,
    Precision,
    Session,
    build_plan,
    warm_plan,
)
from trt_native.builder.isolated import Job, build_with_retries
from trt_native.errors import PlanError, SpecError, UnsupportedError
from trt_native.shapes import ProfileSpec

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

FAST = ("batch=1", "batch=3,height=16", "batch=4,height=16")
SHAPES = ((1, 3, 8, 8), (3, 3, 16, 8), (4, 3, 16, 8), (2, 3, 8, 8), (2, 3, 11, 8))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.conv(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def plan(model):
    profiles = (ProfileSpec.parse(["batch=1:2:4", "height=8:8:16", "width=8"]),)
    return build_plan(model, BuildConfig(profiles=profiles, fast_at=FAST, precision=Precision.FP32))


def check(model, session, shape, rng):
    x = rng.standard_normal(shape, np.float32)
    (expected,) = ReferenceEvaluator(str(model)).run(None, {"x": x})
    scale = np.abs(expected).max()
    for _ in range(3):
        (found,) = session.run({"x": x}).values()
        np.testing.assert_allclose(found, expected, rtol=FP32_PRODUCTS, atol=FP32_PRODUCTS * scale)


def test_each_single_shape_runs_in_its_profile(model, plan):
    rng = np.random.default_rng(2)
    with Session(plan) as session:
        assert session.engine.profile_count == 1 + len(FAST)
        for shape, profile in zip(SHAPES, (1, 2, 3, 0, 0), strict=True):
            check(model, session, shape, rng)
            assert session._context._profile == profile


@pytest.mark.parametrize("specialization", list(KernelSpecialization))
def test_results_do_not_depend_on_the_specialization(model, plan, specialization):
    rng = np.random.default_rng(3)
    if backend_or_skip().name != "rtx":
        with pytest.raises(UnsupportedError, match="kernel specialization"):
            Engine(plan, kernel_specialization=specialization)
        return
    with Session(plan, kernel_specialization=str(specialization)) as session:
        for shape in SHAPES:
            check(model, session, shape, rng)
        lazy = specialization is KernelSpecialization.LAZY
        assert (session.graph_count == 0) == lazy


def test_shapes_are_warmed_up(model, plan, tmp_path):
    path = plan.save(tmp_path / "m.plan")
    kept = tmp_path / "m.plan.cache"
    with Session(path) as session:
        session.warm_up({"x": shape} for shape in SHAPES)
        assert session.graph_count == len(SHAPES)
        content = kept.read_bytes() if session.engine.backend.name == "rtx" else b""
        for shape in SHAPES:
            check(model, session, shape, np.random.default_rng(4))
        assert session.graph_count == len(SHAPES)
        with pytest.raises(SpecError, match="9x3x8x8"):
            session.warm_up([{"x": (9, 3, 8, 8)}])
    assert not content or kept.read_bytes() == content, "nothing was compiled again"


def test_a_warmed_plan_has_the_kernels_of_all_optima(model, plan, tmp_path):
    path = plan.save(tmp_path / "m.plan")
    kept = tmp_path / "m.plan.cache"
    if backend_or_skip().name != "rtx":
        with pytest.raises(UnsupportedError, match="has its kernels in the plan"):
            warm_plan(path)
        assert not kept.exists()
        return
    kept.write_bytes(b"of another program")
    with pytest.raises(PlanError, match="not a runtime cache"):
        warm_plan(path)
    kept.unlink()
    assert warm_plan(path) == kept
    content = kept.read_bytes()
    with Session(path) as session:
        for shape in SHAPES[:4]:  # the optima of the four profiles
            check(model, session, shape, np.random.default_rng(5))
    assert kept.read_bytes() == content, "nothing was compiled again"


def test_a_build_warms_its_plan_for_later_processes(model, tmp_path):
    path, kept = tmp_path / "m.plan", tmp_path / "m.plan.cache"
    words = ["build", model, "-o", path, "--dim", "batch=1:2:4", "--dim", "height=8:8:16"]
    words += ["--dim", "width=8", "--fast-at", FAST[0], "--no-cache", "--warm", "--json"]
    ended = trt_native(*words)
    if backend_or_skip().name != "rtx":
        assert ended.returncode == 1
        assert "has its kernels in the plan" in ended.stderr
        assert not path.exists()
        return
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["warming_s"] > 0
    content = kept.read_bytes()
    assert trt_native("run", path, "--random", 0).returncode == 0
    assert kept.read_bytes() == content, "the run compiled nothing"


def test_a_retrying_build_compiles_once_for_all(model, tmp_path):
    if backend_or_skip().name != "rtx":
        pytest.skip("only TensorRT-RTX compiles kernels where a plan runs")
    job = Job(
        model=model, target=tmp_path / "m.plan",
        config=BuildConfig(profiles=(ProfileSpec.parse(["batch=2", "height=8", "width=8"]),)),
        backend="auto", cache=None, cache_bytes=None, warm=True,
    )  # fmt: skip
    outcome = build_with_retries(job, None, retry=True)
    assert outcome.warming_s is not None
    content = (tmp_path / "m.plan.cache").read_bytes()
    with Session(job.target) as session:
        session.run({"x": np.zeros((2, 3, 8, 8), np.float32)})
    assert (tmp_path / "m.plan.cache").read_bytes() == content
