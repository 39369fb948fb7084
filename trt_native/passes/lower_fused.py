"""Write fused operators of ONNX Runtime's optimizer as the plain operators that they stand for.

Their meaning is that of ONNX Runtime's documentation of the domain ``com.microsoft``. One with an
option that has no plain form here is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from trt_native.errors import UnsupportedError
from trt_native.graph.inference import infer_behind, known_type
from trt_native.graph.nodes import FLOAT, all_nodes, input_of, opset_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass
from trt_native.passes.fused_builder import FusedBuilder
from trt_native.passes.lower_fused_attention import (
    attention_refusal,
    multi_head_refusal,
    rewrite_attention,
    rewrite_multi_head,
)
from trt_native.passes.lower_fused_grouped import grouped_refusal, rewrite_grouped
from trt_native.passes.lower_fused_norms import (
    axis_refusal,
    group_norm_refusal,
    rewrite_embedding_norm,
    rewrite_group_norm,
    rewrite_norm,
    rewrite_skip_norm,
    segments_refusal,
    statistics_refusal,
)
from trt_native.passes.lower_fused_rotary import rewrite_rotary, rotary_refusal
from trt_native.passes.lower_fused_weights import (
    BLOCKS_OPSET,
    bits_refusal,
    fits_blocks,
    rewrite_mat_mul_bits,
)
from trt_native.passes.raise_opset import require_opset
from trt_native.passes.replacement import NameAuthority
from trt_native.schemas import schema_of

__all__ = ["LowerFused"]

_DOMAIN = "com.microsoft"
_FIRST_OPSET = 11  # the first that the plain forms can do with
_NEWER_OPSET = 13  # the lowest that models are raised to
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (), "Tanh": (), "Sigmoid": (), "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max"),
}  # fmt: skip


class LowerFused(GraphPass):
    """Plain operators for fused ones of ONNX Runtime."""

    name = "lower_fused"
    title = "Writing fused operators out"
    early = True

    def needed(self, model: ir.Model) -> bool:
        """Whether there are any."""
        opset = opset_of(model)
        rules = {node: rule for node in all_nodes(model.graph) if (rule := _rule(node, opset))}
        refused: dict[str, list[str]] = {}
        for node, rule in rules.items():
            if reason := rule.refusal(node):
                name = str(node.name or node.outputs[0].name)
                refused.setdefault(f"{node.op_type}: {reason}", []).append(name)
        if refused:
            raise UnsupportedError(
                "these fused operators of ONNX Runtime have options without a plain form:",
                problems=[
                    f"{names[0]!r}{f' and {len(names) - 1} more' if names[1:] else ''}, {text}"
                    for text, names in refused.items()
                ],
            )
        return bool(rules)

    @wraps_graph_errors
    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Write them out, each before the types behind it are inferred."""
        if opset_of(model) < _FIRST_OPSET:
            require_opset(model, _NEWER_OPSET, "fused operators of ONNX Runtime")
        opset = opset_of(model)
        found = {node: rule for node in all_nodes(model.graph) if (rule := _rule(node, opset))}
        packed = [node for node in found if node.op_type == "MatMulNBits"]
        self._write(model, {node: rule for node, rule in found.items() if node not in packed})
        in_blocks = self._kept_in_blocks(model, packed)
        self._write(model, {node: found[node] for node in packed}, in_blocks)
        record: dict[str, Any] = {"nodes": dict(Counter(node.op_type for node in found))}
        if unpacked := len(packed) - len(in_blocks):
            record["unpacked"] = unpacked
        return record

    def _write(
        self, model: ir.Model, found: Mapping[ir.Node, _Rule], in_blocks: Collection[ir.Node] = ()
    ) -> None:
        names, opset = NameAuthority(model), opset_of(model)
        shared: dict[Hashable, Any] = {}
        for node, rule in found.items():
            infer_behind(model, [value for value in node.inputs if value is not None])
            new = FusedBuilder(node, names, opset, shared, keeps_blocks=node in in_blocks)
            rule.rewrite(new)

    def _kept_in_blocks(self, model: ir.Model, packed: list[ir.Node]) -> set[ir.Node]:
        """Nodes whose weights stay quantized, in an opset that has that, if the backend can."""
        backend = self.context.backend
        if backend is None or backend.capabilities.quantizing_needs_gpu:
            return set()
        found = {node for node in packed if fits_blocks(node)}
        if not found or not self.context.precision.strongly_typed:
            return set()
        try:
            require_opset(model, BLOCKS_OPSET, "quantized blocks")
        except UnsupportedError:
            return set()
        return found

    def summarize(self, record: Mapping[str, Any]) -> str:
        """The operators, and whether weights take more memory than in the model."""
        text = super().summarize(record)
        if unpacked := record.get("unpacked"):
            text += f"; weights of {unpacked} MatMulNBits are not packed in the plan"
        return text


