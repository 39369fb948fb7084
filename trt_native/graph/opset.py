"""Raise a model to an opset whose operators support the types it needs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from trt_native.errors import UnsupportedError
from trt_native.graph.nodes import (
    BFLOAT16,
    PRODUCTS,
    all_nodes,
    allowed_types,
    op_set,
    opset_of,
)
from trt_native.schemas import schema_of

__all__ = ["means_the_same", "raise_opset", "require_opset"]

_OPSET, _IR_VERSION, _OLDEST = 22, 10, 17
_OLDEST_FOR_QDQ = 13  # per-channel scales, and axes as an input of Squeeze, are from then
# Attributes that newer opsets added; a node without them means what it always did.
_NEUTRAL_ATTRIBUTES = op_set(
    "saturate dilations antialias axes keep_aspect_ratio_policy allowzero start end reduction "
    "layout ceil_mode"
)


def raise_opset(model: ir.Model) -> int | None:
    """Give a model the opset whose operators know BF16, where that changes only their types.

    Returns:
        The new opset, or None if the model stays at its own.

    Raises:
        UnsupportedError: A convolution or matrix product has no BF16 at the model's opset, and an
            operator means something else, or may, at the newer one.
    """
    opset = opset_of(model)
    if opset >= _OPSET:
        return None
    lacking, changed = set(), set()
    for node in all_nodes(model.graph):
        old, new = schema_of(node.op_type, opset), schema_of(node.op_type, _OPSET)
        if node.domain or old is None:
            continue
        if new is None or not _same_meaning(old, new):
            changed.add(node.op_type)
        elif allowed_types(old, node, BFLOAT16) != allowed_types(new, node, BFLOAT16):
            lacking.add(node.op_type)
    if not lacking:
        return None
    if changed or opset < _OLDEST:
        if lacking & PRODUCTS:
            obstacle = f" ({', '.join(sorted(changed))} changed since)" if changed else ""
            raise UnsupportedError(
                f"{', '.join(sorted(lacking & PRODUCTS))} has no BF16 at opset {opset}, and the "
                f"model cannot be raised to opset {_OPSET} as it is{obstacle}; export it "
                f"at opset {_OPSET} or newer, or use FP16"
            )
        return None
    model.opset_imports[""] = _OPSET
    model.ir_version = max(model.ir_version, _IR_VERSION)
    return _OPSET


def require_opset(model: ir.Model, opset: int, purpose: str) -> int | None:
    """Give a model at least an opset, with every node meaning what it did.

    Reductions and ``Split`` are rewritten the way newer opsets write them; model-local functions
    must have been inlined.

    Args:
        model: The model.
        opset: The lowest opset that will do.
        purpose: What needs it, for the error: ``"FP16 scales"``.

    Returns:
        The new opset, or None if the model stays at its own.

    Raises:
        UnsupportedError: an operator means something else, or may, at the newer opset.
    """
    present = opset_of(model)
    if present >= opset:
        return None
    changed, rewrites = set(), []
    for node in list(all_nodes(model.graph)):
        old, new = schema_of(node.op_type, present), schema_of(node.op_type, opset)
        if node.domain or old is None:
            continue
        since, rewrite = _REWRITES.get(node.op_type, (0, None))
        if rewrite is not None and present < since <= opset:
            rewrites.append((rewrite, node))
        elif node.op_type == "BatchNormalization" and len(node.outputs) == 1:
            continue  # later opsets changed how it is trained
        elif new is None or not _same_meaning(old, new):
            changed.add(node.op_type)
    if changed or present < _OLDEST_FOR_QDQ:
        obstacle = f"{', '.join(sorted(changed))} changed since" if changed else "it is too old"
        raise UnsupportedError(
            f"{purpose} need opset {opset}; the model has opset {present} and cannot be raised as"
            f" it is ({obstacle}): export it at opset {opset} or newer"
        )
    for rewrite, node in rewrites:
        rewrite(model.graph, node)
    model.opset_imports[""] = opset
    model.ir_version = max(model.ir_version, _IR_VERSION)
    return opset


def means_the_same(op_type: str, old: int, new: int) -> bool:
    """Whether a node of the default domain can go from an opset to another as it is."""
    first, second = (schema_of(op_type, opset) for opset in sorted((old, new)))
    return first is not None and second is not None and _same_meaning(first, second)


def _axes_as_input(graph: ir.Graph, node: ir.Node) -> None:
    axes = node.attributes.pop("axes", None)
    if axes is not None:
        array = np.array(axes.as_ints(), np.int64)
        name = f"{node.outputs[0].name}__axes"
        while name in graph.initializers:
            name += "_"
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.tensor(array, name=name),
        )  # fmt: skip
        graph.register_initializer(value)
        node.resize_inputs(2)
        node.replace_input_with(1, value)


def _number_of_parts(graph: ir.Graph, node: ir.Node) -> None:  # noqa: ARG001
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


_REDUCTIONS = op_set(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSumSquare"
)
# Operator to the opset that writes it otherwise, and how to rewrite a node.
_REWRITES: dict[str, tuple[int, Callable[[ir.Graph, ir.Node], None]]] = {
    **dict.fromkeys(_REDUCTIONS, (18, _axes_as_input)),
    "Split": (18, _number_of_parts),
}


def _same_meaning(old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> bool:
    if old.since_version == new.since_version or new.deprecated:
        return old.since_version == new.since_version
    before = {k: str(a.default_value) for k, a in old.attributes.items()}
    after = {k: str(a.default_value) for k, a in new.attributes.items()}
    inputs = [i.name for i in old.inputs], [i.name for i in new.inputs]
    return (
        before.items() <= after.items()
        and after.keys() - before.keys() <= _NEUTRAL_ATTRIBUTES
        and inputs[1][: len(inputs[0])] == inputs[0]
    )
