"""Operators by what reduced precision does to them, and what a node alone says of that."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.graph.nodes import (
    BFLOAT16,
    CASTS,
    DATA_MOVEMENT_OPS,
    FLOAT,
    FLOAT16,
    PRODUCTS,
    bodies,
    constant_of,
    free_inputs,
    input_of,
    is_fp32,
    op_set,
)
from trt_native.passes.autocast_constants import is_average, is_sum, may_be_shares
from trt_native.passes.quantize_arrays import read_tensor

NORMS = op_set("LayerNormalization RMSNormalization LpNormalization MeanVarianceNormalization")
# TensorRT takes the statistics of these in FP32 for tensors of any type; casts around them would
# cost its kernel of one pass.
NORMS_WITH_OWN_STATISTICS = op_set("GroupNormalization InstanceNormalization")
SOFTMAX = op_set("Softmax LogSoftmax NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss")
# Global pooling sums over a whole image, which overflows like any other sum; windows do not.
REDUCTIONS = op_set(
    "ReduceMean ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceProd GlobalAveragePool GlobalLpPool"
)
WINDOWS = op_set("AveragePool LpPool")
SPECTRA = op_set("DFT STFT")
SCANS = op_set("CumSum CumProd")
TRIGONOMETRIC = op_set("Sin Cos Tan")
GROWING = op_set("Exp Pow Sinh Cosh")
TRANSCENDENTAL = (
    GROWING | TRIGONOMETRIC | op_set("Log Sqrt Reciprocal Asin Acos Atan Asinh Acosh Atanh")
)
ROUNDING = op_set("Floor Ceil Round Mod Sign")
ARITHMETIC = ROUNDING | op_set("Add Sub Mul Div Neg Abs Min Max Sum Mean Where Clip")
BOUNDED = op_set("Sigmoid HardSigmoid Tanh Erf Softsign Sign")
ACTIVATIONS = BOUNDED | op_set("Relu LeakyRelu PRelu Elu Selu Celu Gelu Softplus Mish HardSwish")
# In FP16 TensorRT-RTX takes tanh.approx for these, good to 2^-11 of one: more than rounding costs.
COARSE = op_set("Sigmoid Erf Gelu")
ELEMENTWISE = TRANSCENDENTAL | ARITHMETIC | ACTIVATIONS
RECURRENT = op_set("LSTM GRU RNN")
LENGTHS = 4  # the input of recurrent layers with the lengths of sequences
# TensorRT rounds what these add up in INT8 or FP8 to the type of the node before it multiplies by
# scales for each channel; by one scale for all it multiplies first, and convolutions always stay
# in FP32 till then. A K of 256 reaches 256 * 127 * 127.
ACCUMULATES_UNSCALED = op_set("MatMul Gemm")
COMPARISONS = op_set("Equal Greater Less GreaterOrEqual LessOrEqual")
# Inputs that hold positions, indices or ids; None stands for all.
POSITION_INPUTS: dict[str, tuple[int, ...] | None] = {
    "GridSample": (1,),
    "RoiAlign": (1,),
    "MaxRoiPool": (1,),
    "AffineGrid": (0,),
    "OneHot": (0,),
    "Range": None,
    "Loop": None,
    "Scan": None,
    **dict.fromkeys(SCANS, (0,)),
    **dict.fromkeys(ROUNDING | COMPARISONS, None),
}
MAKES_POSITIONS = ROUNDING | SCANS
# A walk up ends at these, and at MatMul and Einsum with a constant operand.
STOPS = (
    (PRODUCTS - {"MatMul"})
    | RECURRENT
    | NORMS
    | NORMS_WITH_OWN_STATISTICS
    | op_set("BatchNormalization Attention DeformConv")
)
MATRIX_PRODUCTS = op_set("MatMul Gemm Einsum")
WEIGHTED = PRODUCTS | {"Einsum"}
# Views of a value in another shape: a product of two views of one value is a statistic of it.
VIEWS = op_set("Identity Reshape Flatten Squeeze Unsqueeze Transpose")
# Readers for which -32752 is as good as any lower number, and those that pass masks on to them.
MASKED = op_set("Softmax LogSoftmax Exp ReduceMax Attention")
MASKED_BY = op_set("Add Sub Min Max Where")
PASSES_MASKS = DATA_MOVEMENT_OPS | CASTS | op_set("Add Sub Mul Div Min Max Where")
GENERATORS = op_set(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial EyeLike "
    "HannWindow HammingWindow BlackmanWindow MelWeightMatrix BitCast Constant"
)
_VOLUMES = 5  # axes
# What TensorRT-RTX 1.6 refuses to parse or build in these types, though ONNX has them.
FP32_IN_TENSORRT = {
    FLOAT16: op_set("Celu"),
    BFLOAT16: op_set("Celu ConvTranspose GRU HardSwish LpPool Mish"),
}


def lacks_kernels(node: ir.Node) -> bool:
    """Whether TensorRT-RTX 1.6 may have no kernel for a node in FP16.

    Those are transposed convolutions of volumes, of channels that are not multiples of 8.
    """
    weight = input_of(node, 1) if node.op_type == "ConvTranspose" else None
    if weight is None or weight.shape is None or len(weight.shape) < _VOLUMES:
        return False
    extents = [*weight.shape[:2]]
    return any(not isinstance(extent, int) or extent % 8 for extent in extents)


def to_integers(node: ir.Node) -> bool:
    """Whether a node casts to integers."""
    target = node.outputs[0].dtype
    return node.op_type in CASTS and target is not None and target.is_integer()


def compares_exactly(node: ir.Node) -> bool:
    """Whether a node compares with zero or infinity, which no rounding changes."""
    constants = [constant_of(v) for v in node.inputs if v is not None]
    numbers = [c.numpy().item() for c in constants if c is not None and c.size == 1]
    return node.op_type in COMPARISONS and any(n == 0 or np.isinf(n) for n in numbers)


def ends_walk(node: ir.Node) -> bool:
    """Whether a walk up the graph ends at a node: a product with weights, or a norm."""
    if node.op_type == "MatMul":
        return node.inputs[1] is not None and constant_of(node.inputs[1]) is not None
    if node.op_type == "Einsum":
        return has_constant(node)
    return node.op_type in STOPS or bool(node.domain) or any(bodies(node))


def squares(node: ir.Node) -> bool:
    """Whether a node multiplies a value with itself, or takes a power above 1."""
    if node.op_type == "Pow":
        return not shrinks(node)
    free = free_inputs(node)
    return node.op_type == "Mul" and len(free) == 2 and free[0] is free[1]


def multiplies_itself(node: ir.Node) -> bool:
    """Whether a product has the same value, or views of it, on both sides."""
    if node.op_type not in WEIGHTED:
        return False
    origins = [_origin(value) for value in free_inputs(node)]
    return len(origins) > len(set(origins))


def _origin(value: ir.Value) -> ir.Value:
    while (node := value.producer()) is not None and node.op_type in VIEWS and node.inputs[0]:
        value = node.inputs[0]
    return value


def averages(node: ir.Node) -> bool:
    """Whether a node takes averages: over windows, or by its weights."""
    return node.op_type in WINDOWS or any(map(is_average, _shares(node)))


def sums(node: ir.Node) -> bool:
    """Whether a product is a sum: over an index that an Einsum drops, or by many equal weights."""
    if node.op_type == "Einsum" and len(node.inputs) == 1:
        return True
    return any(map(is_sum, _shares(node)))


def _shares(node: ir.Node) -> Iterator[Array]:
    """The constant operands of a product without negative elements, float[outputs, elements]."""
    if node.op_type not in WEIGHTED:
        return
    for index, value in enumerate(node.inputs[:2]):
        tensor = constant_of(value) if value is not None else None
        if tensor is not None and may_be_shares(tensor):
            weight = read_tensor(tensor)
            if not (weight < 0).any():
                yield _by_output(node, index, weight)


def _by_output(node: ir.Node, index: int, weight: Array) -> Array:
    op = node.op_type
    if op == "Einsum" or weight.ndim == 1:
        return weight.reshape(1, -1)
    if op == "Conv":
        return weight.reshape(len(weight), -1)
    if op == "ConvTranspose":
        return np.moveaxis(weight, 1, 0).reshape(weight.shape[1], -1)
    turned = bool(node.attributes.get_int("transB" if index else "transA", 0))
    elements_last = turned if index else not turned
    matrix = weight if elements_last else np.swapaxes(weight, -1, -2)
    return matrix.reshape(-1, matrix.shape[-1])


def quantized_levels(node: ir.Node) -> int:
    """The largest magnitude of what a Q/DQ node writes or reads."""
    packed = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    return 128 if packed is not None and packed.dtype == ir.DataType.INT8 else 448


def from_integers(node: ir.Node) -> bool:
    """Whether a node casts integers to FP32."""
    source = node.inputs[0].dtype if node.inputs[0] else None
    return source is not None and source.is_integer() and node.outputs[0].dtype == FLOAT


def has_constant(node: ir.Node) -> bool:
    """Whether an FP32 input of a node is a constant."""
    return len(free_inputs(node)) < sum(map(is_fp32, node.inputs))


def follows_product(node: ir.Node) -> bool:
    """Whether TensorRT can compute a node of one operand in the kernel of a product before it."""
    while True:
        producers = [p for v in free_inputs(node)[:1] if (p := v.producer()) is not None]
        if len(free_inputs(node)) != 1 or not producers:
            return False
        node = producers[0]
        if node.op_type in PRODUCTS:
            return True
        scales = node.op_type in ("Add", "Sub", "Mul", "Div") and has_constant(node)
        if not scales and node.op_type != "BatchNormalization":
            return False


def shrinks(node: ir.Node) -> bool:
    """Whether a node is a power that brings large values down, such as ``x ** -0.5``."""
    exponent = constant_of(node.inputs[1]) if node.op_type == "Pow" and node.inputs[1] else None
    return exponent is not None and exponent.size == 1 and float(exponent.numpy().item()) <= 1


def folds(node: ir.Node) -> bool:
    """Whether a ``BatchNormalization`` is a constant scale and shift."""
    training = node.attributes.get_int("training_mode", 0)
    constants = all(v is not None and constant_of(v) is not None for v in node.inputs[1:])
    return not training and constants and not any(v.uses() for v in node.outputs[1:])


def folded_statistics(node: ir.Node) -> tuple[Array, Array]:
    """Scale and shift of a ``BatchNormalization`` that :func:`folds`, float64[channels] each."""
    tensors = [tensor for v in node.inputs[1:] if v is not None and (tensor := constant_of(v))]
    scale, bias, mean, variance = (read_tensor(t).astype(np.float64) for t in tensors)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return factor, bias - mean * factor
