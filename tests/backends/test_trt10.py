"""Weak typing, which only TensorRT 10 has. Runs where its real bindings import (tests/lanes)."""

from __future__ import annotations

import pytest
from helpers import tiny_models
from helpers.passes import pass_records

from trt_native import BuildConfig, ProfileSpec, build_plan
from trt_native.builder.build import decide
from trt_native.builder.quantize_file import quantize_onnx
from trt_native.config import Precision, QuantizationSpec
from trt_native.errors import BuildError

pytestmark = pytest.mark.backend


def test_a_quantized_graph_is_strongly_typed(trt10, tmp_path):
    model = tiny_models.conv_and_dense(tmp_path / "m.onnx")
    cache = tiny_models.calibration(model, tmp_path / "c", 4.0)
    spec = QuantizationSpec(calibration_cache=cache, ops=("Conv", "MatMul"))
    wanted = config("batch=1:4:8", precision=Precision.INT8, quantization=spec)
    planned = decide(model, wanted, backend=trt10)
    assert planned.precision.strongly_typed
    assert planned.precision.lowered_to is Precision.FP16
    assert pass_records(planned)["quantize"]["nodes"] == {"Conv": 1, "MatMul": 1}
    quantized = quantize_onnx(model, tmp_path / "q.onnx", Precision.INT8, spec).path
    planned = decide(quantized, config("batch=1:4:8"), backend=trt10)
    assert planned.precision.strongly_typed
    assert planned.precision.applied is Precision.FP16
    assert planned.precision.lowered_to is Precision.FP16


def config(*dims, **options):
    return BuildConfig(profiles=(ProfileSpec.parse(dims),), **options)


CONV = ("batch=1:2:4", "height=8", "width=8")


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_precision_comes_from_builder_flags(trt10, tmp_path, monkeypatch, name):
    flags = []
    set_precision = trt10._set_precision

    def spy(request, network, native_config):
        set_precision(request, network, native_config)
        members = trt10._trt.BuilderFlag.__members__
        flags.extend(key for key, flag in members.items() if native_config.get_flag(flag))

    monkeypatch.setattr(trt10, "_set_precision", spy)
    path = tiny_models.lone_conv(tmp_path / "m.onnx")
    plan = build_plan(path, config(*CONV, precision=Precision(name)), backend=trt10)
    assert set(flags) & {"FP16", "BF16", "INT8"} == {name.upper()}
    assert plan.manifest.precision["applied"] == name
    assert list(pass_records(plan.manifest)) == ["pin_fp32_nodes"]


def test_statistics_are_pinned_by_layer(trt10, tmp_path):
    # The library under these bindings types strongly and refuses each pin by name, which shows
    # what was asked of it.
    path = tiny_models.norm(tmp_path / "m.onnx")
    with pytest.raises(BuildError, match="rejected a build option") as caught:
        build_plan(path, config("batch=1:2:4", precision=Precision.FP16), backend=trt10)
    assert "setPrecision() cannot be called for a strongly typed network" in str(caught.value)


def test_weight_streaming_needs_strong_typing(trt10, tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx")
    planned = decide(path, config(*CONV, weight_streaming=True), backend=trt10)
    assert planned.precision.strongly_typed
    assert "autocast" in pass_records(planned)
