"""Write fused operators of ONNX Runtime's optimizer as the plain operators that they stand for.

Their meaning is that of ONNX Runtime's documentation of the domain ``com.microsoft``. What needs a
rank that is not known, or has an option that is not listed here, stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_native.errors import UnsupportedError
from trt_native.graph.inference import infer_values, known_type
from trt_native.graph.nodes import FLOAT, all_nodes, input_of, opset_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass
from trt_native.passes.replacement import KEEP_FP32_KEY, NameAuthority, ReplacementBuilder

__all__ = ["LowerFused"]

_DOMAIN = "com.microsoft"
_FIRST_OPSET = 11
_AXES_AS_INPUT = 18  # since this opset ReduceMean takes them so
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
        """Whether there are any that can be written out."""
        return opset_of(model) >= _FIRST_OPSET and any(map(_rule, all_nodes(model.graph)))

    @wraps_graph_errors
    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Write them out, each before the types behind it are inferred."""
        names, opset = NameAuthority(model), opset_of(model)
        counts: Counter[str] = Counter()
        for node in tuple(all_nodes(model.graph)):
            if (rule := _rule(node)) is None:
                continue
            if any(v is not None and (v.dtype is None or v.shape is None) for v in node.inputs):
                infer_values(model)
            rule(ReplacementBuilder(node, names, opset))
            counts[node.op_type] += 1
        return {"nodes": dict(counts)}


def _scalar(new: ReplacementBuilder, number: float) -> ir.Value:
    first = new.node.inputs[0]
    assert first is not None  # noqa: S101  # for the type checker
    return new.constant(np.array(number, known_type(first).numpy()))


def _biased(new: ReplacementBuilder) -> ir.Value | None:
    x, bias = new.node.inputs[0], input_of(new.node, 1)
    return x if bias is None else new.add("Add", [x, bias])


def _gelu(new: ReplacementBuilder, x: ir.Value | None) -> ir.Value:
    share = new.add("Erf", [new.add("Mul", [x, _scalar(new, 0.5**0.5)])])
    half = new.add("Mul", [x, _scalar(new, 0.5)])
    return new.add("Mul", [half, new.add("Add", [share, _scalar(new, 1)])])


def _rewrite_gelu(new: ReplacementBuilder) -> None:
    new.replace(_gelu(new, _biased(new)))


def _rewrite_fast_gelu(new: ReplacementBuilder) -> None:
    """Use the form with a hyperbolic tangent."""
    x = _biased(new)
    square = new.add("Mul", [x, x])
    factor = new.add("Mul", [square, _scalar(new, 0.044715 * (2 / np.pi) ** 0.5)])
    factor = new.add("Add", [factor, _scalar(new, (2 / np.pi) ** 0.5)])
    share = new.add("Tanh", [new.add("Mul", [x, factor])])
    half = new.add("Mul", [x, _scalar(new, 0.5)])
    new.replace(new.add("Mul", [half, new.add("Add", [share, _scalar(new, 1)])]))


def _rewrite_quick_gelu(new: ReplacementBuilder) -> None:
    (x,) = new.node.inputs
    alpha = _scalar(new, new.node.attributes.get_float("alpha", 1.702))
    new.replace(new.add("Mul", [x, new.add("Sigmoid", [new.add("Mul", [x, alpha])])]))


def _rewrite_bias_add(new: ReplacementBuilder) -> None:
    x, bias, skip = new.node.inputs
    new.replace(new.add("Add", [new.add("Add", [x, bias]), skip]))


def _rewrite_fused_mat_mul(new: ReplacementBuilder) -> None:
    node = new.node
    operands = [
        new.add("Transpose", [x], perm=_swapped(x)) if node.attributes.get_int(flag, 0) else x
        for x, flag in zip(node.inputs, ("transA", "transB"), strict=True)
    ]
    product = new.add("MatMul", operands)
    alpha = node.attributes.get_float("alpha", 1.0)
    new.replace(product if alpha == 1 else new.add("Mul", [product, _scalar(new, alpha)]))


def _swapped(value: ir.Value | None) -> list[int]:
    """The order of axes with the last two swapped; as it is for a vector."""
    if value is None or value.shape is None:
        raise UnsupportedError(
            f"a FusedMatMul transposes {value and value.name!r}, whose rank is neither given nor"
            " inferred; add a value_info with its shape to the model"
        )
    axes = list(range(len(value.shape)))
    return [*axes[:-2], *axes[:-3:-1]]


