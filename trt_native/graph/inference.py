"""Types and shapes that a graph's values lack."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator

import onnx
import onnx.shape_inference
import onnx_ir as ir
from onnx_ir.passes import common as passes

from trt_native.errors import ModelError
from trt_native.graph.nodes import all_nodes, bodies, constant_of, op_set

__all__ = [
    "infer_around",
    "infer_behind",
    "infer_proto",
    "infer_shapes",
    "infer_types",
    "infer_values",
    "known_type",
]

_FEW = 64  # elements of constants that may be the values of shapes
_LONGEST = 2**16
"""Elements of a vector that ONNX may propagate: it takes 140 bytes for each, of any vector."""

_SHAPED_AS_INPUT = op_set("GroupNormalization MeanVarianceNormalization")
"""Norms that ONNX defines by other operators, through which it infers no shape."""

_LENGTHS = ("EmbedLayerNormalization", 1)
"""The only output of a fused operator that is not of the type of its inputs."""


_CONTAINER_OPS = op_set(
    "SequenceEmpty SequenceConstruct SequenceInsert SequenceErase SequenceMap SplitToSequence"
    " Optional"
)


def infer_types(model: ir.Model) -> None:
    """Fill in the value types and shapes that the main graph lacks; change nothing else.

    Raises:
        ModelError: A value that an ONNX operator reads is still of unknown type.
    """

    def unknown() -> list[ir.Value]:
        return [v for node in model.graph for v in node.outputs if v.type is None and v.uses()]

    if unknown():
        infer_values(model)
    while unknown() and _type_fused_outputs(model):
        infer_values(model)
    for value in unknown():
        if any(user.domain == "" for user, _ in value.uses()):
            known_type(value)


def _type_fused_outputs(model: ir.Model) -> bool:
    """Give outputs of fused operators, which ONNX does not know, the type of their inputs."""
    from trt_native.reference.evaluator import is_fused  # its hundreds of classes only if used

    typed = False
    for node in model.graph:
        if not is_fused(node.op_type, node.domain):
            continue
        kinds = [v.dtype for v in node.inputs if v is not None and v.dtype is not None]
        kinds.sort(key=lambda kind: not kind.is_floating_point())
        for index, value in enumerate(node.outputs):
            if value.type is None and kinds:
                lengths = (node.op_type, index) == _LENGTHS
                value.type = ir.TensorType(ir.DataType.INT32 if lengths else kinds[0])
                typed = True
    return typed


def infer_values(model: ir.Model) -> None:
    """Fill in what ONNX can infer of values, in bodies too; what is given stays as it is."""
    _infer_values(model)
    while _shape_norms(model):
        _infer_values(model)


def _shape_norms(model: ir.Model) -> bool:
    """Give outputs of norms for which ONNX infers none the shape of what they normalize."""
    shaped = False
    for node in all_nodes(model.graph):
        if _is_shaped_as_input(node) and node.inputs:
            source, made = node.inputs[0], node.outputs[0]
            if source is not None and source.shape is not None and made.shape is None:
                made.shape, made.type = ir.Shape(source.shape), made.type or source.type
                shaped = True
    return shaped


def _is_shaped_as_input(node: ir.Node) -> bool:
    return node.op_type in _SHAPED_AS_INPUT and not node.domain


def _infer_values(model: ir.Model) -> None:
    made = [value for node in all_nodes(model.graph) for value in node.outputs]
    # Only while it checks types does ONNX look into operators that it defines by others, such as
    # GroupNormalization.
    for check_type in (False, True):
        shapes = [value.shape for value in made]
        infer_shapes(model, check_type=check_type)
        for value, shape in zip(made, shapes, strict=True):
            value.shape = value.shape if shape is None else shape
        if all(value.type is not None for value in made if value.name):
            break
    if any(node.op_type in _CONTAINER_OPS and not node.domain for node in all_nodes(model.graph)):
        _type_containers(model)


def _type_containers(model: ir.Model) -> None:
    """Give sequences and optional values their types, for which onnx_ir takes those of tensors."""
    from trt_native.graph.skeleton import skeleton, subgraphs

    inferred = onnx.shape_inference.infer_shapes(skeleton(model))
    types = {
        info.name: info.type
        for graph in subgraphs(inferred.graph)
        for info in graph.value_info
        if not info.type.HasField("tensor_type")
    }
    for node in all_nodes(model.graph):
        for value in node.outputs:
            if value.name in types:
                found = ir.serde.deserialize_type_proto_for_type(types[value.name])
                value.type, value.shape = found, None


def infer_around(model: ir.Model, nodes: Iterable[ir.Node]) -> None:
    """Fill in what nodes read and make, and what that is computed from, as :func:`infer_behind`."""
    values = (value for node in nodes for value in (*node.inputs, *node.outputs))
    infer_behind(model, [value for value in values if value is not None and value.name])


def infer_behind(model: ir.Model, wanted: Collection[ir.Value]) -> None:
    """Fill in what ONNX can infer of values from the nearest that are known, quicker than all.

    Args:
        model: The model.
        wanted: Values; those that they are computed from are filled in, too.
    """
    nodes, edges, pending = set(), {}, [v for v in wanted if not _is_known(v)]
    while pending:
        node = pending.pop().producer()
        if node is None or node in nodes:
            continue
        if any(True for _ in bodies(node)) or _is_shaped_as_input(node):
            infer_values(model)  # bodies read values around them
            return
        nodes.add(node)
        read = [v for v in node.inputs if v is not None]
        edges.update({v.name: v for v in read if _is_known(v) or constant_of(v) is not None})
        pending += [v for v in read if not _is_known(v)]
    if not nodes:
        return
    made = {v.name: v for node in nodes for v in node.outputs if v.name}
    graph = onnx.GraphProto(name="part")
    for value in (v for name, v in edges.items() if name not in made):
        constant = constant_of(value)
        if constant is not None and constant.size <= _FEW:
            tensor = ir.Tensor(constant.numpy(), name=value.name, dtype=constant.dtype)
            graph.initializer.append(ir.serde.serialize_tensor(tensor))
        else:
            graph.input.append(ir.serde.serialize_value(value))
    ordered = (node for node in all_nodes(model.graph) if node in nodes)
    graph.node.extend(map(ir.serde.serialize_node, ordered))
    opsets = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()]
    part = onnx.helper.make_model(graph, opset_imports=opsets)
    try:
        inferred = infer_proto(part)
    except onnx.shape_inference.InferenceError:  # what is lacking says so
        return
    named = {axis for v in edges.values() for axis in v.shape or () if not isinstance(axis, int)}
    for info in inferred.graph.value_info:
        found, value = ir.serde.deserialize_value_info_proto(info, None), made[info.name]
        value.type = value.type or found.type
        if value.shape is None and found.shape is not None:
            # Names that ONNX makes up may be those of other extents elsewhere.
            axes = (
                axis if isinstance(axis, int) or axis in named else None for axis in found.shape
            )
            value.shape = ir.Shape(axes)


def _is_known(value: ir.Value) -> bool:
    return value.type is not None and value.shape is not None


def known_type(value: ir.Value) -> ir.DataType:
    """The element type of a value, given or inferred.

    Raises:
        ModelError: it is neither.
    """
    if value.dtype is not None:
        return value.dtype
    producer = value.producer()
    origin = f"{producer.op_type} {producer.name!r}" if producer else "no node"
    raise ModelError(
        f"the type of value {value.name!r} ({origin}) is neither given nor inferred; "
        "add a value_info with its element type to the model"
    )


def infer_shapes(model: ir.Model, *, check_type: bool = False) -> None:
    """Let ONNX infer types and shapes; a failure shows in what is still lacking, and nowhere else.

    Leaves the weights out of what it serialises, so that size does not matter.
    """
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    enabled, logger.disabled = not logger.disabled, True
    try:
        for propagates in (False, True):
            if propagates and any(_is_long(value) for value in _values(model)):
                return
            passes.ShapeInferencePass(
                check_type=check_type, strict_mode=False, data_prop=propagates
            )(model)
    finally:
        logger.disabled = not enabled


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in all_nodes(model.graph):
        yield from (value for value in (*node.inputs, *node.outputs) if value is not None)


def _is_long(value: ir.Value) -> bool:
    shape = value.shape
    return (
        shape is not None and len(shape) == 1 and isinstance(shape[0], int) and shape[0] > _LONGEST
    )


def infer_proto(model: onnx.ModelProto) -> onnx.ModelProto:
    """Infer shapes, from the values of small vectors too; of long ones that takes all memory."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=False)
    graph = inferred.graph
    vectors = (
        value.type.tensor_type.shape.dim
        for value in (*graph.input, *graph.value_info, *graph.output)
        if len(value.type.tensor_type.shape.dim) == 1
    )
    constants = (tensor.dims for tensor in graph.initializer if len(tensor.dims) == 1)
    if any(dim.dim_value > _LONGEST for (dim,) in vectors) or any(
        extent > _LONGEST for (extent,) in constants
    ):
        return inferred
    return onnx.shape_inference.infer_shapes(model, data_prop=True)
