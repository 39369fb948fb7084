"""Attention and other definitions on the GPU, against the values that ONNX gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.onnx_node_tests import node_tests

from trt_native import BuildConfig, Precision, Session, build_plan

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

CASES = {
    case.name: case
    for module in ("attention", "linear_attention", "causal_conv_with_state", "layernormalization")
    for case in node_tests(module)[:: 1 if module == "attention" else 4]
}


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32, Precision.FP16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values(tmp_path, name, precision):
    case = CASES[name]
    inputs, expected = case.data_sets[0]
    types = {np.asarray(array).dtype for array in inputs}
    reduced = not types <= {np.dtype(kind) for kind in ("float32", "int64", "int32", "bool")}
    if reduced and precision is not Precision.FP32:
        pytest.skip("the model has reduced types, which stay")
    path = tmp_path / "m.onnx"
    onnx.save(case.model, path)
    plan = build_plan(path, BuildConfig(precision=Precision.AUTO if reduced else precision))
    names = [value.name for value in case.model.graph.input]
    with Session(plan) as session:
        found = session.run(dict(zip(names, inputs, strict=True)))
    limit = {Precision.FP32: 1e-4, Precision.TF32: 5e-3, Precision.FP16: 1e-2}[precision]
    limit = 2e-2 if reduced else limit
    for output, array in zip(case.model.graph.output, expected, strict=True):
        values = np.asarray(found[output.name], np.float32), np.asarray(array, np.float32)
        np.testing.assert_allclose(*values, rtol=limit, atol=limit)
