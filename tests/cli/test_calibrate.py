"""``trt-native calibrate`` as a user meets it."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from helpers import tiny_models
from helpers.program import failing as fails
from helpers.program import trt_native

from trt_native.calibration.caches import CalibrationCache


@pytest.fixture
def model(tmp_path):
    return tiny_models.conv(tmp_path / "m.onnx", operator="Abs")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number, scale in enumerate((1.0, -1.0, 0.5)):
        x = np.linspace(0, scale, 3 * 64 * 64, dtype=np.float32).reshape(1, 3, 64, 64)
        np.savez(folder / f"{number}.npz", x=x)
    return folder


def test_calibrates_with_a_summary(model, data, tmp_path):
    words = ("--calibration-method", "entropy", "--calibration-runner", "reference")
    result = trt_native("calibrate", model, "--data", data, *words)
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(tmp_path)) == ["data", "m.calib", "m.calib.json", "m.onnx"]
    cache = CalibrationCache.load(tmp_path / "m.calib")
    assert (tmp_path / "m.calib").read_bytes() == b"TRT-101601-EntropyCalibration2\na: 3c010a14\n"
    assert cache.amax("a") == 1.0
    assert "3 batches: x 1x3x64x64" in result.stdout
    assert "running the model with onnx.reference on the CPU" in result.stderr
    assert "Running the model: histograms" in result.stderr


def test_json_and_options(model, data, tmp_path):
    target = tmp_path / "out"
    words = ("--calibration-method", "percentile", "--percentile", "50", "--batches", "1")
    words += ("--tensor", "a")
    result = trt_native(
        "calibrate", model, "--data", data, "-o", target, *words, "--trt-version", "8.6.1", "--json"
    )
    report = json.loads(result.stdout)
    assert report["header"] == "TRT-8601-EntropyCalibration2"
    assert report["provenance"]["method"] == "percentile 50"
    assert report["provenance"]["batches"] == 1
    (tensor,) = report["tensors"]
    assert (tensor["name"], tensor["amax"]) == ("a", 1.0)
    assert tensor["threshold"] == pytest.approx(0.5, rel=1e-3)
    shown = json.loads(trt_native("calibrate", "--show", target, "--json").stdout)
    assert shown == {key: report[key] for key in report if key != "seconds"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give one of: MODEL.onnx with --calibration-data FOLDER, --show FILE, or --diff A B"),
        (("{model}",), "no calibration data for m.onnx: give --calibration-data FOLDER"),
        (("{model}", "--show", "x"), "give one of"),
        (("--show", "{model}"), "not a calibration cache"),
        (("--show", "missing"), "cannot read missing: No such file"),
        (("--show", "x", "--batches", "3"), "they take no option but --json"),
        (("{model}", "--data", "missing"), "missing: no such calibration data"),
        (
            ("{model}", "--data", "{data}", "--calibration-method", "best"),
            "'best' is none of: entropy, minmax",
        ),
        (
            ("{model}", "--data", "{data}", "--percentile", "99"),
            "no effect with --calibration-method mse",
        ),
        (("{model}", "--data", "{data}", "--trt-version", "11.1"), "reads no calibration caches"),
        (("{model}", "--data", "{data}", "--tensor", "b"), "'b' matches no tensor"),
        (("{model}", "--data", "{data}", "-o", "no/where"), "cannot write no/where"),
        (("missing.onnx", "--data", "{data}"), "missing.onnx: cannot be read"),
    ],
)
def test_wrong_requests(words, message, model, data, tmp_path):
    before = sorted(os.listdir(tmp_path))
    words = [word.format(model=model, data=data) for word in words]
    assert message in fails("calibrate", *words, cwd=tmp_path)
    assert sorted(os.listdir(tmp_path)) == before


def test_data_that_is_not_finite_writes_nothing(tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx", operator="Log")
    data = tmp_path / "data.npz"
    np.savez(data, x=np.zeros((1, 3, 8, 8), np.float32))
    message = fails("calibrate", path, "--data", data)
    assert "batch 0: tensor 'a' has NaN or infinite values" in message
    assert sorted(os.listdir(tmp_path)) == ["data.npz", "m.onnx"]


TENSORRTS = b"TRT-8601-EntropyCalibration2\na: 3c010a14\n(Unnamed Layer* 9): 3f800000\n: 3f000000\n"


def test_show_of_a_cache_that_tensorrt_wrote(tmp_path):
    (tmp_path / "t.calib").write_bytes(TENSORRTS)
    result = trt_native("calibrate", "--show", tmp_path / "t.calib")
    assert result.returncode == 0, result.stderr
    assert "unknown: no .json file next to the cache" in result.stdout
    assert "(Unnamed Layer* 9)" in result.stdout
    assert "127" in result.stdout


def test_diff(tmp_path):
    a, b = tmp_path / "a.calib", tmp_path / "b.calib"
    a.write_bytes(b"TRT-1-E\nsame: 3f800000\ndouble: 3f800000\neighth: 3f800000\nalone: 3f800000\n")
    b.write_bytes(b"TRT-1-E\ndouble: 40000000\nsame: 3f800000\neighth: 3e000000\nnew: 3f800000\n")
    report = json.loads(trt_native("calibrate", "--diff", a, b, "--json").stdout)
    assert (report["only_a"], report["only_b"]) == (["alone"], ["new"])
    assert report["tensors"] == [
        {"name": "eighth", "a": 127.0, "b": 15.875, "ratio": 0.125},
        {"name": "double", "a": 127.0, "b": 254.0, "ratio": 2.0},
        {"name": "same", "a": 127.0, "b": 127.0, "ratio": 1.0},
    ]
    text = trt_native("calibrate", "--diff", a, b).stdout
    assert "Different ranges (2 of 3 tensors in both)" in text
    assert text.index("eighth") < text.index("double")
    assert "Only in A (1)" in text
    same = trt_native("calibrate", "--diff", a, a).stdout
    assert "Same ranges in both: 4 tensors." in same
