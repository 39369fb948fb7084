"""Facts about single nodes and values of a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import onnx_ir as ir

FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def op_set(names: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(names.split())


# These copy values: a cast gives the same result before or after them.
DATA_MOVEMENT_OPS = op_set(
    "Identity Dropout Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile Concat Split Slice "
    "Gather GatherElements GatherND Pad CenterCropPad Trilu DepthToSpace SpaceToDepth Compress "
    "ReverseSequence ScatterElements ScatterND"
)
CASTS = op_set("Cast CastLike")
PRODUCTS = op_set("MatMul Gemm Conv ConvTranspose")
SHAPES = op_set("Shape Size")  # read no values
QDQ = op_set("QuantizeLinear DequantizeLinear")
RANDOM_OPS = op_set(
    "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial"
)


def all_nodes(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Nodes of a graph and of the bodies in it."""
    return iter(ir.traversal.RecursiveGraphIterator(graph))


def constant_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of the output of a ``Constant``; None for other values."""
    return ir.convenience.get_const_tensor(value)


def dtype_of(value: ir.Value | None) -> ir.DataType | None:
    """The element type of a constant or of any other value; None where it is unknown."""
    if value is None:
        return None
    constant = constant_of(value)
    return value.dtype if constant is None else constant.dtype


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def ints_of(node: ir.Node, name: str) -> list[int]:
    """The integers of an attribute; none where it is left out."""
    return list(node.attributes.get_ints(name, []))


def is_fp32(value: ir.Value | None) -> bool:
    """Whether a value is an FP32 tensor."""
    if value is None:
        return False
    dtype = value.dtype if value.const_value is None else value.const_value.dtype
    return dtype == FLOAT and (value.type is None or isinstance(value.type, ir.TensorType))


def free_inputs(node: ir.Node) -> list[ir.Value]:
    """The FP32 inputs that are not constants."""
    return [v for v in node.inputs if v is not None and is_fp32(v) and constant_of(v) is None]


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs directly inside a node, such as the branches of an ``If``."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def opset_of(model: ir.Model) -> int:
    """Version of the standard operators that a model uses."""
    return model.opset_imports.get("", 1)


def allowed_types(
    schema: onnx.defs.OpSchema, node: ir.Node, dtype: ir.DataType
) -> tuple[list[bool], list[bool]]:
    """Whether the schema lets each input, and each output, of a node have a type."""
    name = f"tensor({dtype.name.lower()})"
    variables = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}

    def check(parameters: Sequence[Any], count: int) -> list[bool]:
        # The last parameter may be variadic.
        strings = [parameters[min(i, len(parameters) - 1)].type_str for i in range(count)]
        return [name in variables.get(string, (string,)) for string in strings]

    return check(schema.inputs, len(node.inputs)), check(schema.outputs, len(node.outputs))


def scale_of(value: ir.Value | None) -> ir.Value | None:
    """The scale of a dequantized value, past nodes that move it; None for any other value."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            return node.inputs[1]
        if node.op_type not in DATA_MOVEMENT_OPS:
            return None
        value = node.inputs[0]
    return None
