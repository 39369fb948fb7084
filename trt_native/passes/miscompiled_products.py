"""Products that TensorRT miscompiles, as the tensors at which to break a fusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from trt_native.graph.nodes import FLOAT, PRODUCTS, dtype_of, input_of, op_set
from trt_native.passes.fusion_search import (
    ELEMENTWISE,
    MOVING,
    POINTWISE,
    REDUCE,
    Point,
    back,
    behind,
    has_one_operand,
    nodes_of,
)
from trt_native.passes.zero_values import ZeroValues

__all__ = ["product_sums", "sums_of_batches", "wrong_products"]

_INFINITE_AT_0 = op_set("Log Reciprocal ReduceLogSum")
_PADDED = 8  # channels are padded to a multiple of this in FP16
_SINGULAR = op_set("Acosh Log Pow Sqrt")
"""May be infinite or NaN at 0, or where a sum with 0 is negative; Div and Reciprocal are right."""
_SUMS = op_set("Add Mean Sub Sum")


def wrong_products(model: ir.Model, *, lowered: bool) -> Iterator[Point]:
    """Where a product would read or make other numbers, as far as that shows without shapes.

    Args:
        model: The model.
        lowered: Whether FP32 arithmetic is, or will be, reduced.
    """
    yield from _casts_of_products(model)
    yield from _logarithms_in_products(model)
    yield from _infinite_operands(model)
    yield from _transposed_reductions(model)
    yield from _columns_of_products(model, lowered)
    yield from _errors_of_deconvolutions(model, lowered)


def product_sums(model: ir.Model) -> list[ir.Node]:
    """Sums of what a convolution makes."""
    return [node for node in nodes_of(model, *_SUMS) if _is_product_sum(node)]


def sums_of_batches(sums: Sequence[ir.Node]) -> Iterator[Point]:
    """A number for each image is added to the output of a convolution at the wrong places."""
    for node in sums:
        for index, value in enumerate(node.inputs):
            others = [one for one in node.inputs if one is not value]
            if (
                value is not None
                and _is_product(value)
                and any(_is_batch(o, value) for o in others)
            ):
                reason = f"{node.op_type} of Conv and of a number for each image"
                yield Point(value, ((node, index),), reason)


def _is_product_sum(node: ir.Node) -> bool:
    return any(value is not None and _is_product(value) for value in node.inputs)


def _is_product(value: ir.Value) -> bool:
    """Whether a convolution makes a value."""
    node = value.producer()
    return node is not None and node.op_type == "Conv"


def _is_batch(value: ir.Value | None, images: ir.Value) -> bool:
    """Whether a value has one element for each of some images, as far as shapes are known."""
    if value is None or value.shape is None or images.shape is None:
        return False
    batch, *others = [*value.shape] or [1]
    return len(others) + 1 == len(images.shape) and batch != 1 and set(others) == {1}


def _logarithms_in_products(model: ir.Model) -> Iterator[Point]:
    """Where a product pads what it reads, the logarithm or reciprocal of that is infinite."""
    for product in nodes_of(model, "MatMul", "Gemm"):
        for node, _ in back(product.inputs, _INFINITE_AT_0):
            if node.op_type in REDUCE or any(back(node.inputs, REDUCE)):
                value = node.outputs[0]
                reason = f"{product.op_type} of {node.op_type} of a reduction"
                yield Point(value, tuple(value.uses()), reason)


def _infinite_operands(model: ir.Model) -> Iterator[Point]:
    """Where a product pads what it reads, elementwise nodes make infinities or NaN of that."""
    zeros = ZeroValues(model, POINTWISE, MOVING)
    for product in nodes_of(model, "MatMul", "Gemm", "Einsum"):
        for index, value in enumerate(product.inputs[:2]):
            if value is None or len(product.inputs) < 2:  # a reduction, if it is an Einsum
                continue
            singular = next((n.op_type for _, n, _ in behind([value]) if _is_singular(n)), None)
            if singular is not None and not zeros.is_finite(value):
                yield Point(value, ((product, index),), f"{product.op_type} of {singular}")


def _is_singular(node: ir.Node) -> bool:
    return node.op_type in _SINGULAR and not node.domain


def _transposed_reductions(model: ir.Model) -> Iterator[Point]:
    """A product of a reduction, transposed, reads other elements."""
    for product in nodes_of(model, "MatMul", "Gemm"):
        for index, value in enumerate(product.inputs[:2]):
            turned = bool(product.attributes.get_int(("transA", "transB")[index], 0))
            between = list(behind([value], REDUCE))
            turned = turned or any(node.op_type == "Transpose" for _, node, _ in between)
            for one, node, _ in between:
                if turned and (node.op_type in REDUCE or has_one_operand(node)):
                    reason = f"{product.op_type} of {node.op_type}, transposed"
                    yield Point(one, tuple(one.uses()), reason)


def _columns_of_products(model: ir.Model, lowered: bool) -> Iterator[Point]:
    """A pointwise convolution below FP32, and an operand that is one row or one column."""
    for node in model.graph:
        if node.domain or node.op_type not in ELEMENTWISE or len(node.inputs) != 2:
            continue
        for index, value in enumerate(node.inputs):
            product = None if value is None else value.producer()
            other = node.inputs[1 - index]
            if value is None or product is None or other is None or product.op_type != "Conv":
                continue
            weight = input_of(product, 1)
            reduced = weight is not None and (lowered or dtype_of(weight) != FLOAT)
            if weight is not None and reduced and _is_pointwise(weight) and _is_row(other, weight):
                reason = f"{node.op_type} of a pointwise Conv and of rows or columns"
                yield Point(value, ((node, index),), reason)


def _errors_of_deconvolutions(model: ir.Model, lowered: bool) -> Iterator[Point]:
    """The error function of a transposed convolution in FP16, of channels that it pads."""
    for node in nodes_of(model, "Erf"):
        for product, _ in back(node.inputs, frozenset({"ConvTranspose"})):
            weight, value = input_of(product, 1), product.outputs[0]
            reduced = weight is not None and (lowered or dtype_of(weight) != FLOAT)
            if weight is not None and reduced and not _fills_channels(product, weight):
                yield Point(value, tuple(value.uses()), f"Erf of {product.op_type}")


def _fills_channels(product: ir.Node, weight: ir.Value) -> bool:
    """Whether a transposed convolution is known to make a multiple of 8 channels."""
    channels = None if weight.shape is None or len(weight.shape) < 2 else weight.shape[1]
    groups = product.attributes.get_int("group", 1)
    return isinstance(channels, int) and channels * groups % _PADDED == 0


def _is_pointwise(weight: ir.Value) -> bool:
    """Whether a weight is one of windows of one element."""
    return weight.shape is not None and set(weight.shape[2:]) == {1}


def _is_row(other: ir.Value, weight: ir.Value) -> bool:
    """Whether a value is broadcast along some of a convolution's spatial axes, but not all."""
    if other.shape is None or weight.shape is None:
        return False
    extents = [1] * (len(weight.shape) - len(other.shape)) + list(other.shape)
    along = [extent == 1 for extent in extents[2:]]
    return any(along) and not all(along)


def _casts_of_products(model: ir.Model) -> Iterator[Point]:
    """A product that is cast to integers or booleans behind elementwise nodes at most."""
    for cast in nodes_of(model, "Cast"):
        kind = ir.DataType(cast.attributes.get_int("to", 0))
        if kind.is_integer() or kind == ir.DataType.BOOL:
            for product, _ in back(cast.inputs, PRODUCTS | {"Einsum"}):
                value = product.outputs[0]
                reason = f"{product.op_type} that is cast to integers"
                yield Point(value, tuple(value.uses()), reason)
