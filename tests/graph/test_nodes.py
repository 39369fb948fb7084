"""Facts about nodes, against the schemas and the type checks of ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import model
from onnx import TensorProto, helper

from trt_native.graph.nodes import (
    BFLOAT16,
    CASTS,
    DATA_MOVEMENT_OPS,
    FLOAT,
    FLOAT16,
    PRODUCTS,
    QDQ,
    SHAPES,
    all_nodes,
    allowed_types,
    bodies,
    constant_of,
    dtype_of,
    free_inputs,
    input_of,
    is_fp32,
    opset_of,
    scale_of,
)
from trt_native.schemas import schema_of

BRANCHES = """(float[4] x, bool c) => (float[4] y) {
    [before] h = Relu(x)
    [choice] y = If(c) <
        then_branch = t () => (float[4] a) {
            [inner] a = If(c) <
                then_branch = tt () => (float[4] p) { [deep] p = Neg(h) },
                else_branch = te () => (float[4] q) { [deep_else] q = Abs(h) }
            >
        },
        else_branch = e () => (float[4] b) { [other] b = Identity(h) }
    >
}"""


@pytest.mark.parametrize("names", [DATA_MOVEMENT_OPS, CASTS, PRODUCTS, SHAPES, QDQ])
def test_operator_sets_name_operators_of_onnx(names):
    assert names <= {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}


@pytest.mark.parametrize("name", sorted(DATA_MOVEMENT_OPS))
def test_operators_that_move_data_keep_its_type(name):
    schema = onnx.defs.get_schema(name)
    assert schema.outputs[0].type_str == schema.inputs[0].type_str
    variables = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    assert {"tensor(float)", "tensor(float16)"} <= set(variables[schema.inputs[0].type_str])


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_operators_that_read_shapes_return_integers(name):
    schema = onnx.defs.get_schema(name)
    variables = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    assert variables[schema.outputs[0].type_str] == ["tensor(int64)"]


def test_all_nodes_includes_those_in_bodies():
    graph = model(BRANCHES).graph
    names = [node.name for node in all_nodes(graph)]
    assert sorted(names) == sorted(["before", "choice", "inner", "deep", "deep_else", "other"])


def test_bodies_are_the_graphs_directly_inside_a_node():
    graph = model(BRANCHES).graph
    assert {body.name for body in bodies(graph.node("choice"))} == {"t", "e"}
    assert list(bodies(graph.node("before"))) == []


def test_constants_are_initializers_and_outputs_of_constant_nodes():
    graph = model(
        """(float[2] x) => (float[2] y) {
            c = Constant<value = float[2] {3.0, 4.0}>()
            a = Add(x, w)
            y = Mul(a, c)
        }""",
        w=np.array([1, 2], np.float32),
    ).graph
    values = {v.name: v for node in graph for v in (*node.inputs, *node.outputs)}
    np.testing.assert_array_equal(constant_of(values["w"]).numpy(), [1, 2])
    np.testing.assert_array_equal(constant_of(values["c"]).numpy(), [3, 4])
    assert [constant_of(values[name]) for name in ("x", "a", "y")] == [None] * 3
    assert [dtype_of(values[name]) for name in ("w", "c", "x")] == [FLOAT] * 3
    assert dtype_of(values["a"]) is None  # not inferred
    assert dtype_of(None) is None


def test_free_inputs_are_fp32_and_computed():
    graph = model(
        """(float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) {
            [resize] y = Resize(x, , scales)
        }""",
        scales=np.array([1, 1, 2, 2], np.float32),
    ).graph
    resize = graph.node("resize")
    assert [value.name for value in free_inputs(resize)] == ["x"]
    assert input_of(resize, 0).name == "x"
    assert input_of(resize, 1) is None
    assert input_of(resize, 2).name == "scales"
    assert input_of(resize, 3) is None
    resize.inputs[0].dtype = FLOAT16
    assert free_inputs(resize) == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ir.TensorType(FLOAT), True),
        (ir.TensorType(FLOAT16), False),
        (ir.TensorType(ir.DataType.DOUBLE), False),
        (ir.SequenceType(ir.TensorType(FLOAT)), False),
        (None, False),
    ],
    ids=str,
)
def test_only_tensors_are_fp32(kind, expected):
    assert is_fp32(ir.Value(name="x", type=kind)) == expected


def test_an_omitted_value_is_not_fp32():
    assert not is_fp32(None)


def test_the_type_of_a_constant_decides_over_a_missing_value_type():
    for dtype, expected in ((np.float32, True), (np.float16, False)):
        value = ir.Value(name="w", const_value=ir.tensor(np.zeros(2, dtype)))
        assert is_fp32(value) == expected


def test_opset_of():
    assert opset_of(model("(float[2] x) => (float[2] y) { y = Relu(x) }", 15)) == 15
    graph = ir.Graph([], [], nodes=[], opset_imports={"own": 3})
    assert opset_of(ir.Model(graph, ir_version=10)) == 1


def onnx_accepts(operator, opset, kind, inputs):
    """Whether ONNX's type inference takes a node whose inputs have the type."""
    names = [f"x{i}" for i in range(inputs)]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], **({"axis": 0} if operator == "Concat" else {}))],
        "g",
        [helper.make_tensor_value_info(name, kind, [4, 4]) for name in names],
        [onnx.ValueInfoProto(name="y")],
    )
    imports = [helper.make_opsetid("", opset)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


@pytest.mark.parametrize("dtype", [FLOAT, FLOAT16, BFLOAT16, ir.DataType.INT64, ir.DataType.BOOL])
@pytest.mark.parametrize(
    ("operator", "opset", "inputs"),
    [
        ("Relu", 13, 1),
        ("Relu", 12, 1),
        ("HardSwish", 21, 1),
        ("HardSwish", 22, 1),
        ("MatMul", 12, 2),
        ("MatMul", 13, 2),
        ("Concat", 12, 3),
        ("Concat", 13, 3),
        ("Sin", 21, 1),
        ("Not", 18, 1),
        ("And", 18, 2),
    ],
)
def test_allowed_types_are_those_that_onnx_accepts(operator, opset, inputs, dtype):
    node = ir.node(operator, [ir.Value(name=f"x{i}") for i in range(inputs)])
    found, made = allowed_types(schema_of(operator, opset), node, dtype)
    assert (len(found), len(made)) == (inputs, 1)
    kind = TensorProto.DataType.Value(dtype.name)
    assert all(found) == onnx_accepts(operator, opset, kind, inputs)


def test_inputs_and_outputs_are_allowed_types_separately():
    node = ir.node("Gather", [ir.Value(name="x"), ir.Value(name="i")])
    assert allowed_types(schema_of("Gather", 18), node, FLOAT16) == ([True, False], [True])
    node = ir.node("Shape", [ir.Value(name="x")])
    assert allowed_types(schema_of("Shape", 18), node, FLOAT) == ([True], [False])


def test_scales_are_found_past_nodes_that_move_data():
    graph = model(
        """(float[2, 4] x) => (float[4, 2] y, float[4, 2] z) {
            q = QuantizeLinear(x, scale)
            d = DequantizeLinear(q, scale)
            t = Transpose<perm = [1, 0]>(d)
            r = Reshape(t, shape)
            y = Identity(r)
            z = Relu(r)
        }""",
        scale=np.array(0.1, np.float32),
        shape=np.array([4, 2], np.int64),
    ).graph
    values = {v.name: v for node in graph for v in (*node.inputs, *node.outputs)}
    for name in ("d", "t", "r", "y"):
        assert scale_of(values[name]) is values["scale"]
    assert [scale_of(values[name]) for name in ("x", "q", "z")] == [None] * 3
    assert scale_of(None) is None
