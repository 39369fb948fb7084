"""What only a loaded engine tells: layers, memory, and the tensors of plans without a manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny_models

from trt_native import BuildConfig, Precision, ProfileSpec, build_plan
from trt_native.cli.html import plan_page
from trt_native.deploy import plan_tensors, trtexec_command
from trt_native.inspection import compare, inspect_plan

pytestmark = [pytest.mark.gpu, pytest.mark.backend]


def build(tmp_path, precision):
    model = tiny_models.conv(tmp_path / "m.onnx")
    profile = ProfileSpec.parse(["batch=1:2:4", "height=8", "width=8"])
    return build_plan(model, BuildConfig(profiles=(profile,), precision=precision))


def test_layers_and_memory(tmp_path):
    single, half = (inspect_plan(build(tmp_path, p)) for p in (Precision.FP32, Precision.FP16))
    assert single.layers_fault is None
    assert "conv" in " ".join(layer.name for layer in single.layers)
    assert single.activation_bytes >= 0
    assert "<svg" in plan_page(single)
    assert compare(single, single).differences == ()
    sections = {difference.section for difference in compare(single, half).differences}
    assert {"options", "layers"} <= sections


def test_a_plan_without_a_manifest_is_read_from_its_engine(tmp_path):
    plan = build(tmp_path, Precision.FP32)
    foreign = dataclasses.replace(plan, manifest=None)
    known = [(t.name, t.mode, t.dtype, t.shape, t.profiles) for t in plan_tensors(plan)]
    found = [(t.name, t.mode, t.dtype, t.shape, t.profiles) for t in plan_tensors(foreign)]
    assert found == known
    assert trtexec_command(foreign, Path("m")) == trtexec_command(plan, Path("m"))
