"""Comparison of a converted model with its original."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import tiny_models

from trt_native.errors import CalibrationError
from trt_native.verify.models import compare_models, model_inputs, product_size


def test_each_model_runs_in_its_own_types(tmp_path):
    original = tiny_models.dense(tmp_path / "m.onnx", width=16)
    half = onnx.load(original)
    for weight in half.graph.initializer:
        array = onnx.numpy_helper.to_array(weight).astype(np.float16) * np.float16(1.5)
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(half, tmp_path / "h.onnx")
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float16)
    (found,) = compare_models(original, tmp_path / "h.onnx", {"h0": x})
    # Both of its weights are half as large again, and it has no biases.
    assert found.relative_l2 == pytest.approx(1.5**2 - 1, abs=2e-3)
    assert (found.name, found.dtype, found.shape) == ("h2", "float16", (3, 16))
    (same,) = compare_models(original, original, {"h0": x.astype(np.float32)})
    assert same.relative_l2 == 0
    with pytest.raises(CalibrationError, match="h0"):
        compare_models(original, original, {})


def test_dimensions_that_no_shape_says_are_small(tmp_path):
    model = tiny_models.coupled(tmp_path / "m.onnx")
    free = {tensor.name: tensor.shape for tensor in model_inputs(model, {})}
    assert free == {"x": (2, 2, 4), "z": (4, 4)}
    conv = tiny_models.conv(tmp_path / "c.onnx")
    (x,) = model_inputs(conv, {"x": (1, 3, 5, 7)})
    assert x.shape == (1, 3, 5, 7)
    assert product_size(conv, {"x": (1, 3, 5, 7)}, {}) == 5 * 7 * 8 * 27
    assert product_size(conv, {}, {}) is None
