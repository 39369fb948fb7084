"""Raise a model to the opset whose operators know BF16."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from trt_native.errors import UnsupportedError
from trt_native.graph.precision_rules import (
    BFLOAT16,
    PRODUCTS,
    all_nodes,
    allowed_types,
    op_set,
    opset_of,
    schema_of,
)

__all__ = ["raise_opset"]

_OPSET, _IR_VERSION, _OLDEST = 22, 10, 17
# Attributes that newer opsets added; a node without them means what it always did.
_NEUTRAL_ATTRIBUTES = op_set("saturate dilations antialias axes keep_aspect_ratio_policy")


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
        if new is None or new.deprecated or not _same_meaning(old, new):
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


def _same_meaning(old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> bool:
    if old.since_version == new.since_version:
        return True
    before = {k: str(a.default_value) for k, a in old.attributes.items()}
    after = {k: str(a.default_value) for k, a in new.attributes.items()}
    inputs = [i.name for i in old.inputs], [i.name for i in new.inputs]
    return (
        before.items() <= after.items()
        and after.keys() - before.keys() <= _NEUTRAL_ATTRIBUTES
        and inputs[1][: len(inputs[0])] == inputs[0]
    )
