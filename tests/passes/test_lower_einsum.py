"""Einsum written as FP32 products."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.passes import normalized, pass_records
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Precision, build_plan
from trt_native.backends.registry import load_backend
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.lower_einsum import LowerEinsum
from trt_native.shapes import ProfileSpec

EXTENTS = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6, "B": 3, "f": 1}


class TakesTf32:
    product, version = "TensorRT", "0"
    capabilities = dataclasses.replace(load_backend("rtx").capabilities, exact_fp32=False)


class Exact:
    product, version = "TensorRT", "0"
    capabilities = dataclasses.replace(load_backend("rtx").capabilities, exact_fp32=True)


def pass_for(backend=TakesTf32, precision=Precision.FP32):
    context = PassContext(
        config=BuildConfig(precision=precision),
        precision=ResolvedPrecision(applied=precision),
        backend=backend(),
    )
    return LowerEinsum(context)


def einsum(equation, *, dynamic=False, extents=EXTENTS, shapes=None):
    """A model of one Einsum, and random operands."""
    rng = np.random.default_rng(3)
    terms = equation.replace(" ", "").split("->")[0].split(",")
    names = [f"x{i}" for i in range(len(terms))]
    shapes = shapes or [[extents[letter] for letter in term] for term in terms]
    inputs = {
        n: rng.standard_normal(s).astype(np.float32) for n, s in zip(names, shapes, strict=True)
    }
    dims = [
        [f"d{x}" for x in term] if dynamic else s for term, s in zip(terms, shapes, strict=True)
    ]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, dims, strict=True)
    ]
    node = helper.make_node("Einsum", names, ["y"], name="product", equation=equation)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "product", infos, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model, inputs


EQUATIONS = {
    "ab,bc->ac": ["MatMul"],
    "ab,bc": ["MatMul"],
    "ba,bc->ca": ["MatMul"],
    "abc,acd->abd": ["MatMul"],
    "abcd,aecd->acbe": ["MatMul"],
    "abc,cb->a": ["MatMul"],
    "abcd,cde->abe": ["MatMul"],
    "a,b->ba": ["Mul"],
    "a,a->": ["Mul"],
    "abf,acf->abc": ["MatMul"],
    "afb,acb->afc": ["MatMul"],
    "ab,ab->ab": ["Mul"],
    "ab,cb->acb": ["Mul"],
    "abd,bc->c": ["MatMul"],
    "ab,bc,cd->ad": ["MatMul", "MatMul"],
    "abc,abd,ae->cde": ["MatMul", "MatMul"],
    "aB,Bc->ac": ["MatMul"],
    "af,fb->ab": ["MatMul"],
}


def check_equal(model, inputs, products):
    changed = normalized(model)
    one = pass_for()
    assert one.needed(changed)
    one(changed)
    made = ir.to_proto(changed)
    onnx.checker.check_model(made, full_check=True)
    assert not one.needed(changed)
    found = [node.op_type for node in made.graph.node if node.op_type in ("Mul", "MatMul")]
    assert found == products
    (expected,) = ReferenceEvaluator(model).run(None, inputs)
    (result,) = ReferenceEvaluator(made).run(None, inputs)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("equation", "products"), EQUATIONS.items())
def test_they_compute_the_same(equation, products):
    check_equal(*einsum(equation), products)


@pytest.mark.parametrize("equation", ["ab,bc->ac", "abcd,cde->abe", "ab,cb->acb", "a,a->"])
def test_dynamic_extents(equation):
    model, inputs = einsum(equation, dynamic=True)
    changed = normalized(model)
    pass_for()(changed)
    (expected,) = ReferenceEvaluator(model).run(None, inputs)
    (result,) = ReferenceEvaluator(ir.to_proto(changed)).run(None, inputs)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_an_ellipsis():
    check_equal(*einsum("...ab,...bc->...ac", shapes=[[7, 2, 3], [7, 3, 4]]), ["MatMul"])


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [("aab,bc->ac", [[2, 2, 3], [3, 4]]), ("ab,bc->ac", [[2, 3], [1, 4]]), ("ab->ba", [[2, 3]])],
    ids=["a diagonal", "an extent of 1 that is repeated", "one operand"],
)
def test_what_stays(equation, shapes):
    assert not pass_for().needed(normalized(einsum(equation, shapes=shapes)[0]))


def test_where_it_stays():
    model = normalized(einsum("ab,bc->ac")[0])
    assert not pass_for(Exact).needed(model)
    assert not pass_for(precision=Precision.TF32).needed(model)


@pytest.mark.backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_plan(tmp_path, dynamic):
    onnx.save(einsum("abcd,cde->eab", dynamic=dynamic)[0], tmp_path / "m.onnx")
    words = [f"d{letter}=1:2:4" for letter in "abcde"] if dynamic else []
    profiles = (ProfileSpec.parse(words),) if dynamic else ()
    config = BuildConfig(precision=Precision.FP32, profiles=profiles)
    records = pass_records(build_plan(tmp_path / "m.onnx", config, backend="rtx").manifest)
    assert records["lower_einsum"]["nodes"] == {"Einsum": 1}
    assert records["split_fp32_products"]["nodes"] == {"MatMul": 1}
