"""The nodes of an FP32 graph that keep computing in FP32 when the rest is reduced.

The rules follow the data: what is computed from inputs and integers, what positions are computed
from, statistics however they are spelled, and what FP16 cannot hold.
"""

from __future__ import annotations

import enum
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trt_native.graph.nodes import (
    CASTS,
    DATA_MOVEMENT_OPS,
    FLOAT,
    FLOAT16,
    QDQ,
    SHAPES,
    allowed_types,
    bodies,
    constant_of,
    free_inputs,
    input_of,
    is_fp32,
    opset_of,
    scale_of,
)
from trt_native.passes.autocast_magnitudes import Magnitudes, RangeProblem
from trt_native.passes.autocast_operators import (
    ACCUMULATES_UNSCALED,
    ARITHMETIC,
    COARSE,
    ELEMENTWISE,
    FP32_IN_TENSORRT,
    GENERATORS,
    LENGTHS,
    MAKES_POSITIONS,
    MATRIX_PRODUCTS,
    NORMS,
    POSITION_INPUTS,
    RECURRENT,
    REDUCTIONS,
    SOFTMAX,
    SPECTRA,
    TRANSCENDENTAL,
    TRIGONOMETRIC,
    WEIGHTED,
    WINDOWS,
    averages,
    compares_exactly,
    ends_walk,
    folds,
    follows_product,
    from_integers,
    has_constant,
    lacks_kernels,
    multiplies_itself,
    quantized_levels,
    squares,
    sums,
    to_integers,
)
from trt_native.passes.replacement import KEEP_FP32_KEY
from trt_native.schemas import schema_of


class Reason(str, enum.Enum):
    """Why a node computes in FP32."""

    KEEP_FP32 = "keep_fp32"  # the user asked for it, or its numbers are whole
    POSITIONS = "positions"  # positions, indices, ids, and what they are computed from
    INPUT = "input"  # computed from inputs alone, before the first product
    STATISTICS = "statistics"  # a reduction, norm, softmax or power, and what mixes it back in
    ARGUMENT = "argument"  # feeds one of those and nothing else, or feeds a sine
    INTEGERS = "integers"  # computed from integers alone, such as timesteps and positions
    RANGE = "range"  # has or makes numbers that FP16 cannot hold
    ACTIVATION = "activation"  # a sigmoid or GELU, of which TensorRT's FP16 form is coarse
    ACCUMULATOR = "accumulator"  # a quantized product sums up more than FP16 can hold
    GENERATOR = "generator"  # random numbers, identity matrices, windows, reinterpreted bits
    SCHEMA = "schema"  # the operator's ONNX schema has no such type at this opset
    TENSORRT = "tensorrt"  # TensorRT does not take this operator in that type
    CUSTOM = "custom"  # not an ONNX operator
    SUBGRAPH = "subgraph"  # has a body
    NEIGHBORS = "neighbors"  # moves, casts or compares values that are FP32 around it


class Label(enum.Enum):
    """What a value is made of, which decides about the nodes that read it."""

    STATISTIC = enum.auto()  # statistics alone: nodes that read it compute in FP32
    INTEGER = enum.auto()  # integers and constants alone, or positions
    INPUT = enum.auto()  # FP32 inputs, without a product
    MEAN = enum.auto()  # averages over windows or by weights; a difference of two is a statistic
    AFFINE = enum.auto()  # normalised; constants that scale and shift it stay with the norm
    GATE = enum.auto()  # a sigmoid or an error function, up to the product with what it gates


class _Need(enum.Flag):
    """What the readers of a value need, passed on to what it is computed from."""

    NONE = 0
    EXACT = enum.auto()  # FP32 up to a product with weights, a norm or an input
    MEANS = enum.auto()  # the same, for the difference of two averages
    PHASE = enum.auto()  # the same, as far as each node has one operand that was computed
    POWER = enum.auto()  # the squares that it may be made of
    ROOT = enum.auto()  # FP32 up to a product with weights, and that product too


