#!/usr/bin/env python3
"""Map which fusions of TensorRT-RTX compute something else, and which rewrites prevent that.

Only the raw parser, builder and runtime of tensorrt_rtx are used; needs a GPU, and takes about
three minutes on 16 cores. Small networks of each family are drawn from a grid of operators, shapes,
axes and types, and compared with ONNX Runtime, or where that is not installed with onnx.reference.
For those that are wrong, each rewrite is tried at each place. Tables of failure rates by parameter
go to stdout, everything to a JSON file.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import time
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from child_process import Child, Lost, for_each
from differences import difference
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
LIMITS = {"fp32": 2e-3, "fp16": 3e-2}
_PATIENCE_S = 40
_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}

Array = np.ndarray[Any, Any]
Params = dict[str, Any]


@dataclass
class Net:
    """A network under construction.

    Attributes:
        kind: ``fp32`` or ``fp16``: the type of its values.
        nodes: The nodes.
        constants: The initializers.
        inputs: The inputs, by name.
        places: Names of the values at which a rewrite may help.
        readers: Outputs of the nodes that a rewrite at a place is for; all where it is not here.
        dynamic: Whether an axis of the inputs is one.
        axis: Which.
        tight: Whether the first shapes are the smallest of the profile.
        keeps: Whether addresses stay from one run to the next, and are set once.
        marked: Values that are outputs, or ``mark_debug`` tensors, besides the last.
    """

    kind: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    inputs: dict[str, Array] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    readers: dict[str, list[str]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    dynamic: bool = False
    axis: int = 0
    tight: bool = False
    keeps: bool = False
    debug: list[str] = field(default_factory=list)
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    @property
    def dtype(self) -> Any:
        """The type of the values in NumPy."""
        return np.float16 if self.kind == "fp16" else np.float32

    def input(self, shape: tuple[int, ...], scale: float = 1.0) -> str:
        """Add an input of random values."""
        name = f"x{len(self.inputs)}"
        values = self.generator.standard_normal(shape, np.float32) * np.float32(scale)
        self.inputs[name] = values.astype(self.dtype)
        return name

    def constant(self, values: Any) -> str:
        """Add an initializer; floating point takes the network's type."""
        array = np.asarray(values)
        if array.dtype.kind == "f":
            array = array.astype(self.dtype)
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        """Add an initializer of random values that keeps the scale of what it multiplies."""
        values = self.generator.standard_normal(shape, np.float32)
        return self.constant(values / np.sqrt(max(1, int(np.prod(shape[1:])))))

    def add(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node of one output; returns that."""
        return self.add_all(operator, inputs, 1, **attributes)[0]

    def add_all(self, operator: str, inputs: list[str], count: int, **attributes: Any) -> list[str]:
        """Add a node; returns its outputs."""
        outputs = [f"v{len(self.nodes)}_{index}" for index in range(count)]
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs

    def place(self, value: str) -> str:
        """Note a value at which a rewrite may help."""
        self.places.append(value)
        return value

    def varies(self, array: Array) -> bool:
        """Whether an input has the dynamic axis."""
        return self.dynamic and array.ndim > self.axis and array.shape[self.axis] != 1

    def model(self) -> onnx.ModelProto:
        """The network as a model."""
        floats = _TYPES[self.kind]
        inputs = []
        for name, array in self.inputs.items():
            shape: list[int | str] = list(array.shape)
            if self.varies(array):
                shape[self.axis] = "n"
            kind = floats if array.dtype.kind == "f" else TensorProto.BOOL
            inputs.append(helper.make_tensor_value_info(name, kind, shape))
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "probe", inputs, outputs, self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
        )
        types = onnx.shape_inference.infer_shapes(model, data_prop=True)
        del model.graph.output[:]
        model.graph.output.extend(types.graph.output)
        return model


# ---------------------------------------------------------------- families


def reduction_pairs(p: Params, net: Net) -> None:
    """A reduction, perhaps an elementwise operator, and a reduction over other axes."""
    x = net.input(p["shape"])
    if p["before"]:
        x = net.add(p["before"], [x])
    y = net.place(_first(net, p["first"], x, p["axis"], len(p["shape"])))
    if p["between"] == "scale":
        y = net.add("Mul", [y, net.constant(1.5)])
    elif p["between"] == "Transpose":
        perm = [*range(1, len(p["shape"])), 0]
        y = net.add("Transpose", [y], perm=perm)
    elif p["between"]:
        y = net.add(p["between"], [y])
    shape = p["shape"]
    if p["between"] == "Transpose":
        shape = (*shape[1:], shape[0])
    if p["between"]:
        net.place(y)
    z = _second(net, p["second"], y, p["axes"], shape, p["keepdims"])
    net.outputs = [z, net.places[0]] if p["both"] else [z]


def _first(net: Net, operator: str, x: str, axis: int, rank: int) -> str:
    if operator in ("Softmax", "LogSoftmax"):
        return net.add(operator, [x], axis=axis)
    axes = net.constant(np.array([axis], np.int64))
    if operator == "InstanceNorm":
        return _instance_norm(net, x)
    if operator == "spelled softmax":
        e = net.add("Exp", [net.add("Sub", [x, net.add("ReduceMax", [x, axes], keepdims=1)])])
        return net.add("Div", [e, net.add("ReduceSum", [e, axes], keepdims=1)])
    if operator.startswith("center "):
        return net.add("Sub", [x, net.add(operator.removeprefix("center "), [x, axes], keepdims=1)])
    if operator == "CumSum":
        return net.add("CumSum", [x, net.constant(np.array(axis, np.int64))])
    if operator == "LpNormalization":
        return net.add(operator, [x], axis=axis, p=2)
    del rank
    return net.add(operator, [x, axes], keepdims=1)


def _second(
    net: Net, operator: str, y: str, axes: list[int], shape: tuple[int, ...], keepdims: int
) -> str:
    if operator == "InstanceNorm":
        return _instance_norm(net, y, shape[1])
    if operator in ("Softmax", "LogSoftmax"):
        return net.add(operator, [y], axis=axes[0])
    if operator == "CumSum":
        return net.add("CumSum", [y, net.constant(np.array(axes[0], np.int64))])
    if operator == "ArgMax":
        return net.add("Cast", [net.add(operator, [y], axis=axes[0])], to=_TYPES[net.kind])
    if operator == "TopK":
        one = net.constant(np.array([1], np.int64))
        return net.add_all("TopK", [y, one], 2, axis=axes[0])[0]
    if operator in ("GlobalAveragePool", "GlobalMaxPool"):
        return net.add(operator, [y])
    if operator == "LayerNorm":
        scale = net.constant(np.ones(shape[-1], np.float32))
        return net.add("LayerNormalization", [y, scale], axis=-1)
    return net.add(operator, [y, net.constant(np.array(axes, np.int64))], keepdims=keepdims)


def _instance_norm(net: Net, x: str, channels: int | None = None) -> str:
    channels = channels or next(iter(net.inputs.values())).shape[1]
    scale, bias = net.weight(channels), net.weight(channels)
    return net.add("InstanceNormalization", [x, scale, bias], epsilon=1e-3)


Shape = tuple[int, ...]
_RANK_3: list[Shape] = [(2, 8, 5), (3, 4, 8), (1, 3, 3), (4, 16, 16), (8, 32, 32), (2, 33, 65)]
_RANK_3 += [(1, 64, 64), (2, 128, 128), (16, 256, 256), (1, 512, 1024), (1, 1000, 196), (32, 4, 7)]
_RANK_4: list[Shape] = [(2, 8, 2, 5), (3, 4, 8, 7), (1, 2, 2, 2), (4, 4, 4, 4), (1, 8, 8, 8)]
_RANK_4 += [(2, 16, 8, 8), (1, 64, 16, 16), (2, 32, 14, 14), (1, 3, 64, 64), (1, 16, 32, 32)]
_RANK_4 += [(1, 21, 128, 128), (1, 1000, 16, 16), (2, 64, 56, 56), (1, 256, 64, 64)]
_RANK_4 += [(8, 4, 128, 64), (2, 7, 31, 33)]
_RANK_5: list[Shape] = [(2, 3, 4, 5, 6), (1, 8, 4, 8, 8), (1, 16, 8, 32, 32), (2, 4, 3, 16, 16)]
_RANKS = {3: _RANK_3, 4: _RANK_4, 5: _RANK_5}
_FIRST = ["Softmax", "LogSoftmax", "spelled softmax", "center ReduceMean", "center ReduceMax"]
_FIRST += ["InstanceNorm", "LpNormalization", "CumSum"]
_SECOND = ["ReduceMin", "ReduceMax", "ReduceSum", "ReduceMean", "ReduceL2", "InstanceNorm"]
_SECOND += ["Softmax", "LogSoftmax", "CumSum", "ArgMax", "TopK", "LayerNorm", "GlobalAveragePool"]


def draw_reduction_pairs(rng: random.Random) -> Params:
    """Draw parameters of :func:`reduction_pairs`."""
    rank = rng.choice([3, 4, 4, 4, 5])
    axis = rng.randrange(rank)
    others = [a for a in range(rank) if a != axis]
    count = rng.choice([1, 1, 2, 2, len(others)])
    axes = sorted(rng.sample(others, min(count, len(others))))
    if rng.random() < 0.15:
        axes = sorted({*axes, axis})
    shape = rng.choice(_RANKS[rank])
    if rng.random() < 0.6:
        extents = [2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 32]
        shape = tuple(rng.choice(extents) for _ in range(rank))
    return {
        "shape": shape,
        "before": rng.choice(["", "", "Relu", "Sigmoid"]),
        "first": rng.choice(_FIRST),
        "axis": axis,
        "between": rng.choice(["", "", "", "Relu", "scale", "Exp", "Transpose"]),
        "second": rng.choice(_SECOND),
        "axes": axes,
        "keepdims": rng.choice([0, 1]),
        "both": rng.random() < 0.2,
    }


def shared_reads(p: Params, net: Net) -> None:
    """One value, read by a sampling operator and by another."""
    n, c, h, w = p["shape"]
    x = net.input(p["shape"])
    if p["before"]:
        x = net.add(p["before"], [x])
    net.place(x)
    sampled = _sampled(net, p, x, (n, c, h, w))
    if p["second"] == "Relu":
        other = net.add("Relu", [x])
    else:
        other = _second(net, p["second"], x, p["axes"], p["shape"], 1)
    net.readers[x] = [other]
    net.outputs = [sampled, other]


def _sampled(net: Net, p: Params, x: str, shape: tuple[int, int, int, int]) -> str:
    n, c, h, w = shape
    if p["first"] == "GridSample":
        values = net.generator.uniform(-0.9, 0.9, (n, 5, 6, 2)).astype(net.dtype)
        grid = net.constant(values)
        if not p["constant grid"]:
            grid = "grid"
            net.inputs[grid] = values
        return net.add(
            "GridSample",
            [x, grid],
            mode=p["mode"],
            padding_mode=p["padding"],
            align_corners=p["align"],
        )
    if p["first"] == "Conv":
        return net.add("Conv", [x, net.weight(4, c, 1, 1)])
    if p["first"] == "MaxPool":
        return net.add("MaxPool", [x], kernel_shape=[2, 2])
    if p["first"] == "Resize":
        scales = net.constant(np.array([1, 1, 2, 2], np.float32))
        if net.kind == "fp16":
            net.constants[-1].CopyFrom(
                numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), scales)
            )
        return net.add("Resize", [x, "", scales], mode="linear")
    if p["first"] == "Gather":
        return net.add("Gather", [x, net.constant(np.array([0, 1], np.int64))], axis=2)
    del h, w
    return net.add(p["first"], [x])


def draw_shared_reads(rng: random.Random) -> Params:
    """Draw parameters of :func:`shared_reads`."""
    second = rng.choice([s for s in _SECOND if s != "LogSoftmax"] + ["Relu", "CumSum", "CumSum"])
    several = second.startswith("Reduce")
    return {
        "shape": rng.choice(
            [s for s in _RANKS[4] if s[2] > 1 and s[3] > 1 and np.prod(s) < 300_000]
        ),
        "before": rng.choice(["", "", "Relu", "Sigmoid"]),
        "first": rng.choice(["GridSample"] * 6 + ["Conv", "MaxPool", "Resize", "Gather", "Sin"]),
        "mode": rng.choice(["linear", "nearest", "cubic"]),
        "padding": rng.choice(["zeros", "border", "reflection"]),
        "align": rng.choice([0, 1]),
        "constant grid": rng.random() < 0.5,
        "second": second,
        "axes": sorted(rng.sample(range(4), rng.choice([1, 2]) if several else 1)),
    }


def transposed_convolutions(p: Params, net: Net) -> None:
    """Tokens (n, h*w, c) as an image, then a grouped convolution."""
    n, c, side = p["batch"], p["channels"], p["side"]
    x = net.input((n, side * side, c))
    if p["before"] == "MatMul":
        x = net.add("MatMul", [x, net.weight(c, c)])
    elif p["before"] == "MatMul Add":
        x = net.add("Add", [net.add("MatMul", [x, net.weight(c, c)]), net.weight(c)])
    elif p["before"]:
        x = net.add(p["before"], [x])
    net.place(x)
    if p["spelling"] == "transpose first":
        y = net.place(net.add("Transpose", [x], perm=[0, 2, 1]))
        image = net.add("Reshape", [y, net.constant(np.array([0, c, side, side], np.int64))])
    elif p["spelling"] == "runtime batch":
        y = net.place(net.add("Transpose", [x], perm=[0, 2, 1]))
        batch = net.add("Shape", [x], start=0, end=1)
        shape = net.add(
            "Concat", [batch, net.constant(np.array([c, side, side], np.int64))], axis=0
        )
        image = net.add("Reshape", [y, shape])
    else:
        y = net.place(net.add("Reshape", [x, net.constant(np.array([0, side, side, c], np.int64))]))
        image = net.add("Transpose", [y], perm=[0, 3, 1, 2])
    net.place(image)
    groups = {"depthwise": c, "half": c // 2, "one": 1}[p["groups"]]
    k = p["kernel"]
    inputs = [image, net.weight(c, c // groups, k, k)] + ([net.weight(c)] if p["bias"] else [])
    pads = [k // 2] * 4
    z = net.place(net.add("Conv", inputs, group=groups, kernel_shape=[k, k], pads=pads))
    if p["after"] == "back":
        flat = net.add("Reshape", [z, net.constant(np.array([0, c, -1], np.int64))])
        z = net.add("Transpose", [flat], perm=[0, 2, 1])
    elif p["after"]:
        z = net.add(p["after"], [z])
    net.outputs = [z]


def draw_transposed_convolutions(rng: random.Random) -> Params:
    """Draw parameters of :func:`transposed_convolutions`."""
    return {
        "batch": rng.choice([1, 2, 2, 3, 4, 8]),
        "channels": rng.choice([8, 16, 24, 32, 64, 128, 256]),
        "side": rng.choice([2, 3, 4, 7, 8, 16, 32]),
        "before": rng.choice(["", "", "Relu", "MatMul", "MatMul Add"]),
        "spelling": rng.choice(
            ["transpose first", "transpose first", "runtime batch", "reshape first"]
        ),
        "groups": rng.choice(["depthwise", "depthwise", "half", "one"]),
        "kernel": rng.choice([1, 3, 3, 5]),
        "bias": rng.random() < 0.5,
        "after": rng.choice(["", "back", "back", "Relu"]),
    }


def segment_blocks(p: Params, net: Net) -> None:
    """The feed-forward part of a transformer with a depthwise convolution between its products."""
    n, c, side, width = p["batch"], p["channels"], p["side"], p["width"]
    x = net.input((n, side * side, width))
    y = x
    if p["norm"]:
        scale, bias = net.constant(np.ones(width, np.float32)), net.weight(width)
        y = net.add("LayerNormalization", [y, scale, bias], axis=-1)
    y = net.place(net.add("MatMul", [y, _product_weight(net, width, c)]))
    if p["bias"]:
        y = net.place(net.add("Add", [y, net.weight(c)]))
    y = net.place(net.add("Transpose", [y], perm=[0, 2, 1]))
    y = net.place(net.add("Reshape", [y, _shape(net, p, x, [c, side, side])]))
    k = p["kernel"]
    conv = [y, net.weight(c, 1 if p["depthwise"] else c, k, k), net.weight(c)]
    group = c if p["depthwise"] else 1
    y = net.place(net.add("Conv", conv, group=group, pads=[k // 2] * 4))
    y = net.place(net.add("Reshape", [y, _shape(net, p, x, [c, side * side])]))
    y = net.place(net.add("Transpose", [y], perm=[0, 2, 1]))
    if p["activation"] == "gelu":
        e = net.add("Erf", [net.add("Div", [y, net.constant(2**0.5)])])
        half = net.add("Mul", [net.constant(0.5), net.add("Add", [e, net.constant(1.0)])])
        y = net.add("Mul", [y, half])
    elif p["activation"] == "swish":
        y = net.add("Mul", [y, net.add("Sigmoid", [y])])
    elif p["activation"]:
        y = net.add(p["activation"], [y])
    if p["product behind"]:
        y = net.add("MatMul", [y, _product_weight(net, c, width)])
        y = net.add("Add", [y, net.weight(width)])
        if p["residual"]:
            y = net.add("Add", [x, y])
    net.outputs = [y]


def _product_weight(net: Net, inner: int, outer: int) -> str:
    values = net.generator.standard_normal((inner, outer), np.float32)
    return net.constant(values / np.sqrt(inner))


def _shape(net: Net, p: Params, x: str, rest: list[int]) -> str:
    if not p["runtime batch"]:
        return net.constant(np.array([0, *rest], np.int64))
    batch = net.add("Shape", [x], start=0, end=1)
    return net.add("Concat", [batch, net.constant(np.array(rest, np.int64))], axis=0)


def draw_segment_blocks(rng: random.Random) -> Params:
    """Draw parameters of :func:`segment_blocks`."""
    return {
        "batch": rng.choice([1, 2, 2, 4]),
        "channels": rng.choice([32, 64, 256, 256]),
        "width": rng.choice([16, 64, 64]),
        "side": rng.choice([4, 8, 16, 32, 32]),
        "kernel": rng.choice([1, 3, 3, 3]),
        "norm": rng.random() < 0.3,
        "bias": rng.random() < 0.7,
        "depthwise": rng.random() < 0.85,
        "runtime batch": rng.random() < 0.6,
        "activation": rng.choice(["gelu", "gelu", "swish", "Relu", ""]),
        "product behind": rng.random() < 0.7,
        "residual": rng.random() < 0.5,
    }


def conditionals(p: Params, net: Net) -> None:
    """An If with elementwise branches, or a Loop, on an input or what is computed from it."""
    net.tight, net.keeps = p["tight"], p["keeps"]
    x = net.input(p["shape"])
    if p["before"]:
        x = net.add(p["before"], [x])
    net.place(x)
    rank = len(p["shape"])
    kind = _TYPES[net.kind]
    if p["operator"] == "If":
        axes = net.constant(np.arange(rank))
        total = net.add("ReduceSum", [x, axes], keepdims=0)
        condition = net.place(net.add("Greater", [total, net.constant(0.0)]))
        if p["condition"] == "input":
            net.inputs["condition"] = np.array(p["holds"])
            condition = "condition"

        def branch(operator: str) -> onnx.GraphProto:
            name = f"in_{operator}"
            info = helper.make_tensor_value_info(name, kind, [None] * rank)
            return helper.make_graph(
                [helper.make_node(operator, [x], [name])], operator, [], [info]
            )

        first, second = p["branches"]
        y = net.add("If", [condition], then_branch=branch(first), else_branch=branch(second))
    else:
        infos = [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", kind, [None] * rank),
        ]
        outputs = [
            helper.make_tensor_value_info("c_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s_out", kind, [None] * rank),
        ]
        nodes = [helper.make_node("Identity", ["c"], ["c_out"])]
        nodes.append(helper.make_node(p["branches"][0], ["s"], ["s_in"]))
        nodes.append(helper.make_node("Add", ["s_in", "s_in"], ["s_out"]))
        body = helper.make_graph(nodes, "body", infos, outputs)
        trips, go = net.constant(np.array(p["trips"])), net.constant(np.array(True))
        y = net.add("Loop", [trips, go, x], body=body)
    net.place(y)
    net.outputs = [net.add(p["after"], [y]) if p["after"] else y]


def draw_conditionals(rng: random.Random) -> Params:
    """Draw parameters of :func:`conditionals`."""
    return {
        "operator": rng.choice(["If", "If", "Loop"]),
        "shape": rng.choice([(3, 8), (2, 2, 1), (2, 16, 8), (1, 64, 64), (4, 3, 8, 8), (2, 256)]),
        "before": rng.choice(["", "", "Relu", "Neg"]),
        "condition": rng.choice(["input", "computed"]),
        "holds": rng.random() < 0.5,
        "branches": rng.sample(["Tanh", "Relu", "Neg", "Sigmoid", "Identity", "Sin"], 2),
        "trips": rng.choice([1, 2, 3]),
        "after": rng.choice(["", "", "Exp"]),
        "tight": rng.random() < 0.5,
        "keeps": rng.random() < 0.5,
    }


def padded_convolutions(p: Params, net: Net) -> None:
    """A convolution or product, a cast to integers or another operator, and one that picks."""
    net.axis, net.tight, net.keeps = 2, p["tight"], p["keeps"]
    x = net.input((p["batch"], p["channels"], p["extent"]))
    net.place(x)
    inputs = [x, net.weight(p["outputs"], p["channels"], p["kernel"])]
    if p["bias"]:
        inputs.append(net.weight(p["outputs"]))
    pads: dict[str, Any] = {"auto_pad": "SAME_UPPER"}
    if p["padding"] != "auto":
        total = p["kernel"] - 1
        pads = {"pads": [total // 2, total - total // 2]}
    if p["product"] == "MatMul":
        x = net.add("Transpose", [x], perm=[0, 2, 1])
        y = net.add("MatMul", [x, _product_weight(net, p["channels"], p["outputs"])])
        y = net.place(net.add("Transpose", [y], perm=[0, 2, 1]))
    elif p["product"] == "ConvTranspose":
        inputs[1] = net.weight(p["channels"], p["outputs"], p["kernel"])
        y = net.place(net.add("ConvTranspose", inputs))
    else:
        y = net.place(net.add("Conv", inputs, **pads))
    if p["after"].endswith("Cast"):
        if p["scaled"]:
            y = net.place(net.add("Mul", [y, net.constant(40.0)]))
        wide = p["after"] == "wide Cast"
        if wide:
            y = net.place(net.add("Cast", [y], to=TensorProto.FLOAT))
        y = net.place(net.add("Cast", [y], to=p["to"]))
        if p["back"]:
            y = net.add("Cast", [y], to=TensorProto.FLOAT if wide else _TYPES[net.kind])
            net.place(y)
    elif p["after"] in ("Greater", "Not"):
        y = net.add("Greater", [y, net.constant(0.1)])
        y = net.add("Not", [y]) if p["after"] == "Not" else y
        y = net.add("Cast", [y], to=_TYPES[net.kind]) if p["back"] else y
    elif p["after"]:
        y = net.add(p["after"], [y])
    if p["gathered"]:
        y = net.place(_picked(net, p["gathered"], y))
    net.outputs = [y]


_PICKING = ["Gather", "GatherND", "GatherElements", "Slice", "Concat", "Transpose", "Expand"]


def _picked(net: Net, operator: str, y: str) -> str:
    if operator == "GatherND":
        return net.add(operator, [y, net.constant(np.zeros((2, 2, 2), np.int64))])
    if operator == "Gather":
        return net.add(operator, [y, net.constant(np.zeros(2, np.int64))], axis=1)
    if operator == "GatherElements":
        return net.add(operator, [y, net.constant(np.zeros((1, 1, 3), np.int64))], axis=2)
    if operator == "Slice":
        bounds = [net.constant(np.array([number], np.int64)) for number in (1, 4, 2)]
        return net.add(operator, [y, *bounds])
    if operator == "Concat":
        return net.add(operator, [y, y], axis=1)
    if operator == "Transpose":
        return net.add(operator, [y], perm=[0, 2, 1])
    return net.add(operator, [y, net.constant(np.array([1], np.int64))])


def draw_padded_convolutions(rng: random.Random) -> Params:
    """Draw parameters of :func:`padded_convolutions`."""
    return {
        "batch": rng.choice([1, 1, 2]),
        "channels": rng.choice([1, 1, 4]),
        "outputs": rng.choice([1, 1, 8]),
        "extent": rng.choice([6, 8, 16, 33]),
        "kernel": rng.choice([1, 2, 3, 5]),
        "bias": rng.random() < 0.6,
        "padding": rng.choice(["auto", "auto", "explicit"]),
        "product": rng.choice(["Conv", "Conv", "ConvTranspose", "MatMul"]),
        "after": rng.choice(["Cast", "Cast", "wide Cast", "", "Relu", "Floor", "Greater", "Not"]),
        "scaled": rng.random() < 0.2,
        "to": rng.choice([TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL]),
        "back": rng.random() < 0.7,
        "gathered": rng.choice(["", *_PICKING]),
        "tight": rng.random() < 0.6,
        "keeps": rng.random() < 0.5,
    }


def broadcast_norms(p: Params, net: Net) -> None:
    """A reduction of a value, and an elementwise operator that broadcasts it to another."""
    shape = p["shape"]
    x = net.input(shape)
    y = net.input(tuple(1 if i in p["ones"] else e for i, e in enumerate(shape)))
    if p["before"]:
        y = net.add(p["before"], [y])
    if p["first"] == "LayerNorm":
        y = net.add("LayerNormalization", [y, net.weight(shape[-1])], axis=-1)
    else:
        y = _first(net, p["first"], y, p["axis"], len(shape))
    net.place(y)
    z = net.add(p["operator"], [x, y] if p["order"] else [y, x])
    net.outputs = [net.add("Relu", [z]) if p["after"] else z]


def draw_broadcast_norms(rng: random.Random) -> Params:
    """Draw parameters of :func:`broadcast_norms`."""
    rank = rng.choice([2, 3, 4, 4])
    extents = [1, 2, 2, 3, 4, 5, 7, 8, 16, 33, 64]
    shape = tuple(rng.choice(extents) for _ in range(rank))
    ones = [i for i in range(rank) if rng.random() < 0.3]
    return {
        "shape": shape,
        "ones": ones,
        "broadcasts": str([shape[i] for i in ones if shape[i] > 1][:1] or "nothing"),
        "first": rng.choice(
            ["LayerNorm", "LayerNorm", "Softmax", "center ReduceMean", "ReduceMean"]
        ),
        "axis": rng.randrange(rank),
        "before": rng.choice(["", "", "Relu", "Sigmoid"]),
        "operator": rng.choice(["Mul", "Mul", "Add", "Sub"]),
        "order": rng.random() < 0.5,
        "after": rng.random() < 0.3,
    }


def sampled_chains(p: Params, net: Net) -> None:
    """GridSample behind movements or casts of an input that is read elsewhere, too."""
    x = net.input(p["shape"], 2.0)
    made = net.place(x)
    value = x
    for operator in p["chain"]:
        if operator == "Cast":
            value = net.place(net.add("Cast", [value], to=TensorProto.INT32))
            made = value
            value = net.add("Cast", [value], to=_TYPES[net.kind])
        elif operator == "Transpose":
            value = net.add("Transpose", [value], perm=[0, 1, 3, 2])
        else:
            value = net.add(operator, [value])
        net.place(value)
    n, c, h, w = _shape_after(p)
    sampled = _sampled(net, {**p, "first": "GridSample"}, value, (n, c, h, w))
    source = made if p["reads"] == "inside" else x
    integer = p["reads"] == "inside" and "Cast" in p["chain"]
    if p["other"] == "output" and source != x:
        other = source
    elif integer:
        other = net.add("Add", [source, source])
    elif p["other"] == "output":
        other = net.add("Identity", [source])
    else:
        other = net.add(p["other"], [source])
    net.readers[source] = [other]
    net.outputs = [sampled, other]


def _shape_after(p: Params) -> tuple[int, int, int, int]:
    n, c, h, w = p["shape"]
    turns = p["chain"].count("Transpose") % 2
    return (n, c, w, h) if turns else (n, c, h, w)


def draw_sampled_chains(rng: random.Random) -> Params:
    """Draw parameters of :func:`sampled_chains`."""
    return {
        "shape": rng.choice([(1, 2, 2, 2), (2, 3, 8, 8), (1, 16, 32, 32), (3, 4, 8, 7)]),
        "chain": rng.choice([[], ["Cast"], ["Relu"], ["Transpose"], ["Identity"], ["Sigmoid"]]),
        "reads": rng.choice(["inside", "input"]),
        "other": rng.choice(["output", "Neg", "Relu", "Softmax", "Sin", "Round"]),
        "mode": rng.choice(["linear", "nearest", "cubic"]),
        "padding": rng.choice(["zeros", "border", "reflection"]),
        "align": rng.choice([0, 1]),
        "constant grid": rng.random() < 0.5,
    }


def transposed_products(p: Params, net: Net) -> None:
    """A ConvTranspose with a bias and an activation, of few and of many channels."""
    spatial = p["spatial"]
    x = net.input((p["batch"], p["channels"], *[p["extent"]] * spatial))
    kernel = [p["kernel"]] * spatial
    outputs = p["outputs"]
    inputs = [x, net.weight(p["channels"], outputs // p["groups"], *kernel)]
    if p["bias"]:
        inputs.append(net.weight(outputs))
    attributes: dict[str, Any] = {"strides": [p["stride"]] * spatial, "group": p["groups"]}
    attributes["pads"] = [p["pad"]] * (2 * spatial)
    y = net.place(net.add("ConvTranspose", inputs, **attributes))
    if p["after"] == "Add":
        y = net.add("Add", [y, net.weight(1, outputs, *[1] * spatial)])
    elif p["after"]:
        y = net.add(p["after"], [y])
    net.outputs = [y]


def draw_transposed_products(rng: random.Random) -> Params:
    """Draw parameters of :func:`transposed_products`."""
    kernel = rng.choice([1, 2, 3, 4])
    channels = rng.choice([1, 2, 3, 4, 8, 16, 64])
    groups = rng.choice([1, 1, channels])
    return {
        "spatial": rng.choice([1, 2, 2, 3]),
        "batch": rng.choice([1, 2]),
        "channels": channels,
        "groups": groups,
        "outputs": groups * rng.choice([1, 2, 8]),
        "extent": rng.choice([1, 2, 4, 8, 16]),
        "kernel": kernel,
        "stride": rng.choice([1, 2, 3]),
        "pad": rng.choice(range((kernel - 1) // 2 + 1)),
        "bias": rng.random() < 0.6,
        "after": rng.choice(["", "", "Erf", "Relu", "Add"]),
    }


def nearest_resizes(p: Params, net: Net) -> None:
    """Resize to the nearest neighbour."""
    x = net.place(net.input(p["shape"]))
    if p["by"] == "sizes":
        sizes = [
            *p["shape"][:2],
            *(max(1, round(e * s)) for e, s in zip(p["shape"][2:], p["scales"], strict=True)),
        ]
        inputs = [x, "", "", net.constant(np.array(sizes, np.int64))]
    else:
        name = net.constant(np.array([0], np.int64))
        scales = np.array([1, 1, *p["scales"]], np.float32)
        net.constants[-1].CopyFrom(numpy_helper.from_array(scales, name))
        inputs = [x, "", name]
    net.outputs = [
        net.add(
            "Resize",
            inputs,
            mode="nearest",
            nearest_mode=p["rounding"],
            coordinate_transformation_mode=p["coordinates"],
        )
    ]


def draw_nearest_resizes(rng: random.Random) -> Params:
    """Draw parameters of :func:`nearest_resizes`."""
    return {
        "shape": rng.choice(
            [(1, 1, 4, 4), (2, 3, 5, 7), (1, 2, 8, 6), (1, 1, 2, 3), (1, 4, 16, 16)]
        ),
        "by": rng.choice(["sizes", "scales"]),
        "scales": rng.choice([(2, 2), (0.5, 0.5), (1.5, 2.5), (3, 0.6), (1, 2), (1.3, 0.77)]),
        "rounding": rng.choice(["ceil", "floor", "round_prefer_floor", "round_prefer_ceil"]),
        "coordinates": rng.choice(
            ["align_corners", "half_pixel", "asymmetric", "pytorch_half_pixel"]
        ),
    }


def ceil_pools(p: Params, net: Net) -> None:
    """A pool with ceil_mode."""
    x = net.place(net.input(p["shape"]))
    spatial = len(p["shape"]) - 2
    attributes = {
        "kernel_shape": [p["kernel"]] * spatial,
        "strides": [p["stride"]] * spatial,
        "pads": [p["pad"]] * (2 * spatial),
        "ceil_mode": p["ceil"],
    }
    if p["operator"] == "AveragePool":
        attributes["count_include_pad"] = p["count pad"]
    y = net.add(p["operator"], [x], **attributes)
    if p["after"]:
        y = net.add(p["after"], [y], keepdims=1)
    net.outputs = [y]


def draw_ceil_pools(rng: random.Random) -> Params:
    """Draw parameters of :func:`ceil_pools`."""
    kernel = rng.choice([1, 2, 3, 4])
    return {
        "shape": rng.choice(
            [(1, 2, 4, 4), (2, 3, 5, 7), (1, 8, 9, 9), (1, 4, 2, 2), (1, 4, 12), (1, 2, 5, 5, 5)]
        ),
        "operator": rng.choice(["MaxPool", "AveragePool"]),
        "kernel": kernel,
        "stride": rng.choice([1, 2, 3]),
        "pad": rng.choice(range(kernel // 2 + 1)),
        "ceil": rng.choice([0, 1, 1]),
        "count pad": rng.choice([0, 1]),
        "after": rng.choice(["", "ReduceMean"]),
    }


def scaled_swishes(p: Params, net: Net) -> None:
    """A convolution, a scale, a shift, and an activation."""
    n, c, h, w = p["shape"]
    x = net.input(p["shape"])
    k, groups = p["kernel"], (c if p["depthwise"] else 1)
    out = c if p["depthwise"] else p["outputs"]
    inputs = [x, net.weight(out, c // groups, k, k)] + ([net.weight(out)] if p["bias"] else [])
    y = net.place(
        net.add("Conv", inputs, group=groups, pads=[k // 2] * 4, strides=[p["stride"]] * 2)
    )
    shape = () if p["scalar"] else (1, out, 1, 1)
    if p["scale"]:
        y = net.place(net.add("Mul", [y, net.constant(net.generator.uniform(0.5, 2, shape))]))
    if p["shift"]:
        y = net.place(net.add("Add", [y, net.constant(net.generator.uniform(-1, 1, shape))]))
    if p["activation"] == "swish":
        y = net.add("Mul", [y, net.add("Sigmoid", [y])])
    elif p["activation"] == "hard swish":
        z = net.add("HardSigmoid", [y], alpha=1 / 6, beta=0.5)
        y = net.add("Mul", [y, z])
    elif p["activation"]:
        y = net.add(p["activation"], [y])
    net.outputs = [y]
    del n, h, w


def draw_scaled_swishes(rng: random.Random) -> Params:
    """Draw parameters of :func:`scaled_swishes`."""
    return {
        "shape": rng.choice(
            [
                (1, 3, 48, 320),
                (1, 16, 24, 160),
                (1, 32, 24, 80),
                (1, 64, 12, 80),
                (2, 8, 8, 8),
                (1, 48, 6, 40),
                (1, 120, 3, 80),
                (1, 256, 3, 40),
            ]
        ),
        "kernel": rng.choice([1, 3, 5]),
        "depthwise": rng.random() < 0.4,
        "outputs": rng.choice([8, 16, 32, 48, 64, 120]),
        "stride": rng.choice([1, 1, 2]),
        "bias": rng.random() < 0.6,
        "scalar": rng.random() < 0.5,
        "scale": rng.random() < 0.8,
        "shift": rng.random() < 0.8,
        "activation": rng.choice(["swish", "swish", "hard swish", "HardSwish", "Relu", "Sigmoid"]),
    }


FAMILIES: dict[
    str, tuple[Callable[[Params, Net], None], Callable[[random.Random], Params], int]
] = {
    "reduction pairs": (reduction_pairs, draw_reduction_pairs, 40),
    "shared reads": (shared_reads, draw_shared_reads, 12),
    "transposed convolutions": (transposed_convolutions, draw_transposed_convolutions, 8),
    "segment blocks": (segment_blocks, draw_segment_blocks, 15),
    "conditionals": (conditionals, draw_conditionals, 6),
    "padded convolutions": (padded_convolutions, draw_padded_convolutions, 6),
    "broadcast norms": (broadcast_norms, draw_broadcast_norms, 20),
    "sampled chains": (sampled_chains, draw_sampled_chains, 8),
    "transposed products": (transposed_products, draw_transposed_products, 10),
    "nearest resizes": (nearest_resizes, draw_nearest_resizes, 5),
    "ceil pools": (ceil_pools, draw_ceil_pools, 6),
    "scaled swishes": (scaled_swishes, draw_scaled_swishes, 8),
}
"""For each family its network, its parameters, and its share of the networks in percent."""

# ---------------------------------------------------------------- rewrites


# ruff: noqa: ARG001, ARG005  # all rewrites have one signature


def _reshaped(net: Net, x: str, rank: int, shape: list[int]) -> str:
    flat = net.add("Reshape", [x, net.constant(np.array(shape, np.int64))])
    return net.add("Reshape", [flat, net.add("Shape", [x])])


def _transposed(net: Net, x: str, rank: int) -> str:
    perm = [*range(1, rank), 0]
    back = [rank - 1, *range(rank - 1)]
    return net.add("Transpose", [net.add("Transpose", [x], perm=perm)], perm=back)


def _swapped(net: Net, x: str, rank: int) -> str:
    perm = [*range(rank - 2), rank - 1, rank - 2]
    return net.add("Transpose", [net.add("Transpose", [x], perm=perm)], perm=perm)


def _cast(net: Net, x: str, rank: int) -> str:
    other = TensorProto.FLOAT16 if net.kind == "fp32" else TensorProto.FLOAT
    return net.add("Cast", [net.add("Cast", [x], to=other)], to=_TYPES[net.kind])


def _runtime_one(net: Net, x: str) -> str:
    size = net.add("Size", [x])
    return net.add("Cast", [net.add("Div", [size, size])], to=_TYPES[net.kind])


def _split(net: Net, x: str, rank: int) -> str:
    zero, far = np.array([0], np.int64), np.array([2**31 - 1], np.int64)
    one, last = np.array([1], np.int64), np.array([rank - 1], np.int64)
    ends = [(zero, one), (one, far)]
    parts = [
        net.add("Slice", [x, net.constant(a), net.constant(b), net.constant(last)]) for a, b in ends
    ]
    return net.add("Concat", parts, axis=rank - 1)


def _gathered(net: Net, x: str, rank: int) -> str:
    first = net.add("Squeeze", [net.add("Shape", [x], start=0, end=1)])
    indices = net.add("Range", [net.constant(np.array(0)), first, net.constant(np.array(1))])
    return net.add("Gather", [x, indices], axis=0)


def _masked(net: Net, x: str, rank: int) -> str:
    size = net.add("Size", [x])
    yes = net.add("Greater", [size, net.constant(np.array(-1))])
    return net.add("Where", [yes, x, net.constant(0.0)])


def _constant_mask(net: Net, x: str, rank: int) -> str:
    return net.add("Where", [net.constant(np.array(True)), x, net.constant(0.0)])


def _padded(net: Net, x: str, rank: int) -> str:
    pads = np.zeros(2 * rank, np.int64)
    pads[-1] = 1
    wide = net.add("Pad", [x, net.constant(pads)])
    ends = [net.constant(np.array([v], np.int64)) for v in (0, -1, rank - 1)]
    return net.add("Slice", [wide, *ends])


def _expanded(net: Net, x: str, rank: int) -> str:
    return net.add("Expand", [x, net.add("Shape", [x])])


REWRITES: dict[str, Callable[[Net, str, int], str] | None] = {
    "extra output": None,
    "debug tensor": None,
    "reshape to 1-D and back": lambda n, x, r: _reshaped(n, x, r, [-1]),
    "reshape to 2-D and back": lambda n, x, r: _reshaped(n, x, r, [0, -1]),
    "reshape to 5-D and back": lambda n, x, r: _reshaped(n, x, r, [1, -1, 1, 1, 1]),
    "rotate axes and back": _transposed,
    "swap last axes and back": _swapped,
    "identity": lambda n, x, r: n.add("Identity", [x]),
    "cast and back": _cast,
    "times a runtime 1": lambda n, x, r: n.add("Mul", [x, _runtime_one(n, x)]),
    "slices joined": _split,
    "gather by a runtime range": _gathered,
    "where on runtime shape": _masked,
    "where on a constant": _constant_mask,
    "pad and slice": _padded,
    "expand to own shape": _expanded,
    "axis last": None,
    "merged axes": None,
}


def rewritten(net: Net, place: str, rewrite: str, rank: int) -> bool:
    """Apply a rewrite at a value; returns whether it applies."""
    if rewrite == "extra output":
        if place in net.outputs or place in net.inputs:
            return False
        net.outputs.append(place)
        return True
    if rewrite == "debug tensor":
        if place in net.inputs:
            return False
        net.debug.append(place)
        return True
    make = REWRITES[rewrite]
    assert make is not None  # noqa: S101  # for the type checker
    readers = [n for n in net.nodes if place in _reads(n)]
    wanted = net.readers.get(place)
    if wanted:
        readers = [n for n in readers if set(n.output) & set(wanted)]
    if not readers:
        return False
    start = len(net.nodes)
    new = make(net, place, rank)
    made = net.nodes[start:]
    del net.nodes[start:]
    for node in readers:
        for one in (node, *(inner for a in node.attribute for inner in a.g.node)):
            names = [new if name == place else name for name in one.input]
            del one.input[:]
            one.input.extend(names)
    producer = [i for i, n in enumerate(net.nodes) if place in n.output]
    net.nodes[(producer[0] + 1 if producer else 0) : (producer[0] + 1 if producer else 0)] = made
    return True


# ---------------------------------------------------------------- running


def _reads(node: onnx.NodeProto) -> set[str]:
    return {n for one in (node, *(i for a in node.attribute for i in a.g.node)) for n in one.input}


def built(task: Params) -> Net | None:
    """The network of a task; None where its rewrite does not apply."""
    net = Net(task["kind"], dynamic=task["dynamic"])
    make = FAMILIES[task["family"]][0]
    make(task["params"], net)
    rewrite = task.get("rewrite")
    if rewrite in ("axis last", "merged axes"):
        if task["family"] != "reduction pairs":
            return None
        return _respelled(task, rewrite)
    if rewrite is not None:
        if task["place"] >= len(net.places):
            return None
        place = net.places[task["place"]]
        if not rewritten(net, place, rewrite, _rank(net, place)):
            return None
    return net


def _rank(net: Net, value: str) -> int:
    if value in net.inputs:
        return net.inputs[value].ndim
    outputs, net.outputs = net.outputs, [value]
    shape = net.model().graph.output[0].type.tensor_type.shape
    net.outputs = outputs
    return len(shape.dim)


def _respelled(task: Params, rewrite: str) -> Net | None:
    """Reduction pairs with the first axis moved last, or with the second's axes merged."""
    p, net = dict(task["params"]), Net(task["kind"], dynamic=task["dynamic"])
    rank, axes = len(p["shape"]), p["axes"]
    if rewrite == "axis last":
        if (
            p["axis"] == rank - 1
            or p["between"] == "Transpose"
            or p["first"] in ("InstanceNorm", "CumSum")
            or p["both"]
        ):
            return None
        x = net.input(p["shape"])
        x = net.add(p["before"], [x]) if p["before"] else x
        perm = [a for a in range(rank) if a != p["axis"]] + [p["axis"]]
        x = net.add("Transpose", [x], perm=perm)
        y = _first(net, p["first"], x, rank - 1, rank)
        y = net.add("Transpose", [y], perm=[perm.index(a) for a in range(rank)])
    else:
        adjacent = all(b - a == 1 for a, b in itertools.pairwise(axes))
        if not p["second"].startswith("Reduce") or not adjacent or p["both"]:
            return None
        if p["between"] == "Transpose":
            return None
        x = net.input(p["shape"])
        x = net.add(p["before"], [x]) if p["before"] else x
        y = _first(net, p["first"], x, p["axis"], rank)
    if p["between"] == "scale":
        y = net.add("Mul", [y, net.constant(1.5)])
    elif p["between"]:
        y = net.add(p["between"], [y])
    if rewrite == "merged axes":
        first, last = axes[0], axes[-1]
        lead, tail = list(p["shape"][:first]), list(p["shape"][last + 1 :])
        if net.dynamic and first == 0:
            return None
        if net.dynamic and lead:
            lead[0] = 0
        merged = [*lead, int(np.prod(p["shape"][first : last + 1])), *tail]
        y = net.add("Reshape", [y, net.constant(np.array(merged, np.int64))])
        z = net.add(p["second"], [y, net.constant(np.array([first], np.int64))], keepdims=0)
        if p["keepdims"]:
            z = net.add("Unsqueeze", [z, net.constant(np.array(axes, np.int64))])
    else:
        z = _second(net, p["second"], y, axes, p["shape"], p["keepdims"])
    net.outputs = [z]
    return net


def input_sets(net: Net) -> list[dict[str, Array]]:
    """The inputs, and where they are dynamic also twice as many, for one context in turn."""
    if not net.dynamic:
        return [net.inputs]
    doubled = {
        name: np.concatenate([array, -array], net.axis) if net.varies(array) else array
        for name, array in net.inputs.items()
    }
    return [net.inputs, doubled]


def expected_outputs(task: Params) -> list[list[Array]]:
    """The outputs of a task's network without a rewrite, computed in FP32, for each set.

    A network whose constants hold the first axis has no second set.
    """
    net = Net("fp32", dynamic=task["dynamic"])
    FAMILIES[task["family"]][0](task["params"], net)
    half = Net(task["kind"], dynamic=task["dynamic"])
    FAMILIES[task["family"]][0](task["params"], half)
    sets = [
        {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in inputs.items()}
        for inputs in input_sets(half)
    ]
    values = {t.name: t for t in half.constants}
    for tensor in net.constants:
        array = numpy_helper.to_array(values[tensor.name])
        if array.dtype == np.float16:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    model = net.model()
    try:
        import onnxruntime  # an outside reference, for this script alone

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        run = functools.partial(session.run, None)
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        run = functools.partial(ReferenceEvaluator(model).run, None)
    found = [list(run(sets[0]))]
    with contextlib.suppress(Exception):  # the constants do not fit twice as much
        found += [list(run(inputs)) for inputs in sets[1:]]
    return found


_STATE = types.SimpleNamespace()


def work(task: Params) -> tuple[str, str, float]:
    """Build and run one network: its status, a detail, and the error."""
    try:
        net = built(task)
        if net is None:
            return "inapplicable", "", 0.0
        expected = expected_outputs(task)
        plan = build(net)
        if isinstance(plan, str):
            return "refused", plan, 0.0
        if task["build only"]:
            return "built", f"{len(plan)} bytes", 0.0
        return judged(net, plan, expected, LIMITS[task["kind"]])
    except Exception as error:  # whatever it is, it belongs in the table
        return "error", f"{type(error).__name__}: {error}"[:300], 0.0


def judged(
    net: Net, plan: bytes, expected: list[list[Array]], limit: float
) -> tuple[str, str, float]:
    """Run a plan and compare it."""
    sets = input_sets(net)[: len(expected)]
    found = executed(net, plan, sets)
    if isinstance(found, str):
        return "no context", found, 0.0
    worst, detail = 0.0, ""
    for number, (outputs, arrays) in enumerate(zip(found, expected, strict=True)):
        for name, array in zip(net.outputs, arrays, strict=False):
            error = difference(outputs[name], array)
            if error >= worst:
                worst, detail = error, f"{name}, run {number}: {error:.2g}"
    return ("right" if worst <= limit else "wrong"), detail, worst


def build(net: Net) -> bytes | str:
    """A plan, or TensorRT's reason for having none."""
    import tensorrt_rtx as trt

    if not hasattr(_STATE, "logger"):
        _STATE.logger = _logger(trt)
        _STATE.builder = trt.Builder(_STATE.logger)
    _STATE.logger.errors.clear()
    network = _STATE.builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    parser = trt.OnnxParser(network, _STATE.logger)
    if not parser.parse(net.model().SerializeToString()):
        return str(parser.get_error(0).desc())[:200]
    config = _STATE.builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if net.dynamic:
        profile = _STATE.builder.create_optimization_profile()
        for name, array in net.inputs.items():
            if net.varies(array):
                least, most = list(array.shape), list(array.shape)
                least[net.axis] = array.shape[net.axis] if net.tight else 1
                most[net.axis] *= 2
                profile.set_shape(name, least, array.shape, most)
        config.add_optimization_profile(profile)
    if net.debug:
        values = [
            network.get_layer(i).get_output(j)
            for i in range(network.num_layers)
            for j in range(network.get_layer(i).num_outputs)
        ]
        for value in values:
            if value.name in net.debug:
                network.mark_debug(value)
    data = _STATE.builder.build_serialized_network(network, config)
    return bytes(data) if data is not None else "; ".join(_STATE.logger.errors)[:1500] or "no plan"


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.Logger.ERROR, trt.Logger.INTERNAL_ERROR):
                self.errors.append(text)

    return Logger()


