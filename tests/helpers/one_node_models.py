"""Models of one node, for TensorRT's parser."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model_of(operator, inputs, constants=None, opset=21, **attributes):
    """A model of one node; inputs by name and shape, an empty name for none."""
    names = [*inputs, *(constants or {})]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(operator, names, ["y"], **attributes)],
            "refused",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in inputs.items()
                if name
            ],
            [onnx.ValueInfoProto(name="y")],
            [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )


KERNEL = np.zeros((1, 1, 3, 3), np.float32)


SCALE = np.float32(0.1).reshape(())


def in_a_function(node, inputs, call, **attributes):
    """A function of one node, and the model that calls it."""
    function = helper.make_function(
        "own", "Own", inputs, ["made"], [node], [helper.make_opsetid("", 21)], list(attributes)
    )
    model = model_of("Own", *call)
    model.graph.node[0].domain = "own"
    model.graph.node[0].attribute.extend(
        helper.make_attribute(name, value) for name, value in attributes.items()
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model
