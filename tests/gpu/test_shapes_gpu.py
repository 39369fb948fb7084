"""Shapes in the range of a profile: profiles of single shapes, warming up, specialized kernels."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import tiny_models
from helpers.backends import backend_or_skip
from helpers.tolerances import FP32_PRODUCTS
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Engine, KernelSpecialization, Precision, Session, build_plan
from trt_native.errors import SpecError, UnsupportedError
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
