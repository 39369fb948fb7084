"""LSTM, GRU and RNN, against PyTorch and the formulas of the specification."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.reference_nodes import run_node

torch = pytest.importorskip("torch")
F = torch.nn.functional

STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 2, 4
# Where ONNX has the gates that PyTorch has in the order i f g o, and r z n.
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def weights_of(module, name):
    """ONNX's W, R and B."""

    def ordered(prefix):
        sides = ["", "_reverse"][: 2 if module.bidirectional else 1]
        arrays = [getattr(module, f"{prefix}_l0{side}").detach().numpy() for side in sides]
        parts = [np.split(array, len(GATES[name])) for array in arrays]
        return np.stack([np.concatenate([part[g] for g in GATES[name]]) for part in parts])

    return (
        ordered("weight_ih"),
        ordered("weight_hh"),
        np.concatenate([ordered("bias_ih"), ordered("bias_hh")], axis=1),
    )


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", [None, [3, 5, 1]])
@pytest.mark.parametrize(("opset", "layout"), [(7, 0), (14, 1)])
def test_as_in_pytorch(name, bidirectional, lengths, opset, layout, rng):
    torch.manual_seed(0)
    module = getattr(torch.nn, name)(INPUTS, HIDDEN, bidirectional=bidirectional)
    directions = 2 if bidirectional else 1
    x = rng.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    states = rng.standard_normal((2, directions, BATCH, HIDDEN)).astype(np.float32)
    states = states[: 2 if name == "LSTM" else 1]
    given = [x, *weights_of(module, name)]
    given.append(None if lengths is None else np.array(lengths, np.int32))
    given += list(states)
    if layout:
        given[0] = x.swapaxes(0, 1)
        given[5:] = [state.swapaxes(0, 1) for state in states]
    options = {"linear_before_reset": 1} if name == "GRU" else {}
    if layout:
        options["layout"] = 1
    found = run_node(
        name,
        *given,
        opset=opset,
        outputs=1 + len(states),
        hidden_size=HIDDEN,
        direction="bidirectional" if bidirectional else "forward",
        **options,
    )
    if layout:
        found = [found[0].transpose(1, 2, 0, 3), *(array.swapaxes(0, 1) for array in found[1:])]

    initial = [torch.tensor(state) for state in states]
    sequence = torch.tensor(x)
    if lengths is not None:
        pack = torch.nn.utils.rnn.pack_padded_sequence
        sequence = pack(sequence, torch.tensor(lengths), enforce_sorted=False)
    with torch.no_grad():
        y, last = module(sequence, tuple(initial) if name == "LSTM" else initial[0])
    if lengths is not None:
        y = torch.nn.utils.rnn.pad_packed_sequence(y)[0]
    expected = y.reshape(STEPS, BATCH, directions, HIDDEN).transpose(1, 2)
    last = last if name == "LSTM" else [last]
    for array, tensor in zip(found, [expected, *last], strict=True):
        np.testing.assert_allclose(array, tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [None, [1]])
def test_in_reverse(lengths, rng):
    """The last input of a sequence comes first."""
    x = rng.standard_normal((2, 1, 1)).astype(np.float32)
    w, r = np.full((1, 1, 1), 0.7, np.float32), np.full((1, 1, 1), 0.4, np.float32)
    lens = None if lengths is None else np.array(lengths, np.int32)
    y, y_h = run_node("RNN", x, w, r, None, lens, outputs=2, hidden_size=1, direction="reverse")
    last = np.tanh(0.7 * x[1]) if lengths is None else np.zeros((1, 1))
    first = np.tanh(0.7 * x[0] + 0.4 * last)
    np.testing.assert_allclose(y[:, 0], [first, last], rtol=1e-6)
    np.testing.assert_allclose(y_h[0], y[0, 0])


ACTIVATIONS = {
    "Relu": (F.relu, ()),
    "Tanh": (torch.tanh, ()),
    "Sigmoid": (torch.sigmoid, ()),
    "Softsign": (F.softsign, ()),
    "Softplus": (F.softplus, ()),
    "LeakyRelu": (F.leaky_relu, (0.01,)),
    "ThresholdedRelu": (lambda x, a: F.threshold(x, a, 0), (1.0,)),
    "Elu": (F.elu, (1.0,)),
    "Affine": (lambda x, a, b: a * x + b, (1.0, 0.0)),
    "ScaledTanh": (lambda x, a, b: a * torch.tanh(b * x), (1.0, 1.0)),
    "HardSigmoid": (lambda x, a, b: (a * x + b).clamp(0, 1), (0.2, 0.5)),
}
X = np.linspace(-4, 4, 10, dtype=np.float32)
ONE = np.ones((1, 1, 1), np.float32)


