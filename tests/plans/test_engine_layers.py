"""Layers that compute in INT8 or FP8, from the engine inspector's JSON."""

from __future__ import annotations

import pytest
from helpers import tiny_models

from trt_native import BuildConfig, Precision, ProfileSpec, QuantizationSpec, build_plan
from trt_native.builder import build as build_module
from trt_native.errors import PlanError
from trt_native.plans.engine_layers import parse_layers, quantized_layers


def layer(name, kind, inputs, outputs):
    tensors = [[{"Name": "t", "Datatype": text} for text in side] for side in (inputs, outputs)]
    return {"Name": name, "LayerType": kind, "Inputs": tensors[0], "Outputs": tensors[1]}


LAYERS = [
    layer("to int8", "Reformat", ["Half"], ["Int8"]),
    layer("q", "Quantize", ["FP16"], ["Int8"]),
    layer("gemm", "gemm", ["Int8", "Int8"], ["FP16"]),
    layer(
        "conv", "CaskConvolution", ["Two wide channel vectorized row major Int8 format"], ["Int8"]
    ),
    layer("dq", "Dequantize", ["Int8"], ["FP16"]),
    layer("matmul", "MatrixMultiply", ["FP8", "FP8"], ["FP16"]),
    layer("relu", "PointWiseV2", ["FP16"], ["FP16"]),
]


def test_layers_that_compute_in_int8_are_distinguished_from_conversions():
    assert quantized_layers(parse_layers(LAYERS)) == {
        "layers": 7,
        "outputs": {"fp16": 4, "int8": 3},
        "int8": ["gemm", "conv"],
        "fp8": ["matmul"],
    }


def test_names_alone_are_not_enough():
    assert quantized_layers(parse_layers([{"Name": "a"}, {"Name": "b"}])) is None
    assert quantized_layers(()) is None


class TestManifest:
    """Manifest entries of a build on a machine with a GPU, with made-up inspector output."""

    pytestmark = pytest.mark.backend

    @pytest.fixture
    def build(self, tmp_path):
        pytest.importorskip("tensorrt_rtx")
        model = tiny_models.dense(tmp_path / "m.onnx")
        profiles = (ProfileSpec.parse(["batch=4"]),)

        def build(precision):
            quantization = QuantizationSpec()
            if precision is Precision.INT8:
                cache = tiny_models.calibration(model, tmp_path / "m.calib", 4.0)
                quantization = QuantizationSpec(calibration_cache=cache)
            config = BuildConfig(profiles=profiles, precision=precision, quantization=quantization)
            return build_plan(model, config, backend="rtx").manifest.precision

        return build

    def test_null_without_a_gpu(self, build, monkeypatch):
        monkeypatch.setattr(build_module, "gpu_info", lambda: None)
        assert build(Precision.INT8)["engine_layers"] is None
        assert "engine_layers" not in build(Precision.FP16)

    @pytest.mark.parametrize("readable", [True, False])
    def test_with_a_gpu(self, build, monkeypatch, readable):
        class Engine:
            def __init__(self, plan, backend):
                if not readable:
                    raise PlanError("for another GPU")

            def __enter__(self):
                return self

            def __exit__(self, *exception):
                pass

            def layers(self):
                return LAYERS

        class Gpu:
            name, compute_capability, driver, free_bytes = "made up", "9.0", "13.0", 2**34

        monkeypatch.setattr(build_module, "gpu_info", Gpu)
        monkeypatch.setattr("trt_native.runtime.engine.Engine", Engine)
        found = build(Precision.INT8)["engine_layers"]
        assert found == (quantized_layers(parse_layers(LAYERS)) if readable else None)
