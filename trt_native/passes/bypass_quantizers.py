"""Leave out INT8 quantization in front of products that the backend does not build in INT8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from trt_native.errors import UnsupportedError
from trt_native.graph.nodes import DATA_MOVEMENT_OPS, all_nodes, constant_of, dtype_of, input_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass, count_text

__all__ = ["BypassQuantizers", "bypass_quantizers"]


class BypassQuantizers(GraphPass):
    """Activations as they are, where the backend builds no INT8 product of them.

    The weights stay in INT8.
    """

    name = "bypass_quantizers"
    title = "Leaving out INT8 that the backend does not build"
    early = True

    def needed(self, model: ir.Model) -> bool:
        """Whether both operands of such a product are dequantized INT8."""
        return any(_is_int8_product(node) for node in self._candidates(model))

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Bypass the quantizers; see :func:`bypass_quantizers`."""
        return {"nodes": bypass_quantizers(self._candidates(model))}

    def summarize(self, record: Mapping[str, Any]) -> str:
        """The products that stay in floating point."""
        backend = self.context.backend
        product = f"{backend.product} {backend.version}" if backend else "the backend"
        counted = count_text(record["nodes"])
        return f"Q/DQ without effect, because {product} builds no INT8 for them: {counted}"

    def _candidates(self, model: ir.Model) -> list[ir.Node]:
        backend = self.context.backend
        unsupported = backend.capabilities.int8_unsupported if backend else frozenset()
        return [node for node in all_nodes(model.graph) if node.op_type in unsupported]


@wraps_graph_errors
def bypass_quantizers(products: list[ir.Node]) -> dict[str, int]:
    """Let products read activations as they are before they are quantized, in place.

    Args:
        products: Nodes to look at; those that do not multiply INT8 stay as they are.

    Returns:
        How many were changed, by operator.

    Raises:
        UnsupportedError: an operand is INT8 without having been quantized in the graph.
    """
    changed = [node for node in products if _is_int8_product(node)]
    for node in changed:
        _bypass(node)
    return dict(Counter(node.op_type for node in changed))


def _is_int8_product(node: ir.Node) -> bool:
    return not node.domain and all(_dequantizer(node, index) is not None for index in (0, 1))


def _dequantizer(node: ir.Node, index: int) -> tuple[ir.Node, ir.Node] | None:
    """The DequantizeLinear of INT8 behind an operand, past nodes that move it, and its reader."""
    reader, value = node, input_of(node, index)
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "DequantizeLinear":
            kinds = {dtype_of(input_of(producer, 0)), dtype_of(input_of(producer, 2))}
            return (producer, reader) if ir.DataType.INT8 in kinds else None
        if producer.op_type not in DATA_MOVEMENT_OPS:
            return None
        reader, value = producer, producer.inputs[0]
    return None


def _bypass(node: ir.Node) -> None:
    for index in (0, 1):
        found = _dequantizer(node, index)
        assert found is not None  # noqa: S101  # for the type checker
        dequantizer, reader = found
        source = dequantizer.inputs[0]
        quantizer = None if source is None else source.producer()
        if quantizer is not None and quantizer.op_type == "QuantizeLinear":
            given = quantizer.inputs[0]
            if given is None or constant_of(given) is not None:
                continue  # a weight, quantized at build
            position = list(reader.inputs).index(dequantizer.outputs[0])
            reader.replace_input_with(position, given)
            _remove_unused(dequantizer, quantizer)
            return
    raise UnsupportedError(
        f"{node.op_type} {node.name or node.outputs[0].name!r} multiplies INT8 numbers that are not"
        " quantized in the model, and this TensorRT does not build that; export the model without"
        " quantization, or build with another TensorRT"
    )


def _remove_unused(*nodes: ir.Node) -> None:
    for node in nodes:
        graph, output = node.graph, node.outputs[0]
        if graph is not None and not output.uses() and not output.is_graph_output():
            graph.remove(node, safe=True)
