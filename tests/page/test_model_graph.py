"""The graph of an ONNX model: nodes, edges, chains of shapes, weights and multiply-adds."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from helpers.page_models import blocks_model
from helpers.text_models import i64, model, normal

from trt_native.errors import SpecError
from trt_native.page.model_graph import input_shapes, model_graph


def graph_of(onnx_model, **extents):
    return model_graph(onnx_model, input_shapes(onnx_model, extents))


def test_nodes_have_their_tensors_types_and_modules():
    found = graph_of(blocks_model(1)).graph
    product = next(node for node in found.nodes if node.kind == "MatMul")
    assert (product.name, product.path) == ("blocks.0.mlp/MatMul", ("blocks", "0", "mlp"))
    reads = [found.tensors[index] for index in product.inputs]
    assert [(t.name, t.dtype, t.shape, t.constant) for t in reads] == [
        ("x", "float32", "batch×8", False),
        ("blocks.0.weight", "float32", "8×8", True),
    ]
    assert product.weight_bytes == 8 * 8 * 4
    assert [found.tensors[index].name for index in found.inputs] == ["x"]
    assert [found.tensors[index].name for index in found.outputs] == ["probabilities"]


def test_what_follows_from_shapes_and_constants():
    graph = model(
        """(float[N, 4] x, int64[1] k) => (float[M, 4] y, int64[2] s) {
            [shape] a = Shape(x)
            [first] b = Gather(a, zero)
            [joined] c = Concat<axis = 0>(b, four)
            [weight] w2 = Neg(w)
            [given] d = Concat<axis = 0>(k, four)
            [product] e = MatMul(x, w2)
            [moved] f = Reshape(e, c)
            [again] y = Reshape(f, d)
            [out] s = Identity(c)
        }""",
        zero=i64(0),
        four=i64(4),
        w=normal(0, 4, 4),
    )
    found = graph_of(graph).graph
    computing = {node.name for node in found.nodes if node.computes_shapes}
    assert computing == {"shape", "first", "joined", "weight"}  # not what the caller gets


def test_multiply_adds_are_those_of_pytorch_behind_computed_shapes():
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    graph = blocks_model(3)
    layers = [torch.nn.Linear(8, 8, bias=False) for _ in range(3)]
    with FlopCounterMode(display=False) as counter:
        torch.nn.Sequential(*layers)(torch.zeros(5, 8))
    found = graph_of(graph, batch=5)
    total = sum(node.multiply_adds or 0 for node in found.graph.nodes)
    assert total == counter.get_total_flops() // 2 == 960
    assert (found.uncounted, found.extents) == (0, {"batch": 5})


def test_extents_of_expressions_and_of_unknown_dimensions():
    graph = model("(float[n, 4] x, float[b, f] z) => (float[n, 4] y) { y = Relu(x) }")
    graph.graph.inputs[0].shape = ir.Shape(["b*f", 4])
    assert input_shapes(graph, {"b": 2, "f": 3}) == {"x": (6, 4), "z": (2, 3)}
    assert input_shapes(graph, {}) == {"x": (1, 4), "z": (1, 1)}
    with pytest.raises(SpecError, match="'batch' is not one of the model's dimensions: b, f"):
        input_shapes(graph, {"batch": 2})


def test_nodes_of_bodies_are_inside_their_node():
    graph = model(
        """(bool c, float[2] x) => (float[2] y) {
            [outer] y = If(c) <
                then_branch = t () => (float[2] a) { [one] a = Relu(x) },
                else_branch = e () => (float[2] b) { [two] b = Neg(x) }
            >
        }"""
    )
    graph.graph.node(0).name = "outer/If"
    found = graph_of(graph).graph
    paths = {node.name: node.path for node in found.nodes}
    assert paths == {
        "outer/If": ("outer",),
        "one": ("outer", "outer/If then_branch"),
        "two": ("outer", "outer/If else_branch"),
    }
    relu = next(node for node in found.nodes if node.name == "one")
    assert [found.tensors[index].name for index in relu.inputs] == ["x"]


def test_attributes_are_for_a_person():
    graph = model(
        """(float[1, 1, 4, 4] x) => (float[n] y) {
            a = Conv<pads = [1, 1, 1, 1], auto_pad = "NOTSET">(x, w)
            b = Constant<value = float[2] {1.5, 2.5}>()
            c = ConstantOfShape<value = int64[1] {3}>(k)
            y = Relu(a)
        }""",
        w=normal(0, 1, 1, 3, 3),
        k=i64(40),
    )
    nodes = {node.kind: dict(node.attributes) for node in graph_of(graph).graph.nodes}
    assert nodes["Conv"] == {"pads": "1, 1, 1, 1", "auto_pad": "NOTSET"}
    assert nodes["Constant"] == {"value": "float32 2: 1.5, 2.5"}
