"""Models from ONNX text, with random weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir


def model(text: str, opset: int = 18, **weights: np.ndarray) -> ir.Model:
    """A model from ONNX text; weights become initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in weights.items())
    if not any(node.op_type == "GroupNormalization" for node in proto.graph.node) or opset != 18:
        onnx.checker.check_model(proto)  # which calls those of opset 18 deprecated
    return ir.from_proto(proto)


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def f32(*values: float) -> np.ndarray:
    return np.array(values[0] if len(values) == 1 else values, np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def conv_net(variance: float = 1.0) -> ir.Model:
    return model(
        """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
            [conv] a = Conv<pads = [1, 1, 1, 1]>(x, w)
            [bn] b = BatchNormalization(a, gamma, beta, mean, var)
            [relu] c = Relu(b)
            [conv2] y = Conv(c, w2, bias)
        }""",
        w=normal(0, 8, 3, 3, 3, scale=variance**0.5 / 5),
        gamma=normal(1, 8),
        beta=normal(2, 8),
        mean=normal(3, 8, scale=variance**0.5),
        var=np.abs(normal(4, 8)) * np.float32(variance) + np.float32(variance),
        w2=normal(5, 4, 8, 1, 1),
        bias=normal(6, 4),
    )  # fmt: skip


LAYER_NORM = """
            [mean] m = ReduceMean({x}, last)
            [centre] d = Sub({x}, m)
            [square] d2 = Pow(d, two)
            [variance] v = ReduceMean(d2, last)
            [eps] ve = Add(v, epsilon)
            [std] s = Sqrt(ve)
            [norm] n = Div(d, s)
            [gamma] ng = Mul(n, g)
            [beta] {y} = Add(ng, b)"""


def attention(fused: bool) -> ir.Model:
    """A pre-norm attention block with a residual sum."""
    norm = "[ln] h = LayerNormalization(x, g, b)" if fused else LAYER_NORM.format(x="x", y="h")
    softmax = (
        "[softmax] p = Softmax(z)"
        if fused
        else """
            [max] zm = ReduceMax(z, last)
            [shift] zs = Sub(z, zm)
            [exp] e = Exp(zs)
            [sum] es = ReduceSum(e, last)
            [divide] p = Div(e, es)"""
    )
    weights = {k: normal(i, 16, 16, scale=0.25) for i, k in enumerate(("wq", "wk", "wv", "wo"))}
    decomposed = {} if fused else {"last": i64(-1), "two": f32(2.0), "epsilon": f32(1e-6)}
    return model(
        f"""(float[B, 6, 16] x) => (float[B, 6, 16] y) {{
            {norm}
            [q] q = MatMul(h, wq)
            [k] k = MatMul(h, wk)
            [v] vv = MatMul(h, wv)
            [kt] kt = Transpose<perm = [0, 2, 1]>(k)
            [scores] s0 = MatMul(q, kt)
            [scale] z = Mul(s0, quarter)
            {softmax}
            [mix] o = MatMul(p, vv)
            [out] r = MatMul(o, wo)
            [residual] y = Add(x, r)
        }}""",
        quarter=f32(0.25), g=normal(7, 16), b=normal(8, 16), **decomposed, **weights,
    )  # fmt: skip


def group_norm() -> ir.Model:
    """GroupNorm + SiLU in plain arithmetic, between two convolutions, with a residual sum."""
    return model(
        """(float[N, 8, 12, 12] x) => (float[N, 8, 12, 12] y, float[N, 8, 12, 12] o) {
            [conv_in] c = Conv(x, w)
            [grouped] r = Reshape(c, groups)
            [mean] m = ReduceMean(r, last)
            [centre] d = Sub(r, m)
            [square] d2 = Mul(d, d)
            [variance] v = ReduceMean(d2, last)
            [eps] ve = Add(v, epsilon)
            [std] s = Sqrt(ve)
            [norm] n = Div(d, s)
            [shaped] nr = Reshape(n, like)
            [gamma] ng = Mul(nr, g)
            [beta] h = Add(ng, b)
            [sigmoid] sg = Sigmoid(h)
            [silu] a = Mul(h, sg)
            [conv_out] o = Conv(a, w2)
            [residual] y = Add(c, o)
        }""",
        w=normal(0, 8, 8, 1, 1), w2=normal(1, 8, 8, 1, 1), groups=i64(0, 2, -1),
        like=i64(0, 8, 12, 12), last=i64(-1), epsilon=f32(1e-6),
        g=normal(2, 8, 1, 1), b=normal(3, 8, 1, 1),
    )  # fmt: skip


def time_embedding() -> ir.Model:
    """Sinusoidal embedding of an integer timestep, then a linear layer."""
    half = 16
    return model(
        """(int64[N] t) => (float[N, 8] y) {
            [cast] f = Cast<to = 1>(t)
            [column] c = Unsqueeze(f, one)
            [argument] a = Mul(c, freqs)
            [sin] s = Sin(a)
            [cos] k = Cos(a)
            [join] e = Concat<axis = 1>(s, k)
            [linear] y = MatMul(e, w)
        }""",
        one=i64(1), freqs=np.exp(-np.log(1e4) * np.arange(half) / half).astype(np.float32)[None],
        w=normal(0, 2 * half, 8),
    )  # fmt: skip
