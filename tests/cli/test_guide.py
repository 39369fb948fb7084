"""The scripts of LatentSync's TensorRT guide, and the commands that they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from helpers import DATA
from helpers.golden_unet import two_level_config
from helpers.program import HAS_GPU, failing, trt_native

SCRIPTS = Path(__file__).parents[2] / "scripts"
EXPORT, BUILD, INFER = "export_unet_to_onnx.py", "build_trt_engine.py", "infer_with_trt.py"


def script(name, *arguments, cwd):
    return subprocess.run(
        [sys.executable, SCRIPTS / name, *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )


def error_of(result):
    """The one line on standard error of a script that failed."""
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def exported(golden_onnx, tmp_path):
    """A folder with latentsync_unet.onnx, as the export writes it for LatentSync's audio."""
    model = onnx.load(golden_onnx)
    config = json.loads((DATA / "unet_small.json").read_text())
    config["sample_size"] = 64
    entry = model.metadata_props.add()
    entry.key, entry.value = "trt_native.config", json.dumps(config)
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == "tokens":
                axis.dim_value = 50
    onnx.save(model, tmp_path / "latentsync_unet.onnx")
    return tmp_path


def profiles_of(folder, *arguments):
    """Profiles that a build without a plan would have: input name to its ranges."""
    result = trt_native("guide", "build", "--dry-run", "--json", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


@pytest.mark.slow
@pytest.mark.backend
def test_the_guide_without_arguments(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("tensorrt_rtx")
    from trt_native.models.latentsync import UNetConfig, load_unet

    config = two_level_config()
    unet, _ = load_unet(config=UNetConfig.from_mapping(config), random_seed=0)
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        {"config": config, "state_dict": unet.state_dict()},
        tmp_path / "checkpoints" / "latentsync_unet.pt",
    )
    for name in (EXPORT, BUILD):
        result = script(name, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert "latentsync_unet.plan" in result.stdout
    manifest = json.loads((tmp_path / "latentsync_unet.plan.json").read_text())
    assert manifest["precision"]["applied"] == "fp16"
    again = script(BUILD, cwd=tmp_path)
    assert "Unchanged: from the cache" in again.stdout
    result = script(INFER, cwd=tmp_path)
    if HAS_GPU:
        assert result.returncode == 0, result.stderr
        assert "2x4x16x" in result.stdout
    else:
        assert "cannot find a GPU" in error_of(result)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (EXPORT, "checkpoints/latentsync_unet.pt: no such file in {}; run this in LatentSync's"),
        (BUILD, "latentsync_unet.onnx: no such file in {}; export it first"),
        (INFER, "latentsync_unet.plan: no such file in {}; build it first"),
    ],
)
def test_a_step_without_the_one_before_it(tmp_path, name, message):
    assert message.format(tmp_path) in error_of(script(name, cwd=tmp_path))


@pytest.mark.parametrize("name", [EXPORT, BUILD, INFER, "compare_with_pytorch.py"])
def test_outside_the_environment(tmp_path, name):
    env = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-S", SCRIPTS / name],  # -S: without site-packages
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    line = error_of(result)
    assert "trt_native is not installed" in line
    assert f".venv/bin/python {SCRIPTS / name}" in line


def test_the_profile_comes_from_the_model(exported):
    planned, said = profiles_of(exported)
    assert "batch=1:2:2 frames=1:16:16 height=32:64:64 width=32:64:64" in said
    ranges, opt = (profile["shapes"]["latents"] for profile in planned["profiles"])
    assert ranges == "1x13x1x32x32:2x13x16x64x64:2x13x16x64x64"
    assert opt == "2x13x16x64x64"
    assert planned["workspace_bytes"] == 8 << 30 or HAS_GPU


def test_one_static_shape_of_another_resolution(exported):
    planned, said = profiles_of(exported, "--static", "--resolution", "256")
    assert "batch=2 frames=16 height=32 width=32" in said
    (profile,) = planned["profiles"]
    assert profile["shapes"]["latents"] == "2x13x16x32x32"


def test_what_the_user_gives_wins(exported):
    planned, said = profiles_of(exported, "--dim", "batch=1", "--dim", "height=16:32:64")
    assert "pipeline: frames=1:16:16 width=32:64:64\n" in said
    ranges = planned["profiles"][0]["shapes"]["latents"]
    assert ranges == "1x13x1x16x32:1x13x16x32x64:1x13x16x64x64"


def test_int8_with_and_without_data(exported):
    message = failing("guide", "build", "--int8", cwd=exported)
    assert "INT8 needs data to calibrate with" in message
    assert "(--calibration-data)" in message
    cache = exported / "c.calib"
    cache.write_text("TRT-8600-EntropyCalibration2\nlatents: 3c000000\n")
    message = failing("guide", "build", "--int8", "--fp16", "--dry-run", "--calibration-cache",
                      cache, cwd=exported)  # fmt: skip
    assert "c.calib: without c.calib.json" in message
    assert "left alone by the preset" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8"], "INT8 is for the build"),
        (["--fp16", "--precision", "bf16"], "bf16 contradicts fp16: give one of them (--precis"),
        (["--static", "--resolution", "100"], "give a multiple of 8 pixels"),
        (["--resolution", "256"], "no effect on a dynamic ONNX file (--static, --resolution)"),
        (["batch=1"], "no effect on a dynamic ONNX file"),
        (["--static", "batch=1", "--random-weights", "0"], "--static lacks frames, height, width"),
    ],
)
def test_exports_that_are_refused(tmp_path, arguments, message):
    assert message in failing("guide", "export", *arguments, cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fp16", "--precision", "fp32"], "precision fp32 contradicts fp16"),
        (["--static", "--profile", "p.yaml"], "no effect with a profile file"),
        (["nope.onnx"], "nope.onnx: cannot be read"),
    ],
)
def test_builds_that_are_refused(tmp_path, arguments, message):
    (tmp_path / "latentsync_unet.onnx").touch()
    assert message in failing("guide", "build", *arguments, cwd=tmp_path)
