"""One node of a plugin for several, by a file that names them, against onnx.reference."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import model, normal
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from trt_native.config import BuildConfig
from trt_native.errors import SpecError
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.replace_subgraphs import ReplaceSubgraphs

TEXT = """(float[2, 4] x) => (float[2, 4] y, float[2, 4] kept) {
    a0 = Sigmoid(x)
    b0 = Mul(x, a0)
    kept = Neg(b0)
    a1 = Sigmoid(b0)
    b1 = Mul(b0, a1)
    y = Add(b1, w)
}"""
NAMES = ("/0/act/sigmoid", "/0/act/mul", "/neg", "/1/act/sigmoid", "/1/act/mul", "/add")
BOTH = {"nodes": r"(/\d)/act/.*", "operator": "Gated", "domain": "mine"}


class Gated(OpRun):
    op_domain = "mine"

    def _run(self, x, beta=None):
        return (x / (1 + np.exp(-(beta or 1.0) * x)),)


class GatedAdd(OpRun):
    op_domain = ""

    def _run(self, x, w=None):
        y = x / (1 + np.exp(-x))
        return (y if w is None else y + w,)


def named():
    graph = model(TEXT, w=normal(9, 2, 4))
    for node, name in zip(graph.graph, NAMES, strict=True):
        node.name = name
    return graph


def replaced(tmp_path, *entries, graph=None):
    graph = graph or named()
    (tmp_path / "map.json").write_text(json.dumps(entries))
    config = BuildConfig(replacement_map=tmp_path / "map.json")
    one = ReplaceSubgraphs(PassContext(config=config, precision=ResolvedPrecision()))
    assert one.needed(graph)
    one(graph)
    assert not one.needed(graph)
    return ir.to_proto(graph), one.record


def outputs(proto, x):
    return ReferenceEvaluator(proto, new_ops=[Gated, GatedAdd]).run(None, {"x": x})


def check(proto):
    x = normal(1, 2, 4)
    for found, expected in zip(outputs(proto, x), outputs(ir.to_proto(named()), x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_nodes_with_equal_groups_become_one(tmp_path):
    proto, record = replaced(tmp_path, {**BOTH, "attributes": {"beta": 1.0}})
    check(proto)
    assert [node.op_type for node in proto.graph.node] == ["Gated", "Neg", "Gated", "Add"]
    assert [node.name for node in proto.graph.node] == ["/0/act/mul", "/neg", "/1/act/mul", "/add"]
    assert [value.name for value in proto.graph.output] == ["y", "kept"]
    assert {imported.domain: imported.version for imported in proto.opset_import}["mine"] == 1
    (beta,) = proto.graph.node[0].attribute
    assert (beta.name, beta.f) == ("beta", 1.0)
    assert record == {"nodes": {"Gated": 2}, "replaced": {"Sigmoid": 2, "Mul": 2}}


@pytest.mark.parametrize("constants", [True, False])
def test_constants_are_inputs_or_left_to_the_plugin(tmp_path, constants):
    entry = {"nodes": "/1/act/.*|/add", "operator": "GatedAdd", "constants": constants}
    proto, _ = replaced(tmp_path, entry)
    (node,) = (node for node in proto.graph.node if node.op_type == "GatedAdd")
    assert list(node.input) == (["b0", "w"] if constants else ["b0"])
    assert node.output[0] == "y"
    if constants:
        check(proto)


def test_the_outputs_have_types(tmp_path):
    proto, _ = replaced(tmp_path, BOTH)
    types = {value.name: value.type.tensor_type for value in proto.graph.value_info}
    assert types[proto.graph.node[0].output[0]].elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({**BOTH, "nodes": "/2/.*"}, "replacement by Gated: no node matches '/2/.*'"),
        (
            {**BOTH, "nodes": "/0/act/sigmoid|/1/act/mul"},
            "'/0/act/mul' is between nodes that are to be one, such as '/1/act/mul'",
        ),
        ({**BOTH, "nodes": "("}, "replacement 1: nodes is not a regular expression"),
        ({"nodes": "x"}, "replacement 1: an object with 'nodes' and 'operator' is needed"),
        ({**BOTH, "name": "x"}, "replacement 1: no field 'name'; there are nodes, operator"),
        ({**BOTH, "operator": 3}, "replacement 1: operator is not a str: 3"),
        ({**BOTH, "attributes": {"a": {}}}, "attribute 'a' is neither a number, a text nor a"),
        ({**BOTH, "attributes": {"a": [1, "b"]}}, "attribute 'a' is neither a number"),
    ],
)
def test_what_is_refused(tmp_path, entry, reason):
    with pytest.raises(SpecError) as caught:
        replaced(tmp_path, entry)
    assert reason in caught.value.message
    assert caught.value.options == ("replacement_map",)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3"])
def test_files_that_are_no_map(tmp_path, text):
    from trt_native.graph.subgraphs import read_replacements

    (tmp_path / "map.json").write_text(text)
    with pytest.raises(SpecError, match=r"map\.json: (not JSON|a list of replacements is needed)"):
        read_replacements(tmp_path / "map.json")
    with pytest.raises(SpecError, match=r"cannot read .*none\.json"):
        read_replacements(tmp_path / "none.json")


def test_weights_stay(tmp_path):
    proto, _ = replaced(tmp_path, BOTH)
    (w,) = proto.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(w), normal(9, 2, 4))
