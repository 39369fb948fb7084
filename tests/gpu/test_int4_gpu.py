"""Weights in INT4 on the GPU: plans against the arithmetic that their ONNX files say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from helpers import tiny_models
from helpers.golden_unet import export
from helpers.metrics import relative_error
from helpers.passes import pass_records
from helpers.text_models import model as text_model
from helpers.text_models import normal
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Precision, ProfileSpec, QuantizationSpec, Session, build_plan
from trt_native.backends.registry import load_backend
from trt_native.builder.engine_calibration import EngineActivations
from trt_native.builder.quantize_file import quantize_onnx
from trt_native.builder.select_precision import time_sessions
from trt_native.calibration.batches import read_batches
from trt_native.calibration.collect import ReferenceActivations
from trt_native.calibration.folder import write_batches
from trt_native.calibration.rows import RowReader
from trt_native.config import CpuRuntime
from trt_native.graph.onnx_file import read_model, tensor_specs

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

INT4 = Precision.INT4_WEIGHTS
DATA = Path(__file__).parents[2] / "calib_data" / "latentsync_small"

PRODUCTS = {
    "MatMul": ("MatMul(x, w)", (2, 3, 256), (256, 64), (2, 3, 64)),
    "Gemm": ("Gemm(x, w, b)", (3, 256), (256, 64), (3, 64)),
    "Gemm, transposed": ("Gemm<transB = 1>(x, w, b)", (3, 256), (64, 256), (3, 64)),
    "Conv": (
        "Conv<pads = [1, 1, 1, 1]>(x, w, b)", (2, 256, 8, 8), (64, 256, 3, 3), (2, 64, 8, 8),
    ),
    "Conv 1x1": ("Conv(x, w, b)", (2, 256, 8, 8), (64, 256, 1, 1), (2, 64, 8, 8)),
}  # fmt: skip


def saved(path, name):
    expression, shape, kernel, result = PRODUCTS[name]
    weights = {"w": normal(1, *kernel, scale=0.1)}
    if "b)" in expression:
        weights["b"] = normal(2, kernel[1] if name == "Gemm" else kernel[0])
    x, y = (", ".join(map(str, extents)) for extents in (shape, result))
    ir.save(text_model(f"(float[{x}] x) => (float[{y}] y) {{ y = {expression} }}", 17, **weights),
            path)  # fmt: skip
    return path, normal(3, *shape)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_what_the_file_says(tmp_path, name, size):
    capabilities = load_backend().capabilities
    if size not in capabilities.block_sizes:
        pytest.skip("the backend builds no such blocks")
    if PRODUCTS[name][0][:4] not in {op[:4] for op in capabilities.quantized_ops[INT4]}:
        pytest.skip("the backend builds no such products")
    path, x = saved(tmp_path / "m.onnx", name)
    spec = QuantizationSpec(block_size=size)
    report = quantize_onnx(path, tmp_path / "q.onnx", INT4, spec, backend="auto").report
    assert report.blocks == {str(size): 1}
    expected = ReferenceEvaluator(str(tmp_path / "q.onnx")).run(None, {"x": x})[0]
    exact = ReferenceEvaluator(str(path)).run(None, {"x": x})[0]
    found = {}
    for precision in (INT4, Precision.FP16):
        quantization = spec if precision is INT4 else QuantizationSpec()
        config = BuildConfig(precision=precision, quantization=quantization)
        with Session(build_plan(path, config)) as session:
            found[precision] = session.run({"x": x})["y"]
    errors = relative_error(found[INT4], expected), relative_error(found[INT4], exact)
    print(f"{name}, {size}: {errors[0]:.2e} against the file, {errors[1]:.2e} against FP32")
    assert errors[0] <= 2e-3
    assert 0.02 <= errors[1] <= 0.2
    assert relative_error(found[Precision.FP16], exact) <= 2e-3


@pytest.mark.parametrize("target", [Precision.BF16, Precision.FP16], ids=str)
def test_a_quantized_file_in_other_arithmetic(tmp_path, target):
    path, x = saved(tmp_path / "m.onnx", "MatMul")
    quantize_onnx(path, tmp_path / "q.onnx", INT4, QuantizationSpec())
    expected = ReferenceEvaluator(str(tmp_path / "q.onnx")).run(None, {"x": x})[0]
    with Session(build_plan(tmp_path / "q.onnx", BuildConfig(precision=target))) as session:
        found = session.run({"x": x})["y"]
    assert relative_error(found, expected) <= (2e-2 if target is Precision.BF16 else 2e-3)


def test_rows_of_an_engine_are_those_of_the_reference(tmp_path, rng):
    model = tiny_models.dense(tmp_path / "m.onnx", layers=4)
    batches = [{"h0": rng.standard_normal((n, 64), np.float32)} for n in (4, 2, 4)]
    readers = [RowReader("h0"), RowReader("h2"), RowReader("h3")]
    engine = EngineActivations(load_backend(), memory_bytes=4 * 64 * 4)
    found = engine.rows(read_model(model), readers, batches, None)
    expected = ReferenceActivations(CpuRuntime.ONNX).rows(read_model(model), readers, batches, None)
    for reader in readers:
        assert relative_error(found[reader], expected[reader]) <= 1e-3, reader


def test_fitted_weights_are_closer_on_other_data(tmp_path, rng):
    model = tiny_models.dense(tmp_path / "m.onnx", width=256)
    scale = np.where(np.arange(256) % 13 == 0, 30, 1).astype(np.float32)
    batches = [{"h0": rng.standard_normal((64, 256), np.float32) * scale} for _ in range(5)]
    write_batches(tmp_path / "data", batches[:4], model="dense")
    profiles = (ProfileSpec.parse(["batch=64"]),)
    specs = {
        "fp32": (Precision.FP32, QuantizationSpec()),
        "nearest": (INT4, QuantizationSpec()),
        "fitted": (INT4, QuantizationSpec(calibration_data=str(tmp_path / "data"))),
    }
    results = {}
    for name, (precision, spec) in specs.items():
        config = BuildConfig(profiles=profiles, precision=precision, quantization=spec)
        plan = build_plan(model, config)
        with Session(plan) as session:
            results[name] = session.run(batches[4])["h2"].astype(np.float64)
    record = pass_records(plan.manifest)["quantize"]
    print(record["error"])
    assert "engine in FP32" in record["calibration"]["runner"]
    errors = {n: relative_error(results[n], results["fp32"]) for n in ("nearest", "fitted")}
    print("relative L2 errors:", errors)
    assert errors["fitted"] < errors["nearest"]


@pytest.mark.slow
def test_the_small_unet(tmp_path):
    """Errors on batches held back, beside those of rounding to nearest."""
    path = export(tmp_path / "unet.onnx")
    batches = read_batches(DATA, tensor_specs(read_model(path))[0])
    write_batches(tmp_path / "data", batches[:16], model="small U-Net")
    with Session(build_plan(path, _unet(Precision.FP32, QuantizationSpec()))) as session:
        expected = [session.run(batch)["noise_pred"] for batch in batches[-2:]]
    specs = {
        "fp16": (Precision.FP16, QuantizationSpec()),
        "nearest": (INT4, QuantizationSpec(preset="diffusion-unet")),
        "fitted": (
            INT4,
            QuantizationSpec(preset="diffusion-unet", calibration_data=str(tmp_path / "data")),
        ),
    }
    worst = {}
    for name, (precision, spec) in specs.items():
        plan = build_plan(path, _unet(precision, spec))
        print(f"{name}: {len(plan.data) / 2**20:.1f} MiB")
        with Session(plan) as session:
            found = [session.run(batch)["noise_pred"] for batch in batches[-2:]]
        worst[name] = max(map(relative_error, found, expected))
    print("largest relative L2 error:", worst)
    assert worst["fp16"] <= 0.02
    assert worst["fitted"] < worst["nearest"] <= 0.3


def _unet(precision, spec):
    dims = ProfileSpec.parse(["batch=2", "frames=4", "height=16", "width=16", "tokens=50"])
    return BuildConfig(profiles=(dims,), precision=precision, quantization=spec)


@pytest.mark.slow
def test_times_of_linear_layers(tmp_path):
    """Prints what a plan of linear layers takes for a few rows, and for many; judges nothing."""
    model = tiny_models.dense(tmp_path / "m.onnx", width=4096, layers=4)
    for rows in (1, 16, 1024):
        plans = {
            precision: build_plan(
                model,
                BuildConfig(profiles=(ProfileSpec.parse([f"batch={rows}"]),), precision=precision),
            )
            for precision in (Precision.FP16, Precision.INT8_WEIGHTS, INT4)
        }
        sessions = [Session(plan) for plan in plans.values()]
        x = {"h0": normal(1, rows, 4096)}
        times = time_sessions(sessions, [x] * len(sessions))
        for session in sessions:
            session.close()
        for (precision, plan), ms in zip(plans.items(), times, strict=True):
            print(f"{rows} rows, {precision}: {ms:.3f} ms, {len(plan.data) / 2**20:.1f} MiB")
        assert len(plans[INT4].data) < 0.3 * len(plans[Precision.FP16].data)
