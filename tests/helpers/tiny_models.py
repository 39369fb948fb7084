"""ONNX models of a few nodes, built in code."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BOOL, FLOAT, INT64 = TensorProto.BOOL, TensorProto.FLOAT, TensorProto.INT64


def tensor(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def save(path, nodes, inputs, outputs, weights=None, opset=18, domains=None, **kwargs):
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    opsets = {"": opset, **(domains or {})}
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10, **kwargs)
    onnx.save(model, path)
    return path


def conv(path, shape=("batch", 3, "height", "width"), operator="Relu"):
    """A 3x3 convolution of 3 to 8 channels after an elementwise operator."""
    kernel = np.random.default_rng(0).standard_normal((8, 3, 3, 3), np.float32)
    nodes = [
        helper.make_node(operator, ["x"], ["a"], name="activation"),
        helper.make_node("Conv", ["a", "kernel"], ["y"], name="conv", pads=[1, 1, 1, 1]),
    ]
    out = [shape[0], 8, *shape[2:]]
    return save(
        path, nodes, [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, out)], {"kernel": kernel}
    )


def lone_conv(path, shape=("batch", 3, "height", "width")):
    """A 3x3 convolution of 3 to 8 channels, with no node that FP16 leaves in FP32."""
    kernel = np.random.default_rng(0).standard_normal((8, 3, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "kernel"], ["y"], name="conv", pads=[1, 1, 1, 1])
    out = [shape[0], 8, *shape[2:]]
    return save(
        path, [node], [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, out)], {"kernel": kernel}
    )


def wide_convs(path):
    """Three convolutions of little weight whose activations take 40 MiB in FP16, 72 MiB in FP32."""
    kernel = 0.01 * np.random.default_rng(0).standard_normal((64, 64, 3, 3), np.float32)
    nodes = [
        helper.make_node("Conv", [f"x{i}", "kernel"], [f"x{i + 1}"], pads=[1, 1, 1, 1])
        for i in range(3)
    ]
    shape = [2, 64, 256, 256]
    return save(
        path,
        nodes,
        [tensor("x0", FLOAT, shape)],
        [tensor("x3", FLOAT, shape)],
        {"kernel": kernel},
    )


def conv_chain(path, length=500):
    """So many convolutions that a build takes seconds."""
    random = np.random.default_rng(0)
    weights = {f"k{i}": random.standard_normal((32, 32, 3, 3), np.float32) for i in range(length)}
    nodes = []
    for i in range(length):
        nodes.append(helper.make_node("Conv", [f"x{i}", f"k{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Sigmoid", [f"c{i}"], [f"x{i + 1}"]))
    shape = ["batch", 32, 32, 32]
    return save(
        path,
        nodes,
        [tensor("x0", FLOAT, shape)],
        [tensor(f"x{length}", FLOAT, shape)],
        weights,
    )


def coupled(path):
    """Adds a (batch*frames, 4) input to a (batch, frames, 4) one, as audio meets latents."""
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["r"], name="flatten"),
        helper.make_node("Add", ["r", "z"], ["y"], name="add"),
    ]
    return save(
        path,
        nodes,
        [tensor("x", FLOAT, ["batch", "frames", 4]), tensor("z", FLOAT, ["batch*frames", 4])],
        [tensor("y", FLOAT, ["batch*frames", 4])],
        {"flat": np.array([-1, 4], np.int64)},
    )


def norm(path, width=16):
    """LayerNormalization, MatMul and Softmax with named nodes."""
    random = np.random.default_rng(0)
    weights = {
        "scale": np.ones(width, np.float32),
        "bias": np.zeros(width, np.float32),
        "w": random.standard_normal((width, width), np.float32),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["n"], name="/norm"),
        helper.make_node("MatMul", ["n", "w"], ["m"], name="/matmul"),
        helper.make_node("Softmax", ["m"], ["y"], name="/softmax", axis=-1),
    ]
    return save(
        path,
        nodes,
        [tensor("x", FLOAT, ["batch", width])],
        [tensor("y", FLOAT, ["batch", width])],
        weights,
    )


def group_norm_between_products(path, channels=16, frames=2):
    """Conv, a group norm over frames as an instance norm and an affine part, SiLU, Conv."""
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["c"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "by_frame"], ["f"], name="frames"),
        helper.make_node("Transpose", ["f"], ["t"], name="turn", perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "by_group"], ["g"], name="groups"),
        helper.make_node("InstanceNormalization", ["g", "ones", "zeros"], ["n"], name="norm"),
        helper.make_node("Reshape", ["n", "by_channel"], ["m"], name="channels"),
        helper.make_node("Mul", ["m", "norm.weight"], ["w"], name="scale"),
        helper.make_node("Add", ["w", "norm.bias"], ["b"], name="shift"),
        helper.make_node("Transpose", ["b"], ["u"], name="back", perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["u", "images"], ["i"], name="images"),
        helper.make_node("Sigmoid", ["i"], ["s"], name="sigmoid"),
        helper.make_node("Mul", ["i", "s"], ["a"], name="silu"),
        helper.make_node("Conv", ["a", "second.weight"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    random, groups = np.random.default_rng(0), channels // 2
    weights = {
        "by_frame": np.array([2, frames, channels, 8, 8]),
        "by_group": np.array([2, groups, -1]),
        "by_channel": np.array([2, channels, frames, 8, 8]),
        "images": np.array([2 * frames, channels, 8, 8]),
        "ones": np.ones(groups, np.float32),
        "zeros": np.zeros(groups, np.float32),
    }
    for name in ("norm.weight", "norm.bias"):
        weights[name] = random.standard_normal((channels, 1, 1, 1), np.float32)
    for name in ("first.weight", "second.weight"):
        weights[name] = random.standard_normal((channels, channels, 3, 3), np.float32) / 12
    x, y = (tensor(name, FLOAT, (2 * frames, channels, 8, 8)) for name in "xy")
    return save(path, nodes, [x], [y], weights)


def reshape_by_input(path):
    """Reshapes to a shape that is itself an input."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape")]
    return save(
        path,
        nodes,
        [tensor("x", FLOAT, ["n"]), tensor("shape", INT64, [2])],
        [tensor("y", FLOAT, ["a", "b"])],
    )


