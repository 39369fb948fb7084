"""The model of the comparisons of runtimes: four FP32 convolutions, with static shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from bare import Array
from onnx import TensorProto, helper, numpy_helper

__all__ = ["SHAPES", "TOLERANCE", "make_model", "reference"]

SHAPES = ((2, 64, 64, 64), (4, 64, 128, 128))
TOLERANCE = 2e-3  # relative L2 error against PyTorch in float64: room for TF32


def make_model(path: Path, shape: tuple[int, ...]) -> list[Array]:
    """Write four 3x3 convolutions with ReLU between them; returns their weights."""
    random = np.random.default_rng(0)
    channels = shape[1]
    scale = (2 / (9 * channels)) ** 0.5
    weights = [
        (random.standard_normal((channels, channels, 3, 3), np.float32) * scale) for _ in range(4)
    ]
    nodes = []
    for index in range(4):
        names = [f"a{index}" if index else "x", f"w{index}"]
        after = f"c{index}" if index < 3 else "y"
        nodes.append(helper.make_node("Conv", names, [after], pads=[1, 1, 1, 1]))
        if index < 3:
            nodes.append(helper.make_node("Relu", [after], [f"a{index + 1}"]))
    graph = helper.make_graph(
        nodes,
        "four_convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.save(model, path)
    return weights


def reference(weights: list[Array], x: Array) -> Any:
    """The same in PyTorch on the CPU, in float64."""
    value = torch.from_numpy(x).double()
    for index, weight in enumerate(weights):
        kernel = torch.from_numpy(weight).double()
        value = torch.nn.functional.conv2d(value, kernel, padding=1)
        value = torch.relu(value) if index < 3 else value
    return value.numpy()
