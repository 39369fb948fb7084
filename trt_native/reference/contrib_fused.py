"""Fused norms, products and activations of the domain ``com.microsoft``, for ``onnx.reference``.

They are computed in FP32, and rounded once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from trt_native.arrays import Array
from trt_native.reference.contrib import ContribOperator, padded
from trt_native.reference.kernels import widened

__all__ = ["OPERATORS", "UnversionedLayerNormalization"]

_erf = np.vectorize(math.erf, otypes=[np.float32])


def _plain(operator: str, *inputs: Array | None, **options: Any) -> Array:
    """One node of the standard domain."""
    names = ["" if array is None else f"x{index}" for index, array in enumerate(inputs)]
    node = onnx.helper.make_node(operator, names, ["y"], **options)
    given = {name: array for name, array in zip(names, inputs, strict=True) if name}
    found: Any = ReferenceEvaluator(node).run(None, given)
    return np.asarray(found[0])


def _gelu(x: Array) -> Array:
    found: Array = 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    return found


class Gelu(ContribOperator):
    """By the error function, of a sum with a bias if there is one."""

    def compute(self, *inputs: Any) -> Array:
        """The activation."""
        return _gelu(sum(map(widened, inputs))).astype(inputs[0].dtype)  # type: ignore[arg-type]


class FastGelu(ContribOperator):
    """By the hyperbolic tangent."""

    def compute(self, *inputs: Any) -> Array:
        """The activation."""
        x: Any = sum(widened(array) for array in inputs if array is not None)
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return (0.5 * x * (1 + np.tanh(inner))).astype(inputs[0].dtype)  # type: ignore[no-any-return]


class QuickGelu(ContribOperator):
    """By a sigmoid."""

    def compute(self, *inputs: Any) -> Array:
        """The activation."""
        x = widened(inputs[0])
        alpha = self.options(alpha=1.702)["alpha"]
        return np.asarray(x / (1 + np.exp(-alpha * x)), inputs[0].dtype)


class BiasSplitGelu(ContribOperator):
    """The first half times the Gelu of the second."""

    def compute(self, *inputs: Any) -> Array:
        """The product."""
        one, other = np.split(widened(inputs[0]) + widened(inputs[1]), 2, axis=-1)
        return np.asarray(one * _gelu(other), inputs[0].dtype)


class BiasAdd(ContribOperator):
    """The sum of three."""

    def compute(self, *inputs: Any) -> Array:
        """The sum."""
        return np.asarray(sum(map(widened, inputs)), inputs[0].dtype)


class FusedMatMul(ContribOperator):
    """Of transposed operands, times a factor."""

    def compute(self, *inputs: Any) -> Array:
        """The product."""
        options = self.options(alpha=1.0, transA=0, transB=0, transBatchA=0, transBatchB=0)
        batched = (
            np.moveaxis(widened(x), 0, -2) if options[f"transBatch{name}"] else widened(x)
            for x, name in zip(inputs, "AB", strict=True)
        )
        a, b = (
            x.swapaxes(-1, -2) if options[f"trans{name}"] and x.ndim > 1 else x
            for x, name in zip(batched, "AB", strict=True)
        )
        return np.asarray(options["alpha"] * (a @ b), inputs[0].dtype)


class MatMulNBits(ContribOperator):
    """Weights of a few bits, in blocks with a scale and a zero point each."""

    def compute(self, *inputs: Any) -> Array:
        """The product."""
        a, packed, scales, zeros, order, bias = padded(inputs, 6)
        options = self.options(bits=4, weight_prepacked=0)
        self.lacks(g_idx=order, weight_prepacked=options["weight_prepacked"])
        rows, columns, bits = options["K"], options["N"], options["bits"]
        steps = _bits(packed.reshape(columns, -1), bits)[:, :rows]
        blocks = -(-rows // options["block_size"])
        if zeros is None:
            zeros = np.full((columns, blocks), 2 ** (bits - 1))
        elif zeros.dtype == np.uint8:
            zeros = _bits(zeros.reshape(columns, -1), bits)[:, :blocks]
        block = np.arange(rows) // options["block_size"]
        centred = steps - widened(zeros.reshape(columns, blocks))[:, block]
        weights = centred * widened(scales.reshape(columns, blocks))[:, block]
        found = widened(a) @ weights.astype(np.float32).T
        return np.asarray(found if bias is None else found + widened(bias), a.dtype)


def _bits(packed: Array, bits: int) -> Array:
    """Numbers of a few bits of each byte, the lowest first."""
    single = np.unpackbits(packed, axis=-1, bitorder="little")
    digits = single.reshape(*packed.shape[:-1], -1, bits).astype(np.float32)
    found: Array = digits @ (2.0 ** np.arange(bits, dtype=np.float32))
    return found


class _Activated(ContribOperator):
    """A plain operator, a further input that is added, and an activation."""

    operator = ""
    channels_last = False

    def compute(self, *inputs: Any) -> Array:
        """The result."""
        x, w, bias, added = padded(inputs, 4)
        options = self.options()
        activation = options.pop("activation", b"").decode()
        params = list(options.pop("activation_params", ()))
        params += [options.pop(name) for name in _PARAMS if name in options]
        x = np.moveaxis(widened(x), -1, 1) if self.channels_last else widened(x)
        given = None if bias is None else widened(bias)
        w = self.filters(w, x.shape[1] // options.get("group", 1), options)
        found = _plain(self.operator, x, widened(w), given, **options)
        found = np.moveaxis(found, 1, -1) if self.channels_last else found
        found = found if added is None else found + widened(added)
        return _activated(found, activation, params).astype(inputs[0].dtype)

    def filters(self, w: Array, _channels: int, _options: dict[str, Any]) -> Array:
        """The weights as the plain operator takes them."""
        return w


_PARAMS = ("activation_alpha", "activation_beta")


def _activated(x: Array, operator: str, params: list[float]) -> Array:
    if not operator:
        return x
    if operator == "Clip":
        return np.clip(x, min=params[0], max=params[1])
    names = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}.get(operator, ())
    return _plain(operator, x, **dict(zip(names, params, strict=True)))


class FusedConv(_Activated):
    """A convolution."""

    operator = "Conv"


class FusedGemm(_Activated):
    """A matrix product."""

    operator = "Gemm"


class NhwcFusedConv(_Activated):
    """A convolution of channels that come last."""

    operator, channels_last = "Conv", True


class NhwcConv(NhwcFusedConv):
    """The same; ONNX Runtime's tools put the channels of the weights last, too."""

    def filters(self, w: Array, channels: int, options: dict[str, Any]) -> Array:
        """The weights with channels first."""
        kernel = options.get("kernel_shape")
        fits = [
            shape[0] == channels and kernel in (None, list(shape[1:]))
            for shape in (w.shape[1:], np.roll(w.shape[1:], 1))
        ]
        if set(w.shape[1:]) == {1} or fits == [True, False]:
            return w
        if fits != [False, True]:
            raise NotImplementedError("weights whose axis of channels is not clear")
        return np.moveaxis(w, -1, 1)


