"""Models of one recurrent layer."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["GATES", "recurrent_model", "torch_weights"]

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
STEPS, INPUTS = 5, 3
# ONNX has the gates of an LSTM as i, o, f, c where PyTorch has i, f, c, o; those of a GRU as z, r,
# h where PyTorch has r, z, h.
_ORDERS = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def torch_weights(layer):
    """The weights of a ``torch.nn.LSTM``, ``GRU`` or ``RNN`` of one level, as ONNX has them."""
    order = _ORDERS[type(layer).__name__]

    def gates(name):
        suffixes = ("", "_reverse") if layer.bidirectional else ("",)
        arrays = [getattr(layer, f"{name}_l0{s}").detach().numpy() for s in suffixes]
        return np.stack(
            [np.concatenate([np.split(a, len(order))[i] for i in order]) for a in arrays]
        )

    biases = np.concatenate([gates("bias_ih"), gates("bias_hh")], 1)
    return {"w": gates("weight_ih"), "r": gates("weight_hh"), "b": biases}


def recurrent_model(
    operator, direction="forward", *, layout=0, batch=2, hidden=5, steps=STEPS, optional=False,
    peepholes=False, bias=True, weights=None, outputs=None, **attributes,
):  # fmt: skip
    """A model of one layer at opset 17, and random values for its inputs.

    A batch or number of steps that is a name makes a dynamic dimension. ``optional``: lengths of
    sequences and initial states are inputs.
    """
    rng = np.random.default_rng(3)
    directions, gates = _DIRECTIONS[direction], GATES[operator]

    def draw(*shape):
        return (0.5 * rng.standard_normal(shape)).astype(np.float32)

    if weights is None:
        weights = {
            "w": draw(directions, gates * hidden, INPUTS),
            "r": draw(directions, gates * hidden, hidden),
            "b": draw(directions, 2 * gates * hidden),
        }
    weights = {name: array for name, array in weights.items() if bias or name != "b"}
    names = ["x", "w", "r", "b" if bias else "", *[""] * 4]
    count = batch if isinstance(batch, int) else 2
    time = steps if isinstance(steps, int) else STEPS
    state = (count, directions, hidden) if layout else (directions, count, hidden)
    inputs = {"x": draw(*((count, time, INPUTS) if layout else (time, count, INPUTS)))}
    axes = {"x": (0, 1) if layout else (1, 0), "lens": (0,)}
    if optional:
        inputs |= {"lens": np.resize([3, time], count).astype(np.int32), "h": draw(*state)}
        inputs |= {"c": draw(*state)} if operator == "LSTM" else {}
        names[4:7] = ["lens", "h", "c" if operator == "LSTM" else ""]
    if peepholes:
        weights["p"], names[7] = draw(directions, 3 * hidden), "p"
    while not names[-1]:
        names.pop()
    if operator != "GRU":
        attributes.pop("linear_before_reset", None)
    made = outputs or ["y", "y_h", "y_c"][: 3 if operator == "LSTM" else 2]
    node = helper.make_node(
        operator, names, made, name="layer",
        hidden_size=hidden, direction=direction, layout=layout, **attributes,
    )  # fmt: skip
    infos = []
    for name, array in inputs.items():
        shape = list(array.shape)
        for axis, extent in zip(
            axes.get(name, (0 if layout else 1,)), (batch, steps), strict=False
        ):
            shape[axis] = extent
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        infos.append(helper.make_tensor_value_info(name, kind, shape))
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in made if n]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "layer", infos, results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model), inputs