def _is_plain_product(node: ir.Node) -> bool:
    return not any(node.attributes.get_int(f"transBatch{operand}", 0) for operand in "AB")


def _activation_params(node: ir.Node) -> list[float]:
    attributes = node.attributes
    names = ("activation_alpha", "activation_beta")
    single = [attributes.get_float(name, 0.0) for name in names if name in attributes]
    return list(attributes.get_floats("activation_params", single))


def _has_known_activation(node: ir.Node) -> bool:
    activation = node.attributes.get_string("activation", "")
    names = _ACTIVATIONS.get(activation)
    return not activation or (names is not None and len(names) == len(_activation_params(node)))


def _activated(new: ReplacementBuilder, value: ir.Value) -> ir.Value:
    operator = new.node.attributes.get_string("activation", "")
    params = _activation_params(new.node)
    if not operator:
        return value
    if operator == "Clip":
        return new.add(operator, [value, *(_scalar(new, limit) for limit in params)])
    options = dict(zip(_ACTIVATIONS[operator], params, strict=True))
    return new.add_with(operator, [value], 1, options)[0]


def _rewrite_with_activation(new: ReplacementBuilder) -> None:
    """Use the plain operator, what is added to it, and the activation."""
    node = new.node
    kept = {k: v for k, v in node.attributes.items() if not k.startswith("activation")}
    operator = node.op_type.removeprefix("Fused")
    (value,) = new.add_with(operator, node.inputs[:3], 1, kept)
    if (added := input_of(node, 3)) is not None:
        value = new.add("Add", [value, added])
    new.replace(_activated(new, value))


def _wide(new: ReplacementBuilder, value: ir.Value | None) -> ir.Value | None:
    if value is None or value.dtype is FLOAT:
        return value
    return new.add("Cast", [value], FLOAT, to=int(FLOAT))


def _mean(new: ReplacementBuilder, value: ir.Value | None) -> ir.Value:
    if new.opset >= _AXES_AS_INPUT:
        return new.add("ReduceMean", [value, new.constant(np.array([-1]))], FLOAT)
    return new.add("ReduceMean", [value], FLOAT, axes=[-1])


def _normed(
    new: ReplacementBuilder, x: ir.Value | None, scale: ir.Value | None, bias: ir.Value | None
) -> ir.Value:
    """The norm of the last axis in FP32, which autocast keeps, in the type of the input."""
    node, kind = new.node, new.kind or FLOAT
    value = _wide(new, x)
    if "Simplified" not in node.op_type:
        value = new.add("Sub", [value, _mean(new, value)], FLOAT)
    variance = _mean(new, new.add("Mul", [value, value], FLOAT))
    default = 1e-12 if node.op_type.startswith("Skip") else 1e-5
    epsilon = new.constant(np.float32(node.attributes.get_float("epsilon", default)))
    root = new.add("Sqrt", [new.add("Add", [variance, epsilon], FLOAT)], FLOAT)
    value = new.add("Mul", [new.add("Div", [value, root], FLOAT), _wide(new, scale)], FLOAT)
    if bias is not None:
        value = new.add("Add", [value, _wide(new, bias)], FLOAT)
    return value if kind is FLOAT else new.add("Cast", [value], kind, to=int(kind))


def _rewrite_norm(new: ReplacementBuilder) -> None:
    new.node.metadata_props[KEEP_FP32_KEY] = "norm"
    x, scale = new.node.inputs[:2]
    new.replace(_normed(new, x, scale, None))


def _rewrite_skip_norm(new: ReplacementBuilder) -> None:
    """Add the other input and the bias, and take the norm of the sum."""
    node = new.node
    node.metadata_props[KEEP_FP32_KEY] = "norm"
    x, skip, scale = node.inputs[:3]
    simplified = node.op_type.startswith("SkipSimplified")
    beta, bias = (None if simplified else input_of(node, 3)), input_of(node, 3 if simplified else 4)
    total = new.add("Add", [x, skip])
    if bias is not None:
        total = new.add("Add", [total, bias])
    outputs: list[ir.Value | None] = [None] * len(node.outputs)
    outputs[0] = _normed(new, total, scale, beta)
    if len(outputs) > 3 and node.outputs[3].name:
        outputs[3] = total
    new.replace(*outputs)


