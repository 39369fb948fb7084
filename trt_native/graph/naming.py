"""Values that a rewriting adds to a graph, under names that are free."""

from __future__ import annotations

import onnx_ir as ir

from trt_native.graph.precision_rules import all_nodes

__all__ = ["Names"]


class Names:
    """The names in a model's graph and the bodies in it; those that are added count at once."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._taken = {value.name for node in all_nodes(model.graph) for value in node.outputs}
        for graph in model.graphs():
            self._taken |= {value.name for value in graph.inputs} | set(graph.initializers)

    def unique(self, name: str) -> str:
        """The name, followed by as many underscores as it takes."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def value(self, like: ir.Value, suffix: str, dtype: ir.DataType) -> ir.Value:
        """A value for a new node to make: of another's shape, named after it."""
        shape = None if like.shape is None else ir.Shape(like.shape)
        name = self.unique(f"{like.name}__{suffix}")
        return ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A new initializer of the graph."""
        value = ir.Value(
            name=self.unique(name), shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype), const_value=tensor,
        )  # fmt: skip
        self._graph.register_initializer(value)
        return value
