"""What TensorRT's ONNX parser takes, and computes otherwise than ONNX says, without a word.

Seen in TensorRT-RTX 1.6, and partly reported for TensorRT 10 (NVIDIA/TensorRT#4756, #4509), whose
parser is the same. What can be said in another way is rewritten; the rest is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from trt_native.errors import UnsupportedError
from trt_native.graph.inference import infer_values, known_type
from trt_native.graph.nodes import BFLOAT16, FLOAT, all_nodes, opset_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.decompose_norms import SCALE_PER_CHANNEL
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder

__all__ = [
    "apply_parser_workarounds",
    "check_parser_support",
    "needs_parser_workarounds",
    "with_replacements",
]

_MOST_NAMED = 20
_BFLOAT16_NORM = 22  # since this opset InstanceNormalization takes it
_PADS_AS_INPUT = 11  # since this opset Pad takes them so
_BATCH_FIRST = [1, 0, 2]  # swaps the first two axes of a recurrent layer's input, or state
# (sequence, directions, batch, hidden) and (directions, batch, hidden) to layout 1's orders
_OUTPUT_ORDERS = ([2, 0, 1, 3], _BATCH_FIRST, _BATCH_FIRST)


@wraps_graph_errors
def check_parser_support(model: ir.Model) -> None:
    """Refuse what TensorRT would compute otherwise, and what no rewriting mends.

    Raises:
        UnsupportedError: there is such a node; all of them in one error.
    """
    found = [
        f"- {node.name or node.outputs[0].name!r} ({node.op_type}): {fault}"
        for node in _nodes(model)
        if (fault := _fault(node))
    ]
    if found:
        more = [f"- and {len(found) - _MOST_NAMED} more"] if len(found) > _MOST_NAMED else []
        raise UnsupportedError(
            "TensorRT's ONNX parser would take these nodes, and compute something else than they"
            " say:",
            [*found[:_MOST_NAMED], *more],
        )


@wraps_graph_errors
def needs_parser_workarounds(model: ir.Model) -> bool:
    """Whether any node, in bodies and functions too, has a parser workaround."""
    return any(_mender(node) for node in _nodes(model))


@wraps_graph_errors
def apply_parser_workarounds(model: ir.Model) -> dict[str, int]:
    """Write what TensorRT would compute otherwise in ways that it has right, in place.

    Names, types and shapes of all values stay; model-local functions are inlined first. The last of
    the nodes that take a node's place has its name, the others that with a suffix.

    Returns:
        How many nodes there were, by operator.

    Raises:
        ModelError: the type of a value is unknown and cannot be inferred.
    """
    if model.functions:
        passes.InlinePass()(model)
    counts: Counter[str] = Counter()
    nodes = [(node, mender) for node in all_nodes(model.graph) if (mender := _mender(node))]
    if any(value is not None and value.dtype is None for n, _ in nodes for value in n.inputs[:1]):
        infer_values(model)
    names = NameAuthority(model)
    opset = opset_of(model)
    for node, mender in nodes:
        mender(ReplacementBuilder(node, names, opset))
        counts[node.op_type] += 1
    return dict(counts)


def with_replacements(model: ir.Model, names: frozenset[str]) -> frozenset[str]:
    """Names of nodes, and of those that :func:`apply_parser_workarounds` put beside them."""
    made = (node.name for node in all_nodes(model.graph) if node.name)
    return names | {name for name in made if name.rpartition("__")[0] in names}


def _nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes that TensorRT will see; what a function's nodes are, its callers decide."""
    if model.functions:
        model = model.clone()
        passes.InlinePass()(model)
    return [node for node in all_nodes(model.graph) if not node.domain]


# What is refused


def _fault(node: ir.Node) -> str:
    """What TensorRT would make of a node, and what to do instead; empty if it has it right."""
    rule = _FAULTS.get(node.op_type)
    return rule(node) if rule else ""


def _quantized_fault(node: ir.Node) -> str:
    told = ir.DataType(node.attributes.get_int("output_dtype", 0))
    weight = _input(node, 0) if node.op_type == "DequantizeLinear" else None
    constant = None if weight is None else _constant(weight)
    types = (told, _type_of(_input(node, 2)), None if constant is None else constant.dtype)
    if ir.DataType.UINT8 not in types:
        return ""
    return "uint8 would be cut to int8, at 127: quantize with a zero point of type int8"