def _is_plain_attention(node: ir.Node) -> bool:
    """Whether query, key and value are separate, without padding masks, past or causality."""
    first, *others = (input_of(node, index) for index in (2, 4, 6, 7, 8, 9))
    return (
        first is not None
        and node.attributes.get_int("num_heads", 0) > 0
        and not any(others)
        and not node.attributes.get_int("unidirectional", 0)
        and not any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
        and all(v is None or v.shape is None or len(v.shape) == 3 for v in node.inputs[:3])
    )


def _rewrite_attention(new: ReplacementBuilder) -> None:
    """Use two products and a softmax between them."""
    node = new.node
    heads = node.attributes.get_int("num_heads", 0)
    width, *_ = [_width(value) for value in node.inputs[:3]]
    ends = [0, width, 2 * width, np.iinfo(np.int64).max]
    parts = []
    for index, order in enumerate(([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])):
        value = node.inputs[index]
        if (bias := input_of(node, 3)) is not None:
            limits = [new.constant(np.array([end])) for end in ends[index : index + 2]]
            value = new.add("Add", [value, new.add("Slice", [bias, *limits])])
        split = new.constant(np.array([0, 0, heads, -1]))
        parts.append(new.add("Transpose", [new.add("Reshape", [value, split])], perm=order))
    scale = node.attributes.get_float("scale", 0.0) or (heads / width) ** 0.5
    scores = new.add("Mul", [new.add("MatMul", parts[:2]), _scalar(new, scale)])
    if (added := input_of(node, 5)) is not None:
        scores = new.add("Add", [scores, added])
    shares = new.add("Softmax", [scores], axis=-1)
    merged = new.add("Transpose", [new.add("MatMul", [shares, parts[2]])], perm=[0, 2, 1, 3])
    new.replace(new.add("Reshape", [merged, new.constant(np.array([0, 0, -1]))]))


def _width(value: ir.Value | None) -> int:
    shape = None if value is None else value.shape
    if shape is None or len(shape) != 3 or not isinstance(shape[2], int):
        raise UnsupportedError(
            f"a MultiHeadAttention reads {value and value.name!r}, whose last dimension of three is"
            " neither given nor inferred; add a value_info with its shape to the model"
        )
    return shape[2]


def _lacks_statistics(node: ir.Node) -> bool:
    """Whether the mean and deviation, which only training uses, are not read."""
    return not any(value.uses() or value.is_graph_output() for value in node.outputs[1:3])


def _is_last_axis(node: ir.Node) -> bool:
    return node.attributes.get_int("axis", -1) == -1 and _lacks_statistics(node)


def _always(node: ir.Node) -> bool:  # noqa: ARG001
    return True


_Rule = tuple[Callable[[ir.Node], bool], Callable[[ReplacementBuilder], None]]
_RULES: dict[str, _Rule] = {
    "Gelu": (_always, _rewrite_gelu),
    "BiasGelu": (_always, _rewrite_gelu),
    "FastGelu": (_always, _rewrite_fast_gelu),
    "QuickGelu": (_always, _rewrite_quick_gelu),
    "BiasAdd": (_always, _rewrite_bias_add),
    "FusedMatMul": (_is_plain_product, _rewrite_fused_mat_mul),
    "TransposeMatMul": (_is_plain_product, _rewrite_fused_mat_mul),
    "FusedConv": (_has_known_activation, _rewrite_with_activation),
    "FusedGemm": (_has_known_activation, _rewrite_with_activation),
    "MultiHeadAttention": (_is_plain_attention, _rewrite_attention),
    "SkipLayerNormalization": (_lacks_statistics, _rewrite_skip_norm),
    "SkipSimplifiedLayerNormalization": (_lacks_statistics, _rewrite_skip_norm),
}


def _rule(node: ir.Node) -> Callable[[ReplacementBuilder], None] | None:
    if node.op_type == "SimplifiedLayerNormalization" and node.domain in ("", _DOMAIN):
        return _rewrite_norm if _is_last_axis(node) else None
    rule = _RULES.get(node.op_type) if node.domain == _DOMAIN else None
    if rule is None:
        return None
    check, rewrite = rule
    return rewrite if check(node) else None
