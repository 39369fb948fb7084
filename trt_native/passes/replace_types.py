"""Replace FP64, which TensorRT does not have, by FP32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.errors import UnsupportedError
from trt_native.graph.evaluation import evaluate_node
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import FLOAT, SHAPES, all_nodes, dtype_of, op_set
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass

__all__ = ["ReplaceTypes", "attribute_type", "replace_types"]

_DOUBLE = ir.DataType.DOUBLE
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype")
_SMALL = 1024
_FOLDED = SHAPES | op_set(
    "Cast Identity Constant Gather Concat Slice Squeeze Unsqueeze Reshape Expand ConstantOfShape "
    "Range "
    "Add Sub Mul Div Mod Neg Abs Floor Ceil Round Sqrt Reciprocal Pow Exp Log Min Max Sum "
    "Equal Greater Less GreaterOrEqual LessOrEqual Not And Or Where ReduceProd ReduceSum"
)
_ROUNDING = op_set("Floor Ceil Round Cast")


class ReplaceTypes(GraphPass):
    """FP32 for DOUBLE, inputs and outputs included."""

    name = "replace_types"
    title = "Replacing types that TensorRT lacks"
    early = True

    def needed(self, model: ir.Model) -> bool:
        """Whether an input, an output, a constant or a node has such a type."""
        attributes = (a for node in all_nodes(model.graph) for a in node.attributes.values())
        return any(dtype_of(value) is _DOUBLE for value in _values(model)) or any(
            attribute_type(attribute) is _DOUBLE for attribute in attributes
        )

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Replace the types; see :func:`replace_types`."""
        return replace_types(model)

    def summarize(self, record: Mapping[str, Any]) -> str:
        """The inputs and outputs in FP32 instead of DOUBLE, and counts of the constants."""
        parts = []
        if names := [*record.get("inputs", ()), *record.get("outputs", ())]:
            parts.append(f"inputs and outputs in FP32 instead of FP64: {', '.join(names)}")
        if count := record.get("float64"):
            parts.append(f"computed in FP32 instead of FP64: {count} values and constants")
        if count := record.get("clamped"):
            parts.append(f"FP64 constants beyond FP32's range, clamped: {count}")
        return "; ".join(parts)


@wraps_graph_errors
def replace_types(model: ir.Model) -> dict[str, Any]:
    """Replace DOUBLE by FLOAT, in place.

    What follows from constants and static shapes alone is computed in DOUBLE first.

    Returns:
        ``inputs`` and ``outputs``: names of those that were DOUBLE. ``float64``: how many values
        and constants had that type. ``clamped``: how many constants of DOUBLE had finite values
        beyond FLOAT's range, or were numbers that FLOAT has as zero.

    Raises:
        UnsupportedError: sizes are computed from shapes in DOUBLE with numbers that FLOAT does not
            have.
    """
    infer_values(model)
    _fold(model)
    _check_sizes(model)
    graph = model.graph
    record: dict[str, Any] = {
        "inputs": [value.name for value in graph.inputs if value.dtype is _DOUBLE],
        "outputs": [value.name for value in graph.outputs if value.dtype is _DOUBLE],
        "clamped": 0,
    }
    for value in {id(value): value for value in _values(model)}.values():
        tensor = value.const_value
        old = value.dtype if tensor is None else tensor.dtype
        if old is not _DOUBLE:
            continue
        record["float64"] = record.get("float64", 0) + 1
        value.type = ir.TensorType(FLOAT)
        if tensor is not None:
            value.const_value, clamped = _converted(tensor)
            record["clamped"] += clamped
    for node in all_nodes(graph):
        _convert_attributes(node)
    return {name: found for name, found in record.items() if found}


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (*graph.inputs, *graph.initializers.values(), *graph.outputs)
    for node in all_nodes(model.graph):
        yield from node.outputs


def attribute_type(attribute: ir.Attr) -> ir.DataType | None:
    """The element type that an attribute gives or has."""
    if attribute.is_ref():
        return None
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor().dtype
    if attribute.type == ir.AttributeType.INT and attribute.name in _TYPE_ATTRIBUTES:
        return ir.DataType(attribute.as_int())
    return None


def _named(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name!r}"


def _converted(tensor: ir.TensorProtocol) -> tuple[ir.TensorProtocol, bool]:
    """A tensor in FP32, and whether values had to be clamped."""
    with np.errstate(over="ignore", under="ignore"):
        plain = tensor.numpy().astype(np.float32)
    clamped = not np.array_equal(_narrowed(tensor), plain, equal_nan=True)

    def convert() -> ir.TensorProtocol:
        return ir.Tensor(_narrowed(tensor), name=tensor.name)

    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(convert, dtype=FLOAT, shape=shape, name=tensor.name), clamped