class NhwcMaxPool(ContribOperator):
    """A pool of channels that come last."""

    def compute(self, *inputs: Any) -> Array:
        """The maxima."""
        (x,) = inputs
        first = np.moveaxis(x, -1, 1).astype(np.float32)
        found = _plain("MaxPool", first, **self.options())
        return np.moveaxis(found, 1, -1).astype(x.dtype)


def _normed(x: Array, scale: Array, bias: Array | None, epsilon: float) -> tuple[Array, ...]:
    """The norm along the last axis, its mean, and one by its deviation."""
    mean = x.mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
    found = (x - mean) * inverse * widened(scale)
    return found if bias is None else found + widened(bias), mean, inverse


def _scaled(x: Array, scale: Array, epsilon: float) -> Array:
    """The norm by the root of the mean of squares."""
    found: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * widened(scale)
    return found


class _SimplifiedNorm(ContribOperator):
    def compute(self, *inputs: Any) -> Array:
        """The norm."""
        options = self.options(epsilon=1e-5, axis=-1)
        if options["axis"] != -1:
            raise NotImplementedError("another axis than the last")
        return _scaled(widened(inputs[0]), inputs[1], options["epsilon"]).astype(inputs[0].dtype)


class SkipLayerNormalization(ContribOperator):
    """The norm of a sum."""

    def _run(self, *inputs: Any, **_: Any) -> tuple[Any, ...]:
        x, skip, scale, bias, added = padded(inputs, 5)
        total = widened(x) + widened(skip) + (0 if added is None else widened(added))
        found, mean, inverse = _normed(total, scale, bias, self.options(epsilon=1e-12)["epsilon"])
        return self.several(found.astype(x.dtype), mean, inverse, total.astype(x.dtype))


