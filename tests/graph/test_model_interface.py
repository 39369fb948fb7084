"""Interfaces as ONNX infers them, against the shapes that onnx.reference computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import i64, model
from onnx.reference import ReferenceEvaluator

from trt_native.graph.model_interface import model_interface
from trt_native.shapes import Profile, ShapeRange

# Shape arithmetic that ONNX's own data propagation does not follow to the end.
TEXTS = {
    "reshaped scalars": """(float[n,4,6] x) => (float[a,b] y) {
        s = Shape (x) g = Gather (s, zero) r = Reshape (g, one) f = Shape<start = 2> (x)
        p = Div (f, two) c = Concat<axis = 0> (r, p, minus) z = Reshape (x, c) t = Shape (z)
        u = ReduceProd<keepdims = 1> (t) v = Div (u, two) w = Concat<axis = 0> (v, two)
        y = Reshape (z, w) }""",
    "sizes by floor": """(float[n,4,6] x) => (float[a,b,c] y) {
        s = Shape (x) f = Cast<to = 1> (s) h = Mul (f, half) l = Floor (h) e = Cast<to = 7> (l)
        z = Sub (e, e) y = Slice (x, z, e) }""",
    "expanded": """(float[n,4,6] x) => (float[a,b,c,d] y) {
        s = Shape (x) c = Concat<axis = 0> (two, s) y = Expand (x, c) }""",
    "a norm by a function": """(float[n,4,6] x) => (float[a,b,c] y) {
        y = GroupNormalization<num_groups = 2> (x, scale, scale) }""",
}
CONSTANTS = {
    "zero": np.array(0), "one": i64(1), "two": i64(2), "minus": i64(-1),
    "half": np.array([0.5], np.float32), "scale": np.ones(4, np.float32),
}  # fmt: skip
PROFILE = Profile({"x": ShapeRange((2, 4, 6), (4, 4, 6), (8, 4, 6))})


def made(name):
    used = {key: value for key, value in CONSTANTS.items() if key in TEXTS[name]}
    return model(TEXTS[name], opset=21, **used)


@pytest.mark.parametrize("name", TEXTS)
def test_extents_are_those_of_the_reference(name):
    graph = made(name)
    interface = model_interface(graph, [PROFILE])
    assert [corner.name for corner in interface.corners] == [
        "min of profile 0", "opt of profile 0", "max of profile 0",
    ]  # fmt: skip
    for corner in interface.corners:
        x = np.zeros(corner.inputs["x"], np.float32)
        (expected,) = ReferenceEvaluator(ir.to_proto(graph)).run(None, {"x": x})
        assert corner.outputs == {"y": expected.shape}
    (y,) = interface.outputs
    assert (y.name, y.dtype) == ("y", "float32")


@pytest.mark.parametrize("name", TEXTS)
def test_constants_may_be_in_another_file(name, tmp_path):
    ir.save(made(name), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    graph = ir.load(tmp_path / "m.onnx")
    assert any(
        isinstance(v.const_value, ir.ExternalTensor) for v in graph.graph.initializers.values()
    )
    expected = model_interface(made(name), [PROFILE])
    assert model_interface(graph, [PROFILE]) == expected


def test_the_model_stays_as_it_is():
    large = np.arange(4096, dtype=np.float32).reshape(4, 1024)
    graph = model(
        "(float[n,4] x) => (float[n,m] y) { h = MatMul (x, w) y = Mul (h, k) }",
        w=large, k=np.array(2, np.float32),
    )  # fmt: skip
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    interface = model_interface(graph, [Profile({"x": ShapeRange((1, 4), (1, 4), (3, 4))})])
    assert [corner.outputs["y"] for corner in interface.corners] == [(1, 1024), (3, 1024)]
    assert [value.name for value in interface.inputs] == ["x"]
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before


def test_extra_outputs_have_extents_and_no_type():
    graph = model("(float[2,4] x) => (float[2,4] y) { h = Transpose (x) r = Relu (h) y = Exp (x) }")
    interface = model_interface(graph, [], ["h", "y"])
    assert [(o.name, o.dtype) for o in interface.outputs] == [("y", "float32"), ("h", "unknown")]
    assert interface.corners[0].outputs == {"y": (2, 4), "h": (4, 2)}


def test_what_cannot_be_inferred_is_unknown():
    graph = model("(float[4] x) => (int64[1,n] y) { y = NonZero (x) }")
    assert model_interface(graph, []).corners[0].outputs == {"y": (1, None)}


def test_a_type_that_the_file_lacks_is_inferred():
    proto = ir.to_proto(model("(float[2] x) => (int64[1] y) { y = Shape (x) }"))
    proto.graph.output[0].ClearField("type")
    (y,) = model_interface(ir.from_proto(proto), []).outputs
    assert y.dtype == "int64"
    assert onnx.shape_inference.infer_shapes(proto).graph.output[0].type.tensor_type.elem_type == 7
