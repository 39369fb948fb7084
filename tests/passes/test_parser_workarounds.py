"""Operators that TensorRT's parser gets wrong, rewritten; against NumPy and PyTorch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from trt_native.config import BuildConfig
from trt_native.errors import ModelError
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.parser_workarounds import ParserWorkarounds, apply_parser_workarounds
from trt_native.passes.reject_unsupported import check_parser_support
from trt_native.reference.evaluator import evaluator

pytest.importorskip("torch")
from helpers.miscompiled_models import CASES, readable
from helpers.one_node_models import KERNEL, SCALE, in_a_function, model_of
from helpers.passes import normalized
from helpers.text_models import model

# A form that onnx calls deprecated; and pools whose last window onnx counts before opset 22.
INFERRED_WRONGLY = (
    "groups of opset 18",
    "max of far padding",
    "average without padding",
    "max of VALID",
    "average of VALID",
)
WORKAROUNDS = ParserWorkarounds(PassContext(config=BuildConfig(), precision=ResolvedPrecision()))


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", CASES)
def test_rewritten_operators_compute_the_same(name):
    case = CASES[name]()
    if name not in INFERRED_WRONGLY:
        onnx.checker.check_model(case.model, full_check=True)
    graph = normalized(case.model)
    check_parser_support(graph)
    assert WORKAROUNDS.needed(graph)
    assert apply_parser_workarounds(graph) == {case.operator: 1}
    assert not WORKAROUNDS.needed(graph)
    made = ir.to_proto(graph)
    onnx.checker.check_model(made, full_check=True)
    assert [o.name for o in made.graph.output] == [o.name for o in case.model.graph.output]
    if case.operator == "GlobalLpPool":
        assert [node.op_type for node in made.graph.node] == ["Abs", "GlobalLpPool"]
        return  # the reference has no such operator
    found = ReferenceEvaluator(readable(made)).run(None, case.inputs)
    tolerance = 2e-3 if found[0].dtype == np.float16 else 1e-5
    tolerance = 1e-4 if case.operator == "Resize" else tolerance  # positions in FP32
    for f, e in zip(found, case.expected, strict=True):
        assert (f.dtype, f.shape) == (e.dtype, e.shape)
        np.testing.assert_allclose(f, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "model",
    [
        model_of("QuantizeLinear", {"x": [4]}, {"s": SCALE, "z": np.array(0, np.int8)}),
        model_of(
            "ConvTranspose",
            {"x": [1, 1, 4, 4]},
            {"w": KERNEL, "b": np.zeros(1, np.float32)},
            strides=[2, 2],
            output_padding=[1, 1],
        ),
        model_of("Trilu", {"x": [4, 4]}, upper=0),
        model_of("Attention", {"q": [1, 2, 4, 8], "k": [1, 2, 4, 8], "v": [1, 2, 4, 8]}, opset=24),
        model_of("GlobalLpPool", {"x": [1, 1, 4, 4]}, p=2),
        model_of("ReduceL1", {"x": [4]}, noop_with_empty_axes=0),
        model_of("ReduceL1", {"x": [4]}, {"axes": np.array([0])}, noop_with_empty_axes=1),
        model_of("LSTM", {"x": [4, 2, 3], "w": [1, 8, 3], "r": [1, 8, 2]}, hidden_size=2),
    ],
    ids=lambda model: model.graph.node[0].op_type,
)
def test_operators_that_tensorrt_parses_correctly_are_left_alone(model):
    graph = normalized(model)
    check_parser_support(graph)
    assert not WORKAROUNDS.needed(graph)
    assert apply_parser_workarounds(graph) == {}
    assert ir.to_proto(graph).graph.node == model.graph.node


def test_a_value_of_unknown_type_is_an_error():
    """Values of plugins, which ONNX knows nothing of."""
    model = model_of("Mean", {"x": [4], "made": [4]})
    model.graph.node[0].input[:] = ["made", "made"]
    model.graph.node.insert(0, helper.make_node("Plugin", ["x"], ["made"], "p", domain="own"))
    del model.graph.input[1]
    model.opset_import.append(helper.make_opsetid("own", 1))
    with pytest.raises(ModelError, match="the type of value 'made' \\(Plugin 'p'\\) is neither"):
        apply_parser_workarounds(normalized(model))
    model.graph.node[1].input[:] = ["made", "x"]
    assert apply_parser_workarounds(normalized(model)) == {"Mean": 1}


def test_arguments_of_a_function_call_decide():
    names = ["x", "s", "b"]
    ones = {name: np.ones(4, np.float32) for name in ("s", "b")}
    norm = helper.make_node("GroupNormalization", names, ["made"])
    reference = onnx.AttributeProto(
        name="num_groups", ref_attr_name="groups", type=onnx.AttributeProto.INT
    )
    norm.attribute.append(reference)
    for groups in (1, 2):
        model = in_a_function(norm, names, ({"x": [1, 4, 2, 2]}, ones), groups=groups)
        graph = normalized(model)
        assert WORKAROUNDS.needed(graph) == (groups == 1)
        assert apply_parser_workarounds(graph) == ({"GroupNormalization": 1} if groups == 1 else {})
    pads = {"strides": [2, 2], "output_padding": [1, 1]}
    transposed = helper.make_node("ConvTranspose", ["x", "w", "b"], ["made"], **pads)
    constants = {"w": KERNEL, "b": np.zeros(1, np.float32)}
    model = in_a_function(transposed, ["x", "w", "b"], ({"x": [1, 1, 4, 4]}, constants))
    check_parser_support(normalized(model))


@pytest.mark.parametrize(
    "shapes", [([2, 3], [2, 3]), ([1, 3], [2, 1]), ([3], [2, 2, 1]), ([2, 3], [1])]
)
def test_a_choice_between_one_value_and_itself(shapes, rng):
    chosen, condition = shapes
    axes = ", ".join("abc"[: max(map(len, shapes))])
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        g (float{chosen} x, float{condition} c) => (float[{axes}] y)
        {{ z = Sub (c, c) b = Less (c, z) y = Where (b, x, x) }}"""
    )
    graph = normalized(proto)
    assert apply_parser_workarounds(graph) == {"Where": 1}
    inputs = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in zip("xc", shapes, strict=True)
    }
    found, expected = (
        ReferenceEvaluator(one).run(None, inputs)[0] for one in (ir.to_proto(graph), proto)
    )
    np.testing.assert_array_equal(found, expected)
    assert found.shape == expected.shape


