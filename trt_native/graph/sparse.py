"""Sparse constants as dense ones, which are all that other tools read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from trt_native.errors import ModelError
from trt_native.units import format_bytes

__all__ = ["densify"]

_MOST_BYTES = 2**31


def densify(model: onnx.ModelProto) -> int:
    """Make the sparse initializers and constants of a model dense, in place.

    Returns:
        How many there were.

    Raises:
        ModelError: a sparse tensor is malformed, or takes more than 2 GiB when it is dense.
    """
    count = 0
    for graph in _graphs(model.graph):
        count += len(graph.sparse_initializer)
        graph.initializer.extend(map(_dense, graph.sparse_initializer))
        del graph.sparse_initializer[:]
        count += _densify_nodes(graph.node)
    return count + sum(_densify_nodes(function.node) for function in model.functions)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(body)


def _densify_nodes(nodes: Iterable[onnx.NodeProto]) -> int:
    sparse = [
        attribute
        for node in nodes
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.SPARSE_TENSOR
    ]
    for attribute in sparse:
        dense = _dense(attribute.sparse_tensor)
        attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
    return len(sparse)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    name, shape = sparse.values.name, tuple(sparse.dims)
    try:
        values = numpy_helper.to_array(sparse.values)
        indices = numpy_helper.to_array(sparse.indices)
        size = math.prod(shape) * values.itemsize
        if size > _MOST_BYTES:
            raise ModelError(
                f"the sparse constant {name!r} of the shape {shape} takes {format_bytes(size)} when"
                " it is dense; only 2 GiB are supported"
            )
        dense = np.zeros(shape, values.dtype)
        if indices.ndim == 1:
            indices = np.stack(np.unravel_index(indices, shape), -1)
        if (indices < 0).any():
            raise IndexError("negative index")  # noqa: TRY301
        dense[tuple(indices.T)] = values
    except (ValueError, IndexError, TypeError) as error:
        raise ModelError(f"the sparse constant {name!r} is malformed: {error}") from None
    return numpy_helper.from_array(dense, name)
