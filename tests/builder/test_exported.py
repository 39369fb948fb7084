"""Builds whose process starts before the model is there."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from helpers import tiny_models
from helpers.program import HAS_GPU

from trt_native.builder import exported, isolated
from trt_native.builder.exported import build_exported
from trt_native.builder.isolated import ChildBuild, Job, Outcome
from trt_native.config import BuildConfig
from trt_native.errors import BuildError, CudaError, ExportError, SpecError, UnsupportedError
from trt_native.plans.plan import Plan
from trt_native.shapes import ProfileSpec

PROFILE = ProfileSpec.parse(["batch=2", "height=8", "width=8"])  # of a range, bytes vary


@pytest.fixture
def job(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    return Job(
        model=tmp_path / "m.onnx", target=tmp_path / "m.plan", config=BuildConfig(), backend="rtx",
        cache=None, cache_bytes=None,
    )  # fmt: skip


@pytest.mark.backend
def test_what_is_exported_is_built_as_it_would_be_alone(job, tmp_path):
    config = BuildConfig(profiles=(PROFILE,))

    def export(check_build):
        check_build()
        return tiny_models.conv(tmp_path / "m.onnx"), tiny_models.conv(tmp_path / "other.onnx")

    def jobs(models):
        return [
            dataclasses.replace(job, model=model, target=model.with_suffix(".plan"), config=config)
            for model in models
        ]

    reports, outcomes = build_exported(job, export, jobs, None)
    assert [report.name for report in reports] == ["m.onnx", "other.onnx"]
    alone = isolated.build_isolated(tmp_path / "m.onnx", config, backend="rtx")
    for name, outcome in zip(("m", "other"), outcomes, strict=True):
        plan = Plan.load(tmp_path / f"{name}.plan")
        assert bytes(plan.data) == bytes(alone.data)
        assert plan.manifest == outcome.manifest
        kept = ("seconds", "created", "model")
        assert {k: v for k, v in plan.manifest.to_json().items() if k not in kept} == {
            k: v for k, v in alone.manifest.to_json().items() if k not in kept
        }
    assert {file.suffix for file in tmp_path.iterdir()} == {".onnx", ".plan", ".json"}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"backend": "vulkan"}, UnsupportedError, "no backend 'vulkan'"),
        ({"config": BuildConfig(precision="int8")}, SpecError, "needs the ranges"),
        pytest.param(
            {"warm": True}, CudaError, "cannot find a GPU",
            marks=pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU"),
        ),
    ],
)  # fmt: skip
def test_a_build_that_would_be_refused_is_before_the_export(job, changes, kind, message):
    exported_files = []

    def export(check_build):
        check_build()
        exported_files.append("written")
        return ()

    with pytest.raises(kind, match=message):
        build_exported(dataclasses.replace(job, **changes), export, lambda _: [], None)
    assert exported_files == []


def test_an_export_that_fails_ends_the_waiting_process(job, monkeypatch, tmp_path):
    children = []

    class Watched(ChildBuild):
        def start(self):
            super().start()
            children.append(self._process)

    def export(check_build):
        check_build()
        raise ExportError("no room")

    monkeypatch.setattr(exported, "ChildBuild", Watched)
    with pytest.raises(ExportError, match="no room"):
        build_exported(job, export, lambda _: [job], None)
    (process,) = children
    assert process.wait(10) < 0
    assert os.listdir(tmp_path) == []


def test_a_process_that_ended_meanwhile_is_an_error_of_the_build(job, tmp_path):
    tiny_models.conv(job.model)
    with ChildBuild(job) as child:
        child.start()
        child.wait_until_ready()
        child._process.kill()
        child._process.wait(10)
        with pytest.raises(BuildError, match="was killed"):
            isolated.build_in_child(job, None, child=child)
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_each_process_starts_while_the_plan_before_is_built(monkeypatch):
    log = []

    class Named(ChildBuild):
        def start(self):
            log.append(f"start {self._job.model}")

    def build(job, progress, *, timeout_s, retry, child):
        log.append(f"build {job.model} by that of {child._job.model}, retry={retry}")
        return Outcome(job.model, cached=False)

    monkeypatch.setattr(exported, "ChildBuild", Named)
    monkeypatch.setattr(exported, "build_with_retries", build)
    jobs = [
        Job(
            model=Path(name), target=Path("t"), config=BuildConfig(), backend="rtx", cache=None,
            cache_bytes=None,
        )
        for name in "abc"
    ]  # fmt: skip
    _, outcomes = build_exported(jobs[0], lambda _: (), lambda _: jobs, None, retry=True)
    assert [str(outcome.manifest) for outcome in outcomes] == ["a", "b", "c"]
    assert log == [
        "start a", "start b", "build a by that of a, retry=True", "start c",
        "build b by that of b, retry=True", "build c by that of c, retry=True",
    ]  # fmt: skip
