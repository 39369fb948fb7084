"""Activations without a GPU: a model run node by node with ``onnx.reference``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common as passes

from trt_native.arrays import Array, Batch
from trt_native.errors import CalibrationError, UnsupportedError
from trt_native.graph.nodes import all_nodes, bodies
from trt_native.graph.onnx_file import tensor_specs
from trt_native.shapes import TensorSpec

__all__ = ["ReferenceRunner"]


@dataclass(frozen=True, slots=True)
class _Step:
    """One node, with the names of the values that it reads, writes and is the last to read."""

    label: str
    run: Callable[[dict[str, Any]], Any]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    drops: tuple[str, ...]


class ReferenceRunner:
    """Runs a model on the CPU with ``onnx.reference``, for small models: it is exact, and slow.

    Nodes run one by one, and values are held only as long as a later node reads them; only nodes
    that the wanted tensors depend on run at all.

    Args:
        model: The model, without model-local functions. It is cut down to what the tensors need,
            and its weights are read into memory.
        tensors: Names of values of the main graph.

    Raises:
        UnsupportedError: ``onnx.reference`` does not have one of the operators.
    """

    name = "onnx.reference"

    def __init__(self, model: ir.Model, tensors: Sequence[str]) -> None:
        graph = model.graph
        self._wanted = frozenset(tensors)
        outputs = [value for value in _values(graph) if value.name in self._wanted]
        graph.outputs.clear()
        graph.outputs.extend(outputs)
        passes.RemoveUnusedNodesPass()(model)
        ir.external_data.load_to_model(model)
        self._inputs = tensor_specs(model)[0]
        self._weights = {
            name: value.const_value.numpy()
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }
        self._steps = _steps(model, set(self._weights))

    def __call__(self, batch: Batch) -> Iterator[tuple[str, Array]]:
        """Run a batch.

        Raises:
            CalibrationError: an input is missing, unknown or of another type, or a node fails.
        """
        values: dict[str, Any] = {**self._weights, **_converted(batch, self._inputs)}
        for name in (*(tensor.name for tensor in self._inputs), *self._weights):
            if name in self._wanted:
                yield name, values[name]
        for step in self._steps:
            try:
                with np.errstate(all="ignore"):
                    outputs = step.run({name: values[name] for name in step.reads})
            except Exception as error:  # each operator has its own kinds
                cause = error.__cause__ or error  # it wraps some, and says less
                reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
                raise CalibrationError(
                    f"onnx.reference failed at {step.label} with this data: {reason}"
                ) from error
            for name, output in zip(step.writes, outputs, strict=True):
                values[name] = output
                if name in self._wanted:
                    yield name, output
            for name in step.drops:
                del values[name]


def _converted(batch: Batch, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The batch with its floating-point arrays in the inputs' own types."""
    if wrong := set(batch) ^ {tensor.name for tensor in inputs}:
        state = "missing" if min(wrong) not in batch else "not one of the model's"
        raise CalibrationError(
            f"input {min(wrong)!r} is {state}; the inputs are {', '.join(map(str, inputs))}"
        )
    arrays = {}
    for tensor in inputs:
        array, wanted = np.asarray(batch[tensor.name]), np.dtype(tensor.dtype)
        if array.dtype != wanted and not (_is_float(array.dtype) and _is_float(wanted)):
            raise CalibrationError(f"input {tensor.name!r} needs {wanted}, found {array.dtype}")
        arrays[tensor.name] = array.astype(wanted, copy=False)
    return arrays


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or "float" in dtype.name


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _steps(model: ir.Model, held: set[str]) -> list[_Step]:
    """The nodes in order, each with the values that it is the last to read."""
    own = set(_values(model.graph))
    kept = set(held)
    steps = []
    for node in reversed(model.graph):
        inner = (n for body in bodies(node) for n in all_nodes(body))
        reads = {v: None for n in (node, *inner) for v in n.inputs if v is not None and v in own}
        writes = [value for value in node.outputs if value.name]
        used = [str(value.name) for value in (*reads, *writes)]
        drops = [name for name in dict.fromkeys(used) if name not in kept]
        kept.update(drops)
        steps.append(
            _Step(
                label=f"{node.op_type} {node.name!r}",
                run=_evaluator(model, node, list(reads), writes),
                reads=tuple(str(value.name) for value in reads),
                writes=tuple(str(value.name) for value in writes),
                drops=tuple(drops),
            )
        )
    return steps[::-1]


def _evaluator(
    model: ir.Model, node: ir.Node, reads: Sequence[ir.Value], writes: Sequence[ir.Value]
) -> Callable[[dict[str, Any]], Any]:
    inputs, outputs = ([ir.serde.serialize_value(v) for v in side] for side in (reads, writes))
    graph = onnx.helper.make_graph([ir.serde.serialize_node(node)], "node", inputs, outputs)
    try:
        evaluator = ReferenceEvaluator(graph, opsets=dict(model.opset_imports))
    except Exception as error:  # it has no kind of its own for what it lacks
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedError(
            f"onnx.reference, which runs the model without a GPU, cannot run operator {operator}"
            f" (node {node.name!r}): {reason}"
        ) from error
    return partial(evaluator.run, None)
