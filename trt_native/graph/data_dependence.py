"""Outputs whose shapes depend on the data of the inputs, not only on their shapes."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import IntEnum

import onnx_ir as ir

from trt_native.graph.model_interface import static_tensors
from trt_native.graph.nodes import RANDOM_OPS, SHAPES, bodies, op_set
from trt_native.shapes import Profile

__all__ = ["data_dependent_outputs"]


class _Level(IntEnum):
    """What of a tensor depends on data."""

    NOTHING = 0
    VALUES = 1
    SHAPE = 2


# Inputs whose values decide the shapes of the outputs, by number, in any version of an operator.
# TensorRT's parser goes by the operator's name alone, whatever its domain.
_SHAPING = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "DFT": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "NonMaxSuppression": (0, 1, 2, 3, 4),
    "NonZero": (0,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "SequenceAt": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1, 2),
    "TopK": (1,),
    "Unique": (0,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **dict.fromkeys(
        op_set(
            "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin"
            " ReduceProd ReduceSum ReduceSumSquare"
        ),
        (1,),
    ),
}

# Operators whose outputs have the shape of one input whatever the shapes of the others.
_SHAPED_AS_FIRST = op_set(
    "BatchNormalization CastLike Clip CumSum DequantizeLinear GroupNormalization"
    " InstanceNormalization LayerNormalization QuantizeLinear ReverseSequence Scatter"
    " ScatterElements ScatterND TensorScatter Trilu"
)
_SHAPED_AS_SECOND = op_set("GatherElements")


def data_dependent_outputs(
    model: ir.Model, profiles: Sequence[Profile] = (), shape_inputs: Collection[str] = ()
) -> frozenset[str]:
    """Find the outputs whose shapes are known only after a run.

    A shape depends on data if it is that of a result such as NonZero's, or if it is computed from
    values of inputs; what Shape and Size return are not such values. Tensors that a loop carries
    are taken to keep their shapes, as TensorRT requires. Where nothing is known of the branches of
    an If that depends on data, their shapes are taken to differ.

    Args:
        model: The model, without functions; unchanged afterwards.
        profiles: Ranges of the inputs with dynamic shapes.
        shape_inputs: Names of inputs whose values are known before a run, like shapes.
    """
    if not _depending(model, shape_inputs, frozenset()):
        return frozenset()
    return frozenset(_depending(model, shape_inputs, static_tensors(model, profiles)))


def _depending(
    model: ir.Model, shape_inputs: Collection[str], fixed: Collection[str]
) -> Iterable[str]:
    """The outputs of data-dependent shape, where some tensors are known to have none."""
    levels = _Levels(fixed)
    graph = model.graph
    levels.set(graph.inputs, _Level.VALUES)
    levels.set((v for v in graph.inputs if v.name in shape_inputs), _Level.NOTHING)
    levels.set(graph.initializers.values(), _Level.NOTHING)
    levels.visit(graph)
    return [v.name for v in graph.outputs if v.name and levels.of(v) is _Level.SHAPE]


class _Levels:
    """The levels of a graph's values, found in the order of its nodes."""

    def __init__(self, fixed: Collection[str]) -> None:
        self._fixed = fixed
        self._levels: dict[ir.Value, _Level] = {}

    def of(self, *values: ir.Value | None) -> _Level:
        """The highest level of some values; those that are left out or constant have none."""
        found = (self._levels.get(v, _Level.NOTHING) for v in values if v is not None)
        return max(found, default=_Level.NOTHING)

    def set(self, values: Iterable[ir.Value], level: _Level) -> None:
        for value in values:
            most = _Level.VALUES if value.name in self._fixed else _Level.SHAPE
            self._levels[value] = min(level, most)

    def visit(self, graph: ir.Graph) -> None:
        """Find the levels of all that a graph's nodes make."""
        for node in graph:
            for value, level in zip(node.outputs, self._outputs(node), strict=False):
                self.set([value], level)

    def _outputs(self, node: ir.Node) -> Iterator[_Level]:
        if node.op_type == "If":
            return self._if(node)
        if node.op_type == "Loop":
            return self._loop(node)
        if node.op_type == "Scan":
            return self._scan(node)
        return itertools.repeat(self._plain(node))

    def _plain(self, node: ir.Node) -> _Level:
        read = self.of(*node.inputs)
        for body in bodies(node):
            self.set(body.inputs, read)
            self.visit(body)
            read = max(read, self.of(*body.outputs))
        if node.op_type in SHAPES:
            return _Level.VALUES if read is _Level.SHAPE else _Level.NOTHING
        if node.op_type in RANDOM_OPS:
            return max(read, _Level.VALUES)
        if self.of(*_picked(node, _SHAPING.get(node.op_type, ()))):
            return _Level.SHAPE
        if node.op_type in _SHAPED_AS_FIRST and self.of(*node.inputs[:1]) < _Level.SHAPE:
            return min(read, _Level.VALUES)
        if node.op_type in _SHAPED_AS_SECOND and self.of(*node.inputs[1:2]) < _Level.SHAPE:
            return min(read, _Level.VALUES)
        return read

    def _if(self, node: ir.Node) -> Iterator[_Level]:
        branches = list(bodies(node))
        for branch in branches:
            self.visit(branch)
        chosen = self.of(*node.inputs)
        for outputs in zip(*(branch.outputs for branch in branches), strict=True):
            level = self.of(*outputs)
            if chosen:
                level = max(level, _Level.VALUES if _are_alike(outputs) else _Level.SHAPE)
            yield level

    def _loop(self, node: ir.Node) -> Iterator[_Level]:
        (body,) = bodies(node)
        carried = len(node.inputs) - 2
        self.set(body.inputs[:1], _Level.NOTHING)
        starts = [self.of(node.inputs[1]), *(self.of(value) for value in node.inputs[2:])]
        ends = self._repeated(body, body.inputs[1:], body.outputs[: 1 + carried], starts)
        ended = max(self.of(*node.inputs[:2]), ends[0])
        least = _Level.VALUES if ended else _Level.NOTHING
        yield from (max(level, least) for level in ends[1:])
        for value in body.outputs[1 + carried :]:
            yield _Level.SHAPE if ended else self.of(value)

    def _scan(self, node: ir.Node) -> Iterator[_Level]:
        (body,) = bodies(node)
        scanned = node.attributes.get_int("num_scan_inputs", 0)
        states = len(body.inputs) - scanned
        read = node.inputs[len(node.inputs) - scanned :]
        for inner, outer in zip(body.inputs[states:], read, strict=True):
            self.set([inner], self.of(outer))
        first = len(node.inputs) - len(body.inputs)  # lengths come first in the oldest version
        starts = [self.of(value) for value in node.inputs[first : first + states]]
        yield from self._repeated(body, body.inputs[:states], body.outputs[:states], starts)
        steps = max(self.of(*read), self.of(*node.inputs[:first]))
        for value in body.outputs[states:]:
            yield _Level.SHAPE if steps is _Level.SHAPE else self.of(value)

    def _repeated(
        self,
        body: ir.Graph,
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        starts: Sequence[_Level],
    ) -> list[_Level]:
        """The levels of what a body hands on from round to round, after any number of rounds."""
        levels = list(starts)
        while True:
            for value, level in zip(inputs, levels, strict=True):
                self.set([value], level)
            self.visit(body)
            ends = [
                max(level, self.of(value)) for level, value in zip(levels, outputs, strict=True)
            ]
            if ends == levels:
                return levels
            levels = ends


def _picked(node: ir.Node, numbers: Iterable[int]) -> list[ir.Value | None]:
    """Those of some inputs that a node has."""
    return [node.inputs[number] for number in numbers if number < len(node.inputs)]


def _are_alike(values: Sequence[ir.Value]) -> bool:
    """Whether values are known to have the same shape."""
    first = values[0].shape
    if first is None or first.has_unknown_dim():
        return False
    return all(value.shape == first for value in values)
