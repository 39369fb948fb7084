"""Raise a model to an opset whose operators have the types that it needs.

Operators that a newer opset writes in another way are rewritten so that they compute what they
did. A model that has an operator without such a form is left as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from trt_native.errors import UnsupportedError
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import (
    BFLOAT16,
    PRODUCTS,
    all_nodes,
    allowed_types,
    constant_of,
    input_of,
    op_set,
    opset_of,
)
from trt_native.graph.opset import same_meaning
from trt_native.passes.base import count_text
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder
from trt_native.schemas import schema_of

__all__ = ["RaisedOpset", "opset_problems", "raise_opset", "require_opset", "schema_steps"]

_BF16_OPSET, _IR_VERSION = 22, 10
_OLDEST = 7  # operators of earlier ones broadcast otherwise
_FIRST_TARGET = 13  # the forms that the rules below write are from then, or earlier
_INT64 = ir.DataType.INT64
_CHANGED = "changed since"
_ROUNDING = 1e-5  # of the inverse of a scale in FP32


@dataclass(frozen=True, slots=True)
class RaisedOpset:
    """How a model was raised.

    Attributes:
        opset: Its new opset.
        nodes: How many nodes of which operator were rewritten.
    """

    opset: int
    nodes: dict[str, int]

    def __str__(self) -> str:
        rewritten = f", rewritten for it: {count_text(self.nodes)}" if self.nodes else ""
        return f"raised to opset {self.opset}{rewritten}"


def raise_opset(model: ir.Model) -> RaisedOpset | None:
    """Give a model the opset whose operators know BF16, where an operator of its own does not.

    Returns:
        How it was raised; None if the model stays at its own opset.

    Raises:
        UnsupportedError: A convolution or matrix product has no BF16 at the model's opset, and an
            operator has no equal form at the newer one.
    """
    opset = opset_of(model)
    if opset >= _BF16_OPSET:
        return None
    lacking = {node.op_type for node in all_nodes(model.graph) if _gains_bf16(node, opset)}
    if not lacking:
        return None
    if problems := opset_problems(model, _BF16_OPSET):
        if products := ", ".join(sorted(lacking & PRODUCTS)):
            raise UnsupportedError(
                f"{products} has no BF16 at opset {opset}, and the model cannot be raised to opset"
                f" {_BF16_OPSET} as it is ({', '.join(problems)}); export it at opset {_BF16_OPSET}"
                " or newer, or use FP16"
            )
        return None
    return _raise(model, _BF16_OPSET)


def _gains_bf16(node: ir.Node, opset: int) -> bool:
    """Whether a node may be in BF16 at the newer opset, and not at the present one."""
    old, new = schema_of(node.op_type, opset), schema_of(node.op_type, _BF16_OPSET)
    if node.domain or old is None or new is None:
        return False
    if new.deprecated:  # what it is rewritten as has the type
        return True
    before, after = allowed_types(old, node, BFLOAT16), allowed_types(new, node, BFLOAT16)
    return before != after and any((*after[0], *after[1]))


def require_opset(model: ir.Model, opset: int, purpose: str) -> RaisedOpset | None:
    """Give a model at least an opset, with every node computing what it did.

    Args:
        model: The model, normalized.
        opset: The lowest opset that will do, at least 13.
        purpose: What needs it, for the error: ``"FP16 scales"``.

    Returns:
        How it was raised; None if the model stays at its own opset.

    Raises:
        UnsupportedError: an operator has no equal form at the newer opset. The model is unchanged.
    """
    present = opset_of(model)
    if present >= opset:
        return None
    if problems := opset_problems(model, opset):
        raise UnsupportedError(
            f"{purpose} need opset {opset}; the model has opset {present} and cannot be raised as"
            f" it is ({', '.join(problems)}): export it at opset {opset} or newer"
        )
    return _raise(model, opset)


def opset_problems(model: ir.Model, opset: int) -> list[str]:
    """What keeps a model from being raised to an opset, one text for each kind of problem."""
    present = opset_of(model)
    if present < _OLDEST:
        return [f"opset {present} is too old"]
    nodes = [node for node in all_nodes(model.graph) if not node.domain]
    if present < opset and any(_lacks_facts(node) for node in nodes):
        infer_values(model)
    problems = (problem for node in nodes for problem in _problems(node, present, opset))
    return list(dict.fromkeys(problems))


def _problems(node: ir.Node, present: int, opset: int) -> Iterator[str]:
    for old, new in schema_steps(node, present, opset):
        rule = _RULES.get((node.op_type, new.since_version))
        if rule is not None:
            problem = rule.problem(node)
        else:
            problem = "" if not new.deprecated and same_meaning(old, new) else _CHANGED
        if problem:
            yield f"{node.op_type} {problem}"


def schema_steps(
    node: ir.Node, present: int, opset: int
) -> list[tuple[onnx.defs.OpSchema, onnx.defs.OpSchema]]:
    """The changes of an operator between two opsets, as schemas before and after, in order."""
    steps = []
    new = schema_of(node.op_type, opset)
    while new is not None and new.since_version > present:
        old = schema_of(node.op_type, new.since_version - 1)
        if old is None:  # of another opset, or none
            break
        steps.append((old, new))
        new = old
    return steps[::-1]


def _raise(model: ir.Model, opset: int) -> RaisedOpset:
    present, names = opset_of(model), NameAuthority(model)
    counts: Counter[str] = Counter()
    for node in list(all_nodes(model.graph)):
        steps = () if node.domain else schema_steps(node, present, opset)
        rules = [_RULES.get((node.op_type, new.since_version)) for _, new in steps]
        rewrites = [rule.rewrite for rule in rules if rule is not None and rule.rewrite is not None]
        counts[node.op_type] += bool(rewrites)
        for rewrite in rewrites:
            rewrite(ReplacementBuilder(node, names, opset))
    model.opset_imports[""] = opset
    model.ir_version = max(model.ir_version, _IR_VERSION)
    return RaisedOpset(opset, dict(+counts))


class _Rule(NamedTuple):
    """What to do about a change of an operator.

    Attributes:
        rewrite: Changes the node, or replaces it; None where it stays as it is.
        problem: Explains why it cannot be; empty where it can.
    """

    rewrite: Callable[[ReplacementBuilder], None] | None
    problem: Callable[[ir.Node], str] = lambda _: ""


def _add_input(new: ReplacementBuilder, index: int, values: object, kind: type = np.int64) -> None:
    """Make a constant the input of a node that stays."""
    node = new.node
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, new.constant(np.array(values, kind)))


def _attribute_as_input(name: str, index: int = 1) -> Callable[[ReplacementBuilder], None]:
    """A rewrite that makes a constant input of an attribute of whole numbers."""

    def rewrite(new: ReplacementBuilder) -> None:
        attribute = new.node.attributes.pop(name, None)
        if attribute is not None:
            _add_input(new, index, attribute.as_ints())

    return rewrite


def _drop(*names: str) -> Callable[[ReplacementBuilder], None]:
    """A rewrite that leaves out attributes, which say nothing about inference."""

    def rewrite(new: ReplacementBuilder) -> None:
        for name in names:
            new.node.attributes.pop(name, None)

    return rewrite


def _number_of_parts(new: ReplacementBuilder) -> None:
    if input_of(new.node, 1) is None:
        count = len(new.node.outputs)
        new.node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", count)


def _largest_count(new: ReplacementBuilder) -> None:
    _add_input(new, 1, [new.node.attributes.pop("k").as_int()])


def _slice_bounds(new: ReplacementBuilder) -> None:
    for index, name in enumerate(("starts", "ends", "axes"), 1):
        _attribute_as_input(name, index)(new)


def _kind_problem(node: ir.Node) -> str:
    x = node.inputs[0]
    return "of a value of unknown type" if x is None or x.dtype is None else ""


def _numpy_kind(node: ir.Node) -> type:
    x = node.inputs[0]
    assert x is not None and x.dtype is not None  # noqa: PT018, S101  # for the type checker
    return x.dtype.numpy().type


def _clip_limits(new: ReplacementBuilder) -> None:
    for index, name in enumerate(("min", "max"), 1):
        limit = new.node.attributes.pop(name, None)
        if limit is not None:
            _add_input(new, index, limit.as_float(), _numpy_kind(new.node))


def _padding(new: ReplacementBuilder) -> None:
    value = new.node.attributes.pop("value", None)
    _attribute_as_input("pads")(new)
    if value is not None:
        _add_input(new, 2, value.as_float(), _numpy_kind(new.node))


def _mask_problem(node: ir.Node) -> str:
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    used = mask is not None and (mask.uses() or mask.is_graph_output())
    return "with a mask, whose type changed" if used else ""


def _spatial_problem(node: ir.Node) -> str:
    return "" if node.attributes.get_int("spatial", 1) else "with a mean for each element"


def _training_problem(node: ir.Node) -> str:
    return "with the outputs of training" if any(v.name for v in node.outputs[1:]) else ""


def _without_training_outputs(new: ReplacementBuilder) -> None:
    new.node.resize_outputs(1)


def _flattening(new: ReplacementBuilder) -> None:
    """A softmax over all axes from one on, as one over the last axis."""
    node = new.node
    x, axis = node.inputs[0], node.attributes.get_int("axis", 1)
    if x is not None and x.shape is not None and axis in (-1, len(x.shape) - 1):
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        return
    shape = new.add("Shape", [x], _INT64)
    flat = new.add("Flatten", [x], axis=axis)
    new.replace(new.add("Reshape", [new.add(node.op_type, [flat], axis=-1), shape]))


def _resize(new: ReplacementBuilder, scales: ir.Value | None) -> None:
    node = new.node
    mode = node.attributes.get_string("mode", "nearest")
    resized = new.add(
        "Resize",
        [node.inputs[0], None, scales],
        mode="linear" if mode == "bilinear" else mode,
        coordinate_transformation_mode="asymmetric",
        # An inverse that is a whole number is one but for rounding.
        nearest_mode="round_prefer_floor" if _is_reduction(node) else "floor",
    )
    new.replace(resized)


def _upsample(new: ReplacementBuilder) -> None:
    scales = new.node.attributes.get("scales")
    given = input_of(new.node, 1)
    if scales is not None:
        given = new.constant(np.array(scales.as_floats(), np.float32))
    _resize(new, given)


def _scales_of(node: ir.Node) -> list[float] | None:
    """The scales of a ``Resize`` or ``Upsample`` before opset 11; None where they are computed."""
    if "scales" in node.attributes:
        return list(node.attributes["scales"].as_floats())
    scales = input_of(node, 1)
    constant = None if scales is None else constant_of(scales)
    return None if constant is None else constant.numpy().tolist()


def _is_reduction(node: ir.Node) -> bool:
    return any(scale < 1 for scale in _scales_of(node) or ())


def _resize_problem(node: ir.Node) -> str:
    """Up to opset 10 it is not specified which element is nearest where an axis shrinks."""
    if node.attributes.get_string("mode", "nearest") != "nearest":
        return ""
    scales = _scales_of(node)
    if scales is None:
        return "to the nearest by computed scales"
    if min(scales) < 1 < max(scales):
        return "to the nearest that shrinks one axis and stretches another"
    inverses = [1 / scale for scale in scales if scale < 1]
    whole = all(abs(inverse - round(inverse)) < _ROUNDING for inverse in inverses)
    return "" if whole else "to the nearest by a scale without a whole inverse"


def _coordinates_problem(node: ir.Node) -> str:
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    return "with tf_half_pixel_for_nn" if mode == "tf_half_pixel_for_nn" else ""


def _one_hot_problem(node: ir.Node) -> str:
    indices = input_of(node, 0)
    constant = None if indices is None else constant_of(indices)
    known = constant is not None and bool((constant.numpy() >= 0).all())
    return "" if known else "of indices that may be negative"


def _scatter(new: ReplacementBuilder) -> None:
    axis = new.node.attributes.get_int("axis", 0)
    new.replace(new.add("ScatterElements", new.node.inputs, axis=axis))


def _region_coordinates(new: ReplacementBuilder) -> None:
    name = "coordinate_transformation_mode"
    new.node.attributes[name] = ir.AttrString(name, "output_half_pixel")


_SAMPLING = {"bilinear": "linear", "bicubic": "cubic"}


def _sampling_mode(new: ReplacementBuilder) -> None:
    mode = new.node.attributes.get_string("mode", "bilinear")
    new.node.attributes["mode"] = ir.AttrString("mode", _SAMPLING.get(mode, mode))


def _transform_axis(new: ReplacementBuilder) -> None:
    axis = new.node.attributes.pop("axis", None)
    _add_input(new, 2, 1 if axis is None else axis.as_int())


def _channels(node: ir.Node) -> int | None:
    x = node.inputs[0]
    if x is None or x.shape is None or len(x.shape) < 2:
        return None
    channels = x.shape[1]
    return channels if isinstance(channels, int) else None


def _group_problem(node: ir.Node) -> str:
    return "of an unknown number of channels" if _channels(node) is None else ""


def _group_parameters(new: ReplacementBuilder) -> None:
    """Scale and bias of each group, as those of its channels."""
    node, channels = new.node, _channels(new.node)
    groups = node.attributes["num_groups"].as_int()
    assert channels is not None  # noqa: S101  # for the type checker
    for index in (1, 2):
        value = node.inputs[index]
        assert value is not None  # noqa: S101  # for the type checker
        constant = constant_of(value)
        if constant is not None:
            repeated = new.constant(constant.numpy().repeat(channels // groups))
        else:
            column = new.reshaped(value, [groups, 1])
            wide = new.constant(np.array([groups, channels // groups]))
            expanded = new.add("Expand", [column, wide], value.dtype)
            repeated = new.reshaped(expanded, [channels])
        node.replace_input_with(index, repeated)
    new.insert_before()


_REDUCTIONS = op_set(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSumSquare"
)
_RULES: dict[tuple[str, int], _Rule] = {
    **{(operator, 18): _Rule(_attribute_as_input("axes")) for operator in _REDUCTIONS},
    **{
        (operator, 13): _Rule(_attribute_as_input("axes"))
        for operator in ("ReduceSum", "Squeeze", "Unsqueeze")
    },
    **{(op, 13): _Rule(_flattening) for op in ("Softmax", "LogSoftmax", "Hardmax")},
    ("BatchNormalization", 9): _Rule(_drop("spatial"), _spatial_problem),
    ("BatchNormalization", 14): _Rule(_without_training_outputs, _training_problem),
    ("Clip", 11): _Rule(_clip_limits, _kind_problem),
    ("DFT", 20): _Rule(_transform_axis),
    ("Dropout", 10): _Rule(None, _mask_problem),
    ("Dropout", 12): _Rule(_drop("ratio")),
    ("GridSample", 20): _Rule(_sampling_mode),
    ("GroupNormalization", 21): _Rule(_group_parameters, _group_problem),
    ("OneHot", 11): _Rule(None, _one_hot_problem),
    ("Pad", 11): _Rule(_padding, _kind_problem),
    ("Resize", 11): _Rule(lambda new: _resize(new, input_of(new.node, 1)), _resize_problem),
    ("Resize", 13): _Rule(None, _coordinates_problem),
    ("RoiAlign", 16): _Rule(_region_coordinates),
    ("Scatter", 11): _Rule(_scatter),
    ("Slice", 10): _Rule(_slice_bounds),
    ("Split", 13): _Rule(_attribute_as_input("split")),
    ("Split", 18): _Rule(_number_of_parts),
    ("TopK", 10): _Rule(_largest_count),
    ("Upsample", 9): _Rule(None),
    ("Upsample", 10): _Rule(_upsample, _resize_problem),
}
"""By operator and the opset that writes it in another way."""


def _lacks_facts(node: ir.Node) -> bool:
    """Whether a rule for a node may need a type or a shape that is not given."""
    if node.op_type not in _TYPED or not node.inputs:
        return False
    x = node.inputs[0]
    return x is not None and (x.dtype is None or x.shape is None)


_TYPED = op_set("Clip Pad Softmax LogSoftmax Hardmax GroupNormalization")
