"""Fusions that TensorRT miscompiles, on the GPU, and the same models without the pass."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.passes import pass_records
from onnx.reference import ReferenceEvaluator

from trt_native import BuildConfig, Precision, Session, build_plan
from trt_native.passes.break_fusions import BreakFusions
from trt_native.shapes import ProfileSpec

pytestmark = [pytest.mark.gpu, pytest.mark.backend]

WEIGHTS = ", ".join(f"{3 * np.sin(2 * n):.2f}" for n in range(24))
ROW = ", ".join(f"{np.cos(n):.2f}" for n in range(112))
NINE = ", ".join(f"{np.cos(n):.2f}" for n in range(27))
FORTYEIGHT = ", ".join(f"{np.sin(n):.2f}" for n in range(48))
HEADER = '<ir_version: 8, opset_import: ["": 18]>'
MODELS = {
    "softmax and minimum": f"""{HEADER} g (float[1,2,2,2] x) => (float[1,2,2,1] y)
        {{ i = Constant <value = int64[2] {{0, 3}}> () a = Softmax <axis = 2> (x)
          y = ReduceMin (a, i) }}""",
    "centered mean": f"""{HEADER} g (float[2,8,2,5] x) => (float[1,1,2,5] y)
        {{ i = Constant <value = int64[1] {{2}}> () j = Constant <value = int64[2] {{0, 1}}> ()
          k = Constant <value = float {{1.5}}> () m = ReduceMax (x, i) c = Sub (x, m)
          s = Mul (c, k) y = ReduceMean (s, j) }}""",
    "broadcast norm": f"""{HEADER} g (float[2,1,2,5] z, float[1,1,2,5] x) => (float[2,1,2,5] y)
        {{ w = Constant <value = float[5] {{0.65, 1.37, -1.29, -2.69, 1.01}}> ()
          n = LayerNormalization <axis = -1, epsilon = 0.001> (x, w) y = Mul (z, n) }}""",
    "broadcast softmax": f"""{HEADER} g (float[3,1,64,33] x, float[3,5,64,33] z)
        => (float[3,5,64,33] y) {{ n = Softmax (x) y = Mul (z, n) }}""",
    "sampler and its twin": f"""{HEADER} g (float[1,16,32,32] x, float[1,5,6,2] g)
        => (float[1,16,5,6] s, float[1,16,32,32] y)
        {{ r = Relu (x) s = GridSample (r, g) y = Relu (x) }}""",
    "sampler and sum": f"""{HEADER} g (float[2,7,8,9] x, float[2,3,3,2] g)
        => (float[2,7,3,3] s, float[2,7,8,9] y)
        {{ k = Constant <value = int64 {{0}}> () s = GridSample (x, g) y = CumSum (x, k) }}""",
    "cumulative sum and others": f"""{HEADER} g (float[2,1,2] x)
        => (float[2,1,2] y, float[2,1,2] v, float[2,1,2] m, float[2,1,2] r)
        {{ k = Constant <value = int64 {{0}}> () y = CumSum (x, k)
          v = ThresholdedRelu <alpha = 0.1> (x) m = Mul (v, v) r = Round (v) }}""",
    "an output reshaped to its shape": f"""{HEADER} g (float[n,3] x)
        => (float[n,3] r, float[n,3] y)
        {{ s = Constant <value = int64[2] {{0, 0}}> () r = Exp (x) y = Reshape (r, s) }}""",
    "an output and every other element": f"""{HEADER} g (float[2,2,4,6] x)
        => (float[2,2,4,6] r, float[2,2,2,3] y)
        {{ s = Constant <value = int64[4] {{2, 2, 2, 3}}> () r = Exp (x)
          y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",
            nearest_mode = "floor"> (r, , , s) }}""",
    "a sampler far behind an output": f"""{HEADER} g (float[2,7] x, float[1,3,2,2] g)
        => (float[2,7] r, float[1,1,3,2] s)
        {{ z = Constant <value = int64[4] {{1, 1, 2, 7}}> () r = Tan (x) a = Abs (r)
          u = Reshape (a, z) s = GridSample (u, g) }}""",
    "softmax, padded": f"""{HEADER} g (float[2,3,5] x) => (float[2,3,7] y)
        {{ p = Constant <value = int64[6] {{0, 0, 1, 0, 0, 1}}> ()
          a = Softmax (x) b = Pad <mode = "edge"> (a, p) y = Softmax (b) }}""",
    "reversed sum": f"""{HEADER} g (float[1,3,1,2] x) => (float[1,3,1,1] y)
        {{ i = Constant <value = int64[2] {{0, 3}}> () b = Constant <value = int64[2] {{0, -1}}> ()
          e = Constant <value = int64[2] {{1, -2147483647}}> ()
          t = Constant <value = int64[2] {{1, -1}}> ()
          a = ReduceSumSquare (x, i) s = Slice (a, b, e, i, t) y = Reciprocal (s) }}""",
    "product of logarithms": f"""{HEADER} g (float[4,3,5] x) => (float[1,3,3] y)
        {{ i = Constant <value = int64[1] {{0}}> () e = Exp (x) a = ReduceLogSum (e, i)
          t = Transpose <perm = [0, 2, 1]> (a) y = MatMul (a, t) }}""",
    "row and pointwise convolution": f"""{HEADER} g (float[4,1,28,56] x) => (float[4,2,28,56] y)
        {{ w = Constant <value = float[2,1,1,1] {{0.3, 1.1}}> ()
          c = Constant <value = float[1,2,1,56] {{{ROW}}}> ()
          d = Constant <value = float {{2}}> () q = Div (x, d) a = Conv (q, w) y = Sub (a, c) }}""",
    "every other mean": f"""{HEADER} g (float[4,3,5,6] x) => (float[4,2,5,1] y)
        {{ i = Constant <value = int64[1] {{3}}> () b = Constant <value = int64[1] {{0}}> ()
          e = Constant <value = int64[1] {{99}}> () c = Constant <value = int64[1] {{1}}> ()
          t = Constant <value = int64[1] {{2}}> () a = ReduceMean (x, i) d = Abs (a)
          s = Slice (d, b, e, c, t) y = Neg (s) }}""",
    "softmax of a softmax": f"""{HEADER} g (float[4,5,6,5] x) => (float[4,5,6,5] y)
        {{ a = Softmax <axis = 1> (x) y = Softmax <axis = 1> (a) }}""",
    "normed mean": f"""{HEADER} g (float[4,3,5,5] x) => (float[4,3,5,1] y)
        {{ i = Constant <value = int64[1] {{3}}> () a = LpNormalization <axis = 3> (x)
          y = ReduceMean (a, i) }}""",
    "a part that is an output": f"""{HEADER} g (float[2,8,3] x)
        => (float[2,4,3] v, float[2,4,3] w, float[2,4,3] y)
        {{ s = Constant <value = float[4,3] {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}> ()
          v, w = Split <axis = 1, num_outputs = 2> (x)
          y = LayerNormalization <axis = 1> (v, s) }}""",
    "an output resized to its shape": f"""{HEADER} g (float[1,1,4,5] x)
        => (float[1,1,4,5] r, float[1,1,4,5] y)
        {{ s = Constant <value = int64[4] {{1, 1, 4, 5}}> () r = Exp (x)
          y = Resize <mode = "linear"> (r, , , s) }}""",
    "an output summed along no axis": f"""{HEADER} g (float[4,1] x)
        => (float[4,1] r, float[4,1] y) {{ r = Exp (x) y = Einsum <equation = "ab->ab"> (r) }}""",
    "a number for each image": f"""{HEADER} g (float[3,4,5,6] x, float[3,1,1,1] b)
        => (float[3,1,5,6] y)
        {{ w = Constant <value = float[1,4,1,1] {{0.3, 1.1, -0.4, 0.8}}> ()
          a = Conv (x, w) y = Add (a, b) }}""",
    "product and cast": f"""{HEADER} g (float[2,2] x) => (int32[2,4] y)
        {{ w = Constant <value = float[2,4] {{-2.6, 3.9, -0.7, 4.8, 2.2, 3.1, -2.4, -4.4}}> ()
          a = Gemm (x, w) y = Cast <to = 6> (a) }}""",
    "product of a logarithm": f"""{HEADER} g (float[2,9] x) => (float[2,3] y)
        {{ w = Constant <value = float[9,3] {{{NINE}}}> ()
          a = Abs (x) l = Log (a) y = MatMul (l, w) }}""",
    "square root in a product with itself": f"""{HEADER} g (float[2,9] x) => (float[2,2] y)
        {{ c = Constant <value = float {{0.0000001}}> () a = Mul (x, x) b = Sub (a, c)
          s = Sqrt (b) y = Einsum <equation = "ab,cb->ac"> (s, s) }}""",
    "error function of a transposed convolution": f"""{HEADER} g (float[2,3,4,4] x)
        => (float[2,4,8,8] y) {{ w = Constant <value = float[3,4,2,2] {{{FORTYEIGHT}}}> ()
          a = ConvTranspose <strides = [2, 2]> (x, w) y = Erf (a) }}""",
    "norm beside a resize": f"""{HEADER} g (float[1,2,6,4] x)
        => (float[1,2,3,2] r, float[1,2,6,4] y)
        {{ s = Constant <value = int64[4] {{1, 2, 3, 2}}> ()
          w = Constant <value = float[2] {{1, 1}}> () a = InstanceNormalization (x, w, w)
          r = Resize <mode = "linear", coordinate_transformation_mode = "asymmetric"> (x, , , s)
          y = Relu (a) }}""",
    "a reduction that is an output": f"""{HEADER} g (float[1,7,1] x, float[1,8,7,1] z)
        => (float[1,1] o, bool[1,8,7,1] l, float[1,1,1,1] q, float p)
        {{ k = Constant <value = float {{1.2}}> () i = Constant <value = int64[1] {{1}}> ()
          j = Constant <value = int64[1] {{0}}> () o = ReduceSumSquare <keepdims = 0> (x, i)
          h = HardSigmoid (o) u = Unsqueeze (h, j) w = Unsqueeze (u, j) q = Mul (w, k)
          p = ReduceLogSumExp <keepdims = 0> (u) a = Add (z, x) l = LessOrEqual (h, a) }}""",
    "equal outputs": f"""{HEADER} g (float[2,5,1,1] x)
        => (float[2,5,1,1] u, float[2,5,1,1] v, float[2,5,1,1] y, float[2,5,1,1] z)
        {{ k = Constant <value = float {{0.9}}> () a = Tanh (x) y = Mul (a, k) z = Tanh (x)
          u = Mul (z, k) v = Tan (u) }}""",
    "group norm, broadcast": """<ir_version: 8, opset_import: ["": 21]>
        g (float[2,1,8] z, float[2,8] x) => (float[2,2,8] y)
        { w = Constant <value = float[1] {1.3}> ()
          n = GroupNormalization <num_groups = 1> (z, w, w) y = Mul (n, x) }""",
    "softmax, scaled, and maximum": f"""{HEADER} g (float[2,7,3,2] x) => (float[1,7,1,2] y)
        {{ w = Constant <value = float[7] {{0.5, 0.75, 1, 1.25, 1.5, 1.75, 2}}> ()
          o = Constant <value = float[7] {{-1, -0.6, -0.3, 0, 0.3, 0.6, 1}}> ()
          i = Constant <value = int64[2] {{0, 2}}> () a = LogSoftmax <axis = 3> (x)
          b = BatchNormalization (a, w, o, o, w) c = Abs (b) y = ReduceMax (c, i) }}""",
    "convolution and cast": f"""{HEADER} g (float[2,1,8] x) => (float[2,2,8] y)
        {{ w = Constant <value = float[8,1,3] {{{WEIGHTS}}}> ()
          b = Constant <value = float[8] {{1, 2, 3, 4, -1, -2, -3, -4}}> ()
          i = Constant <value = int64[2] {{0, 3}}> ()
          a = Conv <auto_pad = "SAME_UPPER"> (x, w, b) c = Cast <to = 6> (a) d = Cast <to = 1> (c)
          y = Gather <axis = 1> (d, i) }}""",
}


PRECISIONS = {
    "product of logarithms": Precision.TF32,
    "row and pointwise convolution": Precision.FP16,
    "product of a logarithm": Precision.TF32,
    "square root in a product with itself": Precision.TF32,
    "error function of a transposed convolution": Precision.FP16,
    "group norm, broadcast": Precision.FP16,
}
"""Those that are wrong in others than FP32."""


def config_of(path):
    precision = PRECISIONS.get(path.stem, Precision.FP32)
    dynamic = "[n," in MODELS[path.stem]
    profiles = (ProfileSpec.parse(["n=1:3:3"]),) if dynamic else ()
    return BuildConfig(precision=precision, profiles=profiles)


def error_of(path, inputs):
    with Session(build_plan(path, config_of(path))) as session:
        found = session.run(inputs)
    expected = ReferenceEvaluator(str(path)).run(None, inputs)
    names = [output.name for output in onnx.load(path).graph.output]
    return max(
        float(np.linalg.norm(np.asarray(found[n], np.float64) - e) / np.linalg.norm(e))
        for n, e in zip(names, expected, strict=True)
    )


@pytest.fixture(params=MODELS)
def case(request, tmp_path, rng):
    proto = onnx.parser.parse_model(MODELS[request.param])
    path = tmp_path / f"{request.param}.onnx"
    onnx.save(proto, path)
    inputs = {
        value.name: rng.uniform(
            -0.9, 0.9, [d.dim_value or 3 for d in value.type.tensor_type.shape.dim]
        )
        for value in proto.graph.input
    }
    return path, {name: array.astype(np.float32) for name, array in inputs.items()}


def test_they_are_right(case):
    path, inputs = case
    plan = build_plan(path, config_of(path))
    assert pass_records(plan.manifest)["break_fusions"]["tensors"]
    assert error_of(path, inputs) < (2e-3 if path.stem in PRECISIONS else 1e-5)


def test_the_defect_is_still_there(case, monkeypatch):
    """Where this fails, the pass is not needed for this TensorRT any more."""
    monkeypatch.setattr(BreakFusions, "needed", lambda *_: False)
    assert not error_of(*case) <= 1e-3  # it may be NaN
