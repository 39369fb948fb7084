"""QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op

from trt_native.arrays import Array
from trt_native.reference.kernels import Kernel, opset_of_node

__all__ = ["KERNELS"]

_BEYOND_ANY_TYPE = 2.0**20
"""More steps from zero than any quantized type has."""


def _dequantize(
    node: OpRun, x: Array, scale: Array, zero_point: Array | None = None, *, axis: int = 1
) -> tuple[Array]:
    """Versions 10 and 13, which differ from 19 in their types alone."""
    return _original(node, 19, x, scale, zero_point, axis=axis)


def _quantize(
    node: OpRun, x: Array, scale: Array, zero_point: Array | None = None, **options: Any
) -> tuple[Array]:
    """The original, which takes a quotient beyond INT32 for the smallest number."""
    axis, block = options.get("axis", 1), options.get("block_size", 0)
    steps = scale.astype(np.float64)
    if steps.ndim == 1 and steps.size > 1 and not block:
        steps = steps.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))
    elif block:
        steps = steps.repeat(block, axis=axis)
        steps = steps[tuple(slice(extent) for extent in x.shape)]
    limit = np.abs(steps) * _BEYOND_ANY_TYPE
    clipped = np.clip(x, -limit, limit).astype(x.dtype)
    return _original(node, opset_of_node(node), clipped, scale, zero_point, **options)


def _original(node: OpRun, version: int, *inputs: Array | None, **options: Any) -> tuple[Array]:
    run: Any = load_op("", node.op_type, version)(node.onnx_node, node.run_params)
    found: tuple[Array] = run._run(*inputs, **options)
    return found


KERNELS = (
    Kernel("DequantizeLinear", _dequantize, since=10, below=19),
    Kernel("QuantizeLinear", _quantize, since=10),
)
