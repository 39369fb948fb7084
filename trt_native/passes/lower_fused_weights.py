"""Products with packed weights of a few bits, as products with their real numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.nodes import constant_of, input_of
from trt_native.passes.fused_builder import FusedBuilder

__all__ = ["bits_refusal", "rewrite_mat_mul_bits"]


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


def rewrite_mat_mul_bits(new: FusedBuilder) -> None:
    """Multiply by the real numbers, which are computed when the model is written."""
    node = new.node
    tensors = [
        tensor
        for index in (1, 2, 3)
        if (value := input_of(node, index)) is not None
        and (tensor := constant_of(value)) is not None
    ]
    weights = new.weights(_real(node, tensors, new.kind))
    product = new.add("MatMul", [new.operand(0), weights])
    bias = input_of(node, 5)
    new.replace(product if bias is None else new.add("Add", [product, bias]))


def _real(
    node: ir.Node, tensors: Sequence[ir.TensorProtocol], kind: ir.DataType
) -> ir.TensorProtocol:
    """[K, N]: the weights; they stay on disk until the model is written."""
    rows, columns, bits, block = (
        node.attributes.get_int(name, default)
        for name, default in (("K", 0), ("N", 0), ("bits", 4), ("block_size", 32))
    )

    def compute() -> ir.TensorProtocol:
        packed, scales, *zeros = (tensor.numpy() for tensor in tensors)
        blocks = -(-rows // block)
        numbers = _unpacked(packed.reshape(columns, blocks, -1), bits).astype(np.float32)
        numbers -= _zero_points(zeros, columns, blocks, bits)
        numbers *= scales.reshape(columns, blocks, 1).astype(np.float32)
        real = numbers.reshape(columns, -1)[:, :rows].T
        return ir.Tensor(np.ascontiguousarray(real.astype(kind.numpy())))

    return ir.LazyTensor(compute, dtype=kind, shape=ir.Shape((rows, columns)))


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