def test_a_node_whose_shape_is_known_once_another_is_rewritten(rng):
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> g (float[n, 5, 1] x) => (float[m, 3, 1] y) {
            k = Constant <value = int64 {2}> () t = Constant <value = bool {1}> ()
            l = Loop (k, t, x) <body = b (int64 i, bool d, float[p, q, r] s)
                => (bool e, float[p, q, r] u) { e = Identity (d) u = Tanh (s) }>
            y = ConvTranspose <strides = [2]> (l, w) }"""
    )
    weight = rng.normal(size=(5, 3, 1)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    graph = normalized(proto)
    assert apply_parser_workarounds(graph) == {"Loop": 1, "ConvTranspose": 1}
    assert not WORKAROUNDS.needed(graph)
    x = {"x": rng.normal(size=(4, 5, 1)).astype(np.float32)}
    found, expected = (
        ReferenceEvaluator(one).run(None, x)[0] for one in (ir.to_proto(graph), proto)
    )
    np.testing.assert_allclose(found, expected, 1e-5, 1e-6)


@pytest.mark.parametrize("inputs", ['t, "", x', '"", c, x', '"", on, x', "most, c, x"])
def test_loops_without_a_limit_or_a_condition(inputs, rng):
    condition = "Identity (d)" if inputs.startswith("t") else "Less (i, t)"
    graph = model(
        f"""(float[2] x, bool c) => (float[2] y) {{ y = Loop ({inputs}) <body =
            b (int64 i, bool d, float[2] s) => (bool e, float[2] u)
            {{ e = {condition} u = Add (s, s) }}> }}""",
        t=np.array(3), on=np.array(True), most=np.array(2**63 - 1),
    )  # fmt: skip
    x = rng.standard_normal(2, np.float32)
    given = {"x": x, "c": np.array(True)}
    expected = evaluator(ir.to_proto(graph).graph, {"": 18}).run(None, given)
    assert apply_parser_workarounds(graph) == {"Loop": 1}
    limit, condition, _ = graph.graph[-1].inputs
    assert limit.const_value.numpy() in (3, 2**31 - 2)
    assert condition is not None
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    found = evaluator(ir.to_proto(graph).graph, {"": 18}).run(None, given)
    np.testing.assert_array_equal(found, expected)


def test_two_workarounds_in_one_graph():
    model = model_of("Identity", {"x": [1, 2, 3, 3]}, opset=18)
    del model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("ReduceL1", ["x"], ["a"], noop_with_empty_axes=1),
            helper.make_node("GlobalLpPool", ["a"], ["y"], p=1),
        ]
    )
    assert apply_parser_workarounds(normalized(model)) == {"ReduceL1": 1, "GlobalLpPool": 1}


@pytest.mark.parametrize("name", ["average of padding", "logarithm of exponents, earlier"])
def test_models_of_opset_10(name):
    case = CASES[name]()
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.opset_import[0].version = 10
    graph = normalized(model)
    apply_parser_workarounds(graph)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)


def test_types_inside_bodies_are_inferred(rng):
    a, b = rng.standard_normal((2, 3), np.float32), rng.standard_normal((2, 3), np.float32)
    inner = [
        helper.make_node("Add", ["a", "b"], ["sum"]),  # whose type no value_info holds
        helper.make_node("Mean", ["sum", "a", "b"], ["mean"]),
    ]
    made = helper.make_tensor_value_info("mean", TensorProto.FLOAT, [2, 3])
    other = helper.make_node("Identity", ["a"], ["mean"])
    branches = {
        "then_branch": helper.make_graph(inner, "then", [], [made]),
        "else_branch": helper.make_graph([other], "else", [], [made]),
    }
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("If", ["yes"], ["y"], **branches)],
            "body",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "ab"],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
            [numpy_helper.from_array(np.array(True), "yes")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    graph = normalized(model)
    assert apply_parser_workarounds(graph) == {"Mean": 1}
    (found,) = ReferenceEvaluator(ir.to_proto(graph)).run(None, {"a": a, "b": b})
    np.testing.assert_allclose(found, 2 * (a + b) / 3, rtol=1e-6)


@pytest.mark.parametrize("known", ["shape", "repeats"])
def test_a_value_without_axes_is_not_tiled(known):
    shape = [] if known == "shape" else None
    constants = {"r": np.zeros(0, np.int64)} if known == "repeats" else {}
    model = model_of("Tile", {"x": shape}, constants)
    if known == "shape":
        model.graph.node[0].input.append("r")
        r = helper.make_tensor_value_info("r", TensorProto.INT64, [0])
        model.graph.input.append(r)
    graph = normalized(model)
    assert apply_parser_workarounds(graph) == {"Tile": 1}
    assert [node.op_type for node in graph.graph] == ["Identity"]


@pytest.mark.parametrize("operator", ["DepthToSpace", "SpaceToDepth"])
def test_blocks_of_one_element(operator):
    graph = normalized(model_of(operator, {"x": [1, 4, 2, 2]}, {}, blocksize=1))
    assert apply_parser_workarounds(graph) == {operator: 1}
    assert [node.op_type for node in graph.graph] == ["Identity"]
    graph = normalized(model_of(operator, {"x": [1, 4, 2, 2]}, {}, blocksize=2))
    assert apply_parser_workarounds(graph) == {}


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2], "output_padding": [1, 1], "output_shape": [4, 4]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [1, 1], "pads": [1, 1, 1, 1]},
        {"strides": [1, 1], "dilations": [2, 2]},
    ],
    ids=lambda attributes: ", ".join(attributes),
)
def test_pixels_whose_strides_or_padding_matter_are_left_alone(attributes):
    graph = normalized(model_of("ConvTranspose", {"x": [1, 1, 1, 1]}, {"w": KERNEL}, **attributes))
    assert not WORKAROUNDS.needed(graph)


@pytest.mark.parametrize("number", [-3, -2, 0, 1, 2, 3, 4, 5])
def test_powers_where_weights_can_be_replaced(number):
    graph = model("(float[2,3] x) => (float[2,3] y) { y = Pow (x, n) }", n=np.float32(number))
    assert not WORKAROUNDS.needed(graph)
    config = BuildConfig(refit=True)
    one = ParserWorkarounds(PassContext(config=config, precision=ResolvedPrecision()))
    assert one.needed(graph)
    one(graph)
    assert one.record == {"nodes": {"Pow": 1}}
    x = np.array([[-2, -0.5, 3], [1, -1, 0.25]], np.float32)
    (found,) = ReferenceEvaluator(ir.to_proto(graph)).run(None, {"x": x})
    np.testing.assert_allclose(found, x**number, rtol=1e-6)


@pytest.mark.parametrize("number", [0.5, 2.5])
def test_powers_that_are_no_whole_numbers_stay(number):
    graph = model("(float[2,3] x) => (float[2,3] y) { y = Pow (x, n) }", n=np.float32(number))
    assert apply_parser_workarounds(graph, refit=True) == {}


@pytest.mark.parametrize(
    ("norm", "shape", "opset", "rewritten"),
    [
        ("InstanceNormalization <epsilon = 0.01>", [2, 4, 1, 1], 18, True),
        ("InstanceNormalization", [2, 4, 1], 18, True),
        ("InstanceNormalization", [2, 4, 1, 2], 18, False),
        ("GroupNormalization <num_groups = 4>", [2, 4, 1, 1], 18, True),
        ("GroupNormalization <num_groups = 4>", [2, 4, 1], 21, True),
        ("GroupNormalization <num_groups = 2>", [2, 4, 1, 1], 21, False),
    ],
)
def test_norms_of_one_element(norm, shape, opset, rewritten, rng):
    axes = ", ".join("abcd"[: len(shape)])
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": {opset}]>
        g (float{shape} x, float[4] s, float[4] b) => (float[{axes}] y)
        {{ y = {norm} (x, s, b) }}"""
    )
    graph = normalized(proto)
    assert WORKAROUNDS.needed(graph) == rewritten
    expected = {norm.split()[0]: 1} if rewritten else {}
    assert apply_parser_workarounds(graph) == expected
    inputs = {name: rng.standard_normal(4, np.float32) for name in "sb"}
    inputs["x"] = rng.standard_normal(shape, np.float32)
    (found,) = ReferenceEvaluator(ir.to_proto(graph)).run(None, inputs)
    (wanted,) = ReferenceEvaluator(proto).run(None, inputs)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["float", "float16", "int64", "int32"])
@pytest.mark.parametrize("operator", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_numbers_that_are_compared_with_themselves(operator, kind):
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]> g ({kind}[6] x) => (bool[6] y)
        {{ a = Abs (x) b = Neg (a) y = {operator} (b, b) }}"""
    )
    graph = normalized(proto)
    assert apply_parser_workarounds(graph) == {operator: 1}
    assert not WORKAROUNDS.needed(graph)
    numbers = [0, 1, 2, np.inf, -np.inf, np.nan] if kind.startswith("float") else [0, 1, -1, 7] * 2
    x = {"x": np.array(numbers[:6], {"float": "float32"}.get(kind, kind))}
    (found,) = ReferenceEvaluator(ir.to_proto(graph)).run(None, x)
    (expected,) = ReferenceEvaluator(proto).run(None, x)
    np.testing.assert_array_equal(found, expected)
