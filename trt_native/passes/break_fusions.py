"""Prevent TensorRT from fusing nodes across a tensor, where the fused kernel would be wrong.

:mod:`~trt_native.passes.miscompiled_fusions` says where that is. A fusion is broken by a ``Gather``
of all indices along the first axis, which are computed from the tensor's shape. TensorRT does not
remove that, as it does an ``Identity``, an ``Expand`` or a pair of ``Transpose``, ``Cast`` or
``Reshape``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_native.errors import SpecError, UnsupportedError
from trt_native.graph.inference import infer_types, known_type
from trt_native.graph.nodes import input_of, opset_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass
from trt_native.passes.fusion_search import BREAK_KEY, Point, is_broken
from trt_native.passes.miscompiled_fusions import miscompiled
from trt_native.passes.raise_opset import RaisedOpset, opset_problems, require_opset
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder
from trt_native.units import counted

__all__ = ["BreakFusions", "break_fusion"]

_EXAMPLES = 3  # tensors that the summary names for each reason
_OPSET = 11  # has Range
_RAISED = 13  # what an older model is raised to
_ROUNDS = 4  # what reads a copy may be wrong, too, where zeros are put beside it


@wraps_graph_errors
def break_fusion(model: ir.Model, name: str) -> None:
    """Let all nodes that read a tensor of the main graph read an equal one, in place.

    TensorRT fuses no node that makes the tensor with one that reads it. The tensor keeps its name.
    It costs a copy of the tensor. The bias of a convolution that makes it is added on its own, to
    another copy.

    Args:
        model: The model.
        name: An input of the graph, or what a node makes.

    Raises:
        SpecError: there is no such tensor, or no node reads it.
        ModelError: its type is unknown.
    """
    infer_types(model)
    names = NameAuthority(model)
    _separate_bias(model, names, _requested(model, name).value)
    point = _requested(model, name)
    if point.reads:
        _break(model, names, point)


class BreakFusions(GraphPass):
    """Fusions broken on request, and where TensorRT is known to miscompile them."""

    name = "break_fusions"
    title = "Breaking fusions"
    typed = True

    def needed(self, model: ir.Model) -> bool:
        """Whether there is a fusion to break that is not broken yet.

        Raises:
            SpecError: a tensor that was requested does not exist, or no node reads it.
            UnsupportedError: there is, and the model's opset lacks the means.
        """
        found = bool(self._points(model, infer=not self.record))
        lacks_opset = found and opset_of(model) < _OPSET
        if lacks_opset and (problems := opset_problems(model, _RAISED)):
            raise UnsupportedError(
                f"TensorRT would fuse nodes that it miscompiles together; to prevent that needs"
                f" opset {_OPSET}, the model has {opset_of(model)} and cannot be raised as it is"
                f" ({', '.join(problems)}): export it at a newer one"
            )
        return found

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Break the fusions, see :func:`break_fusion`; at an opset that has the means."""
        raised = None
        if opset_of(model) < _OPSET:
            raised = require_opset(model, _RAISED, "broken fusions")
        names, record = NameAuthority(model), _record(self._points(model, infer=True))
        for name in self.context.config.break_fusions:
            _separate_bias(model, names, _requested(model, name).value)
        for _ in range(_ROUNDS):
            if not (points := self._points(model, infer=False)):
                break
            record["tensors"] = {**_record(points)["tensors"], **record["tensors"]}
            for point in points:
                _break(model, names, point)
        return record if raised is None else {**record, "raised": asdict(raised)}

    def preview(self, model: ir.Model) -> Mapping[str, Any]:
        """The tensors at which fusions will be broken."""
        return _record(self._points(model, infer=False))

    def summarize(self, record: Mapping[str, Any]) -> str:
        """Tensors by reason, the first of each by name, and the opset where it was raised."""
        reasons: dict[str, list[str]] = {}
        for name, why in record["tensors"].items():
            reasons.setdefault(why, []).append(name)
        lines = []
        for why, names in reasons.items():
            more = ", ..." if len(names) > _EXAMPLES else ""
            places = f"{', '.join(names[:_EXAMPLES])}{more}"
            lines.append(f"{counted(len(names), 'fusion')} broken, {why}: {places}")
        if "raised" in record:
            lines.append(str(RaisedOpset(**record["raised"])))
        return "\n".join(lines)

    def _points(self, model: ir.Model, *, infer: bool) -> list[Point]:
        requested = [_requested(model, name) for name in self.context.config.break_fusions]
        taken = {point.value.name for point in requested}
        lowered = self.context.precision.lowered_to is not None
        found = miscompiled(model, self.context.profiles, lowered=lowered, infer=infer)
        points = [*requested, *(point for point in found if point.value.name not in taken)]
        return [point for point in points if point.reads or _has_bias(point.value)]


