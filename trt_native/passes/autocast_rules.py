"""The nodes of an FP32 graph that keep computing in FP32 when the rest is reduced.

The rules keep norms, softmax and other statistics in FP32, whether fused or spelled out in
arithmetic; what is computed from integers; and what FP16 cannot hold.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trt_native.graph.nodes import (
    BFLOAT16,
    CASTS,
    DATA_MOVEMENT_OPS,
    FLOAT,
    FLOAT16,
    PRODUCTS,
    QDQ,
    SHAPES,
    allowed_types,
    bodies,
    constant_of,
    free_inputs,
    is_fp32,
    op_set,
    opset_of,
    scale_of,
    schema_of,
)


class Reason(str, enum.Enum):
    """Why a node computes in FP32."""

    KEEP_FP32 = "keep_fp32"  # the user asked for it
    STATISTICS = "statistics"  # a reduction, norm, softmax or power, and what mixes it back in
    ARGUMENT = "argument"  # feeds one of those and nothing else, or feeds a sine
    INTEGERS = "integers"  # computed from integers alone, such as timesteps and positions
    RANGE = "range"  # has or makes numbers that FP16 cannot hold
    COORDINATES = "coordinates"  # sampling positions need more than 11 bits
    ACTIVATION = "activation"  # a sigmoid or GELU, of which TensorRT's FP16 form is coarse
    ACCUMULATOR = "accumulator"  # a quantized product sums up more than FP16 can hold
    GENERATOR = "generator"  # random numbers, identity matrices, windows, reinterpreted bits
    SCHEMA = "schema"  # the operator's ONNX schema has no such type at this opset
    TENSORRT = "tensorrt"  # TensorRT does not take this operator in that type
    CUSTOM = "custom"  # not an ONNX operator
    SUBGRAPH = "subgraph"  # has a body
    NEIGHBORS = "neighbors"  # moves, casts or compares values that are FP32 around it


class Label(enum.Enum):
    """A property of a value that decides about the nodes that read it."""

    STATISTIC = enum.auto()  # made from statistics alone: nodes that read it compute in FP32
    INTEGER = enum.auto()  # made from integers and constants alone
    WIDE = enum.auto()  # may exceed FP16
    AFFINE = enum.auto()  # normalised; constants that scale and shift it stay with the norm
    GATE = enum.auto()  # a sigmoid or an error function, up to the product with what it gates


_NORMS = op_set("LayerNormalization RMSNormalization LpNormalization MeanVarianceNormalization")
# TensorRT takes the statistics of these in FP32 for tensors of any type; casts around them would
# cost its kernel of one pass.
_NORMS_WITH_OWN_STATISTICS = op_set("GroupNormalization InstanceNormalization")
_SOFTMAX = op_set("Softmax LogSoftmax NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss")
# Global pooling sums over a whole image, which overflows like any other sum; windows do not.
_REDUCTIONS = op_set(
    "ReduceMean ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceProd GlobalAveragePool GlobalLpPool"
)
_SCANS = op_set("CumSum CumProd DFT STFT")
_TRIGONOMETRIC = op_set("Sin Cos Tan")
_GROWING = op_set("Exp Pow Sinh Cosh")
_TRANSCENDENTAL = (
    _GROWING | _TRIGONOMETRIC | op_set("Log Sqrt Reciprocal Asin Acos Atan Asinh Acosh Atanh")
)
_ARITHMETIC = op_set(
    "Add Sub Mul Div Neg Abs Min Max Sum Mean Where Clip Floor Ceil Round Sign Mod"
)
_BOUNDED = op_set("Sigmoid HardSigmoid Tanh Erf Softsign Sign")
_ACTIVATIONS = _BOUNDED | op_set("Relu LeakyRelu PRelu Elu Selu Celu Gelu Softplus Mish HardSwish")
# In FP16 TensorRT-RTX takes tanh.approx for these, good to 2^-11 of one: more than rounding costs.
_COARSE = op_set("Sigmoid Erf Gelu")
_ELEMENTWISE = _TRANSCENDENTAL | _ARITHMETIC | _ACTIVATIONS
_SELECTING = op_set("ReduceMax ReduceMin MaxPool GlobalMaxPool TopK")
# TensorRT rounds what these add up in INT8 or FP8 to the type of the node before it multiplies by
# scales for each channel; by one scale for all it multiplies first, and convolutions always stay
# in FP32 till then. A K of 256 reaches 256 * 127 * 127.
ACCUMULATES_UNSCALED = op_set("MatMul Gemm")
_COORDINATES = op_set("GridSample RoiAlign MaxRoiPool AffineGrid")
_GENERATORS = op_set(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial EyeLike "
    "HannWindow HammingWindow BlackmanWindow MelWeightMatrix BitCast Constant"
)
# What TensorRT-RTX 1.6 refuses to parse or build in these types, though ONNX has them.
_FP32_IN_TENSORRT = {
    FLOAT16: op_set("Celu"),
    BFLOAT16: op_set("Celu ConvTranspose GRU HardSwish LpPool Mish"),
}
_LARGEST_FP16 = 65504.0
_SCALE_TOLERANCE = 2.0**-10  # what FP16 loses of a number that is not subnormal, and a bit more


class NodeClassifier:
    """Decides which nodes of the main graph compute in FP32.

    A walk down the graph labels values and keeps what their labels demand; a walk up keeps what
    feeds those nodes. Nodes that only move values are looked through: their type follows from
    their neighbours'.

    Args:
        model: The model, with types on the values of its main graph and functions inlined.
        target: The type that the rest of the graph is reduced to.
        matches: Further nodes to keep, by the pattern that names them.

    Attributes:
        kept: The nodes to compute in FP32, with the reason.
        labels: What is known of FP32 values.
    """

    def __init__(
        self, model: ir.Model, target: ir.DataType, matches: Mapping[str, Iterable[ir.Node]]
    ) -> None:
        self.opset = opset_of(model)
        self.target = target
        self.graph = model.graph
        self.kept: dict[ir.Node, Reason] = {}
        self.labels: dict[ir.Value, Label] = {}
        pinned = {node for nodes in matches.values() for node in nodes}
        for node in self.graph:
            self._walk_down(node, pinned)
        for node in reversed(self.graph):
            if node not in self.kept and (reason := self._needed_above(node)):
                self.kept[node] = reason

    def _walk_down(self, node: ir.Node, pinned: set[ir.Node]) -> None:
        if not any(map(is_fp32, (*node.inputs, *node.outputs))):
            return
        obstacle = self._obstacle(node)
        reason, label = None, None
        if obstacle not in (Reason.CUSTOM, Reason.SUBGRAPH):
            reason, label = self._numerics(node, {self.labels.get(v) for v in free_inputs(node)})
        if node in pinned:
            reason = Reason.KEEP_FP32
        if reason := reason or obstacle:
            self.kept[node] = reason
        if label:
            self.labels.update((v, label) for v in node.outputs if is_fp32(v))

    def _obstacle(self, node: ir.Node) -> Reason | None:
        """Find an obstacle in ONNX to the target type."""
        if any(bodies(node)):
            return Reason.SUBGRAPH
        schema = None if node.domain else schema_of(node.op_type, self.opset)
        if schema is None:
            return Reason.CUSTOM
        if node.op_type in _FP32_IN_TENSORRT[self.target]:
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

    def _numerics(
        self, node: ir.Node, kinds: set[Label | None]
    ) -> tuple[Reason | None, Label | None]:
        """Whether numbers keep a node in FP32, and the label of its outputs."""
        op = node.op_type
        if op in QDQ:
            return self._quantizer(node)
        if self._is_scaled_late(node):
            return Reason.ACCUMULATOR, None
        if op in _NORMS or op in _SCANS:
            return Reason.STATISTICS, Label.AFFINE
        if op in _NORMS_WITH_OWN_STATISTICS:
            return (Reason.RANGE if Label.WIDE in kinds else None), None
        if op in _SOFTMAX or (op == "BatchNormalization" and not _folds(node)):
            return Reason.STATISTICS, None
        if op in _REDUCTIONS:
            return Reason.STATISTICS, Label.STATISTIC
        if op in _COORDINATES:
            return Reason.COORDINATES, None
        if op in _GENERATORS:
            return Reason.GENERATOR, None
        if op == "Range" or (op in CASTS and _from_integers(node)):
            return None, Label.INTEGER
        if op in _ELEMENTWISE:
            return self._elementwise(node, kinds)
        careful = kinds & {Label.STATISTIC, Label.INTEGER, Label.WIDE}
        if careful and not any(map(is_fp32, node.outputs)) and op not in SHAPES:
            return Reason.RANGE if Label.WIDE in careful else Reason.INTEGERS, None
        if scalar := self._scalar(node):
            return Reason.RANGE, scalar
        if op in DATA_MOVEMENT_OPS or op in CASTS:
            return None, _merged(kinds)
        if op in _SELECTING and Label.WIDE in kinds:
            return Reason.RANGE, Label.WIDE
        return None, None

    def _quantizer(self, node: ir.Node) -> tuple[Reason | None, Label | None]:
        """Decide about Q/DQ: ``QuantizeLinear`` saturates, so only the scale may not fit FP16."""
        packed = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
        scale = constant_of(node.inputs[1]) if node.inputs[1] is not None else None
        if self.target != FLOAT16 or packed is None or scale is None or not scale.size:
            return None, None
        scales = scale.numpy()
        levels = 128 if packed.dtype == ir.DataType.INT8 else 448
        if float(scales.max()) * levels > _LARGEST_FP16:
            return Reason.RANGE, Label.WIDE
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
        self, node: ir.Node, kinds: set[Label | None]
    ) -> tuple[Reason | None, Label | None]:
        op = node.op_type
        scalar = self._scalar(node)
        if scalar == Label.WIDE and op in ("Clip", "Min", "Max"):
            return Reason.RANGE, None  # a bound: the values are no larger for it
        if scalar == Label.WIDE or Label.WIDE in kinds:
            reason = Reason.STATISTICS if Label.STATISTIC in kinds else Reason.RANGE
            return reason, Label.WIDE if self._stays_wide(node) else Label.AFFINE
        if scalar:
            return Reason.RANGE, scalar
        if op in _COARSE and self.target == FLOAT16 and not _follows_product(node):
            return Reason.ACTIVATION, None if op == "Gelu" else Label.GATE
        if op in _ARITHMETIC and Label.GATE in kinds:
            return Reason.ACTIVATION, Label.GATE if _has_constant(node) else None
        if kinds and kinds <= {Label.STATISTIC}:
            return Reason.STATISTICS, Label.STATISTIC
        if op in _TRANSCENDENTAL and kinds <= {Label.STATISTIC, Label.INTEGER}:
            return Reason.INTEGERS if kinds else Reason.STATISTICS, Label.INTEGER
        if op in _TRANSCENDENTAL:
            wide = None in kinds and op in _GROWING and not _shrinks(node)
            wide = wide and self.target == FLOAT16
            return Reason.STATISTICS, Label.WIDE if wide else Label.AFFINE
        if kinds and kinds <= {Label.STATISTIC, Label.INTEGER}:
            return Reason.INTEGERS, Label.INTEGER
        if op in _ARITHMETIC and Label.STATISTIC in kinds:
            return Reason.STATISTICS, Label.AFFINE
        if kinds == {Label.AFFINE} and op in ("Add", "Sub", "Mul", "Div") and _has_constant(node):
            # The shift comes last; nodes after it are not part of the norm.
            return Reason.STATISTICS, Label.AFFINE if op in ("Mul", "Div") else None
        return None, None

    def _stays_wide(self, node: ir.Node) -> bool:
        """Whether a node with a wide operand can itself exceed FP16."""
        kinds = [self.labels.get(v) for v in free_inputs(node)]
        if node.op_type in _BOUNDED or Label.STATISTIC in kinds:
            return False
        if node.op_type in _TRANSCENDENTAL:
            return node.op_type in _GROWING
        if node.op_type == "Div" and node.inputs[0] is not None:
            return self.labels.get(node.inputs[0]) == Label.WIDE
        return True

    def _scalar(self, node: ir.Node) -> Label | None:
        """Label for a scalar operand that FP16 cannot hold: too large, or lost below it."""
        if self.target != FLOAT16 or node.op_type in PRODUCTS:
            return None
        tensors = [constant_of(v) for v in node.inputs if v is not None and is_fp32(v)]
        if node.op_type == "ConstantOfShape" and "value" in node.attributes:
            tensors.append(node.attributes["value"].as_tensor())
        found = None
        for tensor in tensors:
            if tensor is None or tensor.size != 1:
                continue
            value = float(tensor.numpy().reshape(()))
            with np.errstate(over="ignore"):
                half = float(np.float16(value))
            if np.isfinite(value) and not np.isfinite(half):
                return Label.WIDE
            if abs(half - value) > 0.01 * abs(value):  # 1e-5 passes, 1e-6 does not
                found = Label.STATISTIC
        return found

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
        """Whether what reads a node's outputs wants them computed in FP32."""
        op = node.op_type
        if op not in _ARITHMETIC and op not in QDQ and op != "MatMul":
            return None
        readers = self._readers(node)
        if op in QDQ:
            late = any(r is not None and self._is_scaled_late(r) for r in readers)
            late = late or Reason.ACCUMULATOR in [self.kept.get(r) for r in readers if r]
            return Reason.ACCUMULATOR if late else None
        free = free_inputs(node)
        plain = [v for v in free if self.labels.get(v) not in (Label.INTEGER, Label.STATISTIC)]
        sines = any(self._is(r, _TRIGONOMETRIC) for r in readers)
        if op == "MatMul":  # rotary embeddings multiply positions and frequencies this way
            return Reason.ARGUMENT if sines and free and not plain else None
        if sines and len(plain) <= 1:
            return Reason.ARGUMENT
        if op == "Mul" and len(free) == 2 and free[0] is free[1]:
            summed = any(self._is(r, _REDUCTIONS | {"Sqrt"}) for r in readers)
            return Reason.ARGUMENT if summed else None
        if op not in ("Add", "Sub", "Mul", "Div", "Neg", "Abs"):
            return None
        # All of them: a residual sum has other readers, and FP32 must not climb along it.
        direct = all(self._is(r, _REDUCTIONS | _TRANSCENDENTAL) for r in readers)
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
    if Label.WIDE in kinds:
        return Label.WIDE
    if kinds == {Label.STATISTIC, Label.INTEGER}:
        return Label.INTEGER
    return next(iter(kinds)) if len(kinds) == 1 else None


