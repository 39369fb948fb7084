"""The smallest model that still fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fuzzing.graphs import Array
from fuzzing.judging import Task, run_second_reference
from trt_native.debug.shrinking import shrunk_array
from trt_native.debug.subgraphs import reads

__all__ = ["shrink"]


def shrink(task: Task, fails: Callable[[Task], bool], seconds: float) -> Task:
    """Reduce a failing task's model by nodes, outputs, inputs and extents while it fails.

    Args:
        task: The task, with its model and inputs.
        fails: Whether a task fails in the same way.
        seconds: Time for all.
    """
    deadline = time.monotonic() + seconds
    tried: set[tuple[bytes, int]] = set()
    changed = True
    while changed:
        changed = False
        for candidate in _candidates(task):
            if time.monotonic() > deadline:
                return task
            key = candidate.model, len(candidate.inputs)
            if key in tried or _cost(candidate) >= _cost(task):
                continue
            tried.add(key)
            if fails(candidate):
                task, changed = candidate, True
                break
    return task


def _cost(task: Task) -> tuple[int, int, int, int]:
    graph = onnx.load_from_string(task.model).graph
    elements = sum(array.size for inputs in task.inputs for array in inputs.values())
    elements += sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    return len(graph.node), len(graph.output), len(task.inputs), elements


@dataclass(frozen=True)
class _Opened:
    """A task's model, with the values of all its tensors for each set of inputs."""

    task: Task
    model: onnx.ModelProto
    values: dict[str, list[Array]]

    def rebuilt(
        self,
        nodes: Sequence[onnx.NodeProto],
        outputs: Sequence[str],
        *,
        sets: Sequence[int] | None = None,
    ) -> Task | None:
        """A task of those of the nodes that the outputs need; inputs are what no node makes."""
        chosen = range(len(self.task.inputs)) if sets is None else sets
        constants = {tensor.name: tensor for tensor in self.model.graph.initializer}
        kept, needed = [], set(outputs)
        for node in reversed(nodes):
            if needed & set(node.output):
                kept.append(node)
                needed |= {*reads(node)}
        made = {name for node in kept for name in node.output}
        free = sorted(name for name in needed - made if name and name not in constants)
        if not kept or any(name not in self.values for name in (*free, *outputs)):
            return None
        dims: dict[str, tuple[int, int]] = {}
        infos = [self._info(name, chosen, dims) for name in free]
        results = [self._info(name, chosen, {}) for name in outputs]
        graph = helper.make_graph(
            kept[::-1], "shrunk", infos, results, [t for n, t in constants.items() if n in needed]
        )
        model = helper.make_model(
            graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )
        inputs = tuple({name: self.values[name][i] for name in free} for i in chosen)
        return replace(
            self.task, model=model.SerializeToString(), inputs=inputs, dims=dims, expected=()
        )

    def _info(
        self, name: str, sets: Sequence[int], dims: dict[str, tuple[int, int]]
    ) -> onnx.ValueInfoProto:
        arrays = [self.values[name][i] for i in sets]
        axes: list[str | int] = []
        for extents in zip(*(array.shape for array in arrays), strict=True):
            if len(set(extents)) == 1:
                axes.append(extents[0])
            else:
                axes.append(f"d{extents[0]}_{extents[-1]}")
                dims[f"d{extents[0]}_{extents[-1]}"] = extents[0], extents[-1]
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(arrays[0].dtype), axes
        )


def _opened(task: Task) -> _Opened | None:
    model = onnx.load_from_string(task.model)
    everything = onnx.ModelProto()
    everything.CopyFrom(model)
    del everything.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    everything.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    try:
        sets = run_second_reference(everything, task.inputs)
    except Exception:  # such a model cannot be cut
        return None
    values = {name: [one[name] for one in sets] for name in names}
    for name in task.inputs[0]:
        values[name] = [inputs[name] for inputs in task.inputs]
    return _Opened(task, model, values)


