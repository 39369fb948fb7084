"""Values that FP16 and BF16 must not touch, in small models of their kinds, against FP32."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.autocast_checks import BF16, FP16, convert, run
from helpers.metrics import relative_error
from helpers.reduced_kinds import EYE, KINDS, WIDE, uniform
from helpers.text_models import f32, i64, model, normal


@pytest.mark.parametrize("target", [FP16, BF16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", KINDS)
def test_what_reduced_types_cannot_hold_stays_in_fp32(name, target):
    text, weights, inputs = KINDS[name]
    original = model(text, opset=22, **weights)
    converted, _ = convert(original, target)
    with np.errstate(all="ignore"):
        found = run(converted, **inputs)
    for actual, wanted in zip(found, run(original, **inputs), strict=True):
        assert relative_error(actual, wanted) < (1e-2 if target == FP16 else 3e-2)


def kept(text, target=FP16, **weights):
    """Reasons of the nodes that stay, by name."""
    return {
        name: reason
        for reason, names in convert(model(text, 22, **weights), target)[1].examples.items()
        for name in names
    }


def test_plain_layers_gain_no_node_in_fp32():
    """Windows, residual sums, biases with tiny elements, gates and masks of a plain network."""
    text = """(float[1, 8, 8, 8] x) => (float[8, 8, 8] y) {
        [conv] a = Conv<pads = [1, 1, 1, 1]>(x, w, tiny)
        [bias] b = Add(a, tiny4)
        [relu] c = Relu(b)
        [pool] p = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c)
        [residual] r = Add(p, a)
        [scale] s = Mul(r, shares)
        [flat] f = Reshape(s, rows)
        [scores] q = MatMul(f, m)
        [mask] k = Add(q, mask)
        [softmax] t = Softmax(k)
        [mix] y0 = MatMul(t, m)
        [rows] y = Squeeze(y0, first)
    }"""
    weights = {
        "w": normal(0, 8, 8, 3, 3), "tiny": normal(1, 8, scale=1e-9), "shares": uniform(2, 8, 1, 1),
        "tiny4": np.array([0.1, 1e-7, 1e-9, 0, 1, 2, 3, 4], np.float32).reshape(1, 8, 1, 1),
        "rows": i64(1, 8, 8, 8), "m": normal(3, 8, 8), "first": i64(0),
        "mask": np.triu(np.full((8, 8), -1e9, np.float32), 1),
    }  # fmt: skip
    assert kept(text, **weights) == {"softmax": "statistics"}


@pytest.mark.parametrize(
    ("comparison", "reason"),
    [("zero", None), ("infinite", None), ("bound", "positions")],
)
def test_comparisons_that_no_rounding_changes_keep_nothing(comparison, reason):
    found = kept(
        f"""(float[2, 8] x) => (float[2, 8] y) {{
            [first] a0 = MatMul(x, w)
            [product] a = MatMul(a0, w)
            [sum] b = Add(a, bias)
            [compare] c = Greater(b, {comparison})
            [choose] y = Where(c, b, bias)
        }}""",
        w=EYE, bias=normal(1, 8), zero=f32(0), infinite=f32(np.inf), bound=f32(0.3),
    )  # fmt: skip
    assert found.get("sum") == found.get("compare") == reason
    assert "product" not in found


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_with_lengths_stay_in_fp32(operator):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    text = f"""(float[3, 2, 4] x, int32[2] n) => (float[3, 1, 2, 5] y) {{
        [cell] y = {operator}<hidden_size = 5>(x, w, r, , n)
    }}"""
    weights = {"w": normal(0, 1, 5 * gates, 4), "r": normal(1, 1, 5 * gates, 5)}
    assert kept(text, **weights) == {"cell": "tensorrt"}
    assert kept(text.replace(", , n", ""), **weights) == {}


@pytest.mark.parametrize(
    ("channels", "axes", "stays"),
    [((3, 8), 3, True), ((8, 12), 3, True), ((8, 16), 3, False), ((3, 8), 2, False)],
)
def test_transposed_convolutions_of_volumes_with_few_channels_stay_in_fp32(channels, axes, stays):
    given, made = channels
    text = f"""(float[1, {given}{", 4" * axes}] x) => (float[1, {made}{", 5" * axes}] y) {{
        [up] y = ConvTranspose(x, w)
    }}"""
    weight = normal(0, given, made, *[2] * axes)
    assert kept(text, w=weight) == ({"up": "tensorrt"} if stays else {})


def test_a_residual_does_not_carry_the_need_of_a_sine_upwards():
    """x + sin(ax)^2, as vocoders have after every convolution."""
    found = kept(
        """(float[1, 8, 16] x) => (float[1, 8, 16] y) {
            [first] a = Conv(x, w)
            [second] b = Conv(a, w)
            [residual] r = Add(a, b)
            [scaled] s = Mul(r, alpha)
            [sine] n = Sin(s)
            [square] q = Mul(n, n)
            [snake] k = Add(r, q)
            [last] y = Conv(k, w)
        }""",
        w=normal(0, 8, 8, 1), alpha=normal(1, 8, 1),
    )  # fmt: skip
    assert found == {"scaled": "argument", "sine": "statistics", "square": "statistics"}


def test_squares_of_bounded_values_are_not_large():
    found = kept(
        """(float[1, 8, 16] x) => (float[1, 8, 16] y, float[1, 8, 8] z) {
            [sine] n = Sin(x)
            [square] q = Mul(n, n)
            [last] y = Conv(q, w)
            [tanh] t = Tanh(y)
            [cube] c = Pow(t, three)
            [product] z = MatMul(c, m)
        }""",
        w=normal(0, 8, 8, 1), m=normal(1, 16, 8), three=f32(3),
    )  # fmt: skip
    assert found == {"sine": "input", "square": "input", "cube": "statistics"}


def test_measured_magnitudes_decide_instead_of_estimates():
    text, weights, inputs = WIDE["squared activations"]
    original = model(text, **weights)
    _, estimated = convert(original)
    assert estimated.kept["range"] == {"MatMul": 2, "Relu": 1}
    small = dict.fromkeys(("x", "a", "r", "q", "y"), 100.0)
    _, report = convert(original, measured=small)
    assert "range" not in report.kept
    assert report.reduced == {"MatMul": 2, "Relu": 1}
    _, report = convert(original, measured={**small, "q": 1e9})
    assert (report.kept["range"], report.overflows) == ({"MatMul": 1}, {"q": 1e9})
    converted, report = convert(original, measured={**small, "a": 4e4, "r": 4e4, "q": 1e9})
    assert report.kept["range"] == {"MatMul": 2, "Relu": 1, "Mul": 1}
    assert set(report.overflows) == {"a", "r", "q"}
    assert relative_error(run(converted, **inputs)[0], run(original, **inputs)[0]) < 1e-2