def _limits_fault(node: ir.Node) -> str:
    low, high = _input(node, 1), _input(node, 2)
    if _type_of(_input(node, 0)) is not ir.DataType.INT8 or low is None or high is not None:
        return ""
    return "int8 would not keep to a lower limit alone: give the upper one too"


def _transposed_fault(node: ir.Node) -> str:
    attributes, bias = node.attributes, _input(node, 2)
    if "output_shape" in attributes and attributes.get_string("auto_pad", "").startswith("SAME"):
        return "output_shape would be ignored beside auto_pad: give pads instead"
    if any(attributes.get_ints("output_padding", [])) and bias is not None and not _constant(bias):
        return "its padding would lack the bias, which is computed: add that behind it instead"
    return ""


def _suppression_fault(node: ir.Node) -> str:
    if _input(node, 2) is not None:
        return ""
    return "without max_output_boxes_per_class the number would be random: give it"


def _depth_fault(node: ir.Node) -> str:
    crd = node.attributes.get_string("mode", "DCR") == "CRD"
    return "mode CRD would be taken for DCR: write it as Reshape and Transpose" if crd else ""


def _attention_fault(node: ir.Node) -> str:
    if _input(node, 6) is None:
        return ""
    return "nonpad_kv_seqlen would be ignored: give a mask instead"


_FAULTS: dict[str, Callable[[ir.Node], str]] = {
    "QuantizeLinear": _quantized_fault,
    "DequantizeLinear": _quantized_fault,
    "Clip": _limits_fault,
    "ConvTranspose": _transposed_fault,
    "NonMaxSuppression": _suppression_fault,
    "SpaceToDepth": _depth_fault,
    "Attention": _attention_fault,
}


# What is mended


def _mend_triangle(new: ReplacementBuilder) -> None:
    """The upper triangle is the default, but taken for the lower one."""
    new.node.attributes["upper"] = ir.AttrInt64("upper", 1)


def _mend_mean(new: ReplacementBuilder) -> None:
    """The number to divide by is written as FP32, and read as FP16."""
    node = new.node
    first = next(value for value in node.inputs if value is not None)
    kind = new.kind or known_type(first)
    count = new.constant(np.array(len(node.inputs), kind.numpy()))
    new.replace(new.add("Div", [new.add("Sum", node.inputs), count]))


def _mend_pool(new: ReplacementBuilder) -> None:
    """Numbers are raised to an odd power without their signs being dropped first."""
    node = new.node
    absolute = new.add("Abs", node.inputs)
    new.replace(*new.add_with("GlobalLpPool", [absolute], 1, node.attributes))


def _mend_reduction(new: ReplacementBuilder) -> None:
    """What such a reduction does to each number is left out where it reduces no axis."""
    node = new.node
    (x, *_) = node.inputs
    if node.op_type == "ReduceSumSquare":
        new.replace(new.add("Mul", [x, x]))
    else:
        new.replace(new.add("Log" if node.op_type == "ReduceLogSum" else "Abs", [x]))


def _mend_logarithm(new: ReplacementBuilder) -> None:
    """Exponents above 88 overflow, because the largest number is not taken off before."""
    node = new.node
    x, *axes = node.inputs
    assert x is not None  # noqa: S101  # for the type checker
    kind = known_type(x)
    ends = [new.constant(np.array(end, kind.numpy())) for end in (-kind.max, kind.max)]

    def offset(attributes: Mapping[str, object]) -> ir.Value:
        (found,) = new.add_with("ReduceMax", node.inputs, 1, attributes)
        # Infinity less infinity would be no number.
        return new.add("Min", [new.add("Max", [found, ends[0]]), ends[1]])

    less = new.add("Sub", [x, offset({**node.attributes, "keepdims": 1})])
    exponents = new.add("Exp", [less])
    (summed,) = new.add_with("ReduceLogSum", [exponents, *axes], 1, node.attributes)
    new.replace(new.add("Add", [summed, offset(node.attributes)]))