def _narrowed(tensor: ir.TensorProtocol) -> Array:
    """FP64 to FP32; what is finite stays so, and a single number that is not zero is none."""
    array, limits = tensor.numpy(), np.finfo(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        found = np.where(np.isfinite(array), np.clip(array, limits.min, limits.max), array).astype(
            np.float32
        )
    if array.size == 1 and array.any() and not found.any():
        found = np.copysign(np.full_like(found, limits.tiny), array).astype(np.float32)
    return found


def _convert_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute_type(attribute) is not _DOUBLE:
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            node.attributes[name] = ir.AttrTensor(name, _converted(attribute.as_tensor())[0])
        else:
            node.attributes[name] = ir.AttrInt64(name, int(FLOAT))


# In DOUBLE


def _fold(model: ir.Model) -> None:
    """Replace the nodes of the main graph that compute constants in DOUBLE by the constants."""
    known: dict[ir.Value, Array] = {
        value: value.const_value.numpy()
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.size <= _SMALL
    }
    for node in list(model.graph):
        results = _evaluated(node, known, model.opset_imports)
        if results is None:
            continue
        known |= results
        kinds = {dtype_of(value) for value in (*node.inputs, *node.outputs)}
        outputs = [value for value in node.outputs if not value.is_graph_output()]
        if _DOUBLE in kinds and len(outputs) == len(node.outputs):
            for value in outputs:
                constant = ir.Value(
                    name=f"{value.name}__constant",
                    shape=ir.Shape(results[value].shape),
                    type=value.type,
                    const_value=ir.Tensor(results[value], name=f"{value.name}__constant"),
                )
                model.graph.register_initializer(constant)
                known[constant] = results[value]
                value.replace_all_uses_with(constant)
            model.graph.remove(node, safe=True)


def _evaluated(
    node: ir.Node, known: Mapping[ir.Value, Array], opsets: Mapping[str, int]
) -> dict[ir.Value, Array] | None:
    """The outputs of a node, where they are small and follow from constants and static shapes."""
    if node.domain or node.op_type not in _FOLDED:
        return None
    inputs = [value for value in node.inputs if value is not None]
    source = inputs[0] if inputs else None
    if node.op_type in SHAPES and source is not None and source not in known:
        extents = None if source.shape is None else list(source.shape)
        if extents is None or not all(isinstance(extent, int) for extent in extents):
            return None
        shape = [int(extent) for extent in extents]  # type: ignore[arg-type]
        known = {**known, source: np.broadcast_to(np.float32(0), shape)}
    elif any(np.size(known.get(value, np.empty(_SMALL + 1))) > _SMALL for value in inputs):
        return None
    if not all(value in known for value in inputs):
        return None
    given = {value.name or "": known[value] for value in inputs}
    found = evaluate_node(ir.to_proto(node), opsets, given)
    if found is None or any(array.size > _SMALL for array in found.values()):
        return None
    return {value: found[value.name or ""] for value in node.outputs}


def _check_sizes(model: ir.Model) -> None:
    """Refuse sizes that DOUBLE and FLOAT round differently.

    100 * 0.29 is 28.999 in DOUBLE, and 29 in FLOAT.
    """
    for node in all_nodes(model.graph):
        source = node.inputs[0] if node.inputs else None
        rounds = node.op_type in _ROUNDING and not (
            node.op_type == "Cast"
            and ir.DataType(node.attributes["to"].as_int()).is_floating_point()
        )
        if not rounds or source is None or dtype_of(source) is not _DOUBLE:
            continue
        before = _ancestors(source)
        if any(n.op_type in SHAPES for n in before) and any(
            _is_inexact(value) for n in before for value in n.inputs
        ):
            raise UnsupportedError(
                f"{_named(node)} rounds a size that is computed from a shape in FP64; TensorRT has"
                " FP32, which may give another size; export the model with static shapes, or"
                " compute the size in integers"
            )


def _ancestors(value: ir.Value) -> list[ir.Node]:
    found: dict[ir.Node, None] = {}
    left: list[ir.Value | None] = [value]
    while left:
        producer = (current := left.pop()) and current.producer()
        if producer and producer not in found:
            found[producer] = None
            left.extend(() if producer.op_type in SHAPES else producer.inputs)
    return list(found)


def _is_inexact(value: ir.Value | None) -> bool:
    tensor = None if value is None else value.const_value
    if tensor is None or tensor.dtype is not _DOUBLE:
        return False
    array = tensor.numpy()
    return not np.array_equal(array, array.astype(np.float32))
