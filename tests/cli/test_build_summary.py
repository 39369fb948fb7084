"""The summary that ``trt-native build`` prints of a build."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
from helpers import tiny_models
from helpers.made_plans import GOLDEN

from trt_native.builder.fallback import Attempt
from trt_native.builder.isolated import Job, Outcome
from trt_native.cli import console
from trt_native.cli.build_summary import print_dry_run, print_summary
from trt_native.config import BuildConfig
from trt_native.plans.manifest import Manifest
from trt_native.shapes import ProfileSpec

MANIFEST = Manifest.from_json(GOLDEN)


@pytest.fixture
def tables(capsys, monkeypatch):
    """Calls a function that prints tables; returns titles, and rows by their first cell."""
    monkeypatch.setattr(console.stdout, "width", 200)

    def printed(call, *arguments):
        call(*arguments)
        titles, rows, last = [], {}, ""
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("│"):
                first, *cells = (cell.strip() for cell in line.split("│")[1:-1])
                last = first or last
                rows.setdefault(last, []).append(tuple(cells))
            elif line[:1] not in "┏┡└┃┌":
                titles.append(line.strip())
        return titles, rows

    return printed


@pytest.fixture
def summary(tables):
    def printed(*, cached=False, attempts=(), warming_s=None, **changes):
        manifest = dataclasses.replace(MANIFEST, **changes)
        outcome = Outcome(manifest, cached, attempts, warming_s)
        titles, rows = tables(print_summary, Path("m.plan"), outcome)
        return titles, {
            name: "\n".join(cells[0] for cells in found) for name, found in rows.items()
        }

    return printed


def test_the_facts_of_a_build(summary):
    titles, rows = summary()
    assert titles == ["Built", "Tensors"]
    facts = {name: rows[name] for name in rows if name not in ("input", "output")}
    assert facts == {
        "plan": "m.plan (284.8 KiB)",  # 291628 / 1024
        "backend": "rtx 1.6.1.120",
        "built on": "a machine without a GPU",
        "for": "compute capability 8.6, 8.9",
        "precision": "fp16",
        "autocast": "fp16: 2 nodes; 0 stay FP32, 2 casts",
        "time": "parse 0.0 s, build 0.1 s, total 5.1 s",
    }


def test_the_tensors_of_a_build(tables):
    _, rows = tables(print_summary, Path("m.plan"), Outcome(MANIFEST, False))
    assert rows["input"] == [
        ("x", "float32", "batch x 3 x height x 8", "1x3x8x8:2x3x8x8:4x3x16x8"),
        ("", "", "", "8x3x8x8"),
        ("size", "int64", "2", "1x2:2x4:4x8"),
        ("", "", "", "1x2"),
    ]
    assert rows["output"] == [("y", "float16", "scalar", "")]


def test_a_plan_for_every_gpu_built_on_one(summary):
    _, rows = summary(
        compute_capabilities=(), gpu="NVIDIA L4", passes=({"name": "p", "summary": ""},)
    )
    assert rows["for"] == "every GPU that the backend supports"
    assert rows["built on"] == "NVIDIA L4"
    assert "p" not in rows


def test_a_plan_from_the_cache(summary):
    titles, rows = summary(cached=True)
    assert titles == ["Unchanged: from the cache", "Tensors"]
    assert rows["cached"] == (
        "built 2026-01-01T12:35:56+00:00 (parse 0.0 s, build 0.1 s, total 5.1 s)"
    )
    assert "time" not in rows


@pytest.mark.parametrize(("cached", "row"), [(False, "time"), (True, "cached")])
def test_attempts_that_failed(summary, cached, row):
    attempts = (
        Attempt(2**33, None, "out of memory"),
        Attempt(2**31, 5, "TensorRT found no implementation"),
    )
    options = {"workspace_bytes": 2**29, "optimization_level": 2}
    _, rows = summary(cached=cached, attempts=attempts, options=options)
    assert rows["failed before"].splitlines() == [
        "workspace 8.0 GiB, optimization level the default: out of memory",
        "workspace 2.0 GiB, optimization level 5: TensorRT found no implementation",
    ]
    assert rows["built with"] == "workspace 512.0 MiB, optimization level 2"
    assert "total 5.1 s" in rows[row]
    assert {"time", "cached"} & set(rows) == {row}


def test_the_level_of_the_last_attempt_may_be_the_default(summary):
    attempts = (Attempt(2**33, None, "out of memory"),)
    _, rows = summary(attempts=attempts, options={"workspace_bytes": 2**31})
    assert rows["built with"] == "workspace 2.0 GiB, optimization level the default"


def test_a_precision_that_tensorrt_calibrated(summary):
    layers = {"int8": ["a", "b"], "fp8": [], "layers": 7}
    precision = {"applied": "int8", "calibrated": {"by": "trt10"}, "engine_layers": layers}
    _, rows = summary(precision=precision)
    assert rows["precision"].splitlines() == [
        "int8 by trt10, which chooses the layers",
        "in the engine: 2 in INT8 of 7 layers",
    ]


def test_kernels_that_were_compiled(summary):
    _, rows = summary(warming_s=12.34)
    assert rows["kernels"] == "in m.plan.cache, compiled in 12.3 s"


def job(model, config):
    return Job(
        model=model, target=model.with_suffix(".plan"), config=config, backend="rtx",
        cache=None, cache_bytes=None,
    )  # fmt: skip


@pytest.mark.backend
class TestDryRun:
    @pytest.fixture(autouse=True)
    def _needs_rtx(self):
        pytest.importorskip("tensorrt_rtx")

    def test_decisions_and_profiles(self, tables, model):
        profile = ProfileSpec.parse(["batch=1:2:4", "height=8", "width=8"])
        config = BuildConfig(profiles=(profile,), workspace_bytes=3 << 20)
        titles, rows = tables(print_dry_run, job(model, config), False)
        assert titles == ["Would build", "Profiles"]
        assert rows["backend"][0][0].startswith("rtx 1.")
        assert rows["precision"][0][0].endswith("(types from the graph)")
        assert rows["workspace"] == [("3.0 MiB",)]
        assert rows["0"] == [("x", "1x3x8x8", "2x3x8x8", "4x3x8x8")]

    def test_a_model_without_dynamic_inputs(self, tables, tmp_path):
        path = tiny_models.conv(tmp_path / "static.onnx", (1, 3, 8, 8))
        assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
        titles, _ = tables(print_dry_run, job(path, BuildConfig()), False)
        assert titles == ["Would build", "No profiles: every input is static."]
