"""Compute integers of types that TensorRT lacks in INT32 and INT64, and operations on their bits.

After an operation that can leave the range of its type, the result is wrapped as that type wraps.
UINT64 is INT64 with the same bits: exact below 2**63, and modulo 2**64 where nothing compares,
divides or converts larger numbers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from trt_native.errors import UnsupportedError
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import (
    CASTS,
    DATA_MOVEMENT_OPS,
    SHAPES,
    all_nodes,
    dtype_of,
    op_set,
    opset_of,
)
from trt_native.graph.onnx_file import dtype_name
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass, count_text
from trt_native.passes.replace_types import attribute_type
from trt_native.passes.replacement import NameAuthority, ReplacementBuilder

__all__ = ["LowerIntegers", "lower_integers"]

_INT8, _UINT8 = ir.DataType.INT8, ir.DataType.UINT8
_INT32, _INT64, _UINT64 = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT64
_CARRIERS = {
    ir.DataType.INT16: _INT32,
    ir.DataType.UINT16: _INT32,
    ir.DataType.UINT32: _INT64,
    _UINT64: _INT64,
}
_BYTES = {_INT8: _INT32, _UINT8: _INT32}  # TensorRT has them as inputs and outputs
_WRAPPED = op_set("Add Sub Mul Div Neg Abs Sum ReduceSum ReduceProd CumSum Pow Range")
_CONVERTED = CASTS | op_set("BitCast")
_COMPUTED = op_set("Clip Min Max Mod Sign Equal Less Greater LessOrEqual GreaterOrEqual") | _WRAPPED
_DIRECT = (
    DATA_MOVEMENT_OPS | SHAPES | _COMPUTED - _WRAPPED | op_set(
        "Constant ConstantOfShape Where If ReduceMin ReduceMax TopK ArgMax ArgMin OneHot Relu"
    )
)  # fmt: skip

_CARRIED = _DIRECT | _WRAPPED | _CONVERTED


class _Types(NamedTuple):
    """The types of a node's inputs and outputs in the original."""

    reads: tuple[ir.DataType | None, ...]
    makes: tuple[ir.DataType | None, ...]


