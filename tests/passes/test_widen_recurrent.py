"""Recurrent layers of one small sequence, computed as a batch of two."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.passes import normalized, pass_records
from onnx import TensorProto, helper, numpy_helper

from trt_native import BuildConfig, Precision, build_plan
from trt_native.backends.registry import load_backend
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.widen_recurrent import WidenRecurrent
from trt_native.reference.evaluator import evaluator
from trt_native.shapes import Profile, ProfileSpec, ShapeRange

STEPS, INPUTS = 5, 3
GATES = {"GRU": 3, "LSTM": 4}


class Slow:
    """A backend that does not build small layers in time."""

    product, version = "TensorRT", "0"
    capabilities = dataclasses.replace(load_backend("rtx").capabilities, small_recurrent=False)


class Fast:
    product, version = "TensorRT", "0"
    capabilities = dataclasses.replace(Slow.capabilities, small_recurrent=True)


def layer(
    operator, direction="forward", *, layout=0, batch=1, hidden=5, optional=False, outputs=None
):
    """A model of one layer, and random values for its inputs."""
    rng = np.random.default_rng(3)
    directions, gates = 2 if direction == "bidirectional" else 1, GATES[operator]

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    weights = {
        "w": draw(directions, gates * hidden, INPUTS),
        "r": draw(directions, gates * hidden, hidden),
        "b": draw(directions, 2 * gates * hidden),
    }
    extent = batch if isinstance(batch, int) else 1
    state = (extent, directions, hidden) if layout else (directions, extent, hidden)
    inputs = {"x": draw(*((extent, STEPS, INPUTS) if layout else (STEPS, extent, INPUTS)))}
    if optional:
        inputs |= {"lens": np.full(extent, 3, np.int32), "h": draw(*state)}
        inputs |= {"c": draw(*state)} if operator == "LSTM" else {}
    names = outputs or ["y", "y_h", "y_c"][: 3 if operator == "LSTM" else 2]
    node = helper.make_node(
        operator, ["x", *weights, *list(inputs)[1:]], names, name="layer",
        hidden_size=hidden, direction=direction, layout=layout,
    )  # fmt: skip
    axis = {"x": 0 if layout else 1, "lens": 0, "h": 0 if layout else 1, "c": 0 if layout else 1}
    infos = []
    for name, array in inputs.items():
        shape = list(array.shape)
        shape[axis[name]] = batch
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        infos.append(helper.make_tensor_value_info(name, kind, shape))
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names if n]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "layer", infos, results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model), inputs


def pass_for(backend=Slow, profiles=()):
    return WidenRecurrent(
        PassContext(
            config=BuildConfig(),
            precision=ResolvedPrecision(),
            backend=backend(),
            profiles=profiles,
        )
    )


def computed(proto, inputs):
    return evaluator(proto.graph, {"": 17}).run(None, inputs)


@pytest.mark.parametrize("optional", [False, True], ids=["alone", "lengths and states"])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("operator", ["GRU", "LSTM"])
def test_they_compute_the_same(operator, direction, layout, optional):
    proto, inputs = layer(operator, direction, layout=layout, optional=optional)
    model = normalized(proto)
    one = pass_for()
    assert one.needed(model)
    one(model)
    assert one.record == {"nodes": {operator: 1}}
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    for found, expected in zip(computed(made, inputs), computed(proto, inputs), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_outputs_that_are_not_used():
    proto, inputs = layer("LSTM", outputs=["", "y_h"])
    model = normalized(proto)
    pass_for()(model)
    (found,) = computed(ir.to_proto(model), inputs)
    np.testing.assert_allclose(found, computed(proto, inputs)[0], rtol=1e-5, atol=1e-6)


def test_others_stay():
    narrow = normalized(layer("GRU")[0])
    assert not pass_for(Fast).needed(narrow)
    for changed in ({"batch": 2}, {"hidden": 7}):
        assert not pass_for().needed(normalized(layer("GRU", **changed)[0]))


def test_a_batch_that_a_profile_fixes():
    model = normalized(layer("GRU", batch="n")[0])
    one, two = ((STEPS, count, INPUTS) for count in (1, 2))
    assert pass_for(profiles=(Profile({"x": ShapeRange(one, one, one)}),)).needed(model)
    assert not pass_for(profiles=(Profile({"x": ShapeRange(one, two, two)}),)).needed(model)


@pytest.mark.backend
@pytest.mark.parametrize("batch", [1, "n"])
def test_a_build_ends(tmp_path, batch):
    """Without the pass it takes minutes."""
    onnx.save(layer("GRU", "reverse", batch=batch)[0], tmp_path / "m.onnx")
    profiles = () if batch == 1 else (ProfileSpec.parse(["n=1"]),)
    config = BuildConfig(precision=Precision.TF32, profiles=profiles)
    manifest = build_plan(tmp_path / "m.onnx", config, backend="rtx").manifest
    assert pass_records(manifest)["widen_recurrent"]["nodes"] == {"GRU": 1}