_EXACT = frozenset({Label.STATISTIC, Label.INTEGER, Label.INPUT})
_COPIES = DATA_MOVEMENT_OPS | CASTS
_LARGEST_FP16 = 65504.0
_WIDE = (ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32, ir.DataType.UINT32)
_SCALE_TOLERANCE = 2.0**-10  # what FP16 loses of a number that is not subnormal, and a bit more


class NodeClassifier:
    """Decides which nodes of the main graph compute in FP32.

    Three walks: up the graph from what reads positions; down the graph, to label what values are
    made of, estimate how large they are, and keep what these demand; up again from what was kept.
    Nodes that only move values are looked through: their type follows from their neighbours'.

    Args:
        model: The model, with types on the values of its main graph and functions inlined.
        target: The type that the rest of the graph is reduced to.
        matches: Further nodes to keep, by the pattern that names them.
        io_type: The type that the graph's FP32 inputs will have.
        measured: For values by name, the largest magnitude that was measured; it replaces the
            estimate.

    Attributes:
        kept: The nodes to compute in FP32, with the reason.
        labels: What FP32 values are made of, as far as it matters.
        magnitudes: How large they are.
    """

    def __init__(
        self,
        model: ir.Model,
        target: ir.DataType,
        matches: Mapping[str, Iterable[ir.Node]],
        io_type: ir.DataType = FLOAT,
        measured: Mapping[str, float] | None = None,
    ) -> None:
        self.opset = opset_of(model)
        self.target = target
        self.graph = model.graph
        self.kept: dict[ir.Node, Reason] = {}
        self.labels: dict[ir.Value, Label] = {}
        self.magnitudes = Magnitudes(model.graph, target, measured)
        self._needs: dict[ir.Value, _Need] = {}
        self._averages = {node for node in _upwards(self.graph) if averages(node)}
        pinned = {node for nodes in matches.values() for node in nodes}
        for node in _upwards(self.graph):
            self._pass_needs(node, self._position_needs(node))
        for value in self.graph.inputs:
            if is_fp32(value) and (io_type == FLOAT or self.is_position(value)):
                self.labels[value] = Label.INPUT
        for node in self.graph:
            self._walk_down(node, pinned)
        for node in reversed(self.graph):
            self._walk_up(node)

    # What positions are computed from

    def _position_needs(self, node: ir.Node) -> dict[int, _Need]:
        """The needs of a node that reads positions, indices or ids, by input."""
        if node.domain:
            return {}
        indices: Iterable[int] = ()
        if node.op_type in POSITION_INPUTS and not compares_exactly(node):
            chosen = POSITION_INPUTS[node.op_type]
            indices = range(len(node.inputs)) if chosen is None else chosen
        elif node.op_type == "Cast" and to_integers(node):
            indices = (0,)
        elif any(self.is_position(v) for body in bodies(node) for v in body.inputs):
            indices = range(len(node.inputs))
        return dict.fromkeys(indices, _Need.EXACT)

    def is_position(self, value: ir.Value) -> bool:
        """Whether a value is a position, index or id, or one is computed from it."""
        return _Need.EXACT in self._needs.get(value, _Need.NONE)

    def _holds_positions(self, node: ir.Node) -> bool:
        """Whether a node computes positions, or something of them that must be exact."""
        made = any(map(self.is_position, node.outputs)) and not self._ends_walk(node)
        return (made and node.op_type not in _COPIES) or bool(self._position_needs(node))

    def _pass_needs(self, node: ir.Node, own: Mapping[int, _Need]) -> None:
        """Hand the needs of a node's readers, and its own, on to its inputs."""
        passed = self._passed(node, self._readers_need(node))
        for i, value in enumerate(node.inputs):
            need = passed | own.get(i, _Need.NONE)
            if need and value is not None and value.dtype in (FLOAT, None):
                self._needs[value] = self._needs.get(value, _Need.NONE) | need

    def _readers_need(self, node: ir.Node) -> _Need:
        return functools.reduce(
            operator.or_, (self._needs.get(v, _Need.NONE) for v in node.outputs), _Need.NONE
        )

    def _passed(self, node: ir.Node, needs: _Need) -> _Need:
        """The needs of a node's readers that its inputs have to meet, too."""
        if not needs or self._ends_walk(node):
            return _Need.NONE
        passed = needs & (_Need.EXACT | _Need.MEANS | _Need.ROOT)
        if _Need.PHASE in needs and self._has_one_origin(node):
            passed |= _Need.PHASE
        if _Need.POWER in needs and squares(node):
            passed |= _Need.ROOT
        elif _Need.POWER in needs and node.op_type not in TRANSCENDENTAL:
            passed |= _Need.POWER
        return passed

    def _ends_walk(self, node: ir.Node) -> bool:
        """Whether a walk up ends at a node: not at averages, nor products of exact values alone."""
        if not ends_walk(node) or node in self._averages:
            return False
        kinds = {self.labels.get(v) for v in free_inputs(node)}
        return node.op_type not in MATRIX_PRODUCTS or not kinds or not kinds <= _EXACT

    def _has_one_origin(self, node: ir.Node) -> bool:
        """Whether all operands but one are exact, so that FP32 does not climb along a residual."""
        if node.op_type in _COPIES:
            return True
        computed = [v for v in free_inputs(node) if self.labels.get(v) not in _EXACT]
        return len(computed) <= (0 if node.op_type == "MatMul" else 1)

    # Down: what values are made of, and how large they are

    def _walk_down(self, node: ir.Node, pinned: set[ir.Node]) -> None:
        if not any(map(is_fp32, (*node.inputs, *node.outputs))):
            return
        obstacle = self._obstacle(node)
        reason, label = None, None
        if obstacle not in (Reason.CUSTOM, Reason.SUBGRAPH):
            kinds = {self.labels.get(v) for v in free_inputs(node)}
            problem = self.magnitudes.constant_problem(node)
            self.magnitudes.estimate(
                node,
                computed=bool(kinds & {None, Label.INPUT, Label.MEAN}),
                normalised=self._is_normalised(node),
                problem=problem,
            )
            reason, label = self._numerics(node, kinds, problem)
        if node in pinned or KEEP_FP32_KEY in node.metadata_props:
            reason = Reason.KEEP_FP32
        if reason := reason or obstacle:
            self.kept[node] = reason
        for value in filter(is_fp32, node.outputs):
            if found := Label.INTEGER if self.is_position(value) else label:
                self.labels[value] = found

    def _is_normalised(self, node: ir.Node) -> bool:
        """Whether a node scales values by a statistic of them."""
        statistics = [v for v in free_inputs(node) if self.labels.get(v) is Label.STATISTIC]
        scales = node.op_type in ("Mul", "Div") and len(free_inputs(node)) > len(statistics)
        return scales and any(not self.magnitudes.exceeds(v) for v in statistics)

    def _numerics(
        self, node: ir.Node, kinds: set[Label | None], problem: RangeProblem | None
    ) -> tuple[Reason | None, Label | None]:
        """Whether numbers keep a node in FP32, and the label of its outputs."""
        op = node.op_type
        if op in QDQ:
            return self._quantizer(node)
        if op in SHAPES:
            return None, None
        if self._is_scaled_late(node):
            return Reason.ACCUMULATOR, None
        if (op in RECURRENT and input_of(node, LENGTHS) is not None) or lacks_kernels(node):
            return Reason.TENSORRT, None
        if self._holds_positions(node):
            return Reason.POSITIONS, Label.INTEGER if op in MAKES_POSITIONS else None
        if op in NORMS or op in SPECTRA:
            return Reason.STATISTICS, Label.AFFINE
        if op in SOFTMAX or (op == "BatchNormalization" and not folds(node)):
            return Reason.STATISTICS, None
        if op in REDUCTIONS:
            return Reason.STATISTICS, Label.STATISTIC
        if op in GENERATORS:
            return Reason.GENERATOR, None
        if op in CASTS and from_integers(node):
            return None, Label.INTEGER
        if op in ELEMENTWISE:
            return self._elementwise(node, kinds, problem)
        if op in WEIGHTED | WINDOWS:
            return self._product(node, kinds, problem)
        return self._other(node, kinds, problem)

    def _other(
        self, node: ir.Node, kinds: set[Label | None], problem: RangeProblem | None
    ) -> tuple[Reason | None, Label | None]:
        label = _merged(kinds)
        if not any(map(is_fp32, node.outputs)) and kinds & _EXACT:
            return Reason.INTEGERS, None
        if problem or (self.magnitudes.is_wide(node) and node.op_type not in _COPIES):
            return Reason.RANGE, Label.STATISTIC if problem is RangeProblem.UNDERFLOW else label
        if node.op_type in _COPIES:
            return None, label
        if kinds and kinds <= _EXACT and not ends_walk(node):
            return (Reason.INPUT if Label.INPUT in kinds else Reason.INTEGERS), label
        return None, None

    def _product(
        self, node: ir.Node, kinds: set[Label | None], problem: RangeProblem | None
    ) -> tuple[Reason | None, Label | None]:
        """Decide about products with weights, of two values, and about averages."""
        if multiplies_itself(node) or sums(node):
            return Reason.STATISTICS, Label.STATISTIC
        average = node in self._averages
        if average and kinds and kinds <= _EXACT:
            return Reason.STATISTICS, _merged(kinds)
        if average and self.magnitudes.is_wide(node):
            return Reason.STATISTICS, Label.STATISTIC
        if problem or self.magnitudes.is_wide(node):
            return Reason.RANGE, Label.STATISTIC if problem is RangeProblem.UNDERFLOW else None
        return None, Label.MEAN if average else None

    def _obstacle(self, node: ir.Node) -> Reason | None:
        """Find an obstacle in ONNX to the target type."""
        if any(bodies(node)):
            return Reason.SUBGRAPH
        schema = None if node.domain else schema_of(node.op_type, self.opset)
        if schema is None:
            return Reason.CUSTOM
        if node.op_type in FP32_IN_TENSORRT[self.target]:
            return Reason.TENSORRT
        if any(
            v is not None and v.type is not None and not isinstance(v.type, ir.TensorType)
            for v in (*node.inputs, *node.outputs)
        ):
            return Reason.SCHEMA  # sequences and optionals
        inputs, outputs = allowed_types(schema, node, self.target)
        slots = [ok for v, ok in zip(node.outputs, outputs, strict=True) if is_fp32(v)]
        slots = slots or [ok for v, ok in zip(node.inputs, inputs, strict=True) if is_fp32(v)]
        # An output decides: an input of fixed type, such as Resize's scales, is cast alone.
        return None if all(slots) else Reason.SCHEMA

    def _quantizer(self, node: ir.Node) -> tuple[Reason | None, Label | None]:
        """Decide about Q/DQ: ``QuantizeLinear`` saturates, so only the scale may not fit FP16."""
        packed = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
        scale = constant_of(node.inputs[1]) if node.inputs[1] is not None else None
        if node.op_type == "QuantizeLinear" and packed is not None and packed.dtype in _WIDE:
            return Reason.RANGE, None  # more digits than either target has
        if self.target != FLOAT16 or packed is None or scale is None or not scale.size:
            return None, None
        scales = scale.numpy()
        if float(scales.max()) * quantized_levels(node) > _LARGEST_FP16:
            return Reason.RANGE, None
        fixed = packed.is_initializer() and not _can_be_scaled_anew(node, scale)
        return (Reason.RANGE if fixed and scale_is_lost(scales) else None), None

    def _is_scaled_late(self, node: ir.Node) -> bool:
        """Whether a product of two quantized tensors overflows FP16 before it is scaled."""
        if node.op_type not in ACCUMULATES_UNSCALED or self.target != FLOAT16:
            return False
        scales = [scale_of(value) for value in node.inputs[:2]]
        known = [scale for scale in scales if scale is not None]
        return len(known) == 2 and any(scale.shape is None or scale.shape.rank() for scale in known)

    def _elementwise(
        self, node: ir.Node, kinds: set[Label | None], problem: RangeProblem | None
    ) -> tuple[Reason | None, Label | None]:
        op = node.op_type
        exact = bool(kinds) and kinds <= _EXACT
        square = self.magnitudes.is_square(node)
        if self._are_means(free_inputs(node)) and not problem:
            if op == "Sub" or Label.STATISTIC in kinds:
                return Reason.STATISTICS, Label.STATISTIC
            if op in ARITHMETIC:
                return (Reason.STATISTICS if square else None), Label.MEAN
        if problem is RangeProblem.OVERFLOW and op in ("Clip", "Min", "Max"):
            return Reason.RANGE, _merged(kinds) if exact else None  # no larger for the bound
        if problem is RangeProblem.UNDERFLOW and not self.magnitudes.is_wide(node):
            return Reason.RANGE, Label.STATISTIC
        if not exact and (problem or self.magnitudes.is_wide(node)):
            reason = Reason.STATISTICS if Label.STATISTIC in kinds else Reason.RANGE
            return reason, None if self.magnitudes.makes_wide(node) else Label.AFFINE
        if exact:
            if problem:
                return Reason.RANGE, _merged(kinds)
            if Label.INPUT in kinds:
                return Reason.INPUT, Label.INPUT
            if kinds == {Label.STATISTIC}:
                return Reason.STATISTICS, Label.STATISTIC
            return Reason.INTEGERS, Label.INTEGER
        if op in COARSE and self.target == FLOAT16 and not follows_product(node):
            return Reason.ACTIVATION, None if op == "Gelu" else Label.GATE
        if op in ARITHMETIC and Label.GATE in kinds:
            return Reason.ACTIVATION, Label.GATE if has_constant(node) else None
        if op in TRANSCENDENTAL and not kinds:
            return Reason.STATISTICS, Label.INTEGER
        if op in TRANSCENDENTAL or square:
            return Reason.STATISTICS, None if self.magnitudes.makes_wide(node) else Label.AFFINE
        if op in ARITHMETIC and Label.STATISTIC in kinds:
            return Reason.STATISTICS, Label.AFFINE
        if kinds == {Label.AFFINE} and op in ("Add", "Sub", "Mul", "Div") and has_constant(node):
            # The shift comes last; nodes after it are not part of the norm.
            return Reason.STATISTICS, Label.AFFINE if op in ("Mul", "Div") else None
        return None, None

    # Up again: what feeds the nodes that were kept

    def _walk_up(self, node: ir.Node) -> None:
        needs = self._readers_need(node)
        if node not in self.kept:
            reason = self._needed_by_readers(node, needs) or self._needed_above(node)
            if reason:
                self.kept[node] = reason
        self._pass_needs(node, self._needs_of_kept(node))

    def _needed_by_readers(self, node: ir.Node, needs: _Need) -> Reason | None:
        if node.op_type in _COPIES or not any(map(is_fp32, node.outputs)):
            return None
        if _Need.ROOT in needs and (node.op_type in WEIGHTED or not ends_walk(node)):
            return Reason.RANGE
        passed = self._passed(node, needs)
        if _Need.EXACT in passed:
            return Reason.POSITIONS
        if _Need.MEANS in passed:
            return Reason.STATISTICS
        return Reason.ARGUMENT if _Need.PHASE in passed else None

    def _needs_of_kept(self, node: ir.Node) -> dict[int, _Need]:
        """The needs of a node that follow from the first two walks, by input."""
        op, free = node.op_type, free_inputs(node)
        need = _Need.NONE
        if op in TRIGONOMETRIC:
            need = _Need.PHASE
        elif self._reads_power(node, free) and not self.magnitudes.measured:
            need = _Need.POWER
        elif op in ARITHMETIC and node in self.kept and self._are_means(free):
            need = _Need.MEANS
        return dict.fromkeys(range(len(node.inputs)), need) if need else {}

    def _reads_power(self, node: ir.Node, free: Sequence[ir.Value]) -> bool:
        """Whether a node reads a power that FP16 cannot hold, or adds squares up to one."""
        sums = node.op_type in ("Add", "Sum") and len(free) > 1
        return (node.op_type in WEIGHTED and self.kept.get(node) is Reason.RANGE) or (
            sums and all(map(self._made_by_square, free))
        )

    def _are_means(self, values: Iterable[ir.Value]) -> bool:
        kinds = {self.labels.get(value) for value in values}
        return Label.MEAN in kinds and kinds <= {Label.MEAN, Label.STATISTIC}

    def _made_by_square(self, value: ir.Value) -> bool:
        while (node := value.producer()) is not None and node.op_type in _COPIES and node.inputs[0]:
            value = node.inputs[0]
        return node is not None and squares(node) and self.magnitudes.exceeds(value)

    def _readers(self, node: ir.Node) -> set[ir.Node | None]:
        """The nodes that use a node's outputs, past those that move them; None is the outside."""
        readers: set[ir.Node | None] = set()
        pending = list(node.outputs)
        while pending:
            value = pending.pop()
            if value.is_graph_output():
                readers.add(None)
            for user, _ in value.uses():
                if (
                    user.op_type in DATA_MOVEMENT_OPS
                    and user.graph is self.graph
                    and user not in self.kept
                ):
                    pending.extend(user.outputs)
                else:
                    readers.add(user)
        return readers

    def _needed_above(self, node: ir.Node) -> Reason | None:
        """Whether all that reads a node's outputs wants them computed in FP32."""
        op = node.op_type
        if op in QDQ:
            readers = self._readers(node)
            late = any(r is not None and self._is_scaled_late(r) for r in readers)
            late = late or Reason.ACCUMULATOR in [self.kept.get(r) for r in readers if r]
            return Reason.ACCUMULATOR if late else None
        if op not in ("Add", "Sub", "Mul", "Div", "Neg", "Abs"):
            return None
        # All of them: a residual sum has other readers, and FP32 must not climb along it.
        readers = self._readers(node)
        direct = all(self._is(r, REDUCTIONS | TRANSCENDENTAL) for r in readers)
        return Reason.ARGUMENT if readers and direct else None

    def _is(self, reader: ir.Node | None, ops: frozenset[str]) -> bool:
        """Whether a node is one of some operators, or was kept for the sake of one."""
        if reader is None:
            return False
        return reader.op_type in ops or (
            self.kept.get(reader) == Reason.ARGUMENT
            and any(self._is(r, ops) for r in self._readers(reader))
        )


