"""Caches, such as those of keys and values, that a model takes, updates and returns."""

from __future__ import annotations

import onnx_ir as ir

from trt_native.graph.nodes import BFLOAT16, FLOAT, FLOAT16, input_of

__all__ = ["cache_updates", "in_place_problem"]

_RANK, _SEQUENCE = 4, 2  # batch, heads, sequence, features


def cache_updates(model: ir.Model) -> list[ir.Node]:
    """The nodes of the main graph that update a cache."""
    return [n for n in model.graph if n.op_type == "TensorScatter" and not n.domain]


def in_place_problem(node: ir.Node) -> str:
    """Reason why TensorRT cannot update a cache in the memory of the model's input.

    Its layer (``IKVCacheUpdateLayer``) takes caches of batch, heads, sequence and features, and the
    engine binds its output at the address of its input.

    Returns:
        Empty where it can.
    """
    cache, present = input_of(node, 0), node.outputs[0]
    if cache is None or not cache.is_graph_input():
        return "the cache is not an input of the model"
    if not present.is_graph_output():
        return "the updated cache is not an output of the model"
    if len(cache.uses()) > 1:
        return "other nodes read the cache as it was before the update"
    if input_of(node, 2) is None:
        return "it has no write indices"
    if node.attributes.get_string("mode", "linear") != "linear":
        return "its mode is not linear"
    if cache.shape is None or len(cache.shape) != _RANK:
        return "the cache does not have the four axes batch, heads, sequence and features"
    if node.attributes.get_int("axis", -2) % _RANK != _SEQUENCE:
        return "it does not write along the third axis"
    if not isinstance(cache.shape[_SEQUENCE], int):
        return "the extent of the cache's third axis is not fixed"
    if cache.dtype not in (FLOAT, FLOAT16, BFLOAT16):
        return f"the cache is {cache.dtype}"
    return ""
