"""Names, values and nodes that passes add to a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from trt_native.graph.nodes import all_nodes, bodies

__all__ = ["KEEP_FP32_KEY", "ORIGIN_KEY", "NameAuthority", "ReplacementBuilder", "RewriteRule"]

ORIGIN_KEY = "trt_native.origin"
"""Key, in the metadata of an added node, of the name of the node that it replaces."""

KEEP_FP32_KEY = "trt_native.keep_fp32"
"""Key, in the metadata of a node that must not compute in fewer digits."""


class NameAuthority:
    """The names taken in a model's graph and in the bodies in it."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._taken = {value.name for node in all_nodes(model.graph) for value in node.outputs}
        for graph in model.graphs():
            self._taken |= {value.name for value in graph.inputs} | set(graph.initializers)

    def unique(self, name: str) -> str:
        """Take a name, with underscores behind it where it is taken already."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def value(self, like: ir.Value, suffix: str, dtype: ir.DataType) -> ir.Value:
        """Make a value for the output of a new node, with the shape of another, named after it."""
        shape = None if like.shape is None else ir.Shape(like.shape)
        name = self.unique(f"{like.name}__{suffix}")
        return ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Add an initializer to the graph."""
        value = ir.Value(
            name=self.unique(name), shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype), const_value=tensor,
        )  # fmt: skip
        self._graph.register_initializer(value)
        return value


class ReplacementBuilder:
    """New nodes that take the place of one, whose outputs keep their names.

    The last of them gets the node's name, the others that with a suffix. All of them have its
    metadata, and its name under :data:`ORIGIN_KEY`.

    Attributes:
        node: The node.
        opset: That of the model.
    """

    def __init__(self, node: ir.Node, names: NameAuthority, opset: int) -> None:
        self.node = node
        self.opset = opset
        self._names = names
        self._nodes: list[ir.Node] = []

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The new nodes so far."""
        return tuple(self._nodes)

    @property
    def kind(self) -> ir.DataType | None:
        """The element type of the first output or input of which one is known."""
        values = (*self.node.outputs, *self.node.inputs)
        return next((v.dtype for v in values if v is not None and v.dtype is not None), None)

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        kind: ir.DataType | None = None,
        **attributes: object,
    ) -> ir.Value:
        """Add a node; returns its output, of the replaced node's type unless another is given."""
        return self.add_with(operator, inputs, 1, attributes, kind)[0]

    def add_with(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        attributes: Mapping[str, object],
        kind: ir.DataType | None = None,
    ) -> list[ir.Value]:
        """Add a node with several outputs; returns them."""
        kind = kind or self.kind
        types = [None if kind is None else ir.TensorType(kind) for _ in range(outputs)]
        values = [
            ir.Value(name=self._names.unique(self._named(operator.lower())), type=t) for t in types
        ]
        self._append(ir.node(operator, inputs, attributes, outputs=values), operator)  # type: ignore[arg-type]
        return values

    def _append(self, node: ir.Node, operator: str) -> None:
        suffix = f"__{operator.lower()}_{len(self._nodes)}"
        node.name = f"{self.node.name}{suffix}" if self.node.name else None
        node.metadata_props.update(self.node.metadata_props)
        node.metadata_props[ORIGIN_KEY] = self.node.name or ""
        self._nodes.append(node)

    def adopt(self, model: ir.Model, inputs: Mapping[str, ir.Value]) -> list[ir.Value]:
        """Take over the nodes and constants of another model, which is left without them.

        Args:
            model: The model. Its values and nodes get new names.
            inputs: Values in the place of its inputs and initializers, by name there. Further
                initializers are added to the graph.

        Returns:
            The values in the place of its outputs.
        """
        graph = model.graph
        outputs, nodes = list(graph.outputs), list(graph)
        graph.outputs.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            taken = inputs.get(str(value.name))
            if taken is None and value.const_value is not None:
                taken = self._names.initializer(self._named(str(value.name)), value.const_value)
            if taken is not None:
                value.replace_all_uses_with(taken)
                outputs = [taken if output is value else output for output in outputs]
        graph.remove(nodes)
        for node in nodes:
            for value in (*node.outputs, *_values_inside(node)):
                if value.name:
                    value.name = self._names.unique(self._named(value.name))
            self._append(node, node.op_type)
        return outputs

    def constant(self, number: np.ndarray | np.float32) -> ir.Value:
        """Add an initializer."""
        return self._names.initializer(self._named("value"), ir.Tensor(np.asarray(number)))

    def parameter(self, suffix: str, kind: ir.DataType) -> ir.Value:
        """Make an input for a body."""
        return ir.Value(name=self._names.unique(self._named(suffix)), type=ir.TensorType(kind))

    def reshaped(self, value: ir.Value, shape: list[int]) -> ir.Value:
        """Reshape a value; its type stays."""
        return self.add("Reshape", [value, self.constant(np.array(shape))], value.dtype)

    def replace(self, *values: ir.Value | None) -> None:
        """Replace the node's outputs by new values; None for an output that is not used."""
        graph, node = self.node.graph, self.node
        assert graph is not None  # noqa: S101  # for the type checker
        self._nodes[-1].name = node.name
        pairs = [(old, new) for old, new in zip(node.outputs, values, strict=True) if new]
        old, new = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        ir.convenience.replace_nodes_and_values(graph, node, [node], self._nodes, old, new)

    def insert_before(self) -> None:
        """Put the new nodes in front of the node, which stays."""
        graph = self.node.graph
        assert graph is not None  # noqa: S101  # for the type checker
        graph.insert_before(self.node, self._nodes)

    def _named(self, suffix: str) -> str:
        named = (value.name for value in self.node.outputs if value.name)
        return f"{next(named, self.node.op_type)}__{suffix}"


def _values_inside(node: ir.Node) -> Iterator[ir.Value]:
    """The values that the bodies of a node make, whose names must differ from those around it."""
    for body in bodies(node):
        yield from body.inputs
        for inner in body:
            yield from inner.outputs
            yield from _values_inside(inner)


class RewriteRule(NamedTuple):
    """When a node is miscompiled, and how it is rewritten."""

    check: Callable[[ir.Node], bool]
    rewrite: Callable[[ReplacementBuilder], None]
