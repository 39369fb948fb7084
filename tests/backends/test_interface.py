"""Inputs and outputs of parsed networks, on every TensorRT that can be installed, without a GPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from helpers.backend_builds import build

from trt_native import BuildConfig, Precision, ProfileSpec, build_plan
from trt_native.errors import UnsupportedError
from trt_native.graph.model_interface import model_interface
from trt_native.graph.onnx_file import read_model
from trt_native.passes.normalize import normalize
from trt_native.shapes import Profile, ShapeRange

pytestmark = pytest.mark.backend

F, H, B, I64 = "float32", "float16", "bool", "int64"
BODY = """<body = b (int64 i, bool ci, float[2] a) => (bool co, float[2] o)
    { co = Identity (ci) o = Add (a, a) }>"""
COUNTING = """<body = b (int64 i, bool ci, float[2] a) => (bool co, float[2] o)
    { co = Less (i, k) o = Add (a, a) }>"""

# Graph, opset, and what the plan must have: name to type and shape.
MODELS = {
    "resize": (
        """(float[1,1,100,10] x) => (float[a,b,c,d] y) <float[4] s = {1, 1, 0.29, 2.0}>
        { y = Resize<mode = "linear"> (x, "", s) }""",
        18, {}, {"x": (F, (1, 1, 100, 10)), "y": (F, (1, 1, 28, 20))},
    ),
    "dynamic resize": (
        """(float[1,1,n,4] x) => (float[a,b,c,d] y) <float[4] s = {1, 1, 0.57, 1}>
        { y = Resize<mode = "nearest", nearest_mode = "floor",
          coordinate_transformation_mode = "asymmetric"> (x, "", s) }""",
        18, {"n": "50:100:200"}, {"x": (F, (1, 1, -1, 4)), "y": (F, (1, 1, -1, 4))},
    ),
    "dynamic pool": (
        """(float[1,1,n,n] x) => (float[a,b,c,d] y)
        { y = MaxPool<kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1>
          (x) }""",
        22, {"n": "3:6:9"}, {"x": (F, (1, 1, -1, -1)), "y": (F, (1, 1, -1, -1))},
    ),
    "average pool": (
        """(float[1,1,3,3] x) => (float[a,b,c,d] y)
        { y = AveragePool<kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1],
          ceil_mode = 1> (x) }""",
        22, {}, {"x": (F, (1, 1, 3, 3)), "y": (F, (1, 1, 2, 2))},
    ),
    "valid pool": (
        """(float[1,1,6,6] x) => (float[a,b,c,d] y)
        { y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], auto_pad = "VALID", ceil_mode = 1>
          (x) }""",
        12, {}, {"x": (F, (1, 1, 6, 6)), "y": (F, (1, 1, 2, 2))},
    ),
    "transposed convolution": (
        """(float[1,1,5] x) => (float[a,b,c] y) <float[1,1,1] w = {1}>
        { y = ConvTranspose<auto_pad = "VALID", strides = [2], output_padding = [1]> (x, w) }""",
        22, {}, {"x": (F, (1, 1, 5)), "y": (F, (1, 1, 10))},
    ),
    "loop condition": (
        f"""(float[2] x, bool c, int64 t) => (float[2] y) {{ y = Loop (t, c, x) {BODY} }}""",
        18, {}, {"x": (F, (2,)), "c": (B, ()), "t": (I64, ()), "y": (F, (2,))},
    ),
    "loop condition and constant count": (
        f"""(bool keep, float[2] x) => (float[2] y)
        {{ t = Constant<value = int64 {{3}}> () y = Loop (t, keep, x) {BODY} }}""",
        18, {}, {"keep": (B, ()), "x": (F, (2,)), "y": (F, (2,))},
    ),
    "loop without a condition": (
        f"""(float[2] x) => (float[2] y)
        {{ t = Constant<value = int64 {{3}}> () y = Loop (t, "", x) {BODY} }}""",
        18, {}, {"x": (F, (2,)), "y": (F, (2,))},
    ),
    "loop without a limit": (
        f"""(bool keep, float[2] x) => (float[2] y)
        {{ k = Constant<value = int64 {{3}}> () y = Loop ("", keep, x) {COUNTING} }}""",
        18, {}, {"keep": (B, ()), "x": (F, (2,)), "y": (F, (2,))},
    ),
    "output twice": (
        "(float[2] x) => (float[2] y, float[2] y) { y = Relu (x) }",
        18, {}, {"x": (F, (2,)), "y": (F, (2,))},
    ),
    "output twice behind a constant": (
        """(float[2] x) => (float[2] y, float[2] z, float[2] y)
        { c = Constant<value_float = 2.0> () y = Mul (x, c) z = Relu (y) }""",
        18, {}, {"x": (F, (2,)), "y": (F, (2,)), "z": (F, (2,))},
    ),
    "shapes from shapes": (
        """(float[n,4] x, float[3] unused) => (float[m,2] y) <int64[1] two = {2}, int64 axis = {0}>
        { s = Shape (x) r = Gather (s, axis) t = Mul (r, two) u = Concat<axis = 0> (t, two)
          y = Reshape (x, u) }""",
        18, {"n": "1:2:8"}, {"x": (F, (-1, 4)), "unused": (F, (3,)), "y": (F, (-1, 2))},
    ),
}  # fmt: skip

REFUSED = {
    "input as output": (
        "(float[2] x) => (float[2] y, float[2] x) { y = Relu (x) }", 18, "input 'x' is an output",
    ),
    "input as only output": ("(float[2] x) => (float[2] x) { }", 18, "input 'x' is an output"),
    "nearest by ceil": (
        """(float[1,1,4,h] x) => (float[1,1,7,7] y) <int64[4] z = {1, 1, 7, 7}>
        { y = Resize<mode = "nearest", nearest_mode = "ceil",
          coordinate_transformation_mode = "align_corners"> (x, "", "", z) }""",
        18, "nearest_mode ceil with align_corners",
    ),
    "corners by a broken scale": (
        """(float[1,1,4,h] x) => (float[a,b,c,d] y) <float[4] s = {1, 1, 0.6, 0.6}>
        { y = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">
          (x, "", s) }""",
        18, "give sizes instead of scales",
    ),
    "loop that computes its condition": (
        f"""(float[2] x) => (float[2] y)
        {{ t = Constant<value = int64 {{9}}> () k = Constant<value = int64 {{3}}> ()
          y = Loop (t, "", x) {COUNTING} }}""",
        18, "without a condition, while its body computes one",
    ),
    "scattered in place": (
        """(float[1,2,h,3] p, float[1,2,1,3] u, int64[1] w) => (float[1,2,h,3] y)
        { y = TensorScatter (p, u, w) }""",
        24, "its output must have its input's address",
    ),
}  # fmt: skip


def saved(folder, text, opset):
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {text}')
    path = folder / "m.onnx"
    onnx.save(proto, path)
    return path


def built(path, backend, ranges, precision=Precision.FP32):
    dims = [f"{name}={text}" for name, text in ranges.items()]
    profiles = (ProfileSpec.parse(dims),) if dims else ()
    return build_plan(path, BuildConfig(profiles=profiles, precision=precision), backend=backend)


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_has_the_interface_of_its_model(backend, tmp_path, name):
    text, opset, ranges, expected = MODELS[name]
    plan = built(saved(tmp_path, text, opset), backend, ranges)
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in plan.manifest.tensors}
    assert found == expected


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_with_an_interface_that_tensorrt_cannot_have_is_refused(backend, tmp_path, name):
    text, opset, problem = REFUSED[name]
    if backend.capabilities.quantizing_needs_gpu and "QuantizeLinear" in text:
        problem += "|only on a machine with a GPU"
    ranges = {"h": "4:5:6"} if "h]" in text or "h," in text else {}
    with pytest.raises(UnsupportedError, match=problem):
        built(saved(tmp_path, text, opset), backend, ranges)


@pytest.mark.parametrize(("scale", "kind"), [(H, F), (F, H)])
def test_a_norm_has_the_type_of_its_scale(backend, tmp_path, scale, kind):
    """The checker calls these models inconsistent, and the specification does not."""
    names = {F: "float", H: "float16"}
    path = saved(
        tmp_path,
        f"""({names[kind]}[2,8] x, {names[scale]}[8] w) => ({names[scale]}[2,8] y)
        {{ y = RMSNormalization (x, w) }}""",
        23,
    )
    plan = built(path, backend, {}, Precision.AUTO)
    (y,) = plan.manifest.outputs
    assert (y.dtype, y.shape) == (scale, (2, 8))


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ("(float[n,4] z) => (float[n,4] y) { y = Relu (z) }", "there is no input 'z', but 'x'"),
        ("(float[n,4] x) => (float[n,4] z) { z = Relu (x) }", "there is no output 'z', but 'y'"),
        ("(float16[n,4] x) => (float16[n,4] y) { y = Relu (x) }", "type float32, where.* float16"),
        ("(float[n,5] x) => (float[n,5] y) { y = Relu (x) }", "'x' is .x4, where ONNX has .x5"),
        (
            "(float[n,4] x) => (float[m,4] y) { y = Concat<axis = 0> (x, x) }",
            "'y' is 1x4, where ONNX has 2x4 at min of profile 0",
        ),
        ("(float[n,4] x) => (float[m] y) { y = ReduceSum<keepdims = 0> (x) }", "has scalar"),
        (
            "(float[n,4] x) => (float[n,4] y, float[n,4] z) { y = Relu (x) z = Abs (x) }",
            "there is no output 'z'",
        ),
    ],
)
def test_a_network_with_another_interface_is_refused(
    backend, request_for, tmp_path, other, problem
):
    def relu(path):
        onnx.save(onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 18]> g'
            " (float[n,4] x) => (float[n,4] y) { y = Relu (x) }"
        ), path)  # fmt: skip
        return path

    profile = Profile({"x": ShapeRange((1, 4), (2, 4), (8, 4))})
    model = read_model(saved(tmp_path, other, 18))
    normalize(model)
    points = Profile({v.name: ShapeRange.parse("1x4:2x4:8x4") for v in model.graph.inputs})
    if model.graph.inputs[0].shape[1] == 5:
        points = Profile({"x": ShapeRange.parse("1x5:2x5:8x5")})
    request = request_for(relu, profiles=(profile,), interface=model_interface(model, [points]))
    with pytest.raises(UnsupportedError, match=problem):
        build(backend, request)


def test_the_check_changes_nothing(backend, request_for):
    request = request_for(shapes={"x": "1x3x8x8:2x3x8x8:4x3x16x16"})
    interface = model_interface(read_model(request.onnx), request.profiles)
    assert len(interface.corners) == 3
    without = build(backend, request)
    checked = build(backend, dataclasses.replace(request, interface=interface))
    assert checked.tensors == without.tensors
    assert np.array_equal(
        np.frombuffer(checked.data, np.uint8), np.frombuffer(without.data, np.uint8)
    )
