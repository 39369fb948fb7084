"""Dimensions fixed in a model."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from trt_native.errors import SpecError
from trt_native.graph.onnx_file import tensor_specs
from trt_native.graph.set_dims import set_dims

TEXT = """<ir_version: 9, opset_import: ["": 18]>
    g (float[n, t, 4] x, float[n*t, 4] z) => (float[n, t, m] y, float[r, 4] w)
    { y = Relu (x) w = Neg (z) }"""


def read():
    model = ir.from_proto(onnx.parser.parse_model(TEXT.replace("n*t", "k")))
    model.graph.inputs[1].shape = ir.Shape(["n*t", 4])
    return model


def shapes(model):
    return [spec.shape for side in tensor_specs(model) for spec in side]


def test_expressions_and_outputs_follow():
    model = read()
    set_dims(model, {"n": 2, "t": 3})
    assert shapes(model) == [(2, 3, 4), (6, 4), (2, 3, "m"), ("r", 4)]


@pytest.mark.parametrize(
    ("dims", "problem"),
    [
        ({"n": 2}, "axis 'n[*]t' needs 't', too"),
        ({"n": 2, "t": 2, "tt": 1}, "dimension 'tt' is not one of the model's"),
        ({"n": 2, "t": 9}, "dimension 't' is 9, but the model has at most 8"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_whole(dims, problem):
    model = read()
    model.metadata_props["trt_native.max.t"] = "8"
    before = shapes(model)
    with pytest.raises(SpecError, match=problem):
        set_dims(model, dims)
    assert shapes(model) == before
