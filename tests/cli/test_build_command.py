"""``trt-native build``: plans, dry runs, bad options, interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import tiny_models
from helpers.program import DIMS, HAS_GPU, trt_native
from helpers.program import failing as fails


def restore_interrupts():
    """Restore SIGINT, which a shell's background jobs ignore, and so would their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.backend
class TestBuild:
    @pytest.fixture(autouse=True)
    def _needs_rtx(self):
        pytest.importorskip("tensorrt_rtx")

    def test_builds_a_plan_with_its_manifest(self, model, tmp_path):
        result = trt_native("build", model, *DIMS, "--backend", "rtx")
        assert result.returncode == 0, result.stderr
        assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.plan", "m.plan.json"]
        assert "1x3x8x8:2x3x8x8:4x3x16x8" in result.stdout
        assert "Building engine" in result.stderr

    def test_json_is_the_manifest_and_nothing_else(self, model, tmp_path):
        target = tmp_path / "out.plan"
        result = trt_native("build", model, "-o", target, *DIMS, "--backend", "rtx", "--json")
        printed = json.loads(result.stdout)
        written = json.loads((tmp_path / "out.plan.json").read_text())
        added = {"path": str(target), "cached": False, "failed_attempts": []}
        assert printed == {**added, **written}

    def test_dry_run_writes_nothing(self, model, tmp_path):
        profile = tmp_path / "p.yaml"
        profile.write_text("dims: {batch: 1:1:1, height: 8, width: 8}\n")
        result = trt_native(
            "build", model, "--profile", profile, "--dim", "batch=1:2:4", "--dry-run", "--json"
        )
        outcome = json.loads(result.stdout)
        assert outcome["profiles"] == [{"shapes": {"x": "1x3x8x8:2x3x8x8:4x3x8x8"}, "values": {}}]
        assert sorted(os.listdir(tmp_path)) == ["m.onnx", "p.yaml"]

    def test_shapes_win_over_dims_and_dims_over_the_file(self, model, tmp_path):
        profile = tmp_path / "p.toml"
        profile.write_text("[dims]\nbatch = 1\nheight = 8\nwidth = 8\n")
        result = trt_native(
            "build",
            model,
            *("--profile", profile, "--dim", "height=16", "--shape", "x=3x3x32x8"),
            *("--dry-run", "--json"),
        )
        assert json.loads(result.stdout)["profiles"][0]["shapes"] == {"x": "3x3x32x8"}

    def test_an_unwritable_target_is_found_before_the_build(self, model):
        message = fails("build", model, *DIMS, "-o", "/proc/m.plan", "--backend", "rtx")
        assert "cannot write /proc/m.plan" in message
        assert "Building engine" not in message

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--precision", "int8"], "precision int8 needs the ranges of the activations"),
            (["--precision", "best"], "a calibration cache is not enough (--calibration-data)"),
            (
                ["--precision", "best", "--calibration-data", "x", "--max-error", "2"],
                "maximum error 2.0",
            ),
            (["--precision", "best", "--dry-run"], "decides by building and measuring"),
            (["--max-error", "0.1"], "no effect without --precision best"),
            (
                ["--precision", "int8", "--calibration-data", "x", "--calibration-runner", "gpu"],
                "none of: auto, engi",
            ),
            (["--precision", "fast"], "none of: auto, fp32"),
            (["--workspace", "lots"], "not a size"),
            (["--workspace", "8"], "must be at least 1 MiB; 8GiB? (--workspace)"),
            (["--dim", "batch"], "not NAME=RANGE"),
            (["--dim", "depth=1"], "'depth' is not one of the model's"),
            (["--shape", "x=1x3x8"], "has 4 axes"),
            (["--timing-cache", "c"], "timing_cache is not supported: it does not time tactics"),
            (
                ["--version-compatible"],
                "version_compatible is not supported: the package does not contain",
            ),
            (
                ["--hardware-compatibility", "ampere_plus"],
                "hardware_compatibility is not supported: its plans run",
            ),
            (
                ["--compute-capability", "3.5"],
                "compute capability 3.5 is not supported: it targets",
            ),
            (["--compute-capability", "sm_89"], "write it as 8.6"),
            (["--optimization-level", "9"], "it goes from 0 to 5"),
            (["--keep-fp32", "nothing*"], "nothing*"),
            (["--backend", "vulkan"], "no backend 'vulkan'"),
            (["--strip-weights", "--warm"], "a plan without weights cannot run"),
            pytest.param(
                ["--warm"],
                "kernels are compiled on the GPU that runs them: cannot find a GPU",
                marks=pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU"),
            ),
            pytest.param(
                ["--precision", "best", "--calibration-data", "x", "--warm"],
                "kernels are compiled on the GPU that runs them: cannot find a GPU",
                marks=pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU"),
            ),
            pytest.param(
                ["--dry-run", "--warm"],
                "kernels are compiled on the GPU that runs them: cannot find a GPU",
                marks=pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU"),
            ),
            pytest.param(
                ["--strip-weights"],
                "only on a machine with a GPU",
                marks=pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU"),
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_bad_options(self, model, tmp_path, arguments, message):
        backend = () if "--backend" in arguments else ("--backend", "rtx")
        assert message in fails("build", model, *DIMS, *backend, *arguments)
        assert os.listdir(tmp_path) == ["m.onnx"]

    @pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["build", "dry run"])
    def test_an_unknown_operator(self, tmp_path, dry):
        path = tiny_models.conv(tmp_path / "m.onnx", operator="Warp")
        message = fails("build", path, *DIMS, "--backend", "rtx", "--precision", "fp32", *dry)
        assert (
            "does not support these operators of m.onnx:\n  - Warp 'activation': Tensor" in message
        )
        assert os.listdir(tmp_path) == ["m.onnx"]

    def test_ctrl_c_ends_the_build_and_leaves_no_file(self, tmp_path):
        model = tiny_models.conv_chain(tmp_path / "m.onnx")
        dim = ("--dim", "batch=1:2:4")
        process = subprocess.Popen(
            [sys.executable, "-m", "trt_native", "build", model, *dim, "--backend", "rtx"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            preexec_fn=restore_interrupts,
        )
        while "Building engine" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 130
        assert rest.endswith("\ninterrupted\n")
        assert "Traceback" not in rest
        assert os.listdir(tmp_path) == ["m.onnx"]

    def test_ctrl_c_at_any_moment(self, model, tmp_path):
        for delay in np.linspace(0.05, 1.2, 8):
            process = subprocess.Popen(
                [sys.executable, "-m", "trt_native", "build", model, *DIMS, "--backend", "rtx"],
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "TMPDIR": str(tmp_path)},
                preexec_fn=restore_interrupts,
            )
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, text = process.communicate(timeout=60)
            if "trt_native" in text:  # the interpreter was still starting
                continue
            assert "Traceback" not in text
            left = set(os.listdir(tmp_path)) - {"m.onnx"}
            assert left in (set(), {"m.plan", "m.plan.json"})
            # Before Python has set its handler, and after it has removed it, the signal kills.
            assert process.returncode in (130, 0, -signal.SIGINT)


