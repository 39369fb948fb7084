"""Multiply-adds against PyTorch's counter, and static shapes against runs of onnx.reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import i64, model, normal
from onnx.reference import ReferenceEvaluator

from trt_native.graph.macs import multiply_adds, static_shapes


def counted(operator, left, right, result=None, **attributes):
    """Multiply-adds of one node with operands of these shapes."""
    node = ir.node(operator, [ir.Value(name="x"), ir.Value(name="w")], attributes)
    node.outputs[0].name = "y"
    return multiply_adds(node, {"x": left, "w": right} | ({"y": result} if result else {}))


def by_pytorch(work, left, right, **options):
    """Multiply-adds that PyTorch counts for a call, and the shape of its result."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        result = work(torch)(torch.zeros(left), torch.zeros(right), **options)
    flops = counter.get_total_flops()
    assert flops > 0
    return flops // 2, tuple(result.shape)


@pytest.mark.parametrize(
    ("left", "right", "options"),
    [
        ((2, 3, 8, 8), (4, 3, 3, 3), {"padding": 1}),
        ((1, 8, 9, 7), (12, 2, 3, 5), {"groups": 4, "stride": 2, "padding": 2}),
        ((1, 6, 10, 10), (6, 1, 3, 3), {"groups": 6, "dilation": 2}),
    ],
)
def test_convolutions(left, right, options):
    expected, shape = by_pytorch(lambda torch: torch.nn.functional.conv2d, left, right, **options)
    assert counted("Conv", left, right, shape) == expected


@pytest.mark.parametrize(
    ("left", "right", "options"),
    [
        ((2, 3, 4, 4), (3, 5, 2, 2), {"stride": 2}),
        ((1, 4, 5, 3), (4, 2, 3, 3), {"stride": 2, "padding": 1}),
    ],
)
def test_transposed_convolutions(left, right, options):
    expected, _ = by_pytorch(
        lambda torch: torch.nn.functional.conv_transpose2d, left, right, **options
    )
    assert counted("ConvTranspose", left, right) == expected


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 16), (16, 20)),
        ((2, 3, 16), (16, 20)),
        ((2, 3, 16), (2, 16, 20)),
        ((2, 1, 3, 16), (5, 16, 20)),
        ((7, 16), (4, 16, 20)),
    ],
)
def test_matrix_products(left, right):
    expected, _ = by_pytorch(lambda torch: torch.matmul, left, right)
    assert counted("MatMul", left, right) == expected


@pytest.mark.parametrize(
    ("operator", "left", "right", "attributes", "expected"),
    [
        ("MatMul", (16,), (16, 20), {}, 16 * 20),
        ("MatMul", (3, 16), (16,), {}, 3 * 16),
        ("MatMul", (16,), (16,), {}, 16),
        ("MatMul", (5, 3, 16), (16,), {}, 5 * 3 * 16),
        ("MatMul", (0, 16), (16, 20), {}, 0),
        ("Gemm", (3, 16), (16, 20), {}, 3 * 16 * 20),
        ("Gemm", (3, 16), (20, 16), {"transB": 1}, 3 * 16 * 20),
        ("Gemm", (16, 3), (16, 20), {"transA": 1}, 3 * 16 * 20),
        ("Gemm", (16, 3), (20, 16), {"transA": 1, "transB": 1}, 3 * 16 * 20),
    ],
)
def test_vectors_and_transposed_operands(operator, left, right, attributes, expected):
    assert counted(operator, left, right, **attributes) == expected


def test_unknown_shapes_give_no_number():
    assert counted("Conv", (1, 3, 8, 8), (4, 3, 3, 3)) is None  # of the result
    assert counted("MatMul", None, (16, 20)) is None
    assert counted("MatMul", (3, 16), None) is None


NET = """(float[N, 3, H, 8] x, float[N, K] z) => (float[N, 4] y, float[N, 2, K] u) {
    c = Conv<pads = [1, 1, 1, 1], strides = [2, 1]>(x, w)
    r = Relu(c)
    m = ReduceMean<keepdims = 0>(r, axes)
    y = MatMul(m, v)
    e = Unsqueeze(z, one)
    u = Expand(e, two)
}"""


def net():
    axes = {"axes": i64(2, 3), "one": i64(1), "two": i64(1, 2, 1)}
    return model(NET, w=normal(0, 5, 3, 3, 3), v=normal(1, 5, 4), **axes)


def test_static_shapes_are_those_of_a_run():
    original = net()
    proto = ir.to_proto(original)
    noted = [value.shape for node in original.graph for value in node.outputs]
    given = {"x": (2, 3, 7, 8), "z": (2, 6)}
    shapes = static_shapes(original, given)
    assert [value.shape for node in original.graph for value in node.outputs] == noted
    assert ir.to_proto(original).graph.node == proto.graph.node
    assert ir.to_proto(original).graph.input == proto.graph.input
    names = [name for node in proto.graph.node for name in node.output]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    inputs = {name: np.zeros(shape, np.float32) for name, shape in given.items()}
    arrays = ReferenceEvaluator(proto).run(None, inputs)
    expected = given | {name: array.shape for name, array in zip(names, arrays, strict=True)}
    weights = {name: v.const_value.numpy().shape for name, v in original.graph.initializers.items()}
    assert shapes == expected | weights


def test_values_of_dynamic_shape_are_left_out():
    shapes = static_shapes(net(), {"z": (2, 6)})
    assert shapes["e"] == (2, 1, 6)
    assert "c" not in shapes
    assert "x" not in shapes


def test_symbolic_shapes_of_the_model_help_where_inference_gives_up():
    original = model("(float[N, 4] x) => (float[M, 4] y) { h = Relu(x) y = Relu(h) }")
    plugin = original.graph[0]
    plugin.domain, plugin.op_type = "own", "Twice"
    original.opset_imports["own"] = 1
    plugin.outputs[0].shape = ir.Shape(["2*N", 4])
    plugin.outputs[0].dtype = ir.DataType.FLOAT
    assert static_shapes(original, {"x": (3, 4)})["h"] == (6, 4)
    plugin.outputs[0].shape = ir.Shape(["L", 4])
    assert "h" not in static_shapes(original, {"x": (3, 4)})
