"""The matrix products of a graph that compute in INT8 or FP8, and their tensors.

Nothing here changes the graph.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import onnx_ir as ir

from trt_native.config import BLOCK_SIZES, QUANTIZED_OPS
from trt_native.errors import SpecError
from trt_native.graph.nodes import BFLOAT16, FLOAT, FLOAT16, all_nodes, op_set
from trt_native.graph.patterns import match_nodes
from trt_native.graph.quantizable import QUANTIZABLE_OPS, constant_values, residual_adds
from trt_native.passes.autocast_operators import ACCUMULATES_UNSCALED
from trt_native.passes.block_arrays import whole_block

__all__ = [
    "COPY_OPS",
    "DEFAULT_PRESET",
    "DIFFUSION_UNET",
    "QUANTIZE_PRESETS",
    "REASONS",
    "WEIGHTS_ONLY",
    "Format",
    "Product",
    "ProductSelection",
    "QuantizedOperand",
    "SkipReason",
    "Weight",
    "attention_operands",
    "count_by_operator",
    "default_ops",
    "find_weight",
]

Format: TypeAlias = Literal["int8", "fp8", "int8-weights", "int4-weights"]
WEIGHTS_ONLY = ("int8-weights", "int4-weights")

DEFAULT_PRESET, DIFFUSION_UNET = "default", "diffusion-unet"

QUANTIZE_PRESETS: Mapping[str, frozenset[str]] = {
    DEFAULT_PRESET: frozenset(),
    # Where the error of a denoising step comes from: what meets latents and noise directly, what
    # carries the timestep, and the way around each residual block.
    DIFFUSION_UNET: op_set(
        "conv_in conv_out conv_shortcut nin_shortcut skip_connection time_embedding time_embed "
        "time_proj time_emb_proj emb_layers add_embedding label_emb"
    ),
}
"""Parts of the dotted or slashed names of nodes and weights that a preset leaves alone."""

COPY_OPS = op_set("Identity Transpose Cast")
"""Operators that may be between a weight's initializer and the product that reads it."""

_FLOATS = frozenset({FLOAT, FLOAT16, BFLOAT16})
_SMALL = 16  # channels; what INT8 saves below this is less than the conversion costs
_SEPARATORS = re.compile(r"[./:]+")
# What scores may pass through on their way to the softmax, and probabilities after it.
_AROUND_SOFTMAX = op_set(
    "Add Sub Mul Div Where Clip Min Max Tanh Cast Identity Dropout Reshape Transpose Squeeze "
    "Unsqueeze Expand Slice Pad"
)


class SkipReason(str, enum.Enum):
    """Why a matrix product keeps its floating-point arithmetic."""

    SKIP = "skip"  # the user asked for it
    PRESET = "preset"  # the preset asks for it
    OPERATOR = "operator"  # not one of the operators to quantize
    SMALL = "small"  # fewer than 16 channels in or out
    ATTENTION = "attention"  # one of the two products around a softmax
    WEIGHT = "weight"  # no constant weight where one is needed
    LEFT = "left"  # INT4 from the left, with which TensorRT-RTX 1.5 to 1.7 end the process
    BLOCKS = "blocks"  # no matrix that has two whole blocks along each sum
    RANGE = "range"  # an activation has no range
    SUBGRAPH = "subgraph"  # inside a body of If, Loop or Scan


