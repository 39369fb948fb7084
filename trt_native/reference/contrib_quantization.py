"""Quantized operators of the domain ``com.microsoft``, for ``onnx.reference``.

Each dequantizes its operands, computes in FP32, and quantizes the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from trt_native.arrays import Array
from trt_native.reference.contrib import ContribOperator, padded

__all__ = ["OPERATORS"]


def _dequantized(x: Array, scale: Array, zero: Array | None = None, axis: int = -1) -> Array:
    """A vector of scales goes along an axis."""
    shape = [1] * x.ndim
    if np.size(scale) > 1 and np.ndim(scale) == 1:
        shape[axis] = -1
    steps, point = (
        array.reshape(shape) if np.size(array) > 1 and np.ndim(array) == 1 else np.squeeze(array)
        for array in (np.asarray(scale), np.asarray(0 if zero is None else zero))
    )
    found: Array = (x.astype(np.float32) - point.astype(np.float32)) * steps.astype(np.float32)
    return found


def _quantized(x: Array, scale: Array, zero: Array | None, kind: np.dtype[Any]) -> Array:
    limits = np.iinfo(kind)
    steps = np.rint(x / np.squeeze(scale)) + (0 if zero is None else np.squeeze(zero))
    found: Array = np.clip(steps, limits.min, limits.max).astype(kind)
    return found


def _dynamic(x: Array) -> Array:
    """Quantized to uint8 by its own range, and dequantized."""
    kind = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    found: Any = ReferenceEvaluator(kind).run(None, {"x": x})
    return _dequantized(*found)


class _Elementwise(ContribOperator):
    """A function of dequantized operands, each with scale and zero point."""

    function = ""
    operands = 1
    plain = 0

    def compute(self, *inputs: Any) -> Array:
        rest = (*inputs[self.plain :], None)
        operands = [rest[i : i + 3] for i in range(0, 3 * self.operands, 3)]
        scale, zero = rest[3 * self.operands : 3 * self.operands + 2]
        values = [*inputs[: self.plain], *(_dequantized(*operand) for operand in operands)]
        return _quantized(self.apply(values), scale, zero, inputs[self.plain].dtype)

    def apply(self, values: Sequence[Array]) -> Array:
        options = self.options()
        last = options.pop("channels_last", 0)
        options.pop("opset", None)
        if last:
            values = [np.moveaxis(values[0], -1, 1), *values[1:]]
        if "axes" in options:
            values = [*values, np.array(options.pop("axes"), np.int64)]
        names = [f"x{index}" for index in range(len(values))]
        node = onnx.helper.make_node(self.function, names, ["y"], **options)
        outputs: Any = ReferenceEvaluator(node).run(None, dict(zip(names, values, strict=True)))
        return np.moveaxis(outputs[0], 1, -1) if last else np.asarray(outputs[0])


class QLinearConv(ContribOperator):
    """A convolution whose channels may come last; its bias is in steps of both scales."""

    def compute(self, *inputs: Any) -> Array:
        """The quantized result."""
        x, x_scale, x_zero, w, w_scale, w_zero, scale, zero, bias = padded(inputs, 9)
        options = self.options()
        last = options.pop("channels_last", 0)
        first = np.moveaxis(x, -1, 1) if last else x
        values = [_dequantized(first, x_scale, x_zero), _dequantized(w, w_scale, w_zero, 0)]
        if bias is not None:
            values.append((bias * x_scale * w_scale).astype(np.float32))
        names = [f"x{index}" for index in range(len(values))]
        node = onnx.helper.make_node("Conv", names, ["y"], **options)
        found: Any = ReferenceEvaluator(node).run(None, dict(zip(names, values, strict=True)))
        result = _quantized(found[0], scale, zero, x.dtype if zero is None else zero.dtype)
        return np.moveaxis(result, 1, -1) if last else result


class QLinearConcat(ContribOperator):
    """Operands of value, scale and zero point behind the result's scale and zero point."""

    def compute(self, *inputs: Any) -> Array:
        scale, zero, rest = inputs[0], inputs[1], inputs[2:]
        values = [_dequantized(*rest[i : i + 3]) for i in range(0, len(rest), 3)]
        return _quantized(
            np.concatenate(values, axis=int(self.options()["axis"])), scale, zero, zero.dtype
        )


