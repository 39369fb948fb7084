"""Rewrite nodes that TensorRT's ONNX parser silently miscompiles.

Seen in TensorRT-RTX 1.6, and partly reported for TensorRT 10 (NVIDIA/TensorRT#4756, #4509), whose
parser is of the same source. :mod:`~trt_native.passes.reject_unsupported` rejects the nodes that
have no other form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from trt_native.graph.inference import infer_values, known_type
from trt_native.graph.nodes import (
    BFLOAT16,
    FLOAT,
    all_nodes,
    constant_of,
    dtype_of,
    input_of,
    opset_of,
)
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass, count_text
from trt_native.passes.conv_workarounds import CONV, CONV_TRANSPOSE
from trt_native.passes.decompose_norms import SCALE_PER_CHANNEL, decompose_norm
from trt_native.passes.extent_workarounds import (
    LEAST_NUMBER,
    POOL_PADDING,
    RESIZE_BY_SCALES,
    RMS_NORM_TYPES,
)
from trt_native.passes.fusion_search import COMPARISONS
from trt_native.passes.loop_workarounds import LOOP
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder, RewriteRule
from trt_native.passes.sampler_workarounds import GRID_SAMPLE

__all__ = ["ParserWorkarounds", "apply_parser_workarounds"]

_ROUNDS = 3  # shapes may be known only once other nodes, such as a Loop, are rewritten
_SHAPED = (
    *("Conv", "ConvTranspose", "GridSample", "Tile"),
    *("GroupNormalization", "InstanceNormalization"),
)
_BFLOAT16_NORM = 22  # since this opset InstanceNormalization takes it
_MOST_EXACT = 1 << 24  # whole numbers that FP32 holds
_BATCH_FIRST = [1, 0, 2]  # swaps the first two axes of a recurrent layer's input, or state
# (sequence, directions, batch, hidden) and (directions, batch, hidden) to layout 1's orders
_OUTPUT_ORDERS = ([2, 0, 1, 3], _BATCH_FIRST, _BATCH_FIRST)


@wraps_graph_errors
def apply_parser_workarounds(model: ir.Model, *, refit: bool = False) -> dict[str, int]:
    """Rewrite nodes that TensorRT would miscompile into equivalent nodes, in place.

    Names, types and shapes of all values stay. The last of the nodes that take a node's place has
    its name.

    Returns:
        How many nodes were rewritten, by operator.

    Raises:
        ModelError: the type of a value is unknown and cannot be inferred.
    """
    names, opset = NameAuthority(model), opset_of(model)
    counts: Counter[str] = Counter()
    for _ in range(_ROUNDS):
        nodes = _miscompiled(model, refit)
        if not nodes:
            break
        read = (value for node, _ in nodes for value in node.inputs[:1])
        if any(value is not None and value.dtype is None for value in read):
            infer_values(model)
        for node, rewrite in nodes:
            rewrite(ReplacementBuilder(node, names, opset))
            counts[node.op_type] += 1
    return dict(counts)


def _miscompiled(
    model: ir.Model, refit: bool
) -> list[tuple[ir.Node, Callable[[ReplacementBuilder], None]]]:
    """The nodes to rewrite, in bodies too, and how."""
    nodes = list(all_nodes(model.graph))
    if any(_lacks_type(node) or _lacks_shape(node) for node in nodes):
        infer_values(model)
    return [(node, rewrite) for node in nodes if (rewrite := _rule(node, refit))]


class ParserWorkarounds(GraphPass):
    """Equivalent nodes for those that TensorRT's parser miscompiles.

    It follows :class:`~trt_native.passes.autocast.Autocast`, whose rules know the original
    operators.
    """

    name = "parser_workarounds"
    title = "Working around parser bugs"

    def needed(self, model: ir.Model) -> bool:
        """Whether any node, in bodies too, is miscompiled."""
        return bool(_miscompiled(model, self.context.config.refit))

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Rewrite the nodes; see :func:`apply_parser_workarounds`."""
        return {"nodes": apply_parser_workarounds(model, refit=self.context.config.refit)}

    def preview(self, model: ir.Model) -> Mapping[str, Any]:
        """Counts of the nodes to rewrite."""
        refit = self.context.config.refit
        found = (node.op_type for node in all_nodes(model.graph) if _rule(node, refit))
        return {"nodes": dict(Counter(found))}

    def summarize(self, record: Mapping[str, Any]) -> str:
        """The operators that were rewritten."""
        return f"rewritten to work around TensorRT parser bugs: {count_text(record['nodes'])}"


