"""Pools written out as slices, against the reference, which follows PyTorch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.passes import normalized, pass_records
from onnx import TensorProto, helper

from trt_native import BuildConfig, Precision, build_plan
from trt_native.graph.inference import infer_types
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.lower_pools import LowerPools
from trt_native.reference.evaluator import evaluator

# Kernel, stride, padding before and behind, and dilation, of all axes.
GEOMETRIES = [
    (2, 1, 0, 0, 2),
    (3, 2, 1, 2, 1),
    (3, 2, 1, 0, 2),
    (2, 3, 0, 1, 3),
    (3, 3, 0, 0, 2),
    (1, 2, 0, 0, 1),
]
SHAPE = (2, 3, 9, 8)


def pool(operator, shape=SHAPE, kind=TensorProto.FLOAT, **attributes):
    dims = helper.make_tensor_value_info("x", kind, shape)
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    result = helper.make_tensor_value_info("y", kind, [f"y{axis}" for axis in range(len(shape))])
    graph = helper.make_graph([node], "g", [dims], [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def lowered(proto):
    """The model after the pass; None where it leaves it alone."""
    model = normalized(proto)
    infer_types(model)
    one = LowerPools(PassContext(config=BuildConfig(), precision=ResolvedPrecision()))
    if not one.needed(model):
        return None
    one.rewrite(model)
    assert not one.needed(model)
    return ir.to_proto(model)


def compare(proto, shape=SHAPE):
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    found = lowered(proto)
    onnx.checker.check_model(found)
    assert {node.op_type for node in found.graph.node}.isdisjoint({proto.graph.node[0].op_type})
    ours, expected = (evaluator(m.graph, {"": 22}).run(None, {"x": x})[0] for m in (found, proto))
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize(("kernel", "stride", "before", "behind", "dilation"), GEOMETRIES)
@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("MaxPool", {}),
        ("AveragePool", {}),
        ("AveragePool", {"count_include_pad": 1}),
        ("LpPool", {}),
        ("LpPool", {"p": 3}),
        ("LpPool", {"p": 1}),
    ],
)
def test_values(rank, ceil_mode, kernel, stride, before, behind, dilation, operator, attributes):
    if dilation == 1 and operator != "LpPool":
        dilation = 2
    options = {"kernel_shape": [kernel] * rank, "strides": [stride] * rank, **attributes}
    options |= {"dilations": [dilation] * rank}
    if before or behind:
        options |= {"pads": [before] * rank + [behind] * rank}
    compare(pool(operator, SHAPE[: 2 + rank], ceil_mode=ceil_mode, **options), SHAPE[: 2 + rank])


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_automatic_padding(operator, auto_pad, stride):
    options = {"kernel_shape": [2, 3], "strides": [stride] * 2, "dilations": [2, 1]}
    compare(pool(operator, auto_pad=auto_pad, **options))


@pytest.mark.parametrize(
    "proto",
    [
        pool("MaxPool", kernel_shape=[2, 2]),
        pool("AveragePool", kernel_shape=[2, 2], dilations=[1, 1]),
        pool("MaxPool", kind=TensorProto.INT8, kernel_shape=[2, 2], dilations=[2, 2]),
        pool(
            "LpPool", ("n", 3, "h", "w"), kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"
        ),
        pool(
            "AveragePool", ("n", 3, "h", "w"), kernel_shape=[2, 2], dilations=[2, 2], pads=[1] * 4
        ),
    ],
)
def test_pools_that_stay(proto):
    assert lowered(proto) is None


@pytest.mark.parametrize("operator", ["MaxPool", "LpPool"])
def test_dynamic_extents(operator):
    options = {"kernel_shape": [2, 3], "strides": [2, 1], "dilations": [2, 1], "pads": [1] * 4}
    compare(pool(operator, ("n", 3, "h", "w"), **options))


@pytest.mark.parametrize("storage_order", [0, 1])
@pytest.mark.parametrize(("kernel", "stride", "before", "behind", "dilation"), GEOMETRIES)
def test_indices_of_maxima(kernel, stride, before, behind, dilation, storage_order):
    options = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "dilations": [dilation] * 2}
    options |= {"pads": [before] * 2 + [behind] * 2, "ceil_mode": 1}
    proto = pool("MaxPool", ("n", *SHAPE[1:]), storage_order=storage_order, **options)
    proto.graph.node[0].output.append("i")
    proto.graph.output.append(helper.make_tensor_value_info("i", TensorProto.INT64, [None] * 4))
    x = np.random.default_rng(1).integers(0, 9, SHAPE).astype(np.float32)  # with equal ones
    found = lowered(proto)
    onnx.checker.check_model(found)
    ours, expected = (evaluator(m.graph, {"": 22}).run(None, {"x": x}) for m in (found, proto))
    for one, want in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(one, want, strict=True)


def test_indices_of_maxima_as_in_pytorch():
    torch = pytest.importorskip("torch")
    proto = pool("MaxPool", SHAPE, kernel_shape=[3, 2], dilations=[2, 1], pads=[1, 0, 1, 0])
    proto.graph.node[0].output.append("i")
    proto.graph.output.append(helper.make_tensor_value_info("i", TensorProto.INT64, [None] * 4))
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    values, places = evaluator(lowered(proto).graph, {"": 22}).run(None, {"x": x})
    wanted = torch.nn.functional.max_pool2d(
        torch.from_numpy(x), (3, 2), 1, (1, 0), (2, 1), return_indices=True
    )
    np.testing.assert_array_equal(values, wanted[0])
    planes = np.arange(SHAPE[0] * SHAPE[1]).reshape(*SHAPE[:2], 1, 1) * SHAPE[2] * SHAPE[3]
    np.testing.assert_array_equal(places - planes, wanted[1])


def test_nodes_without_inputs_stay():
    proto = pool("LpPool", kernel_shape=[2, 2])
    proto.graph.node[0].CopyFrom(helper.make_node("RandomNormal", [], ["y"], shape=SHAPE))
    assert lowered(proto) is None


@pytest.mark.backend
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool", "LpPool"])
def test_tensorrt_builds_them(operator, tmp_path):
    onnx.save(
        pool(operator, kernel_shape=[2, 3], dilations=[2, 1], pads=[1] * 4), tmp_path / "m.onnx"
    )
    plan = build_plan(tmp_path / "m.onnx", BuildConfig(precision=Precision.FP16), backend="rtx")
    assert pass_records(plan.manifest)["lower_pools"]["nodes"] == {operator: 1}