class LowerIntegers(GraphPass):
    """INT32 or INT64 for integers of other types, and arithmetic for operations on bits.

    Inputs and outputs of INT16, UINT16, UINT32 and UINT64 become INT32 or INT64.
    """

    name = "lower_integers"
    title = "Lowering integer types"
    early = True

    def needed(self, model: ir.Model) -> bool:
        """Whether there is a type that TensorRT lacks, or an operation on bits."""
        if any(node.op_type in _BITS and not node.domain for node in all_nodes(model.graph)):
            return True
        return any(kind in _CARRIERS for kind in _present(model)) or bool(_computed_bytes(model))

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Lower them; see :func:`lower_integers`."""
        return lower_integers(model)

    def summarize(self, record: Mapping[str, Any]) -> str:
        """Inputs and outputs of another type, constants, and operations on bits."""
        parts = []
        if changed := {**record.get("inputs", {}), **record.get("outputs", {})}:
            named = ", ".join(f"{name} ({text})" for name, text in changed.items())
            parts.append(f"inputs and outputs of another integer type: {named}")
        kinds = (*_CARRIERS, *_BYTES)
        parts += [
            f"{dtype_name(kind)} constants as {dtype_name({**_CARRIERS, **_BYTES}[kind])}: {count}"
            for kind in kinds
            if (count := record.get("constants", {}).get(dtype_name(kind)))
        ]
        if counted := count_text(record.get("nodes", {})):
            parts.append(f"integer arithmetic rewritten: {counted}")
        return "; ".join(parts) or self.title


@wraps_graph_errors
def lower_integers(model: ir.Model) -> dict[str, Any]:
    """Compute integers that TensorRT lacks in INT32 or INT64, in place.

    Returns:
        ``inputs`` and ``outputs``: by name, the old and the new type of those that changed.
        ``constants``: how many became another type, by the old one. ``nodes``: how many were
        rewritten, by operator.

    Raises:
        UnsupportedError: an operator has no such form, or a constant does not fit INT64.
    """
    infer_values(model)
    carriers = dict(_CARRIERS)
    carriers |= {kind: _BYTES[kind] for kind in _computed_bytes(model)}
    types = {node: _types_of(node) for node in all_nodes(model.graph)}
    _check(types, carriers)
    record: dict[str, Any] = {
        mode: {
            str(value.name): f"{dtype_name(kind)} as {dtype_name(_CARRIERS[kind])}"
            for value in values
            if (kind := value.dtype) in _CARRIERS
        }
        for mode, values in (("inputs", model.graph.inputs), ("outputs", model.graph.outputs))
    }
    record["constants"] = _convert_values(model, carriers)
    names, opset = NameAuthority(model), opset_of(model)
    counts: Counter[str] = Counter()
    for node, kinds in types.items():
        if node.domain:
            continue
        lowering = _IntegerLowering(ReplacementBuilder(node, names, opset), kinds, carriers)
        if lowering.rewrite():
            counts[node.op_type] += 1
    _cast_at_the_border(model, carriers, names)
    record["nodes"] = dict(counts)
    return {key: found for key, found in record.items() if found}


def _types_of(node: ir.Node) -> _Types:
    return _Types(tuple(map(dtype_of, node.inputs)), tuple(map(dtype_of, node.outputs)))


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (*graph.inputs, *graph.initializers.values(), *graph.outputs)
    for node in all_nodes(model.graph):
        yield from node.outputs


def _present(model: ir.Model) -> Iterator[ir.DataType | None]:
    yield from map(dtype_of, _values(model))
    for node in all_nodes(model.graph):
        yield from map(attribute_type, node.attributes.values())


def _computed_bytes(model: ir.Model) -> frozenset[ir.DataType]:
    """Which types of one byte are computed in, by operators that have a form in INT32 alone."""
    found: set[ir.DataType | None] = set()
    left: set[ir.DataType | None] = set()
    for node in all_nodes(model.graph):
        kinds = {*_types_of(node).reads, *_types_of(node).makes}
        if node.domain or not _is_known(node):
            left |= kinds
        elif node.op_type not in CASTS:
            found |= kinds & {_UINT8}
            if node.op_type in _COMPUTED or node.op_type in _BITS:
                found |= kinds & {_INT8}
    return frozenset(kind for kind in found - left if kind)


def _is_known(node: ir.Node) -> bool:
    return node.op_type in _CARRIED or node.op_type in _BITS


def _check(types: Mapping[ir.Node, _Types], carriers: Mapping[ir.DataType, ir.DataType]) -> None:
    problems = []
    for node, kinds in types.items():
        found = [kind for kind in (*kinds.reads, *kinds.makes) if kind in carriers]
        if found and (node.domain or not _is_known(node)):
            problems.append(f"{_named(node)} computes in {dtype_name(found[0])}")
        if node.op_type == "BitCast" and not _is_integer_bit_cast(kinds):
            problems.append(f"{_named(node)} reads the bits of floating-point numbers")
    if problems:
        raise UnsupportedError(
            "TensorRT does not have these, and there is no exact form in INT32 or INT64:",
            problems=list(dict.fromkeys(problems)),
        )


def _is_integer_bit_cast(kinds: _Types) -> bool:
    read, made = kinds.reads[0], kinds.makes[0]
    whole = read is ir.DataType.BOOL or (read is not None and read.is_integer())
    return whole and made is not None and bool(made.is_integer())


def _named(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name!r}"


def _convert_values(model: ir.Model, carriers: Mapping[ir.DataType, ir.DataType]) -> dict[str, int]:
    """Give values, constants and attributes the type that carries them."""
    border = {*model.graph.inputs, *model.graph.outputs}
    counts: Counter[str] = Counter()
    for value in {id(value): value for value in _values(model)}.values():
        tensor = value.const_value
        old = value.dtype if tensor is None else tensor.dtype
        if old is None or old not in carriers or (old in _BYTES and value in border):
            continue
        value.type = ir.TensorType(carriers[old])
        if tensor is not None:
            counts[dtype_name(old)] += 1
            value.const_value = _converted(tensor, carriers[old])
    for node in all_nodes(model.graph):
        for name, attribute in list(node.attributes.items()):
            kind = attribute_type(attribute)
            if kind is None or kind not in carriers or node.op_type in _CONVERTED:
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                tensor = _converted(attribute.as_tensor(), carriers[kind])
                node.attributes[name] = ir.AttrTensor(name, tensor)
            else:
                node.attributes[name] = ir.AttrInt64(name, int(carriers[kind]))
    return dict(counts)


def _converted(tensor: ir.TensorProtocol, new: ir.DataType) -> ir.TensorProtocol:
    if tensor.dtype is _UINT64 and tensor.numpy().max(initial=0) > np.iinfo(np.int64).max:
        raise UnsupportedError(
            f"the constant {tensor.name!r} is uint64 with values above those of int64, which is"
            " TensorRT's largest type"
        )

    def convert() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(new.numpy()), name=tensor.name)

    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(convert, dtype=new, shape=shape, name=tensor.name)


def _cast_at_the_border(
    model: ir.Model, carriers: Mapping[ir.DataType, ir.DataType], names: NameAuthority
) -> None:
    """Keep inputs and outputs of one byte, with casts inside."""
    graph = model.graph
    for value in graph.inputs:
        if value.dtype in _BYTES and value.dtype in carriers and value.uses():
            inner = names.value(value, "wide", carriers[value.dtype])
            cast = ir.node("Cast", [value], {"to": int(carriers[value.dtype])}, outputs=[inner])
            value.replace_all_uses_with(inner)
            cast.replace_input_with(0, value)
            graph.insert_before(graph[0], cast)
    for index, value in enumerate(graph.outputs):
        producer = value.producer()
        if value.dtype not in _BYTES or value.dtype not in carriers or producer is None:
            continue
        kind, name = value.dtype, value.name
        inner = names.value(value, "wide", carriers[kind])
        outer = ir.Value(name=name, shape=value.shape, type=ir.TensorType(kind))
        value.name, value.type = inner.name, inner.type
        graph.append(ir.node("Cast", [value], {"to": int(kind)}, outputs=[outer]))
        graph.outputs[index] = outer


class _IntegerLowering:
    """Arithmetic of integers in the place of a node."""

    def __init__(
        self,
        builder: ReplacementBuilder,
        kinds: _Types,
        carriers: Mapping[ir.DataType, ir.DataType],
    ) -> None:
        self.builder = builder
        self.node = builder.node
        self.kinds = kinds
        self._carriers = carriers

    def rewrite(self) -> bool:
        """Replace the node where its type, or TensorRT, needs that."""
        operator, made = self.node.op_type, self.kinds.makes[0]
        if operator in _BITS:
            self.builder.replace(_BITS[operator](self))
        elif operator in _CONVERTED:
            return self._convert()
        elif operator in _WRAPPED and made and made in self._carriers and made is not _UINT64:
            kind = self.carrier(made)
            options = {name: a.value for name, a in self.node.attributes.items()}
            found = self.builder.add(operator, self.node.inputs, kind, **options)
            self.builder.replace(self.wrapped(found, made, kind))
        else:
            return False
        return True

    def carrier(self, kind: ir.DataType) -> ir.DataType:
        """The type in which numbers of a type are computed."""
        return self._carriers.get(kind, kind)

    def constant(self, number: int | list[int], kind: ir.DataType) -> ir.Value:
        """A constant; numbers from 2**63 on have the bits of INT64."""
        numbers = number if isinstance(number, list) else [number]
        bits = np.array([one % 2**64 for one in numbers], np.uint64).view(np.int64)
        array = bits.astype(kind.numpy())
        return self.builder.constant(array if isinstance(number, list) else array.reshape(()))

    def wrapped(self, x: ir.Value, kind: ir.DataType, within: ir.DataType) -> ir.Value:
        """Numbers modulo the range of a type, in a larger type."""
        bits = _width(kind)
        if bits == _width(within):
            return x
        modulus = self.constant(2**bits, within)
        if not kind.is_signed():
            return self.builder.add("Mod", [x, modulus], within)
        half = self.constant(2 ** (bits - 1), within)
        above = self.builder.add(
            "Mod", [self.builder.add("Add", [x, half], within), modulus], within
        )
        return self.builder.add("Sub", [above, half], within)

    def cast(self, x: ir.Value, kind: ir.DataType) -> ir.Value:
        """Numbers in another type."""
        return self.builder.add("Cast", [x], kind, to=int(kind))

    def _convert(self) -> bool:
        source, target = self.kinds.reads[0], self.kinds.makes[0]
        x = self.node.inputs[0]
        changes = {source, target} & set(self._carriers) or self.node.op_type == "BitCast"
        if x is None or target is None or not changes:
            return False
        before, after = source and self.carrier(source), self.carrier(target)
        integers = bool(target.is_integer())
        fits = _holds(target, source) or not integers
        if before is _INT64 and not fits:
            wrapped = self.wrapped(x, target, _INT64)
            found = self.cast(wrapped, after)
        elif fits or after is target:
            inside = x if fits or not integers else self._wrapped_in_place(x, target, before)
            found = self.cast(inside, after)
        else:
            found = self.wrapped(self.cast(x, after), target, after)
        self.builder.replace(found)
        return True

    def _wrapped_in_place(
        self, x: ir.Value, target: ir.DataType, within: ir.DataType | None
    ) -> ir.Value:
        if within is None or not within.is_integer() or _width(within) <= _width(target):
            return x
        return self.wrapped(x, target, within)


def _width(kind: ir.DataType) -> int:
    return np.iinfo(kind.numpy()).bits


def _holds(kind: ir.DataType, other: ir.DataType | None) -> bool:
    """Whether an integer type has all numbers of another type."""
    if other is ir.DataType.BOOL:
        return True
    if other is None or not other.is_integer() or not kind.is_integer():
        return False
    limits, needed = np.iinfo(kind.numpy()), np.iinfo(other.numpy())
    return bool(limits.min <= needed.min and limits.max >= needed.max)


# Operations on bits


def _operands(low: _IntegerLowering) -> tuple[list[ir.Value], ir.DataType]:
    kind = low.kinds.makes[0]
    if kind is None:
        raise UnsupportedError(f"the type of {_named(low.node)} is neither given nor inferred")
    return [value for value in low.node.inputs if value is not None], kind


def _shift(low: _IntegerLowering) -> ir.Value:
    """Products with and quotients by powers of two, which come from a table.

    Shifts by less than 0 or by all the bits leave the sign alone.
    """
    (x, by), kind = _operands(low)
    add, bits, within = low.builder.add, _width(kind), low.carrier(kind)
    left = low.node.attributes.get_string("direction") == "LEFT"
    last = 0 if left else 2 ** min(bits, _width(within) - 1)
    table = low.constant([*(2**index for index in range(bits)), last], within)
    zero, most, ones = (low.constant(number, within) for number in (0, bits, -1))
    steps = add("Min", [by, most], within)
    if kind.is_signed() or kind is _UINT64:
        steps = add("Where", [add("Less", [by, zero], ir.DataType.BOOL), most, steps], within)
    powers = add("Gather", [table, steps], within)
    if left:
        return low.wrapped(add("Mul", [x, powers], within), kind, within)
    if not kind.is_signed():
        return add("Div", [x, powers], within)
    negative = add("Less", [x, zero], ir.DataType.BOOL)
    above = add("Where", [negative, add("Sub", [ones, x], within), x], within)
    found = add("Div", [above, powers], within)
    return add("Where", [negative, add("Sub", [ones, found], within), found], within)


def _not(low: _IntegerLowering) -> ir.Value:
    (x,), kind = _operands(low)
    within = low.carrier(kind)
    every = -1 if kind.is_signed() else 2 ** (_width(kind)) - 1
    return low.builder.add("Sub", [low.constant(every, within), x], within)


def _bitwise(combine: Callable[[_IntegerLowering, list[ir.Value], ir.DataType], ir.Value]) -> Any:
    """Split numbers into bits along a new last axis, combine these, and add them up."""

    def rule(low: _IntegerLowering) -> ir.Value:
        values, kind = _operands(low)
        bits = _width(kind)
        within = _INT32 if bits < 32 else _INT64
        result = low.carrier(kind)
        parts = [
            _bits(low, value if result is within else low.cast(value, within), kind, within)
            for value in values
        ]
        powers = low.constant([2**index for index in range(bits)], within)
        weighted = low.builder.add("Mul", [combine(low, parts, within), powers], within)
        total = _summed(low, weighted, bits)
        if kind.is_signed():
            total = low.wrapped(total, kind, within)
        return total if result is within else low.cast(total, result)

    return rule


def _summed(low: _IntegerLowering, x: ir.Value, count: int) -> ir.Value:
    """The sum over the last axis, in pairs: a ReduceSum of large numbers is not exact."""
    add, kind, axis = low.builder.add, x.dtype, low.constant([-1], _INT64)
    while count > 1:
        count //= 2
        ends = [low.constant([end], _INT64) for end in (0, count, 2 * count)]
        halves = [
            add("Slice", [x, start, end, axis], kind) for start, end in itertools.pairwise(ends)
        ]
        x = add("Add", halves, kind)
    return add("Squeeze", [x, axis], kind)


def _bits(low: _IntegerLowering, x: ir.Value, kind: ir.DataType, within: ir.DataType) -> ir.Value:
    add, bits = low.builder.add, _width(kind)
    axis = low.constant([-1], _INT64)
    below = min(bits, 63)
    negative = None
    if bits == 64:
        negative = add("Less", [x, low.constant(0, within)], ir.DataType.BOOL)
        quarter = low.constant(2**62, within)  # TensorRT takes 0 for one number of -2**63 in a sum
        raised = add("Add", [add("Add", [x, quarter], within), quarter], within)
        x = add("Where", [negative, raised, x], within)
    elif kind.is_signed():
        x = add("Mod", [x, low.constant(2**bits, within)], within)
    powers = low.constant([2**index for index in range(below)], within)
    quotients = add("Div", [add("Unsqueeze", [x, axis], within), powers], within)
    found = add("Mod", [quotients, low.constant(2, within)], within)
    if negative is None:
        return found
    top = add("Unsqueeze", [low.cast(negative, within), axis], within)
    return add("Concat", [found, top], within, axis=-1)


def _xor(low: _IntegerLowering, parts: list[ir.Value], kind: ir.DataType) -> ir.Value:
    return low.builder.add(
        "Mod", [low.builder.add("Add", parts, kind), low.constant(2, kind)], kind
    )


def _combined(operator: str) -> Any:
    return _bitwise(lambda low, parts, kind: low.builder.add(operator, parts, kind))


_BITS: Mapping[str, Callable[[_IntegerLowering], ir.Value]] = {
    "BitShift": _shift,
    "BitwiseNot": _not,
    "BitwiseAnd": _combined("Mul"),
    "BitwiseOr": _combined("Max"),
    "BitwiseXor": _bitwise(_xor),
}
