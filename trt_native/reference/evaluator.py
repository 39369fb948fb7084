"""Evaluators of ``onnx.reference`` that know the operators of this package."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op

from trt_native.arrays import Array
from trt_native.reference import (
    contrib_attention,
    contrib_fused,
    contrib_quantization,
    control_flow,
    convolution,
    indexing,
    normalization,
    pooling,
    quantization,
    recurrent,
    resampling,
)
from trt_native.reference.kernels import Kernel, is_narrow, widened
from trt_native.schemas import schema_of

__all__ = ["evaluator", "has_own_formula", "is_fused"]

_KERNELS: tuple[Kernel, ...] = (
    *control_flow.KERNELS,
    *convolution.KERNELS,
    *indexing.KERNELS,
    *normalization.KERNELS,
    *pooling.KERNELS,
    *quantization.KERNELS,
    *recurrent.KERNELS,
    *resampling.KERNELS,
)
_FUSED: tuple[type[OpRun], ...] = (*contrib_attention.OPERATORS, *contrib_fused.OPERATORS)
_CONTRIB = (*_FUSED, *contrib_quantization.OPERATORS)
# In the type of an FP16 or BF16 input, their sums would overflow or lose digits, or they fail.
_ACCUMULATING = frozenset(
    {
        "ReduceSum",
        "ReduceMean",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceProd",
        "InstanceNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "BatchNormalization",
        "Conv",
        "Gemm",
        "MatMul",
        "Einsum",
        "CumSum",
        "AffineGrid",
        "Det",
    }
)


def evaluator(graph: onnx.GraphProto, opsets: Mapping[str, int]) -> ReferenceEvaluator:
    """Make an evaluator of a graph, without model-local functions.

    Args:
        graph: The graph; outputs without a name inside its bodies get one.
        opsets: Version of each domain's operators.

    Raises:
        Exception: of any class, where an operator does not exist.
    """
    opset = opsets.get("", onnx.defs.onnx_opset_version())
    _name_unused_outputs(graph)
    return ReferenceEvaluator(graph, opsets=dict(opsets), new_ops=[*_operators(opset), *_CONTRIB])


def has_own_formula(operator: str, domain: str) -> bool:
    """Whether an operator that ONNX does not define is computed by a formula of this package."""
    return any((one.__name__, one.op_domain) == (operator, domain) for one in _CONTRIB)


def is_fused(operator: str, domain: str) -> bool:
    """Whether an operator is a fused one of ONNX Runtime, whose results are not quantized."""
    norm = (operator, domain) == ("LayerNormalization", "")  # before ONNX had it
    return norm or any((one.__name__, one.op_domain) == (operator, domain) for one in _FUSED)


def _name_unused_outputs(graph: onnx.GraphProto) -> None:
    """Name them: the evaluator takes the value of an output without a name for absent inputs."""
    for number, node in enumerate(graph.node):
        for index, name in enumerate(node.output):
            node.output[index] = name or f"unused {number} {index}"
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _name_unused_outputs(body)


class _KernelOperator(OpRun):
    """Runs a kernel."""

    run_kernel: ClassVar[Callable[..., tuple[Any, ...]]]

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        return type(self).run_kernel(self, *inputs, **attributes)


class _BodyOperator(_KernelOperator):
    """Runs a kernel that runs a body."""

    def need_context(self) -> bool:
        """Values of the graphs around it can be read inside the body."""
        return True


@functools.cache
def _operators(opset: int) -> tuple[type[OpRun], ...]:
    return tuple(_defined(opset))


def _defined(opset: int) -> Iterator[type[OpRun]]:
    replaced = set()
    for kernel in _KERNELS:
        schema = schema_of(kernel.operator, opset)
        if schema is None or schema.deprecated or not kernel.covers(schema.since_version):
            continue
        replaced.add(kernel.operator)
        base = _BodyOperator if kernel.has_body else _KernelOperator
        members = {"op_schema": schema, "run_kernel": staticmethod(kernel.run)}
        yield type(kernel.operator, (base,), members)
    for operator in sorted(_ACCUMULATING - replaced):
        schema = schema_of(operator, opset)
        if schema is None:
            continue
        with contextlib.suppress(RuntimeError):  # a version that is not implemented
            original = load_op("", operator, opset)
            members = {"op_schema": schema, "_run": _in_float32(original)}
            yield type(operator, (original,), members)
    if schema_of("LayerNormalization", opset) is None:
        yield type("LayerNormalization", (contrib_fused.UnversionedLayerNormalization,), {})


def _in_float32(original: type[OpRun]) -> Callable[..., tuple[Any, ...]]:
    """The operator with FP16 and BF16 inputs in FP32, and the result rounded once."""
    implementation: Callable[..., tuple[Any, ...]] = original._run

    def run(self: OpRun, *inputs: Array | None, **attributes: Any) -> tuple[Any, ...]:
        wide = [None if array is None else widened(array) for array in inputs]
        outputs = implementation(self, *wide, **attributes)
        first = inputs[0]
        if first is None or not is_narrow(first.dtype):
            return tuple(outputs)
        # Further outputs of norms are the statistics, which are FP32.
        return (np.asarray(outputs[0]).astype(first.dtype), *outputs[1:])

    return run
