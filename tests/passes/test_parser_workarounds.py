"""What TensorRT's parser misreads: written otherwise, against NumPy and PyTorch; or refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from trt_native.config import BuildConfig
from trt_native.errors import ModelError, UnsupportedError
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.parser_workarounds import ParserWorkarounds, apply_parser_workarounds
from trt_native.passes.reject_unsupported import check_parser_support

pytest.importorskip("torch")
from helpers.miscompiled_models import CASES
from helpers.passes import normalized

WORKAROUNDS = ParserWorkarounds(PassContext(config=BuildConfig(), precision=ResolvedPrecision()))


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", CASES)
def test_what_is_mended_means_what_it_did(name):
    case = CASES[name]()
    if name != "groups of opset 18":  # a form that onnx calls deprecated
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
    found = ReferenceEvaluator(made).run(None, case.inputs)
    tolerance = 2e-3 if found[0].dtype == np.float16 else 1e-5
    for f, e in zip(found, case.expected, strict=True):
        assert (f.dtype, f.shape) == (e.dtype, e.shape)
        np.testing.assert_allclose(f, e, rtol=tolerance, atol=tolerance)


def model_of(operator, inputs, constants=None, opset=21, **attributes):
    """A model of one node; inputs by name and shape, an empty name for none."""
    names = [*inputs, *(constants or {})]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(operator, names, ["y"], **attributes)],
            "refused",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in inputs.items()
                if name
            ],
            [onnx.ValueInfoProto(name="y")],
            [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )


KERNEL = np.zeros((1, 1, 3, 3), np.float32)
SCALE = np.float32(0.1).reshape(())


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (
            model_of("QuantizeLinear", {"x": [4]}, {"s": SCALE, "z": np.array(0, np.uint8)}),
            r"'y' \(QuantizeLinear\): uint8 is clipped to int8",
        ),
        (
            model_of(
                "ConvTranspose",
                {"x": [1, 1, 4, 4], "w": [1, 1, 3, 3], "b": [1]},
                strides=[2, 2],
                output_padding=[1, 1],
            ),
            "omits a non-constant bias",
        ),
        (
            model_of(
                "ConvTranspose",
                {"x": [1, 1, 4, 4]},
                {"w": KERNEL},
                strides=[2, 2],
                auto_pad="SAME_UPPER",
                output_shape=[9, 9],
            ),
            "output_shape is ignored",
        ),
        (
            model_of("NonMaxSuppression", {"boxes": [1, 4, 4], "scores": [1, 1, 4]}),
            "without max_output_boxes_per_class",
        ),
        (model_of("SpaceToDepth", {"x": [1, 1, 4, 4]}, blocksize=2, mode="CRD"), "mode CRD"),
    ],
    ids=["uint8", "bias", "output_shape", "boxes", "CRD"],
)
def test_what_is_refused(model, fault):
    graph = normalized(model)
    with pytest.raises(UnsupportedError, match=fault):
        check_parser_support(graph)


def test_int8_with_limits_is_refused():
    model = model_of("Clip", {"x": [4]}, {"low": np.array(1, np.int8)})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8
    with pytest.raises(UnsupportedError, match="int8 ignores a lower limit"):
        check_parser_support(normalized(model))


def test_attention_with_a_number_of_tokens_is_refused():
    names = ["q", "k", "v", "", "", "", "n"]
    node = helper.make_node("Attention", names, ["y"], name="attend")
    graph = helper.make_graph([node], "refused", [], [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    with pytest.raises(UnsupportedError, match=r"'?attend'? \(Attention\): nonpad_kv_seqlen"):
        check_parser_support(normalized(model))


@pytest.mark.parametrize(
    "model",
    [
        model_of("QuantizeLinear", {"x": [4]}, {"s": SCALE, "z": np.array(0, np.int8)}),
        model_of("QuantizeLinear", {"x": [4]}, {"s": SCALE}),
        model_of(
            "ConvTranspose",
            {"x": [1, 1, 4, 4]},
            {"w": KERNEL, "b": np.zeros(1, np.float32)},
            strides=[2, 2],
            output_padding=[1, 1],
        ),
        model_of("Trilu", {"x": [4, 4]}, upper=0),
        model_of("Mean", {"x": [4]}),
        model_of("Attention", {"q": [1, 2, 4, 8], "k": [1, 2, 4, 8], "v": [1, 2, 4, 8]}, opset=24),
        model_of("GlobalLpPool", {"x": [1, 1, 4, 4]}, p=2),
        model_of("ReduceL1", {"x": [4]}, noop_with_empty_axes=0),
        model_of("ReduceL1", {"x": [4]}, {"axes": np.array([0])}, noop_with_empty_axes=1),
        model_of("LSTM", {"x": [4, 2, 3], "w": [1, 8, 3], "r": [1, 8, 2]}, hidden_size=2),
    ],
    ids=lambda model: model.graph.node[0].op_type,
)
def test_what_tensorrt_has_right_is_left_alone(model):
    graph = normalized(model)
    check_parser_support(graph)
    assert not WORKAROUNDS.needed(graph)
    assert apply_parser_workarounds(graph) == {}
    assert ir.to_proto(graph).graph.node == model.graph.node


def test_a_type_that_nobody_knows_is_asked_for():
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


def in_a_function(node, inputs, call, **attributes):
    """A function of one node, and the model that calls it."""
    function = helper.make_function(
        "own", "Own", inputs, ["made"], [node], [helper.make_opsetid("", 21)], list(attributes)
    )
    model = model_of("Own", *call)
    model.graph.node[0].domain = "own"
    model.graph.node[0].attribute.extend(
        helper.make_attribute(name, value) for name, value in attributes.items()
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def test_what_a_function_is_called_with_decides():
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


def test_types_are_found_where_they_are_told():
    model = model_of("QuantizeLinear", {"x": [4]}, {"s": SCALE})
    zero = numpy_helper.from_array(np.array(0, np.uint8))
    model.graph.node[0].input.append("z")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["z"], value=zero))
    told = model_of("QuantizeLinear", {"x": [4]}, {"s": SCALE}, output_dtype=TensorProto.UINT8)
    for refused in (model, told):
        with pytest.raises(UnsupportedError, match="uint8 is clipped to int8"):
            check_parser_support(normalized(refused))


def test_one_mending_may_do_for_another():
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
        helper.make_node("Add", ["a", "b"], ["sum"]),  # whose type no value_info tells
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
