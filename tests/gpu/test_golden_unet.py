"""The golden U-Net on a GPU: plans built from its checkpoint against outputs of the original."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trt_native import Session
from trt_native.plan import Plan

pytestmark = [pytest.mark.gpu, pytest.mark.backend, pytest.mark.slow]

DATA = Path(__file__).parents[1] / "data"
DIMS = ("batch=1:2:2", "frames=1:4:16", "height=8:16:32", "width=8:16:32", "tokens=5:5:10")


def cases():
    arrays = np.load(DATA / "unet_small.npz")
    names = sorted({key.split(".")[0] for key in arrays})
    return [
        {key.split(".")[1]: arrays[key] for key in arrays if key.startswith(f"{name}.")}
        for name in names
    ]


def export(path, dtype="float32"):
    """Export with a dynamic number of audio tokens, which differs between the golden cases."""
    import torch

    from trt_native.export import export_module
    from trt_native.models.latentsync import UNet, UNetConfig, load_checkpoint, load_into

    checkpoint = load_checkpoint(DATA / "unet_small.pt")
    unet = UNet(UNetConfig.load(DATA / "unet_small.json"))
    load_into(unet, checkpoint.state_dict)
    kind = getattr(torch, dtype)
    inputs = {
        "latents": torch.zeros(2, 13, 3, 16, 24, dtype=kind),
        "timestep": torch.zeros(1, dtype=torch.int64),
        "encoder_hidden_states": torch.zeros(6, 5, 24, dtype=kind),
    }
    dynamic = {
        "latents": {0: "batch", 2: "frames", 3: "height", 4: "width"},
        "encoder_hidden_states": {0: "batch*frames", 1: "tokens"},
    }
    unet.to(kind)
    export_module(unet, inputs, path=path, dynamic=dynamic, output_names=["noise_pred"])
    return path


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return export(tmp_path_factory.mktemp("golden") / "unet.onnx")


def build(onnx, plan, *options, env=None):
    """Build as a user does, in a process of its own."""
    dims = [word for dim in DIMS for word in ("--dim", dim)]
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
    plan = build(onnx, tmp_path / "unet.plan", "--precision", "fp32")
    assert max(relative_errors(plan)) <= 1e-3


def test_fp16(onnx, tmp_path):
    plan = build(onnx, tmp_path / "unet.plan", "--precision", "fp16")
    assert max(relative_errors(plan)) <= 1e-2


def test_fp16_inputs_and_outputs(onnx, tmp_path):
    plan = build(onnx, tmp_path / "unet.plan", "--io-precision", "fp16")
    assert max(relative_errors(plan)) <= 1e-2


def test_an_fp16_export(tmp_path):
    onnx = export(tmp_path / "unet.onnx", "float16")
    plan = build(onnx, tmp_path / "unet.plan")
    assert max(relative_errors(plan)) <= 1e-2


def test_a_plan_built_without_a_gpu_runs_here(onnx, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    blind = {"CUDA_VISIBLE_DEVICES": ""}
    plan = build(onnx, tmp_path / "unet.plan", "--precision", "fp32", "--backend", "rtx", env=blind)
    assert Plan.load(plan).manifest.gpu is None
    assert max(relative_errors(plan)) <= 1e-3
