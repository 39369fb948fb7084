"""INT8 that a backend does not build, left out; against onnx.reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.passes import pass_records
from helpers.text_models import model
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Precision, build_plan
from trt_native.backends.registry import load_backend
from trt_native.errors import UnsupportedError
from trt_native.passes.bypass_quantizers import bypass_quantizers

WEIGHT = np.random.default_rng(0).integers(-90, 90, (16, 16, 3, 3)).astype(np.int8)
SCALE = {"s": np.array(0.05, np.float32), "z": np.array(0, np.int8)}
QUANTIZED = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
WEIGHTS = "w = DequantizeLinear (wq, s, z)"


def convolution(operator="Conv", before="d", more="", outputs="float[1,16,h,w] y"):
    return model(
        f"""(float[1,16,8,8] x) => ({outputs}) {{
            {QUANTIZED} {WEIGHTS} {more} [product] y = {operator} ({before}, w)
        }}""",
        opset=21, wq=WEIGHT, shape=np.array([1, 16, 8, 8]), **SCALE,
    )  # fmt: skip


def products(graph):
    return [node for node in graph.graph if node.op_type in ("Conv", "ConvTranspose")]


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("moved", [False, True])
def test_the_product_reads_what_was_quantized(operator, moved):
    graph = convolution(operator, "r", "r = Reshape (d, shape)") if moved else convolution(operator)
    assert bypass_quantizers(products(graph)) == {operator: 1}
    assert bypass_quantizers(products(graph)) == {}
    assert [n.op_type for n in graph.graph].count("QuantizeLinear") == 0
    made = ir.to_proto(graph)
    onnx.checker.check_model(made, full_check=True)
    x = np.random.default_rng(1).standard_normal((1, 16, 8, 8), np.float32)
    plain = model(
        f"(float[1,16,8,8] x) => (float[1,16,h,w] y) {{ {WEIGHTS} y = {operator} (x, w) }}",
        opset=21, wq=WEIGHT, **SCALE,
    )  # fmt: skip
    (expected,) = ReferenceEvaluator(ir.to_proto(plain)).run(None, {"x": x})
    (found,) = ReferenceEvaluator(made).run(None, {"x": x})
    np.testing.assert_array_equal(found, expected)


def test_other_readers_keep_the_quantized_activation():
    graph = convolution(more="z2 = Relu (d)", outputs="float[1,16,h,w] y, float[1,16,8,8] z2")
    bypass_quantizers(products(graph))
    kinds = [n.op_type for n in graph.graph]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 2


def test_numbers_that_come_as_int8_are_refused():
    graph = model(
        f"""(int8[1,16,8,8] x) => (float[1,16,h,w] y) {{
            d = DequantizeLinear (x, s, z) {WEIGHTS} [product] y = Conv (d, w)
        }}""",
        opset=21, wq=WEIGHT, **SCALE,
    )  # fmt: skip
    with pytest.raises(
        UnsupportedError, match="Conv 'product' multiplies INT8 numbers that are not"
    ):
        bypass_quantizers(products(graph))


@pytest.mark.backend
@pytest.mark.parametrize("precision", [Precision.AUTO, Precision.FP32])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_a_quantized_convolution_is_built(tmp_path, operator, precision):
    pytest.importorskip("tensorrt_rtx")
    backend = load_backend("rtx")
    path = tmp_path / "m.onnx"
    ir.save(convolution(operator), path)
    manifest = build_plan(path, BuildConfig(precision=precision), backend=backend).manifest
    if backend.capabilities.int8_unsupported:
        record = pass_records(manifest)["bypass_quantizers"]
        assert record["nodes"] == {operator: 1}
        assert f"{backend.version} builds no INT8" in record["summary"]


@pytest.mark.backend
def test_a_backend_that_cannot_quantize_without_a_gpu_says_so(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    backend = load_backend("rtx")
    needs = dataclasses.replace(backend.capabilities, quantizing_needs_gpu=True)
    monkeypatch.setattr(backend, "capabilities", needs)
    monkeypatch.setattr("trt_native.builder.build.gpu_info", lambda: None)
    path = tmp_path / "m.onnx"
    ir.save(convolution(), path)
    with pytest.raises(UnsupportedError, match="only on a machine with a GPU"):
        build_plan(path, backend=backend)
