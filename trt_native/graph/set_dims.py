"""Fixed extents in the place of symbolic dimensions of a model."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from trt_native.errors import SpecError, close_names
from trt_native.graph.dims import dimension_symbols, evaluate_dimension, read_limits
from trt_native.graph.nodes import all_nodes

__all__ = ["set_dims"]

_OPTIONS = ("dims",)


def set_dims(model: ir.Model, extents: Mapping[str, int]) -> None:
    """Fix dimensions of a model's inputs, and what follows from them, in place.

    Args:
        model: The model.
        extents: Dimension to extent.

    Raises:
        SpecError: the inputs have no such dimension, an expression names another dimension, too,
            or the model has less than the extent.
    """
    if not extents:
        return
    axes = [_text(axis) for value in model.graph.inputs for axis in value.shape or ()]
    known = {name for text in axes for name in dimension_symbols(text) if text}
    problems = [
        f"dimension {name!r} is not one of the model's{_close(name, known)}"
        for name in extents
        if name not in known
    ]
    for text in dict.fromkeys(axes):
        symbols = dimension_symbols(text)
        if symbols & extents.keys() and (missing := sorted(symbols - extents.keys())):
            problems.append(f"axis {text!r} needs {' and '.join(map(repr, missing))}, too")
    for name, limit in read_limits(model.metadata_props).items():
        if extents.get(name, 0) > limit:
            problems.append(
                f"dimension {name!r} is {extents[name]}, but the model has at most {limit}"
            )
    if problems:
        listing = ", ".join(sorted(known)) or "none, as every input is static"
        raise SpecError(
            "the requested shapes do not fit the model:",
            [f"the model's dimensions: {listing}"],
            problems=problems,
            options=_OPTIONS,
        )
    made = (value for node in all_nodes(model.graph) for value in node.outputs)
    for value in (*model.graph.inputs, *model.graph.outputs, *made):
        if value.shape is not None:
            value.shape = ir.Shape([_fixed(axis, extents) for axis in value.shape])


def _fixed(axis: int | ir.SymbolicDim, extents: Mapping[str, int]) -> int | ir.SymbolicDim:
    text = _text(axis)
    if isinstance(axis, int) or not text or not dimension_symbols(text) <= extents.keys():
        return axis
    found = extents[text] if text in extents else evaluate_dimension(text, extents)
    return found if isinstance(found, int) else axis


def _text(axis: int | ir.SymbolicDim) -> str:
    return "" if isinstance(axis, int) else axis.value or ""


def _close(name: str, known: set[str]) -> str:
    match = close_names(name, known)
    return f"; did you mean {match[0]!r}?" if match else ""
