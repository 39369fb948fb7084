"""The inputs and outputs that ONNX gives a model, at the ends of its optimization profiles.

What TensorRT's parser makes of the model is compared with them, see
:mod:`trt_native.backends.interface`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from trt_native.arrays import Array
from trt_native.graph.evaluation import evaluate_node
from trt_native.graph.inference import infer_proto
from trt_native.graph.onnx_file import dtype_name, tensor_specs
from trt_native.graph.skeleton import MOST_ELEMENTS, skeleton
from trt_native.graph.validity import wraps_graph_errors
from trt_native.shapes import Profile, Shape, TensorSpec

__all__ = ["InferredExtents", "ModelInterface", "model_interface", "static_tensors"]

_MOST_ROUNDS = 32

Extents = tuple[int | None, ...]
"""Extents of a tensor's axes in elements, outermost first; None where they are unknown."""


@dataclass(frozen=True, slots=True)
class InferredExtents:
    """The extents of a model's outputs for one set of input shapes.

    Attributes:
        name: Where this is: ``min of profile 0``; empty for a static model.
        inputs: Input name to shape, for the inputs of dynamic shape.
        outputs: Output name to the extents that ONNX infers; None where not even the rank is known.
    """

    name: str
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Extents | None]


@dataclass(frozen=True, slots=True)
class ModelInterface:
    """What a network must have in common with the model it was parsed from.

    Attributes:
        inputs: The inputs that a caller supplies.
        outputs: The outputs, each once; of type ``unknown`` where nothing is said of the type.
        corners: The extents at the ends of every profile; one corner for a static model.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    corners: tuple[InferredExtents, ...]

    def with_types(self, types: Mapping[str, str]) -> ModelInterface:
        """The same with other element types, by name of the type."""

        def changed(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
            return tuple(replace(spec, dtype=types.get(spec.dtype, spec.dtype)) for spec in specs)

        return replace(self, inputs=changed(self.inputs), outputs=changed(self.outputs))


@wraps_graph_errors
def model_interface(
    model: ir.Model, profiles: Sequence[Profile], extra_outputs: Sequence[str] = ()
) -> ModelInterface:
    """Infer a model's interface with ONNX's own shape inference.

    Args:
        model: The model, without functions; unchanged afterwards.
        profiles: Ranges of the inputs with dynamic shapes.
        extra_outputs: Tensors inside the model that will be outputs too; their types are left open.
    """
    inputs, declared = tensor_specs(model)
    outputs = {spec.name: spec for spec in declared}
    proto = skeleton(model)
    for name in extra_outputs:
        if name not in outputs:
            outputs[name] = TensorSpec(name, "unknown", None)
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    types: dict[str, str] = {}
    corners = tuple(
        InferredExtents(where, shapes, _outputs(proto, shapes, types))
        for where, shapes in _points(profiles)
    )
    named = (
        replace(spec, dtype=types.get(spec.name, "unknown"))
        if spec.dtype == "unknown" and spec.name not in extra_outputs
        else spec
        for spec in outputs.values()
    )
    return ModelInterface(inputs, tuple(named), corners)


def _points(profiles: Sequence[Profile]) -> Iterator[tuple[str, dict[str, Shape]]]:
    """The different input shapes at min, opt and max of every profile."""
    seen: list[dict[str, Shape]] = []
    for number, profile in enumerate(profiles):
        for end in ("min", "opt", "max"):
            shapes = {name: getattr(ranges, end) for name, ranges in profile.shapes.items()}
            if shapes not in seen:
                seen.append(shapes)
                yield f"{end} of profile {number}", shapes
    if not profiles:
        yield "", {}


@wraps_graph_errors
def static_tensors(model: ir.Model, profiles: Sequence[Profile]) -> set[str]:
    """Find the tensors whose shapes follow from those of the inputs at the ends of all profiles.

    Args:
        model: The model, without functions; unchanged afterwards.
        profiles: Ranges of the inputs with dynamic shapes.

    Returns:
        Their names: all such outputs, and, while an output is none, other tensors outside of
        bodies.
    """
    proto = skeleton(model)
    found = []
    for _, shapes in _points(profiles):
        graph = _inferred(proto, shapes).graph
        constants = {tensor.name for tensor in graph.initializer}
        values = (*graph.value_info, *graph.input, *graph.output)
        found.append(constants | _known_shapes(values).keys())
    return set.intersection(*found)


def _outputs(
    proto: onnx.ModelProto, shapes: Mapping[str, Shape], types: dict[str, str]
) -> dict[str, Extents | None]:
    """Infer the extents of the outputs; note their types."""
    inferred = _inferred(proto, shapes)
    for value in inferred.graph.output:
        if kind := value.type.tensor_type.elem_type:
            types[value.name] = dtype_name(ir.DataType(kind))
    return {value.name: _extents(value) for value in inferred.graph.output}


def _inferred(proto: onnx.ModelProto, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
    """A model with all that follows from the shapes of its inputs, until its outputs are known."""
    bound = onnx.ModelProto()
    bound.CopyFrom(proto)
    for value in bound.graph.input:
        if value.name in shapes:
            for axis, extent in zip(
                value.type.tensor_type.shape.dim, shapes[value.name], strict=True
            ):
                axis.dim_value = extent
    for _ in range(_MOST_ROUNDS):
        inferred = infer_proto(bound)
        if len(_known_shapes(inferred.graph.output)) == len(inferred.graph.output):
            break
        if not _fold(bound, inferred):
            break
    return inferred


def _known_shapes(values: Iterable[onnx.ValueInfoProto]) -> dict[str, Shape]:
    """The shapes of the values all of whose extents are known."""
    return {
        value.name: tuple(extent for extent in extents if extent is not None)
        for value in values
        if (extents := _extents(value)) is not None and None not in extents
    }


def _extents(value: onnx.ValueInfoProto) -> Extents | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim
    )


def _fold(bound: onnx.ModelProto, inferred: onnx.ModelProto) -> bool:
    """Replace the nodes whose small results follow from shapes and constants by those results.

    ONNX's own propagation of data stops at many operators that exporters use.

    Returns:
        Whether there were any.
    """
    graph = inferred.graph
    static = _known_shapes((*graph.value_info, *graph.input, *graph.output))
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in bound.graph.initializer}
    kept: list[onnx.NodeProto] = []
    folded: list[onnx.TensorProto] = []
    for node in bound.graph.node:
        results = _results(node, bound, known, static)
        if results is None:
            kept.append(node)
            continue
        known |= results
        folded += [numpy_helper.from_array(array, name) for name, array in results.items()]
    if not folded:
        return False
    del bound.graph.node[:]
    bound.graph.node.extend(kept)
    bound.graph.initializer.extend(folded)
    return True


def _results(
    node: onnx.NodeProto,
    model: onnx.ModelProto,
    known: Mapping[str, Array],
    static: Mapping[str, Shape],
) -> dict[str, Array] | None:
    """The outputs of a node, where they are small and depend on no input of the model."""
    if node.domain or any(a.HasField("g") or a.graphs for a in node.attribute):
        return None
    if node.op_type == "Shape" and node.input[0] in static:
        options = {attribute.name: attribute.i for attribute in node.attribute}
        extents = static[node.input[0]][options.get("start", 0) : options.get("end")]
        return {node.output[0]: np.array(extents, np.int64)}
    names = [name for name in node.input if name]
    if not all(name in known for name in names) or node.op_type.startswith("Random"):
        return None
    sizes = [math.prod(static[name]) for name in node.output if name in static]
    if len(sizes) < len(node.output) or max(sizes, default=0) > MOST_ELEMENTS:
        return None
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    return evaluate_node(node, opsets, {name: known[name] for name in names})
