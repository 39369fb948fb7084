"""Models that have something to find in them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_models import FLOAT, save, tensor
from onnx import helper

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def draw(monkeypatch):
    """A random graph by its seed."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from fuzzing.graphs import random_model
    from fuzzing.templates import TEMPLATES

    yield lambda seed: random_model(seed, TEMPLATES, 8)
    for name in [name for name in sys.modules if name.partition(".")[0] == "fuzzing"]:
        del sys.modules[name]


@pytest.fixture
def layers(tmp_path):
    """Write a model of 60 nodes and more, with others in the middle: a function of these."""

    def write(*planted, shape=(4, 32), opset=18, domains=None):
        rng = np.random.default_rng(0)
        nodes, weights, value = [], {}, "x"
        for number in range(60):
            if number == 40:
                for node in planted:
                    node.input[:] = [value if name == "@" else name for name in node.input]
                    value = node.output[0]
                nodes += planted
            operator = ("MatMul", "Relu", "Sigmoid", "Add")[number % 4]
            inputs = [value]
            if operator == "MatMul":
                weights[f"w{number}"] = 0.1 * rng.standard_normal((shape[1],) * 2, np.float32)
                inputs.append(f"w{number}")
            if operator == "Add":
                inputs.append(nodes[-2].output[0])
            value = f"t{number}"
            nodes.append(helper.make_node(operator, inputs, [value], name=f"layer{number}"))
        inputs, outputs = [tensor("x", FLOAT, shape)], [tensor(value, FLOAT, shape)]
        path = tmp_path / "m.onnx"
        return save(path, nodes, inputs, outputs, weights, opset=opset, domains=domains)

    return write
