"""Comparison of an ONNX file with the one that it was converted from, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trt_native.arrays import Batch
from trt_native.config import FixedValues
from trt_native.errors import SpecError
from trt_native.graph.dims import dimension_symbols, read_limits, resolve_profiles
from trt_native.graph.macs import multiply_adds, static_shapes
from trt_native.graph.nodes import PRODUCTS, RANDOM_OPS, all_nodes
from trt_native.graph.onnx_file import read_model, tensor_specs
from trt_native.plans.manifest import PlanTensor
from trt_native.progress import Progress
from trt_native.shapes import DimRange, ProfileSpec, Shape, ShapeRange, format_shape
from trt_native.verify.metrics import OutputComparison, compare_outputs
from trt_native.verify.reference import OnnxReference, read_inlined

__all__ = ["compare_models", "model_inputs", "product_size", "random_operators"]

_EXTENT = 2  # of dimensions that nothing is said about


def compare_models(
    original: Path,
    converted: Path,
    batch: Batch,
    *,
    fixed_inputs: FixedValues | None = None,
    progress: Progress | None = None,
) -> tuple[OutputComparison, ...]:
    """Run a model and what it was converted to, each in its own types, and compare the outputs.

    Args:
        original: The ONNX file that was converted.
        converted: The result.
        batch: The inputs of the result, in its types.
        fixed_inputs: Values of the inputs that the result lacks, as they are constants of it.
        progress: Receives progress callbacks.

    Raises:
        SpecError, CalibrationError: the inputs do not fit, or an output is missing.
        UnsupportedError: a model cannot be run on the CPU.
    """
    found = OnnxReference(converted)
    outputs = [str(value.name) for value in read_model(converted).graph.outputs]
    expected = OnnxReference(original, fixed_inputs)
    types = {spec.name: np.dtype(spec.dtype) for spec in tensor_specs(read_model(original))[0]}
    given = {name: array.astype(types[name]) for name, array in batch.items()}
    results = found(batch, outputs, progress)
    wanted = expected(given, outputs, progress)
    return tuple(compare_outputs(name, results[name], wanted[name]) for name in outputs)


def model_inputs(
    path: Path, shapes: Mapping[str, Shape], dims: Mapping[str, int] | None = None
) -> tuple[PlanTensor, ...]:
    """The inputs of a model, each with one shape.

    Args:
        path: The ONNX file.
        shapes: Shapes of inputs.
        dims: Extents of dimensions. Those that neither says have the extent 2, or the most that
            the model notes.

    Raises:
        SpecError: the shapes or dimensions do not fit the model.
    """
    model = read_model(path)
    inputs, _ = tensor_specs(model)
    limits = read_limits(model.metadata_props)
    names = {n for i in inputs for axis in i.shape or () for n in _names(axis)}
    extents = {name: min(_EXTENT, limits.get(name, _EXTENT)) for name in names} | {**(dims or {})}
    spec = ProfileSpec(
        {name: DimRange(n, n, n) for name, n in extents.items()},
        {name: ShapeRange(shape, shape, shape) for name, shape in shapes.items()},
    )
    profiles = resolve_profiles(inputs, [spec])
    found = profiles[0].shapes if profiles else {}
    for name, allowed in found.items():
        axes = next(i.shape or () for i in inputs if i.name == name)
        _check_extents(name, axes, allowed.opt, dims or {})
    return tuple(
        PlanTensor(
            name=i.name,
            mode="input",
            dtype=i.dtype,
            shape=found[i.name].opt if i.name in found else _static(i.shape),
        )
        for i in inputs
    )


def _check_extents(
    name: str, axes: Sequence[int | str | None], shape: Shape, dims: Mapping[str, int]
) -> None:
    for axis, extent in zip(axes, shape, strict=True):
        if isinstance(axis, str) and dims.get(axis, extent) != extent:
            raise SpecError(
                f"input {name!r} has the shape {format_shape(shape)}, but dimension {axis!r} was"
                f" given as {dims[axis]}; give one of the two"
            )


def _names(axis: int | str | None) -> set[str]:
    return dimension_symbols(axis) if isinstance(axis, str) else set()


def _static(shape: tuple[int | str | None, ...] | None) -> Shape:
    return tuple(axis for axis in shape or () if isinstance(axis, int))


def product_size(path: Path, shapes: Mapping[str, Shape], fixed_inputs: FixedValues) -> int | None:
    """Count the multiply-adds of a model's matrix products; None where a shape is not known.

    Args:
        path: The ONNX file.
        shapes: The shape of each input.
        fixed_inputs: Values of further inputs.
    """
    model = read_inlined(path, fixed_inputs)
    known = static_shapes(model, shapes)
    products = [n for n in model.graph.all_nodes() if n.op_type in PRODUCTS and not n.domain]
    counts = [multiply_adds(node, known) for node in products]
    return None if None in counts else sum(count for count in counts if count is not None)


def random_operators(path: Path) -> tuple[str, ...]:
    """The operators by which a model draws random numbers, so that no two runs are the same."""
    nodes = all_nodes(read_inlined(path).graph)
    found = {node.op_type for node in nodes if node.op_type in RANDOM_OPS and not node.domain}
    return tuple(sorted(found))