def one_step(name, **attributes):
    """A cell with weight 1, each value of X its own batch, without a state before."""
    return run_node(
        "RNN", X.reshape(1, -1, 1), ONE, 0 * ONE, hidden_size=1, activations=[name], **attributes
    )[0].ravel()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    function, defaults = ACTIVATIONS[name]
    np.testing.assert_allclose(one_step(name), function(torch.tensor(X), *defaults), rtol=1e-5)
    given = dict(zip(("activation_alpha", "activation_beta"), ([0.3], [0.7]), strict=True))
    given = dict(list(given.items())[: len(defaults)])
    expected = function(torch.tensor(X), *(value for (value,) in given.values()))
    np.testing.assert_allclose(one_step(name, **given), expected, rtol=1e-5, atol=1e-7)


def test_alphas_go_to_the_activations_that_have_one(rng):
    x = rng.standard_normal((1, 3, 1)).astype(np.float32)
    w = rng.standard_normal((2, 1, 1)).astype(np.float32)
    found = run_node(
        "RNN",
        x,
        w,
        0 * w,
        hidden_size=1,
        direction="bidirectional",
        activations=["Tanh", "Affine"],
        activation_alpha=[2.0],
        activation_beta=[0.5],
    )[0]
    np.testing.assert_allclose(found[0, 0], np.tanh(x[0] * w[0]), rtol=1e-6)
    np.testing.assert_allclose(found[0, 1], 2 * (x[0] * w[1]) + 0.5, rtol=1e-6)


def test_an_activation_that_is_none():
    with pytest.raises(NotImplementedError, match="activation Swish"):
        one_step("Swish")


def test_clip_is_applied_to_what_activations_get():
    np.testing.assert_allclose(one_step("Affine", clip=1.5), X.clip(-1.5, 1.5))


def lstm_step(rng, **attributes):
    x, h, c = (rng.standard_normal((1, 1, 1)).astype(np.float32) for _ in range(3))
    w, r = (rng.standard_normal((1, 4, 1)).astype(np.float32) for _ in range(2))
    b = rng.standard_normal((1, 8)).astype(np.float32)
    p = rng.standard_normal((1, 3)).astype(np.float32)
    _, y_h, y_c = run_node(
        "LSTM", x, w, r, b, None, h, c, p, outputs=3, hidden_size=1, **attributes
    )
    i, o, f, g = (w[0, :, 0] * x.item() + r[0, :, 0] * h.item() + b[0, :4] + b[0, 4:]).tolist()
    return (i, o, f, g), p[0].tolist(), c.item(), (y_h.item(), y_c.item())


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("coupled", [0, 1])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_peepholes_clipping_and_coupled_gates_of_an_lstm(coupled, clip, rng):
    given = {} if clip is None else {"clip": clip}
    (i, o, f, g), (p_i, p_o, p_f), c, found = lstm_step(rng, input_forget=coupled, **given)
    limit = np.inf if clip is None else clip

    def cut(value):
        return np.clip(value, -limit, limit)

    gate_i = sigmoid(cut(i + p_i * c))
    gate_f = 1 - gate_i if coupled else sigmoid(cut(f + p_f * c))
    new = gate_f * c + gate_i * np.tanh(cut(g))
    h = sigmoid(cut(o + p_o * new)) * np.tanh(cut(new))
    np.testing.assert_allclose(found, (h, new), rtol=1e-5)


def test_a_gru_that_resets_before_the_product(rng):
    x, h = (rng.standard_normal((1, 1, 2)).astype(np.float32) for _ in range(2))
    w, r = (rng.standard_normal((1, 6, 2)).astype(np.float32) for _ in range(2))
    b = rng.standard_normal((1, 12)).astype(np.float32)
    found = run_node("GRU", x, w, r, b, None, h, hidden_size=2)[0].ravel()
    w_z, w_r, w_h = np.split(w[0] @ x.ravel() + b[0, :6], 3)
    r_z, r_r, r_h = np.split(r[0], 3)
    b_z, b_r, b_h = np.split(b[0, 6:], 3)
    z = sigmoid(w_z + r_z @ h.ravel() + b_z)
    reset = sigmoid(w_r + r_r @ h.ravel() + b_r)
    new = np.tanh(w_h + r_h @ (reset * h.ravel()) + b_h)
    np.testing.assert_allclose(found, (1 - z) * new + z * h.ravel(), rtol=1e-5)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_fp16_is_rounded_once(name, rng):
    count = len(GATES[name]) * HIDDEN
    arrays = [
        rng.standard_normal(shape).astype(np.float16)
        for shape in ((STEPS, BATCH, INPUTS), (1, count, INPUTS), (1, count, HIDDEN))
    ]
    found = run_node(name, *arrays, hidden_size=HIDDEN)[0]
    wide = run_node(name, *(array.astype(np.float32) for array in arrays), hidden_size=HIDDEN)[0]
    np.testing.assert_array_equal(found, wide.astype(np.float16))
