"""Structural validation of ONNX graphs."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import onnx
import onnx_ir as ir

from trt_native.errors import ModelError, TrtNativeError

__all__ = ["all_tensors", "graph_problems", "root_cause", "wraps_graph_errors"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_SMALL = 1 << 20
_DATA_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def wraps_graph_errors(work: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function raise :class:`ModelError` on a graph that breaks ONNX's rules.

    The rules for each operator are many, and onnx and onnx_ir raise errors of every kind where one
    is broken. To check them all beforehand would refuse graphs that TensorRT takes. A bug of
    this package looks the same; the message names the line, and how to distinguish the two.
    """

    @functools.wraps(work)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return work(*args, **kwargs)
        except (TrtNativeError, OSError, MemoryError):
            raise
        except Exception as error:
            raise ModelError(
                "the model's graph is malformed, or beyond what this version reads:"
                f" {root_cause(error)} (at {_place(error)}); onnx.checker.check_model says more"
                " about a malformed one; if it finds nothing, report a bug of trt-native, with the"
                " debug log"
            ) from error

    return run


def _place(error: BaseException) -> str:
    """The last line of this package that an error came through: ``graph/precision.py:341``."""
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).parents[1]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(package)]
    return f"{Path(own[-1].filename).relative_to(package)}:{own[-1].lineno}" if own else "unknown"


def root_cause(error: BaseException) -> str:
    """Kind and first line of what an error began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def graph_problems(model: ir.Model) -> Iterator[str]:
    """Find structural problems of a graph, one line each."""
    for domain, version in model.opset_imports.items():
        if not 1 <= version < 2**31:
            yield f"opset {version} of domain {domain!r} does not exist"
    texts = [model.producer_name, model.producer_version, *model.metadata_props.items()]
    parts: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for graph in parts:
        values = [*graph.inputs, *graph.outputs]
        for node in graph:
            texts += [node.name, node.op_type, node.domain, *node.attributes]
            values += [value for value in (*node.inputs, *node.outputs) if value is not None]
            yield from (
                f"node {node.name!r} ({node.op_type}) reads {value.name!r}, which nothing gives"
                for value in node.inputs
                if value is not None and not _is_given(value)
            )
        texts += [value.name for value in values]
        yield from (
            f"the output {value.name!r} is not the output of any node"
            for value in graph.outputs
            if not _is_given(value)
        )
    flat = (part for text in texts for part in (text if isinstance(text, tuple) else (text,)))
    if any(isinstance(text, bytes) for text in flat):
        yield "a name in it is no text"
    for tensor in all_tensors(model):
        if problem := _tensor_problem(tensor):
            yield f"weight {tensor.name!r} {problem}"


def _is_given(value: ir.Value) -> bool:
    # An input of a function belongs to no graph that would say so.
    return (
        value.producer() is not None
        or value.is_graph_input()
        or value.is_initializer()
        or value.const_value is not None
    )


def all_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every weight and constant, of bodies and functions too."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for part in parts:
        for node in part.all_nodes():
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()


def _tensor_problem(tensor: ir.TensorProtocol) -> str | None:
    """Check the data of a weight inside the file; returns the problem, if there is one."""
    shape = tensor.shape.numpy()
    if any(extent < 0 for extent in shape):
        return f"has the shape {shape}"
    if isinstance(tensor, ir.ExternalTensor) or tensor.dtype == ir.DataType.STRING:
        return None
    if isinstance(tensor.raw, onnx.TensorProto) and (problem := _count_problem(tensor, tensor.raw)):
        return problem
    try:
        raw = getattr(tensor.raw, "raw_data", b"")
        if len(raw) != tensor.nbytes and (raw or tensor.nbytes < _SMALL):
            tensor.numpy()  # raises if anything is wrong
    except Exception as error:  # as many kinds as there are ways to hold data
        return f"of the shape {shape} does not have the data for it ({root_cause(error)})"
    return None


def _count_problem(tensor: ir.TensorProtocol, proto: onnx.TensorProto) -> str | None:
    """Check the number of elements outside of ``raw_data``, of which a file may have none."""
    if proto.raw_data or not tensor.size:
        return None
    found = sum(len(getattr(proto, field)) for field in _DATA_FIELDS)
    wanted = tensor.size
    if tensor.dtype.name.startswith("COMPLEX"):
        wanted *= 2
    elif tensor.dtype.bitwidth < 8:
        wanted = tensor.nbytes
    if found == wanted:
        return None
    shape = tensor.shape.numpy()
    return f"of the shape {shape} has {found} elements of data, and needs {wanted}"
