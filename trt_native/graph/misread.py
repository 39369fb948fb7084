"""What TensorRT's ONNX parser takes, and computes otherwise than ONNX says, without a word.

Seen in TensorRT-RTX 1.6, and partly reported for TensorRT 10 (NVIDIA/TensorRT#4756, #4509), whose
parser is the same. What can be said in another way is rewritten; the rest is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from trt_native.errors import UnsupportedError
from trt_native.graph.inference import infer_values, known_type
from trt_native.graph.naming import Names
from trt_native.graph.norms import is_single_group, join_single_groups
from trt_native.graph.precision_rules import all_nodes, opset_of
from trt_native.graph.validity import refuses_malformed

__all__ = ["is_misread", "mend_misread", "refuse_misread", "with_replacements"]

_MOST_NAMED = 20
_PADS_AS_INPUT = 11  # since this opset Pad takes them so
_BATCH_FIRST = [1, 0, 2]  # swaps the first two axes of a recurrent layer's input, or state
# (sequence, directions, batch, hidden) and (directions, batch, hidden) to layout 1's orders
_OUTPUT_ORDERS = ([2, 0, 1, 3], _BATCH_FIRST, _BATCH_FIRST)


@refuses_malformed
def refuse_misread(model: ir.Model) -> None:
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


@refuses_malformed
def is_misread(model: ir.Model) -> bool:
    """Whether a graph, its bodies or its functions have anything for :func:`mend_misread`."""
    return any(is_single_group(node) or _mender(node) for node in _nodes(model))


@refuses_malformed
def mend_misread(model: ir.Model) -> dict[str, int]:
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
    counts = Counter({"GroupNormalization": join_single_groups(model)})
    nodes = [(node, mender) for node in all_nodes(model.graph) if (mender := _mender(node))]
    if any(value is not None and value.dtype is None for n, _ in nodes for value in n.inputs[:1]):
        infer_values(model)
    names = Names(model)
    opset = opset_of(model)
    for node, mender in nodes:
        mender(_Rewriting(node, names, opset))
        counts[node.op_type] += 1
    return {operator: count for operator, count in counts.items() if count}


def with_replacements(model: ir.Model, names: frozenset[str]) -> frozenset[str]:
    """Names of nodes, and of those that :func:`mend_misread` put beside them."""
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


class _Rewriting:
    """New nodes in the place of one, whose outputs keep their names."""

    def __init__(self, node: ir.Node, names: Names, opset: int) -> None:
        self.node = node
        self.opset = opset
        self._names = names
        self._nodes: list[ir.Node] = []

    def add(
        self, operator: str, inputs: Sequence[ir.Value | None], **attributes: object
    ) -> ir.Value:
        """The output of a new node."""
        return self.add_with(operator, inputs, 1, attributes)[0]

    def add_with(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        attributes: Mapping[str, object],
    ) -> list[ir.Value]:
        """The outputs of a new node."""
        names = [self._names.unique(self._named(operator.lower())) for _ in range(outputs)]
        kind = self.kind
        values = [
            ir.Value(name=n, type=None if kind is None else ir.TensorType(kind)) for n in names
        ]
        suffix = f"__{operator.lower()}_{len(self._nodes)}"
        name = f"{self.node.name}{suffix}" if self.node.name else None
        self._nodes.append(ir.node(operator, inputs, attributes, outputs=values, name=name))  # type: ignore[arg-type]
        return values

    @property
    def kind(self) -> ir.DataType | None:
        """The element type of the first output or input of which one is known."""
        values = (*self.node.outputs, *self.node.inputs)
        return next((v.dtype for v in values if v is not None and v.dtype is not None), None)

    def constant(self, number: np.ndarray) -> ir.Value:
        """A new initializer."""
        return self._names.initializer(self._named("value"), ir.Tensor(number))

    def _named(self, suffix: str) -> str:
        named = (value.name for value in self.node.outputs if value.name)
        return f"{next(named, self.node.op_type)}__{suffix}"

    def replace(self, *values: ir.Value | None) -> None:
        """Let new values take the place of the node's outputs; None where it has none."""
        graph, node = self.node.graph, self.node
        assert graph is not None  # noqa: S101  # for the type checker
        self._nodes[-1].name = node.name
        pairs = [(old, new) for old, new in zip(node.outputs, values, strict=True) if new]
        old, new = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        ir.convenience.replace_nodes_and_values(graph, node, [node], self._nodes, old, new)


def _mend_triangle(rewriting: _Rewriting) -> None:
    """The upper triangle is the default, but taken for the lower one."""
    rewriting.node.attributes["upper"] = ir.AttrInt64("upper", 1)


def _mend_mean(rewriting: _Rewriting) -> None:
    """The number to divide by is written as FP32, and read as FP16."""
    node = rewriting.node
    first = next(value for value in node.inputs if value is not None)
    kind = rewriting.kind or known_type(first)
    count = rewriting.constant(np.array(len(node.inputs), kind.numpy()))
    rewriting.replace(rewriting.add("Div", [rewriting.add("Sum", node.inputs), count]))


