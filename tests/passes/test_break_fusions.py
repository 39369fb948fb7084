"""Fusions broken on request, and where TensorRT miscompiles them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.passes import normalized
from onnx.reference import ReferenceEvaluator

from trt_native.config import BuildConfig
from trt_native.errors import SpecError, UnsupportedError
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.break_fusions import BreakFusions, break_fusion
from trt_native.reference.evaluator import evaluator
from trt_native.shapes import Profile, ShapeRange


def parsed(body, inputs="float[2,4,5] x", outputs="float[N] y", opset=18):
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return onnx.parser.parse_model(text)


def broken(proto, *names, profiles=()):
    """Tensors at which the pass breaks fusions, after it did."""
    model = normalized(proto)
    one = BreakFusions(
        PassContext(
            config=BuildConfig(break_fusions=names),
            precision=ResolvedPrecision(),
            profiles=profiles,
        )
    )
    if not one.needed(model):
        return [], model
    preview = one.preview(model)
    one(model)
    assert one.record == preview
    return list(one.record["tensors"]), model


def readers(model, name):
    """Operators that read a tensor."""
    return {node.op_type for node in model.graph if any(v and v.name == name for v in node.inputs)}


def with_constants(proto, arrays):
    for name, values in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return proto


def check_copies(proto, expected):
    """Fusions are broken at some tensors, of which all nodes that read them get a copy."""
    found, model = broken(proto)
    assert found == expected
    for name in found:
        assert readers(model, name) == {"Shape", "Gather"}


AXES = "i = Constant <value = int64[{n}] {{{axes}}}> () "


def reduction(first, second, axes, between=""):
    counted = AXES.format(n=len(axes), axes=", ".join(map(str, axes)))
    middle = between or "b = Identity (a)"
    return f"{counted} a = {first} {middle} y = {second} (b, i)"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (reduction("Softmax <axis = 0> (x)", "ReduceMax", [1]), ["b"]),
        (reduction("LogSoftmax <axis = 1> (x)", "ReduceMean", [-1], "b = Exp (a)"), ["b"]),
        (reduction("Softmax <axis = 2> (x)", "ReduceSum", [0, 1]), ["b"]),
        (reduction("LpNormalization <axis = 0> (x)", "ReduceMin", [0, 1]), ["b"]),
        (reduction("Softmax <axis = 1> (x)", "ReduceMax", [1]), ["b"]),  # the same axis
        (reduction("MeanVarianceNormalization <axes = [1]> (x)", "ReduceMax", [1]), []),
        (reduction("MeanVarianceNormalization <axes = [-2]> (x)", "ReduceMax", [1]), []),
        (reduction("MeanVarianceNormalization <axes = [0]> (x)", "ReduceMax", [1]), ["b"]),
        (
            'a = MeanVarianceNormalization <axes = [0]> (x) y = Einsum <equation = "abc->ab"> (a)',
            ["a"],
        ),
        # The same number, of an axis that has moved.
        (reduction("Softmax <axis = 1> (x)", "ReduceMax", [1], "b = Transpose (a)"), ["b"]),
        # A product in between ends the kernel.
        (
            reduction(
                "Softmax <axis = 0> (x)", "ReduceMax", [2], "t = Transpose (x) b = MatMul (a, t)"
            ),
            [],
        ),
    ],
)
def test_a_reduction_after_one_over_a_few_elements(body, expected):
    inputs = "float[2,4,5] x" if "MatMul" not in body else "float[4,4,4] x"
    found, model = broken(parsed(body, inputs, "float[A,B,C] y"))
    assert found == expected
    for name in found:
        assert readers(model, name) == {"Shape", "Gather"}


@pytest.mark.parametrize(
    ("extent", "profiles", "expected"),
    [
        ("7", (), ["a"]),
        ("15", (), ["a"]),
        ("16", (), []),
        ("1", (), []),
        ("n", (), []),  # with dynamic shapes TensorRT computes the two apart
        ("n", ((3, 3, 3),), ["a"]),
        ("n", ((64, 64, 64),), []),
        ("n", ((3, 3, 4),), []),
    ],
)
def test_extents_that_the_build_knows(extent, profiles, expected):
    proto = parsed(
        "i = Constant <value = int64[1] {1}> () a = Softmax <axis = 0> (x) y = ReduceMax (a, i)",
        f"float[{extent},4] x",
        "float[N,1] y",
    )
    ranges = tuple(
        Profile({"x": ShapeRange(*((extent, 4) for extent in triple))}) for triple in profiles
    )
    assert broken(proto, profiles=ranges)[0] == expected


def test_the_flattening_softmax_of_old_opsets():
    body = "a = Softmax <axis = 1> (x) y = ReduceMax <axes = [0]> (a)"
    assert broken(parsed(body, outputs="float[1,4,5] y", opset=11))[0] == []  # over 20 elements
    assert broken(parsed(body, "float[2,3,2] x", "float[1,3,2] y", opset=11))[0] == ["a"]


def test_a_sum_beside_a_loop_that_begins_with_an_input():
    proto = parsed(
        """k = Constant <value = int64 {1}> () n = Constant <value = int64 {3}> ()
        t = Constant <value = bool {1}> () c = CumSum (x, k)
        l = Loop (n, t, x) <body = b (int64 i, bool g, float[2,4,5] s)
            => (bool h, float[2,4,5] r) { h = Identity (g) r = Tanh (s) }>
        y = Sum (c, l)""",
        outputs="float[2,4,5] y",
    )
    assert broken(proto)[0] == ["x"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Conv (x, w) y = Cast <to = 7> (a)", ["a"]),
        ("a = Conv (x, w) b = Floor (a) c = Mul (b, b) y = Cast <to = 2> (c)", ["a"]),
        ("a = Conv (x, w) b = Cast <to = 9> (a) y = Cast <to = 1> (b)", ["a"]),
        ("a = ConvTranspose (x, w) y = Cast <to = 6> (a)", ["a"]),
        ("a = Conv (x, w) b = Floor (a) y = Cast <to = 10> (b)", []),
        ("a = Conv (x, w) b = ReduceMax <keepdims = 0> (a) y = Cast <to = 7> (b)", []),
        ("a = MatMul (x, x) b = Abs (a) y = Cast <to = 7> (b)", ["a"]),
        ('a = Einsum <equation = "nab,nbc->nac"> (x, x) y = Cast <to = 6> (a)', ["a"]),
        ("a = Softmax (x) y = Cast <to = 7> (a)", []),
    ],
)
def test_a_product_that_is_cast_to_integers(body, expected):
    proto = parsed(body, "float[1,4,4] x", "float y")
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones((4, 4, 1), np.float32), "w")
    )
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    kinds = {int(word.split(">")[0]) for word in body.split("<to = ")[1:]} - {9} or {7}
    proto.graph.output[0].type.tensor_type.elem_type = kinds.pop()
    check_copies(proto, expected)


def test_a_sum_and_an_elementwise_node_that_read_one_value():
    body = "k = Constant <value = int64 {1}> () c = CumSum (x, k) y = Neg (x)"
    outputs = "float[2,4,5] c, float[2,4,5] y"
    found, model = broken(parsed(body, outputs=outputs))
    assert found == ["x"]
    assert readers(model, "x") == {"Shape", "Gather", "Neg"}
    alone = parsed(
        "k = Constant <value = int64 {1}> () y = CumSum (x, k)", outputs="float[2,4,5] y"
    )
    assert broken(alone)[0] == []


def test_a_sampler_and_a_loop_that_read_one_value():
    body = """k = Constant <value = int64 {1}> () r = Relu (x)
        s = GridSample (r, g) c = CumSum (r, k) n = Neg (r) y = Sum (c, n)"""
    proto = parsed(body, "float[1,2,4,4] x, float[1,3,3,2] g", "float[1,2,3,3] s, float[1,2,4,4] y")
    found, model = broken(proto)
    assert found == ["r"]
    assert readers(model, "r") == {"Shape", "Gather", "GridSample", "Neg"}
    body = "k = Constant <value = int64 {1}> () r = Tan (x) s = GridSample (r, g) y = CumSum (x, k)"
    proto = parsed(body, "float[1,2,4,4] x, float[1,3,3,2] g", "float[1,2,3,3] s, float[1,2,4,4] y")
    assert broken(proto)[0] == ["x"]
    proto = with_constants(
        parsed(body.replace("Tan (x)", "Conv (x, w)"), "float[1,2,4,4] x, float[1,3,3,2] g",
               "float[1,2,3,3] s, float[1,2,4,4] y"),
        {"w": np.ones((2, 2, 1, 1), np.float32)},
    )  # fmt: skip
    assert broken(proto)[0] == []


@pytest.mark.parametrize(
    "body",
    [
        "r = Relu (x) s = GridSample (r, g) y = Identity (r)",
        "q = Relu (x) r = Relu (x) s = GridSample (r, g) y = Neg (q)",  # equal: made once
    ],
)
def test_a_sampler_of_an_output(body):
    inputs = "float[1,2,4,4] x, float[1,3,3,2] g"
    found, model = broken(
        parsed(body, inputs, "float[1,2,3,3] s, float[1,2,4,4] y, float[A,B,C,D] r")
    )
    assert found == ["r"]
    assert "GridSample" not in readers(model, "r")
    body = "r = Relu (x) s = GridSample (r, g) y = Neg (r)"
    assert broken(parsed(body, inputs, "float[1,2,3,3] s, float[1,2,4,4] y"))[0] == []


@pytest.mark.parametrize(
    ("body", "shape", "expected"),
    [
        ("r = Exp (x) y = Reshape (r, s)", "2,4,5", ["r"]),
        ("r = Exp (x) y = Reshape (r, s)", "n,4,5", ["r"]),
        ("r = Exp (x) u = Unsqueeze (r, a) y = Squeeze (u, a)", "2,4,5", ["r"]),
        ("r = Exp (x) y = AveragePool <kernel_shape = [1]> (r)", "2,4,5", ["r"]),
        ("r = Exp (x) y = AveragePool <kernel_shape = [3], pads = [1, 1]> (r)", "2,4,5", []),
        ("r = Exp (x) y = Reshape (r, t)", "2,20", []),
        ("r = Exp (x) y = Identity (r)", "2,4,5", []),
        ('r = Exp (x) y = Einsum <equation = "abc->abc"> (r)', "2,4,5", ["r"]),
        ('r = Exp (x) y = Einsum <equation = "abc->ab"> (r)', "2,4", []),
        ('r = Exp (x) y = Resize <mode = "linear"> (r, , , t)', "2,4,5", ["r"]),
        ('r = Exp (x) y = Resize <mode = "nearest"> (r, , , t)', "2,4,3", ["r"]),
        ('r = Exp (x) y = Resize <mode = "linear"> (r, , , t)', "2,4,3", ["r"]),
        ("r = Exp (x) y = Unsqueeze (r, a)", "1,2,4,5", ["r"]),
        (
            "r = Exp (x) u = Unsqueeze (r, a) y = Transpose <perm = [1, 0, 2, 3]> (u)",
            "2,1,4,5",
            ["r"],
        ),
        ("r = Exp (x) y = Transpose <perm = [1, 0, 2]> (r)", "4,2,5", []),
    ],
)
def test_outputs_of_the_same_elements(body, shape, expected):
    source = "float[{}]".format("n,4,5" if shape[0] == "n" else "2,4,5")
    proto = parsed(body, f"{source} x", f"{source} r, float[{shape}] y")
    numbers = {"s": [0, 0, 0], "a": [0], "t": [int(e) for e in shape.replace("n", "2").split(",")]}
    check_copies(with_constants(proto, numbers), expected)


@pytest.mark.parametrize(
    ("body", "outputs", "expected"),
    [
        ("a = Softmax (x) b = Concat <axis = 2> (a, a) y = Softmax (b)", "2,4,10", ["b"]),
        ("a = Softmax (x) b = Pad (a, p) y = Softmax (b)", "2,4,7", ["b"]),
        ("a = Softmax <axis = 0> (x) b = Abs (a) y = Softmax <axis = 0> (b)", "2,4,5", ["b"]),
        ("a = ReduceSum (x, i) y = Slice (a, m, f, i, m)", "2,4,1", ["a"]),
        ("a = ReduceSum (x, i) y = Slice (a, z, l, i)", "2,4,1", []),
        ("a = ReduceSum (x, i) y = Slice (a, z, l, o, d)", "2,2,1", ["a"]),
        ("a = ReduceSum (x, i) b = Floor (a) y = Slice (b, z, l, i, d)", "2,4,1", ["b"]),
        ("a = GlobalAveragePool (x) y = Slice (a, z, l, o, d)", "2,2,1", ["a"]),
        ("a = CumSum (x, j) y = Slice (a, z, l, o, d)", "2,2,5", []),
        (
            "a = ReduceLogSum (x, i) t = Transpose <perm = [0, 2, 1]> (a) y = MatMul (a, t)",
            "2,4,4",
            ["a"],
        ),
        ("a = ReduceMax (x, i) b = Log (a) y = MatMul (b, w)", "2,4,3", ["b"]),
        ("b = Log (x) y = MatMul (b, v)", "2,4,3", ["b"]),
        ("a = ReduceMax (x, i) y = MatMul (a, w)", "2,4,3", []),
    ],
)
def test_what_follows_a_reduction(body, outputs, expected):
    proto = parsed(body, "float[2,4,5] x", f"float[{outputs}] y")
    arrays = {"o": [1], "d": [2], "j": 1}
    arrays |= {
        "i": [2],
        "m": [-1],
        "f": [-(2**31)],
        "z": [0],
        "l": [2**31],
        "p": [0, 0, 1, 0, 0, 1],
    }
    arrays |= {"w": np.ones((1, 3), np.float32), "v": np.ones((5, 3), np.float32)}
    check_copies(with_constants(proto, arrays), expected)


@pytest.mark.parametrize(
    ("body", "outputs", "expected"),
    [
        ("a, b = Split <axis = 1, num_outputs = 2> (x) y = Softmax (a)", "a b y", ["a"]),
        ("a, b = Split <axis = 1, num_outputs = 2> (x) c = Exp (b) y = Softmax (c)", "a b y", "b"),
        ("a, b = Split <axis = 1, num_outputs = 2> (x) y = Softmax (a)", "b y", []),
        ("a, b = Split <axis = 1, num_outputs = 2> (x) y = Softmax (a)", "a y", []),
        ("a, b = Split <axis = 1, num_outputs = 2> (x) y = Exp (a)", "a b y", []),
        ("r = Exp (x) a = Abs (r) y = Resize <mode = \"nearest\"> (a, , , s)", "r y", ["a"]),
        ("a = Greater (k, l) y = Transpose (a)", "y", ["a"]),
        ("a = Greater (x, l) y = Transpose (a)", "y", []),
        ("b = Greater (k, l) y = Where (b, k, l)", "b y", ["b"]),
        ("c = Cast <to = 9> (x) a = Or (t, c) y = Transpose (a)", "y", ["c"]),
        ("c = Cast <to = 9> (x) y = And (c, f)", "y", ["c"]),
        ("c = Cast <to = 9> (x) y = Or (c, f)", "y", []),
        ("c = Cast <to = 9> (x) a = Or (c, t) y = Cast <to = 1> (a)", "y", []),
        ("g = GlobalAveragePool (x) a, b = Split <axis = 0, num_outputs = 2> (g)"
         " y, h = GRU <hidden_size = 2> (a, w, w)", "y", ["a"]),
        ("a, b = Split <axis = 0, num_outputs = 2> (x) y, h = GRU <hidden_size = 2> (a, v, w)",
         "y", []),
    ],
)  # fmt: skip
def test_outputs_that_are_written_in_part(body, outputs, expected):
    booleans = ("Transpose", "And", "Or")
    last = body.split(" y = ")[-1]
    kinds = {"y": "bool" if last.startswith(booleans) else "float"}
    kinds |= {"b": "bool"} if "b = Greater" in body else {}
    typed = ", ".join(f"{kinds.get(name, 'float')}[N{name}] {name}" for name in outputs.split())
    proto = parsed(body, "float[2,4,5] x", typed)
    numbers = {"s": [2, 4, 3], "t": True, "f": False}
    numbers |= {name: np.ones((2, 3), np.float32) for name in "kl"}
    numbers |= {"w": np.ones((1, 6, 1), np.float32), "v": np.ones((1, 6, 5), np.float32)}
    check_copies(with_constants(proto, numbers), list(expected))


@pytest.mark.parametrize(
    ("body", "outputs", "expected"),
    [
        ("a = Tanh (x) b = Neg (a) c = Cos (b) y = Ceil (b)", "a b c y", ["a"]),
        ("a = Tanh (x) b = Neg (a) c = Cos (b) d = Ceil (b) y = Add (c, d)", "a b y", ["a"]),
        ("a = Tanh (x) t = Abs (a) b = Sqrt (t) c = Cos (b) y = Concat <axis = 0> (b, b)",
         "a b c y", ["a"]),
        ("a = Tanh (x) b = Reshape (a, s) c = Cos (b) y = Neg (b)", "a b c y", ["a"]),
        ("a = Tanh (x) b = Neg (a) c = Exp (b) d = Cos (c) y = Ceil (c)", "a b c d y",
         ["a", "b"]),
        ("a = Erf (x) b = Mul (x, a) t = Mul (x, a) c = Cos (b) y = Floor (t)", "a b c y", ["a"]),
        ("a = Erf (x) b = Max (x, a) t = Max (a, x) c = Cos (b) y = Floor (t)", "a b c y", ["a"]),
        ("a = Erf (x) b = Max (x, a) t = Max (a, x) y = Floor (t)", "a b t y", ["a"]),
        ("a = Erf (x) b = Mul (x, a) t = Sub (x, a) c = Cos (b) y = Floor (t)", "a b c y", []),
        ("a = Tanh (x) b = Neg (a) y = Cos (b)", "a b y", []),
        ("a = Tanh (x) b = Neg (a) c = Cos (b) y = Ceil (b)", "a c y", []),
        ("a = Tanh (x) b = Neg (a) c = Cos (b) y = Ceil (b)", "b c y", []),
        ("a = Tanh (x) b = Neg (a) c = Transpose (b) y = Concat <axis = 0> (b, b)", "a b c y", []),
        ("b = Neg (x) c = Cos (b) y = Ceil (b)", "b c y", []),
        ("a = Concat <axis = 0> (x, x) b = Neg (a) c = Cos (b) y = Ceil (b)", "a b c y", []),
    ],
)  # fmt: skip
def test_an_output_before_one_with_several_readers(body, outputs, expected):
    typed = ", ".join(f"float[{name}0,{name}1,{name}2] {name}" for name in outputs.split())
    check_copies(with_constants(parsed(body, "float[2,4,5] x", typed), {"s": [4, 2, 5]}), expected)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Log (x) y = Gemm <transB = 1> (a, a)", ["a"]),
        ('a = Log (x) y = Einsum <equation = "ab,cb->ac"> (a, w)', ["a"]),
        ('a = Log (x) y = Einsum <equation = "ab->ba"> (a)', []),
        ("l = Log (x) a = Neg (l) y = MatMul (w, a)", ["a"]),
        ("l = Log (x) t = Transpose (l) a = Mul (t, two) y = MatMul (a, w)", ["a"]),
        ("l = Log (x) a = Max (l, two) y = MatMul (a, w)", []),  # 2 at 0
        ("p = Add (x, two) a = Log (p) y = MatMul (a, w)", []),
        ("p = Min (x) a = Log (p) y = MatMul (a, w)", ["a"]),
        ("p = Max (x, x, two) a = Log (p) y = MatMul (a, w)", []),
        ("p = Sub (x, two) a = Sqrt (p) y = MatMul (a, w)", ["a"]),
        ("p = Clip (x, two) a = Log (p) y = MatMul (a, w)", []),
        ("a = Sqrt (x) y = MatMul (a, w)", []),
        ("p = Neg (two) a = Pow (x, p) y = MatMul (a, w)", ["a"]),
        ("a = Pow (x, two) y = MatMul (a, w)", []),
        ("a = Acosh (x) y = MatMul (a, w)", ["a"]),
        ("s = MatMul (x, w) a = Log (s) y = Neg (a)", []),
        ("l = Log (x) a = MatMul (w, w) y = Add (a, l)", []),
        # A root mean square: finite at 0.
        ("q = Mul (x, x) m = ReduceMean (q) e = Add (m, two) r = Sqrt (e) a = Div (x, r)"
         " y = MatMul (a, w)", []),
    ],
)  # fmt: skip
def test_operands_that_are_infinite_where_a_product_pads_them(body, expected):
    proto = parsed(body, "float[4,4] x", "float[M,N] y")
    arrays = {"two": np.array(2, np.float32), "w": np.ones((4, 4), np.float32)}
    found, model = broken(with_constants(proto, arrays))
    assert found == expected
    for name in found:
        assert readers(model, name) == {"Shape", "Gather"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Tanh (x) y = Mul (a, k) b = Tanh (x) z = Mul (b, k)", ["b"]),
        ("a = Tanh (x) y = Mul (a, k) z = Mul (a, k)", ["a"]),
        ("y = Reshape (x, s) z = Reshape (x, s)", ["x"]),
        ("a = Tanh (x) y = Mul (a, k) b = Tanh (x) z = Mul (b, l)", []),
        ("a = Tanh (x) y = Mul (a, k) b = Tan (x) z = Mul (b, k)", []),
        ("y = Elu <alpha = 0.5> (x) z = Elu <alpha = 0.6> (x)", []),
        ("y = Softmax (x) z = Softmax (x)", []),
    ],
)
def test_outputs_that_are_computed_twice(body, expected):
    proto = parsed(body, "float[4,4] x", "float[A,B] y, float[C,D] z")
    arrays = {"k": np.array(0.9, np.float32), "l": np.array(0.8, np.float32), "s": [4, 4]}
    assert broken(with_constants(proto, arrays))[0] == expected


@pytest.mark.parametrize(
    ("body", "outputs", "expected"),
    [
        ("a = ReduceMax (x, i) b = Exp (a) y = Softmax <axis = 2> (b)", "a y", ["b", "a"]),
        ("a = ReduceMax (x, i) b = Exp (a) y = Softmax <axis = 2> (b)", "y", ["b"]),
        ("a = LogSoftmax <axis = 0> (x) b = BatchNormalization (a, w, w, w, w)"
         " y = ReduceMax (b, i)", "y", ["b"]),
        ("a = InstanceNormalization (x, w, w) r = Resize <mode = \"linear\"> (x, , , s)"
         " y = Relu (a)", "r y", ["x"]),
        ("e = Exp (x) a = GroupNormalization <num_groups = 2> (e, v, v) b = Abs (e)"
         " r = Resize <mode = \"linear\"> (b, , , s) y = Relu (a)", "r y", ["b"]),
        ("a = Relu (x) r = Resize <mode = \"linear\"> (x, , , s) y = Exp (a)", "r y", []),
        ("a = Tanh (x) r = Resize (a, , , s) y = MaxPool <kernel_shape = [2]> (a)", "r y", ["a"]),
        ("a = Tanh (x) r = Resize (a, , , s) y = AveragePool <kernel_shape = [2]> (x)", "r y",
         ["a"]),
        ("r = Resize (x, , h) y = MaxPool <kernel_shape = [2]> (x)", "r y", ["x"]),
        ("r = Resize <axes = [2]> (x, , , l) y = MaxPool <kernel_shape = [2]> (x)", "r y", ["x"]),
        ("r = Resize (x, , , s) p = Pad (x, p6) y = Relu (p)", "r y", ["x"]),
        ("r = Resize (x, , d) y = MaxPool <kernel_shape = [2]> (x)", "r y", []),
        ("r = Resize (x, , , t) y = MaxPool <kernel_shape = [2]> (x)", "r y", []),
    ],
)  # fmt: skip
def test_what_takes_part_in_another_loop(body, outputs, expected):
    typed = ", ".join(f"float[{name}0,{name}1,{name}2] {name}" for name in outputs.split())
    proto = parsed(body, "float[2,4,5] x", typed)
    arrays = {"i": [1], "s": [2, 4, 3], "w": np.ones(4, np.float32), "v": np.ones(2, np.float32)}
    arrays |= {"t": [2, 4, 8], "l": [3], "p6": [0, 0, 1, 0, 0, 1]}
    arrays |= {name: np.array([1, 1, scale], np.float32) for name, scale in (("h", 0.5), ("d", 2))}
    assert broken(with_constants(proto, arrays))[0] == expected


@pytest.mark.parametrize(
    ("channels", "group", "precision", "act", "expected"),
    [
        (4, 1, "fp16", "Erf", ["a"]),
        (12, 1, "fp16", "Erf", ["a"]),
        (8, 1, "fp16", "Erf", []),
        (4, 2, "fp16", "Erf", []),
        (4, 1, "fp32", "Erf", []),
        (4, 1, "fp16", "Tanh", []),
    ],
)
def test_the_error_function_of_a_transposed_convolution(channels, group, precision, act, expected):
    kind = "float" if precision == "fp32" else "float16"
    proto = parsed(f"a = ConvTranspose <group = {group}> (x, w) y = {act} (a)",
                   f"{kind}[1,4,5,5] x", f"{kind}[A,B,C,D] y")  # fmt: skip
    weight = np.ones((4, channels, 2, 2), np.float32 if precision == "fp32" else np.float16)
    assert broken(with_constants(proto, {"w": weight}))[0] == expected


@pytest.mark.parametrize(
    ("operator", "shape", "expected"),
    [
        ("Add", "3,1,1,1", ["a"]),
        ("Mean", "3,1,1,1", ["a"]),
        ("Add", "n,1,1,1", ["a"]),
        ("Mul", "3,1,1,1", []),
        ("Add", "1,1,1,1", []),
        ("Add", "3,4,1,1", []),
        ("Add", "1", []),
    ],
)
def test_a_number_for_each_image(operator, shape, expected):
    body = f"a = Conv (x, w) y = {operator} (a, b)"
    inputs = f"float[{shape[0] if shape[:2] == 'n,' else 3},2,5,5] x, float[{shape}] b"
    proto = parsed(body, inputs, "float[N,4,4,4] y")
    check_copies(with_constants(proto, {"w": np.ones((4, 2, 2, 2), np.float32)}), expected)


@pytest.mark.parametrize(
    ("kind", "kernel", "row", "expected"),
    [
        ("float16", 1, (1, 3, 1, 6), ["a"]),
        ("float16", 1, (4, 1), ["a"]),
        ("float16", 1, (1, 3, 1, 1), []),
        ("float16", 1, (4, 6), []),
        ("float16", 3, (1, 3, 1, 6), []),
        ("float", 1, (1, 3, 1, 6), []),
    ],
)
def test_rows_and_pointwise_convolutions(kind, kernel, row, expected):
    body = f"a = Conv <pads = [{', '.join([str(kernel // 2)] * 4)}]> (x, w) y = Sub (a, r)"
    proto = parsed(body, f"{kind}[1,2,4,6] x", f"{kind}[1,3,4,6] y")
    number = np.float16 if kind == "float16" else np.float32
    arrays = {"w": np.ones((3, 2, kernel, kernel), number), "r": np.ones(row, number)}
    assert broken(with_constants(proto, arrays))[0] == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("v = Pad (x, p) r = Abs (v) d = Div (v, r) y = Unsqueeze (d, z)", ["d"]),
        ("v = Pad (x, p) r = Abs (v) d = Div (v, r) y = Tile (d, q)", ["d"]),
        ("r = Abs (x) d = Exp (r) c = Concat <axis = 0> (r, x) y = Reshape (d, s)", ["d"]),
        ("v = Pad (x, p) r = Abs (v) y = Div (v, r)", []),
        ("r = Abs (x) d = Exp (r) y = Reshape (d, s)", []),
        ("r = Abs (x) c = Concat <axis = 0> (r, x) y = Unsqueeze (x, z)", ["x"]),
        ("r = Abs (x) y = Unsqueeze (x, z)", []),
        ("r = Abs (x) v = Exp (x) c = Concat <axis = 0> (r, x) y = Reshape (v, s)", ["v"]),
    ],
)
def test_a_copy_of_what_an_output_makes(body, expected):
    proto = parsed(body, "float[2,4,5] x", "float[2,4,5] r, float[A,B,C] y")
    numbers = {"p": [0] * 6, "z": [0], "q": [1, 1, 1], "s": [0, 0, 0]}
    assert broken(with_constants(proto, numbers))[0] == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = ReduceL1 (x, i) t = Transpose (a) y = MatMul (a, t)", ["a"]),
        ("a = ReduceL1 (x, i) b = Abs (a) t = Transpose (b) y = MatMul (a, t)", ["a"]),
        ("a = ReduceL1 (x, i) t = Transpose (x) y = MatMul (a, t)", []),
        ("a = ReduceMax <keepdims = 0> (x, i) y = Gemm <transA = 1> (a, w)", ["a"]),
        ("a = ReduceMax <keepdims = 0> (x, i) y = Gemm <transB = 1> (a, w)", []),
        ('a = Einsum <equation = "abc->ab"> (x) y = Gemm <transA = 1> (a, w)', ["a"]),
    ],
)
def test_a_reduction_that_is_transposed_in_a_product(body, expected):
    proto = parsed(body, "float[2,4,5] x", "float[A,B,C] y")
    weights = np.ones((2, 4) if "transB" in body else (2, 3), np.float32)
    check_copies(with_constants(proto, {"i": [2], "w": weights}), expected)


@pytest.mark.parametrize(
    "body",
    [
        "r = Relu (x) a = Abs (r) l = Log (a) s = GridSample (l, g)",
        "t = Relu (x) r = Tan (t) u = Reshape (r, z) s = GridSample (u, g)",
    ],
)
def test_a_sampler_far_behind_an_output(body):
    proto = parsed(body, "float[1,2,4,4] x, float[1,3,3,2] g", "float[1,2,3,3] s, float[1,2,4,4] r")
    found, _ = broken(with_constants(proto, {"z": [1, 2, 4, 4]}))
    assert found == [proto.graph.node[-1].input[0]]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("n = LayerNormalization (x, w) y = Mul (z, n)", ["n"]),
        ("n = Softmax (x) r = Relu (n) y = Sub (r, z)", ["r"]),
        ("n = Softmax (x) y = Add (n, x)", []),  # of the same shape
        ("m = ReduceMean (x, i) c = Sub (x, m) y = Mul (c, z)", ["c"]),  # a norm in its parts
        ("m = ReduceMean (x, i) y = Sub (x, m)", []),
        ("m = ReduceMean (x, i) y = Mul (z, m)", []),
        ("r = Relu (x) y = Mul (z, r)", []),
        ("n = Softmax (z) t = CastLike (w, n) y = Mul (n, t)", []),  # reads the type alone
        ("s = ReduceSum (x, k) n = Div (x, s) y = Add (n, z)", ["n"]),  # over one element
        (
            "s = Slice (z, o, e, i, o) n = LayerNormalization (s, w) m = ReduceMax (x, i)"
            " y = Max (n, m)",
            ["n"],
        ),
        ("n = LayerNormalization (z, w) m = ReduceMax (x, i) y = Max (n, m)", []),
    ],
)
def test_a_norm_that_is_broadcast(body, expected):
    weights = "w = Constant <value = float[16] {" + ", ".join(["1.0"] * 16) + "}> () "
    axes = " ".join(
        f"{name} = Constant <value = int64[1] {{{number}}}> ()"
        for name, number in {"i": -1, "k": 1, "o": -1, "e": -(2**63)}.items()
    )
    proto = parsed(weights + axes + body, "float[n,1,16] x, float[n,7,16] z", "float[A,B,C] y")
    check_copies(proto, expected)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("b = Exp (x) y = Sub (b, b)", ["b"]),
        ("y = Div (x, x)", ["x"]),
        ("b = Exp (x) y = Sub (b, x)", []),
        ("b = Exp (x) y = Add (b, b)", []),
    ],
)
def test_operands_that_are_one_value(body, expected):
    proto = parsed(body, "float[2,4,5] x", "float[2,4,5] y")
    assert broken(with_constants(proto, {"i": np.float32(0)}))[0] == expected


def test_what_is_wrong_only_behind_a_copy():
    """The logarithm of a positive sum, which is infinite where a copy of the sum is padded."""
    body = "a = Abs (x) s = Add (a, c) b = Log (s) t = Add (a, c) u = Log (t) y = MatMul (u, w)"
    proto = parsed(body, "float[2,5] x", "float[B,C] b, float[D,E] u, float[F,G] y")
    arrays = {"c": np.float32(1), "w": np.ones((5, 3), np.float32)}
    model = normalized(with_constants(proto, arrays))
    one = BreakFusions(PassContext(config=BuildConfig(), precision=ResolvedPrecision()))
    one(model)
    assert {*one.record["tensors"]} == {"t", "u"}
    assert not one.needed(model)


@pytest.mark.parametrize(("outputs", "expected"), [("float[5,2,4] r, ", ["s"]), ("", [])])
def test_a_recurrent_layer_behind_an_output(outputs, expected):
    body = "r = Exp (x) s = Tanh (r) y = RNN <hidden_size = 3> (s, w, h)"
    proto = parsed(body, "float[5,2,4] x", f"{outputs}float[5,1,2,3] y")
    weights = {"w": np.ones((1, 3, 4), np.float32), "h": np.ones((1, 3, 3), np.float32)}
    assert broken(with_constants(proto, weights))[0] == expected


def test_a_loop_that_begins_with_an_input():
    body = """t = Constant <value = int64 {2}> () c = Constant <value = bool {1}> ()
        y = Loop (t, c, x) <body = b (int64 i, bool d, float[n,8] s) => (bool e, float[n,8] u)
        { e = Identity (d) u = Sin (s) }>"""
    proto = parsed(body, "float[n,8] x", "float[n,8] y")
    found, model = broken(proto)
    assert found == ["x"]
    assert readers(model, "x") == {"Identity"}


def test_a_loop_that_begins_with_a_part_of_an_input():
    body = """t = Constant <value = int64 {2}> () c = Constant <value = bool {1}> ()
        j = Constant <value = int64 {0}> () p = Gather <axis = 1> (x, j)
        y = Loop (t, c, p) <body = b (int64 i, bool d, float[n,8] s) => (bool e, float[n,8] u)
        { e = Identity (d) u = Sin (s) }>"""
    check_copies(parsed(body, "float[n,1,8] x", "float[n,8] y"), ["p"])


VALUES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("kind", [*VALUES, "int64"])
@pytest.mark.parametrize("name", ["x", "a"])
@pytest.mark.parametrize("shape", [(2, 3), ()], ids=["matrix", "scalar"])
def test_a_request_changes_no_value(kind, name, shape, rng):
    dtype = onnx.TensorProto.DataType.Value(kind.upper())
    x, y, a = (onnx.helper.make_tensor_value_info(name, dtype, shape) for name in "xya")
    nodes = [
        onnx.helper.make_node("Add", ["x", "x"], ["a"]),
        onnx.helper.make_node("Neg", ["a"], ["b"]),
        onnx.helper.make_node("Sub", ["b", "a"], ["y"]),
    ]
    opsets = [onnx.helper.make_opsetid("", 18)]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y, a])
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    x = np.asarray(rng.standard_normal(shape)).astype(VALUES.get(kind, np.int64))
    if kind != "int64":
        x.flat[0] = np.inf
    found, model = broken(proto, name)
    assert found == [name]
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    expected = ReferenceEvaluator(proto).run(None, {"x": x})
    for f, e in zip(ReferenceEvaluator(made).run(None, {"x": x}), expected, strict=True):
        assert f.dtype == e.dtype
        np.testing.assert_array_equal(f, e)
    assert readers(model, name) == ({"Shape", "Gather"} if shape else {"Reshape"})


@pytest.mark.parametrize(
    ("operator", "shapes", "attributes"),
    [
        ("Conv", ("1,2,5,5", "2,2,3,3"), "pads = [1, 1, 1, 1]"),
        ("ConvTranspose", ("1,2,3", "2,2,2"), "strides = [2]"),
    ],
)
def test_the_bias_of_a_convolution_is_apart(operator, shapes, attributes, rng):
    image, weight = shapes
    proto = parsed(
        f"c = {operator} <{attributes}> (x, w, b) y = Relu (c)",
        f"float[{image}] x, float[{weight}] w, float[2] b",
        "float[" + ",".join("ABCD"[: image.count(",") + 1]) + "] y",
    )
    found, model = broken(proto, "c")
    assert found == ["c"]
    (product,) = [node for node in model.graph if node.op_type == operator]
    assert len(product.inputs) == 2
    assert {node.op_type for node, _ in product.outputs[0].uses()} == {"Shape", "Gather"}
    inputs = {
        name: rng.standard_normal([int(n) for n in text.split(",")]).astype(np.float32)
        for name, text in (("x", image), ("w", weight), ("b", "2"))
    }
    (expected,) = ReferenceEvaluator(proto).run(None, inputs)
    (values,) = ReferenceEvaluator(ir.to_proto(model)).run(None, inputs)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_the_bias_of_an_output():
    proto = parsed(
        "y = Conv (x, w, b)", "float[1,1,4] x, float[1,1,1] w, float[1] b", "float[A,B,C] y"
    )
    found, model = broken(proto, "y")
    assert found == ["y"]
    assert [n.op_type for n in model.graph] == [
        "Conv",
        "Shape",
        "Gather",
        "Range",
        "Gather",
        "Reshape",
        "Add",
    ]


def test_bodies_read_the_other_tensor():
    proto = parsed(
        """a = Neg (x) y = If (c) <then_branch = t () => (float[2] p) { p = Exp (a) },
        else_branch = e () => (float[2] q) { q = Sin (a) }>""",
        "float[2] x, bool c",
        "float[2] y",
    )
    model = normalized(proto)
    break_fusion(model, "a")
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    x = np.array([1, 2], np.float32)
    for c in (True, False):
        inputs = {"x": x, "c": np.array(c)}
        (found,) = ReferenceEvaluator(made).run(None, inputs)
        np.testing.assert_array_equal(found, np.exp(-x) if c else np.sin(-x))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "no node makes a tensor 'none' at which a fusion could be broken"),
        ("w", "no node makes a tensor 'w' at which"),
        ("y", "no node reads tensor 'y', so there is no fusion to break"),
    ],
)
def test_requests_without_sense(name, message):
    proto = parsed("w = Constant <value = float[1] {2.0}> () a = Mul (x, w) y = Neg (a)")
    with pytest.raises(SpecError, match=message) as caught:
        broken(proto, name)
    assert caught.value.options == ("break_fusions",)


def test_an_opset_without_the_means():
    proto = parsed("a = Neg (x) y = Neg (a)", opset=6)
    with pytest.raises(UnsupportedError, match="needs opset 11, the model has 6"):
        broken(proto, "a")
    assert broken(proto)[0] == []


def test_the_summary_counts_fusions_by_reason():
    one = BreakFusions(PassContext(config=BuildConfig(), precision=ResolvedPrecision()))
    record = {"tensors": {"a": "x", "b": "y", "c": "x", "d": "x", "e": "x"}}
    assert one.summarize(record) == "4 fusions broken, x: a, c, d, ...\n1 fusion broken, y: b"


def test_an_opset_that_is_raised(rng):
    proto = parsed("a = Neg (x) y = Softmax <axis = 1> (a)", opset=9)
    model = normalized(proto)
    one = BreakFusions(
        PassContext(config=BuildConfig(break_fusions=("a",)), precision=ResolvedPrecision())
    )
    assert one.needed(model)
    one(model)
    assert one.record["raised"]["opset"] == 13
    assert "raised to opset 13, rewritten for it: 1 Softmax" in one.summarize(one.record)
    x = {"x": rng.standard_normal((2, 4, 5)).astype(np.float32)}
    (found,) = evaluator(ir.to_proto(model).graph, {"": 13}).run(None, x)
    (expected,) = evaluator(proto.graph, {"": 9}).run(None, x)
    np.testing.assert_allclose(found, expected, 1e-6)
