"""Quantized plans built for real by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models
from helpers.passes import pass_records

from trt_native import BuildConfig, IoPrecision, Precision, ProfileSpec, build_plan
from trt_native.backends.registry import load_backend
from trt_native.backends.rtx import RtxBackend
from trt_native.builder.build import decide
from trt_native.builder.engine_calibration import activation_source
from trt_native.builder.plan_cache import EngineCache
from trt_native.calibration.batches import read_batches
from trt_native.calibration.collect import calibrate
from trt_native.calibration.folder import write_batches
from trt_native.config import CalibrationMethod, CalibrationRunner, QuantizationSpec
from trt_native.errors import CalibrationError, SpecError, UnsupportedError
from trt_native.graph.onnx_file import read_model, tensor_specs
from trt_native.passes.autocast import autocast
from trt_native.passes.quantize import quantize_model

trt = pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.backend

SPEC = ProfileSpec.parse(["batch=1:4:8"])
FORMATS = [Precision.INT8, Precision.FP8, Precision.INT8_WEIGHTS]


def config(model, precision, amax=4.0, **options):
    fields = BuildConfig.__dataclass_fields__
    build = {name: options.pop(name) for name in list(options) if name in fields}
    if precision in (Precision.INT8, Precision.FP8) and "calibration_cache" not in options:
        path = model.with_name("m.calib")
        options["calibration_cache"] = tiny_models.calibration(model, path, amax)
    return BuildConfig(
        profiles=(SPEC,), precision=precision, quantization=QuantizationSpec(**options), **build
    )


def build(model, precision, amax=4.0, **options):
    return build_plan(model, config(model, precision, amax, **options), backend="rtx")


@pytest.mark.parametrize("precision", FORMATS, ids=str)
def test_linear_layers(tmp_path, precision):
    plan = build(tiny_models.dense(tmp_path / "m.onnx"), precision, min_coverage=1.0)
    record = plan.manifest.precision
    assert (record["requested"], record["applied"]) == (precision, precision)
    record = pass_records(plan.manifest)
    assert record["quantize"]["nodes"] == {"MatMul": 1, "Gemm": 1}
    assert record["quantize"]["coverage"] == 1.0
    assert record["quantize"]["macs"] == 2 * 4 * 64 * 64
    assert record["quantize"]["not_built"] == ""
    assert record["autocast"]["target"] == "fp16"
    products = {"DequantizeLinear": 2, "MatMul": 1, "Gemm": 1}
    if precision.needs_ranges:  # they add up in FP32
        products = {**products, "QuantizeLinear": 2, "DequantizeLinear": 4}
        assert record["autocast"]["kept"] == {"accumulator": products}
        products = {}
    assert record["autocast"]["reduced"] == {**products, "Relu": 2}
    assert [tensor.dtype for tensor in plan.manifest.tensors] == ["float32", "float32"]
    assert plan.manifest.options["precision"] == str(precision)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8], ids=str)
def test_data_instead_of_a_cache(tmp_path, rng, precision):
    model = tiny_models.dense(tmp_path / "m.onnx")
    arrays = [{"h0": rng.standard_normal((4, 64), np.float32)} for _ in range(3)]
    write_batches(tmp_path / "data", arrays, model="dense")
    batches = read_batches(tmp_path / "data", tensor_specs(read_model(model))[0])
    method = CalibrationMethod.MSE if precision is Precision.INT8 else CalibrationMethod.MINMAX
    reference = activation_source(CalibrationRunner.REFERENCE)
    calibrate(model, batches, method=method, source=reference).save(tmp_path / "own.calib")

    given = {
        "calibration_data": str(tmp_path / "data"),
        "calibration_cache": None,
        "calibration_runner": CalibrationRunner.REFERENCE,
    }
    plan = build(model, precision, calibration_method=CalibrationMethod.MSE, **given)
    assert plan.data == build(model, precision, calibration_cache=tmp_path / "own.calib").data
    assert pass_records(plan.manifest)["quantize"]["calibration"] == {
        "data": str(tmp_path / "data"),
        "batches": 3,
        "method": str(method),
        "runner": "onnx.reference",
    }
    build_config = config(model, precision, **given)
    planned = decide(model, build_config, backend="rtx")
    assert pass_records(planned)["quantize"]["coverage"] == 1.0
    with pytest.raises(SpecError, match="calibration: no effect at precision int8-weights"):
        build(model, Precision.INT8_WEIGHTS, **given)
    with pytest.raises(SpecError, match="give one of them"):
        build(model, precision, **{**given, "calibration_cache": tmp_path / "own.calib"})


def test_calibration_data_counts_for_the_cache(tmp_path, rng):
    model = tiny_models.dense(tmp_path / "m.onnx")
    arrays = [{"h0": rng.standard_normal((4, 64), np.float32)} for _ in range(2)]
    write_batches(tmp_path / "data", arrays, model="dense")
    cache = EngineCache(tmp_path / "cache")
    build_config = config(
        model, Precision.INT8, calibration_data=str(tmp_path / "data"), calibration_cache=None
    )
    assert not cache.build_plan(model, build_config, backend="rtx").cached
    assert cache.build_plan(model, build_config, backend="rtx").cached
    np.savez(tmp_path / "data" / "batch_0000.npz", h0=2 * arrays[0]["h0"])
    assert not cache.build_plan(model, build_config, backend="rtx").cached
    source = f"{tmp_path / 'own.py'}:batches"
    (tmp_path / "own.py").write_text(
        "import numpy as np\ndef batches(): yield {'h0': np.ones((4, 64), np.float32)}\n"
    )
    by_function = config(model, Precision.INT8, calibration_data=source, calibration_cache=None)
    for _ in range(2):
        assert not cache.build_plan(model, by_function, backend="rtx").cached


def test_the_manifest_names_the_calibration(tmp_path):
    plan = build(tiny_models.dense(tmp_path / "m.onnx"), Precision.INT8, exclude=("/dense.1",))
    record = pass_records(plan.manifest)["quantize"]
    assert re.fullmatch("[0-9a-f]{64}", record["calibration"].pop("sha256"))
    assert record["calibration"] == {"file": "m.calib", "method": "minmax"}
    assert record["skipped"] == {"skip": {"Gemm": 1}}
    assert plan.manifest.options["quantization"]["exclude"] == ["/dense.1"]


@pytest.mark.parametrize("precision", FORMATS, ids=str)
def test_weights_make_the_plan_smaller(tmp_path, precision):
    model = tiny_models.dense(tmp_path / "m.onnx", width=1024, layers=6)
    half = build(model, Precision.FP16)
    small = build(model, precision)
    assert len(small.data) <= 0.62 * len(half.data)


def test_what_the_backend_cannot_build_stays_and_is_told(tmp_path):
    model = tiny_models.conv_and_dense(tmp_path / "m.onnx")
    record = pass_records(build(model, Precision.INT8).manifest)["quantize"]
    assert record["nodes"] == {"MatMul": 1}
    assert record["skipped"] == {"operator": {"Conv": 1}}
    assert record["coverage"] == round(64 / (64 + 32), 4)
    assert re.fullmatch(r"TensorRT-RTX 1\.\S+ builds no Conv in int8", record["not_built"])
    planned = decide(model, config(model, Precision.INT8), backend="rtx")
    raised = {"raised", "summary"}  # which only a rewritten model tells
    assert {**pass_records(planned)["quantize"], **{k: record[k] for k in raised}} == record
    with pytest.raises(SpecError, match=r"66.7% .*70.0% are asked for.* builds no Conv in int8$"):
        build(model, Precision.INT8, min_coverage=0.7)
    with pytest.raises(
        UnsupportedError, match=r"Conv in int8 is not supported: it builds Gemm, MatMul in that"
    ):
        build(model, Precision.INT8, ops=("Conv", "MatMul"))


def test_convolutions_in_fp8_and_with_int8_weights(tmp_path):
    model = tiny_models.conv_and_dense(tmp_path / "m.onnx")
    for precision in (Precision.FP8, Precision.INT8_WEIGHTS):
        record = pass_records(build(model, precision).manifest)["quantize"]
        assert record["nodes"] == {"Conv": 1, "MatMul": 1}


def test_newer_versions_build_convolutions_in_int8():
    class Newer:
        __version__ = "1.7.1.116"

        def __getattr__(self, name):
            return getattr(trt, name)

    assert RtxBackend(Newer()).capabilities.quantized_ops[Precision.INT8] == {
        "Conv", "MatMul", "Gemm",
    }  # fmt: skip
    if trt.__version__ < "1.7":
        built = load_backend("rtx").capabilities.quantized_ops
        assert built[Precision.INT8] == {"MatMul", "Gemm"}
        assert built[Precision.FP8] == built[Precision.INT8_WEIGHTS] >= {"Conv"}


def test_ranges_come_from_a_cache_of_this_model(tmp_path):
    model = tiny_models.dense(tmp_path / "m.onnx")
    with pytest.raises(SpecError, match=r"precision fp8 needs the ranges .*give a calibration cac"):
        build(model, Precision.FP8, calibration_cache=None)
    other = tiny_models.dense(tmp_path / "other.onnx", width=32)
    with pytest.raises(CalibrationError, match=r"was made for another model: m.onnx"):
        build(
            other,
            Precision.INT8,
            calibration_cache=config(model, Precision.INT8).quantization.calibration_cache,
        )
    with pytest.raises(SpecError, match=r"only 0.0% .*2 tensors have no range: h0, h1"):
        build(model, Precision.INT8, amax={"elsewhere": 1.0})


def test_an_fp16_graph_keeps_its_types(tmp_path):
    model = tiny_models.dense(tmp_path / "m.onnx", dtype=onnx.TensorProto.FLOAT16)
    record = pass_records(build(model, Precision.INT8).manifest)
    assert record["quantize"]["nodes"] == {"MatMul": 1, "Gemm": 1}
    assert "autocast" not in record
    with pytest.raises(SpecError, match="io_precision: no effect"):
        build(model, Precision.INT8, io_precision=IoPrecision.FP32)


def test_an_fp16_graph_is_calibrated(tmp_path):
    model = tiny_models.dense(tmp_path / "m.onnx", dtype=onnx.TensorProto.FLOAT16)
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float16)
    np.savez(tmp_path / "x.npz", h0=x)
    data = {"calibration_cache": None, "calibration_data": str(tmp_path / "x.npz")}
    record = pass_records(build(model, Precision.INT8, **data).manifest)
    assert record["quantize"]["nodes"] == {"MatMul": 1, "Gemm": 1}


def test_nodes_kept_in_fp32_are_not_quantized(tmp_path):
    model = tiny_models.dense(tmp_path / "m.onnx", name="x__dense.1__y")
    record = pass_records(build(model, Precision.INT8, keep_fp32=("*/dense.1",)).manifest)
    assert record["quantize"]["skipped"] == {"skip": {"Gemm": 1}}
    assert record["autocast"]["kept"] == {
        "keep_fp32": {"Gemm": 1},
        "accumulator": {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1},
    }


def quantized_file(tmp_path):
    model = read_model(tiny_models.dense(tmp_path / "m.onnx"))
    quantize_model(model, {"h0": 4.0, "h1": 4.0})
    ir.save(model, tmp_path / "q.onnx")
    return tmp_path / "q.onnx"


@pytest.mark.parametrize("precision", list(Precision)[:5], ids=str)
def test_a_quantized_file_is_built_with_its_rest_reduced(tmp_path, precision):
    manifest = build(quantized_file(tmp_path), precision).manifest
    record = pass_records(manifest)
    assert manifest.arithmetic == f"{manifest.precision['applied']} with Q/DQ nodes of int8"
    if precision in (Precision.FP32, Precision.TF32):
        assert "autocast" not in record
    else:
        assert manifest.precision["applied"] == "bf16" if precision is Precision.BF16 else "fp16"
        place = "reduced" if precision is Precision.BF16 else "kept"
        found = record["autocast"][place]
        assert (found if place == "reduced" else found["accumulator"])["MatMul"] == 1
        assert record["autocast"]["reduced"]["Relu"] == 2


def test_a_quantized_file_is_not_quantized_again(tmp_path):
    with pytest.raises(SpecError, match=r"q.onnx has Q/DQ nodes already"):
        build(quantized_file(tmp_path), Precision.INT8)


def network_of(path):
    """TensorRT's own view of a strongly typed network."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path))
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return [(layer.type, [layer.get_input(i) for i in range(layer.num_inputs)], layer.get_output(0))
            for layer in layers], (builder, network, parser, logger)  # fmt: skip