def _lacks_type(node: ir.Node) -> bool:
    """Whether a rule depends on a type that is not known yet."""
    x = input_of(node, 0)
    alike = node.op_type in COMPARISONS and not node.domain and x is input_of(node, 1)
    return alike and x is not None and x.dtype is None


def _lacks_shape(node: ir.Node) -> bool:
    """Whether a rule depends on a shape that is not known yet."""
    x = input_of(node, 0)
    depends = node.op_type in _SHAPED and not node.domain
    return depends and x is not None and (x.shape is None or node.outputs[0].shape is None)


def _rewrite_trilu(new: ReplacementBuilder) -> None:
    """Give ``upper``, without which TensorRT takes the lower triangle."""
    new.node.attributes["upper"] = ir.AttrInt64("upper", 1)


def _tiles_a_scalar(node: ir.Node) -> bool:
    x, repeats = input_of(node, 0), input_of(node, 1)
    counts = None if repeats is None else constant_of(repeats)
    axes = None if x is None or x.shape is None else len(x.shape)
    return axes == 0 or (counts is not None and counts.size == 0)


def _rewrite_tile(new: ReplacementBuilder) -> None:
    """Copy the value: TensorRT crashes where a ``Reshape`` reads what it tiles without axes."""
    new.replace(new.add("Identity", new.node.inputs[:1]))


def _chooses_nothing(node: ir.Node) -> bool:
    return node.inputs[1] is not None and node.inputs[1] is node.inputs[2]


def _rewrite_where(new: ReplacementBuilder) -> None:
    """Broadcast the one value to choose: TensorRT leaves an output that it makes unwritten."""
    condition, value, _ = new.node.inputs
    shape = new.add("Shape", [condition], ir.DataType.INT64)
    new.replace(new.add("Expand", [value, shape]))


def _exponent(node: ir.Node) -> int | None:
    """The exponent of a power, where it is one whole number."""
    value = input_of(node, 1)
    tensor = None if value is None else constant_of(value)
    if tensor is None or tensor.size != 1:
        return None
    number = float(tensor.numpy().item())
    return int(number) if number.is_integer() and abs(number) < _MOST_EXACT else None


def _may_be_negative(node: ir.Node) -> bool:
    """Whether the base of a power of floating-point numbers may be negative."""
    x = node.inputs[0]
    kind, made = dtype_of(x), None if x is None else x.producer()
    return (kind is None or kind.is_floating_point()) and (made is None or made.op_type != "Abs")


def _rewrite_power(new: ReplacementBuilder) -> None:
    """Take powers of absolute values.

    In a plan whose weights can be replaced TensorRT does not know the exponent, and what it makes
    of negative numbers are no numbers.
    """
    x, exponent = new.node.inputs
    assert x is not None  # noqa: S101  # for the type checker
    assert exponent is not None  # noqa: S101
    number = _exponent(new.node)
    if number == 2:
        new.replace(new.add("Mul", [x, x]))
        return
    power = new.add("Pow", [new.add("Abs", [x]), exponent])
    odd = bool(number and number % 2)
    new.replace(new.add("Mul", [new.add("Sign", [x]), power]) if odd else power)


def _has_one_block(node: ir.Node) -> bool:
    return node.attributes.get_int("blocksize", 0) == 1