def _from_integers(node: ir.Node) -> bool:
    source = node.inputs[0].dtype if node.inputs[0] else None
    return source is not None and source.is_integer() and node.outputs[0].dtype == FLOAT


def _has_constant(node: ir.Node) -> bool:
    return len(free_inputs(node)) < sum(map(is_fp32, node.inputs))


def _follows_product(node: ir.Node) -> bool:
    """Whether TensorRT can compute a node of one operand in the kernel of a product before it."""
    while True:
        producers = [p for v in free_inputs(node)[:1] if (p := v.producer()) is not None]
        if len(free_inputs(node)) != 1 or not producers:
            return False
        node = producers[0]
        if node.op_type in PRODUCTS:
            return True
        scales = node.op_type in ("Add", "Sub", "Mul", "Div") and _has_constant(node)
        if not scales and node.op_type != "BatchNormalization":
            return False


def _shrinks(node: ir.Node) -> bool:
    """Whether a node is a power that brings large values down, such as ``x ** -0.5``."""
    exponent = constant_of(node.inputs[1]) if node.op_type == "Pow" and node.inputs[1] else None
    return exponent is not None and exponent.size == 1 and float(exponent.numpy().item()) <= 1


def _folds(node: ir.Node) -> bool:
    """Whether a ``BatchNormalization`` is a constant scale and shift."""
    training = node.attributes.get_int("training_mode", 0)
    constants = all(v is not None and constant_of(v) is not None for v in node.inputs[1:])
    return not training and constants and not any(v.uses() for v in node.outputs[1:])