@pytest.mark.parametrize("fmt", ["int8", "fp8"])
def test_tensorrt_sees_linear_layers_in_fp32_and_all_else_in_fp16(tmp_path, fmt):
    model = read_model(tiny_models.conv_and_dense(tmp_path / "m.onnx"))
    quantize_model(model, {"x": 4.0, "c": 4.0}, format=fmt)
    autocast(model, ir.DataType.FLOAT16, io_precision="fp16")
    ir.save(model, tmp_path / "q.onnx")
    layers, _alive = network_of(tmp_path / "q.onnx")
    types = trt.LayerType
    packed = trt.int8 if fmt == "int8" else trt.fp8
    quantizers = [
        (inputs[0].dtype, out.dtype) for kind, inputs, out in layers if kind == types.QUANTIZE
    ]
    assert quantizers == [(trt.float16, packed), (trt.float32, packed)]
    products = [
        (kind, {tensor.dtype for tensor in (*inputs, out) if tensor is not None})
        for kind, inputs, out in layers
        if kind in (types.CONVOLUTION, types.MATRIX_MULTIPLY)
    ]
    assert products == [
        (types.CONVOLUTION, {trt.float16}),
        (types.MATRIX_MULTIPLY, {trt.float32}),
    ]
    assert layers[-1][2].dtype == trt.float16