def _rewrite_copy(new: ReplacementBuilder) -> None:
    """Copy the value: of blocks of one element TensorRT makes something else of a constant."""
    new.replace(new.add("Identity", new.node.inputs[:1]))


def _rewrite_mean(new: ReplacementBuilder) -> None:
    """Divide a sum: TensorRT writes the divisor as FP32, and reads it as FP16."""
    node = new.node
    first = next(value for value in node.inputs if value is not None)
    if len(node.inputs) == 1:
        new.replace(new.add("Identity", [first]))
        return
    kind = new.kind or known_type(first)
    count = new.constant(np.array(len(node.inputs), kind.numpy()))
    new.replace(new.add("Div", [new.add("Sum", node.inputs), count]))


def _rewrite_global_lp_pool(new: ReplacementBuilder) -> None:
    """Take absolute values first: TensorRT raises negative values to an odd power."""
    node = new.node
    absolute = new.add("Abs", node.inputs)
    new.replace(*new.add_with("GlobalLpPool", [absolute], 1, node.attributes))


def _rewrite_noop_reduction(new: ReplacementBuilder) -> None:
    """Apply the operation to each element: without axes TensorRT leaves it out."""
    node = new.node
    (x, *_) = node.inputs
    if node.op_type == "ReduceSumSquare":
        new.replace(new.add("Mul", [x, x]))
    else:
        new.replace(new.add("Log" if node.op_type == "ReduceLogSum" else "Abs", [x]))


def _rewrite_log_sum_exp(new: ReplacementBuilder) -> None:
    """Subtract the maximum first: above 88 TensorRT's exponentials overflow."""
    node = new.node
    x, *axes = node.inputs
    assert x is not None  # noqa: S101  # for the type checker
    kind = known_type(x)
    ends = [new.constant(np.array(end, kind.numpy())) for end in (-kind.max, kind.max)]

    def offset(attributes: Mapping[str, object]) -> ir.Value:
        (found,) = new.add_with("ReduceMax", node.inputs, 1, attributes)
        # Infinity minus infinity is NaN.
        return new.add("Min", [new.add("Max", [found, ends[0]]), ends[1]])

    less = new.add("Sub", [x, offset({**node.attributes, "keepdims": 1})])
    exponents = new.add("Exp", [less])
    (summed,) = new.add_with("ReduceLogSum", [exponents, *axes], 1, node.attributes)
    new.replace(new.add("Add", [summed, offset(node.attributes)]))


def _compares_with_itself(node: ir.Node) -> bool:
    """Whether numbers are compared with themselves: TensorRT then leaves an output unwritten."""
    x = input_of(node, 0)
    return x is not None and x is input_of(node, 1) and x.dtype not in (None, ir.DataType.BOOL)


def _rewrite_comparison(new: ReplacementBuilder) -> None:
    """Compare with the least number there is: only NaN is not equal to itself."""
    x = new.node.inputs[0]
    assert x is not None  # noqa: S101  # for the type checker
    kind = known_type(x)
    least = -np.inf if kind.is_floating_point() else np.iinfo(kind.numpy()).min
    limit = new.constant(np.array(least, kind.numpy()))
    if new.node.op_type in ("Greater", "Less"):
        new.replace(new.add("Less", [x, limit], ir.DataType.BOOL))
        return
    above = new.add("Greater", [x, limit], ir.DataType.BOOL)
    same = new.add("Equal", [x, limit], ir.DataType.BOOL)
    new.replace(new.add("Or", [above, same], ir.DataType.BOOL))


def _normalizes_one_element(node: ir.Node) -> bool:
    """Whether each mean is of one element, for which TensorRT builds no engine."""
    x = input_of(node, 0)
    if x is None or x.shape is None or len(x.shape) < 2:
        return False
    channels, *spatial = x.shape[1:]
    groups = node.attributes.get_int("num_groups", 0)
    return channels == (groups or channels) and all(extent == 1 for extent in spatial)


