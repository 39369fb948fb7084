"""The graph of a plan's layers, and viewers' files of it."""

from __future__ import annotations

import onnx
import pytest
from helpers.made_plans import LAYERS
from helpers.page_models import blocks_model

from trt_native.page.layer_graph import layer_graph, layers_of_nodes
from trt_native.page.netron import write_layers_as_onnx, write_without_weights
from trt_native.plans.engine_layers import Layer, LayerTensor, parse_layers


def tensor(name, precision="fp16", shape=(2, 3)):
    return LayerTensor(name, precision, shape)


def layer(name, reads, writes, nodes=(), kind="Pointwise"):
    return Layer(name, kind, None, tuple(map(tensor, reads)), tuple(map(tensor, writes)), nodes)


CHAIN = (
    layer("first", ["x"], ["a"], ("m.0/Conv", "m.0/Relu")),
    layer("second", ["a", "x"], ["b"], ("m.0/Add", "m.1/Norm", "m.1/Mul")),
    layer("second", ["b"], ["a"], ("/Softmax",)),
    layer("last", ["a"], ["y"]),
)


def test_layers_are_connected_by_the_last_that_wrote():
    graph = layer_graph(CHAIN, "Layers")
    names = [[graph.tensors[i].name for i in node.inputs] for node in graph.nodes]
    assert names == [["x"], ["a", "x"], ["b"], ["a"]]
    assert graph.nodes[3].inputs == graph.nodes[2].outputs != graph.nodes[0].outputs
    assert [graph.tensors[i].name for i in graph.inputs] == ["x"]
    assert [graph.tensors[i].name for i in graph.outputs] == ["y"]


def test_a_layer_is_where_most_of_its_nodes_are():
    paths = [node.path for node in layer_graph(CHAIN, "Layers").nodes]
    assert paths == [("m", "0"), ("m", "1"), (), ()]
    fused = layer_graph([layer("m.0/Conv + m.1/Relu", [], ["y"])], "Layers")
    assert fused.nodes[0].path == ("m", "0")


def test_profiles_are_apart():
    layers = parse_layers([{"Name": "m/Conv"}, {"Name": "m/Conv [profile 1]"}])
    paths = [node.path for node in layer_graph(layers, "Layers").nodes]
    assert paths == [("profile 0", "m"), ("profile 1", "m")]


def test_layers_of_one_name_share_its_time():
    graph = layer_graph(CHAIN, "Layers", times={"first": 1.0, "second": 3.0})
    assert [node.milliseconds for node in graph.nodes] == [1.0, 1.5, 1.5, None]


def test_the_inspectors_layers():
    graph = layer_graph(parse_layers(LAYERS), "Layers")
    first, second, third = graph.nodes
    assert (first.kind, first.precision, second.kind) == ("CaskConvolution", "fp16", "kgen")
    assert first.attributes == (("kernel", "sm80_xmma_fprop_implicit_gemm"),)
    assert second.inputs == first.outputs
    assert graph.tensors[second.outputs[0]].shape == "?×3"
    assert (third.kind, third.inputs, third.outputs) == ("layer", (), ())


def test_layers_by_onnx_node():
    found = layers_of_nodes(CHAIN)
    assert [found_layer.name for found_layer in found["m.0/Add"]] == ["second"]
    assert "m.9/Add" not in found


def test_layers_as_onnx(tmp_path):
    write_layers_as_onnx(CHAIN, tmp_path / "l.onnx", times={"first": 0.25})
    model = onnx.load(tmp_path / "l.onnx")
    onnx.checker.check_model(model)
    nodes = model.graph.node
    assert [(n.domain, n.op_type, n.name) for n in nodes[:2]] == [
        ("tensorrt", "Pointwise", "first"),
        ("tensorrt", "Pointwise", "second"),
    ]
    assert [list(n.output) for n in nodes] == [["a"], ["b"], ["a (2)"], ["y"]]
    assert list(nodes[3].input) == ["a (2)"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute}
    assert attributes == {
        "precision": b"fp16",
        "nodes": [b"m.0/Conv", b"m.0/Relu"],
        "milliseconds": 0.25,
    }
    (given,) = model.graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert [d.dim_value for d in given.type.tensor_type.shape.dim] == [2, 3]


@pytest.mark.parametrize("width", [8, 64])
def test_a_model_without_weights(tmp_path, width):
    model = blocks_model(2, width)
    values = {v.name: v.const_value for v in model.graph.initializers.values()}
    write_without_weights(model, tmp_path / "g.onnx")
    assert {v.name: v.const_value for v in model.graph.initializers.values()} == values
    found = onnx.load(tmp_path / "g.onnx", load_external_data=False)
    assert [n.name for n in found.graph.node] == [n.name for n in model.graph]
    weights = {w.name: w for w in found.graph.initializer}
    assert set(weights) == set(values)
    assert list(weights["blocks.0.weight"].dims) == [width, width]
    small = width == 8
    assert weights["blocks.0.weight"].HasField("raw_data") == small
    assert onnx.numpy_helper.to_array(weights["blocks.1.tail"]).tolist() == [width]
    assert (tmp_path / "g.onnx").stat().st_size < 4000