REASONS = {
    SkipReason.SKIP: "skipped by pattern",
    SkipReason.PRESET: "left alone by the preset",
    SkipReason.OPERATOR: "not among the operators",
    SkipReason.SMALL: f"fewer than {_SMALL} channels",
    SkipReason.ATTENTION: "attention",
    SkipReason.WEIGHT: "no constant weight",
    SkipReason.LEFT: "weights from the left",
    SkipReason.BLOCKS: "no whole blocks",
    SkipReason.RANGE: "no range",
    SkipReason.SUBGRAPH: "in a subgraph",
}
"""The reasons for a person."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """A constant operand.

    Attributes:
        value: What the node reads.
        source: The initializer it comes from.
        perm: How the source is transposed on the way; None if it is not.
    """

    value: ir.Value
    source: ir.Value
    perm: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class QuantizedOperand:
    """One input of a product.

    Attributes:
        index: Its number among the node's inputs.
        value: What the node reads.
        dtype: The type that the node reads it in, dequantized.
        weight: Where the value comes from, if it is a weight.
        axis: The axis of a weight's output channels.
        block: Number of weights with one scale, along the axis that the product sums over; 0 for
            one scale of each output channel.
    """

    index: int
    value: ir.Value
    dtype: ir.DataType
    weight: Weight | None = None
    axis: int = 0
    block: int = 0


@dataclasses.dataclass(frozen=True)
class Product:
    """A node to quantize, and the inputs to quantize."""

    node: ir.Node
    operands: tuple[QuantizedOperand, ...]

    @property
    def widened(self) -> bool:
        """Whether it is to compute in FP32 in a model in FP16."""
        return any(o.dtype == FLOAT and o.value.dtype == FLOAT16 for o in self.operands)


class ProductSelection:
    """Decides about every matrix product of a model.

    Args:
        model: The model, with types on the values of its main graph, functions inlined, and
            constants lifted to initializers.
        ranges: Largest magnitude of each activation, by tensor name.
        format: What to quantize to.
        ops: Operators to quantize.
        skip: Patterns of nodes to leave alone.
        preset: One of :data:`QUANTIZE_PRESETS`.
        block_sizes: For INT4, the sizes that blocks may have.

    Attributes:
        chosen: What to quantize.
        skipped: What not, and why.
        residuals: Node and index of each residual sum's input that comes past a quantized
            convolution, to be quantized too.
        without_range: Activations that have no range though a product needs one.
        patterns: For each pattern of ``skip``, the number of nodes that match.

    Raises:
        SpecError: a pattern, or the preset, matches nothing.
    """

    def __init__(
        self,
        model: ir.Model,
        ranges: Mapping[str, float],
        *,
        format: Format,  # noqa: A002
        ops: Sequence[str],
        skip: Sequence[str],
        preset: str,
        block_sizes: Sequence[int] = BLOCK_SIZES,
    ) -> None:
        self.block_sizes = tuple(block_sizes)
        self.graph = model.graph
        self.ranges = ranges
        self.format = format
        self.ops = frozenset(ops)
        self.chosen: list[Product] = []
        self.skipped: dict[ir.Node, SkipReason] = {}
        self.without_range: dict[str, None] = {}
        nodes = list(all_nodes(model.graph))
        matches = match_nodes(nodes, skip, ("exclude", "keep_fp32"))
        self.patterns = {pattern: len(found) for pattern, found in matches.items()}
        self._unwanted = {node for found in matches.values() for node in found}
        self._constants = constant_values(model.graph)
        products = [node for node in nodes if _is_product(node)]
        self._sensitive = _sensitive(products, preset)
        for node in products:
            self._decide(node)
        # A U-Net's skip paths run through all of it: what they lose is never made good.
        sums = format == "int8" and preset == DEFAULT_PRESET
        self.residuals = list(self._residuals()) if sums else []

    def quantizable(self) -> list[ir.Node]:
        """All products, chosen or not."""
        return [*(product.node for product in self.chosen), *self.skipped]

    def _decide(self, node: ir.Node) -> None:
        operands = tuple(self._operands(node))
        reason = self._asked_for(node) or self._unfit(node, operands)
        if reason is None:
            missing = [
                operand.value.name or ""
                for operand in operands
                if operand.weight is None and (operand.value.name or "") not in self.ranges
            ]
            self.without_range.update(dict.fromkeys(missing))
            reason = SkipReason.RANGE if missing else None
        if reason is None:
            self.chosen.append(Product(node, operands))
        else:
            self.skipped[node] = reason

    def _asked_for(self, node: ir.Node) -> SkipReason | None:
        if node.graph is not self.graph:
            return SkipReason.SUBGRAPH
        if node.op_type not in self.ops:
            return SkipReason.OPERATOR
        if node in self._unwanted:
            return SkipReason.SKIP
        return SkipReason.PRESET if node in self._sensitive else None

    def _unfit(self, node: ir.Node, operands: tuple[QuantizedOperand, ...]) -> SkipReason | None:
        weights = [operand.weight for operand in operands if operand.weight]
        computed = [o for o in operands if o.value in self._constants and not o.weight]
        kernel = any(o.index == 1 and o.weight for o in operands)
        if computed or (node.op_type == "Conv" and not kernel):
            return SkipReason.WEIGHT
        if self.format in WEIGHTS_ONLY and not weights:
            return SkipReason.WEIGHT
        if len(weights) == len(node.inputs[:2]):
            return SkipReason.WEIGHT  # a constant that TensorRT folds
        if not weights and _is_attention(node):
            return SkipReason.ATTENTION
        if any(n < _SMALL for n in _channels(node)):
            return SkipReason.SMALL
        return self._unfit_for_blocks(operands) if self.format == "int4-weights" else None

    def _unfit_for_blocks(self, operands: tuple[QuantizedOperand, ...]) -> SkipReason | None:
        if any(operand.index == 0 for operand in operands):
            return SkipReason.LEFT
        return None if all(operand.block for operand in operands) else SkipReason.BLOCKS

    def _operands(self, node: ir.Node) -> Iterator[QuantizedOperand]:
        values = [(i, value) for i, value in enumerate(node.inputs[:2]) if value is not None]
        weights = {value: weight for _, value in values if (weight := find_weight(value))}
        alone = self.format in WEIGHTS_ONLY
        wide = not alone and weights and node.op_type in ACCUMULATES_UNSCALED
        for index, value in values:
            dtype = value.dtype or FLOAT
            dtype = FLOAT if wide and dtype == FLOAT16 else dtype
            if value in weights:
                axis = _channel_axis(node, index, value)
                block = self._block(node, value, axis) if self.format == "int4-weights" else 0
                yield QuantizedOperand(index, value, dtype, weights[value], axis, block)
            elif not alone or value in self._constants:
                yield QuantizedOperand(index, value, dtype)

    def _block(self, node: ir.Node, value: ir.Value, axis: int) -> int:
        """The size of a weight's blocks; 0 where it cannot be a matrix of whole ones."""
        extents = _extents(value) or ()
        if node.op_type == "Conv":
            extents = (extents[0], math.prod(n or 0 for n in extents[1:]))
        if len(extents) != 2 or not all(extents) or (extents[1] or 0) % 2:  # bytes hold two
            return 0
        return whole_block(extents[1 - axis] or 0, self.block_sizes)

    def _residuals(self) -> Iterator[tuple[ir.Node, int]]:
        """TensorRT adds the skip path in a convolution's own kernel, if that path is INT8 too."""
        convolutions = [p.node for p in self.chosen if p.node.op_type == "Conv"]
        for add, index in residual_adds(self.graph, convolutions):
            value = add.inputs[index]
            known = value is not None and value.name in self.ranges
            if known and add not in self._unwanted and value not in self._constants:
                yield add, index


