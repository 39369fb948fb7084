"""Inputs that are constants of a plan, against onnx.reference."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import model, normal
from onnx.reference import ReferenceEvaluator

from trt_native.config import BuildConfig
from trt_native.errors import SpecError
from trt_native.graph.fixed_inputs import check_fixed_inputs
from trt_native.graph.onnx_file import tensor_specs
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.fix_inputs import FixInputs

TEXT = """(float[2, 3] x, float16[1] scale, int64 count, bool on) => (float[2, 3] y, int64 count) {
    wide = Cast <to = 1> (scale)
    t = Mul(x, wide)
    many = Cast <to = 1> (count)
    u = Add(t, many)
    y = Where(on, u, x)
}"""
VALUES = {"scale": 0.5, "count": 7, "on": True}


def fixed(values):
    graph = model(TEXT)
    config = BuildConfig(fixed_inputs=values)
    one = FixInputs(PassContext(config=config, precision=ResolvedPrecision()))
    assert one.needed(graph)
    one(graph)
    return graph, one


def test_a_model_computes_what_it_does_with_the_values():
    x = normal(0, 2, 3)
    inputs = {"scale": np.float16([0.5]), "count": np.int64(7), "on": np.array(True)}
    expected = ReferenceEvaluator(ir.to_proto(model(TEXT))).run(None, {"x": x, **inputs})
    graph, one = fixed(VALUES)
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.input] == ["x"]
    assert [value.name for value in proto.graph.output] == ["y", "count"]
    for found, wanted in zip(ReferenceEvaluator(proto).run(None, {"x": x}), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert one.record["inputs"]["scale"] == {"value": 0.5, "dtype": "float16", "shape": [1]}
    assert one.summarize(one.record) == ("no inputs of the plan: scale = 0.5, count = 7, on = True")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scael": 1}, "'scael' is not an input of the model; did you mean 'scale'"),
        ({"x": 1}, "may hold more than one element"),
        ({"count": 0.5}, "count: int64\\(\\) does not have the value 0.5"),
        ({"count": 2**63}, "does not have the value"),
        ({"scale": 1e6}, "scale: float16\\(1\\) does not have the value"),
        ({"on": 1}, "on: bool\\(\\) does not have the value 1"),
        ({"count": True}, "does not have the value True"),
    ],
)
def test_values_that_do_not_fit_are_an_error(values, message):
    config = BuildConfig(fixed_inputs=values)
    with pytest.raises(SpecError, match="cannot be fixed") as caught:
        check_fixed_inputs(tensor_specs(model(TEXT))[0], config.fixed_values())
    (problem,) = caught.value.problems
    assert re.search(message, problem)
