"""Small models of every kind that a mutation should meet."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from helpers import tiny_models
from helpers.tiny_models import BOOL, FLOAT, tensor


def branches(path):
    """An If, each branch of which reads a value of the main graph."""
    sides = {
        side: helper.make_graph(
            [helper.make_node(operator, ["x"], [side])], side, [], [tensor(side, FLOAT, ["n", 8])]
        )
        for side, operator in (("then", "Relu"), ("other", "Sigmoid"))
    }
    nodes = [
        helper.make_node(
            "If", ["c"], ["y"], name="if", then_branch=sides["then"], else_branch=sides["other"]
        )
    ]
    inputs = [tensor("x", FLOAT, ["n", 8]), tensor("c", BOOL, [])]
    return tiny_models.save(path, nodes, inputs, [tensor("y", FLOAT, ["n", 8])])


def loop(path):
    """A Loop that doubles its value."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["v", "v"], ["w"], name="double"),
        ],
        "body",
        [tensor("i", TensorProto.INT64, []), tensor("go", BOOL, []), tensor("v", FLOAT, [2, 8])],
        [tensor("go_on", BOOL, []), tensor("w", FLOAT, [2, 8])],
    )
    nodes = [helper.make_node("Loop", ["count", "true", "x"], ["y"], name="loop", body=body)]
    weights = {"count": np.array(3, np.int64), "true": np.array(True)}
    shape = [2, 8]
    return tiny_models.save(
        path, nodes, [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, shape)], weights
    )


def function(path):
    """A function of the model's own, with a constant in it."""
    constant = numpy_helper.from_array(np.full(8, 0.5, np.float32), "c")
    body = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("Mul", ["a", "c"], ["b"]),
    ]
    opsets = [helper.make_opsetid("", 18)]
    halved = helper.make_function("my", "Halved", ["a"], ["b"], body, opsets)
    nodes = [helper.make_node("Halved", ["x"], ["y"], name="halved", domain="my")]
    shape = ["n", 8]
    return tiny_models.save(
        path,
        nodes,
        [tensor("x", FLOAT, shape)],
        [tensor("y", FLOAT, shape)],
        functions=[halved],
        domains={"my": 1},
    )


def custom(path):
    """An operator that nobody knows."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Strange", ["r"], ["y"], name="strange", domain="my", mode="fast"),
    ]
    shape = ["n", 8]
    return tiny_models.save(
        path,
        nodes,
        [tensor("x", FLOAT, shape)],
        [tensor("y", FLOAT, shape)],
        domains={"my": 1},
    )


def quantized(path):
    """A linear layer in INT8, by Q/DQ nodes."""
    weights = {
        "w": np.arange(64, dtype=np.int8).reshape(8, 8),
        "scale": np.float32(0.05),
        "zero": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["k"], name="dq_w"),
        helper.make_node("MatMul", ["d", "k"], ["y"], name="matmul"),
    ]
    shape = ["n", 8]
    return tiny_models.save(
        path, nodes, [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, shape)], weights
    )


def write_seeds(folder):
    """One file of each; weights of one of them lie in ``weights.bin``."""
    make = {
        "conv": tiny_models.conv,
        "norm": tiny_models.norm,
        "coupled": tiny_models.coupled,
        "reshape": tiny_models.reshape_by_input,
        "dense": lambda path: tiny_models.dense(path, width=32),
        "both": tiny_models.conv_and_dense,
        "external": tiny_models.external_weights,
        "branches": branches,
        "loop": loop,
        "function": function,
        "custom": custom,
        "quantized": quantized,
    }
    return [write(folder / f"{name}.onnx") for name, write in make.items()]
