"""Small models of what FP16 and BF16 cannot hold: text, weights and inputs, by kind."""

from __future__ import annotations

import numpy as np

from helpers.text_models import f32, i64, normal

EYE = np.eye(8, dtype=np.float32) + normal(7, 8, 8, scale=0.1)


def uniform(seed: int, *shape: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def box(size: int, channels: int = 1) -> np.ndarray:
    return np.full((channels, 1, size, size), 1 / size**2, np.float32)


def gaussian(size: int, channels: int = 1) -> np.ndarray:
    line = np.exp(-(((np.arange(size) - size // 2) / 1.5) ** 2) / 2)
    window = np.outer(line, line) / line.sum() ** 2
    return np.broadcast_to(window, (channels, 1, size, size)).astype(np.float32)


PIXELS = np.stack(np.meshgrid(np.arange(600), np.arange(2)), -1)[None].astype(np.float32)
BASE_GRID = (
    np.stack(np.broadcast_arrays(np.linspace(-1, 1, 600), np.linspace(-1, 1, 2)[:, None], 1), -1)
    .reshape(1, -1, 3)
    .astype(np.float32)
)

# Name: text, weights, inputs. A product comes first where inputs alone would keep it all in FP32.
POSITIONS = {
    "flow by a network, to a grid": (
        """(float[1, 2, 2, 600] x) => (float[1, 2, 2, 600] y) {
            f = Conv<pads = [1, 1, 1, 1]>(x, w)
            t = Transpose<perm = [0, 2, 3, 1]>(f)
            p = Add(t, pixels)
            s = Mul(p, scale)
            g = Sub(s, one)
            y = GridSample<align_corners = 1, mode = "linear">(x, g)
        }""",
        {"w": normal(0, 2, 2, 3, 3, scale=0.2), "pixels": PIXELS, "one": f32(1),
         "scale": f32(2 / 599, 2)},
        {"x": normal(1, 1, 2, 2, 600)},
    ),
    "an affine grid by products": (
        """(float[1, 1, 2, 600] x, float[1, 8] z) => (float[1, 1, 2, 600] y) {
            t = MatMul(z, w)
            t2 = Tanh(t)
            m = Reshape(t2, theta_shape)
            m2 = Add(identity, m)
            b = Reshape(base, base_shape)
            g = MatMul(b, m2)
            g4 = Reshape(g, grid_shape)
            y = GridSample<align_corners = 1, mode = "linear">(x, g4)
        }""",
        {
            "w": normal(0, 8, 6, scale=0.03),
            "theta_shape": i64(1, 3, 2),
            "base": BASE_GRID,
            "base_shape": i64(1, 1200, 3),
            "identity": np.eye(3, 2, dtype=np.float32)[None],
            "grid_shape": i64(1, 2, 600, 2),
        },
        {"x": normal(1, 1, 1, 2, 600), "z": normal(2, 1, 8)},
    ),
    "interpolation between floors": (
        """(float[1, 8] x, float[4000] table) => (float[1, 8] y) {
            h = MatMul(x, w)
            u = Sigmoid(h)
            p = Mul(u, last)
            f = Floor(p)
            i = Cast<to = 7>(f)
            j = Add(i, one)
            t = Sub(p, f)
            a = Gather(table, i)
            b = Gather(table, j)
            d = Sub(b, a)
            dt = Mul(d, t)
            y = Add(a, dt)
        }""",
        {"w": EYE, "last": f32(3990), "one": i64(1)},
        {"x": normal(1, 1, 8), "table": np.sin(np.arange(4000, dtype=np.float32) / 100)},
    ),
    "rounded and wrapped": (
        """(float[1, 8] x) => (float[1, 8] y) {
            h = MatMul(x, w)
            s = Mul(h, large)
            m = Mod<fmod = 1>(s, period)
            r = Round(s)
            d = Sub(s, r)
            y = Add(d, m)
        }""",
        {"w": EYE, "large": f32(900), "period": f32(7)},
        {"x": normal(1, 1, 8)},
    ),
    "ids compared": (
        """(float[1, 8] x, float[1, 8] ids) => (float[1, 8] y) {
            s = Slice(ids, zero, one, axis)
            q = Add(s, half)
            r = Sub(q, half)
            e = Equal(ids, r)
            m = MatMul(x, w)
            y = Where(e, m, x)
        }""",
        {"w": EYE, "zero": i64(0), "one": i64(1), "axis": i64(1), "half": f32(0.5)},
        {"x": normal(1, 1, 8), "ids": f32(4097, 4096, 4098, 4097, 4097, 4099, 4096, 4097)[None]},
    ),
    "the smallest of a value": (
        """(float[4, 8] x) => (float[4, 8] y, float[4, 8] z) {
            least = ReduceMin(x, axis)
            first = LessOrEqual(x, least)
            h = MatMul(x, w)
            lowest = ReduceMin(h, axis)
            second = LessOrEqual(h, lowest)
            y = Where(first, one, zero)
            z = Where(second, one, zero)
        }""",
        {"w": EYE, "axis": i64(1), "one": f32(1), "zero": f32(0)},
        {"x": normal(1, 4, 8)},
    ),
    "phases that add up, behind a resize": (
        """(float[1, 8, 50] x) => (float[1, 8, 400] y) {
            h = Conv(x, w)
            f = Sigmoid(h)
            a = CumSum(f, axis)
            p = Mul(a, turn)
            r = Resize<mode = "linear">(p, , scales)
            s = Sin(r)
            y = MatMul(s, mix)
        }""",
        {"w": normal(0, 8, 8, 1), "axis": np.array(2), "turn": f32(6.2831855),
         "scales": f32(1, 1, 8), "mix": normal(3, 400, 400, scale=0.05)},
        {"x": normal(1, 1, 8, 50)},
    ),
    "phases of inputs times constants": (
        """(float[1, 50, 1] t) => (float[1, 50, 8] y) {
            p = MatMul(t, frequencies)
            r = Add(p, offsets)
            s = Cos(r)
            y = MatMul(s, w)
        }""",
        {"frequencies": normal(0, 1, 8, scale=30), "offsets": normal(1, 8, scale=100), "w": EYE},
        {"t": uniform(1, 1, 50, 1, low=-20, high=20)},
    ),
    "times that a scan adds up": (
        """(float[50, 8] x, float[8] start) => (float[50, 8] y) {
            h = MatMul(x, w)
            s = Mul(h, step)
            s2 = Add(s, step)
            last, y = Scan<num_scan_inputs = 1, body = body (float[8] a, float[8] b)
                => (float[8] c, float[8] d) { c = Add(a, b) d = Identity(c) }>(start, s2)
        }""",
        {"w": EYE, "step": f32(100.03)},
        {"x": np.abs(normal(1, 50, 8)), "start": np.zeros(8, np.float32)},
    ),
    "ids to one hot": (
        """(float[4, 3] x) => (float[4, 8] y) {
            parts_a, ids = Split<axis = 1>(x, sizes)
            flat = Squeeze(ids, last)
            hot = OneHot(flat, depth, values)
            y = MatMul(hot, table)
        }""",
        {"sizes": i64(2, 1), "last": i64(1), "depth": np.array(3000), "values": f32(0, 1),
         "table": normal(0, 3000, 8)},
        {"x": np.concatenate([normal(0, 4, 2), f32(2049, 2999, 2051, 7)[:, None]], 1)},
    ),
    "positions inside a body": (
        """(float[1, 8] x, bool cond) => (float[1, 8] y) {
            h = MatMul(x, w)
            p = Mul(h, large)
            y = If(cond) <
                then_branch = a () => (float[1, 8] u) { f = Floor(p) u = Sub(p, f) },
                else_branch = b () => (float[1, 8] v) { v = Identity(p) }
            >
        }""",
        {"w": EYE, "large": f32(3000)},
        {"x": normal(1, 1, 8), "cond": np.array(True)},
    ),
}  # fmt: skip

STATISTICS = {
    "variance by pooling": (
        """(float[1, 1, 16, 16] x) => (float[1, 1, 16, 16] y) {
            h = Conv(x, w)
            m = AveragePool<kernel_shape = [5, 5], pads = [2, 2, 2, 2], count_include_pad = 1>(h)
            hh = Mul(h, h)
            mm = AveragePool<kernel_shape = [5, 5], pads = [2, 2, 2, 2], count_include_pad = 1>(hh)
            m2 = Mul(m, m)
            v = Sub(mm, m2)
            d = Sub(h, m)
            e = Add(v, eps)
            s = Sqrt(e)
            y = Div(d, s)
        }""",
        {"w": f32(2).reshape(1, 1, 1, 1), "eps": f32(1e-5)},
        {"x": np.float32(500) + normal(1, 1, 1, 16, 16, scale=100)},
    ),
    "covariance by box filters": (
        """(float[1, 2, 16, 16] x) => (float[1, 1, 12, 12] y) {
            h = Conv(x, w)
            a, b = Split<axis = 1, num_outputs = 2>(h)
            ma = Conv(a, box)
            mb = Conv(b, box)
            aa = Mul(a, a)
            ab = Mul(a, b)
            maa = Conv(aa, box)
            mab = Conv(ab, box)
            ma2 = Mul(ma, ma)
            mamb = Mul(ma, mb)
            v = Sub(maa, ma2)
            c = Sub(mab, mamb)
            e = Add(v, eps)
            y = Div(c, e)
        }""",
        {"w": normal(0, 2, 2, 1, 1), "box": box(5), "eps": f32(1e-4)},
        {"x": np.float32(600) + normal(1, 1, 2, 16, 16, scale=100)},
    ),
    "similarity by Gaussian windows": (
        """(float[1, 1, 16, 16] x) => (float[1, 1, 6, 6] y) {
            h = Conv(x, w)
            m = Conv(h, window)
            hh = Pow(h, two)
            mm = Conv(hh, window)
            m2 = Mul(m, m)
            v = Sub(mm, m2)
            y = Add(v, c)
        }""",
        {"w": f32(40).reshape(1, 1, 1, 1), "window": gaussian(11), "two": f32(2), "c": f32(0.01)},
        {"x": np.float32(5) + normal(1, 1, 1, 16, 16)},
    ),
    "a norm by Einsum": (
        """(float[4, 8] x) => (float[4, 8] y) {
            h = MatMul(x, w)
            s = Einsum<equation = "bi,bi->b">(h, h)
            r = Sqrt(s)
            u = Unsqueeze(r, last)
            y = Div(h, u)
        }""",
        {"w": EYE, "last": i64(1)},
        {"x": normal(1, 4, 8, scale=900)},
    ),
    "a norm by MatMul of a value with itself": (
        """(float[4, 8] x) => (float[4, 8] y) {
            h = MatMul(x, w)
            a = Unsqueeze(h, two)
            b = Unsqueeze(h, one)
            s = MatMul(b, a)
            f = Reshape(s, shape)
            r = Sqrt(f)
            y = Div(h, r)
        }""",
        {"w": EYE, "one": i64(1), "two": i64(2), "shape": i64(4, 1)},
        {"x": normal(1, 4, 8, scale=900)},
    ),
    "a mean of squares by MatMul": (
        """(float[4, 8] x) => (float[4, 8] y) {
            h = MatMul(x, w)
            hh = Mul(h, h)
            s = MatMul(hh, shares)
            r = Sqrt(s)
            y = Div(h, r)
        }""",
        {"w": EYE, "shares": np.full((8, 1), 0.125, np.float32)},
        {"x": normal(1, 4, 8, scale=900)},
    ),
    "a Gram matrix": (
        """(float[1, 8, 64] x) => (float[1, 8, 8] y) {
            h = MatMul(x, w)
            t = Transpose<perm = [0, 2, 1]>(h)
            g = MatMul(h, t)
            y = Div(g, count)
        }""",
        {"w": normal(0, 64, 64, scale=0.1), "count": f32(1e5)},
        {"x": normal(1, 1, 8, 64, scale=300)},
    ),
    "sums by ones": (
        """(float[2, 500, 8] x) => (float[2, 8] y, float[2] z) {
            p = MatMul(x, w)
            h = Reshape(p, rows)
            s = MatMul(h, ones)
            m = Mul(s, small)
            y = MatMul(m, row)
            e = Einsum<equation = "bi->b">(h)
            z = Mul(e, tiny)
        }""",
        {"w": EYE, "rows": i64(2, 4000), "ones": np.ones((4000, 1), np.float32),
         "small": f32(1e-4), "tiny": f32(1e-5), "row": normal(3, 1, 8)},
        {"x": np.float32(30) + normal(1, 2, 500, 8)},
    ),
    "energies that a product reads": (
        """(float[4, 8] x) => (float[4, 8] y) {
            h = MatMul(x, w)
            hh = Pow(h, two)
            s = ReduceSum(hh, last)
            r = MatMul(s, row)
            y = Mul(r, small)
        }""",
        {"w": EYE, "two": f32(2), "last": i64(1), "row": normal(3, 1, 8), "small": f32(1e-4)},
        {"x": normal(1, 4, 8, scale=300)},
    ),
}  # fmt: skip

CONSTANTS = {
    "standardised inputs": (
        """(float[2, 3, 6, 6] x) => (float[2, 4, 6, 6] y) {
            s = Sub(x, mean)
            d = Mul(s, inverse)
            y = Conv(d, w)
        }""",
        {"mean": f32(1e5, 2e5, 300).reshape(1, 3, 1, 1), "w": normal(0, 4, 3, 1, 1),
         "inverse": f32(1e-4, 1e-5, 1e-1).reshape(1, 3, 1, 1)},
        {"x": f32(1e5, 2e5, 300).reshape(1, 3, 1, 1)
         + normal(1, 2, 3, 6, 6) * f32(1e4, 1e5, 10).reshape(1, 3, 1, 1)},
    ),
    "outputs in physical units": (
        """(float[2, 8] x) => (float[2, 8] y) {
            h = MatMul(x, w)
            s = Mul(h, spread)
            y = Add(s, offset)
        }""",
        {"w": EYE, "spread": np.full(8, 2e4, np.float32), "offset": np.full(8, 1e5, np.float32)},
        {"x": normal(1, 2, 8)},
    ),
    "weights beyond FP16": (
        """(float[2, 8] x) => (float[2, 8] y) {
            h = MatMul(x, w)
            y = Gemm(h, v, bias)
        }""",
        {"w": EYE, "v": normal(3, 8, 8, scale=1e6), "bias": normal(4, 8)},
        {"x": normal(1, 2, 8)},
    ),
    "a factor beyond FP16": (
        """(float[2, 8] x) => (float[2, 8] y) {
            h = MatMul(x, w)
            g = Gemm<alpha = 1e6>(h, w, bias)
            y = Mul(g, small)
        }""",
        {"w": EYE, "bias": normal(4, 8), "small": f32(1e-6)},
        {"x": normal(1, 2, 8)},
    ),
    "a bias beyond FP16, scaled back": (
        """(float[2, 8] x) => (float[2, 8] y) {
            h = MatMul(x, w)
            b = Gemm(h, w, bias)
            y = Mul(b, small)
        }""",
        {"w": EYE, "bias": normal(4, 8, scale=1e6), "small": np.full(8, 1e-5, np.float32)},
        {"x": normal(1, 2, 8)},
    ),
    "small and large again": (
        """(float[2, 8] x) => (float[2, 8] y) {
            h = MatMul(x, w)
            s = Mul(h, small)
            r = Relu(s)
            y = Div(r, tiny)
        }""",
        {"w": EYE, "small": normal(3, 8, scale=1e-9), "tiny": normal(4, 8, scale=1e-9)},
        {"x": normal(1, 2, 8)},
    ),
    "weights that FP16 flushes": (
        """(float[2, 8] x) => (float[2, 8] y) {
            h = MatMul(x, v)
            y = Mul(h, large)
        }""",
        {"v": normal(0, 8, 8, scale=1e-9), "large": f32(1e9)},
        {"x": normal(1, 2, 8)},
    ),
    "one channel that FP16 flushes": (
        """(float[2, 8] x) => (float[2, 8] y) {
            h = MatMul(x, w)
            d = Div(h, spread)
            y = Mul(d, spread)
        }""",
        {"w": EYE, "spread": f32(1, 1, 1, 1e-8, 1, 1, 1, 2)},
        {"x": normal(1, 2, 8)},
    ),
    "more than 65536 elements": (
        """(float[2, 8] x) => (float[300, 300] y) {
            h = MatMul(x, w)
            m = ReduceMax(h)
            s = Add(m, large)
            y = Mul(s, small)
        }""",
        {"w": EYE, "large": uniform(0, 300, 300, low=7e4, high=9e4), "small": f32(1e-5)},
        {"x": normal(1, 2, 8)},
    ),
    "a folded norm beyond FP16": (
        """(float[2, 4, 6, 6] x) => (float[2, 4, 6, 6] y) {
            h = Conv(x, w)
            b = BatchNormalization(h, one, zero, mean, tiny)
            y = Mul(b, small)
        }""",
        {"w": normal(0, 4, 4, 1, 1, scale=1e-5), "one": np.ones(4, np.float32),
         "mean": normal(2, 4, scale=1e3), "zero": np.zeros(4, np.float32),
         "tiny": np.full(4, 1e-9, np.float32), "small": f32(1e-6)},
        {"x": normal(1, 2, 4, 6, 6)},
    ),
}  # fmt: skip

WIDE = {
    "a power spectrum by products": (
        """(float[1, 1, 256] x) => (float[1, 4, 15] y) {
            re = Conv<strides = [16]>(x, c)
            im = Conv<strides = [16]>(x, s)
            r2 = Mul(re, re)
            i2 = Mul(im, im)
            p = Add(r2, i2)
            m = MatMul(filters, p)
            e = Add(m, eps)
            y = Log(e)
        }""",
        {"c": normal(0, 17, 1, 32), "s": normal(1, 17, 1, 32), "filters": uniform(2, 1, 4, 17),
         "eps": f32(1e-3)},
        {"x": normal(3, 1, 1, 256, scale=9000)},
    ),
    "a magnitude spectrum": (
        """(float[1, 1, 256] x) => (float[1, 4, 15] y) {
            re = Conv<strides = [16]>(x, c)
            im = Conv<strides = [16]>(x, s)
            r2 = Pow(re, two)
            i2 = Pow(im, two)
            p = Add(r2, i2)
            a = Sqrt(p)
            n = Div(a, count)
            y = MatMul(filters, n)
        }""",
        {"c": normal(0, 17, 1, 32), "s": normal(1, 17, 1, 32), "filters": uniform(2, 1, 4, 17),
         "two": f32(2), "count": f32(500)},
        {"x": normal(3, 1, 1, 256, scale=20000)},
    ),
    "a Fourier transform": (
        """(float[1, 256, 1] x) => (float[1, 256, 4] y) {
            f = DFT(x, , one)
            q = Pow(f, two)
            p = ReduceSum(q, last)
            m = MatMul(p, filters)
            y = Log(m)
        }""",
        {"one": np.array(1), "two": f32(2), "last": i64(2),
         "filters": uniform(0, 1, 4, low=1, high=2)},
        {"x": normal(3, 1, 256, 1, scale=9000)},
    ),
    "squared activations": (
        """(float[4, 8] x) => (float[4, 8] y) {
            a = MatMul(x, w)
            r = Relu(a)
            q = Mul(r, r)
            y = MatMul(q, v)
        }""",
        {"w": EYE, "v": normal(0, 8, 8)},
        {"x": normal(1, 4, 8, scale=400)},
    ),
    "exponentials": (
        """(float[4, 8] x) => (float[4, 8] y) {
            a = MatMul(x, w)
            e = Exp(a)
            m = MatMul(e, v)
            y = Log(m)
        }""",
        {"w": EYE, "v": uniform(0, 8, 8, low=0.5)},
        {"x": normal(1, 4, 8, scale=8)},
    ),
}  # fmt: skip

INPUTS = {
    "pixels": (
        """(float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) {
            r = Sub(x, mean)
            q = Mul(r, gain)
            y = Conv(q, w)
        }""",
        {"mean": f32(1000), "gain": f32(0.5), "w": normal(0, 4, 3, 1, 1)},
        {"x": np.float32(1000) + normal(1, 1, 3, 8, 8)},
    ),
    "resized and taken apart": (
        """(float[1, 2, 4, 4] x) => (float[1, 4, 8, 8] y) {
            r = Resize<mode = "linear">(x, , scales)
            a, b = Split<axis = 1, num_outputs = 2>(r)
            d = Sub(a, b)
            y = Conv(d, w)
        }""",
        {"scales": f32(1, 1, 2, 2), "w": normal(0, 4, 1, 1, 1)},
        {"x": np.repeat(np.float32(5000) + normal(1, 1, 1, 4, 4), 2, 1) + normal(2, 1, 2, 4, 4)},
    ),
    "times in seconds": (
        """(float[4, 2] t) => (float[4, 8] y) {
            a, b = Split<axis = 1, num_outputs = 2>(t)
            d = Sub(b, a)
            y = MatMul(d, w)
        }""",
        {"w": normal(0, 1, 8)},
        {"t": f32(86400.25, 86401, 70000, 70003.5, 3000.5, 3001.25, 40000, 40000.5).reshape(4, 2)},
    ),
}  # fmt: skip

KINDS = {**POSITIONS, **STATISTICS, **CONSTANTS, **WIDE, **INPUTS}
