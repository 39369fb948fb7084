"""ONNX graphs of two well-known convolutional networks, with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["resnet50", "yolov8n"]

_OPSET = 17


class _Graph:
    """Nodes and weights; a value is its name and number of channels."""

    def __init__(self, size: int) -> None:
        self._rng = np.random.default_rng(0)
        self._size = size
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        name = f"{operator.lower()}_{len(self.nodes)}"
        made = [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, made, name=name, **attributes))
        return made

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(
        self, x: str, channels: int, to: int, kernel: int = 1, stride: int = 1, act: str = ""
    ) -> str:
        deviation = np.float32((channels * kernel**2) ** -0.5)
        weight = deviation * self._rng.standard_normal((to, channels, kernel, kernel), np.float32)
        bias = np.zeros(to, np.float32)
        (y,) = self.add(
            "Conv", x, self.constant(weight), self.constant(bias), strides=[stride] * 2,
            kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4,
        )  # fmt: skip
        if act == "silu":
            return self.add("Mul", y, *self.add("Sigmoid", y))[0]
        return self.add("Relu", y)[0] if act else y

    def model(self, *outputs: str) -> onnx.ModelProto:
        shape = [1, 3, self._size, self._size]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "network", [x], made, self.weights)
        imports = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def resnet50(size: int = 224) -> onnx.ModelProto:
    """ResNet-50 with its batch norms folded: 25.5 million weights, 122 nodes."""
    g = _Graph(size)
    x, channels = g.conv("x", 3, 64, 7, 2, "relu"), 64
    (x,) = g.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, count in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            y = g.conv(x, channels, width, act="relu")
            y = g.conv(y, width, width, 3, stride, "relu")
            y = g.conv(y, width, 4 * width)
            x = x if block else g.conv(x, channels, 4 * width, 1, stride)
            (x,) = g.add("Relu", *g.add("Add", x, y))
            channels = 4 * width
    (x,) = g.add("Flatten", *g.add("GlobalAveragePool", x))
    weight, bias = np.full((1000, channels), 1e-3, np.float32), np.zeros(1000, np.float32)
    return g.model(*g.add("Gemm", x, g.constant(weight), g.constant(bias), transB=1))


def yolov8n(size: int = 640) -> onnx.ModelProto:
    """A detector of the size and operators of YOLOv8n: 3 million weights, 230 nodes."""
    g = _Graph(size)

    def block(x: str, channels: int, to: int, count: int, *, adds: bool) -> str:
        """Half of the channels through some convolutions, and all stages joined."""
        half = to // 2
        sizes = g.constant(np.array([half, half]))
        parts = g.add("Split", g.conv(x, channels, to, act="silu"), sizes, outputs=2, axis=1)
        for _ in range(count):
            y = g.conv(g.conv(parts[-1], half, half, 3, act="silu"), half, half, 3, act="silu")
            parts += g.add("Add", parts[-1], y) if adds else [y]
        (x,) = g.add("Concat", *parts, axis=1)
        return g.conv(x, half * (2 + count), to, act="silu")

    def joined(*parts: str) -> str:
        return g.add("Concat", *parts, axis=1)[0]

    def enlarged(x: str) -> str:
        scales = g.constant(np.array([1, 1, 2, 2], np.float32))
        options: dict[str, Any] = {"mode": "nearest", "nearest_mode": "floor"}
        form = "asymmetric"
        return g.add("Resize", x, "", scales, coordinate_transformation_mode=form, **options)[0]

    x = g.conv(g.conv("x", 3, 16, 3, 2, "silu"), 16, 32, 3, 2, "silu")
    x = block(x, 32, 32, 1, adds=True)
    third = block(g.conv(x, 32, 64, 3, 2, "silu"), 64, 64, 2, adds=True)
    fourth = block(g.conv(third, 64, 128, 3, 2, "silu"), 128, 128, 2, adds=True)
    x = block(g.conv(fourth, 128, 256, 3, 2, "silu"), 256, 256, 1, adds=True)
    pools = [g.conv(x, 256, 128, act="silu")]
    for _ in range(3):
        pools += g.add("MaxPool", pools[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4)
    fifth = g.conv(joined(*pools), 512, 256, act="silu")
    middle = block(joined(enlarged(fifth), fourth), 384, 128, 1, adds=False)
    small = block(joined(enlarged(middle), third), 192, 64, 1, adds=False)
    x = joined(g.conv(small, 64, 64, 3, 2, "silu"), middle)
    medium = block(x, 192, 128, 1, adds=False)
    x = joined(g.conv(medium, 128, 128, 3, 2, "silu"), fifth)
    large = block(x, 384, 256, 1, adds=False)
    heads = []
    for value, channels in ((small, 64), (medium, 128), (large, 256)):
        sides = []
        for width, to in ((64, 64), (80, 80)):
            y = g.conv(value, channels, width, 3, act="silu")
            sides.append(g.conv(g.conv(y, width, width, 3, act="silu"), width, to))
        shape = g.constant(np.array([1, 144, -1]))
        heads += g.add("Reshape", joined(*sides), shape)
    return g.model(*g.add("Concat", *heads, axis=2))
