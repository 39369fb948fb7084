"""Conditionals of a dynamic shape, written without an If."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.passes import normalized, pass_records
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Precision, build_plan
from trt_native.backends.registry import load_backend
from trt_native.errors import UnsupportedError
from trt_native.graph.nodes import all_nodes
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.lower_conditionals import LowerConditionals
from trt_native.shapes import Profile, ProfileSpec, ShapeRange


class Wrong:
    """A backend that computes conditionals of a dynamic shape wrong."""

    product, version = "TensorRT", "0"
    capabilities = dataclasses.replace(load_backend("rtx").capabilities, dynamic_conditionals=False)


def parsed(body, inputs="bool c, float[n,3] x", outputs="float[n,3] y", opset=18):
    text = f'<ir_version: 10, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return onnx.parser.parse_model(text)


def pass_for(backend=Wrong, profiles=()):
    return LowerConditionals(
        PassContext(
            config=BuildConfig(),
            precision=ResolvedPrecision(),
            backend=backend(),
            profiles=profiles,
        )
    )


def branches(then, other, outputs=("a", "b"), condition="c"):
    """An If with a branch each."""
    return (
        f"If ({condition}) <then_branch = t () => ({outputs[0]}) {{ {then} }},"
        f" else_branch = e () => ({outputs[1]}) {{ {other} }}>"
    )


NESTED = "[inner] a = " + branches("p = Abs (x)", "p = Exp (x)", ("p", "p"), "c2")
CASES = {
    "elementwise": "[choice] y = " + branches("a = Tanh (x)", "b = Neg (x)"),
    "values of the graph around it": (
        "h = Exp (x) [choice] y = " + branches("a = Mul (h, x)", "b = Identity (h)")
    ),
    "equal names in both": (
        "y = "
        + branches(
            "k = Constant <value = float {2.0}> () r = Mul (x, k) a = Relu (r)",
            "k = Constant <value = float {3.0}> () r = Mul (x, k) b = Neg (r)",
        )
    ),
    "ranks alone": "y = "
    + branches("a = Tanh (x)", "b = Neg (x)", ("float[?,?] a", "float[?,?] b")),
    "two results": (
        "s, t = "
        + branches("a = Tanh (x) d = Exp (x)", "b = Neg (x) e = Abs (x)", ("a, d", "b, e"))
        + " y = Sub (s, t)"
    ),
    "one in another": "c2 = Not (c) y = " + branches(NESTED, "b = Neg (x)"),
    "a condition with an axis": (
        "i = Constant <value = int64[1] {0}> () c1 = Unsqueeze (c, i) y = "
        + branches("a = Tanh (x)", "b = Neg (x)", condition="c1")
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_they_compute_the_same(name, rng):
    proto = parsed(CASES[name])
    model = normalized(proto)
    one = pass_for()
    assert one.needed(model)
    one(model)
    assert "If" not in {node.op_type for node in all_nodes(model.graph)}
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    assert [v.name for v in made.graph.output] == ["y"]
    for holds in (True, False):
        for count in (2, 5):
            inputs = {"c": np.array(holds), "x": rng.standard_normal((count, 3), np.float32)}
            expected = ReferenceEvaluator(proto).run(None, inputs)[0]
            np.testing.assert_array_equal(ReferenceEvaluator(made).run(None, inputs)[0], expected)


def test_a_result_without_axes_stays_so(rng):
    proto = parsed(
        "y = " + branches("a = ReduceSum <keepdims = 0> (x)", "b = ReduceMax <keepdims = 0> (x)"),
        outputs="float y",
    )
    assert not pass_for().needed(normalized(proto))  # its shape is not dynamic


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "i = Constant <value = int64[1] {0}> () z = "
            + branches("a = Unsqueeze (x, i)", "b = Neg (x)")
            + " y = Neg (z)",
            "shapes of its branches may differ",
        ),
        (
            "y = " + branches("i = Cast <to = 7> (x) m = ReduceMax <keepdims = 0> (i)"
            " g = Gather (x, m) d = Sub (x, g) a = Relu (d)", "b = Neg (x)"),
            "Gather whose indices may be invalid",
        ),
        (
            "y = " + branches("a = Loop (k, c, x) <body = l (int64 i, bool g, float[n,3] s)"
            " => (bool go, float[n,3] o) { go = Identity (g) o = Neg (s) }>", "b = Neg (x)"),
            "a branch has a Loop",
        ),
    ],
    ids=["ranks", "indices", "loop"],
)  # fmt: skip
def test_others_are_rejected(body, reason):
    inputs = "bool c, float[n,3] x, int64 k"
    with pytest.raises(UnsupportedError, match=f"build with fixed dimensions[^$]*{reason}"):
        pass_for().needed(normalized(parsed(body, inputs)))


class Right:
    product, version = "TensorRT", "0"
    capabilities = dataclasses.replace(Wrong.capabilities, dynamic_conditionals=True)


def test_static_shapes_and_other_backends_stay():
    body = CASES["elementwise"]
    fixed = Profile({"x": ShapeRange((4, 3), (4, 3), (4, 3))})
    varying = Profile({"x": ShapeRange((1, 3), (4, 3), (4, 3))})
    dynamic = normalized(parsed(body))
    assert not pass_for(Right).needed(dynamic)
    assert not pass_for(profiles=(fixed,)).needed(dynamic)
    assert pass_for(profiles=(varying,)).needed(dynamic)
    static = parsed(body, "bool c, float[2,3] x", "float[2,3] y")
    assert not pass_for().needed(normalized(static))


@pytest.mark.backend
def test_a_build_names_them(tmp_path):
    onnx.save(parsed(CASES["elementwise"]), tmp_path / "m.onnx")
    profile = ProfileSpec.parse(["n=2:2:5"])
    config = BuildConfig(precision=Precision.FP32, profiles=(profile,))
    manifest = build_plan(tmp_path / "m.onnx", config, backend="rtx").manifest
    assert pass_records(manifest)["lower_conditionals"]["nodes"] == {"If": 1}
