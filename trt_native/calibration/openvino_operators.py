"""The operators that OpenVINO computes as ONNX says, as far as that was measured.

``openvino_operators.json`` holds, for each version of an operator, features of nodes: the types of
inputs and outputs, and attributes that are not at their default. A node is trusted if each of its
features is there. ``scripts/openvino_nodes.py`` measures them, against :mod:`trt_native.reference`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from trt_native.graph.nodes import DATA_MOVEMENT_OPS, SHAPES, bodies, constant_of, dtype_of, op_set
from trt_native.schemas import schema_of

__all__ = ["FILE", "Measurement", "measurement", "node_features", "trusted_nodes"]

FILE = Path(__file__).with_name("openvino_operators.json")

_LARGEST = 2**31 - 1
"""The largest integer that OpenVINO has on a CPU: it computes INT64 as INT32."""

_TYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.BOOL: "bool",
}
# Their integers are those that they read, numbers of elements, or fewer.
_BOUNDED = (
    DATA_MOVEMENT_OPS | SHAPES | op_set("Where Max Min Clip ReduceMax ReduceMin ArgMax ArgMin")
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured.

    Attributes:
        openvino: Version of OpenVINO.
        onnx: Version of onnx, whose node tests were run.
        trusted: Operator to its versions, each with the features of nodes that were right.
        wrong: Operator to what is not trusted of it: a feature, with a test that was wrong.
    """

    openvino: str
    onnx: str
    trusted: Mapping[str, Mapping[str, frozenset[str]]]
    wrong: Mapping[str, Mapping[str, str]]


@functools.cache
def measurement() -> Measurement:
    """Read what was measured."""
    data = json.loads(FILE.read_text(encoding="utf-8"))
    trusted = {
        operator: {
            since: frozenset(features)
            for several, features in versions.items()
            for since in several.split()
        }
        for operator, versions in data["trusted"].items()
    }
    return Measurement(data["openvino"], data["onnx"], trusted, data["wrong"])


def trusted_nodes(model: ir.Model) -> set[ir.Node]:
    """The nodes of a main graph that OpenVINO computes right.

    Args:
        model: The model, its types inferred; its constants are initializers.
    """
    opset = model.opset_imports.get("", 1)
    known = measurement().trusted
    counted = {value for value in model.graph.initializers.values() if _is_integer(value)}
    trusted = set()
    for node in model.graph:
        if _counts(node, counted):
            counted.update(value for value in node.outputs if _is_integer(value))
        schema = schema_of(node.op_type, opset) if node.domain == "" else None
        if schema is None or any(True for _ in bodies(node)) or not _is_bounded(node, counted):
            continue
        found = known.get(node.op_type, {}).get(str(schema.since_version), frozenset())
        if found and found.issuperset(node_features(node, schema)):
            trusted.add(node)
    return trusted


def _is_integer(value: ir.Value) -> bool:
    dtype = dtype_of(value)
    return dtype is not None and dtype.is_integer()


def _counts(node: ir.Node, counted: set[ir.Value]) -> bool:
    """Whether the integers of a node are extents, or computed from extents and constants."""
    if node.op_type in SHAPES:
        return True
    read = [value for value in node.inputs if value is not None]
    return bool(read) and all(value in counted for value in read)


def _is_bounded(node: ir.Node, counted: set[ir.Value]) -> bool:
    """Whether the integers that a node makes fit INT32 where those that it reads do."""
    made = [value for value in node.outputs if _is_integer(value)]
    read = [value for value in node.inputs if value is not None]
    if not made or node.op_type in _BOUNDED or all(value in counted for value in made):
        return True
    return node.op_type in ("Cast", "CastLike") and read[0].dtype in (
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.BOOL,
    )


def node_features(node: ir.Node, schema: onnx.defs.OpSchema) -> Iterator[str]:
    """What distinguishes nodes of an operator.

    Args:
        node: The node; the types of its values are known.
        schema: The operator's schema.

    Yields:
        The types of inputs and outputs, such as ``float32 int64= -> float32``: constants have an
        equals sign, inputs left out are dashes. Then the attributes that are not at their default.
    """
    inputs = [_described(value) for value in node.inputs]
    outputs = [_described(value if value.name else None) for value in node.outputs]
    yield f"{_signature(inputs, schema.inputs)} -> {_signature(outputs, schema.outputs)}"
    for name, attribute in node.attributes.items():
        value = attribute.value
        known = schema.attributes.get(name)
        if known is not None and known.default_value.type:
            default = onnx.helper.get_attribute_value(known.default_value)
            if value == (default.decode() if isinstance(default, bytes) else default):
                continue
        yield f"{name}={value}" if isinstance(value, str) else name
    if any(_is_large(value) for value in node.inputs if value is not None):
        yield "constant beyond int32"
    if node.op_type == "Resize" and any(_is_fractional(v) for v in node.inputs[2:3]):
        yield "fractional scales"


def _described(value: ir.Value | None) -> str:
    if value is None:
        return "-"
    constant = constant_of(value)
    dtype = value.dtype if constant is None else constant.dtype
    name = _TYPES.get(dtype, str(dtype)) if dtype is not None else "unknown"
    return name if constant is None else f"{name}="


def _signature(values: Iterable[str], formal: Any) -> str:
    """The values in words; those of a list of any length each once."""
    words = list(values)
    while words and words[-1] == "-":
        words.pop()
    if formal and formal[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic:
        first = len(formal) - 1
        words[first:] = sorted(set(words[first:]))
    return " ".join(words)


def _is_fractional(value: ir.Value | None) -> bool:
    constant = None if value is None else constant_of(value)
    return constant is not None and any(float(n) % 1 for n in constant.numpy().ravel())


def _is_large(value: ir.Value) -> bool:
    constant = constant_of(value)
    if constant is None or constant.dtype != ir.DataType.INT64 or not constant.size:
        return False
    array = constant.numpy()
    return bool(array.max() > _LARGEST or array.min() < -_LARGEST)
