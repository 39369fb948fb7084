from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models

from trt_native.errors import ModelError, SpecError
from trt_native.graph.onnx_file import read_model
from trt_native.graph.quantizable import quantizable_tensors


def model(text: str, imports: str = '"": 18', **weights: np.ndarray) -> ir.Model:
    """A model from ONNX text; weights become initializers."""
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]> g {text}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    return ir.from_proto(proto)


KERNEL = np.ones((3, 3, 1, 1), np.float32)
SQUARE = np.ones((4, 4), np.float32)


def test_inputs_of_products_in_the_order_of_the_nodes():
    graph = model(
        """(float[1, 3, 4, 4] x, float[4, 4] z) => (float[4, 12] y) {
            a = Conv(x, kernel, kernel_bias)
            b = Relu(a)
            c = ConvTranspose(b, kernel)
            d = Conv(b, kernel)
            e = Add(c, d)
            f = MatMul(e, e)
            g = Reshape(f, flat)
            h = Gemm<transB = 1>(z, g, row)
            y = MatMul(square, h)
        }""",
        kernel=KERNEL,
        kernel_bias=np.ones(3, np.float32),
        flat=np.array([-1, 4], np.int64),
        row=np.ones(12, np.float32),
        square=SQUARE,
    )
    assert quantizable_tensors(graph) == ["x", "b", "c", "e", "z", "g", "h"]
    assert quantizable_tensors(graph, ["Gemm", "ConvTranspose"]) == ["b", "z", "g"]
    assert quantizable_tensors(graph, []) == []


def test_the_other_side_of_a_residual_sum():
    graph = model(
        """(float[1, 4, 2, 2] x, float[1, 4, 1, 1] t) => (float[1, 4, 2, 2] y) {
            a = Conv(x, kernel)
            broadcast = Add(a, t)
            normal = Sigmoid(broadcast)
            b = Conv(normal, kernel)
            residual = Add(broadcast, b)
            y = Relu(residual)
        }""",
        kernel=np.ones((4, 4, 1, 1), np.float32),
    )
    infer = onnx.shape_inference.infer_shapes
    graph = ir.from_proto(infer(ir.to_proto(graph)))
    assert quantizable_tensors(graph) == ["x", "normal", "broadcast"]
    assert quantizable_tensors(graph, ["MatMul"]) == []


def test_a_computed_bias_is_not_an_operand():
    graph = model("(float[4, 4] x, float[4] b) => (float[4, 4] y) { y = Gemm(x, w, b) }", w=SQUARE)
    assert quantizable_tensors(graph) == ["x"]


def test_what_is_computed_from_weights_alone_is_a_weight():
    graph = model(
        """(float[4, 4] x) => (float[4, 4] y) {
            two = Constant<value_float = 2.0>()
            doubled = Mul(w, two)
            turned = Transpose(doubled)
            real = DequantizeLinear(packed, two)
            a = MatMul(x, turned)
            b = MatMul(a, real)
            noise = RandomNormalLike(w)
            y = MatMul(b, noise)
        }""",
        w=SQUARE,
        packed=np.ones((4, 4), np.int8),
    )
    assert quantizable_tensors(graph) == ["x", "a", "b", "noise"]


def test_an_initializer_that_is_also_an_input_is_a_weight():
    graph = model(
        "(float[4, 4] x, float[4, 4] w) => (float[4, 4] y) { y = MatMul(x, w) }", w=SQUARE
    )
    assert quantizable_tensors(graph) == ["x"]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", ["x"]), ("bfloat16", ["x"]), ("double", ["x"]), ("int32", [])],
)
def test_only_floats(dtype, expected):
    graph = model(f"({dtype}[4, 4] x) => ({dtype}[4, 4] y) {{ y = MatMul(x, x) }}")
    assert quantizable_tensors(graph) == expected


def test_an_operator_of_another_domain_is_another_operator():
    graph = model(
        "(float[4, 4] x) => (float[4, 4] y) { y = mine.MatMul(x, x) }", '"": 18, "mine": 1'
    )
    assert quantizable_tensors(graph) == []


def test_missing_types_are_inferred(tmp_path):
    path = tiny_models.conv(tmp_path / "m.onnx")
    graph = read_model(path)
    assert next(v for v in graph.graph.node("activation").outputs).type is None
    assert quantizable_tensors(graph) == ["a"]


def test_an_unknown_type():
    graph = model(
        "(float[4, 4] x) => (float[4, 4] y) { a = mine.Warp(x)  y = MatMul(a, x) }",
        '"": 18, "mine": 1',
    )
    with pytest.raises(ModelError, match="the type of value 'a'"):
        quantizable_tensors(graph)


def test_an_operator_that_is_never_quantized():
    with pytest.raises(SpecError, match="cannot be quantized: Relu; choose from Conv"):
        quantizable_tensors(model("(float[4] x) => (float[4] y) { y = Relu(x) }"), ["Relu", "Conv"])