def external_weights(path):
    """A MatMul whose weights lie in ``weights.bin`` beside the model."""
    weight = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")]
    save(path, nodes, [tensor("x", FLOAT, [1, 64])], [tensor("y", FLOAT, [1, 64])], {"w": weight})
    onnx.save(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return path


def dense(path, width=64, layers=2, dtype=FLOAT, name="h"):
    """Linear layers with a Relu between them, MatMul and Gemm in turn: h0 to h<layers>."""
    random = np.random.default_rng(0)
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    weights = {
        f"w{i}": (random.standard_normal((width, width)) / width**0.5).astype(kind)
        for i in range(layers)
    }
    nodes = []
    for i in range(layers):
        operator = ("MatMul", "Gemm")[i % 2]
        nodes.append(
            helper.make_node(operator, [f"{name}{i}", f"w{i}"], [f"p{i}"], name=f"/dense.{i}")
        )
        nodes.append(helper.make_node("Relu", [f"p{i}"], [f"{name}{i + 1}"], name=f"/relu.{i}"))
    shapes = [tensor(f"{name}{i}", dtype, ["batch", width]) for i in (0, layers)]
    return save(path, nodes, shapes[:1], shapes[1:], weights)


def conv_and_dense(path):
    """A 1x1 convolution of 32 channels, then a linear layer along the last axis, of 64."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], name="/conv"),
        helper.make_node("MatMul", ["c", "w"], ["y"], name="/dense"),
    ]
    shapes = [tensor(name, FLOAT, ["batch", 32, 16, 64]) for name in "xy"]
    weights = {
        "kernel": random.standard_normal((32, 32, 1, 1), np.float32) / 6,
        "w": random.standard_normal((64, 64), np.float32) / 8,
    }
    return save(path, nodes, shapes[:1], shapes[1:], weights)


def calibration(onnx_path, path, amax, method="minmax", shapes=None):
    """A calibration cache in which tensors reach ``amax``, a number or one for each tensor."""
    from trt_native.calibration.caches import (
        CalibrationCache,
        Provenance,
        TensorRange,
        cache_header,
    )
    from trt_native.graph.onnx_file import hash_files, read_model

    model = read_model(onnx_path)
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    ranges = amax if isinstance(amax, dict) else {value.name: amax for value in values}
    provenance = Provenance(
        producer="tests",
        model=hash_files(onnx_path, model),
        method=method,
        runner="none",
        batches=1,
        shapes=shapes or {},
        ranges={name: TensorRange(2 * value, value) for name, value in ranges.items()},
        skipped={},
        created="2026-01-01T00:00:00+00:00",
    )
    return CalibrationCache.from_ranges(cache_header("10.16.1"), provenance).save(path)
