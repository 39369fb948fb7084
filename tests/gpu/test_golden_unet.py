"""The golden U-Net on a GPU: plans built from its checkpoint against outputs of the original."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from helpers.golden_unet import DIMS, cases, export

from trt_native import Session
from trt_native.plans.plan import Plan

pytestmark = [pytest.mark.gpu, pytest.mark.backend, pytest.mark.slow]


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return export(tmp_path_factory.mktemp("golden") / "unet.onnx")


def build(name, onnx, plan, *options, env=None):
    """Build as a user does, in a process of its own, or take the plan from a folder."""
    dims = [word for dim in DIMS for word in ("--dim", dim)]
    built_elsewhere = os.environ.get("TRT_NATIVE_TEST_PLANS")
    if built_elsewhere:
        return Path(built_elsewhere) / f"{name}.plan"
    subprocess.run(
        [sys.executable, "-m", "trt_native", "build", onnx, "-o", plan, *dims, *options],
        check=True,
        env={**os.environ, **(env or {})},
    )
    return plan


def relative_errors(plan):
    """Relative L2 error of each golden case, run one after the other in one session."""
    errors = []
    with Session(plan) as session:
        types = {tensor.name: tensor.dtype for tensor in session.engine.inputs}
        for case in cases():
            expected = case["noise_pred"].astype(np.float64)
            case["timestep"] = case["timestep"].reshape(1)
            found = session.run({name: case[name].astype(types[name]) for name in types})
            difference = found["noise_pred"].astype(np.float64) - expected
            errors.append(float(np.linalg.norm(difference) / np.linalg.norm(expected)))
    print("relative L2 errors:", ", ".join(f"{error:.2e}" for error in errors))
    return errors


def test_fp32(onnx, tmp_path):
    plan = build("fp32", onnx, tmp_path / "unet.plan", "--precision", "fp32")
    assert max(relative_errors(plan)) <= 1e-3


def test_fp16(onnx, tmp_path):
    plan = build("fp16", onnx, tmp_path / "unet.plan", "--precision", "fp16")
    assert max(relative_errors(plan)) <= 1e-2


def test_fp16_inputs_and_outputs(onnx, tmp_path):
    plan = build("io16", onnx, tmp_path / "unet.plan", "--io-precision", "fp16")
    assert max(relative_errors(plan)) <= 1e-2


def test_an_fp16_export(tmp_path):
    onnx = export(tmp_path / "unet.onnx", ir.DataType.FLOAT16)
    plan = build("export16", onnx, tmp_path / "unet.plan")
    assert max(relative_errors(plan)) <= 1e-2


def test_a_plan_built_without_a_gpu_runs_here(onnx, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    blind = {"CUDA_VISIBLE_DEVICES": ""}
    plan = build(
        "blind", onnx, tmp_path / "unet.plan", "--precision", "fp32", "--backend", "rtx", env=blind
    )
    assert Plan.load(plan).manifest.gpu is None
    assert max(relative_errors(plan)) <= 1e-3
