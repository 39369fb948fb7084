"""Facts about operators in different opsets."""

from __future__ import annotations

import onnx

from trt_native.graph.nodes import op_set
from trt_native.schemas import schema_of

__all__ = ["means_the_same", "same_meaning"]

# Attributes that newer opsets added; a node without them means what it always did.
_NEUTRAL_ATTRIBUTES = op_set(
    "saturate dilations antialias axes keep_aspect_ratio_policy allowzero start end reduction "
    "layout ceil_mode select_last_index axis block_size output_dtype precision round_mode "
    "sparse_value value_float value_floats value_int value_ints value_string value_strings mode "
    "batch_dims storage_order sorted largest"
)


def means_the_same(op_type: str, old: int, new: int) -> bool:
    """Whether a node of the default domain can go from an opset to another as it is."""
    first, second = (schema_of(op_type, opset) for opset in sorted((old, new)))
    return first is not None and second is not None and same_meaning(first, second)


def same_meaning(old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> bool:
    """Whether a node of an operator's version means the same as one of a newer version."""
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
