"""Recurrent layers written out as loops of FP32 products."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.passes import normalized, pass_records
from helpers.recurrent import GATES, recurrent_model, torch_weights

from trt_native import BuildConfig, Precision, build_plan
from trt_native.backends.registry import load_backend
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.lower_recurrent import LowerRecurrent
from trt_native.reference.evaluator import evaluator
from trt_native.shapes import ProfileSpec

RTX = load_backend("rtx").capabilities


class TakesTf32:
    product, version = "TensorRT", "0"
    capabilities = dataclasses.replace(RTX, exact_fp32=False)


class Exact:
    product, version = "TensorRT", "0"
    capabilities = dataclasses.replace(RTX, exact_fp32=True)


def pass_for(backend=TakesTf32, precision=Precision.FP32, lowered_to=None):
    return LowerRecurrent(
        PassContext(
            config=BuildConfig(precision=precision),
            precision=ResolvedPrecision(applied=precision, lowered_to=lowered_to),
            backend=backend(),
        )
    )


def computed(proto, inputs):
    return evaluator(proto.graph, {"": 17}).run(None, inputs)


def check_equal(proto, inputs):
    """Write the layer out, and compare with the reference of the layer as it was."""
    model = normalized(proto)
    one = pass_for()
    assert one.needed(model)
    one(model)
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    assert not {node.op_type for node in made.graph.node} & GATES.keys()
    assert not one.needed(model)
    for found, expected in zip(computed(made, inputs), computed(proto, inputs), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    return made


@pytest.mark.parametrize("optional", [False, True], ids=["alone", "lengths and states"])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("operator", GATES)
def test_they_compute_the_same(operator, direction, layout, optional):
    check_equal(*recurrent_model(operator, direction, layout=layout, optional=optional))


OTHER_ACTIVATIONS = {
    "RNN": (["Affine"], {"activation_alpha": [0.7], "activation_beta": [0.1]}),
    "GRU": (["HardSigmoid", "ScaledTanh"], {"activation_alpha": [0.3, 1.2]}),
    "LSTM": (["HardSigmoid", "LeakyRelu", "Elu"], {"activation_alpha": [0.3, 0.2, 0.9]}),
}


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
@pytest.mark.parametrize("operator", GATES)
def test_other_activations(operator, direction):
    names, factors = OTHER_ACTIVATIONS[operator]
    count = 2 if direction == "bidirectional" else 1
    attributes = {"activations": names * count, **{k: v * count for k, v in factors.items()}}
    check_equal(*recurrent_model(operator, direction, **attributes))


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"linear_before_reset": 1, "clip": 0.3}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"clip": 0.3}),
        ("RNN", {"clip": 0.3}),
        ("RNN", {"activations": ["softsign"]}),
        ("RNN", {"activations": ["Softplus"]}),
        ("RNN", {"activations": ["ThresholdedRelu"], "activation_alpha": [0.1]}),
    ],
)
def test_attributes(operator, attributes):
    check_equal(*recurrent_model(operator, **attributes))


def test_peepholes():
    check_equal(*recurrent_model("LSTM", "bidirectional", peepholes=True, optional=True))


@pytest.mark.parametrize("operator", GATES)
def test_a_layer_without_a_bias(operator):
    check_equal(*recurrent_model(operator, bias=False))


@pytest.mark.parametrize("operator", GATES)
def test_weights_that_are_computed(operator):
    proto, inputs = recurrent_model(operator, "bidirectional")
    for name in ("w", "r", "b"):
        proto.graph.node.insert(0, onnx.helper.make_node("Neg", [name], [f"{name}_n"]))
    proto.graph.node[3].input[1:4] = ["w_n", "r_n", "b_n"]
    check_equal(proto, inputs)


def test_a_type_that_is_inferred():
    proto, inputs = recurrent_model("GRU")
    proto.graph.node.insert(0, onnx.helper.make_node("Neg", ["x"], ["x_n"]))
    proto.graph.node[1].input[0] = "x_n"
    check_equal(proto, inputs)


def test_outputs_that_are_not_used():
    proto, inputs = recurrent_model("LSTM", "reverse", outputs=["", "y_h"])
    made = check_equal(proto, inputs)
    assert [output.name for output in made.graph.output] == ["y_h"]


@pytest.mark.parametrize("operator", GATES)
def test_values_of_pytorch(operator, rng):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = getattr(torch.nn, operator)(3, 5, bidirectional=True)
    proto, inputs = recurrent_model(
        operator, "bidirectional", weights=torch_weights(layer), batch=2, linear_before_reset=1
    )
    with torch.no_grad():
        expected = layer(torch.tensor(inputs["x"]))[0].numpy()
    found = computed(check_equal(proto, inputs), inputs)[0]
    steps, _, batch, hidden = found.shape
    found = found.transpose(0, 2, 1, 3).reshape(steps, batch, 2 * hidden)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_where_they_stay():
    model = normalized(recurrent_model("GRU")[0])
    assert not pass_for(Exact).needed(model)
    assert not pass_for(precision=Precision.TF32).needed(model)
    assert not pass_for(precision=Precision.FP16, lowered_to=Precision.FP16).needed(model)
    unknown = normalized(recurrent_model("RNN", activations=["Swish"])[0])
    assert not pass_for().needed(unknown)


@pytest.mark.backend
@pytest.mark.parametrize("hidden", [1, 5])
@pytest.mark.parametrize("operator", GATES)
def test_a_plan(tmp_path, operator, hidden):
    proto, _ = recurrent_model(operator, "bidirectional", batch="n", hidden=hidden, optional=True)
    onnx.save(proto, tmp_path / "m.onnx")
    config = BuildConfig(precision=Precision.FP32, profiles=(ProfileSpec.parse(["n=1:2:4"]),))
    manifest = build_plan(tmp_path / "m.onnx", config, backend="rtx").manifest
    records = pass_records(manifest)
    assert records["lower_recurrent"]["nodes"] == {operator: 1}
    assert records["split_fp32_products"]["nodes"]["MatMul"] >= 2


@pytest.mark.backend
@pytest.mark.parametrize("batch", [1, 2])
def test_a_build_of_one_unit_ends(tmp_path, batch):
    """With a product for the state it takes minutes."""
    onnx.save(recurrent_model("GRU", hidden=1, steps=9, batch=batch)[0], tmp_path / "m.onnx")
    build_plan(tmp_path / "m.onnx", BuildConfig(precision=Precision.FP32), backend="rtx")