def _is_product(node: ir.Node) -> bool:
    return (
        node.domain == ""
        and node.op_type in QUANTIZABLE_OPS
        and all(value is not None and _dtype(value) in _FLOATS for value in node.inputs[:2])
    )


def _dtype(value: ir.Value) -> ir.DataType | None:
    return value.const_value.dtype if value.const_value is not None else value.dtype


def _sensitive(products: Sequence[ir.Node], preset: str) -> set[ir.Node]:
    parts = QUANTIZE_PRESETS[preset]
    found = {node for node in products if parts.intersection(_name_parts(node))}
    if parts and not found:
        raise SpecError(
            f"preset {preset}: no node or weight of a matrix product is named after any of"
            f" {', '.join(sorted(parts))}; use preset default, and skip by pattern what is"
            " sensitive"
        )
    return found


def _name_parts(node: ir.Node) -> Iterator[str]:
    weights = (find_weight(value) for value in node.inputs[:2] if value is not None)
    for name in (node.name, *(weight.source.name for weight in weights if weight)):
        yield from _SEPARATORS.split(name or "")


def default_ops(format: str, preset: str) -> tuple[str, ...]:  # noqa: A002
    """The operators to quantize where the user names none.

    E4M3 has 3 bits of mantissa: in the convolutions along a U-Net's skip paths that costs several
    times the error of INT8, in its linear layers little.
    """
    linear_only = format == "fp8" and preset == DIFFUSION_UNET
    return ("MatMul", "Gemm") if linear_only else QUANTIZED_OPS


