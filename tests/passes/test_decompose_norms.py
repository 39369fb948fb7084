"""Norms in other forms, against onnx.reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.passes import normalized
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from trt_native.graph.inference import infer_types
from trt_native.passes.decompose_norms import decompose_norms
from trt_native.passes.parser_workarounds import apply_parser_workarounds

SHAPE = (2, 6, 3, 5)


def model_of(operator, opset, kind, parameters, shape=SHAPE, **attributes):
    """A norm between two other nodes, in a graph that has names like those that are made."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    random = np.random.default_rng(1)
    nodes = [
        helper.make_node("Relu", ["x"], ["norm__sub"]),
        helper.make_node(operator, ["norm__sub", "scale", "bias"], ["norm"], **attributes),
        helper.make_node("Neg", ["norm"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "norm",
        [helper.make_tensor_value_info("x", kind, ["n", *shape[1:]])],
        [helper.make_tensor_value_info(name, kind, ["n", *shape[1:]]) for name in ("y", "norm")],
        [
            numpy_helper.from_array(random.standard_normal(parameters).astype(dtype), name)
            for name in ("scale", "bias")
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    return model


def written_out(model):
    graph = ir.from_proto(model)
    infer_types(graph)
    assert sum(decompose_norms(graph).values()) == 1
    assert not {"InstanceNormalization", "GroupNormalization"} & {n.op_type for n in graph.graph}
    made = ir.to_proto(graph)
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.mark.parametrize(
    ("operator", "opset", "parameters", "attributes"),
    [
        ("InstanceNormalization", 13, 6, {}),
        ("InstanceNormalization", 18, 6, {"epsilon": 0.1}),
        ("GroupNormalization", 18, 3, {"num_groups": 3, "epsilon": 0.1}),
        ("GroupNormalization", 21, 6, {"num_groups": 3}),
        ("GroupNormalization", 21, 6, {"num_groups": 1}),
    ],
)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_values_and_names_stay(rng, operator, opset, parameters, attributes, kind):
    model = model_of(operator, opset, kind, parameters, **attributes)
    made = written_out(model)
    assert [output.name for output in made.graph.output] == ["y", "norm"]
    x = (rng.standard_normal(SHAPE) * 3 + 20).astype(helper.tensor_dtype_to_np_dtype(kind))
    exact = model_of(operator, opset, TensorProto.FLOAT, parameters, **attributes)
    for name in ("scale", "bias"):  # the same numbers, as rounded
        source = next(i for i in model.graph.initializer if i.name == name)
        target = next(i for i in exact.graph.initializer if i.name == name)
        target.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(source).astype(np.float32), name)
        )
    expected = ReferenceEvaluator(exact).run(None, {"x": x.astype(np.float32)})
    found = ReferenceEvaluator(made).run(None, {"x": x})
    tolerance = 1e-5 if kind == TensorProto.FLOAT else 1e-3
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == x.dtype
        np.testing.assert_allclose(f, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(2, 6, 7), (1, 6, 2, 3, 4)])
def test_other_ranks(rng, shape):
    model = model_of("InstanceNormalization", 18, TensorProto.FLOAT, 6, shape)
    x = rng.standard_normal(shape, np.float32)
    expected = ReferenceEvaluator(model).run(None, {"x": x})
    found = ReferenceEvaluator(written_out(model)).run(None, {"x": x})
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-5)


# Group norms of one group


def joined(model):
    graph = normalized(model)
    assert apply_parser_workarounds(graph) == {"GroupNormalization": 1}
    assert apply_parser_workarounds(graph) == {}
    made = ir.to_proto(graph)
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.mark.parametrize(("opset", "parameters"), [(18, 1), (21, 6)])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("shape", [(2, 6, 7), (2, 6, 3, 5), (1, 6, 2, 3, 4)])
def test_one_group_holds_all_channels(rng, opset, parameters, kind, shape):
    attributes = {"num_groups": 1, "epsilon": 0.01}
    model = model_of("GroupNormalization", opset, kind, parameters, shape, **attributes)
    made = joined(model)
    assert [output.name for output in made.graph.output] == ["y", "norm"]
    x = rng.standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(kind))
    x[:, 0] += 4  # channels differ, so that statistics of each would be others
    expected = ReferenceEvaluator(model).run(None, {"x": x})
    tolerance = 1e-5 if kind == TensorProto.FLOAT else 1e-2
    for f, e in zip(ReferenceEvaluator(made).run(None, {"x": x}), expected, strict=True):
        assert f.dtype == x.dtype
        np.testing.assert_allclose(f, e, rtol=tolerance, atol=tolerance)


def in_a_body(model, norm):
    """The norm in one branch of an If, nothing in the other."""
    shape = helper.make_tensor_value_info("made", TensorProto.FLOAT, ["n", *SHAPE[1:]])
    norm.output[0] = "made"
    identity = helper.make_node("Identity", ["norm__sub"], ["made"])
    branches = {
        f"{name}_branch": helper.make_graph([node], name, [], [shape])
        for name, node in (("then", norm), ("else", identity))
    }
    yes = numpy_helper.from_array(np.array(True), "yes")
    model.graph.initializer.append(yes)
    model.graph.node.insert(1, helper.make_node("If", ["yes"], ["norm"], **branches))


def in_a_function(model, norm):
    function = helper.make_function(
        "own", "Normed", norm.input, norm.output, [norm], [helper.make_opsetid("", 21)]
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    call = helper.make_node("Normed", norm.input, norm.output, domain="own")
    model.graph.node.insert(1, call)


@pytest.mark.parametrize("put", [in_a_body, in_a_function])
def test_norms_in_bodies_and_functions_are_joined(rng, put):
    torch = pytest.importorskip("torch")
    model = model_of("GroupNormalization", 21, TensorProto.FLOAT, 6, num_groups=1)
    norm = onnx.NodeProto()
    norm.CopyFrom(model.graph.node[1])
    del model.graph.node[1]
    put(model, norm)
    x = rng.standard_normal(SHAPE, np.float32)
    scale, bias = (torch.tensor(numpy_helper.to_array(i)) for i in model.graph.initializer[:2])
    expected = torch.nn.functional.group_norm(torch.tensor(x).relu(), 1, scale, bias).numpy()
    _, found = ReferenceEvaluator(joined(model)).run(None, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_other_norms_are_left_alone():
    for operator, parameters, attributes in (
        ("GroupNormalization", 6, {"num_groups": 3}),
        ("InstanceNormalization", 6, {}),
    ):
        graph = ir.from_proto(model_of(operator, 21, TensorProto.FLOAT, parameters, **attributes))
        assert apply_parser_workarounds(graph) == {}