def _mend_groups(new: ReplacementBuilder) -> None:
    """Of one group, which is all channels, each channel gets statistics of its own.

    As an instance norm of one channel, which holds all, it comes out right.
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


def _mend_limits(new: ReplacementBuilder) -> None:
    """Between limits in the wrong order, the larger wins instead of the second."""
    new.node.replace_input_with(1, new.node.inputs[2])


def _mend_average(new: ReplacementBuilder) -> None:
    """What a last window has beyond the padding is counted."""
    node = new.node
    (x,) = node.inputs
    attributes = {**node.attributes, "count_include_pad": ir.AttrInt64("count_include_pad", 0)}
    pads = node.attributes.get_ints("pads", [])
    if any(pads):
        half = len(pads) // 2
        around = [0, 0, *pads[:half], 0, 0, *pads[half:]]
        if new.opset < _PADS_AS_INPUT:
            x = new.add("Pad", [x], pads=around)
        else:
            x = new.add("Pad", [x, new.constant(np.array(around))])
        del attributes["pads"]
    new.replace(*new.add_with("AveragePool", [x], 1, attributes))


def _mend_layout(new: ReplacementBuilder) -> None:
    """Layout 1, with the batch before the sequence, is ignored."""
    node = new.node
    inputs = list(node.inputs)
    for index in (0, 5, 6):  # the sequence and the states before it
        if (given := _input(node, index)) is not None:
            inputs[index] = new.add("Transpose", [given], perm=_BATCH_FIRST)
    attributes = {name: value for name, value in node.attributes.items() if name != "layout"}
    made = new.add_with(node.op_type, inputs, len(node.outputs), attributes)
    turned: list[ir.Value | None] = []
    for old, value, order in zip(node.outputs, made, _OUTPUT_ORDERS, strict=False):
        if old.name:
            turned.append(new.add("Transpose", [value], perm=order))
        else:  # not wanted
            value.name = ""
            turned.append(None)
    new.replace(*turned)


class _Mender(NamedTuple):
    """When a node is misread, and what mends it."""

    applies: Callable[[ir.Node], bool]
    mend: Callable[[ReplacementBuilder], None]


def _reduces_nothing(node: ir.Node) -> bool:
    axes = _input(node, 1)
    known = None if axes is None else _constant(axes)
    empty = axes is None or (known is not None and known.size == 0)
    return empty and node.attributes.get_int("noop_with_empty_axes", 0) == 1


def _has_one_group(node: ir.Node) -> bool:
    return node.attributes.get_int("num_groups", 0) == 1


def _keeps_signs(node: ir.Node) -> bool:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    positive = producer is not None and producer.op_type == "Abs"
    power = node.attributes.get("p")  # a float at opset 1
    return power is not None and float(power.value) % 2 == 1 and not positive


def _has_wrong_order(node: ir.Node) -> bool:
    ends = [_input(node, 1), _input(node, 2)]
    known = [_constant(end) for end in ends if end is not None]
    if len(known) < 2 or any(end is None or end.size != 1 for end in known):
        return False
    low, high = (end.numpy().item() for end in known if end is not None)
    return bool(low > high)


def _counts_too_much(node: ir.Node) -> bool:
    flags = (node.attributes.get_int(name, 0) for name in ("ceil_mode", "count_include_pad"))
    return all(flags) and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"


def _overflows(node: ir.Node) -> bool:
    kind = _type_of(node.inputs[0])
    return not _reduces_nothing(node) and (kind is None or kind.is_floating_point())


_REDUCTION = _Mender(_reduces_nothing, _mend_reduction)
_RECURRENT = _Mender(lambda node: node.attributes.get_int("layout", 0) == 1, _mend_layout)
_MENDERS = {
    "GroupNormalization": _Mender(_has_one_group, _mend_groups),
    "Trilu": _Mender(lambda node: "upper" not in node.attributes, _mend_triangle),
    "ReduceLogSumExp": _Mender(_overflows, _mend_logarithm),
    "Clip": _Mender(_has_wrong_order, _mend_limits),
    "AveragePool": _Mender(_counts_too_much, _mend_average),
    "Mean": _Mender(lambda node: len(node.inputs) > 1, _mend_mean),
    "GlobalLpPool": _Mender(_keeps_signs, _mend_pool),
    **dict.fromkeys(("ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum"), _REDUCTION),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
}


def _mender(node: ir.Node) -> Callable[[ReplacementBuilder], None] | None:
    mender = None if node.domain else _MENDERS.get(node.op_type)
    return mender.mend if mender is not None and mender.applies(node) else None


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _type_of(value: ir.Value | None) -> ir.DataType | None:
    if value is None:
        return None
    known = _constant(value)
    return value.dtype if known is None else known.dtype


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    return ir.convenience.get_const_tensor(value)
