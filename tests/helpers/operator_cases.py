"""Models of single nodes whose operators TensorRT's parser may refuse."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from helpers.onnx_node_tests import node_tests
from trt_native.reference.evaluator import evaluator

BATCHED = {
    "deformconv": ("X", "offset", "offset_with_padding", "offset_without_padding", "mask"),
    "maxunpool": ("xT", "xI"),
    "tensorscatter": ("past_cache", "update", "write_indices"),
}
"""Inputs with a batch, by module of ONNX's tests; of the others the first alone has one."""
FIXED = ("matmul", "maxunpool", "nonmaxsuppression")
"""Where the data of a batch do not fit another one."""


def cases(module):
    """ONNX's tests of a module, each with its inputs by name and its outputs."""
    for case in node_tests(module):
        given, expected = case.data_sets[0]
        names = [value.name for value in case.model.graph.input]
        yield case, dict(zip(names, map(np.asarray, given), strict=True)), expected


def fixed(proto, inputs, kept):
    """A copy with inputs as constants, but for those that are kept."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.input[:]
    for value in proto.graph.input:
        if value.name in kept:
            copy.graph.input.append(value)
        elif value.name in inputs:
            tensor = onnx.numpy_helper.from_array(np.asarray(inputs[value.name]), value.name)
            copy.graph.initializer.append(tensor)
    return copy


def first_alone(proto, inputs):
    return fixed(proto, inputs, [proto.graph.input[0].name])


def with_batch(module, proto, inputs):
    """A model with any batch, and inputs with one element more in it than ONNX's test has."""
    first = proto.graph.input[0].name
    names = [name for name in BATCHED.get(module, (first,)) if name in inputs]
    copy = fixed(proto, inputs, names)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "n"
    grown = {
        name: np.concatenate([inputs[name], inputs[name][:1]])
        for name in names
        if module not in FIXED and inputs[name].ndim
    }
    return copy, {**inputs, **grown}


def one_node(operator, inputs, outputs, opset, initializers=(), **attributes):
    """A model of a node; inputs and outputs map names to types and shapes."""
    order = attributes.pop("order", [*inputs, *initializers])
    graph = helper.make_graph(
        [helper.make_node(operator, order, list(outputs), **attributes)],
        "g",
        [helper.make_tensor_value_info(name, *one) for name, one in inputs.items()],
        [helper.make_tensor_value_info(name, *one) for name, one in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in dict(initializers).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def reference(proto, inputs):
    return evaluator(proto.graph, {"": proto.opset_import[0].version}).run(None, dict(inputs))


RESIZES = [
    {"mode": mode, "coordinate_transformation_mode": coordinates, **options}
    for coordinates in (
        "half_pixel",
        "half_pixel_symmetric",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
        "tf_crop_and_resize",
    )
    for mode, options in [
        ("nearest", {"nearest_mode": "ceil"}),
        ("nearest", {"nearest_mode": "round_prefer_ceil"}),
        ("linear", {"antialias": 1}),
        ("cubic", {"cubic_coeff_a": -0.5}),
        ("cubic", {"antialias": 1, "exclude_outside": 1}),
    ]
]


def resize_model(limits, options):
    """A Resize of (n, 2, 5, 7) by two scales or to two sizes."""
    name = "scales" if isinstance(limits[0], float) else "sizes"
    values = np.array(limits, np.float32 if name == "scales" else np.int64)
    return one_node(
        "Resize",
        {"x": (TensorProto.FLOAT, ["n", 2, 5, 7])},
        {"y": (TensorProto.FLOAT, ["n", 2, "h", "w"])},
        19,
        {"roi": np.array([0.2, 0.1, 0.7, 1.2], np.float32), name: values},
        order=["x", "roi", name] if name == "scales" else ["x", "roi", "", name],
        axes=[2, -1],
        extrapolation_value=-3.0,
        **options,
    )
