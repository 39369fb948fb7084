"""The graph of an ONNX model, with weights and multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from trt_native.errors import SpecError, TrtNativeError
from trt_native.graph.dims import dimension_symbols, evaluate_dimension
from trt_native.graph.macs import folded_shapes, multiply_adds, static_shapes
from trt_native.graph.onnx_file import dtype_name, value_spec
from trt_native.graph.validity import wraps_graph_errors
from trt_native.page.graph import Graph, Node, Tensor, for_display, precision_of, shape_text
from trt_native.page.modules import module_path
from trt_native.shapes import Shape

__all__ = ["ModelGraph", "input_shapes", "model_graph"]

_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_SHAPE_OPS = ("Shape", "Size", "Constant")
_FEW = 16


@dataclass(frozen=True, slots=True)
class ModelGraph:
    """The graph of a model, and what was assumed for it.

    Attributes:
        graph: The graph.
        extents: Extent of each dynamic dimension, for the multiply-adds.
        uncounted: Matrix products whose multiply-adds are unknown.
        problem: Reason why shapes are not known; empty where they are.
    """

    graph: Graph
    extents: Mapping[str, int]
    uncounted: int
    problem: str = ""


def input_shapes(model: ir.Model, extents: Mapping[str, int]) -> dict[str, Shape]:
    """Shapes of a model's inputs; a dimension without an extent has 1.

    Args:
        model: The model.
        extents: Extents by the name of a dimension.

    Raises:
        SpecError: a name is not that of a dimension of the model.
    """
    specs = [spec for spec in map(value_spec, model.graph.inputs) if spec.shape is not None]
    texts = {axis for spec in specs for axis in spec.shape or () if isinstance(axis, str)}
    known = {name for text in texts for name in dimension_symbols(text)}
    if unknown := sorted(extents.keys() - known):
        listing = ", ".join(sorted(known)) or "none, as every input is static"
        raise SpecError(
            f"{unknown[0]!r} is not one of the model's dimensions: {listing}", options=("dims",)
        )
    given = {**dict.fromkeys(known, 1), **extents}
    return {
        spec.name: tuple(_extent(axis, given) for axis in spec.shape or ())
        for spec in specs
        if not spec.is_static
    }


def _extent(axis: int | str | None, extents: Mapping[str, int]) -> int:
    found = evaluate_dimension(axis, extents) if isinstance(axis, str) else axis
    return found if isinstance(found, int) else 1


@wraps_graph_errors
def model_graph(model: ir.Model, shapes: Mapping[str, Shape], title: str = "Model") -> ModelGraph:
    """Describe a model's nodes, those of bodies included.

    Args:
        model: The model.
        shapes: Shapes of its dynamic inputs, at which multiply-adds are counted.
        title: Name of the graph.
    """
    found, problem = _read(static_shapes, model, shapes, title)
    if found.uncounted:
        again, problem_again = _read(folded_shapes, model, shapes, title)
        if again.uncounted < found.uncounted:
            found, problem = again, problem_again
    return replace(found, problem=problem)


def _read(
    shapes_of: Callable[[ir.Model, Mapping[str, Shape]], dict[str, Shape]],
    model: ir.Model,
    shapes: Mapping[str, Shape],
    title: str,
) -> tuple[ModelGraph, str]:
    problem = ""
    known: Mapping[str, Shape] = {}
    try:
        known = wraps_graph_errors(shapes_of)(model, shapes)
    except TrtNativeError as error:
        problem = error.message
    reader = _Reader(known)
    graph = reader.read(model, title)
    return ModelGraph(graph, _extents(model, shapes), reader.uncounted), problem


def _extents(model: ir.Model, shapes: Mapping[str, Shape]) -> dict[str, int]:
    return {
        axis: extent
        for value in model.graph.inputs
        for axis, extent in zip(
            value_spec(value).shape or (), shapes.get(value.name or "", ()), strict=False
        )
        if isinstance(axis, str) and axis.isidentifier()
    }


class _Reader:
    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self._shapes = shapes
        self._numbers: dict[int, int] = {}
        self._tensors: list[Tensor] = []
        self._static: set[int] = set()  # of values that follow from constants and shapes
        self.uncounted = 0

    def read(self, model: ir.Model, title: str) -> Graph:
        supplied = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
        inputs = tuple(map(self._number, supplied))
        wanted = {id(value) for value in model.graph.outputs}
        nodes = tuple(self._nodes(model.graph, (), wanted))
        outputs = tuple(map(self._number, model.graph.outputs))
        return Graph(title, nodes, tuple(self._tensors), inputs, outputs)

    def _nodes(self, graph: ir.Graph, outer: tuple[str, ...], wanted: set[int]) -> Iterator[Node]:
        for value in graph.initializers.values():
            self._static.add(id(value))
        for node in graph:
            path = (*outer, *module_path(node.name or ""))
            yield self._node(node, path, wanted)
            for attribute in node.attributes.values():
                for body in _bodies(attribute):
                    inside = (*path, f"{for_display(node.name or node.op_type)} {attribute.name}")
                    yield from self._nodes(body, inside, {id(value) for value in body.outputs})

    def _node(self, node: ir.Node, path: tuple[str, ...], wanted: set[int]) -> Node:
        inputs = [value for value in node.inputs if value is not None]
        outputs = [value for value in node.outputs if value.name]
        computes_shapes = node.op_type in _SHAPE_OPS or (
            bool(inputs) and all(id(value) in self._static for value in inputs)
        )
        if computes_shapes:
            self._static.update(id(value) for value in outputs)
        count = self._count(node) if node.op_type in _PRODUCTS else 0
        self.uncounted += count is None
        weights = [value.const_value for value in inputs if value.is_initializer()]
        return Node(
            name=node.name or "",
            kind=f"{node.domain}::{node.op_type}" if node.domain else node.op_type,
            path=path,
            inputs=tuple(map(self._number, inputs)),
            outputs=tuple(map(self._number, outputs)),
            attributes=tuple((a.name, _attribute_text(a)) for a in node.attributes.values()),
            precision=_precision(outputs[0]) if outputs else "",
            computes_shapes=computes_shapes and not any(id(v) in wanted for v in outputs),
            weight_bytes=sum(int(weight.nbytes) for weight in weights if weight is not None),
            multiply_adds=count,
        )

    def _count(self, node: ir.Node) -> int | None:
        try:
            return wraps_graph_errors(multiply_adds)(node, self._shapes)
        except TrtNativeError:
            return None

    def _number(self, value: ir.Value) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._tensors)
            spec = value_spec(value)
            shape = spec.shape if spec.shape is not None else self._shapes.get(spec.name)
            text = "" if shape is None else shape_text(shape)
            dtype = "" if spec.dtype == "unknown" else spec.dtype
            self._tensors.append(Tensor(spec.name, dtype, text, value.is_initializer()))
        return self._numbers[id(value)]


def _precision(value: ir.Value) -> str:
    return "" if value.dtype is None else precision_of(dtype_name(value.dtype))


def _bodies(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.is_ref():
        return []
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def _attribute_text(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"attribute {attribute.ref_attr_name} of the function"
    value = attribute.value
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return " and ".join(f"{len(body)} nodes" for body in _bodies(attribute))
    if attribute.type == ir.AttributeType.TENSOR:
        return _tensor_text(value)
    if isinstance(value, (tuple, list)):
        more = f", ... ({len(value):,})" if len(value) > _FEW else ""
        return ", ".join(map(str, value[:_FEW])) + more
    return str(value)


def _tensor_text(tensor: ir.TensorProtocol) -> str:
    text = f"{dtype_name(tensor.dtype)} {shape_text(tensor.shape.numpy())}"
    if tensor.size > _FEW:
        return text
    return f"{text}: {', '.join(map(str, tensor.numpy().reshape(-1)))}"
