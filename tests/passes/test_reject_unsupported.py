"""Operators that TensorRT's parser gets wrong and no rewrite replaces."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.one_node_models import KERNEL, SCALE, model_of
from helpers.passes import normalized
from onnx import TensorProto, helper, numpy_helper

from trt_native.backends.registry import load_backend
from trt_native.errors import UnsupportedError
from trt_native.passes.reject_unsupported import check_parser_support


@pytest.mark.parametrize(
    ("model", "problem"),
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
        (model_of("SpaceToDepth", {"x": [1, 1, 4, 4]}, blocksize=-2), "blocksize -2: blocks have"),
        (model_of("DepthToSpace", {"x": [1, 4, 4, 4]}, blocksize=-2), "blocksize -2: blocks have"),
    ],
    ids=["uint8", "bias", "output_shape", "boxes", "CRD", "to depth", "to space"],
)
def test_unsupported_operators_are_rejected(model, problem):
    graph = normalized(model)
    with pytest.raises(UnsupportedError, match=problem):
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


def test_types_come_from_constants_and_attributes():
    model = model_of("QuantizeLinear", {"x": [4]}, {"s": SCALE})
    zero = numpy_helper.from_array(np.array(0, np.uint8))
    model.graph.node[0].input.append("z")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["z"], value=zero))
    attribute = model_of("QuantizeLinear", {"x": [4]}, {"s": SCALE}, output_dtype=TensorProto.UINT8)
    for refused in (model, attribute):
        with pytest.raises(UnsupportedError, match="uint8 is clipped to int8"):
            check_parser_support(normalized(refused))


def test_operators_that_end_the_process_are_refused():
    inputs = {"x": [1, 2, 8, 8], "boxes": [3, 4], "batches": [3]}
    graph = normalized(model_of("RoiAlign", inputs))
    check_parser_support(graph)
    with pytest.raises(UnsupportedError, match=r"'y' \(RoiAlign\): the parser may end the process"):
        check_parser_support(graph, {"RoiAlign"})
    capabilities = load_backend("rtx").capabilities
    assert "RoiAlign" in capabilities.crashing_operators


def attention(body, kind="float"):
    text = f"""<ir_version: 10, opset_import: ["": 23]>
        g ({kind}[1,2,5,8] x, {kind}[1,2,5,8] v) => ({kind}[1,2,5,8] y) {{ {body} }}"""
    return normalized(onnx.parser.parse_model(text))


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ("y = Attention (x, x, v)", True),
        ("k = Identity (x) y = Attention (x, k, x)", True),
        ("q = Neg (x) k = Neg (x) y = Attention (q, k, v)", True),
        ("q = Neg (x) k = Abs (x) y = Attention (q, k, v)", False),
        ("q = LeakyRelu <alpha = 0.1> (x) k = LeakyRelu (x) y = Attention (q, k, v)", False),
        ("y = Attention (x, v, v)", False),
    ],
)
def test_attention_of_a_value_to_itself_is_refused(body, refused):
    if not refused:
        check_parser_support(attention(body))
        return
    with pytest.raises(UnsupportedError, match="query and key are one value"):
        check_parser_support(attention(body))


def test_attention_of_fp16_to_itself_is_not_refused():
    check_parser_support(attention("y = Attention (x, x, v)", "float16"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "n" * 4001}, "as node 'n"),
        ({"x": "x" * 4001}, "as input 'x"),
        ({"s": "s" * 4001}, "as weight 's"),
        ({"y": "y" * 4001}, "as tensor 'y"),
        ({"d": "d" * 4001}, "as dimension 'd"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_names_that_are_too_long_for_tensorrt(change, problem):
    names = {n: n for n in ("x", "s", "y", "d")} | change
    node = helper.make_node("Mul", [names["x"], names["s"]], [names["y"]], change.get("name"))
    tensors = [
        helper.make_tensor_value_info(names[n], TensorProto.FLOAT, [names["d"]]) for n in "xy"
    ]
    weight = numpy_helper.from_array(np.ones(1, np.float32), names["s"])
    graph = helper.make_graph([node], "g", tensors[:1], tensors[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(UnsupportedError, match="no names of more than 4,000 characters") as caught:
        check_parser_support(ir.from_proto(model))
    assert problem in caught.value.message
    assert "(4,001)" in caught.value.message
