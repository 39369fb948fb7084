"""Ranges of a model's activations: from a cache as it is written, from data against NumPy."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from helpers import tiny_models
from onnx import numpy_helper

from trt_native.calibration.batches import read_batches
from trt_native.calibration.collect import ReferenceActivations
from trt_native.calibration.model_ranges import NO_RANGES, find_ranges, load_ranges
from trt_native.config import CalibrationMethod, CpuRuntime, Precision
from trt_native.errors import CalibrationError
from trt_native.graph.onnx_file import hash_files, read_model
from trt_native.shapes import TensorSpec


@pytest.fixture
def dense(tmp_path):
    return tiny_models.dense(tmp_path / "d.onnx")


@pytest.fixture
def cache(dense, tmp_path):
    """Ranges whose largest value is twice the threshold."""
    thresholds = {"h0": 4.0, "h1": 0.25}
    shapes = {"h0": ("3x64", "5x64")}
    return tiny_models.calibration(
        dense, tmp_path / "d.calib", thresholds, method="entropy", shapes=shapes
    )


def files_of(path):
    return hash_files(path, read_model(path))


class TestLoadRanges:
    def test_int8_takes_the_thresholds(self, dense, cache):
        found = load_ranges(cache, files_of(dense), Precision.INT8)
        assert found.amax == pytest.approx({"h0": 4.0, "h1": 0.25}, rel=1e-6)

    def test_fp8_takes_the_largest_values(self, dense, cache):
        found = load_ranges(cache, files_of(dense), Precision.FP8)
        assert found.amax == {"h0": 8.0, "h1": 0.5}

    def test_shapes_are_the_first_of_each_input(self, dense, cache):
        assert load_ranges(cache, files_of(dense), Precision.INT8).shapes == {"h0": (3, 64)}

    def test_the_origin_names_file_hash_and_method(self, dense, cache):
        assert load_ranges(cache, files_of(dense), Precision.INT8).origin == {
            "file": "d.calib",
            "sha256": hashlib.sha256(cache.read_bytes()).hexdigest(),
            "method": "entropy",
        }

    def test_a_cache_without_provenance(self, dense, cache, caplog):
        cache.with_name("d.calib.json").unlink()
        found = load_ranges(cache, files_of(dense), Precision.FP8)
        assert found.amax == pytest.approx({"h0": 4.0, "h1": 0.25}, rel=1e-6)
        assert found.shapes == {}
        assert found.origin["method"] is None
        assert "without d.calib.json it is unknown which model" in caplog.text

    def test_a_cache_of_another_model(self, cache, tmp_path):
        other = tiny_models.dense(tmp_path / "other.onnx", width=32)
        with pytest.raises(
            CalibrationError, match=r"was made for another model: d\.onnx"
        ) as caught:
            load_ranges(cache, files_of(other), Precision.INT8)
        assert str(caught.value).startswith(f"{cache}: ")

    def test_a_missing_cache(self, dense, tmp_path):
        with pytest.raises(CalibrationError, match=r"cannot read .*none\.calib: No such file"):
            load_ranges(tmp_path / "none.calib", files_of(dense), Precision.INT8)


class TestFindRanges:
    @pytest.fixture
    def arrays(self, rng):
        return [rng.standard_normal((3, 64)).astype(np.float32) * s for s in (1, 3, 2)]

    @pytest.fixture
    def batches(self, arrays, tmp_path):
        (tmp_path / "data").mkdir()
        for i, array in enumerate(arrays):
            np.savez(tmp_path / "data" / f"{i}.npz", h0=array)
        return read_batches(tmp_path / "data", [TensorSpec("h0", "float32", ("batch", 64))])

    @pytest.fixture
    def largest(self, dense, arrays):
        """The largest magnitudes before each of the two layers."""
        weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(dense).graph.initializer}
        hidden = [np.maximum(array @ weights["w0"], 0) for array in arrays]
        return {
            "h0": max(float(np.abs(array).max()) for array in arrays),
            "h1": max(float(array.max()) for array in hidden),
        }

    def test_minmax_takes_the_largest_values(self, dense, batches, largest):
        found = find_ranges(dense, batches, Precision.INT8, CalibrationMethod.MINMAX)
        assert found.amax == pytest.approx(largest, rel=1e-5)

    def test_the_default_method_clips(self, dense, batches, largest):
        found = find_ranges(dense, batches, Precision.INT8)
        assert found.origin["method"] == "mse"
        assert all(found.amax[name] < largest[name] for name in largest)
        assert all(found.amax[name] > largest[name] / 2 for name in largest)

    def test_fp8_takes_the_largest_values_with_any_method(self, dense, batches, largest):
        found = find_ranges(dense, batches, Precision.FP8, CalibrationMethod.ENTROPY)
        assert found.amax == pytest.approx(largest, rel=1e-5)
        assert found.origin["method"] == "minmax"

    def test_shapes_and_origin(self, dense, batches, tmp_path):
        source = ReferenceActivations(CpuRuntime.ONNX)
        found = find_ranges(dense, batches, Precision.INT8, CalibrationMethod.MINMAX, source=source)
        assert found.shapes == {"h0": (3, 64)}
        assert found.origin == {
            "data": str(tmp_path / "data"),
            "batches": 3,
            "method": "minmax",
            "runner": "onnx.reference",
        }

    def test_only_the_inputs_of_the_operators_to_quantize(self, dense, batches):
        found = find_ranges(dense, batches, Precision.FP8, ops=("Gemm",))
        assert set(found.amax) == {"h1"}


def test_no_ranges():
    assert (NO_RANGES.amax, NO_RANGES.shapes, NO_RANGES.origin) == ({}, {}, {})
