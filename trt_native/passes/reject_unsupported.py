"""Reject nodes that TensorRT silently miscompiles or that end its process, and no pass rewrites.

Seen in TensorRT-RTX 1.6, and partly reported for TensorRT 10 (NVIDIA/TensorRT#4756, #4509), whose
parser is of the same source.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import onnx_ir as ir

from trt_native.errors import UnsupportedError
from trt_native.graph.caches import in_place_problem
from trt_native.graph.nodes import all_nodes, constant_of, dtype_of, input_of
from trt_native.graph.validity import wraps_graph_errors
from trt_native.passes.base import GraphPass
from trt_native.passes.extent_workarounds import computes_condition, resize_reason

__all__ = ["RejectUnsupported", "check_parser_support", "unsupported_reason"]

_MOST_NAMED = 20
_LONGEST_NAME = 4000  # TensorRT takes 4096 characters, and passes add some


@wraps_graph_errors
def check_parser_support(
    model: ir.Model, crashing: Collection[str] = (), *, in_place_caches: bool = False
) -> None:
    """Reject a normalized model that TensorRT would silently miscompile, or not survive.

    Args:
        model: The model.
        crashing: Operators that end the process.
        in_place_caches: Caches are updated in the memory of the model's inputs.

    Raises:
        UnsupportedError: there is such a node; all of them in one error.
    """
    long = [item for item in _names(model) if len(item[1]) > _LONGEST_NAME]
    if long:
        kind, name = long[0]
        others = f" and {len(long) - 1} more" if long[1:] else ""
        raise UnsupportedError(
            f"TensorRT takes no names of more than {_LONGEST_NAME:,} characters, as {kind} {name!r}"
            f" ({len(name):,}){others}; write the model with shorter ones"
        )
    found = [
        f"input {value.name!r} is an output too, and TensorRT would rename it; give the output a"
        " name of its own behind an Identity"
        for value in model.graph.inputs
        if value.is_graph_output()
    ]
    found += [
        f"{node.name or node.outputs[0].name!r} ({node.op_type}): {reason}"
        for node in all_nodes(model.graph)
        if (reason := unsupported_reason(node, crashing, in_place_caches=in_place_caches))
    ]
    if found:
        more = [f"and {len(found) - _MOST_NAMED} more"] if len(found) > _MOST_NAMED else []
        raise UnsupportedError(
            "TensorRT would miscompile these nodes without an error, or crash:",
            problems=[*found[:_MOST_NAMED], *more],
        )


class RejectUnsupported(GraphPass):
    """A check that TensorRT computes every node as ONNX says, or that a pass can make it so."""

    name = "reject_unsupported"
    title = "Checking what the parser supports"
    early = True
    rewrites = False

    def needed(self, model: ir.Model) -> bool:
        """Whether a node has no other form that TensorRT computes correctly."""
        return (
            any(value.is_graph_output() for value in model.graph.inputs)
            or any(
                unsupported_reason(node, self._crashing, in_place_caches=self._in_place)
                for node in all_nodes(model.graph)
            )
            or any(len(name) > _LONGEST_NAME for _, name in _names(model))
        )

    def rewrite(self, model: ir.Model) -> Mapping[str, Any]:
        """Raise the error; see :func:`check_parser_support`."""
        check_parser_support(model, self._crashing, in_place_caches=self._in_place)
        return {}

    @property
    def _in_place(self) -> bool:
        return self.context.config.in_place_caches

    @property
    def _crashing(self) -> Collection[str]:
        backend = self.context.backend
        return () if backend is None else backend.capabilities.crashing_operators


def _names(model: ir.Model) -> Iterator[tuple[str, str]]:
    """The names that TensorRT gets, each with what has it."""
    for value in model.graph.inputs:
        yield "input", value.name or ""
        for axis in value.shape or ():
            yield "dimension", str(getattr(axis, "value", ""))
    for graph in model.graphs():
        for name in graph.initializers:
            yield "weight", name
    for node in all_nodes(model.graph):
        yield "node", node.name or ""
        for output in node.outputs:
            yield "tensor", output.name or ""


def unsupported_reason(
    node: ir.Node, crashing: Collection[str], *, in_place_caches: bool = False
) -> str:
    """Explain how TensorRT miscompiles a node, and what to do; empty if it does not."""
    if in_place_caches and node.op_type == "TensorScatter" and not node.domain:
        problem = in_place_problem(node)
        return f"it is not updated in place: {problem}" if problem else ""
    if not node.domain and node.op_type in crashing:
        return (
            "the parser may end the process; give it a sampling_ratio, and an input whose channels,"
            " height and width are fixed, or build for another TensorRT"
        )
    rule = None if node.domain else _RULES.get(node.op_type)
    return rule(node) if rule else ""


def _quantizer_reason(node: ir.Node) -> str:
    given = ir.DataType(node.attributes.get_int("output_dtype", 0))
    weight = input_of(node, 0) if node.op_type == "DequantizeLinear" else None
    constant = None if weight is None else constant_of(weight)
    types = (given, dtype_of(input_of(node, 2)), None if constant is None else constant.dtype)
    if node.op_type == "QuantizeLinear" and not given and input_of(node, 2) is None:
        return "without a zero point it is uint8, taken as int8; give a zero point of type int8"
    if ir.DataType.UINT8 not in types:
        return ""
    return "uint8 is clipped to int8, at 127; quantize with a zero point of type int8"


def _clip_reason(node: ir.Node) -> str:
    low, high = input_of(node, 1), input_of(node, 2)
    if dtype_of(input_of(node, 0)) is not ir.DataType.INT8 or low is None or high is not None:
        return ""
    return "int8 ignores a lower limit without an upper one; give the upper limit too"


def _conv_transpose_reason(node: ir.Node) -> str:
    attributes, bias = node.attributes, input_of(node, 2)
    if "output_shape" in attributes and attributes.get_string("auto_pad", "").startswith("SAME"):
        return "output_shape is ignored next to auto_pad; give pads instead"
    padded = any(attributes.get_ints("output_padding", []))
    if padded and bias is not None and constant_of(bias) is None:
        return (
            "TensorRT omits a non-constant bias from the output_padding region; add the bias with a"
            " separate Add node"
        )
    return ""


def _non_max_suppression_reason(node: ir.Node) -> str:
    if input_of(node, 2) is not None:
        return ""
    return "without max_output_boxes_per_class the number of boxes is undefined; give it"


def _block_size_reason(node: ir.Node) -> str:
    size = node.attributes.get_int("blocksize", 0)
    return "" if size > 0 else f"blocksize {size}: blocks have at least one element; correct it"


def _space_to_depth_reason(node: ir.Node) -> str:
    if reason := _block_size_reason(node):
        return reason
    crd = node.attributes.get_string("mode", "DCR") == "CRD"
    return "mode CRD is computed as DCR; give the channels a fixed number" if crd else ""


def _attention_reason(node: ir.Node) -> str:
    if input_of(node, 6) is not None:
        return "nonpad_kv_seqlen is ignored; give a mask instead"
    query, key = _origin(input_of(node, 0)), _origin(input_of(node, 1))
    if dtype_of(query) in (None, ir.DataType.FLOAT) and _are_equal(query, key):
        return (
            "in FP32 the build ends the process where query and key are one value; write it as"
            " MatMul and Softmax"
        )
    return ""


def _origin(value: ir.Value | None) -> ir.Value | None:
    """A value in front of nodes that return it as it is."""
    while value is not None and (node := value.producer()) and node.op_type == "Identity":
        value = node.inputs[0]
    return value


def _are_equal(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether two values are one, or made from the same values by equal nodes."""
    if one is other:
        return True
    nodes = [None if value is None else value.producer() for value in (one, other)]
    first, second = nodes
    return (
        first is not None
        and second is not None
        and first.op_type == second.op_type
        and [_origin(v) for v in first.inputs] == [_origin(v) for v in second.inputs]
        and {n: a.value for n, a in first.attributes.items()}
        == {n: a.value for n, a in second.attributes.items()}
    )


def _tensor_scatter_reason(node: ir.Node) -> str:  # noqa: ARG001
    return "its output must have its input's address at run time; give its axis fixed extents"


def _loop_reason(node: ir.Node) -> str:
    if input_of(node, 1) is not None or not computes_condition(node):
        return ""
    return (
        "without a condition, while its body computes one, which ONNX ignores and other runtimes"
        " do not; give the Loop the condition true"
    )


_RULES: dict[str, Callable[[ir.Node], str]] = {
    "Loop": _loop_reason,
    "QuantizeLinear": _quantizer_reason,
    "DequantizeLinear": _quantizer_reason,
    "Clip": _clip_reason,
    "ConvTranspose": _conv_transpose_reason,
    "NonMaxSuppression": _non_max_suppression_reason,
    "DepthToSpace": _block_size_reason,
    "SpaceToDepth": _space_to_depth_reason,
    "Attention": _attention_reason,
    "Resize": resize_reason,
    "TensorScatter": _tensor_scatter_reason,
}
