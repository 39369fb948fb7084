"""A model without its larger weights, to infer shapes and values from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir

from trt_native.graph.dims import fixed_extents
from trt_native.graph.folding import Folded, fold_constants
from trt_native.graph.nodes import all_nodes
from trt_native.graph.pools import POOLS, end_padding
from trt_native.shapes import Profile

__all__ = ["MOST_ELEMENTS", "folded_twins", "skeleton", "subgraphs"]

MOST_ELEMENTS = 1024
"""Elements of a tensor that may say something about shapes."""

_WITHOUT_INFERENCE = ("GroupNormalization", "MeanVarianceNormalization")  # as the input is


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """A model without its larger weights, which become inputs, and without inferred shapes.

    It has the nodes of the model in their order; what ONNX cannot infer is replaced by operators
    whose results have the same shapes.
    """
    present = [(graph, dict(graph.initializers)) for graph in model.graphs()]
    uses = Counter(name for _, values in present for name in values)
    tensors = {
        name: value.const_value
        for _, values in present
        for name, value in values.items()
        if value.const_value is not None and uses[name] == 1
    }
    large = {name: tensor for name, tensor in tensors.items() if tensor.size > MOST_ELEMENTS}
    for graph, values in present:
        for name in values.keys() & large.keys():
            del graph.initializers[name]
    try:
        proto = ir.to_proto(model)
    finally:
        for graph, values in present:
            graph.initializers.clear()
            graph.initializers.update(values)
    for graph_proto in subgraphs(proto.graph):
        for stored in graph_proto.initializer:
            if stored.data_location == onnx.TensorProto.EXTERNAL and stored.name in tensors:
                small = tensors[stored.name]  # its file is not at hand
                inside = ir.Tensor(small.numpy(), dtype=small.dtype, name=stored.name)
                stored.CopyFrom(ir.serde.serialize_tensor(inside))
        del graph_proto.value_info[:]
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, int(tensor.dtype), tensor.shape.numpy())
        for name, tensor in large.items()
    )
    once = {value.name: value for value in proto.graph.output}
    del proto.graph.output[:]
    proto.graph.output.extend(once.values())
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    for node in proto.graph.node:
        _round_down(node)
        if node.op_type in _WITHOUT_INFERENCE and not node.domain:
            node.op_type = "Identity"
            del node.input[1:]
            del node.attribute[:]
    return proto


def folded_twins(
    model: ir.Model, profiles: Sequence[Profile]
) -> tuple[ir.Model, dict[ir.Node, tuple[ir.Node, Folded | None]]]:
    """Find out which nodes follow from constants and the extents that the profiles fix.

    Returns:
        A :func:`skeleton` whose inputs have these extents, folded; and for each node of the model,
        in bodies too, its twin there, and what that folded to.
    """
    copy = ir.from_proto(skeleton(model))
    fixed = fixed_extents(profiles)
    for value in copy.graph.inputs:
        if value.name in fixed and value.shape is not None:
            pairs = zip(value.shape, fixed[str(value.name)], strict=True)
            value.shape = ir.Shape(axis if extent is None else extent for axis, extent in pairs)
    twins = tuple(all_nodes(copy.graph))
    folded: dict[ir.Node, Folded] = {}
    fold_constants(copy, in_bodies=True, on_fold=folded.__setitem__)
    nodes = zip(all_nodes(model.graph), twins, strict=True)
    return copy, {node: (twin, folded.get(twin)) for node, twin in nodes}


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from subgraphs(body)


def _round_down(node: onnx.NodeProto) -> None:
    """Let a pool round down where ONNX's inference rounds up too far.

    By ONNX's text pools with auto_pad VALID have no ceil_mode, and a last window in the padding is
    left out; the inference of opsets before 22 does neither.
    """
    options = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type not in POOLS or "ceil_mode" not in options or not options["ceil_mode"].i:
        return
    auto_pad = options["auto_pad"].s if "auto_pad" in options else b"NOTSET"
    if auto_pad.startswith(b"SAME"):
        return
    options["ceil_mode"].i = 0
    if auto_pad == b"NOTSET":
        names = ("kernel_shape", "strides", "dilations", "pads")
        kernel, strides, dilations, pads = (
            list(options[name].ints) if name in options else [] for name in names
        )
        starts = pads[: len(kernel)] or [0] * len(kernel)
        if "pads" in options:
            node.attribute.remove(options["pads"])
        ends = end_padding(kernel, strides, dilations, pads)
        node.attribute.append(onnx.helper.make_attribute("pads", [*starts, *ends]))