def _is_odd_group_norm(node: ir.Node) -> bool:
    return _has_one_group(node) or _normalizes_one_element(node)


def _rewrite_group_norm(new: ReplacementBuilder) -> None:
    if _normalizes_one_element(new.node):
        decompose_norm(new)
    else:
        _rewrite_single_group_norm(new)


def _rewrite_single_group_norm(new: ReplacementBuilder) -> None:
    """Use an instance norm of one channel that holds all.

    Of a group norm of one group TensorRT computes the statistics of each channel.
    """
    x, scale, bias = new.node.inputs
    assert x is not None and scale is not None and bias is not None  # noqa: S101, PT018
    kind = known_type(x)
    whole = new.add("Shape", [x], ir.DataType.INT64)
    value = new.reshaped(x, [0, 1, -1])
    wide = kind is BFLOAT16 and new.opset < _BFLOAT16_NORM
    if wide:
        value = new.add("Cast", [value], FLOAT, to=FLOAT)
    within = FLOAT if wide else kind
    per_channel = new.opset >= SCALE_PER_CHANNEL
    if per_channel:
        one, zero = (new.constant(np.full(1, n, within.numpy())) for n in (1, 0))
    elif wide:
        one, zero = (new.add("Cast", [p], FLOAT, to=FLOAT) for p in (scale, bias))
    else:
        one, zero = scale, bias
    epsilon = new.node.attributes.get_float("epsilon", 1e-5)
    value = new.add("InstanceNormalization", [value, one, zero], within, epsilon=epsilon)
    if wide:
        value = new.add("Cast", [value], kind, to=kind)
    value = new.add("Reshape", [value, whole], kind)
    if per_channel:
        value = new.reshaped(value, [0, 0, -1])
        value = new.add("Mul", [value, new.reshaped(scale, [-1, 1])], kind)
        value = new.add("Add", [value, new.reshaped(bias, [-1, 1])], kind)
        value = new.add("Reshape", [value, whole], kind)
    new.replace(value)


def _rewrite_clip(new: ReplacementBuilder) -> None:
    """Give the upper limit twice: of limits in the wrong order TensorRT applies the larger."""
    new.node.replace_input_with(1, new.node.inputs[2])


def _differs_in_alpha(node: ir.Node) -> bool:
    """Whether there is an Elu of another alpha, which TensorRT takes for the same."""
    alpha = node.attributes.get_float("alpha", 1.0)
    assert node.graph is not None  # noqa: S101  # for the type checker
    others = (one for one in node.graph if one.op_type == "Elu" and not one.domain)
    return alpha != 1 and any(one.attributes.get_float("alpha", 1.0) != alpha for one in others)


def _rewrite_elu(new: ReplacementBuilder) -> None:
    """Multiply the negative part by alpha."""
    x, kind = new.node.inputs[0], new.kind
    assert kind is not None  # noqa: S101  # for the type checker
    alpha = np.array(new.node.attributes.get_float("alpha", 1.0), kind.numpy())
    negative = new.add("Neg", [new.add("Relu", [new.add("Neg", [x])])])
    scaled = new.add("Mul", [new.add("Elu", [negative]), new.constant(alpha)])
    new.replace(new.add("Add", [new.add("Relu", [x]), scaled]))


def _rewrite_batch_first(new: ReplacementBuilder) -> None:
    """Transpose to layout 0: TensorRT ignores layout 1, with the batch before the sequence."""
    node = new.node
    inputs = list(node.inputs)
    for index in (0, 5, 6):  # the sequence and the states before it
        if (given := input_of(node, index)) is not None:
            inputs[index] = new.add("Transpose", [given], perm=_BATCH_FIRST)
    attributes = {name: value for name, value in node.attributes.items() if name != "layout"}
    made = new.add_with(node.op_type, inputs, len(node.outputs), attributes)
    transposed: list[ir.Value | None] = []
    for old, value, order in zip(node.outputs, made, _OUTPUT_ORDERS, strict=False):
        if old.name:
            transposed.append(new.add("Transpose", [value], perm=order))
        else:  # not used
            value.name = ""
            transposed.append(None)
    new.replace(*transposed)