def executed(net: Net, plan: bytes, sets: list[dict[str, Array]]) -> list[dict[str, Array]] | str:
    """The outputs of a plan for each set of inputs, or TensorRT's reason for having none."""
    import tensorrt_rtx as trt
    from cuda.bindings import driver

    if not hasattr(_STATE, "runtime"):
        _call(driver.cuInit, 0)
        device = _call(driver.cuDeviceGet, 0)
        _call(driver.cuCtxSetCurrent, _call(driver.cuDevicePrimaryCtxRetain, device))
        _STATE.stream = _call(driver.cuStreamCreate, 0)
        _STATE.runtime = trt.Runtime(_STATE.logger)
    _STATE.logger.errors.clear()
    engine = _STATE.runtime.deserialize_cuda_engine(plan)
    context = _context(trt, engine) if engine is not None else None
    if context is None:
        return "; ".join(_STATE.logger.errors)[:1500] or "no context"
    found = []
    kept: dict[str, Any] | None = {} if net.keeps else None
    for inputs in sets:
        outputs = _run(trt, driver, engine, context, inputs, kept)
        if outputs is None:
            return "; ".join(_STATE.logger.errors)[:1500] or "enqueue failed"
        found.append(outputs)
    return found


def _call(function: Any, *arguments: Any) -> Any:
    status, *rest = function(*arguments)
    if int(status):
        raise RuntimeError(f"{function.__name__}: {status}")
    return rest[0] if rest else None


