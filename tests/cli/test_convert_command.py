"""``trt-native convert``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from helpers.program import failing as fails
from helpers.program import trt_native

from trt_native.graph.onnx_file import read_model
from trt_native.graph.types import reduced_types

ROOT = Path(__file__).parents[2]
FP16 = ("--precision", "fp16")


def printed_by(*arguments):
    result = trt_native("convert", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_summary_says_what_was_done_and_the_error(dense, tmp_path):
    result = trt_native(
        "convert", dense, "-o", tmp_path / "c.onnx", *FP16, "--keep-fp32", "op:Gemm"
    )
    assert result.returncode == 0, result.stderr
    text = " ".join(result.stdout.split())
    for part in (
        "any tool",
        "fp16: 3 nodes; 1 stays FP32",
        "32.0 KiB before, 24.0 KiB after",
        "FP32 for keep_fp32: 1 (/dense.1)",
        "with random inputs (seed 0)",
    ):
        assert part in text
    assert "warning" not in result.stderr
    shown = trt_native("inspect", tmp_path / "c.onnx").stdout
    assert "Cast" in shown


def test_json_has_the_error_on_inputs_that_are_given(dense, tmp_path):
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    np.savez(tmp_path / "x.npz", h0=x)
    output = tmp_path / "c.onnx"
    printed = printed_by(dense, "-o", output, *FP16, "--input", tmp_path / "x.npz")
    assert printed["compared_with"] == "the inputs given"
    assert printed["problems"] == []
    (error,) = printed["error"]
    before, after = (
        onnx.reference.ReferenceEvaluator(str(path)).run(None, {"h0": x})[0]
        for path in (dense, output)
    )
    relative = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert error["relative_l2"] == pytest.approx(relative, rel=1e-2)
    assert 0 < relative < 2e-3
    assert [record["name"] for record in printed["passes"]] == ["autocast"]


def test_a_result_that_overflows_is_a_warning(dense, tmp_path):
    np.savez(tmp_path / "x.npz", h0=np.full((2, 64), 6e4, np.float32))
    output = tmp_path / "c.onnx"
    result = trt_native("convert", dense, "-o", output, *FP16, "--input", tmp_path / "x.npz")
    assert result.returncode == 0
    assert "warning: output 'h2': " in result.stderr
    assert "NaN or infinite on one side alone" in result.stderr


def test_what_takes_the_cpu_long_is_compared_on_request(tmp_path):
    model = tiny_models.lone_conv(tmp_path / "m.onnx", [1, 3, 2000, 2000])
    printed = printed_by(model, "-o", tmp_path / "c.onnx", *FP16)
    assert printed["error"] is None
    assert "multiply-adds take the CPU long; compare with --random 0" in printed["not_compared"]
    conv = tiny_models.conv(tmp_path / "d.onnx")
    words = ("--random", "3", "--shape", "x=1x3x9x7")
    printed = printed_by(conv, "-o", tmp_path / "c.onnx", *FP16, *words)
    assert printed["compared_with"] == "random inputs (seed 3)"


def test_random_numbers_are_not_compared(tmp_path):
    text = """<ir_version: 9, opset_import: ["": 18]>
        g (float[2,3] x) => (float[2,3] y) { r = RandomNormalLike (x) y = Add (x, r) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    printed = printed_by(tmp_path / "m.onnx", "-o", tmp_path / "c.onnx", *FP16)
    assert printed["not_compared"] == "the model draws random numbers (RandomNormalLike)"


@pytest.mark.backend
def test_a_child_process_lowers_for_a_backend(tmp_path):
    text = """<ir_version: 9, opset_import: ["": 18]>
        g (float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax <axis = 1> (x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    words = ("--lower", "--backend", "rtx", "--opset", "19")
    printed = printed_by(tmp_path / "m.onnx", "-o", tmp_path / "c.onnx", *words)
    assert printed["backend"].startswith("rtx 1.")
    assert printed["opset"] == 19
    assert printed["error"][0]["relative_l2"] == 0
    assert sorted(os.listdir(tmp_path)) == ["c.onnx", "m.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to convert: give a precision"),
        (("--precision", "int8"), "is none of: fp32, fp16, bf16; it is a format to quantize to"),
        ((*FP16, "--dim", "batch=1:2:4"), "--dim batch=1:2:4: an ONNX file has no ranges"),
        ((*FP16, "--dim", "bach=1"), "did you mean 'batch'?"),
        (("--opset", "12"), "opset 12: models are converted to opsets 13 to"),
        ((*FP16, "--input", "h0=none.npy"), "none.npy: cannot be read: No such file"),
        ((*FP16, "--backend", "rtx"), "no effect on a file for any tool; lower for it"),
        ((*FP16, "--shape", "zz=2x64"), "--shape zz: the inputs are h0"),
        ((*FP16, "--random", "-1"), "a seed must not be negative"),
        ((*FP16, "--calibration-cache", "d.calib"), "calibration_cache: no effect at precision"),
        (("--quantize", "int8"), "needs the ranges of the activations"),
        (("--lower", "--backend", "trt"), "no backend 'trt'"),
    ],
    ids=str,
)
def test_bad_input(dense, tmp_path, options, message):
    error = fails("convert", dense, "-o", "c.onnx", *options, cwd=tmp_path)
    assert message in " ".join(error.split())
    assert sorted(os.listdir(tmp_path)) == ["d.calib", "d.calib.json", "d.onnx"]


def test_a_file_to_compare_with_is_not_written(dense, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 64), np.float32))
    target = tmp_path / "x.npy"
    error = fails("convert", dense, "-o", target, *FP16, "--input", f"h0={target}")
    assert "it is one of the files to read" in error


def test_the_commands_of_the_documentation(tmp_path):
    text = (ROOT / "docs/tensorrt11.md").read_text()
    commands = [line[2:] for line in text.splitlines() if line.startswith("$ trt-native convert")]
    assert len(commands) == 3
    tiny_models.dense(tmp_path / "model.onnx")
    for command in commands:
        result = trt_native(*command.split()[1:], cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    types = [reduced_types(read_model(tmp_path / f"model.{t}.onnx")) for t in ("fp16", "bf16")]
    assert types == [{"float16"}, {"bfloat16"}]