def scale_is_lost(scales: npt.NDArray[np.float32]) -> bool:
    """Whether FP16 would change a scale by more than it changes any number that it holds well."""
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16).astype(np.float32)
    return bool((np.abs(halves - scales) > _SCALE_TOLERANCE * scales).any())


def _can_be_scaled_anew(node: ir.Node, scale: ir.TensorProtocol) -> bool:
    """Whether a weight is symmetric INT8 or FP8 with one scale, or one for each channel."""
    weight = node.inputs[0]
    zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    return (
        weight is not None
        and weight.dtype in (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN)
        and len(scale.shape) <= 1
        and (len(node.inputs) <= 2 or node.inputs[2] is None or _is_zero(zero))
    )


def _is_zero(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and not tensor.numpy().astype(np.float32).any()


def _merged(kinds: set[Label | None]) -> Label | None:
    """Label of values that hold values of several labels."""
    if not kinds <= _EXACT:
        return next(iter(kinds)) if len(kinds) == 1 else None
    order = (Label.INPUT, Label.INTEGER, Label.STATISTIC)
    return next((label for label in order if label in kinds), None)


def _upwards(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of a graph and of the bodies in it, readers before what they read."""
    for node in reversed(graph):
        for body in bodies(node):
            yield from _upwards(body)
        yield node
