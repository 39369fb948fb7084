"""Activations without a GPU: a model run node by node by the reference evaluator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from trt_native.arrays import Array, Batch, is_float
from trt_native.errors import CalibrationError, UnsupportedError
from trt_native.graph.nodes import all_nodes, bodies
from trt_native.graph.onnx_file import tensor_specs
from trt_native.reference import NAME
from trt_native.shapes import TensorSpec, format_shape

__all__ = ["ReferenceRunner", "convert_batch", "cut_model", "values_read"]


@dataclass(frozen=True, slots=True)
class _Step:
    """One node, with the names of the values that it reads, writes and is the last to read."""

    node: ir.Node
    run: Callable[[dict[str, Any]], Any]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    drops: tuple[str, ...]


class ReferenceRunner:
    """Runs a model on the CPU, for small models: it is exact, and slow.

    The operators are those of :mod:`trt_native.reference`.

    Nodes run one by one, and values are held only as long as a later node reads them; only nodes
    that the wanted tensors depend on run at all.

    Args:
        model: The model, without model-local functions. It is cut down to what the tensors need,
            and its weights are read into memory.
        tensors: Names of values of the main graph.
        alternative: What to do about a node that cannot be run, for the error.
        options: The Python options that the alternative is about.

    Raises:
        UnsupportedError: the reference does not have one of the operators.
    """

    name = NAME

    def __init__(
        self,
        model: ir.Model,
        tensors: Sequence[str],
        *,
        alternative: str = "",
        options: Sequence[str] = (),
    ) -> None:
        self._alternative = alternative
        self._options = tuple(options)
        graph = model.graph
        self._wanted = frozenset(tensors)
        cut_model(model, self._wanted)
        ir.external_data.load_to_model(model)
        self._inputs = tensor_specs(model)[0]
        self._weights = {
            name: value.const_value.numpy()
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }
        self._steps = self._plan(model)

    @property
    def steps(self) -> int:
        """Number of nodes that run."""
        return len(self._steps)

    def __call__(
        self, batch: Batch, on_step: Callable[[int], None] | None = None
    ) -> Iterator[tuple[str, Array]]:
        """Run a batch.

        Args:
            batch: The inputs.
            on_step: Called with the number of each node that has run, counted from 0.

        Raises:
            CalibrationError: an input is missing, unknown, or of another type or shape.
            UnsupportedError: the reference cannot run a node with these values.
        """
        values: dict[str, Any] = {**self._weights, **convert_batch(batch, self._inputs)}
        for name in (*(tensor.name for tensor in self._inputs), *self._weights):
            if name in self._wanted:
                yield name, values[name]
        for number, step in enumerate(self._steps):
            inputs = {name: values[name] for name in step.reads}
            try:
                with np.errstate(all="ignore"):
                    outputs = step.run(inputs)
            except Exception as error:  # each operator has its own kinds
                given = ", ".join(map(_described, inputs.items()))
                raise self._failure(step.node, error, f" with {given}" if given else "") from error
            for name, output in zip(step.writes, outputs, strict=True):
                values[name] = output
                if name in self._wanted:
                    yield name, output
            for name in step.drops:
                del values[name]
            if on_step is not None:
                on_step(number)

    def _failure(self, node: ir.Node, error: Exception, given: str = "") -> UnsupportedError:
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        cause = error.__cause__ or error  # some are wrapped in others that say less
        kind = "" if isinstance(cause, NotImplementedError) else f"{type(cause).__name__}: "
        reason = " ".join(f"{kind}{cause}".split())[:300]
        alternative = f"; {self._alternative}" if self._alternative else ""
        return UnsupportedError(
            f"{NAME} cannot run operator {operator} (node {node.name!r}){given}: {reason}"
            f"{alternative}",
            options=self._options,
        )

    def _plan(self, model: ir.Model) -> list[_Step]:
        """The nodes in order, each with the values that it is the last to read."""
        own = set(_values(model.graph))
        kept = set(self._weights)
        steps = []
        for node in reversed(model.graph):
            reads = [value for value in values_read(node) if value in own]
            writes = [value for value in node.outputs if value.name]
            used = [str(value.name) for value in (*reads, *writes)]
            drops = [name for name in dict.fromkeys(used) if name not in kept]
            kept.update(drops)
            try:
                run = _evaluator(model, node, list(reads), writes)
            except Exception as error:  # there is no kind of its own for what it lacks
                raise self._failure(node, error) from error
            steps.append(
                _Step(
                    node=node,
                    run=run,
                    reads=tuple(str(value.name) for value in reads),
                    writes=tuple(str(value.name) for value in writes),
                    drops=tuple(drops),
                )
            )
        return steps[::-1]


def cut_model(model: ir.Model, tensors: Collection[str]) -> None:
    """Leave in a model what values of its main graph need, which become its outputs.

    Args:
        model: The model; its inputs all stay.
        tensors: Names of the values.
    """
    graph = model.graph
    outputs = [value for value in _values(graph) if value.name in tensors]
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    passes.RemoveUnusedNodesPass()(model)


def values_read(node: ir.Node) -> dict[ir.Value, None]:
    """The values that a node reads, those read inside its bodies included, in order."""
    inner = (n for body in bodies(node) for n in all_nodes(body))
    return {v: None for n in (node, *inner) for v in n.inputs if v is not None}


def _described(item: tuple[str, Any]) -> str:
    name, value = item
    shape = getattr(value, "shape", None)
    return f"{name}: {type(value).__name__ if shape is None else format_shape(shape) or 'a scalar'}"


def convert_batch(batch: Batch, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The batch with its floating-point arrays, and integers that fit, in the inputs' own types.

    Raises:
        CalibrationError: an input is missing, unknown, or of another type or shape.
    """
    if wrong := set(batch) ^ {tensor.name for tensor in inputs}:
        state = "missing" if min(wrong) not in batch else "not one of the model's"
        raise CalibrationError(
            f"input {min(wrong)!r} is {state}; the inputs are {', '.join(map(str, inputs))}"
        )
    arrays = {}
    for tensor in inputs:
        array, wanted = np.asarray(batch[tensor.name]), np.dtype(tensor.dtype)
        if not _is_convertible(array, wanted):
            raise CalibrationError(f"input {tensor.name!r} needs {wanted}, found {array.dtype}")
        if not _fits(array.shape, tensor):
            raise CalibrationError(
                f"input {tensor} of the model: the data has shape {format_shape(array.shape)}"
            )
        arrays[tensor.name] = array.astype(wanted, copy=False)
    return arrays


def _is_convertible(array: Array, wanted: np.dtype[Any]) -> bool:
    """Whether an array is of a type, or of floating point as that is, or of integers it has."""
    if array.dtype == wanted or (is_float(array.dtype) and is_float(wanted)):
        return True
    whole = array.dtype.kind in "iu" and wanted.kind in "iu"
    return whole and np.array_equal(array.astype(wanted), array)


def _fits(shape: Sequence[int], tensor: TensorSpec) -> bool:
    return tensor.shape is None or (
        len(shape) == len(tensor.shape)
        and all(
            not isinstance(wanted, int) or extent == wanted
            for extent, wanted in zip(shape, tensor.shape, strict=True)
        )
    )


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _evaluator(
    model: ir.Model, node: ir.Node, reads: Sequence[ir.Value], writes: Sequence[ir.Value]
) -> Callable[[dict[str, Any]], Any]:
    from trt_native.reference.evaluator import evaluator  # its hundreds of classes only if used

    inputs, outputs = ([ir.serde.serialize_value(v) for v in side] for side in (reads, writes))
    graph = onnx.helper.make_graph([ir.serde.serialize_node(node)], "node", inputs, outputs)
    return partial(evaluator(graph, model.opset_imports).run, None)
