"""Products with packed weights of a few bits, as products with their real numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.nodes import constant_of, input_of
from trt_native.passes.fused_builder import FusedBuilder

__all__ = ["BLOCKS_OPSET", "bits_refusal", "fits_blocks", "rewrite_mat_mul_bits"]

BLOCKS_OPSET = 21
"""The first opset that dequantizes blocks, and has INT4."""


def bits_refusal(node: ir.Node) -> str:
    """What a MatMulNBits has that is not written out."""
    if node.attributes.get_int("weight_prepacked", 0):
        return "has weights in a layout of one GPU (weight_prepacked)"
    if node.attributes.get_int("bits", 4) not in (2, 4, 8):
        return "has weights of neither 2, 4 nor 8 bits"
    if input_of(node, 4) is not None:
        return "orders its weights by groups (g_idx)"
    weights = (input_of(node, index) for index in (1, 2, 3))
    if any(value is not None and constant_of(value) is None for value in weights):
        return "has weights that are not constants"
    return ""


def fits_blocks(node: ir.Node) -> bool:
    """Whether weights can stay packed: INT4 or INT8 less their zero points, in whole blocks."""
    packed = _Packed(node)
    if packed.rows % packed.block or packed.columns % 2:
        return False
    if packed.kind is ir.DataType.INT4 or not packed.has_zeros:
        return True
    numbers = packed.numbers()
    whole = bool((numbers == np.rint(numbers)).all())
    return whole and numbers.min() >= -128 and bool(numbers.max() <= 127)


def rewrite_mat_mul_bits(new: FusedBuilder) -> None:
    """Multiply by the real numbers, which are computed when the model is written."""
    node = new.node
    packed = _Packed(node)
    if new.keeps_blocks:
        weights = new.weights(packed.integers())
        scales = new.weights(packed.by_block(new.kind))
        weights = new.add("DequantizeLinear", [weights, scales], axis=0, block_size=packed.block)
    else:
        weights = new.weights(packed.real(new.kind))
    product = new.add("MatMul", [new.operand(0), weights])
    bias = input_of(node, 5)
    new.replace(product if bias is None else new.add("Add", [product, bias]))


class _Packed:
    """Weights of [columns, rows] in blocks; they stay on disk until the model is written."""

    def __init__(self, node: ir.Node) -> None:
        self.rows, self.columns, self._bits, self.block = (
            node.attributes.get_int(name, default)
            for name, default in (("K", 0), ("N", 0), ("bits", 4), ("block_size", 32))
        )
        values = (input_of(node, index) for index in (1, 2, 3))
        given = [constant_of(value) for value in values if value is not None]
        self._tensors = [tensor for tensor in given if tensor is not None]
        self.has_zeros = len(self._tensors) == 3
        self._blocks = -(-self.rows // self.block)

    @property
    def kind(self) -> ir.DataType:
        """The type that holds the numbers less their zero points."""
        narrow = self._bits == 2 or (self._bits == 4 and not self.has_zeros)
        return ir.DataType.INT4 if narrow else ir.DataType.INT8

    def numbers(self) -> Array:
        """FP32[columns, blocks, block]: the numbers less their zero points."""
        packed, _, *zeros = (tensor.numpy() for tensor in self._tensors)
        shape = (self.columns, self._blocks)
        numbers = _unpacked(packed.reshape(*shape, -1), self._bits).astype(np.float32)
        found: Array = numbers - _zero_points(zeros, *shape, self._bits)
        return found

    def _scales(self) -> Array:
        scales: Array = self._tensors[1].numpy().reshape(self.columns, self._blocks)
        return scales.astype(np.float32)

    def real(self, kind: ir.DataType) -> ir.LazyTensor:
        """[rows, columns]: the real numbers."""

        def compute() -> Array:
            return (self.numbers() * self._scales()[..., None]).reshape(self.columns, -1)

        return self._lazy(compute, kind, self.rows)

    def integers(self) -> ir.LazyTensor:
        """[rows, columns]: the numbers less their zero points, with the signs of INT8's scales."""

        def compute() -> Array:
            signs = np.sign(self._scales())
            signs = np.abs(signs) if self.kind is ir.DataType.INT4 else signs
            return (self.numbers() * signs[..., None]).reshape(self.columns, -1)

        return self._lazy(compute, self.kind, self.rows)

    def by_block(self, kind: ir.DataType) -> ir.LazyTensor:
        """[blocks, columns]: the scales, which TensorRT takes below 0 for INT4 only."""

        def compute() -> Array:
            scales = self._scales()
            scales = scales if self.kind is ir.DataType.INT4 else np.abs(scales)
            return np.where(scales == 0, np.float32(1), scales)

        return self._lazy(compute, kind, self._blocks)

    def _lazy(self, compute: Callable[[], Array], kind: ir.DataType, rows: int) -> ir.LazyTensor:
        """A matrix that is given as [columns, rows], and may have some more of these."""

        def turned() -> ir.TensorProtocol:
            matrix = np.ascontiguousarray(compute()[:, :rows].T)
            return ir.Tensor(matrix.astype(kind.numpy()), dtype=kind)

        return ir.LazyTensor(turned, dtype=kind, shape=ir.Shape((rows, self.columns)))


def _zero_points(zeros: Sequence[Array], columns: int, blocks: int, bits: int) -> Array:
    """[columns, blocks, 1]; the middle of the range where there are none."""
    if not zeros:
        return np.array(1 << (bits - 1), np.float32)
    given = zeros[0]
    if given.dtype == np.uint8:
        given = _unpacked(given.reshape(columns, -1), bits)[:, :blocks]
    found: Array = given.reshape(columns, blocks, 1).astype(np.float32)
    return found


def _unpacked(packed: Array, bits: int) -> Array:
    """Numbers of a few bits, of which each byte has the lowest first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    found: Array = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return found.reshape(*packed.shape[:-1], -1)
