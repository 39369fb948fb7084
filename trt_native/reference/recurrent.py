"""LSTM, GRU and RNN, with every attribute and with lengths of sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from onnx.reference.op_run import OpRun

from trt_native.arrays import Array
from trt_native.reference.kernels import Kernel, widened

__all__ = ["KERNELS"]

_Activation: TypeAlias = Callable[[Array], Array]
_State: TypeAlias = tuple[Array, ...]

# Each with the defaults of its alpha and beta.
_ACTIVATIONS: dict[str, tuple[Callable[..., Array], tuple[float, ...]]] = {
    "relu": (lambda x: np.maximum(x, 0), ()),
    "tanh": (np.tanh, ()),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), ()),
    "softsign": (lambda x: x / (1 + np.abs(x)), ()),
    "softplus": (lambda x: np.logaddexp(x, 0), ()),
    "leakyrelu": (lambda x, a: np.where(x >= 0, x, a * x), (0.01,)),
    "thresholdedrelu": (lambda x, a: np.where(x >= a, x, 0), (1.0,)),
    "elu": (lambda x, a: np.where(x >= 0, x, a * np.expm1(x)), (1.0,)),
    "affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), (1.0, 1.0)),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), (0.2, 0.5)),
}
_DEFAULTS = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}


def _activations(
    names: Sequence[str],
    alpha: Sequence[float] | None,
    beta: Sequence[float] | None,
    clip: float | None,
) -> Iterator[_Activation]:
    """The functions; alpha and beta are used up in the order of those that have one."""
    given = (iter(alpha or ()), iter(beta or ()))
    limit = math.inf if clip is None else float(clip)
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise NotImplementedError(f"activation {name}")
        function, defaults = _ACTIVATIONS[name.lower()]
        factors = [next(source, default) for source, default in zip(given, defaults, strict=False)]
        yield partial(_activated, function, limit, factors)


def _activated(
    function: Callable[..., Array], limit: float, factors: Sequence[float], x: Array
) -> Array:
    return np.asarray(function(np.clip(x, -limit, limit), *factors))


def _recurrent(
    node: OpRun,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    peepholes: Array | None = None,
    *,
    direction: str,
    layout: int = 0,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    **options: Any,
) -> tuple[Array, ...]:
    cell = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[node.op_type]
    directions, hidden = w.shape[0], r.shape[-1]
    states = [initial_h, initial_c] if node.op_type == "LSTM" else [initial_h]
    if layout:
        x = x.swapaxes(0, 1)
        states = [state if state is None else state.swapaxes(0, 1) for state in states]
    steps, batch = x.shape[:2]
    values = widened(x)
    initial = [
        np.zeros((directions, batch, hidden), values.dtype) if state is None else widened(state)
        for state in states
    ]
    bias = np.zeros((directions, 1), values.dtype) if b is None else widened(b)
    lengths = np.full(batch, steps) if sequence_lens is None else sequence_lens
    default = _DEFAULTS[node.op_type]
    names = activations if "activations" in _given(node) and activations else default * directions
    functions = list(_activations(names, activation_alpha, activation_beta, clip))
    if len(functions) != len(default) * directions:
        raise ValueError(f"{len(functions)} activations for {directions} directions")

    y = np.zeros((steps, directions, batch, hidden), values.dtype)
    last: list[_State] = []
    for d in range(directions):
        state: _State = tuple(array[d] for array in initial)
        backwards = direction == "reverse" or d == 1
        weights = (widened(w[d]), widened(r[d]), np.broadcast_to(bias[d], 2 * w.shape[1]))
        own = functions[d * len(default) :][: len(default)]
        peephole = None if peepholes is None else widened(peepholes[d])
        for t in reversed(range(steps)) if backwards else range(steps):
            running = (t < lengths)[:, np.newaxis]
            new = cell(values[t], state, *weights, own, peepholes=peephole, **options)
            state = tuple(np.where(running, n, s) for n, s in zip(new, state, strict=True))
            y[t, d] = np.where(running, state[0], 0)
        last.append(state)
    finals = [np.stack(arrays) for arrays in zip(*last, strict=True)]
    if layout:
        y = y.transpose(2, 0, 1, 3)
        finals = [array.swapaxes(0, 1) for array in finals]
    return tuple(array.astype(x.dtype) for array in (y, *finals))


def _given(node: OpRun) -> set[str]:
    return {attribute.name for attribute in node.onnx_node.attribute}


def _rnn(
    x: Array, state: _State, w: Array, r: Array, b: Array, act: Sequence[_Activation], **_: Any
) -> _State:
    (h,) = state
    w_bias, r_bias = np.split(b, 2)
    return (act[0](x @ w.T + h @ r.T + w_bias + r_bias),)


def _gru(
    x: Array,
    state: _State,
    w: Array,
    r: Array,
    b: Array,
    act: Sequence[_Activation],
    *,
    linear_before_reset: int = 0,
    **_: Any,
) -> _State:
    (h,) = state
    w_bias, r_bias = np.split(b, 2)
    from_x = x @ w.T + w_bias
    hidden = h.shape[-1]
    gates = from_x[:, : 2 * hidden] + h @ r[: 2 * hidden].T + r_bias[: 2 * hidden]
    z, reset = np.split(act[0](gates), 2, axis=-1)
    r_h, r_h_bias = r[2 * hidden :], r_bias[2 * hidden :]
    from_h = reset * (h @ r_h.T + r_h_bias) if linear_before_reset else reset * h @ r_h.T + r_h_bias
    return ((1 - z) * act[1](from_x[:, 2 * hidden :] + from_h) + z * h,)


def _lstm(
    x: Array,
    state: _State,
    w: Array,
    r: Array,
    b: Array,
    act: Sequence[_Activation],
    *,
    peepholes: Array | None,
    input_forget: int = 0,
    **_: Any,
) -> _State:
    h, c = state
    w_bias, r_bias = np.split(b, 2)
    i, o, f, g = np.split(x @ w.T + h @ r.T + w_bias + r_bias, 4, axis=-1)
    p_i, p_o, p_f = np.split(
        np.zeros(3 * c.shape[-1], c.dtype) if peepholes is None else peepholes, 3
    )
    i = act[0](i + p_i * c)
    f = 1 - i if input_forget else act[0](f + p_f * c)
    c = f * c + i * act[1](g)
    o = act[0](o + p_o * c)
    return o * act[2](c), c


KERNELS = tuple(Kernel(name, _recurrent) for name in ("LSTM", "GRU", "RNN"))
