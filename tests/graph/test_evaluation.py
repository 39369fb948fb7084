"""Values of nodes that depend on constants alone, also where ONNX's own evaluator is wrong."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from trt_native.graph.evaluation import evaluate_node

X = np.arange(6, dtype=np.float32).reshape(2, 3)
EXPONENTS = np.exp(X.astype(np.float64))


def node_of(operator, count, **attributes):
    return onnx.helper.make_node(operator, [f"x{i}" for i in range(count)], ["y"], **attributes)


@pytest.mark.parametrize(
    ("operator", "opset", "inputs", "attributes", "expected"),
    [
        # Counted down to in front of the data: all of it, reversed.
        ("Slice", 13, [X, [2], [-4], [1], [-1]], {}, X[:, ::-1]),
        ("Slice", 13, [X, [-5], [-9], [0], [-1]], {}, X[:1]),
        # Flattened from the axis on.
        ("Softmax", 11, [X], {"axis": 0}, EXPONENTS / EXPONENTS.sum()),
        ("Unsqueeze", 11, [X], {"axes": [3, 0]}, X[None, :, :, None]),
        ("Unique", 11, [np.float32([2, 1, 2, 0])], {"sorted": 1}, [0, 1, 2]),
        ("Mean", 13, [X, np.float32([1, 2, 3])], {}, (X + np.float32([1, 2, 3])) / 2),
        ("DequantizeLinear", 13, [np.int8([1, -2]), np.float32(0.5), np.int8(1)], {}, [0, -1.5]),
        ("Shape", 15, [X], {"end": -5}, []),
    ],
)
def test_values_are_those_of_the_specification(operator, opset, inputs, attributes, expected):
    node = node_of(operator, len(inputs), **attributes)
    names = {f"x{i}": np.asarray(value) for i, value in enumerate(inputs)}
    found = evaluate_node(node, {"": opset}, names)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-6)


def test_what_cannot_be_evaluated_is_unknown():
    assert evaluate_node(node_of("NoSuchOperator", 1), {"": 18}, {"x0": X}) is None
    assert evaluate_node(node_of("Reshape", 2), {"": 18}, {"x0": X, "x1": np.array([4])}) is None


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("SequenceEmpty", {}),
        ("Optional", {"type": onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [1])}),
    ],
)
def test_what_is_no_array_is_not_evaluated(operator, attributes):
    node = onnx.helper.make_node(operator, [], ["y"], **attributes)
    assert evaluate_node(node, {"": 18}, {}) is None
