"""``trt-native quantize``."""

from __future__ import annotations

import json
import os

import pytest
from helpers.program import failing as fails
from helpers.program import trt_native


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
                "skip pattern 'x*' matches no node name",
            ),
            (
                ("--calibration-cache", "d.calib", "--quantize-min-coverage", "40"),
                "40.0: it is a share from 0 to 1",
            ),
            (("--format", "int8-weights", "--dim", "batc=2"), "did you mean 'batch'"),
        ],
        ids=str,
    )
    def test_bad_input(self, dense, tmp_path, options, message):
        error = fails("quantize", dense, "-o", "q.onnx", *options, cwd=tmp_path)
        assert message in " ".join(error.split())
        assert sorted(os.listdir(tmp_path)) == ["d.calib", "d.calib.json", "d.onnx"]
