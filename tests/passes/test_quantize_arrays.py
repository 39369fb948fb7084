"""Packed numbers and scales, against the QuantizeLinear of onnx.reference and ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from helpers.text_models import model, normal
from onnx.reference import ReferenceEvaluator

from trt_native.graph.nodes import BFLOAT16, FLOAT, FLOAT16
from trt_native.passes.quantize_arrays import (
    FLOAT8,
    INT8,
    LARGEST,
    channel_amax,
    quantize_array,
    quantize_lazily,
    read_tensor,
    requantize_lazily,
    round_scale,
)


def by_onnx(array, scale, axis, dtype):
    """QuantizeLinear with zero point 0."""
    shape = ", ".join(map(str, array.shape))
    zero = np.zeros(scale.shape, dtype.numpy())
    graph = model(
        f"(float[{shape}] x) => (float[{shape}] y) {{ [q] q = QuantizeLinear<axis = {axis}>"
        f"(x, s, z) y = DequantizeLinear<axis = {axis}>(q, s, z) }}",
        19,
        s=scale,
        z=zero,
    )
    return ReferenceEvaluator(ir.to_proto(graph)).run(None, {"x": array})[0]


@pytest.mark.parametrize("dtype", [INT8, FLOAT8])
@pytest.mark.parametrize(("axis", "per_channel"), [(0, True), (1, True), (2, True), (0, False)])
def test_numbers_are_those_of_onnx(dtype, axis, per_channel):
    array = normal(0, 3, 4, 5, scale=2)
    amax = channel_amax(array, axis) if per_channel else np.float32(np.abs(array).max())
    scale = np.asarray(amax / np.float32(LARGEST[dtype]), np.float32)
    found = quantize_array(array, scale, axis, dtype)
    assert found.dtype == dtype.numpy()
    shape = [-1 if i == axis else 1 for i in range(3)] if per_channel else []
    dequantized = found.astype(np.float32) * scale.reshape(shape)
    np.testing.assert_array_equal(dequantized, by_onnx(array, scale, axis, dtype))


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (INT8, [0.5, 1.5, 2.5, -0.5, -1.5], [0, 2, 2, 0, -2]),  # ties go to even numbers
        (INT8, [126.6, 127.4, 1e9, -127.6, -1e9], [127, 127, 127, -127, -127]),
        (FLOAT8, [17, 19, 447, 449, 1e9, -1e9], [16, 20, 448, 448, 448, -448]),
    ],
)
def test_rounding_and_saturation(dtype, values, expected):
    found = quantize_array(np.array(values, np.float32), np.float32(1), 0, dtype)
    assert found.astype(np.float32).tolist() == expected


def test_numbers_of_fp16_weights_are_computed_in_fp32():
    array = np.array([1.0, 0.1, 6e-8], np.float16)
    scale = np.asarray(round_scale(1e-12, FLOAT))
    found = quantize_array(array, scale, 0, INT8)
    np.testing.assert_array_equal(found, [127, 127, 127])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_channel_amax(axis, dtype):
    array = normal(0, 3, 4, 5).astype(dtype)
    others = tuple({0, 1, 2} - {axis})
    found = channel_amax(array, axis)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.abs(array.astype(np.float32)).max(others))


def test_channel_amax_of_negative_empty_and_undefined_channels():
    array = np.array([[-3, -1], [np.nan, 1], [np.inf, 0], [0, 0]], np.float32)
    np.testing.assert_array_equal(channel_amax(array, 0), [3, np.nan, np.inf, 0])
    np.testing.assert_array_equal(channel_amax(np.zeros((2, 0), np.float32), 0), [0, 0])


@pytest.mark.parametrize(
    ("dtype", "kind"), [(FLOAT, np.float32), (FLOAT16, np.float16), (BFLOAT16, ml_dtypes.bfloat16)]
)
def test_scales_are_numbers_of_their_type(dtype, kind):
    scales = np.array([1e-3, 0.1, 7, 1e4])
    found = round_scale(scales, dtype)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, scales.astype(kind).astype(np.float32))
    extremes = round_scale([0.0, 1e-60, 1e60], dtype).astype(kind)
    assert (extremes > 0).all()
    assert np.isfinite(extremes.astype(np.float32)).all()


def test_the_smallest_scale_of_fp16_is_its_smallest_number():
    assert round_scale(1e-30, FLOAT16) == np.finfo(np.float16).smallest_subnormal
    assert round_scale(1e30, FLOAT16) == np.finfo(np.float16).max


@pytest.mark.parametrize("dtype", [INT8, FLOAT8])
@pytest.mark.parametrize("perm", [None, (1, 0)])
def test_lazy_tensors_are_made_when_they_are_read(perm, dtype):
    array, reads = normal(0, 3, 4), []

    def read():
        reads.append(1)
        return ir.tensor(array)

    turned = array if perm is None else array.transpose(perm)
    scale = channel_amax(turned, 0) / np.float32(LARGEST[dtype])
    lazy = quantize_lazily(ir.LazyTensor(read, FLOAT, ir.Shape([3, 4])), perm, scale, 0, dtype)
    assert (lazy.dtype, tuple(lazy.shape)) == (dtype, turned.shape)
    assert reads == []
    np.testing.assert_array_equal(lazy.numpy(), quantize_array(turned, scale, 0, dtype))
    assert len(lazy.tobytes()) == 12
    assert reads


def test_a_new_scale_gives_the_same_values():
    packed = ir.tensor(np.array([[100, -50], [7, 127]], np.int8))
    old, new = np.array([0.1, 0.2], np.float32), np.array([0.2, 0.1], np.float32)
    found = requantize_lazily(packed, old, new, 0)
    assert found.dtype == INT8
    np.testing.assert_array_equal(found.numpy(), [[50, -25], [14, 127]])  # 254 is saturated


def test_external_tensors_are_read_where_they_are(tmp_path):
    array = normal(0, 2, 3)
    (tmp_path / "w.bin").write_bytes(b"head" + array.tobytes())
    tensor = ir.ExternalTensor(
        "w.bin", 4, array.nbytes, FLOAT, shape=ir.Shape([2, 3]), name="w", base_dir=tmp_path
    )
    np.testing.assert_array_equal(read_tensor(tensor), array)
    np.testing.assert_array_equal(read_tensor(ir.tensor(array)), array)