@pytest.mark.backend
class TestQuantizedBuild:
    @pytest.fixture(autouse=True)
    def _needs_rtx(self):
        pytest.importorskip("tensorrt_rtx")

    def test_builds_in_one_go(self, dense, tmp_path):
        options = (
            "--precision",
            "int8",
            "--calibration-cache",
            tmp_path / "d.calib",
            "--dim",
            "batch=1:2:4",
        )
        result = trt_native(
            "build", dense, *options, "--backend", "rtx", "--quantize-exclude", "op:Gemm"
        )
        assert result.returncode == 0, result.stderr
        assert "int8: 1 of 2 matrix products, 50.0% of their multiply-adds" in result.stdout
        assert "fp16: 3 nodes; 4 stay FP32" in result.stdout
        assert "Quantizing the graph" in result.stderr

    def test_a_dry_run_prints_the_coverage(self, dense, tmp_path):
        options = (
            "--precision",
            "fp8",
            "--calibration-cache",
            tmp_path / "d.calib",
            "--dim",
            "batch=1:2:4",
        )
        dry = (*options, "--backend", "rtx", "--dry-run")
        assert "2 of 2 matrix products" in trt_native("build", dense, *dry).stdout
        outcome = json.loads(trt_native("build", dense, *dry, "--json").stdout)
        assert [record["name"] for record in outcome["passes"]] == ["quantize", "autocast"]
        assert outcome["passes"][0]["coverage"] == 1.0
        assert not (tmp_path / "d.plan").exists()

    def test_bad_input(self, dense, model):
        dim = ("--dim", "batch=1", "--backend", "rtx")
        error = fails("build", dense, *dim, "--precision", "int8")
        assert "precision int8 needs the ranges of the activations" in error
        error = fails(
            "build", dense, *dim, "--precision", "fp16", "--quantize-preset", "diffusion-unet"
        )
        assert "preset: no effect at precision fp16" in error
        error = fails("build", model, *DIMS, "--backend", "rtx", "--precision", "int8-weights")
        assert "left alone: 1 Conv (fewer than 16 channels)" in error


def test_no_backend_says_what_to_install(model, plant):
    env = plant("import sys; sys.modules['tensorrt'] = sys.modules['tensorrt_rtx'] = None")
    message = fails("build", model, *DIMS, env=env)
    assert "no TensorRT is installed; install one: pip install 'tensorrt-rtx>=1.4,<2'" in message
