"""The golden U-Net quantized, through onnx.reference, against outputs of the original."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models
from helpers.golden_unet import cases, two_level_config
from helpers.passes import pass_records
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Precision, ProfileSpec, build_plan
from trt_native.config import QuantizationSpec
from trt_native.graph.onnx_file import read_model
from trt_native.graph.quantizable import quantizable_tensors
from trt_native.models.latentsync import UNetConfig
from trt_native.models.latentsync.export import export_latentsync
from trt_native.passes.autocast import autocast
from trt_native.passes.quantize import quantize_model

pytestmark = pytest.mark.slow

SHAPES = {"latents": (2, 13, 16, 32, 32), "encoder_hidden_states": (32, 10, 24)}


def golden():
    for case in cases():
        case["timestep"] = case["timestep"].reshape(1)
        yield {k: v for k, v in case.items() if k != "noise_pred"}, case["noise_pred"]


@pytest.fixture(scope="module")
def ranges(golden_onnx):
    """Largest magnitude of every tensor to quantize, over the golden cases."""
    model = ir.to_proto(read_model(golden_onnx))
    names = quantizable_tensors(read_model(golden_onnx))
    inputs = {value.name for value in model.graph.input}
    made = [name for name in names if name not in inputs]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made)
    amax = dict.fromkeys(names, 0.0)
    for feeds, _ in golden():
        outputs = ReferenceEvaluator(model).run([*made], feeds)
        for name, array in (*zip(made, outputs, strict=True), *feeds.items()):
            if name in amax:
                amax[name] = max(amax[name], float(np.abs(array).max()))
    return amax


def worst(model, most=None):
    """Largest relative L2 error over the golden cases, or the first of them."""
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    errors = []
    for feeds, expected in itertools.islice(golden(), most):
        found = evaluator.run(None, feeds)[0].astype(np.float64)
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    print("relative L2 errors:", ", ".join(f"{error:.4f}" for error in errors))
    return max(errors)


@pytest.mark.parametrize(
    ("fmt", "bound", "quantized"),
    [
        ("int8", 0.08, {"MatMul": 244, "Conv": 54}),
        ("fp8", 0.08, {"MatMul": 244}),
        ("int8-weights", 0.02, {"MatMul": 244, "Conv": 54}),
    ],
)
def test_the_error_is_within_its_bound(golden_onnx, ranges, fmt, bound, quantized):
    model = read_model(golden_onnx)
    known = {} if fmt == "int8-weights" else ranges
    report = quantize_model(model, known, format=fmt, preset="diffusion-unet", shapes=SHAPES)
    assert report.quantized == quantized
    assert report.without_range == ()
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert worst(model) <= bound
    autocast(model, ir.DataType.FLOAT16)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert worst(model, most=1) <= bound  # NumPy's FP16 products take long


@pytest.mark.backend
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_tensorrt_rtx_builds_one(precision, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    path, config = tmp_path / "unet.onnx", UNetConfig.from_mapping(two_level_config())
    export_latentsync(path, config=config, random_seed=0)
    ranges = dict.fromkeys(quantizable_tensors(read_model(path)), 4.0)
    config = BuildConfig(
        precision=precision,
        profiles=(ProfileSpec.parse(["batch=1", "frames=2", "height=16", "width=16"]),),
        quantization=QuantizationSpec(
            calibration_cache=tiny_models.calibration(path, tmp_path / "unet.calib", ranges),
            preset="diffusion-unet",
            ops=("MatMul",),
            min_coverage=0.4,
        ),
        compute_capabilities=("8.9",),
    )
    manifest = build_plan(path, config, backend="rtx").manifest
    assert pass_records(manifest)["quantize"]["nodes"] == {"MatMul": 112}
    assert pass_records(manifest)["autocast"]["target"] == "fp16"