class SkipSimplifiedLayerNormalization(ContribOperator):
    """The norm of a sum without its mean."""

    def _run(self, *inputs: Any, **_: Any) -> tuple[Any, ...]:
        x, skip, scale, added = padded(inputs, 4)
        total = widened(x) + widened(skip) + (0 if added is None else widened(added))
        found = _scaled(total, scale, self.options(epsilon=1e-12)["epsilon"])
        nothing = np.zeros((*x.shape[:-1], 1), np.float32)
        return self.several(found.astype(x.dtype), nothing, nothing, total.astype(x.dtype))


class EmbedLayerNormalization(ContribOperator):
    """The norm of rows of tables, and how many elements of each row of the mask are 1."""

    def _run(self, *inputs: Any, **_: Any) -> tuple[Any, ...]:
        ids, segments, words, rows, table, scale, bias, mask, places = padded(inputs, 9)
        places = np.arange(ids.shape[1]) if places is None else places
        total = widened(words)[ids] + widened(rows)[places]
        if segments is not None:
            total = total + widened(table)[segments]
        ones = np.zeros_like(ids) if mask is None else mask == 1
        found, *_rest = _normed(total, scale, bias, self.options(epsilon=1e-12)["epsilon"])
        kind = words.dtype
        return self.several(
            found.astype(kind), ones.sum(axis=1, dtype=np.int32), total.astype(kind)
        )


class _GroupNorm(ContribOperator):
    """Norms of groups of channels, of a sum if there is more than one input."""

    def _run(self, *inputs: Any, **_: Any) -> tuple[Any, ...]:
        x, scale, bias, skip, added = padded(inputs, 5)
        options = self.options(channels_last=1, epsilon=1e-5)
        count, epsilon = options["groups"], options["epsilon"]
        total = widened(x)
        if not options["channels_last"]:
            total = np.moveaxis(total, 1, -1)
        if skip is not None:
            skip = widened(skip)
            if skip.ndim == 2:
                skip = skip.reshape(skip.shape[0], *[1] * (x.ndim - 2), -1)
            elif not options["channels_last"]:
                skip = np.moveaxis(skip, 1, -1)
            total = total + skip + (0 if added is None else widened(added))
        groups = total.reshape(total.shape[0], -1, count, total.shape[-1] // count)
        centred = groups - groups.mean(axis=(1, 3), keepdims=True)
        variance = np.square(centred).mean(axis=(1, 3), keepdims=True)
        found = (centred / np.sqrt(variance + epsilon)).reshape(total.shape) * widened(
            scale
        ) + widened(bias)
        if options.get("activation", options.get("swish", 0)):
            found = found / (1 + np.exp(-found))
        outputs = (found, total)
        if not options["channels_last"]:
            outputs = tuple(np.moveaxis(array, -1, 1) for array in outputs)  # type: ignore[assignment]
        return self.several(*(array.astype(x.dtype) for array in outputs))


class UnversionedLayerNormalization(ContribOperator):
    """LayerNormalization of the standard domain before opset 17, as ONNX Runtime has it."""

    op_domain = ""

    def _run(self, *inputs: Any, **_: Any) -> tuple[Any, ...]:
        x, scale, bias = padded(inputs, 3)
        options = self.options(epsilon=1e-5, axis=-1)
        if options["axis"] % x.ndim != x.ndim - 1:
            raise NotImplementedError("another axis than the last")
        found, mean, inverse = _normed(widened(x), scale, bias, options["epsilon"])
        return self.several(found.astype(x.dtype), mean, inverse)


def _named(name: str, base: type[OpRun], domain: str = "com.microsoft") -> type[OpRun]:
    return type(name, (base,), {"op_domain": domain})


OPERATORS: tuple[type[OpRun], ...] = (
    Gelu,
    _named("BiasGelu", Gelu),
    FastGelu,
    QuickGelu,
    BiasSplitGelu,
    BiasAdd,
    FusedMatMul,
    _named("TransposeMatMul", FusedMatMul),
    MatMulNBits,
    FusedConv,
    FusedGemm,
    NhwcConv,
    NhwcFusedConv,
    NhwcMaxPool,
    _named("SimplifiedLayerNormalization", _SimplifiedNorm),
    _named("SimplifiedLayerNormalization", _SimplifiedNorm, ""),
    SkipLayerNormalization,
    SkipSimplifiedLayerNormalization,
    EmbedLayerNormalization,
    _named("GroupNorm", _GroupNorm),
    _named("SkipGroupNorm", _GroupNorm),
)
"""Operators that an evaluator of ``onnx.reference`` takes as new ones."""