class MatMulIntegerToFloat(ContribOperator):
    """A product of integers in FP32."""

    def compute(self, *inputs: Any) -> Array:
        a, b, a_scale, b_scale, a_zero, b_zero, bias = padded(inputs, 7)
        found = _dequantized(a, a_scale, a_zero, -2) @ _dequantized(b, b_scale, b_zero)
        return np.asarray(found if bias is None else found + bias)


class DynamicQuantizeMatMul(ContribOperator):
    """A product of quantized activations and weights in FP32."""

    def compute(self, *inputs: Any) -> Array:
        a, b, b_scale, b_zero, bias = padded(inputs, 5)
        found = _dynamic(a) @ _dequantized(b, b_scale, b_zero)
        return np.asarray(found if bias is None else found + bias)


class QGemm(ContribOperator):
    """A Gemm whose bias is in steps of both scales; the result may be FP32."""

    def compute(self, *inputs: Any) -> Array:
        a, a_scale, a_zero, b, b_scale, b_zero, c, scale, zero = padded(inputs, 9)
        options = self.options(alpha=1.0, transA=0, transB=0)
        left = _dequantized(a, a_scale, a_zero)
        right = _dequantized(b, b_scale, b_zero, 0 if options["transB"] else 1)
        found = (left.T if options["transA"] else left) @ (right.T if options["transB"] else right)
        if c is not None:
            found = found + c * a_scale * b_scale
        found = np.asarray(options["alpha"] * found, np.float32)
        return found if scale is None else _quantized(found, scale, zero, a.dtype)


class DynamicQuantizeLSTM(ContribOperator):
    """An LSTM of dequantized weights; activations are not quantized."""

    def _run(self, *inputs: Any, **_: Any) -> tuple[Any, ...]:
        x, w, r, *rest = padded(inputs, 12)
        weights = [
            np.swapaxes(_by_direction(value, scale, zero), 1, 2)
            for value, scale, zero in ((w, *rest[5:7]), (r, *rest[7:9]))
        ]
        arrays = [x, *weights, *rest[:5]]
        names = ["" if array is None else f"x{index}" for index, array in enumerate(arrays)]
        outputs = [f"y{index}" for index in range(len(self.onnx_node.output))]
        node = onnx.helper.make_node("LSTM", names, outputs, **self.options())
        given = {name: array for name, array in zip(names, arrays, strict=True) if name}
        return tuple(ReferenceEvaluator(node).run(None, given))


def _by_direction(value: Array, scale: Array, zero: Array | None) -> Array:
    """Dequantize weights of [directions, inputs, columns]."""
    shape = (-1, 1, 1) if scale.ndim < 2 else (scale.shape[0], 1, -1)
    point = np.zeros_like(scale) if zero is None else zero.astype(np.float32)
    found: Array = (value.astype(np.float32) - point.reshape(shape)) * scale.reshape(shape)
    return found


def _elementwise(name: str, function: str, operands: int = 1, plain: int = 0) -> type[OpRun]:
    members = {"function": function, "operands": operands, "plain": plain}
    return type(name, (_Elementwise,), members)


OPERATORS: tuple[type[OpRun], ...] = (
    _elementwise("QLinearAdd", "Add", 2),
    _elementwise("QLinearMul", "Mul", 2),
    _elementwise("QLinearWhere", "Where", 2, 1),
    _elementwise("QLinearSigmoid", "Sigmoid"),
    _elementwise("QLinearLeakyRelu", "LeakyRelu"),
    _elementwise("QLinearSoftmax", "Softmax"),
    _elementwise("QLinearReduceMean", "ReduceMean"),
    _elementwise("QLinearAveragePool", "AveragePool"),
    _elementwise("QLinearGlobalAveragePool", "GlobalAveragePool"),
    QLinearConcat,
    QLinearConv,
    MatMulIntegerToFloat,
    DynamicQuantizeMatMul,
    QGemm,
    DynamicQuantizeLSTM,
)
"""Operators that an evaluator of ``onnx.reference`` takes as new ones."""
