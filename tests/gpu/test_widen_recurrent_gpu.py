"""Small recurrent layers, on the GPU, against PyTorch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.metrics import relative_error
from helpers.passes import pass_records
from helpers.recurrent import torch_weights
from onnx import TensorProto, helper, numpy_helper

from trt_native import BuildConfig, Precision, Session, build_plan

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

STEPS, INPUTS, HIDDEN = 12, 3, 5


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("operator", ["GRU", "LSTM"])
def test_values(tmp_path, operator, direction, rng):
    torch.manual_seed(0)
    both = direction == "bidirectional"
    layer = getattr(torch.nn, operator)(INPUTS, HIDDEN, bidirectional=both)
    x = rng.standard_normal((STEPS, 1, INPUTS), np.float32)
    given = x[::-1].copy() if direction == "reverse" else x
    with torch.no_grad():
        expected = layer(torch.tensor(given))[0].numpy().reshape(STEPS, 1, -1, HIDDEN)
    expected = expected[::-1] if direction == "reverse" else expected
    weights = torch_weights(layer)
    extra = {"linear_before_reset": 1} if operator == "GRU" else {}
    node = helper.make_node(
        operator, ["x", *weights], ["y"], hidden_size=HIDDEN, direction=direction, **extra
    )
    shape = [STEPS, 1 + both, 1, HIDDEN]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    plan = build_plan(tmp_path / "m.onnx", BuildConfig(precision=Precision.TF32), backend="rtx")
    assert pass_records(plan.manifest)["widen_recurrent"]["nodes"] == {operator: 1}
    with Session(plan) as session:
        found = session.run({"x": x})["y"]
    expected = expected.transpose(0, 2, 1, 3)
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 5e-3
