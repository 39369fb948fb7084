"""Values of nodes that depend on constants alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import onnx

from trt_native.arrays import Array

__all__ = ["evaluate_node"]

_LOGGER = logging.getLogger(__name__)


def evaluate_node(
    node: onnx.NodeProto, opsets: Mapping[str, int], inputs: Mapping[str, Array]
) -> dict[str, Array] | None:
    """Evaluate a node with :mod:`trt_native.reference`.

    Args:
        node: The node.
        opsets: Version by domain.
        inputs: Its inputs by name.

    Returns:
        Its outputs by name; None where it cannot be evaluated.
    """
    from trt_native.reference.evaluator import evaluator  # takes half a second to import

    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.ValueInfoProto(name=name) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    try:
        arrays = evaluator(graph, opsets).run(None, dict(inputs))
        found = {n: np.asarray(a) for n, a in zip(node.output, arrays, strict=True)}
    except Exception as error:  # what cannot be evaluated stays unknown
        _LOGGER.debug("%s %r was not evaluated: %s", node.op_type, node.name, error)
        return None
    # Sequences are lists, and absent optionals objects.
    others = [a for a in arrays if isinstance(a, list) or np.asarray(a).dtype == object]
    return None if others else found
