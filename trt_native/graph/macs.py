"""Multiply-adds of the matrix products of a graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from trt_native.graph.dims import evaluate_dimension
from trt_native.graph.inference import infer_shapes
from trt_native.graph.skeleton import folded_twins
from trt_native.shapes import Profile, Shape, ShapeRange

__all__ = ["folded_shapes", "multiply_adds", "static_shapes"]


def static_shapes(model: ir.Model, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Find the shapes that a graph's values have for inputs of given shapes.

    They come from ONNX's shape inference and, where that gives up, from the symbolic shapes that
    the model itself notes.

    Args:
        model: The model; left as it is.
        shapes: Shape of each input whose own shape is dynamic.

    Returns:
        Value name to shape, for the values of the main graph whose shape is known.
    """
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    noted = [(value, value.shape) for value in values]
    extents: dict[str, int] = {}
    for value in model.graph.inputs:
        axes = zip(value.shape or (), shapes.get(value.name or "", ()), strict=False)
        extents.update({a.value: n for a, n in axes if isinstance(a, ir.SymbolicDim) and a.value})
    known = dict(_inferred(model, values, shapes))
    for value, shape in noted:
        found = [None] if shape is None else [_extent(axis, extents) for axis in shape]
        if value.name and value.name not in known and None not in found:
            known[value.name] = tuple(extent for extent in found if extent is not None)
    return known


def folded_shapes(model: ir.Model, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Find the shapes as :func:`static_shapes` does, behind computed shapes, too.

    What follows from the shapes of the inputs is folded first, on a copy without the weights, so
    that a ``Reshape`` to a computed shape has a known result. It takes several times as long.

    Args:
        model: The model; left as it is.
        shapes: Shape of each input whose own shape is dynamic.

    Returns:
        Value name to shape, for the values of all graphs whose shape is known.
    """
    ranges = {name: ShapeRange(shape, shape, shape) for name, shape in shapes.items()}
    copy, twins = folded_twins(model, [Profile(ranges)])
    infer_shapes(copy)
    pairs = [
        (value, twin)
        for node, (other, _) in twins.items()
        for value, twin in zip(node.outputs, other.outputs, strict=True)
    ]
    stored = [value for graph in model.graphs() for value in graph.initializers.values()]
    pairs += [(value, value) for value in (*model.graph.inputs, *stored)]
    known = {
        value.name: tuple(int(extent) for extent in twin.shape.numpy())
        for value, twin in pairs
        if value.name and twin.shape is not None and twin.shape.is_static()
    }
    return {**known, **shapes}


def _inferred(
    model: ir.Model, values: list[ir.Value], shapes: Mapping[str, Shape]
) -> Iterator[tuple[str, Shape]]:
    noted = [(value, value.shape) for value in values]
    try:
        for value in values:
            given = shapes.get(value.name or "") if value.is_graph_input() else None
            if given is not None:
                value.shape = ir.Shape(given)
            elif not value.is_graph_input():
                value.shape = None
        infer_shapes(model)
        for value in (*values, *model.graph.initializers.values()):
            if value.shape is not None and value.shape.is_static() and value.name:
                yield value.name, tuple(int(extent) for extent in value.shape.numpy())
    finally:
        for value, shape in noted:
            value.shape = shape


def _extent(axis: int | ir.SymbolicDim | None, extents: Mapping[str, int]) -> int | None:
    if not isinstance(axis, ir.SymbolicDim):
        return axis
    if axis.value is None or axis.value in extents:
        return extents.get(axis.value or "")
    extent = evaluate_dimension(axis.value, extents)
    return extent if isinstance(extent, int) else None


def multiply_adds(node: ir.Node, shapes: Mapping[str, Shape]) -> int | None:
    """Count what a Conv, ConvTranspose, MatMul or Gemm multiplies and adds.

    Args:
        node: The node.
        shapes: As :func:`static_shapes` returns them.

    Returns:
        The number, padding included and the bias not; None where a shape it needs is unknown.
    """
    operands = [shapes.get(value.name or "") for value in node.inputs[:2] if value is not None]
    if len(operands) < 2 or operands[0] is None or operands[1] is None:
        return None
    left, right = operands[0], operands[1]
    if node.op_type == "ConvTranspose":  # each element of the input meets its kernels once
        return math.prod(left) * math.prod(right[1:])
    if node.op_type == "Conv":
        result = shapes.get(node.outputs[0].name or "")
        return None if result is None else math.prod(result) * math.prod(right[1:])
    if node.op_type == "Gemm":
        columns = right[0] if node.attributes.get_int("transB", 0) else right[-1]
        return math.prod(left) * columns
    columns = right[-1] if len(right) > 1 else 1
    rows = left[-2] if len(left) > 1 else 1
    pairs = itertools.zip_longest(left[-3::-1], right[-3::-1], fillvalue=1)
    return math.prod(max(pair) for pair in pairs) * rows * left[-1] * columns