def _reduces_nothing(node: ir.Node) -> bool:
    axes = input_of(node, 1)
    known = None if axes is None else constant_of(axes)
    empty = axes is None or (known is not None and known.size == 0)
    return empty and node.attributes.get_int("noop_with_empty_axes", 0) == 1


def _has_one_group(node: ir.Node) -> bool:
    return node.attributes.get_int("num_groups", 0) == 1


def _keeps_signs(node: ir.Node) -> bool:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    positive = producer is not None and producer.op_type == "Abs"
    power = node.attributes.get("p")  # a float at opset 1
    return power is not None and float(power.value) % 2 == 1 and not positive


def _has_reversed_limits(node: ir.Node) -> bool:
    ends = [input_of(node, 1), input_of(node, 2)]
    known = [constant_of(end) for end in ends if end is not None]
    if len(known) < 2 or any(end is None or end.size != 1 for end in known):
        return False
    low, high = (end.numpy().item() for end in known if end is not None)
    return bool(low > high)


def _is_batch_first(node: ir.Node) -> bool:
    return node.attributes.get_int("layout", 0) == 1


def _overflows(node: ir.Node) -> bool:
    kind = dtype_of(node.inputs[0])
    return not _reduces_nothing(node) and (kind is None or kind.is_floating_point())


_NOOP_REDUCTION = RewriteRule(_reduces_nothing, _rewrite_noop_reduction)
_BATCH_FIRST_RECURRENT = RewriteRule(_is_batch_first, _rewrite_batch_first)
_POWER = RewriteRule(
    lambda node: _exponent(node) is not None and _may_be_negative(node), _rewrite_power
)
_RULES = {
    "GroupNormalization": RewriteRule(_is_odd_group_norm, _rewrite_group_norm),
    "InstanceNormalization": RewriteRule(_normalizes_one_element, decompose_norm),
    "Elu": RewriteRule(_differs_in_alpha, _rewrite_elu),
    **dict.fromkeys(COMPARISONS, RewriteRule(_compares_with_itself, _rewrite_comparison)),
    "Where": RewriteRule(_chooses_nothing, _rewrite_where),
    "Trilu": RewriteRule(lambda node: "upper" not in node.attributes, _rewrite_trilu),
    "ReduceLogSumExp": RewriteRule(_overflows, _rewrite_log_sum_exp),
    "Clip": RewriteRule(_has_reversed_limits, _rewrite_clip),
    **dict.fromkeys(("MaxPool", "AveragePool"), POOL_PADDING),
    "Resize": RESIZE_BY_SCALES,
    "Conv": CONV,
    "ConvTranspose": CONV_TRANSPOSE,
    "GridSample": GRID_SAMPLE,
    "Loop": LOOP,
    "RMSNormalization": RMS_NORM_TYPES,
    "Tile": RewriteRule(_tiles_a_scalar, _rewrite_tile),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), RewriteRule(_has_one_block, _rewrite_copy)),
    "Mean": RewriteRule(lambda node: bool(node.inputs), _rewrite_mean),
    "GlobalLpPool": RewriteRule(_keeps_signs, _rewrite_global_lp_pool),
    **dict.fromkeys(("ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum"), _NOOP_REDUCTION),
    **dict.fromkeys(("Add", "Sub"), LEAST_NUMBER),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _BATCH_FIRST_RECURRENT),
}


def _rule(node: ir.Node, refit: bool) -> Callable[[ReplacementBuilder], None] | None:
    rules = {**_RULES, "Pow": _POWER} if refit else _RULES
    rule = None if node.domain else rules.get(node.op_type)
    return rule.rewrite if rule is not None and rule.check(node) else None
