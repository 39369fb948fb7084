"""Fused operators written out, against outputs of ONNX Runtime 1.32 on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.passes import pass_records
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from trt_native import build_plan
from trt_native.config import BuildConfig
from trt_native.errors import UnsupportedError
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.lower_fused import LowerFused
from trt_native.passes.pipelines import BUILD, CALIBRATE, select_passes

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "onnxruntime_fused.json").read_text())
LOWER = LowerFused(PassContext(config=BuildConfig(), precision=ResolvedPrecision()))


def model_of(
    operator,
    shapes,
    outputs,
    opset=17,
    kind=TensorProto.FLOAT,
    domain="com.microsoft",
    made=None,
    **at,
):
    names = ["" if shape is None else f"i{n}" for n, shape in enumerate(shapes)]
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, "node", domain=domain, **at)],
        "fused",
        [
            helper.make_tensor_value_info(n, kind, s)
            for n, s in zip(names, shapes, strict=True)
            if n
        ],
        [helper.make_tensor_value_info(name, kind, made) for name in outputs if name],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("operator", GOLDEN)
def test_outputs_are_those_of_onnx_runtime(operator, opset, kind):
    case = GOLDEN[operator]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    arrays = [array and np.array(array, dtype) for array in case["inputs"]]
    outputs = ["y", "", "", "s"] if len(case["outputs"]) == 2 else ["y"]
    shapes = [None if array is None else array.shape for array in arrays]
    model = model_of(
        operator,
        shapes,
        outputs,
        opset,
        kind,
        case["domain"],
        np.shape(case["outputs"][0]),
        **case["attributes"],
    )
    assert LOWER.needed(model)
    LOWER(model)
    assert LOWER.record == {"nodes": {operator: 1}}
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    found = ReferenceEvaluator(made).run(
        None, {f"i{n}": a for n, a in enumerate(arrays) if a is not None}
    )
    tolerance = 2e-5 if dtype == np.float32 else 1e-2
    for array, expected in zip(found, case["outputs"], strict=True):
        assert array.dtype == dtype
        np.testing.assert_allclose(array, expected, rtol=tolerance, atol=tolerance)


def test_bias_add_adds_both():
    model = model_of("BiasAdd", [(1, 2, 4), (4,), (1, 2, 4)], ["y"])
    LOWER(model)
    ones = {"i0": np.ones((1, 2, 4), np.float32), "i1": np.arange(4, dtype=np.float32)}
    (found,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {**ones, "i2": 2 * ones["i0"]})
    np.testing.assert_array_equal(found[0, 0], [3, 4, 5, 6])


def test_types_are_inferred_between_two():
    model = model_of("Gelu", [(2, 4)], ["a"])
    first = next(iter(model.graph))
    relu = ir.node("Relu", [first.outputs[0]])
    relu.outputs[0].name = "b"
    last = ir.node("QuickGelu", [relu.outputs[0]], domain="com.microsoft")
    last.outputs[0].name = "c"
    model.graph.extend([relu, last])
    LOWER(model)
    assert [n.op_type for n in model.graph][-4:] == ["Relu", "Mul", "Sigmoid", "Mul"]


@pytest.mark.parametrize(
    "model",
    [
        model_of("FusedMatMul", [(2, 3), (3, 4)], ["y"], transBatchA=1),
        model_of("FusedConv", [(1, 1, 3, 3), (1, 1, 2, 2)], ["y"], activation="Other"),
        model_of("SkipLayerNormalization", [(1, 2, 4), (1, 2, 4), (4,)], ["y", "mean"]),
        model_of("MultiHeadAttention", [(1, 2, 4)] * 3, ["y"], num_heads=2, unidirectional=1),
        model_of("MultiHeadAttention", [(1, 2, 4)] * 3, ["y"]),
        model_of("Gelu", [(2, 4)], ["y"], domain="own"),
    ],
    ids=["batch", "activation", "statistics", "causal", "heads", "domain"],
)
def test_what_is_not_known_stays(model):
    assert not LOWER.needed(model)


def test_a_clip_has_its_limits():
    at = {"activation": "Clip", "activation_params": [0.0, 6.0]}
    model = model_of("FusedConv", [(1, 1, 2), (1, 1, 1)], ["y"], made=(1, 1, 2), **at)
    LOWER(model)
    inputs = {"i0": np.array([[[-1, 9]]], np.float32), "i1": np.ones((1, 1, 1), np.float32)}
    (found,) = ReferenceEvaluator(ir.to_proto(model)).run(None, inputs)
    np.testing.assert_array_equal(found, [[[0, 6]]])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (model_of("FusedMatMul", [(2, 3), (4, 3)], ["y"], transB=1), "FusedMatMul transposes 'i1'"),
        (
            model_of("MultiHeadAttention", [(1, 2, 4)] * 3, ["y"], num_heads=2),
            "MultiHeadAttention reads 'i1'",
        ),
    ],
    ids=["product", "attention"],
)
def test_an_unknown_rank_is_an_error(model, message):
    model.graph.inputs[1].shape = None
    with pytest.raises(UnsupportedError, match=message):
        select_passes([LowerFused], model, LOWER.context)


@pytest.mark.backend
def test_fused_operators_build(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    at = {"transB": 1, "alpha": 0.5}
    model = model_of("FusedMatMul", [(2, 3), (4, 3)], ["a"], made=(2, 4), **at)
    (product,) = model.graph
    last = ir.node("FastGelu", [product.outputs[0]], domain="com.microsoft")
    last.outputs[0].name = "y"
    last.outputs[0].type, last.outputs[0].shape = model.graph.outputs[0].type, ir.Shape([2, 4])
    model.graph.append(last)
    model.graph.outputs[:] = last.outputs
    ir.save(model, tmp_path / "m.onnx")
    plan = build_plan(tmp_path / "m.onnx", BuildConfig())
    assert pass_records(plan.manifest)["lower_fused"]["nodes"] == {"FusedMatMul": 1, "FastGelu": 1}


def test_pipelines_write_them_out_before_types_are_decided():
    for pipeline in (BUILD, CALIBRATE):
        names = [one.name for one in pipeline]
        assert names.index("lower_fused") < names.index("replace_types") < names.index("autocast")
