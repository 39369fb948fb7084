"""Models whose pages are tested."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from helpers.text_models import normal


def blocks_model(count=3, width=8):
    """Blocks of a product, an activation and a computed Reshape, in modules ``blocks.N.mlp``."""
    nodes, weights, last = [], {}, "x"
    for block in range(count):
        place = f"blocks.{block}"
        weights[f"{place}.weight"] = normal(block, width, width, scale=width**-0.5)
        tail = f"{place}.tail"
        weights[tail] = np.array([width], np.int64)
        out = f"y{block}"
        nodes += [
            _node("Shape", [last], [f"{out}_shape"], f"{place}/Shape", start=0, end=1),
            _node(
                "Concat",
                [f"{out}_shape", tail],
                [f"{out}_to"],
                f"{place}/Concat",
                axis=0,
            ),
            _node("MatMul", [last, f"{place}.weight"], [f"{out}_a"], f"{place}.mlp/MatMul"),
            _node("Relu", [f"{out}_a"], [f"{out}_b"], f"{place}.mlp/Relu"),
            _node("Reshape", [f"{out}_b", f"{out}_to"], [out], f"{place}/Reshape"),
        ]
        last = out
    nodes.append(_node("Softmax", [last], ["probabilities"], "/Softmax", axis=-1))
    return _model(nodes, weights, ["batch", width])


def long_model(count):
    """A model of so many nodes: blocks of 25 in 20 stages, each a product and activations."""
    nodes, weights, last = [], {}, "x"
    for number in range(count - 1):
        block, place = divmod(number, 25)
        scope = f"stages.{block % 20}.blocks.{block // 20}"
        name = f"{scope}.{'linear' if place % 5 == 0 else 'act'}"
        if place % 5 == 0:
            weights[f"{name}{number}.weight"] = np.eye(4, dtype=np.float32)
            read = [last, f"{name}{number}.weight"]
        else:
            read = [last]
        kind = "MatMul" if place % 5 == 0 else ("Relu", "Sigmoid", "Tanh", "Neg")[place % 5 - 1]
        nodes.append(_node(kind, read, [f"t{number}"], f"{name}/{kind}_{number}"))
        last = f"t{number}"
    nodes.append(_node("Softmax", [last], ["probabilities"], "head/Softmax", axis=-1))
    return _model(nodes, weights, ["batch", 4])


def hostile_model(name):
    """A model in which everything that has a name has this one, more or less."""
    nodes = [
        helper.make_node(
            "Mystery", [name], [f"{name} 1"], f"{name}/{name}", domain=name, text=name
        ),
        helper.make_node("Relu", [f"{name} 1"], [f"{name} 2"], name),
    ]
    model = _model(nodes, {f"{name} w": np.zeros(2, np.float32)}, [name, 2], name, f"{name} 2")
    model.opset_imports[name] = 1
    model.metadata_props[name] = name
    model.producer_name = name
    return model


def _node(kind, inputs, outputs, name, **attributes):
    return helper.make_node(kind, inputs, outputs, name, **attributes)


def _model(nodes, weights, shape, source="x", result="probabilities"):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