def find_weight(value: ir.Value) -> Weight | None:
    """Follow a value to the initializer that it is, or is a transposed or cast copy of."""
    source, perm = value, None
    while not source.is_initializer():
        node = source.producer()
        if node is None or node.domain or node.op_type not in COPY_OPS:
            return None
        upstream = node.inputs[0]
        if upstream is None or _dtype(upstream) not in _FLOATS:
            return None
        if node.op_type == "Transpose":
            step = node.attributes.get_ints("perm", None)
            if step is None:
                step = range(len(upstream.shape or ()))[::-1]
            perm = tuple(step) if perm is None else tuple(step[i] for i in perm)
        source = upstream
    return None if source.const_value is None else Weight(value, source, perm)


def _channel_axis(node: ir.Node, index: int, value: ir.Value) -> int:
    """The axis of a weight along which the output's channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        transposed = node.attributes.get_int("transB" if index else "transA", 0)
        return int(bool(transposed)) ^ index
    rank = _rank(value)
    return max(rank - 1 if index else rank - 2, 0)


def _rank(value: ir.Value) -> int:
    weight = find_weight(value)
    tensor = weight.source.const_value if weight else None
    return len(tensor.shape) if tensor is not None else len(value.shape or ())


def _extents(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape of a value, with None for what is dynamic; None if even the rank is unknown."""
    if value is None:
        return None
    weight = find_weight(value)
    if weight is not None and weight.source.const_value is not None:
        shape = weight.source.const_value.shape.numpy()
        return tuple(int(shape[i]) for i in weight.perm) if weight.perm else tuple(shape)
    if value.shape is None:
        return None
    return tuple(axis if isinstance(axis, int) else None for axis in value.shape)


def _channels(node: ir.Node) -> list[int]:
    """Channels in and out, or K and N, as far as they are known."""
    left, right = _extents(node.inputs[0]), _extents(node.inputs[1])
    found: list[int | None] = []
    if node.op_type == "Conv":
        if right is not None:
            group = node.attributes.get_int("group", 1)
            found = [right[0], right[1] and right[1] * group]
    else:
        gemm = node.op_type == "Gemm"
        if left:
            turned = gemm and bool(node.attributes.get_int("transA", 0))
            found.append(left[0 if turned else -1])
        if right is not None and len(right) > 1:
            turned = gemm and bool(node.attributes.get_int("transB", 0))
            found += [right[-1], right[-2]] if not turned else [right[0], right[1]]
        elif right is not None:
            found.append(1)  # a vector: one column
    return [extent for extent in found if extent is not None]


def attention_operands(graph: ir.Graph) -> frozenset[str]:
    """Names of the tensors that attention's own two products read, and no other product."""
    products = [node for node in graph if node.domain == "" and node.op_type in QUANTIZABLE_OPS]
    operands = {node: [v for v in node.inputs[:2] if v is not None] for node in products}
    attention = {
        node
        for node, values in operands.items()
        if not any(find_weight(value) for value in values) and _is_attention(node)
    }
    inside = {value for node in attention for value in operands[node]}
    outside = {value for node in products if node not in attention for value in operands[node]}
    return frozenset(value.name for value in inside - outside if value.name)


def _is_attention(node: ir.Node) -> bool:
    """Whether a product of two activations makes a softmax's scores, or takes its result."""
    return _leads_to_softmax(node) or _comes_from_softmax(node)


def _leads_to_softmax(node: ir.Node) -> bool:
    seen, pending = {node}, [node]
    while pending:
        users = {user for value in pending.pop().outputs for user, _ in value.uses()} - seen
        seen |= users
        if any(user.op_type == "Softmax" for user in users):
            return True
        pending += [user for user in users if user.op_type in _AROUND_SOFTMAX]
    return False


def _comes_from_softmax(node: ir.Node) -> bool:
    seen, pending = {node}, [node]
    while pending:
        makers = {value.producer() for value in pending.pop().inputs if value is not None}
        found = {maker for maker in makers if maker is not None} - seen
        seen |= found
        if any(maker.op_type == "Softmax" for maker in found):
            return True
        pending += [maker for maker in found if maker.op_type in _AROUND_SOFTMAX]
    return False


def count_by_operator(nodes: Sequence[ir.Node]) -> dict[str, int]:
    """Count nodes by operator, most frequent first."""
    return dict(Counter(node.op_type for node in nodes).most_common())