def _record(points: Sequence[Point]) -> dict[str, Any]:
    return {"tensors": {str(point.value.name): point.reason for point in points}}


def _requested(model: ir.Model, name: str) -> Point:
    made = {value.name: value for node in model.graph for value in node.outputs}
    value = made.get(name) or next((v for v in model.graph.inputs if v.name == name), None)
    if value is None or name in model.graph.initializers:
        raise SpecError(
            f"no node makes a tensor {name!r} at which a fusion could be broken",
            options=("break_fusions",),
        )
    if not (value.uses() or _has_bias(value) or is_broken(value)):
        raise SpecError(
            f"no node reads tensor {name!r}, so there is no fusion to break",
            options=("break_fusions",),
        )
    reads = tuple((node, i) for node, i in value.uses() if BREAK_KEY not in node.metadata_props)
    return Point(value, reads, "requested")


def _has_bias(value: ir.Value) -> bool:
    """Whether a convolution with a bias makes a value, which can be added apart."""
    node = value.producer()
    if node is None or node.op_type not in ("Conv", "ConvTranspose"):
        return False
    weight = input_of(node, 1)
    return input_of(node, 2) is not None and weight is not None and weight.shape is not None


def _break(model: ir.Model, names: NameAuthority, point: Point) -> None:
    value, kind = point.value, known_type(point.value)
    nodes: list[ir.Node] = []

    def add(
        operator: str, inputs: list[ir.Value], dtype: ir.DataType, **attributes: Any
    ) -> ir.Value:
        name = names.unique(f"{value.name}__{operator.lower()}_unfused")
        output = ir.Value(name=name, type=ir.TensorType(dtype))
        nodes.append(ir.node(operator, inputs, attributes, outputs=[output], name=name))
        nodes[-1].metadata_props[BREAK_KEY] = point.reason
        return output

    def constant(number: Any) -> ir.Value:
        array = np.array(number, np.int64)
        return names.initializer(f"{value.name}__unfused", ir.Tensor(array))

    result = _copied(add, constant, value, kind) if point.copied else add("Identity", [value], kind)
    result.shape = None if value.shape is None else ir.Shape(value.shape)
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], nodes)
    else:
        model.graph.insert_after(producer, nodes)
    for reader, index in point.reads:
        reader.replace_input_with(index, result)


def _separate_bias(model: ir.Model, names: NameAuthority, value: ir.Value) -> None:
    """Add the bias of a convolution that makes a value by a node of its own, to a copy."""
    if not _has_bias(value):
        return
    node = value.producer()
    assert node is not None  # noqa: S101  # for the type checker
    weight, bias = node.inputs[1:3]
    assert weight is not None  # noqa: S101
    assert weight.shape is not None  # noqa: S101
    new = ReplacementBuilder(node, names, opset_of(model))
    (product,) = new.add_with(node.op_type, node.inputs[:2], 1, node.attributes)
    copy = _copied(new.add, lambda number: new.constant(np.array(number, np.int64)), product, None)
    shape = [1, -1, *[1] * (len(weight.shape) - 2)]
    assert bias is not None  # noqa: S101
    total = new.add("Add", [copy, new.reshaped(bias, shape)])
    new.replace(total)
    node = total.producer()
    assert node is not None  # noqa: S101
    node.metadata_props[BREAK_KEY] = "requested"


def _copied(
    add: Callable[..., ir.Value],
    constant: Callable[[Any], ir.Value],
    value: ir.Value,
    kind: ir.DataType | None,
) -> ir.Value:
    """All elements of a tensor, by indices that are computed from its shape."""
    scalar = value.shape is not None and len(value.shape) == 0
    source = add("Reshape", [value, constant([1])], kind) if scalar else value
    zero, one = constant(0), constant(1)
    shape = add("Shape", [source], ir.DataType.INT64)
    count = add("Gather", [shape, zero], ir.DataType.INT64)
    indices = add("Range", [zero, count, one], ir.DataType.INT64)
    result = add("Gather", [source, indices], kind, axis=0)
    return add("Reshape", [result, constant(np.zeros(0))], kind) if scalar else result