def _biased(new: FusedBuilder) -> ir.Value | None:
    x, bias = new.node.inputs[0], input_of(new.node, 1)
    return x if bias is None else new.add("Add", [x, bias])


def _gelu(new: FusedBuilder, x: ir.Value | None) -> ir.Value:
    share = new.add("Erf", [new.add("Mul", [x, new.scalar(0.5**0.5)])])
    half = new.add("Mul", [x, new.scalar(0.5)])
    return new.add("Mul", [half, new.add("Add", [share, new.scalar(1)])])


def _rewrite_gelu(new: FusedBuilder) -> None:
    new.replace(_gelu(new, _biased(new)))


def _rewrite_fast_gelu(new: FusedBuilder) -> None:
    """Use the form with a hyperbolic tangent."""
    x = _biased(new)
    square = new.add("Mul", [x, x])
    factor = new.add("Mul", [square, new.scalar(0.044715 * (2 / np.pi) ** 0.5)])
    factor = new.add("Add", [factor, new.scalar((2 / np.pi) ** 0.5)])
    share = new.add("Tanh", [new.add("Mul", [x, factor])])
    half = new.add("Mul", [x, new.scalar(0.5)])
    new.replace(new.add("Mul", [half, new.add("Add", [share, new.scalar(1)])]))


def _rewrite_quick_gelu(new: FusedBuilder) -> None:
    (x,) = new.node.inputs
    alpha = new.scalar(new.node.attributes.get_float("alpha", 1.702))
    new.replace(new.add("Mul", [x, new.add("Sigmoid", [new.add("Mul", [x, alpha])])]))


def _rewrite_bias_add(new: FusedBuilder) -> None:
    x, bias, skip = new.node.inputs
    new.replace(new.add("Add", [new.add("Add", [x, bias]), skip]))


def _rewrite_fused_mat_mul(new: FusedBuilder) -> None:
    """Use the plain product of transposed operands, and a factor."""
    product = new.add("MatMul", [_turned(new, index, name) for index, name in enumerate("AB")])
    alpha = new.node.attributes.get_float("alpha", 1.0)
    new.replace(product if alpha == 1 else new.add("Mul", [product, new.scalar(alpha)]))


def _turned(new: FusedBuilder, index: int, name: str) -> ir.Value:
    """An operand with its first axis behind those of batches, or its last two swapped."""
    x, attributes = new.operand(index), new.node.attributes
    swaps, batches = (attributes.get_int(flag + name, 0) for flag in ("trans", "transBatch"))
    if not swaps and not batches:
        return x
    axes = list(range(new.rank(x)))
    if batches and len(axes) > 2:
        axes = [*axes[1:-1], 0, axes[-1]]
    return new.transposed(x, *axes[:-2], *(axes[:-3:-1] if swaps else axes[-2:]))


def _activation_params(node: ir.Node) -> list[float]:
    attributes = node.attributes
    names = ("activation_alpha", "activation_beta")
    single = [attributes.get_float(name, 0.0) for name in names if name in attributes]
    return list(attributes.get_floats("activation_params", single))


def _activation_refusal(node: ir.Node) -> str:
    activation = node.attributes.get_string("activation", "")
    names = _ACTIVATIONS.get(activation)
    known = names is not None and len(names) == len(_activation_params(node))
    return "" if not activation or known else f"has the activation {activation}"


def _activated(new: FusedBuilder, value: ir.Value) -> ir.Value:
    operator = new.node.attributes.get_string("activation", "")
    params = _activation_params(new.node)
    if not operator:
        return value
    if operator == "Clip":
        return new.add(operator, [value, *(new.scalar(limit) for limit in params)])
    options = dict(zip(_ACTIVATIONS[operator], params, strict=True))
    return new.add_with(operator, [value], 1, options)[0]


def _rewrite_with_activation(new: FusedBuilder) -> None:
    """Use the plain operator, what is added to it, and the activation."""
    node = new.node
    kept = {k: v for k, v in node.attributes.items() if not k.startswith("activation")}
    operator = node.op_type.removeprefix("Fused")
    (value,) = new.add_with(operator, node.inputs[:3], 1, kept)
    if (added := input_of(node, 3)) is not None:
        value = new.add("Add", [value, added])
    new.replace(_activated(new, value))


