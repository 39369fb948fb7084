"""Comparison of a parsed network with the interface that ONNX gives the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from trt_native.backends.base import NUMPY_DTYPES
from trt_native.graph.model_interface import Extents, InferredExtents, ModelInterface
from trt_native.shapes import TensorSpec, format_shape

__all__ = ["interface_problems"]


def interface_problems(network: Any, expected: ModelInterface) -> list[str]:
    """Compare every input and output of a network with the model's.

    Names, element types and ranks are compared, and the extents at each corner of the profiles, as
    far as ONNX and TensorRT know them. The network is unchanged afterwards.

    Args:
        network: An ``INetworkDefinition``.
        expected: The interface that it should have.

    Returns:
        One line for each difference; none where there is no difference.
    """
    inputs = {t.name: t for t in map(network.get_input, range(network.num_inputs))}
    outputs = {t.name: t for t in map(network.get_output, range(network.num_outputs))}
    problems = [
        *_tensor_problems("input", inputs, expected.inputs),
        *_tensor_problems("output", outputs, expected.outputs),
    ]
    if problems:
        return problems
    # An exporter that rounded a scale knows the size that it stands for.
    declared = {spec.name: spec.shape for spec in expected.outputs}
    for corner in expected.corners:
        with _bound(inputs, corner.inputs):
            problems += _extent_problems(outputs, corner, declared)
    return problems


def _tensor_problems(
    mode: str, found: Mapping[str, Any], expected: tuple[TensorSpec, ...]
) -> Iterator[str]:
    names = {spec.name for spec in expected}
    extra = ", ".join(repr(name) for name in found if name not in names)
    for spec in expected:
        tensor = found.get(spec.name)
        if tensor is None:
            yield f"there is no {mode} {spec.name!r}" + (f", but {extra}" if extra else "")
            continue
        dtype = NUMPY_DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower())
        if spec.dtype not in ("unknown", dtype):
            yield f"{mode} {spec.name!r} has the type {dtype}, where ONNX has {spec.dtype}"
        elif mode == "input" and spec.shape is not None:
            extents = tuple(axis if isinstance(axis, int) else None for axis in spec.shape)
            yield from _extent_problem(mode, spec.name, _shape(tensor), extents)
    if extra and len(found) > len(expected):
        yield f"ONNX has no {mode} {extra}"


def _extent_problems(
    outputs: Mapping[str, Any],
    corner: InferredExtents,
    declared: Mapping[str, tuple[int | str | None, ...] | None],
) -> Iterator[str]:
    where = f" at {corner.name}" if corner.name else ""
    for name, extents in corner.outputs.items():
        found = _shape(outputs[name])
        if extents is not None and found != declared[name]:
            yield from (p + where for p in _extent_problem("output", name, found, extents))


def _extent_problem(
    mode: str, name: str, found: Extents | None, expected: Extents
) -> Iterator[str]:
    if found is None:
        yield f"{mode} {name!r} has no shape"
        return
    same = len(found) == len(expected) and all(
        None in pair or pair[0] == pair[1] for pair in zip(found, expected, strict=True)
    )
    if not same:
        yield f"{mode} {name!r} is {_text(found)}, where ONNX has {_text(expected)}"


def _shape(tensor: Any) -> Extents | None:
    """The extents that TensorRT works out; None where it fails to."""
    try:
        return tuple(None if extent < 0 else int(extent) for extent in tensor.shape)
    except (ValueError, RuntimeError):  # pybind11's words for a shape that there is not
        return None


def _text(extents: Extents) -> str:
    return format_shape("?" if extent is None else extent for extent in extents)


@contextmanager
def _bound(inputs: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Fix the shapes of a network's inputs for as long as the block runs."""
    before = {name: tuple(inputs[name].shape) for name in shapes if name in inputs}
    try:
        for name in before:
            inputs[name].shape = shapes[name]
        yield
    finally:
        for name, shape in before.items():
            inputs[name].shape = shape