def _run(
    trt: Any,
    driver: Any,
    engine: Any,
    context: Any,
    inputs: dict[str, Array],
    kept: dict[str, Any] | None,
) -> dict[str, Array] | None:
    pointers: list[Any] = []
    hosts: dict[str, tuple[Any, Array]] = {}

    def address(name: str, nbytes: int) -> Any:
        if kept is not None and name in kept:
            return kept[name]
        pointer = _call(driver.cuMemAlloc, max(2 * nbytes, 256))
        if kept is None:
            pointers.append(pointer)
        else:
            kept[name] = pointer
        context.set_tensor_address(name, int(pointer))
        return pointer

    try:
        for name, array in inputs.items():
            context.set_input_shape(name, array.shape)
            pointer = address(name, array.nbytes)
            data = np.ascontiguousarray(array).ctypes.data
            _call(driver.cuMemcpyHtoD, pointer, data, array.nbytes)
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                continue
            shape = tuple(context.get_tensor_shape(name))
            host = np.empty(shape, trt.nptype(engine.get_tensor_dtype(name)))
            hosts[name] = address(name, host.nbytes), host
        if not context.execute_async_v3(int(_STATE.stream)):
            return None
        _call(driver.cuStreamSynchronize, _STATE.stream)
        for pointer, host in hosts.values():
            _call(driver.cuMemcpyDtoH, host.ctypes.data, pointer, host.nbytes)
        return {name: host for name, (_, host) in hosts.items()}
    finally:
        for pointer in pointers:
            _call(driver.cuMemFree, pointer)


