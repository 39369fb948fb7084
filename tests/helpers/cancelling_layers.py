"""A model that FP16 computes badly, by a few nodes."""

from __future__ import annotations

import numpy as np
from onnx import helper

from helpers import tiny_models
from helpers.tiny_models import FLOAT, tensor

__all__ = ["cancelling_layers"]


def cancelling_layers(path):
    """Layers in the middle of which 1000 is added and subtracted, which leaves FP16 few bits."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], {}, "x"
    for number in range(12):
        if number == 7:
            weights["large"] = np.float32(1000)
            steps = [
                ("Add", [value, "large"], "sum"),
                ("Identity", ["sum"], "same"),
                ("Sub", ["same", "large"], "back"),
            ]
            for operator, inputs, output in steps:
                nodes.append(helper.make_node(operator, inputs, [output], name=f"mid/{output}"))
            value = "back"
        weights[f"w{number}"] = (rng.standard_normal((16, 16)) / 4).astype(np.float32)
        made = f"t{number}"
        nodes.append(helper.make_node("MatMul", [value, f"w{number}"], [made], name=f"l{number}"))
        value = made
    return tiny_models.save(
        path,
        nodes,
        [tensor("x", FLOAT, ["n", 16])],
        [tensor(value, FLOAT, ["n", 16])],
        weights,
    )
