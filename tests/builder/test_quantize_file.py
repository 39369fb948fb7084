"""Quantized ONNX files, from a model and a calibration cache."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from onnx.reference import ReferenceEvaluator

from trt_native.backends.registry import load_backend
from trt_native.builder.quantize_file import quantize_onnx
from trt_native.config import Precision, QuantizationSpec
from trt_native.errors import CalibrationError, ModelError, SpecError, UnsupportedError
from trt_native.graph import onnx_file
from trt_native.passes.quantize import METADATA_KEY
from trt_native.shapes import ProfileSpec


@pytest.fixture
def model(tmp_path):
    return tiny_models.dense(tmp_path / "m.onnx")


@pytest.fixture
def cache(model, tmp_path):
    return tiny_models.calibration(model, tmp_path / "m.calib", 4.0, shapes={"h0": ("3x64",)})


def quantize(model, precision=Precision.INT8, dims=None, **options):
    output = model.with_name("q.onnx")
    return quantize_onnx(model, output, precision, QuantizationSpec(**options), dims=dims)


def scales(path):
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    return {
        name: float(w) for name, w in weights.items() if name.endswith("__scale") and not w.ndim
    }


def test_the_file_is_valid_and_tells_what_it_is(model, cache, tmp_path):
    result = quantize(model, calibration_cache=cache)
    assert result.path == tmp_path / "q.onnx"
    assert result.total_bytes == result.path.stat().st_size
    assert result.external_data is None
    assert result.calibration["method"] == "minmax"
    assert result.report.macs == 2 * 3 * 64 * 64  # the calibration's shape
    assert sorted(os.listdir(tmp_path)) == ["m.calib", "m.calib.json", "m.onnx", "q.onnx"]
    noted = {entry.key: entry.value for entry in onnx.load(result.path).metadata_props}
    assert json.loads(noted[METADATA_KEY]) == result.report.to_dict()
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    (before,), (after,) = (
        ReferenceEvaluator(str(path)).run(None, {"h0": x}) for path in (model, result.path)
    )
    assert np.linalg.norm(after - before) <= 0.03 * np.linalg.norm(before)


def test_int8_takes_thresholds_and_fp8_the_largest_magnitudes(model, cache):
    int8 = scales(quantize(model, calibration_cache=cache).path)
    assert int8 == {"h0__scale": np.float32(4 / 127), "h1__scale": np.float32(4 / 127)}
    fp8 = scales(quantize(model, Precision.FP8, calibration_cache=cache).path)
    assert fp8 == {"h0__scale": np.float32(8 / 448), "h1__scale": np.float32(8 / 448)}


def test_a_cache_without_provenance_serves_with_a_warning(model, cache, caplog):
    os.remove(f"{cache}.json")
    result = quantize(model, Precision.FP8, calibration_cache=cache)
    assert scales(result.path)["h0__scale"] == np.float32(4 / 448)
    assert "it is unknown which model this cache was made for" in caplog.text
    assert result.report.macs is None
    assert result.report.coverage == 1.0


def test_a_cache_of_another_model_is_refused(model, cache, tmp_path):
    other = tiny_models.dense(tmp_path / "other.onnx", width=32)
    with pytest.raises(
        CalibrationError, match=r"m.calib: the calibration cache was made for anoth"
    ):
        quantize(other, calibration_cache=cache)
    assert not (tmp_path / "q.onnx").exists()


def test_weights_need_no_cache(model):
    result = quantize(model, Precision.INT8_WEIGHTS, ProfileSpec.parse(["batch=5"]))
    assert scales(result.path) == {}
    assert result.report.macs == 2 * 5 * 64 * 64
    assert result.calibration == {}
    with pytest.raises(SpecError, match="int8 needs the ranges of the activations"):
        quantize(model)


def test_the_output_is_another_file_and_replaces_what_was_there(model, cache, tmp_path):
    spec = QuantizationSpec(calibration_cache=cache)
    with pytest.raises(SpecError, match=r"m.onnx: it is one of the files to read"):
        quantize_onnx(model, model, Precision.INT8, spec)
    with pytest.raises(SpecError, match="No such file or directory"):
        quantize_onnx(model, tmp_path / "no" / "q.onnx", Precision.INT8, spec)
    (tmp_path / "q.onnx").write_text("old")
    with pytest.raises(SpecError, match=r"only 50.0% .*99.0% are asked for"):
        quantize(model, calibration_cache=cache, ops=("Gemm",), min_coverage=0.99)
    assert (tmp_path / "q.onnx").read_text() == "old"
    quantize(model, calibration_cache=cache)
    with pytest.raises(ModelError, match="has Q/DQ"):
        quantize_onnx(
            tmp_path / "q.onnx", tmp_path / "r.onnx", Precision.INT8_WEIGHTS, QuantizationSpec()
        )


def test_large_weights_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "_MAX_INLINE_BYTES", 1000)
    source = tiny_models.external_weights(tmp_path / "m.onnx")
    result = quantize(source, Precision.INT8_WEIGHTS)
    assert result.external_data == tmp_path / "q.onnx.data"
    assert (tmp_path / "q.onnx.data").stat().st_size == 64 * 64
    x = np.ones((1, 64), np.float32)
    found = ReferenceEvaluator(str(result.path)).run(None, {"x": x})[0]
    weight = np.fromfile(tmp_path / "weights.bin", np.float32).reshape(64, 64)
    assert np.abs(found - x @ weight).max() <= 64 * np.abs(weight).max() / 127 / 2


@pytest.mark.backend
def test_what_the_backend_does_not_build_is_left_alone(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    backend = load_backend("rtx")
    built = backend.capabilities.quantized_ops[Precision.INT8]
    path = tiny_models.conv_and_dense(tmp_path / "m.onnx")
    cache = tiny_models.calibration(path, tmp_path / "m.calib", {"x": 4.0, "c": 4.0})
    spec = QuantizationSpec(calibration_cache=cache)
    found = quantize_onnx(path, tmp_path / "q.onnx", Precision.INT8, spec, backend=backend)
    assert found.report.quantized == {op: 1 for op in ("Conv", "MatMul") if op in built}
    anywhere = quantize_onnx(path, tmp_path / "q.onnx", Precision.INT8, spec)
    assert anywhere.report.quantized == {"Conv": 1, "MatMul": 1}
    if "Conv" not in built:
        named = QuantizationSpec(calibration_cache=cache, ops=("Conv",))
        with pytest.raises(UnsupportedError, match="Conv in int8 is not supported"):
            quantize_onnx(path, tmp_path / "q.onnx", Precision.INT8, named, backend=backend)
