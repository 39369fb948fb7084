"""The weights of a graph in blocks of INT4: their scales, and the tensors that hold them.

Weights are read one by one: for their scales, and again when the model is written.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.calibration.rows import RowReader
from trt_native.passes.block_arrays import (
    block_scales,
    dequantize_blocks,
    fit_blocks,
    quantize_blocks,
    relative_error,
)
from trt_native.passes.quantize_arrays import check_finite, read_tensor, round_scale
from trt_native.passes.quantize_rules import Product, QuantizedOperand

__all__ = ["BlockWeight", "WeightKey", "measure_blocks", "row_reader", "weight_key"]

WeightKey: TypeAlias = tuple[ir.Value, tuple[int, ...] | None, int, ir.DataType]


def weight_key(operand: QuantizedOperand) -> WeightKey:
    """Identity of a quantized weight: initializer, transposition, axis and type."""
    weight = operand.weight
    source, perm = (weight.source, weight.perm) if weight else (operand.value, None)
    return source, perm, operand.axis, operand.dtype


@dataclass(frozen=True, slots=True)
class BlockWeight:
    """A weight to store as a matrix of INT4.

    Attributes:
        product: A product that reads it.
        operand: Its place there.
        scales: float32[K/block, N]; K is what the product sums over.
        channels: float32[K], by which the matrix is multiplied before it is quantized; None for
            ones.
        errors: ``weight``: relative L2 error of the dequantized weight. Where samples of what it is
            multiplied by are there, ``products`` of these, of all weights that read them, and
            ``nearest``: what that would be with scales that follow from the weights alone.
    """

    product: Product
    operand: QuantizedOperand
    scales: Array
    channels: Array | None
    errors: Mapping[str, float]

    @property
    def axis(self) -> int:
        """The axis of the stored matrix that blocks lie along."""
        return 1 - self.operand.axis

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's own shape."""
        assert self.operand.weight is not None  # noqa: S101  # for the type checker
        tensor, perm = self.operand.weight.source.const_value, self.operand.weight.perm
        assert tensor is not None  # noqa: S101  # likewise
        shape = [int(extent) for extent in tensor.shape.numpy()]
        return tuple(shape[i] for i in perm) if perm else tuple(shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The shape of the stored matrix: the weight's own, [N, K] for a convolution's."""
        return self.shape[0], math.prod(self.shape[1:])

    def numbers(self) -> ir.LazyTensor:
        """The stored matrix in INT4, made when it is serialized."""
        shape = ir.Shape(self.matrix_shape)
        return ir.LazyTensor(functools.partial(_numbers, self), ir.DataType.INT4, shape)

    def stored_scales(self) -> Array:
        """The scales in the same order of axes."""
        return self.scales if self.operand.axis else self.scales.T


def _numbers(weight: BlockWeight) -> ir.Tensor[Array]:
    matrix = _matrix(weight.product, weight.operand)
    matrix = matrix if weight.channels is None else matrix * weight.channels[:, None]
    numbers = quantize_blocks(matrix, weight.scales, weight.operand.block)
    stored = numbers if weight.operand.axis else numbers.T
    return ir.Tensor(np.ascontiguousarray(stored), dtype=ir.DataType.INT4)


def _matrix(product: Product, operand: QuantizedOperand) -> Array:
    """float32[K, N], summed over K."""
    assert operand.weight is not None  # noqa: S101  # for the type checker
    tensor = operand.weight.source.const_value
    assert tensor is not None  # noqa: S101  # likewise
    array = read_tensor(tensor)
    array = array.transpose(operand.weight.perm) if operand.weight.perm else array
    if product.node.op_type == "Conv":
        array = array.reshape(array.shape[0], -1)
    return np.ascontiguousarray((array if operand.axis else array.T).astype(np.float32))


def row_reader(product: Product) -> RowReader | None:
    """How a product reads the activation that its weight is multiplied by; None if it is not last.

    Also None for convolutions in groups, or with padding that depends on the extents.
    """
    node, value = product.node, product.node.inputs[0]
    if value is None or not value.name or [o.index for o in product.operands] != [1]:
        return None
    attributes = node.attributes
    if node.op_type != "Conv":
        return None if attributes.get_int("transA", 0) else RowReader(value.name)
    padding = attributes.get_string("auto_pad", "NOTSET")
    if attributes.get_int("group", 1) != 1 or padding not in ("NOTSET", "VALID"):
        return None
    kernel = BlockWeight(product, product.operands[0], np.empty(0), None, {}).shape[2:]
    ones, zeros = [1] * len(kernel), [0] * (2 * len(kernel))
    pads = zeros if padding == "VALID" else attributes.get_ints("pads", zeros)
    return RowReader(
        value.name,
        kernel,
        tuple(attributes.get_ints("strides", ones)),
        tuple(pads),
        tuple(attributes.get_ints("dilations", ones)),
    )


def measure_blocks(
    products: Sequence[Product], rows: Mapping[RowReader, Array]
) -> dict[WeightKey, BlockWeight]:
    """Find the scales of every weight.

    Weights that are multiplied by the same activation share the factors of its channels. A weight
    that several activations are multiplied by has scales that follow from it alone.

    Args:
        products: The products.
        rows: Samples of activations; empty for scales that follow from the weights alone.

    Raises:
        ModelError: a weight holds NaN or infinity.
    """
    readers: dict[WeightKey, set[RowReader | None]] = defaultdict(set)
    first: dict[WeightKey, tuple[Product, QuantizedOperand]] = {}
    for product in products:
        for operand in product.operands:
            key = weight_key(operand)
            readers[key].add(row_reader(product))
            first.setdefault(key, (product, operand))
    _check_finite(first.values())
    groups: dict[RowReader | None, list[WeightKey]] = defaultdict(list)
    for key, found in readers.items():
        reader = next(iter(found)) if len(found) == 1 else None
        groups[reader if reader in rows else None].append(key)
    weights: dict[WeightKey, BlockWeight] = {}
    for reader, keys in groups.items():
        if reader is None:
            weights |= {key: _nearest(*first[key]) for key in keys}
        else:
            fitted = _fitted([first[key] for key in keys], rows[reader], math.prod(reader.kernel))
            weights |= dict(zip(keys, fitted, strict=True))
    return weights


def _check_finite(operands: Iterable[tuple[Product, QuantizedOperand]]) -> None:
    problems = {}
    for product, operand in operands:
        if not np.isfinite(_matrix(product, operand)).all():
            name = operand.weight.source.name if operand.weight else operand.value.name
            problems[name or ""] = product.node.name or product.node.op_type
    check_finite(problems)


def _nearest(product: Product, operand: QuantizedOperand) -> BlockWeight:
    matrix = _matrix(product, operand)
    return _weight(product, operand, matrix, block_scales(matrix, operand.block))


def _fitted(
    operands: Sequence[tuple[Product, QuantizedOperand]], rows: Array, repeat: int
) -> list[BlockWeight]:
    matrices = [_matrix(*operand) for operand in operands]
    fit = fit_blocks(matrices, rows, [operand.block for _, operand in operands], repeat)
    errors = {"products": fit.error, "nearest": fit.nearest}
    return [
        _weight(*operand, matrix, scales, fit.channels, errors)
        for operand, matrix, scales in zip(operands, matrices, fit.scales, strict=True)
    ]


def _weight(
    product: Product,
    operand: QuantizedOperand,
    matrix: Array,
    scales: Array,
    channels: Array | None = None,
    errors: Mapping[str, float] | None = None,
) -> BlockWeight:
    scales = round_scale(scales, operand.dtype)
    scaled = matrix if channels is None else matrix * channels[:, None]
    numbers = quantize_blocks(scaled, scales, operand.block)
    real = dequantize_blocks(numbers, scales, operand.block)
    real = real if channels is None else real / channels[:, None]
    found = {"weight": relative_error(real, matrix), **(errors or {})}
    return BlockWeight(product, operand, scales, channels, found)
