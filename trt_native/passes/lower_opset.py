"""Lower a model to an older opset, whose operators compute the same.

A node goes as it is where the older operator has the same meaning, and all that the node uses: its
attributes, inputs, outputs, modes and types. A few are written in the older form. What has neither
is refused by name: ``onnx.version_converter`` changes the numbers of some of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from trt_native.errors import UnsupportedError
from trt_native.graph.nodes import all_nodes, allowed_types, constant_of, input_of, op_set, opset_of
from trt_native.graph.opset import same_meaning
from trt_native.graph.pools import POOLS
from trt_native.passes.raise_opset import schema_steps
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder
from trt_native.schemas import schema_of

__all__ = ["OLDEST_OPSET", "lower_opset", "lowering_problems"]

OLDEST_OPSET = 13
"""The oldest opset that models are lowered to."""

# Values of an attribute that an opset added, by operator, attribute and that opset.
_ADDED_VALUES = {
    ("Pad", "mode", 19): ("wrap",),
    ("Resize", "coordinate_transformation_mode", 19): ("half_pixel_symmetric",),
    ("ScatterElements", "reduction", 18): ("max", "min"),
    ("ScatterND", "reduction", 18): ("max", "min"),
}
_OLDER_SAMPLING = {"linear": "bilinear", "cubic": "bicubic"}
_OLDEST_IR_VERSION = 8


class _Rule(NamedTuple):
    """How a node is written as before a change of its operator.

    Attributes:
        rewrite: Changes the node; None where it stays as it is.
        problem: Explains why it cannot be; empty where it can.
    """

    rewrite: Callable[[ReplacementBuilder], None] | None
    problem: Callable[[ir.Node], str]


def lowering_problems(model: ir.Model, opset: int) -> list[str]:
    """What keeps a model from being lowered to an opset, one text for each kind of problem.

    Args:
        model: The model, normalized, with the types of its values.
        opset: The older opset.
    """
    if opset < OLDEST_OPSET:
        return [f"models are not lowered to opsets before {OLDEST_OPSET}"]
    present = opset_of(model)
    nodes = (node for node in all_nodes(model.graph) if not node.domain)
    return list(dict.fromkeys(text for node in nodes for text in _problems(node, present, opset)))


def lower_opset(model: ir.Model, opset: int) -> dict[str, int]:
    """Lower a model to an older opset, in place.

    Args:
        model: The model, normalized, with the types of its values.
        opset: The older opset.

    Returns:
        How many nodes of which operator were rewritten.

    Raises:
        UnsupportedError: a node has no form there. The model is unchanged.
    """
    if problems := lowering_problems(model, opset):
        raise UnsupportedError(
            f"the model has opset {opset_of(model)} and cannot be lowered to opset {opset}:"
            f" {', '.join(problems)}",
            options=("opset",),
        )
    present, names = opset_of(model), NameAuthority(model)
    counts: Counter[str] = Counter()
    for node in list(all_nodes(model.graph)):
        for old, new in () if node.domain else reversed(schema_steps(node, opset, present)):
            rule = _RULES.get((node.op_type, new.since_version))
            if rule is not None and rule.rewrite is not None:
                rule.rewrite(ReplacementBuilder(node, names, opset))
                counts[node.op_type] += 1
            for name in node.attributes.keys() - old.attributes.keys():
                del node.attributes[name]  # of its default
    model.opset_imports[""] = opset
    imports = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()]
    needed = onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)
    model.ir_version = min(model.ir_version, max(needed, _OLDEST_IR_VERSION))
    return dict(counts)


def _problems(node: ir.Node, present: int, opset: int) -> Iterator[str]:
    oldest = schema_of(node.op_type, opset)
    if oldest is None or oldest.deprecated:
        yield f"{node.op_type} is newer"
        return
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    for old, new in reversed(schema_steps(node, opset, present)):
        rule = _RULES.get((node.op_type, new.since_version))
        if any(v.type is not None and not isinstance(v.type, ir.TensorType) for v in values):
            yield f"{node.op_type} of sequences or optional values may be newer"
            return
        problem = rule.problem(node) if rule else _change_problem(node, old, new)
        if problem:
            yield f"{node.op_type} {problem}"
            return
    if missing := sorted(_missing_types(node, oldest)):
        yield f"{node.op_type} in {' and '.join(missing)} is newer"


def _change_problem(node: ir.Node, old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> str:
    since = new.since_version
    if not same_meaning(old, new):
        return f"was changed by opset {since}"
    for name, attribute in node.attributes.items():
        added = _ADDED_VALUES.get((node.op_type, name, since), ())
        if added and attribute.as_string() in added:
            return f"with {name} {attribute.as_string()} is newer"
        is_added = name in new.attributes and name not in old.attributes
        if is_added and not _is_default(attribute, new.attributes[name]):
            return f"with {name} is newer"
    for side, values, before, least in (
        ("inputs", node.inputs, old.inputs, old.min_input),
        ("outputs", node.outputs, old.outputs, old.min_output),
    ):
        count = _count(values)
        if count < least or (count > len(before) and not _is_variadic(before)):
            return f"with {count} {side} is newer"
    return ""


def _is_default(attribute: ir.Attr, declared: onnx.defs.OpSchema.Attribute) -> bool:
    """Whether an attribute has the value that it has without being given."""
    if attribute.is_ref():
        return False
    if attribute.name == "dilations":
        return set(attribute.as_ints()) == {1}
    if not declared.default_value.name:
        return False
    return bool(attribute.value == onnx.helper.get_attribute_value(declared.default_value)) or (
        attribute.type == ir.AttributeType.STRING
        and attribute.as_string().encode() == declared.default_value.s
    )


def _count(values: Sequence[ir.Value | None]) -> int:
    """The number of values up to the last that is used."""
    used = [i for i, value in enumerate(values) if value is not None and value.name]
    return used[-1] + 1 if used else 0


def _is_variadic(parameters: Sequence[Any]) -> bool:
    last = parameters[-1] if parameters else None
    return last is not None and last.option == onnx.defs.OpSchema.FormalParameterOption.Variadic


def _missing_types(node: ir.Node, schema: onnx.defs.OpSchema) -> Iterator[str]:
    """The types of a node that its operator does not have."""
    types = [
        value.type.dtype if value is not None and isinstance(value.type, ir.TensorType) else None
        for value in (*node.inputs, *node.outputs)
    ]
    for dtype in set(types) - {None}:
        assert dtype is not None  # noqa: S101  # for the type checker
        inputs, outputs = allowed_types(schema, node, dtype)
        for own, allowed in zip(types, (*inputs, *outputs), strict=True):
            if own is dtype and not allowed:
                yield dtype.name
                break


def _axes_problem(node: ir.Node) -> str:
    axes = input_of(node, 1)
    if axes is not None and constant_of(axes) is None:
        return "with computed axes is newer"
    return "that may reduce nothing is newer" if _reduces_nothing(node) else ""


def _reduces_nothing(node: ir.Node) -> bool:
    axes = input_of(node, 1)
    given = None if axes is None else constant_of(axes)
    empty = axes is None or (given is not None and given.size == 0)
    return empty and bool(node.attributes.get_int("noop_with_empty_axes", 0))


def _axes_as_attribute(new: ReplacementBuilder) -> None:
    node = new.node
    axes = input_of(node, 1)
    constant = None if axes is None else constant_of(axes)
    if constant is not None and constant.size:
        numbers = [int(axis) for axis in np.atleast_1d(constant.numpy())]
        node.attributes["axes"] = ir.AttrInt64s("axes", numbers)
    node.resize_inputs(1)


def _parts(node: ir.Node) -> list[int] | None:
    """The extents of the parts of a ``Split`` that gives their number; None where not known."""
    x, count = node.inputs[0], len(node.outputs)
    axis = node.attributes.get_int("axis", 0)
    extent = None if x is None or x.shape is None else x.shape[axis]
    if not isinstance(extent, int):
        return None
    part = -(-extent // count)
    parts = [min(part, extent - part * i) for i in range(count)]
    return parts if min(parts) >= 0 else None


def _parts_problem(node: ir.Node) -> str:
    counted = input_of(node, 1) is None
    return "into a number of parts of an unknown extent" if counted and not _parts(node) else ""


def _parts_as_input(new: ReplacementBuilder) -> None:
    node = new.node
    parts = None if input_of(node, 1) is not None else _parts(node)
    if parts is not None:
        node.resize_inputs(2)
        node.replace_input_with(1, new.constant(np.array(parts, np.int64)))


def _sampling_problem(node: ir.Node) -> str:
    x = node.inputs[0]
    rank = None if x is None or x.shape is None else len(x.shape)
    return "" if rank == 4 else "of another rank than 4 is newer"


def _older_sampling(new: ReplacementBuilder) -> None:
    mode = new.node.attributes.get_string("mode", "linear")
    new.node.attributes["mode"] = ir.AttrString("mode", _OLDER_SAMPLING.get(mode, mode))


def _rounding_problem(node: ir.Node) -> str:
    """Up to opset 21 it is not specified whether a last window may be in the padding."""
    return "with ceil_mode was changed" if node.attributes.get_int("ceil_mode", 0) else ""


_REDUCTIONS = op_set(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSumSquare"
)
_RULES = {
    **{(operator, 18): _Rule(_axes_as_attribute, _axes_problem) for operator in _REDUCTIONS},
    **{(pool, 22): _Rule(None, _rounding_problem) for pool in POOLS},
    ("GridSample", 20): _Rule(_older_sampling, _sampling_problem),
    ("Split", 18): _Rule(_parts_as_input, _parts_problem),
}
"""By operator and the opset that writes it in another way."""
