"""Models that keep keys and values in caches, which ``TensorScatter`` updates."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["FEATURES", "HEADS", "LENGTH", "attention_step", "cache_update"]

HEADS, LENGTH, FEATURES = 2, 16, 8
_WIDTH = HEADS * FEATURES
_FLOATS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def _save(path, nodes, inputs, outputs, weights):
    graph = helper.make_graph(
        nodes,
        "cached",
        [helper.make_tensor_value_info(*x) for x in inputs],
        [helper.make_tensor_value_info(*y) for y in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def cache_update(path, *, mode="linear", axis=-2, shape=("batch", HEADS, LENGTH, FEATURES)):
    """One cache, an update of one place, and the index to write it at."""
    update = [1 if i == axis % len(shape) else extent for i, extent in enumerate(shape)]
    node = helper.make_node(
        "TensorScatter", ["past", "new", "index"], ["present"], name="write", mode=mode, axis=axis
    )
    return _save(
        path,
        [node],
        [
            ("past", TensorProto.FLOAT, shape),
            ("new", TensorProto.FLOAT, update),
            ("index", TensorProto.INT64, [shape[0]]),
        ],
        [("present", TensorProto.FLOAT, shape)],
        {},
    )


def attention_step(path, cache_type="float32"):
    """A step of attention over one token: projections, two cache updates, and the result.

    Inputs are ``x`` (1, 1, 16), ``index`` (1), and the caches ``keys`` and ``values``
    (1, 2, 16, 8); outputs are ``y`` (1, 1, 16), ``new_keys`` and ``new_values``.
    """
    random = np.random.default_rng(0)
    scale = np.float32(_WIDTH**-0.5)
    weights = {
        name: random.standard_normal((_WIDTH, _WIDTH), np.float32) * scale for name in "qkvo"
    }
    weights |= {
        "heads": np.array([1, 1, HEADS, FEATURES]),
        "flat": np.array([1, 1, _WIDTH]),
        "places": np.arange(LENGTH).reshape(1, 1, 1, LENGTH),
        "last": np.array([1, 1, 1, 1]),
        "masked": np.float32(-1e4),
        "zero": np.float32(0),
        "root": np.float32(FEATURES**-0.5),
    }
    cache, float32 = _FLOATS[cache_type], TensorProto.FLOAT
    node, nodes = helper.make_node, []
    for name in "qkv":
        flat, rows, new = (f"{name}_{end}" for end in ("flat", "rows", "new"))
        nodes += [
            node("MatMul", ["x", name], [flat], name=f"project_{name}"),
            node("Reshape", [flat, "heads"], [rows], name=f"split_{name}"),
            node("Transpose", [rows], [new], name=f"move_{name}", perm=(0, 2, 1, 3)),
        ]
    for name, past in (("k", "keys"), ("v", "values")):
        new, typed, whole = (f"{name}_{end}" for end in ("new", "typed", "all"))
        nodes += [
            node("Cast", [new], [typed], name=f"store_{name}", to=cache),
            node("TensorScatter", [past, typed, "index"], [f"new_{past}"], name=f"write_{name}"),
            node("Cast", [f"new_{past}"], [whole], name=f"load_{name}", to=float32),
        ]
    nodes += [
        node("Transpose", ["k_all"], ["k_turned"], name="turn", perm=(0, 1, 3, 2)),
        node("MatMul", ["q_new", "k_turned"], ["products"], name="compare"),
        node("Mul", ["products", "root"], ["scores"], name="scale"),
        node("Reshape", ["index", "last"], ["now"], name="place"),
        node("LessOrEqual", ["places", "now"], ["seen"], name="see"),
        node("Where", ["seen", "zero", "masked"], ["mask"], name="mask"),
        node("Add", ["scores", "mask"], ["open"], name="hide"),
        node("Softmax", ["open"], ["shares"], name="share", axis=-1),
        node("MatMul", ["shares", "v_all"], ["found"], name="mix"),
        node("Transpose", ["found"], ["rows"], name="back", perm=(0, 2, 1, 3)),
        node("Reshape", ["rows", "flat"], ["joined"], name="join"),
        node("MatMul", ["joined", "o"], ["y"], name="project_o"),
    ]
    shape = [1, HEADS, LENGTH, FEATURES]
    caches = [("keys", cache, shape), ("values", cache, shape)]
    return _save(
        path,
        nodes,
        [("x", float32, [1, 1, _WIDTH]), ("index", TensorProto.INT64, [1]), *caches],
        [("y", float32, [1, 1, _WIDTH]), *((f"new_{name}", *rest) for name, *rest in caches)],
        weights,
    )
