"""Facts that only a loaded engine has: layers, memory, and tensors of plans without a manifest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from helpers import tiny_models
from typer.testing import CliRunner

from trt_native import BuildConfig, Precision, ProfileSpec, build_plan
from trt_native.cli.app import app
from trt_native.config import ProfilingVerbosity
from trt_native.deploy import plan_tensors, trtexec_command
from trt_native.inspection import diff_plans, inspect_plan, precision_mix
from trt_native.page import plan_page

pytestmark = [pytest.mark.gpu, pytest.mark.backend]


def build(tmp_path, precision):
    model = tiny_models.conv(tmp_path / "m.onnx")
    profile = ProfileSpec.parse(["batch=1:2:4", "height=8", "width=8"])
    return build_plan(model, BuildConfig(profiles=(profile,), precision=precision))


def test_layers_and_memory(tmp_path):
    single, half = (inspect_plan(build(tmp_path, p)) for p in (Precision.FP32, Precision.FP16))
    print(json.dumps({"fp32": single.raw_layers, "fp16": half.raw_layers}, indent=1))
    assert single.layers_error is None
    assert half.layers_error is None
    assert "conv" in " ".join(layer.name for layer in single.layers).lower()
    assert all(layer.name for layer in (*single.layers, *half.layers))
    assert "fp16" in precision_mix(half.layers)
    assert "fp16" not in precision_mix(single.layers)
    assert single.activation_bytes >= 0
    assert "<svg" in plan_page(single)
    assert diff_plans(single, single).differences == ()
    sections = {difference.section for difference in diff_plans(single, half).differences}
    assert {"options", "layers"} <= sections


def test_the_commands_and_times(tmp_path):
    plan = build(tmp_path, Precision.FP16).save(tmp_path / "m.plan")
    page, times = tmp_path / "m.html", tmp_path / "times.json"
    result = CliRunner().invoke(app, ["inspect", str(plan), "--json"])
    assert result.exit_code == 0
    (tmp_path / "report.json").write_text(result.stdout)
    layers = json.loads(result.stdout)["layers"]
    times.write_text(json.dumps([{"name": layer["Name"], "median_ms": 0.125} for layer in layers]))
    arguments = ["inspect", str(plan), "--html", str(page), "--times", str(times)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    text = page.read_text()
    assert text.count("0.1250 ms") >= len(layers)
    assert '"title":"Layers"' in text
    assert '"title":"ONNX nodes"' in text
    same = CliRunner().invoke(app, ["diff", str(plan), str(tmp_path / "report.json")])
    assert (same.exit_code, same.stderr) == (0, "")


@pytest.mark.parametrize("verbosity", ["layer_names_only", "none"])
def test_plans_with_less_information_on_layers(tmp_path, verbosity):
    model = tiny_models.conv(tmp_path / "m.onnx")
    profile = ProfileSpec.parse(["batch=2", "height=8", "width=8"])
    verbosity = ProfilingVerbosity.parse(verbosity)
    report = inspect_plan(
        build_plan(model, BuildConfig(profiles=(profile,), profiling_verbosity=verbosity))
    )
    print(report.raw_layers, report.layers_error)
    assert (report.raw_layers is None) == (report.layers_error is not None)
    assert plan_page(report).startswith("<!DOCTYPE html>")


def test_a_plan_without_a_manifest_is_read_from_its_engine(tmp_path):
    plan = build(tmp_path, Precision.FP32)
    foreign = dataclasses.replace(plan, manifest=None)
    known = [(t.name, t.mode, t.dtype, t.shape, t.profiles) for t in plan_tensors(plan)]
    found = [(t.name, t.mode, t.dtype, t.shape, t.profiles) for t in plan_tensors(foreign)]
    assert found == known
    assert trtexec_command(foreign, Path("m")) == trtexec_command(plan, Path("m"))
