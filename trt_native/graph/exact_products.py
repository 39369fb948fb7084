"""Products of FP32 numbers, for a TensorRT that computes them in TF32 whatever it is told.

TF32 keeps 11 significant bits of each operand. Every operand is split into two, ``x = hi + lo``,
with the 8 bits of BF16 in ``hi``, which TF32 holds exactly; and ``x * w`` becomes
``hi * w_hi + (x * w_lo + lo * w_hi)``, which is the same. TF32 cuts off of a term no more than
2^-16 then, of all of them together some 2^-20, where it would cut 2^-10. It takes three products
for one.

Weights are split when they are serialised, never before, so that a model larger than memory stays
on disk.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common as passes

from trt_native.errors import ModelError, UnsupportedError
from trt_native.graph.packing import read_tensor
from trt_native.graph.precision_rules import (
    BFLOAT16,
    FLOAT,
    MOVING,
    PRODUCTS,
    all_nodes,
    is_float,
    opset_of,
)
from trt_native.graph.validity import refuses_malformed

__all__ = ["has_products", "split_products"]

_OPSET = 13  # Cast knows BF16 since then


@refuses_malformed
def has_products(model: ir.Model) -> bool:
    """Whether a graph has matrix products or convolutions, in whatever type.

    Raises:
        UnsupportedError: it has, and :func:`split_products` cannot split them at its opset.
    """
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    found = {node.op_type for part in parts for node in all_nodes(part) if not node.domain}
    if not found & PRODUCTS:
        return False
    if model.opset_imports.get("", _OPSET) < _OPSET:
        raise UnsupportedError(
            f"this TensorRT computes {', '.join(sorted(found & PRODUCTS))} in TF32 unless the graph"
            f" is rewritten, which needs opset {_OPSET}; the model has opset {opset_of(model)}:"
            " export it at a newer one, or allow TF32 (--tf32)"
        )
    return True


@refuses_malformed
def split_products(model: ir.Model) -> dict[str, int]:
    """Rewrite a model, in place, so that its FP32 products are exact to about 1e-5 in TF32.

    That goes for each ``Conv``, ``ConvTranspose``, ``MatMul`` and ``Gemm`` on FP32 tensors, in
    bodies too; model-local functions are inlined first. A product between two
    ``DequantizeLinear`` stays, because TensorRT computes it in integers. Names of inputs, outputs
    and of the values that nodes make stay; a weight that is split is replaced by two with the
    suffixes ``__hi`` and ``__lo``.

    An operand that is infinite makes NaN of what would have been infinite.

    Returns:
        How many products were rewritten, by operator.

    Raises:
        ModelError: the type of a value is unknown and cannot be inferred.
        UnsupportedError: the model has products, and its opset is below 13.
    """
    if not has_products(model):
        return {}
    if model.functions:
        passes.InlinePass()(model)
    passes.RemoveInitializersFromInputsPass()(model)
    products = [
        node
        for node in all_nodes(model.graph)
        if node.op_type in PRODUCTS and not node.domain and not _is_quantized(node)
    ]
    _infer_types(model, products)
    return _Splitter(model).run(products)


class _Splitter:
    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._parts: dict[tuple[ir.Value, ir.Graph | None], tuple[ir.Value, ir.Value]] = {}
        self._taken = {v.name for node in all_nodes(model.graph) for v in node.outputs}
        for graph in model.graphs():
            self._taken |= {v.name for v in graph.inputs} | set(graph.initializers)

    def run(self, products: Iterable[ir.Node]) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for node in products:
            if any(map(is_float, _typed(node))):
                self._split_product(node)
                counts[node.op_type] += 1
        self._drop_unused(value for value, graph in self._parts if graph is None)
        return dict(counts)

    def _split_product(self, node: ir.Node) -> None:
        whole, other = node.inputs[:2]
        assert whole is not None  # noqa: S101  # for the type checker
        assert other is not None  # noqa: S101
        high, low = self._split(whole, node)
        other_high, other_low = self._split(other, node)
        main = self._product(node, "hi", high, other_high, *node.inputs[2:])
        mixed = [
            self._product(node, "whole_lo", whole, other_low),
            self._product(node, "lo_hi", low, other_high),
        ]
        rest = self._sum(node, "lo", *(product.outputs[0] for product in mixed))
        total = self._sum(node, "sum", main.outputs[0], rest.outputs[0])
        assert node.graph is not None  # noqa: S101  # for the type checker
        ir.convenience.replace_nodes_and_values(
            node.graph, node, [node], [main, *mixed, rest, total], node.outputs, total.outputs
        )

    def _product(self, node: ir.Node, suffix: str, *inputs: ir.Value | None) -> ir.Node:
        attributes = list(node.attributes.values())
        output = self._new_value(node.outputs[0], suffix)
        return ir.Node("", node.op_type, inputs, attributes, outputs=[output], name=output.name)

    def _sum(self, node: ir.Node, suffix: str, *inputs: ir.Value) -> ir.Node:
        output = self._new_value(node.outputs[0], suffix)
        return ir.Node("", "Add", inputs, outputs=[output], name=output.name)

    def _split(self, value: ir.Value, user: ir.Node) -> tuple[ir.Value, ir.Value]:
        """The two parts of an operand, which precede the node in its graph."""
        tensor = ir.convenience.get_const_tensor(value)
        key = value, user.graph if tensor is None else None
        if key not in self._parts:
            self._parts[key] = (
                self._split_value(value, user)
                if tensor is None
                else (self._weight(value, tensor, "hi"), self._weight(value, tensor, "lo"))
            )
        return self._parts[key]

    def _split_value(self, value: ir.Value, user: ir.Node) -> tuple[ir.Value, ir.Value]:
        short, high, low = (self._new_value(value, suffix) for suffix in ("bf16", "hi", "lo"))
        short.dtype = BFLOAT16
        assert user.graph is not None  # noqa: S101  # for the type checker
        user.graph.insert_before(
            user,
            [
                ir.node("Cast", [value], {"to": BFLOAT16}, outputs=[short], name=short.name),
                ir.node("Cast", [short], {"to": FLOAT}, outputs=[high], name=high.name),
                ir.node("Sub", [value, high], outputs=[low], name=low.name),
            ],
        )
        return high, low

    def _weight(self, value: ir.Value, tensor: ir.TensorProtocol, suffix: str) -> ir.Value:
        shape = ir.Shape(tensor.shape.numpy())
        name = self._unique(f"{value.name}__{suffix}")
        part = ir.LazyTensor(
            functools.partial(_part, tensor, suffix == "hi"), FLOAT, shape, name=name
        )
        weight = ir.Value(name=name, shape=shape, type=ir.TensorType(FLOAT), const_value=part)
        self._model.graph.register_initializer(weight)
        return weight

    def _drop_unused(self, weights: Iterable[ir.Value]) -> None:
        for value in weights:
            if value.uses() or value.is_graph_output() or value.graph is None:
                continue
            producer = value.producer()
            if producer is not None:
                value.graph.remove(producer)
            else:
                value.graph.initializers.pop(value.name or "", None)

    def _new_value(self, like: ir.Value, suffix: str) -> ir.Value:
        shape = None if like.shape is None else ir.Shape(like.shape)
        name = self._unique(f"{like.name}__{suffix}")
        return ir.Value(name=name, shape=shape, type=ir.TensorType(FLOAT))

    def _unique(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _infer_types(model: ir.Model, products: Iterable[ir.Node]) -> None:
    """Find out the types of all products, in bodies too."""

    def unknown() -> list[ir.Node]:
        return [node for node in products if not any(value.dtype for value in _typed(node))]

    if unknown():
        made = [value for node in all_nodes(model.graph) for value in node.outputs]
        shapes = [value.shape for value in made]
        # Leaves the weights out of what it serialises, so that size does not matter.
        passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        for value, shape in zip(made, shapes, strict=True):
            value.shape = value.shape if shape is None else shape
    for node in unknown():
        raise ModelError(
            f"the type of {node.op_type} {node.name!r} is neither given nor inferred, and in FP32"
            " it must be rewritten to keep out of TF32; add a value_info with the type of"
            f" {node.outputs[0].name!r} to the model, or allow TF32 (--tf32)"
        )


def _typed(node: ir.Node) -> list[ir.Value]:
    """The values of a product that share its type; not all of them need tell it."""
    return [value for value in (*node.inputs[:2], *node.outputs) if value is not None]


def _is_quantized(node: ir.Node) -> bool:
    return all(map(_dequantized, node.inputs[:2]))


def _dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in MOVING and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _part(tensor: ir.TensorProtocol, high: bool) -> ir.Tensor[Any]:
    array = read_tensor(tensor)
    rounded = array.astype(BFLOAT16.numpy()).astype(array.dtype)
    return ir.Tensor(rounded if high else array - rounded)