def _context(trt: Any, engine: Any) -> Any:
    """An execution context that compiles its kernels for the first shapes, at once."""
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = (
        trt.DynamicShapesKernelSpecializationStrategy.EAGER
    )
    return engine.create_execution_context(config)


# ---------------------------------------------------------------- the two stages


def tasks(count: int, only: str, seed: int, *, build_only: bool) -> Iterator[Params]:
    """The networks of the first stage."""
    rng = random.Random(seed)  # noqa: S311  # the same in every run
    for family, (_, draw, share) in FAMILIES.items():
        if only and family not in only.split(","):
            continue
        for _ in range(count * share // 100):
            params = draw(rng)
            kind = "fp16" if family == "scaled swishes" else rng.choice(["fp32", "fp16"])
            if family in ("transposed convolutions", "segment blocks"):
                kind = rng.choice(["fp16", "fp16", "fp32"])
            if family == "nearest resizes":
                kind = "fp32"
            dynamic = rng.random() < 0.4
            yield {
                "family": family,
                "params": params,
                "kind": kind,
                "dynamic": dynamic,
                "build only": build_only,
            }


def main(
    count: Annotated[int, typer.Option(help="Networks of the first stage.")] = 3000,
    jobs: Annotated[int, typer.Option(help="Processes.")] = os.cpu_count() or 1,
    seconds: Annotated[float, typer.Option(help="Time for everything.")] = 170,
    only: Annotated[str, typer.Option(help="Families, with commas between.")] = "",
    seed: Annotated[int, typer.Option(help="Another seed draws other networks.")] = 3,
    output: Annotated[Path, typer.Option(help="All results.")] = Path("probe_fusions.json"),
    build_only: Annotated[bool, typer.Option("--build-only", help="No GPU: build alone.")] = False,
) -> None:
    """Probe, and print the tables."""
    started = time.monotonic()
    results: list[dict[str, Any]] = []

    def serve(until: float) -> Callable[[Child, Any], None]:
        def one(child: Child, task: Params) -> None:
            if time.monotonic() - started > until:
                return
            answer = child.ask(task)
            status, detail, error = (
                (answer.status, answer.detail, 0.0) if isinstance(answer, Lost) else answer
            )
            results.append({**task, "status": status, "detail": detail, "error": error})

        return one

    first = list(tasks(count, only, seed, build_only=build_only))
    random.Random(1).shuffle(first)  # noqa: S311
    for_each(serve(seconds * 0.55), first, work, jobs=jobs, patience_s=_PATIENCE_S, lifetime=400)
    failing = [r for r in results if r["status"] in ("wrong", "no context", "crashed", "built")]
    print(
        f"stage 1: {len(results)} of {len(first)} in {time.monotonic() - started:.0f} s", flush=True
    )
    again = list(_second_stage(failing))
    for_each(serve(seconds), again, work, jobs=jobs, patience_s=_PATIENCE_S, lifetime=400)
    print(f"both stages: {len(results)} in {time.monotonic() - started:.0f} s")
    output.write_text(json.dumps(results) + "\n")
    report(results)


def _second_stage(failing: list[dict[str, Any]]) -> Iterator[Params]:
    """Every rewrite at every place of some of the failing networks, families in turn."""
    by_family: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in failing:
        by_family[result["family"]].append(result)
    for row in itertools.zip_longest(*(found[:60] for found in by_family.values())):
        for result in filter(None, row):
            task = {k: result[k] for k in ("family", "params", "kind", "dynamic", "build only")}
            for rewrite in REWRITES:
                respells = rewrite in ("axis last", "merged axes")
                for place in range(1 if respells else 8):
                    yield {**task, "rewrite": rewrite, "place": place, "was": result["status"]}


def report(results: list[dict[str, Any]]) -> None:
    """Print failure rates by parameter, failing networks, and what rewrites do."""
    plain = [r for r in results if "rewrite" not in r]
    bad = ("wrong", "no context", "crashed", "stuck")
    for family in FAMILIES:
        rows = [r for r in plain if r["family"] == family]
        if not rows:
            continue
        print(f"\n=== {family}: {dict(Counter(r['status'] for r in rows))}")
        for status in ("refused", "error", "no context", "crashed"):
            texts = Counter(r["detail"][:110] for r in rows if r["status"] == status)
            for text, number in texts.most_common(4):
                print(f"  {status} {number}: {text}")
        failing = [r for r in rows if r["status"] in bad]
        if not failing:
            continue
        keys = [*rows[0]["params"], "kind", "dynamic"]
        for key in keys:
            total, failed = Counter[str](), Counter[str]()
            for r in rows:
                value = str(r["params"].get(key, r.get(key)))
                total[value] += 1
                failed[value] += r["status"] in bad
            rates = sorted(total, key=lambda v: -failed[v] / total[v])[:9]
            print(f"  {key}: " + ", ".join(f"{v} {failed[v]}/{total[v]}" for v in rates))
        for r in failing[:12]:
            text = ", ".join(f"{k}={v}" for k, v in r["params"].items() if v not in ("", False))
            print(f"  - {r['kind']}{' dyn' if r['dynamic'] else ''} {r['error']:.2g} {text}")
        _report_rewrites([r for r in results if "rewrite" in r and r["family"] == family])


def _report_rewrites(rows: list[dict[str, Any]]) -> None:
    good: Counter[tuple[str, int]] = Counter()
    tried: Counter[tuple[str, int]] = Counter()
    for r in rows:
        if r["status"] in ("right", "wrong", "no context", "crashed", "stuck"):
            key = r["rewrite"], r["place"]
            tried[key] += 1
            good[key] += r["status"] == "right"
    for rewrite in REWRITES:
        cells = [f"{good[rewrite, i]}/{tried[rewrite, i]}" for i in range(8) if tried[rewrite, i]]
        if cells:
            print(f"    {rewrite:28} prevents " + "  ".join(cells))


if __name__ == "__main__":
    typer.run(main)
