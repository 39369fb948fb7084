"""Rows of activations, against the products that read them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.text_models import normal
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from trt_native.calibration.rows import ROWS, RowReader, sample_rows
from trt_native.errors import CalibrationError


def convolved(x, w, **options):
    node = helper.make_node("Conv", ["x", "w"], ["y"], **options)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xw"]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ReferenceEvaluator(model).run(None, {"x": x, "w": w})[0]


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 3, 7, 5), (3, 3), {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}),
        ((1, 4, 9, 8), (3, 2), {"strides": (2, 3), "pads": (0, 2, 3, 1), "dilations": (2, 1)}),
        ((2, 5, 6, 6), (1, 1), {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}),
        ((2, 3, 11), (5,), {"strides": (2,), "pads": (4, 0), "dilations": (1,)}),
        ((1, 2, 4, 5, 3), (2, 2, 3), {"strides": (1, 2, 1), "pads": (1, 0, 1, 0, 1, 1),
                                      "dilations": (1, 1, 1)}),
    ],
)  # fmt: skip
def test_a_convolution_is_the_product_of_its_patches(shape, kernel, options):
    x, w = normal(1, *shape), normal(2, 6, shape[1], *kernel)
    expected = convolved(x, w, kernel_shape=kernel, **options)
    rows = RowReader("x", kernel, **options).take(x, 10**6)
    found = rows @ w.reshape(6, -1).T
    np.testing.assert_allclose(found, np.moveaxis(expected, 1, -1).reshape(-1, 6), atol=1e-4)


def test_rows_are_spread_over_all_batches():
    batches = [{"x": np.arange(1000.0 * i, 1000 * i + 100).reshape(50, 2)} for i in range(4)]
    reader = RowReader("x")
    rows = sample_rows(batches, lambda batch: batch.items(), [reader])[reader]
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.concatenate([b["x"] for b in batches]))
    many = [{"x": np.full((1000, 3), i, np.float16)} for i in range(8)]
    rows = sample_rows(many, lambda batch: batch.items(), [reader])[reader]
    assert rows.shape == (ROWS, 3)
    np.testing.assert_array_equal(np.unique(rows, return_counts=True)[1], [3 * ROWS // 8] * 8)
    np.testing.assert_array_equal(reader.take(np.arange(9.0).reshape(9, 1), 3).ravel(), [0, 4, 8])


def test_what_cannot_be_sampled():
    def nothing(batch):
        return ()

    with pytest.raises(CalibrationError, match="there are no batches"):
        sample_rows([], nothing, [RowReader("x")])
    with pytest.raises(CalibrationError, match="gave no values of tensor 'x'"):
        sample_rows([{"a": np.zeros(1)}], nothing, [RowReader("x")])
    broken = [{"x": np.array([[1.0, np.nan]])}]
    with pytest.raises(CalibrationError, match="tensor 'x' has NaN or infinite values"):
        sample_rows(broken, lambda batch: batch.items(), [RowReader("x")])
