"""What quantization makes of the tensors that each product reads, without a run of its result."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array, Batch
from trt_native.calibration.cpu_runner import CpuRunner
from trt_native.config import CpuRuntime, Precision
from trt_native.graph.nodes import FLOAT
from trt_native.passes.block_weights import measure_blocks, weight_key
from trt_native.passes.quantize_arrays import (
    FLOAT8,
    INT8,
    LARGEST,
    channel_amax,
    quantize_array,
    read_tensor,
    round_scale,
)
from trt_native.passes.quantize_rules import Product, ProductSelection, QuantizedOperand

__all__ = ["rounding_errors"]


def rounding_errors(
    model: ir.Model,
    selection: ProductSelection,
    ranges: Mapping[str, float],
    precision: Precision,
    inputs: Batch,
) -> dict[ir.Node, float]:
    """Relative L2 errors that Q/DQ pairs make of the inputs of nodes.

    Those of a product's two inputs are taken to be independent, so that the root of the sum of
    their squares is about the error of the product.

    Args:
        model: The model, with types and without functions.
        selection: The nodes.
        ranges: Largest magnitude of each activation, by tensor name.
        precision: INT8, FP8, INT8_WEIGHTS or INT4_WEIGHTS.
        inputs: The inputs of the model, which is run on the CPU once for its activations.
    """
    dtype = FLOAT8 if precision is Precision.FP8 else INT8
    squares: dict[ir.Node, float] = {}
    readers: defaultdict[str, list[ir.Node]] = defaultdict(list)
    for product in selection.chosen:
        weights = [operand for operand in product.operands if operand.weight is not None]
        squares[product.node] = sum(_weight_error(product, w, dtype) ** 2 for w in weights)
        for operand in product.operands:
            if operand.weight is None and operand.value.name in ranges:
                readers[str(operand.value.name)].append(product.node)
    for add, index in selection.residuals:
        squares[add] = 0.0
        value = add.inputs[index]
        if value is not None:
            readers[str(value.name)].append(add)
    for name, values in _activations(model, readers, inputs):
        scale = round_scale(ranges[name] / LARGEST[dtype], FLOAT)
        error = _relative_error(values, scale, 0, dtype)
        for node in readers[name]:
            squares[node] += error**2
    return {node: math.sqrt(square) for node, square in squares.items()}


def _activations(
    model: ir.Model, names: Mapping[str, object], inputs: Batch
) -> Iterator[tuple[str, Array]]:
    """The values of tensors, one at a time."""
    yield from ((name, array) for name, array in inputs.items() if name in names)
    made = [name for name in names if name not in inputs]
    if made:
        yield from CpuRunner(model.clone(), made, CpuRuntime.AUTO)(inputs)


def _weight_error(product: Product, operand: QuantizedOperand, dtype: ir.DataType) -> float:
    weight = operand.weight
    if operand.block:
        return measure_blocks([product], {})[weight_key(operand)].errors["weight"]
    if weight is None or weight.source.const_value is None:
        return 0.0
    array = read_tensor(weight.source.const_value)
    array = array if weight.perm is None else array.transpose(weight.perm)
    amax = channel_amax(array, operand.axis)
    scale = round_scale(np.where(amax > 0, amax / LARGEST[dtype], 1.0), FLOAT)
    return _relative_error(array, scale, operand.axis, dtype)


def _relative_error(array: Array, scale: Array, axis: int, dtype: ir.DataType) -> float:
    exact = np.asarray(array, np.float32)
    size = float(np.linalg.norm(exact))
    if size == 0:
        return 0.0
    shape = [-1 if i == axis else 1 for i in range(exact.ndim)] if scale.ndim else []
    rounded = quantize_array(exact, scale, axis, dtype).astype(np.float32)
    return float(np.linalg.norm(rounded * scale.reshape(shape) - exact)) / size
