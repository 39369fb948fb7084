"""Inputs of a model that have one value in a plan, and are constants of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.config import FixedValues
from trt_native.errors import SpecError, close_names
from trt_native.shapes import TensorSpec

__all__ = ["check_fixed_inputs", "fix_inputs"]

_OPTION = "fixed_inputs"


def check_fixed_inputs(inputs: Sequence[TensorSpec], values: FixedValues) -> tuple[TensorSpec, ...]:
    """Check the values that inputs are fixed to.

    Returns:
        The inputs that a caller of the plan still supplies.

    Raises:
        SpecError: a name is not that of an input, an input may hold more than one element, or its
            type does not have the value; all problems in one error.
    """
    by_name = {tensor.name: tensor for tensor in inputs}
    problems = []
    for name, value in values.items():
        if name not in by_name:
            close = close_names(name, by_name)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            problems.append(f"{name!r} is not an input of the model{hint}")
        elif problem := _problem(by_name[name], value):
            problems.append(problem)
    if problems:
        listing = ", ".join(str(tensor) for tensor in inputs)
        raise SpecError(
            "these inputs cannot be fixed:",
            [f"the model's inputs: {listing}"],
            problems=problems,
            options=(_OPTION,),
        )
    return tuple(tensor for tensor in inputs if tensor.name not in values)


def _problem(tensor: TensorSpec, value: bool | int | float) -> str:
    if tensor.shape is None or any(axis != 1 for axis in tensor.shape):
        return f"{tensor} may hold more than one element; only one can be fixed"
    try:
        _array(tensor, value)
    except (TypeError, ValueError, OverflowError):
        return f"{tensor} does not have the value {value}"
    return ""


def _array(tensor: TensorSpec, value: bool | int | float) -> Array:
    """The value as the input holds it; a ``ValueError`` where it would be another one."""
    wanted = np.dtype(tensor.dtype)
    if isinstance(value, bool) != (wanted == np.bool_):
        raise ValueError
    with np.errstate(over="ignore"):
        array = np.array(value).astype(wanted)
    whole = wanted.kind in "iu"
    if array.item() != value if whole else not np.isfinite(array.astype(np.float64)):
        raise ValueError
    return array.reshape((1,) * len(tensor.shape or ()))


def fix_inputs(model: ir.Model, values: FixedValues) -> dict[str, Array]:
    """Make constants of inputs, in place.

    Args:
        model: The model.
        values: Input name to its value; others than the model's are left alone.

    Returns:
        The constants, by name.
    """
    graph = model.graph
    found: dict[str, Array] = {}
    for value in tuple(graph.inputs):
        name = str(value.name)
        if name not in values or name in graph.initializers:
            continue
        shape = None if value.shape is None else tuple(value.shape.numpy())
        dtype = str(value.dtype.numpy()) if value.dtype is not None else "unknown"
        found[name] = _array(TensorSpec(name, dtype, shape), values[name])
        graph.inputs.remove(value)
        value.const_value = ir.tensor(found[name], name=name, dtype=value.dtype)
        graph.register_initializer(value)
        if value.is_graph_output():
            _compute_output(graph, value)
    return found


def _compute_output(graph: ir.Graph, value: ir.Value) -> None:
    """Let an ``Identity`` compute an output that is a constant now."""
    output = ir.Value(name=value.name, type=value.type, shape=value.shape)
    del graph.initializers[str(value.name)]
    value.name = f"{value.name}__fixed"
    graph.register_initializer(value)
    graph.append(ir.node("Identity", [value], outputs=[output]))
    graph.outputs[:] = [output if one is value else one for one in graph.outputs]
