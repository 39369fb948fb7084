"""How large the values of a graph are, estimated from constants and operators, or measured."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from trt_native.graph.nodes import (
    DATA_MOVEMENT_OPS,
    FLOAT16,
    QDQ,
    SHAPES,
    constant_of,
    free_inputs,
    is_fp32,
)
from trt_native.passes.autocast_constants import LIMITS, ConstantRange, constant_range
from trt_native.passes.autocast_operators import (
    ARITHMETIC,
    BOUNDED,
    GROWING,
    MASKED,
    MASKED_BY,
    PASSES_MASKS,
    SOFTMAX,
    SPECTRA,
    TRANSCENDENTAL,
    TRIGONOMETRIC,
    WEIGHTED,
    ends_walk,
    folded_statistics,
    folds,
    multiplies_itself,
    quantized_levels,
    shrinks,
    squares,
)

__all__ = ["Magnitudes", "RangeProblem"]

_SMALLEST_NORMAL = 2.0**-14


class RangeProblem(enum.Enum):
    """What FP16 would do to a constant."""

    OVERFLOW = enum.auto()  # some of its elements become infinite
    UNDERFLOW = enum.auto()  # it is too small for FP16


class Magnitudes:
    """Estimates the largest magnitude of each value, on a walk down the graph.

    Ordinary values count as 1. Constants beyond FP16, powers and exponentials make larger ones,
    constants scale them, and norms and bounded functions end them. Where data was measured, that
    takes the place of the estimate. For other types than FP16 nothing is too large.

    Args:
        graph: The main graph.
        target: The type that the graph is reduced to.
        measured: For values by name, the largest magnitude that was measured.

    Attributes:
        masks: Values too large for FP16 that are clamped where they become FP16, since they say
            what to leave out; for constants, the number of elements that FP16 cannot hold.
        measured: As given.
    """

    def __init__(
        self, graph: ir.Graph, target: ir.DataType, measured: Mapping[str, float] | None
    ) -> None:
        self.masks: dict[ir.Value, int] = {}
        self._target = target
        self.measured = (measured or {}) if target == FLOAT16 else {}
        # Data does not show the largest magnitudes of all.
        self._limit = LIMITS[FLOAT16] / (2 if measured else 1)
        self._ranges: dict[ir.Value, ConstantRange] = {}
        self._peaks = {v: self.measured.get(v.name or "", 1.0) for v in graph.inputs}
        self._masking = _leading_to(graph, MASKED, PASSES_MASKS)
        self._small: set[ir.Value] = set()  # made by a function with few or small results
        self._to_bounded = _leading_to(graph, BOUNDED, ARITHMETIC | DATA_MOVEMENT_OPS)

    def exceeds(self, value: ir.Value) -> bool:
        """Whether a computed value may be too large for FP16."""
        return self._target == FLOAT16 and self._peaks.get(value, 1.0) >= self._limit

    def overflows(self) -> dict[str, float]:
        """Measured magnitudes that are too large for FP16, by value."""
        return {name: peak for name, peak in self.measured.items() if peak >= self._limit}

    def is_wide(self, node: ir.Node) -> bool:
        """Whether a node reads or makes values that FP16 cannot hold; products read masks."""
        product = node.op_type in WEIGHTED
        free, grows = free_inputs(node), node.op_type in GROWING or self.is_square(node)
        reads = any(self.exceeds(v) and not (product and v in self.masks) for v in free)
        vanishes = any(map(self._vanishes, (*free, *node.outputs)))
        return reads or vanishes or (self.makes_wide(node) and not grows)

    def _vanishes(self, value: ir.Value) -> bool:
        """Whether nothing was measured of a value that FP16 holds with all its bits."""
        return 0 < self.measured.get(value.name or "", 0) < _SMALLEST_NORMAL

    def makes_wide(self, node: ir.Node) -> bool:
        """Whether a node makes values too large for FP16."""
        return any(self.exceeds(value) for value in node.outputs if is_fp32(value))

    def is_square(self, node: ir.Node) -> bool:
        """Whether a node squares values that no bounded function takes next."""
        bounded = node.op_type == "Mul" and node.outputs[0] in self._to_bounded
        return squares(node) and not bounded

    def constant_problem(self, node: ir.Node) -> RangeProblem | None:
        """Say what FP16 would do to the constants of a node. Masks are clamped instead."""
        if node.op_type in QDQ | SHAPES:
            return None
        weights = node.op_type in WEIGHTED
        problems = set()
        for i, value in enumerate(node.inputs):
            found = self._range(value)
            if value is None or found is None or node.op_type == "BatchNormalization":
                continue
            if found.beyond and (self._target != FLOAT16 or self._is_mask(node, value)):
                self.masks[value] = found.beyond  # BF16 lacks nothing but the last of FP32's range
            elif found.beyond:
                problems.add(RangeProblem.OVERFLOW)
            flushed = self._target == FLOAT16 and node.op_type in ("Mul", "Div") and found.flushes
            small = found.lost or flushed
            if small and not (weights and i > 1):  # a bias that is lost does not matter
                problems.add(RangeProblem.UNDERFLOW)
        for tensor in _made_constants(node):
            found = constant_range(tensor, self._target)
            wide = found.beyond and self._target == FLOAT16
            if wide or found.lost:
                problems.add(RangeProblem.OVERFLOW if wide else RangeProblem.UNDERFLOW)
        return min(problems, key=lambda problem: problem.value, default=None)

    def estimate(
        self, node: ir.Node, *, computed: bool, normalised: bool, problem: RangeProblem | None
    ) -> None:
        """Note how large the outputs of a node are, and whether they are masks.

        Args:
            node: The node; those before it were noted.
            computed: Whether it reads values that may have any size, as activations do.
            normalised: Whether it scales values to an ordinary size.
            problem: The result of :meth:`constant_problem`.
        """
        if self._target != FLOAT16:
            return
        result = node.outputs[0]
        masks = any(v in self.masks and self.exceeds(v) for v in free_inputs(node)) or (
            problem is RangeProblem.OVERFLOW
            and (node.op_type == "Where" or result in self._masking)
        )
        peak = 1.0 if normalised else self._peak(node, computed)
        copies = node.op_type in DATA_MOVEMENT_OPS and self._small.issuperset(free_inputs(node))
        if copies or node.op_type in BOUNDED | SOFTMAX | TRIGONOMETRIC:
            self._small.update(node.outputs)
        for value in filter(is_fp32, node.outputs):
            self._peaks[value] = self.measured.get(value.name or "", peak)
            if masks and self.exceeds(value):
                self.masks[value] = 0

    def _peak(self, node: ir.Node, computed: bool) -> float:
        op = node.op_type
        grows = (op in GROWING and not shrinks(node)) or self.is_square(node)
        if op in SPECTRA or op == "ReduceSumSquare" or multiplies_itself(node):
            return np.inf
        free = free_inputs(node)
        computed = computed and not self._small.issuperset(free)
        if grows and (computed or any(map(self.exceeds, free))):
            return np.inf
        sizes = [self._size(v) for v in node.inputs if v is not None and is_fp32(v)]
        if op == "DequantizeLinear":
            return max(sizes, default=1.0) * quantized_levels(node)
        if op in WEIGHTED:
            sizes = [self._size(v) for v in node.inputs if v is not None and v not in self.masks]
            return max((size for size in sizes if size >= self._limit), default=1.0)
        if op in TRANSCENDENTAL | BOUNDED | SOFTMAX or ends_walk(node):
            return 1.0
        if op == "Mul":
            return float(np.prod(sizes)) if np.isfinite(sizes).all() else np.inf
        if op == "Div":
            return self._quotient(node, sizes[0])
        if op in ("Clip", "Min", "Max"):  # constants are bounds
            sizes = [self._size(v) for v in free_inputs(node)]
        return max(sizes, default=1.0)

    def _quotient(self, node: ir.Node, size: float) -> float:
        divisor = node.inputs[1]
        if divisor is None or (divisor.const_value is None and self.exceeds(divisor)):
            return 1.0
        found = self._range(divisor)
        return size / found.smallest if found is not None else size

    def _size(self, value: ir.Value) -> float:
        found = self._range(value)
        if found is None:
            return self._peaks.get(value, 1.0)
        return 1.0 if value in self.masks else found.largest

    def _range(self, value: ir.Value | None) -> ConstantRange | None:
        """Magnitudes of an FP32 constant; None for other values."""
        tensor = constant_of(value) if value is not None and is_fp32(value) else None
        if value is None or tensor is None:
            return None
        if value not in self._ranges:
            self._ranges[value] = constant_range(tensor, self._target)
        return self._ranges[value]

    def _is_mask(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether a constant beyond FP16 only says what a softmax leaves out."""
        tensor = constant_of(value)
        masks = node.op_type in MASKED_BY and node.outputs[0] in self._masking
        return tensor is not None and tensor.size > 1 and (masks or node.op_type == "Attention")


def _made_constants(node: ir.Node) -> list[ir.TensorProtocol]:
    """The constants of a node that are not its inputs, or not as they are."""
    if node.op_type == "ConstantOfShape" and "value" in node.attributes:
        return [node.attributes["value"].as_tensor()]
    if node.op_type == "Gemm":
        factors = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
        return [ir.tensor(np.float32(factor)) for factor in factors]
    if node.op_type == "BatchNormalization" and folds(node):
        return [ir.tensor(array) for array in folded_statistics(node)]
    return []


def _leading_to(graph: ir.Graph, ends: Collection[str], through: Collection[str]) -> set[ir.Value]:
    """Values that only operators of some types read, directly or through others."""
    found: set[ir.Value] = set()

    def leads(user: ir.Node) -> bool:
        return user.op_type in ends or (
            user.op_type in through and all(value in found for value in user.outputs)
        )

    for node in reversed(graph):
        for value in node.outputs:
            readers = [user for user, _ in value.uses()]
            if readers and not value.is_graph_output() and all(map(leads, readers)):
                found.add(value)
    return found
