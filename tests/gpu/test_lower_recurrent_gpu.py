"""Recurrent layers written out as FP32 products, on the GPU."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.metrics import relative_error
from helpers.passes import pass_records
from helpers.recurrent import GATES, recurrent_model, torch_weights

from trt_native import BuildConfig, Precision, Session, build_plan, refit_plan
from trt_native.reference.evaluator import evaluator
from trt_native.shapes import ProfileSpec

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

CLOSE = 1e-5  # TF32 is off by 3e-4 and more


def ran(path, proto, inputs, words=()):
    onnx.save(proto, path)
    profiles = (ProfileSpec.parse(list(words)),) if words else ()
    config = BuildConfig(precision=Precision.FP32, profiles=profiles)
    plan = build_plan(path, config, backend="rtx")
    assert "lower_recurrent" in pass_records(plan.manifest)
    with Session(plan) as session:
        return session.run(inputs)


@pytest.mark.parametrize("operator", GATES)
def test_values_of_pytorch(tmp_path, operator):
    torch.manual_seed(0)
    layer = getattr(torch.nn, operator)(3, 64, bidirectional=True)
    proto, inputs = recurrent_model(
        operator, "bidirectional", weights=torch_weights(layer), hidden=64, steps=40,
        linear_before_reset=1,
    )  # fmt: skip
    with torch.no_grad():
        expected = layer.double()(torch.tensor(inputs["x"]).double())[0].numpy()
    found = ran(tmp_path / "m.onnx", proto, inputs)["y"].transpose(0, 2, 1, 3)
    assert relative_error(found.reshape(expected.shape), expected) < CLOSE


@pytest.mark.parametrize("steps", [5, "t"])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("operator", GATES)
def test_lengths_and_states(tmp_path, operator, direction, layout, steps):
    batch, words = ("n", ["n=1:2:3", "t=1:4:9"]) if steps == "t" else (2, ())
    proto, inputs = recurrent_model(
        operator, direction, layout=layout, batch=batch, steps=steps, optional=True
    )
    found = ran(tmp_path / "m.onnx", proto, inputs, words)
    expected = evaluator(proto.graph, {"": 17}).run(None, inputs)
    for output, array in zip(proto.graph.output, expected, strict=True):
        assert np.shape(found[output.name]) == array.shape
        assert relative_error(found[output.name], array) < CLOSE


@pytest.mark.parametrize("operator", GATES)
def test_new_weights(tmp_path, operator):
    proto, inputs = recurrent_model(operator, "bidirectional", hidden=16)
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    for tensor in other.graph.initializer:
        changed = 0.7 * onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    onnx.save(proto, tmp_path / "m.onnx")
    onnx.save(other, tmp_path / "other.onnx")
    config = BuildConfig(precision=Precision.FP32, refit=True)
    plan = refit_plan(
        build_plan(tmp_path / "m.onnx", config, backend="rtx"), tmp_path / "other.onnx"
    )
    with Session(plan) as session:
        found = session.run(inputs)["y"]
    expected = evaluator(other.graph, {"": 17}).run(None, inputs)[0]
    assert relative_error(found, expected) < CLOSE