def _rewrite_channels_last(new: FusedBuilder) -> None:
    """Use the plain operator between two changes of the order of axes."""
    node = new.node
    x = new.operand(0)
    rank = new.rank(x)
    kept = {k: v for k, v in node.attributes.items() if not k.startswith("activation")}
    is_pool = node.op_type == "NhwcMaxPool"
    value = new.cast(x, FLOAT) if is_pool else x  # TensorRT pools no UINT8
    value = new.transposed(value, 0, rank - 1, *range(1, rank - 1))
    if is_pool:
        (value,) = new.add_with("MaxPool", [value], 1, kept, FLOAT)
    else:
        weights, bias = _channels_first_weights(new), input_of(node, 2)
        inputs = [value, weights, *([] if bias is None else [bias])]
        (value,) = new.add_with("Conv", inputs, 1, kept)
    value = new.transposed(value, 0, *range(2, rank), 1)
    if is_pool:
        value = new.cast(value, known_type(x))
    if (added := input_of(node, 3)) is not None:
        value = new.add("Add", [value, added])
    new.replace(_activated(new, value))


def _channels_first_weights(new: FusedBuilder) -> ir.Value:
    """Weights of [out, in, ..], which ONNX Runtime's tools write as [out, .., in] for NhwcConv."""
    node, x, weights = new.node, new.operand(0), new.operand(1)
    if node.op_type != "NhwcConv":
        return weights
    rank, group = new.rank(weights), node.attributes.get_int("group", 1)
    shape = [new.fixed(weights, axis) for axis in range(rank)]
    channels = new.fixed(x, rank - 1)
    first, last = shape[1] * group == channels, shape[-1] * group == channels
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    if first and last and kernel:
        first, last = shape[2:] == kernel, shape[1:-1] == kernel
    if first and (not last or set(shape[1:]) == {1}):
        return weights
    if first == last:
        raise new.unsupported(f"has weights {weights.name!r} whose axis of channels is not clear")
    return new.transposed(weights, 0, rank - 1, *range(1, rank - 1))


def _rewrite_split_gelu(new: FusedBuilder) -> None:
    """Multiply the first half of the sum by the Gelu of the second."""
    total = new.add("Add", [new.operand(0), new.operand(1)])
    half = new.fixed(new.operand(0), 2) // 2
    gate = _gelu(new, new.sliced(total, 2, half))
    new.replace(new.add("Mul", [new.sliced(total, 2, 0, half), gate]))


def _no_refusal(node: ir.Node) -> str:  # noqa: ARG001
    return ""


class _Rule(NamedTuple):
    """Why a node is not written out, empty where it is, and how."""

    refusal: Callable[[ir.Node], str]
    rewrite: Callable[[FusedBuilder], None]


_RULES: dict[str, _Rule] = {
    "Gelu": _Rule(_no_refusal, _rewrite_gelu),
    "BiasGelu": _Rule(_no_refusal, _rewrite_gelu),
    "FastGelu": _Rule(_no_refusal, _rewrite_fast_gelu),
    "QuickGelu": _Rule(_no_refusal, _rewrite_quick_gelu),
    "BiasSplitGelu": _Rule(_no_refusal, _rewrite_split_gelu),
    "BiasAdd": _Rule(_no_refusal, _rewrite_bias_add),
    "FusedMatMul": _Rule(_no_refusal, _rewrite_fused_mat_mul),
    "TransposeMatMul": _Rule(_no_refusal, _rewrite_fused_mat_mul),
    "MatMulNBits": _Rule(bits_refusal, rewrite_mat_mul_bits),
    "FusedConv": _Rule(_activation_refusal, _rewrite_with_activation),
    "FusedGemm": _Rule(_activation_refusal, _rewrite_with_activation),
    "NhwcConv": _Rule(_no_refusal, _rewrite_channels_last),
    "NhwcFusedConv": _Rule(_activation_refusal, _rewrite_channels_last),
    "NhwcMaxPool": _Rule(_no_refusal, _rewrite_channels_last),
    "Attention": _Rule(attention_refusal, rewrite_attention),
    "MultiHeadAttention": _Rule(multi_head_refusal, rewrite_multi_head),
    "GroupQueryAttention": _Rule(grouped_refusal, rewrite_grouped),
    "RotaryEmbedding": _Rule(rotary_refusal, rewrite_rotary),
    "EmbedLayerNormalization": _Rule(segments_refusal, rewrite_embedding_norm),
    "GroupNorm": _Rule(group_norm_refusal, rewrite_group_norm),
    "SkipGroupNorm": _Rule(group_norm_refusal, rewrite_group_norm),
    "SkipLayerNormalization": _Rule(statistics_refusal, rewrite_skip_norm),
    "SkipSimplifiedLayerNormalization": _Rule(statistics_refusal, rewrite_skip_norm),
}
_NORM = _Rule(axis_refusal, rewrite_norm)


def _rule(node: ir.Node, opset: int) -> _Rule | None:
    if node.domain not in ("", _DOMAIN):
        return None
    if node.op_type == "SimplifiedLayerNormalization":
        return _NORM
    if node.op_type == "LayerNormalization" and schema_of(node.op_type, opset) is None:
        return _NORM
    return _RULES.get(node.op_type) if node.domain == _DOMAIN else None