def _mend_pool(rewriting: _Rewriting) -> None:
    """Numbers are raised to an odd power without their signs being dropped first."""
    node = rewriting.node
    absolute = rewriting.add("Abs", node.inputs)
    rewriting.replace(*rewriting.add_with("GlobalLpPool", [absolute], 1, dict(node.attributes)))


def _mend_reduction(rewriting: _Rewriting) -> None:
    """What such a reduction does to each number is left out where it reduces no axis."""
    node = rewriting.node
    (x, *_) = node.inputs
    if node.op_type == "ReduceSumSquare":
        rewriting.replace(rewriting.add("Mul", [x, x]))
    else:
        rewriting.replace(rewriting.add("Log" if node.op_type == "ReduceLogSum" else "Abs", [x]))


def _mend_logarithm(rewriting: _Rewriting) -> None:
    """Exponents above 88 overflow, because the largest number is not taken off before."""
    node = rewriting.node
    x, *axes = node.inputs
    kept = {name: value for name, value in node.attributes.items() if name != "keepdims"}
    assert x is not None  # noqa: S101  # for the type checker
    kind = known_type(x)
    ends = [rewriting.constant(np.array(end, kind.numpy())) for end in (-kind.max, kind.max)]

    def offset(keepdims: int) -> ir.Value:
        found = rewriting.add("ReduceMax", node.inputs, **kept, keepdims=keepdims)
        # Infinity less infinity would be no number.
        return rewriting.add("Min", [rewriting.add("Max", [found, ends[0]]), ends[1]])

    exponents = rewriting.add("Exp", [rewriting.add("Sub", [x, offset(1)])])
    keepdims = node.attributes.get_int("keepdims", 1)
    summed = rewriting.add("ReduceLogSum", [exponents, *axes], **kept, keepdims=keepdims)
    rewriting.replace(rewriting.add("Add", [summed, offset(keepdims)]))


def _mend_limits(rewriting: _Rewriting) -> None:
    """Between limits in the wrong order, the larger wins instead of the second."""
    rewriting.node.replace_input_with(1, rewriting.node.inputs[2])


def _mend_average(rewriting: _Rewriting) -> None:
    """What a last window has beyond the padding is counted."""
    node = rewriting.node
    (x,) = node.inputs
    attributes = {**node.attributes, "count_include_pad": ir.AttrInt64("count_include_pad", 0)}
    pads = node.attributes.get_ints("pads", [])
    if any(pads):
        half = len(pads) // 2
        around = [0, 0, *pads[:half], 0, 0, *pads[half:]]
        if rewriting.opset < _PADS_AS_INPUT:
            x = rewriting.add("Pad", [x], pads=around)
        else:
            x = rewriting.add("Pad", [x, rewriting.constant(np.array(around))])
        del attributes["pads"]
    rewriting.replace(*rewriting.add_with("AveragePool", [x], 1, attributes))


def _mend_layout(rewriting: _Rewriting) -> None:
    """Layout 1, with the batch before the sequence, is ignored."""
    node = rewriting.node
    inputs = list(node.inputs)
    for index in (0, 5, 6):  # the sequence and the states before it
        value = _input(node, index)
        if value is not None:
            inputs[index] = rewriting.add("Transpose", [value], perm=_BATCH_FIRST)
    attributes = {name: value for name, value in node.attributes.items() if name != "layout"}
    made = rewriting.add_with(node.op_type, inputs, len(node.outputs), attributes)
    turned: list[ir.Value | None] = []
    for old, new, order in zip(node.outputs, made, _OUTPUT_ORDERS, strict=False):
        if old.name:
            turned.append(rewriting.add("Transpose", [new], perm=order))
        else:  # not wanted
            new.name = ""
            turned.append(None)
    rewriting.replace(*turned)


class _Mender(NamedTuple):
    """When a node is misread, and what mends it."""

    applies: Callable[[ir.Node], bool]
    mend: Callable[[_Rewriting], None]


def _reduces_nothing(node: ir.Node) -> bool:
    axes = _input(node, 1)
    known = None if axes is None else _constant(axes)
    empty = axes is None or (known is not None and known.size == 0)
    return empty and node.attributes.get_int("noop_with_empty_axes", 0) == 1


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
    "Trilu": _Mender(lambda node: "upper" not in node.attributes, _mend_triangle),
    "ReduceLogSumExp": _Mender(_overflows, _mend_logarithm),
    "Clip": _Mender(_has_wrong_order, _mend_limits),
    "AveragePool": _Mender(_counts_too_much, _mend_average),
    "Mean": _Mender(lambda node: len(node.inputs) > 1, _mend_mean),
    "GlobalLpPool": _Mender(_keeps_signs, _mend_pool),
    **dict.fromkeys(("ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum"), _REDUCTION),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
}


def _mender(node: ir.Node) -> Callable[[_Rewriting], None] | None:
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
