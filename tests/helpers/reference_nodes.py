"""Single nodes run by the reference evaluator."""

from __future__ import annotations

import numpy as np
from onnx import helper

from trt_native.reference.evaluator import evaluator


def run_node(operator, *inputs, opset=22, outputs=1, **attributes):
    """The outputs of a node; inputs that are None are left out."""
    arrays = {f"i{n}": np.asarray(array) for n, array in enumerate(inputs) if array is not None}
    names = [f"i{n}" if array is not None else "" for n, array in enumerate(inputs)]
    made = [f"o{n}" for n in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(operator, names, made, **attributes)],
        "node",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in arrays.items()
        ],
        [helper.make_tensor_value_info(name, 1, None) for name in made],
    )
    return evaluator(graph, {"": opset}).run(None, arrays)
