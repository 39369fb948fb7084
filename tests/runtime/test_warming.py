"""Compilation of a plan's kernels before it is used; the compiling itself is in tests/gpu."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from helpers.backends import backend_or_skip

from trt_native.config import BuildConfig
from trt_native.cuda import GpuInfo
from trt_native.errors import CudaError, PlanError, SpecError, UnsupportedError
from trt_native.plans.plan import Plan
from trt_native.runtime import warming
from trt_native.runtime.warming import check_warming, warm_plan

GPU = GpuInfo("NVIDIA L4", "8.9", "13.0", 24 << 30, 20 << 30)


@pytest.fixture
def rtx(monkeypatch):
    monkeypatch.setattr(warming, "require_gpu", lambda: GPU)
    return backend_or_skip("rtx")


def test_a_plan_that_runs_here_can_be_warmed(rtx, tmp_path):
    (tmp_path / "m.plan.cache").write_bytes(b'{"kernels_of": "0"}\nof an earlier plan')
    check_warming(rtx, tmp_path / "m.plan", BuildConfig())
    check_warming(rtx, tmp_path / "m.plan", BuildConfig(compute_capabilities=("8.6", "8.9")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strip_weights": True}, "a plan without weights cannot run"),
        ({"compute_capabilities": ("8.6",)}, r"8\.6 cannot be warmed on NVIDIA L4 \(8\.9\)"),
    ],
)
def test_a_plan_that_cannot_run_here(rtx, tmp_path, options, message):
    with pytest.raises(SpecError, match=message) as caught:
        check_warming(rtx, tmp_path / "m.plan", BuildConfig(**options))
    assert caught.value.options[0] == "warm"


def test_a_cache_of_another_program_is_not_replaced(rtx, tmp_path):
    (tmp_path / "m.plan.cache").write_bytes(b"precious")
    with pytest.raises(PlanError, match=r"m\.plan\.cache: .* not a runtime cache; move it"):
        check_warming(rtx, tmp_path / "m.plan", BuildConfig())
    with pytest.raises(SpecError, match="cannot write"):
        check_warming(rtx, tmp_path / "missing" / "m.plan", BuildConfig())
    assert (tmp_path / "m.plan.cache").read_bytes() == b"precious"


def test_no_gpu(monkeypatch, tmp_path):
    def none():
        raise CudaError("cannot find a GPU: no driver")

    monkeypatch.setattr(warming, "require_gpu", none)
    with pytest.raises(CudaError, match="on the GPU that runs them: cannot find a GPU") as caught:
        check_warming(backend_or_skip("rtx"), tmp_path / "m.plan", BuildConfig())
    assert caught.value.options == ("warm",)


def test_a_backend_that_compiles_nothing_where_plans_run(tmp_path):
    capabilities = SimpleNamespace(specializes_kernels=False)
    other = SimpleNamespace(product="TensorRT", capabilities=capabilities)
    with pytest.raises(UnsupportedError, match="TensorRT has its kernels in the plan"):
        check_warming(other, tmp_path / "m.plan", BuildConfig())


class Compiling:
    """Stands for an engine and its session: a run at every optimum adds to the kernels."""

    def __init__(self, plan, **options):
        self.kernels = b"known" if plan is None else b""
        self.plan = plan

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def warm_up(self):
        self.kernels += b" and compiled"

    def compiled_kernels(self):
        return self.kernels


@pytest.fixture
def saved(rtx, tmp_path, monkeypatch):
    monkeypatch.setattr(warming, "Engine", Compiling)
    monkeypatch.setattr(warming, "Session", lambda engine, cuda_graphs: engine)
    path = tmp_path / "m.plan"
    return Plan(rtx_header() + bytes(60), None, path)


def rtx_header():
    return b"vtrt" + bytes(28)


def test_the_kernels_are_next_to_the_plan(saved, rtx):
    path = warm_plan(saved)
    assert path == saved.path.with_name("m.plan.cache")
    head, _, kernels = path.read_bytes().partition(b"\n")
    assert kernels == b" and compiled"
    assert json.loads(head)["kernels_of"] == saved.sha256
    assert json.loads(head)["gpu"] == GPU.name


def test_kernels_that_cannot_be_kept_are_an_error(saved):
    cache = saved.path.with_name("m.plan.cache")
    cache.mkdir()
    with pytest.raises(PlanError, match="not a runtime cache"):
        warm_plan(saved)
    cache.rmdir()
    unsaved = Plan(saved.data)
    with pytest.raises(SpecError, match="not in a file"):
        warm_plan(unsaved)
