"""Extents of the example that torch, or its translation to ONNX, built into an exported graph.

The guards that torch notes (:mod:`trt_native.export.assumptions`) are not all: a translation may
compute a size from the example's own extent. The module is exported at other extents, too. Where
the two graphs differ, the first is run at these and compared with the module.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.calibration.cpu_runner import CpuRunner
from trt_native.errors import USER_CODE_ERRORS, ExportError, TrtNativeError, UnsupportedError
from trt_native.export.assumptions import MOST_ELEMENTS, close_values, plain_output
from trt_native.graph.functions import inline_functions
from trt_native.shapes import format_shape

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["check_graph_at", "differences"]

_LOGGER = logging.getLogger(__name__)
_MOST_SHOWN = 5


def check_graph_at(
    first: ir.Model,
    second: ir.Model,
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    extents: Mapping[str, int],
) -> None:
    """Reject a graph that has extents of its example built in.

    Args:
        first: The model that was exported with the example.
        second: The model that was exported with ``inputs``, its nodes named alike.
        module: The module, in evaluation mode.
        inputs: The example at other extents, by parameter.
        extents: These extents by dimension.

    Raises:
        ExportError: the models differ, and the first computes something else than the module.
    """
    found = differences(first, second)
    if not found:
        return
    where = ", ".join(f"{dim}={extent}" for dim, extent in extents.items())
    shown = [*found[:_MOST_SHOWN]]
    if len(found) > _MOST_SHOWN:
        shown.append(f"{len(found) - _MOST_SHOWN} more")
    if sum(tensor.numel() for tensor in inputs.values()) > MOST_ELEMENTS:
        _LOGGER.warning("an export at %s differs, and is too large to run: %s", where, shown)
        return
    problem = _disagreement(first, module, inputs)
    if problem is None:
        return
    raise ExportError(
        f"at {where} the exported graph would not compute what the module does: {problem}. The"
        " extents of the example are built into it, and not those of the call; change the code, or"
        " declare the dimension static. Differences of an export there:",
        problems=shown,
    )


def differences(first: ir.Model, second: ir.Model) -> list[str]:
    """Differences of two graphs of one module, apart from the shapes of values; a line each."""
    return list(_graph_differences(first.graph, second.graph))


def _graph_differences(one: ir.Graph, other: ir.Graph) -> Iterator[str]:
    seen: set[str] = set()
    for a, b in itertools.zip_longest(one, other):
        if a is None or b is None or (a.domain, a.op_type) != (b.domain, b.op_type):
            yield f"{_label(a)} against {_label(b)}"
            return  # what follows belongs to other nodes
        yield from _attribute_differences(a, b)
        for x, y in itertools.zip_longest(a.inputs, b.inputs):
            name = x.name if x is not None and x.name else ""
            if name not in seen and not _is_same_value(x, y):
                seen.add(name)
                yield f"an input of {a.name}: {_shown_value(x)} against {_shown_value(y)}"


def _label(node: ir.Node | None) -> str:
    return "no node" if node is None else f"{node.op_type} {node.name!r}"


def _attribute_differences(a: ir.Node, b: ir.Node) -> Iterator[str]:
    for name in sorted({*a.attributes, *b.attributes}):
        x, y = (node.attributes.get(name) for node in (a, b))
        if x is None or y is None or x.type != y.type:
            yield f"{name} of {a.name}"
        elif x.type == ir.AttributeType.GRAPH:
            yield from _graph_differences(x.as_graph(), y.as_graph())
        elif x.type == ir.AttributeType.TENSOR:
            if not _is_same_tensor(x.as_tensor(), y.as_tensor()):
                yield f"{name} of {a.name}"
        elif x.value != y.value:
            yield f"{name} of {a.name}: {_shown(x.value)} against {_shown(y.value)}"


def _is_same_value(x: ir.Value | None, y: ir.Value | None) -> bool:
    if x is None or y is None:
        return x is y
    if x.const_value is not None and y.const_value is not None:
        return _is_same_tensor(x.const_value, y.const_value)
    places = [(v.producer() is None, v.index(), v.is_graph_input()) for v in (x, y)]
    return places[0] == places[1] and (x.const_value is None) == (y.const_value is None)


def _is_same_tensor(x: ir.TensorProtocol, y: ir.TensorProtocol) -> bool:
    if x.dtype != y.dtype or list(x.shape) != list(y.shape):
        return False
    raw: Any = [getattr(tensor, "raw", None) for tensor in (x, y)]
    if all(hasattr(one, "data_ptr") for one in raw) and raw[0].data_ptr() == raw[1].data_ptr():
        return True
    return x.tobytes() == y.tobytes()


def _shown_value(value: ir.Value | None) -> str:
    if value is None or value.const_value is None:
        return "none" if value is None else f"{value.name}"
    tensor = value.const_value
    if tensor.size > _MOST_SHOWN:
        return f"a constant of {format_shape(tensor.numpy().shape)}"
    return _shown(tensor.numpy().tolist())


def _shown(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


def _disagreement(model: ir.Model, module: nn.Module, inputs: Mapping[str, Tensor]) -> str | None:
    """Difference of the outputs of a graph from those of the module; None where they agree.

    None, too, where the module fails, or where the graph cannot be run here.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            leaves = tree_leaves(plain_output(module(**inputs)))
    except USER_CODE_ERRORS as error:  # the module's code may raise any
        _LOGGER.debug("the module itself fails at other extents: %s", error)
        return None
    expected = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    try:
        found = _run(model, [_array(tensor) for tensor in inputs.values()])
    except UnsupportedError as error:
        if error.__cause__ is None:  # an operator that the reference lacks
            _LOGGER.warning("not checked at other extents: %s", error.message)
            return None
        return error.message
    except TrtNativeError as error:
        return error.message
    for number, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one.shape != tuple(other.shape):
            shapes = [format_shape(tuple(map(int, shape))) for shape in (one.shape, other.shape)]
            return f"output {number} has the shape {shapes[0]} instead of {shapes[1]}"
        if not close_values(torch.from_numpy(one), torch.from_numpy(_array(other))):
            return f"output {number} has other values"
    return None


def _run(model: ir.Model, inputs: list[Array]) -> list[Array]:
    model = model.clone()
    inline_functions(model)
    names = [str(value.name) for value in model.graph.outputs]
    batch = {str(v.name): array for v, array in zip(model.graph.inputs, inputs, strict=True)}
    found = {name: np.array(array) for name, array in CpuRunner(model, names)(batch)}
    return [
        found[name].astype(np.float32) if _is_special(found[name]) else found[name]
        for name in names
    ]


def _is_special(array: Array) -> bool:
    return array.dtype.kind == "V" or array.dtype.name == "bfloat16"


def _array(tensor: Tensor) -> Array:
    import ml_dtypes
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        return np.asarray(tensor.numpy())
    return np.asarray(tensor.float().numpy()).astype(ml_dtypes.bfloat16)
