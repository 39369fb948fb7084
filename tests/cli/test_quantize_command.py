"""``trt-native quantize``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_models
from helpers.program import failing as fails
from helpers.program import trt_native

from trt_native.backends.registry import load_backend

ROOT = Path(__file__).parents[2]


class TestQuantize:
    def test_writes_a_file_and_prints_the_quantized_share(self, dense, tmp_path):
        target, cache = tmp_path / "q.onnx", tmp_path / "d.calib"
        result = trt_native("quantize", dense, "-o", target, "--calibration-cache", cache)
        assert result.returncode == 0, result.stderr
        assert "2 of 2 matrix products, 100.0% of their multiply-adds" in result.stdout
        assert target.exists()

    def test_json_is_the_report(self, dense, tmp_path):
        options = (
            "--format",
            "int8-weights",
            "--quantize-ops",
            "Gemm",
            "--dim",
            "batch=3",
            "--json",
        )
        result = trt_native("quantize", dense, "-o", tmp_path / "q.onnx", *options)
        printed = json.loads(result.stdout)
        assert printed["path"] == str(tmp_path / "q.onnx")
        assert printed["report"]["quantized"] == {"Gemm": 1}
        assert printed["report"]["skipped"] == {"operator": {"MatMul": 1}}
        assert printed["report"]["macs"] == 2 * 3 * 64 * 64
        assert printed["report"]["coverage"] == 0.5

    def test_int4_weights_have_their_errors_beside_rounding_to_nearest(self, dense, tmp_path):
        np.savez(tmp_path / "x.npz", h0=np.random.default_rng(0).standard_normal((8, 64), "f4"))
        words = ("quantize", dense, "-o", tmp_path / "q.onnx", "--format", "int4-weights")
        words = (*words, "--quantize-block-size", "16")
        result = trt_native(*words)
        assert result.returncode == 0, result.stderr
        assert "relative L2 error of weights 0." in " ".join(result.stdout.split())
        result = trt_native(*words, "--calibration-data", tmp_path / "x.npz")
        assert result.returncode == 0, result.stderr
        text = " ".join(result.stdout.split())
        assert "relative L2 error of products 0." in text
        assert "rounded to nearest │ 0." in text

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                (),
                "int8 needs the ranges of the activations: give a calibration cache",
            ),
            (("--format", "int4"), "--format 'int4' is none of: int8, fp8, int8-weights"),
            (("--calibration-cache", "none.calib"), "cannot read none.calib: No such file"),
            (
                ("--calibration-cache", "d.calib", "--format", "int8-weights"),
                "--calibration-cache: no effect on int8-wei",
            ),
            (
                ("--calibration-cache", "d.calib", "--quantize-ops", "Conv"),
                "left alone: 1 MatMul (not among the operat",
            ),
            (
                ("--calibration-cache", "d.calib", "--quantize-ops", "Convs"),
                "operators to quantize: Convs; choose from",
            ),
            (("--calibration-cache", "d.calib", "--quantize-ops", ","), "names no operator"),
            (
                ("--calibration-cache", "d.calib", "--quantize-preset", "bert"),
                "'bert' is none of: default, diffusion-u",
            ),
            (
                ("--calibration-cache", "d.calib", "--quantize-exclude", "x*"),
                "pattern 'x*' matches no node name (--quantize-exclude)",
            ),
            (
                ("--calibration-cache", "d.calib", "--quantize-min-coverage", "40"),
                "40.0: it is a share from 0 to 1",
            ),
            (("--format", "int8-weights", "--dim", "batc=2"), "did you mean 'batch'"),
            (
                ("--format", "int4-weights", "--quantize-block-size", "48"),
                "block size 48 is none of: 16, 32, 64, 128 (--quantize-block-size)",
            ),
            (
                ("--format", "int8-weights", "--quantize-block-size", "32"),
                "block size: no effect at precision int8-weights",
            ),
            (
                ("--format", "int4-weights", "--calibration-data", "none"),
                "none: no such calibration data",
            ),
            (
                ("--calibration-data", "none"),
                "needs the ranges of the activations: give a calibration cache",
            ),
        ],
        ids=str,
    )
    def test_bad_input(self, dense, tmp_path, options, message):
        error = fails("quantize", dense, "-o", "q.onnx", *options, cwd=tmp_path)
        assert message in " ".join(error.split())
        assert sorted(os.listdir(tmp_path)) == ["d.calib", "d.calib.json", "d.onnx"]


@pytest.mark.backend
def test_the_three_steps_of_the_documentation(tmp_path):
    """Its commands with the names of a small model, whose convolution TensorRT-RTX may lack."""
    text = (ROOT / "docs/quantization.md").read_text().split("## In three steps")[1]
    commands = [line[2:] for line in text.split("```")[1].splitlines() if line.startswith("$ ")]
    assert [command.split()[1] for command in commands] == ["calibrate", "quantize", "build"]
    tiny_models.conv_and_dense(tmp_path / "unet.onnx")
    data = tmp_path / "calib_data/mine"
    data.mkdir(parents=True)
    x = np.random.default_rng(0).standard_normal((2, 32, 16, 64), np.float32)
    np.savez(data / "0.npz", x=x)
    for command in commands:
        command = command.replace("--quantize-preset diffusion-unet", "")
        words = command.replace("--dim …", "--dim batch=1:2:4 --backend rtx").split()
        result = trt_native(*words[1:], cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    records = {
        p["name"]: p for p in json.loads((tmp_path / "unet.plan.json").read_text())["passes"]
    }
    if load_backend("rtx").capabilities.int8_unsupported:
        assert records["bypass_quantizers"]["nodes"] == {"Conv": 1}
