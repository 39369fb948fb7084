"""Plans with weights in INT4, built for real by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import lzma
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from helpers import tiny_models
from helpers.golden_unet import two_level_config
from helpers.passes import pass_records
from helpers.text_models import model as text_model
from helpers.text_models import normal

from trt_native import BuildConfig, Precision, ProfileSpec, build_plan
from trt_native.backends.native import DOCUMENTED_BLOCK_SIZES, DOCUMENTED_QUANTIZED_OPS
from trt_native.backends.registry import load_backend
from trt_native.builder.build import decide
from trt_native.builder.quantize_file import quantize_onnx
from trt_native.calibration.folder import write_batches
from trt_native.config import BLOCK_SIZES, CalibrationRunner, QuantizationSpec
from trt_native.errors import BuildError, SpecError, UnsupportedError
from trt_native.graph.onnx_file import read_model
from trt_native.models.latentsync import UNetConfig
from trt_native.models.latentsync.export import export_latentsync
from trt_native.passes.autocast import autocast
from trt_native.passes.quantize import quantize_model
from trt_native.verify.metrics import default_thresholds

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.backend

SPEC = ProfileSpec.parse(["batch=1:4:8"])
INT4 = Precision.INT4_WEIGHTS


def build(model, precision=INT4, profile=SPEC, backend="rtx", **options):
    spec = QuantizationSpec(**options)
    config = BuildConfig(
        profiles=(profile,) if profile else (),
        precision=precision,
        quantization=spec,
        compute_capabilities=("8.9",),
    )
    return build_plan(model, config, backend=backend)


def transformer(path, layers=4, width=768):
    """Attention and two linear layers, several times over; no norms, for the weights matter."""
    nodes, weights = [], {}
    for layer in range(layers):
        shapes = {"q": width, "k": width, "v": width, "o": width, "up": 4 * width}
        for i, (name, n) in enumerate(shapes.items()):
            weights[f"{name}{layer}"] = normal(10 * layer + i, width, n, scale=width**-0.5)
        down = normal(10 * layer + 9, 4 * width, width, scale=width**-0.5)
        weights[f"down{layer}"] = down
        nodes.append(f"""
            qx{layer} = MatMul(x{layer}, q{layer})
            kx{layer} = MatMul(x{layer}, k{layer})
            vx{layer} = MatMul(x{layer}, v{layer})
            kt{layer} = Transpose<perm = [0, 2, 1]>(kx{layer})
            s{layer} = MatMul(qx{layer}, kt{layer})
            p{layer} = Softmax(s{layer})
            m{layer} = MatMul(p{layer}, vx{layer})
            a{layer} = MatMul(m{layer}, o{layer})
            r{layer} = Add(x{layer}, a{layer})
            u{layer} = MatMul(r{layer}, up{layer})
            g{layer} = Relu(u{layer})
            d{layer} = MatMul(g{layer}, down{layer})
            x{layer + 1} = Add(r{layer}, d{layer})""")
    shape = f"float[1, 64, {width}]"
    text = f"({shape} x0) => ({shape} x{layers}) {{ {''.join(nodes)} }}"
    ir.save(text_model(text, 17, **weights), path)
    return path


@pytest.mark.parametrize(("size", "ratio"), [(None, 0.31), (16, 0.35), (128, 0.30)])
def test_linear_layers_take_a_quarter_of_the_plan(tmp_path, size, ratio):
    model = tiny_models.dense(tmp_path / "m.onnx", width=1024, layers=6)
    half, plan = build(model, Precision.FP16), build(model, block_size=size)
    assert len(plan.data) <= ratio * len(half.data)
    record = pass_records(plan.manifest)
    assert record["quantize"]["blocks"] == {str(size or 64): 6}
    assert record["quantize"]["coverage"] == 1.0
    assert record["quantize"]["errors"].keys() == {f"w{i}" for i in range(6)}
    assert record["quantize"]["error"].startswith("relative L2 error of weights 0.")
    assert "relative L2 error of weights 0." in record["quantize"]["summary"]
    assert record["autocast"]["reduced"]["DequantizeLinear"] == 6
    assert plan.manifest.precision["applied"] == "int4-weights"


def test_a_transformer_takes_a_third_of_the_plan(tmp_path):
    model = transformer(tmp_path / "m.onnx")
    half, plan = build(model, Precision.FP16, None), build(model, profile=None)
    assert len(plan.data) <= 0.35 * len(half.data)
    record = pass_records(plan.manifest)["quantize"]
    assert record["nodes"] == {"MatMul": 24}
    assert record["skipped"] == {"weight": {"MatMul": 8}}


def stored_bytes(path, profile):
    """Size of the weights in a plan: what it compresses to with random ones, less with one."""
    rng, sizes = np.random.default_rng(0), []
    for random in (True, False):
        model = read_model(path)
        for value in model.graph.initializers.values():
            shape = value.const_value.shape.numpy()
            if value.dtype == ir.DataType.INT4:
                numbers = rng.integers(-8, 8, shape) if random else np.full(shape, 3)
                value.const_value = ir.Tensor(numbers.astype(ml_dtypes.int4))
            elif value.dtype == ir.DataType.FLOAT16 and value.const_value.size >= 64:
                bits = rng.integers(0, 2**16, shape).astype(np.uint16) & 0xBBFF  # finite
                real = bits.view(np.float16) if random else np.full(shape, 0.01, np.float16)
                value.const_value = ir.Tensor(real)
        ir.save(model, path.with_name("filled.onnx"))
        plan = build(path.with_name("filled.onnx"), Precision.AUTO, profile)
        sizes.append(len(lzma.compress(plan.data, preset=1)))
    return sizes[0] - sizes[1]


@pytest.mark.slow
def test_a_unet_stores_a_third(tmp_path):
    path = tmp_path / "unet.onnx"
    export_latentsync(path, config=UNetConfig.from_mapping(two_level_config()), random_seed=0)
    profile = ProfileSpec.parse(["batch=1", "frames=2", "height=16", "width=16"])
    found = {}
    for fmt in ("fp16", "int4-weights"):
        model = read_model(path)
        if fmt == "int4-weights":
            report = quantize_model(model, {}, format=fmt)
            assert report.quantized["Conv"] >= 20
            assert report.weight_bytes_quantized > 0.97 * report.weight_bytes
        autocast(model, ir.DataType.FLOAT16)
        ir.save(model, tmp_path / f"{fmt}.onnx")
        found[fmt] = stored_bytes(tmp_path / f"{fmt}.onnx", profile)
    assert 0.2 <= found["int4-weights"] / found["fp16"] <= 0.35


def test_convolutions(tmp_path):
    kernels = {"k0": normal(0, 256, 256, 3, 3), "k1": normal(1, 256, 256, 1, 1)}
    text = """(float[1, 256, 16, 16] x) => (float[1, 256, 16, 16] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, k0)
        y = Conv(c, k1)
    }"""
    ir.save(text_model(text, 17, **kernels), tmp_path / "m.onnx")
    sizes = {
        precision: len(build(tmp_path / "m.onnx", precision, None).data)
        for precision in (Precision.INT8_WEIGHTS, INT4)
    }
    saved = (sizes[Precision.INT8_WEIGHTS] - sizes[INT4]) / (256 * 256 * 10)
    assert 0.4 <= saved <= 0.6, "bytes of each weight, less those of its scales"


def test_weights_are_fitted_to_calibration_data(tmp_path, rng):
    model = tiny_models.dense(tmp_path / "m.onnx")
    scale = np.where(np.arange(64) % 13 == 0, 30, 1).astype(np.float32)
    arrays = [{"h0": rng.standard_normal((4, 64), np.float32) * scale} for _ in range(3)]
    write_batches(tmp_path / "data", arrays, model="dense")
    options = {
        "calibration_data": str(tmp_path / "data"),
        "calibration_runner": CalibrationRunner.REFERENCE,
    }
    plan = build(model, **options)
    record = pass_records(plan.manifest)["quantize"]
    assert record["calibration"] == {
        "data": str(tmp_path / "data"), "batches": 3, "method": "awq", "runner": "onnx.reference",
    }  # fmt: skip
    assert all(e["products"] < e["nearest"] for e in record["errors"].values())
    assert record["scaled"] >= 1
    assert "; rounded to nearest: " in record["error"]
    assert plan.data != build(model).data
    # The same in a file, which is then built as it is.
    spec = QuantizationSpec(**options)
    written = quantize_onnx(model, tmp_path / "q.onnx", INT4, spec, backend="rtx")
    assert written.report.errors == record["errors"]
    assert written.to_dict()["calibration"] == record["calibration"]
    again = build(tmp_path / "q.onnx", Precision.AUTO)
    assert again.manifest.precision["quantized_in_model"] == ["int4"]
    planned = decide(
        model,
        BuildConfig(profiles=(SPEC,), precision=INT4, quantization=spec),
        backend="rtx",
    )
    assert pass_records(planned)["quantize"]["blocks"] == record["blocks"]


def test_fp16_and_bf16_arithmetic(tmp_path):
    for target in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        model = read_model(tiny_models.dense(tmp_path / "m.onnx"))
        autocast(model, target)
        ir.save(model, tmp_path / "reduced.onnx")
        record = pass_records(build(tmp_path / "reduced.onnx").manifest)["quantize"]
        assert record["nodes"] == {"MatMul": 1, "Gemm": 1}


def test_verification_knows_what_int4_costs(tmp_path):
    plan = build(tiny_models.dense(tmp_path / "m.onnx"))
    thresholds, why = default_thresholds(plan.manifest)
    assert thresholds.max_relative_error == 0.25
    assert why == "the default for a plan in int4-weights"


def test_what_does_not_go_together(tmp_path):
    model = tiny_models.dense(tmp_path / "m.onnx")
    with pytest.raises(SpecError, match="needs no ranges; it takes calibration data"):
        build(model, calibration_cache=tmp_path / "m.calib")
    with pytest.raises(SpecError, match="calibration method: no effect at precision int4-weights"):
        build(model, calibration_method="mse")
    with pytest.raises(SpecError, match="block size: no effect at precision int8-weights"):
        build(model, Precision.INT8_WEIGHTS, block_size=64)
    with pytest.raises(SpecError, match="block size 48 is none of: 16, 32, 64, 128"):
        build(model, block_size=48)
    for text, reason in (("int4", "it only stores weights so"), ("mxfp8", "writes no MXFP8")):
        with pytest.raises(
            UnsupportedError, match=f"precision {text} is not available: .*{reason}"
        ):
            Precision.parse(text)
    with pytest.raises(SpecError, match=r"only 0.0% .*2 .*no whole blocks|1 Gemm \(no whole"):
        build(tiny_models.dense(tmp_path / "n.onnx", width=17))


@pytest.mark.parametrize(
    ("precision", "target", "built"),
    [(INT4, "7.5", False), (INT4, "8.0", True), (Precision.BF16, "7.5", False),
     (Precision.INT8_WEIGHTS, "7.5", True)],
)  # fmt: skip
def test_gpus_that_lack_a_type(tmp_path, monkeypatch, precision, target, built):
    """TensorRT-RTX itself would fail to build those that are refused."""
    model = tiny_models.dense(tmp_path / "m.onnx")
    config = BuildConfig(profiles=(SPEC,), precision=precision, compute_capabilities=(target,))
    if built:
        assert build_plan(model, config, backend="rtx").data
        return
    with pytest.raises(UnsupportedError, match=f"{precision} for compute capability {target}"):
        build_plan(model, config, backend="rtx")
    backend = load_backend("rtx")
    monkeypatch.setattr(backend, "capabilities", replace(backend.capabilities, first_targets={}))
    with pytest.raises(BuildError):
        build_plan(model, config, backend=backend)


def test_a_backend_builds_the_blocks_that_it_has(tmp_path, monkeypatch):
    model = tiny_models.conv_and_dense(tmp_path / "m.onnx")
    backend = load_backend("rtx")
    assert backend.capabilities.block_sizes == BLOCK_SIZES
    assert pass_records(build(model).manifest)["quantize"]["nodes"] == {"Conv": 1, "MatMul": 1}
    documented = replace(
        backend.capabilities,
        block_sizes=DOCUMENTED_BLOCK_SIZES,
        quantized_ops=DOCUMENTED_QUANTIZED_OPS,
    )
    monkeypatch.setattr(backend, "capabilities", documented)
    with pytest.raises(UnsupportedError, match=r"block size of 32 is not .* builds 64, 128"):
        build(model, backend=backend, block_size=32)
    with pytest.raises(UnsupportedError, match="Conv in int4-weights is not supported"):
        build(model, backend=backend, ops=("Conv",))
    with pytest.raises(SpecError, match=r"1 MatMul \(no whole .* builds no Conv in int4"):
        build(model, backend=backend)
    wide = tiny_models.dense(tmp_path / "n.onnx", width=128)
    record = pass_records(build(wide, backend=backend).manifest)["quantize"]
    assert record["blocks"] == {"64": 2}