def _candidates(task: Task) -> Iterator[Task]:
    opened = _opened(task)
    if opened is None:
        return
    nodes, graph = list(opened.model.graph.node), opened.model.graph
    outputs = [output.name for output in graph.output]
    inner = [name for node in nodes for name in node.output if name and name not in outputs]
    cuts = [len(nodes) * eighths // 8 for eighths in (4, 6, 2, 7, 5, 3, 1)]
    found: list[Task | None] = [opened.rebuilt(nodes[cut:], outputs) for cut in cuts]
    found += [opened.rebuilt(nodes, [name]) for name in _spread(inner)]
    found += [opened.rebuilt(nodes, [name]) for name in outputs]
    for index in reversed(range(len(nodes))):  # what a node makes as an input
        rest = [node for i, node in enumerate(nodes) if i != index]
        found.append(opened.rebuilt(rest, [n for n in outputs if n not in nodes[index].output]))
        found.append(_bypassed(opened, index, outputs))
    found += [opened.rebuilt(nodes, [n for n in outputs if n != name]) for name in outputs]
    if len(task.inputs) > 1:
        found += [opened.rebuilt(nodes, outputs, sets=[i]) for i in range(len(task.inputs))]
    yield from (candidate for candidate in found if candidate is not None)
    yield from _smaller_extents(task)


def _spread(names: Sequence[str]) -> list[str]:
    """A few names in a long list, or all of a short one."""
    return [*names] if len(names) <= 16 else [names[len(names) * i // 8] for i in range(8)]


def _bypassed(opened: _Opened, index: int, outputs: Sequence[str]) -> Task | None:
    """Readers of a node's output read its input, where that has the same type and shape."""
    nodes = list(opened.model.graph.node)
    node = nodes[index]
    if len(node.output) != 1 or node.output[0] in outputs or node.output[0] not in opened.values:
        return None
    made = opened.values[node.output[0]]
    for name in node.input:
        source = opened.values.get(name)
        if source is None or any(
            a.shape != b.shape or a.dtype != b.dtype for a, b in zip(source, made, strict=True)
        ):
            continue
        rest = []
        for i, other in enumerate(nodes):
            if i != index:
                new = onnx.NodeProto()
                new.CopyFrom(other)
                new.input[:] = [name if n == node.output[0] else n for n in other.input]
                rest.append(new)
        return opened.rebuilt(rest, outputs)
    return None


def _smaller_extents(task: Task) -> Iterator[Task]:
    """An extent of the inputs made smaller wherever it occurs, in weights and shapes too."""
    if len(task.inputs) > 1:
        return
    extents = {e for array in task.inputs[0].values() for e in array.shape if e > 1}
    for extent in sorted(extents, reverse=True):
        for smaller in sorted({1, 2, extent // 2} - {extent}):
            candidate = _with_extent(task, extent, smaller)
            if candidate is not None:
                yield candidate


def _with_extent(task: Task, extent: int, smaller: int) -> Task | None:
    model = onnx.load_from_string(task.model)
    inputs = {
        name: shrunk_array(array, {extent: smaller}) for name, array in task.inputs[0].items()
    }
    for tensor in model.graph.initializer:
        array = shrunk_array(numpy_helper.to_array(tensor), {extent: smaller})
        if array.dtype == np.int64:
            array = np.where(array == extent, smaller, array)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), tensor.name))
    _set_infos(model.graph.input, inputs)
    try:
        outputs = run_second_reference(model, [inputs])[0]
    except Exception:  # the model does not fit its smaller inputs
        return None
    _set_infos(model.graph.output, outputs)
    return replace(task, model=model.SerializeToString(), inputs=(inputs,), expected=())


def _set_infos(infos: Any, arrays: dict[str, Array]) -> None:
    del infos[:]
    for name, array in arrays.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        infos.append(helper.make_tensor_value_info(name, kind, array.shape))
