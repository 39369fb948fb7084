"""Smaller extents of the inputs and weights of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from trt_native.arrays import Array

__all__ = ["shrink_extents", "shrunk_array", "with_extents"]

_MOST_AXES = 8  # so many integers may be a shape
_MOST_TRIALS = 24


def shrink_extents(
    model: onnx.ModelProto, folder: Path, fails: Callable[[onnx.ModelProto], bool]
) -> onnx.ModelProto:
    """Make the extents of inputs and weights smaller, each wherever it occurs, while it fails.

    Args:
        model: The model, which fails.
        folder: Where its external weights are.
        fails: Whether a model fails.

    Returns:
        The smallest model that fails.
    """
    extents = sorted(_extents(model), reverse=True)
    everything = with_extents(model, dict.fromkeys(extents, 2), folder)
    if extents and everything is not None and fails(everything):
        return everything
    trials = 0
    for extent in extents:
        for smaller in _smaller(extent):
            candidate = with_extents(model, {extent: smaller}, folder)
            if candidate is None:
                continue
            trials += 1
            if fails(candidate):
                model = candidate
                break
        if trials >= _MOST_TRIALS:
            break
    return model


def with_extents(
    model: onnx.ModelProto, extents: Mapping[int, int], folder: Path
) -> onnx.ModelProto | None:
    """A model with other extents of its inputs and weights, and of the values of shapes.

    Args:
        model: The model.
        extents: The new extent for each old one.
        folder: Where its external weights are.

    Returns:
        The model; None where ONNX finds that the new extents do not fit together.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    for value in new.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value in extents:
                dim.dim_value = extents[dim.dim_value]
    for tensor in new.graph.initializer:
        if _may_be_shape(tensor):
            values = [extents.get(int(v), int(v)) for v in numpy_helper.to_array(tensor).flat]
            array: Array = np.array(values, np.int64).reshape(tensor.dims)
        elif any(extent in extents for extent in tensor.dims):
            array = shrunk_array(numpy_helper.to_array(tensor, str(folder)), extents)
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    del new.graph.value_info[:]
    for value in new.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = _inferred(new)
    if inferred is None:
        return None if _inferred(model) is not None else new
    known = {value.name: value for value in inferred.graph.output}
    for value in new.graph.output:
        value.CopyFrom(known[value.name])
    return new


def shrunk_array(array: Array, extents: Mapping[int, int]) -> Array:
    """The start of an array along each axis of one of the extents."""
    slices = tuple(slice(extents.get(extent, extent)) for extent in array.shape)
    shape = [extents.get(extent, extent) for extent in array.shape]
    found: Array = np.ascontiguousarray(array[slices]).reshape(shape)
    return found


def _extents(model: onnx.ModelProto) -> set[int]:
    found = {
        dim.dim_value for value in model.graph.input for dim in value.type.tensor_type.shape.dim
    }
    weights = (tensor for tensor in model.graph.initializer if not _may_be_shape(tensor))
    found |= {extent for tensor in weights for extent in tensor.dims}
    return {extent for extent in found if extent > 2}


def _smaller(extent: int) -> Iterator[int]:
    """Extents to try, the smallest first, and then ever closer to what is known to fail."""
    tried = 2
    while tried < extent:
        yield tried
        tried = max(tried + 1, (tried + extent) // 2) if tried > 2 else max(3, extent // 4)
        if extent - tried < max(1, extent // 8):
            return


def _may_be_shape(tensor: onnx.TensorProto) -> bool:
    is_short = len(tensor.dims) < 2 and math.prod(tensor.dims) <= _MOST_AXES
    return is_short and tensor.data_type == onnx.TensorProto.INT64


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with inferred shapes; None where they contradict each other."""
    try:
        inferred = onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
    except Exception:  # of several kinds
        return None
    return inferred if _reshapes_fit(inferred) else None


def _reshapes_fit(model: onnx.ModelProto) -> bool:
    """Whether each Reshape makes as many elements as it reads, which ONNX does not look at."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    sizes = {value.name: _element_count(value) for value in values}
    sizes.update({tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer})
    pairs = [
        (sizes.get(node.input[0]), sizes.get(node.output[0]))
        for node in model.graph.node
        if node.op_type == "Reshape"
    ]
    return all(None in pair or pair[0] == pair[1] for pair in pairs)


def _element_count(value: onnx.ValueInfoProto) -> int | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or any(not d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return math.prod(int(dim.dim_value) for dim in tensor.shape.dim)
