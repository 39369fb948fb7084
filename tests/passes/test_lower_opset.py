"""Lowered opsets, against ONNX's checker and the outputs of the model as it was."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import f32, i64, model, normal

from trt_native.config import BuildConfig
from trt_native.errors import UnsupportedError
from trt_native.graph.inference import infer_values
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.change_opset import ChangeOpset
from trt_native.passes.lower_opset import lower_opset
from trt_native.passes.normalize import normalize
from trt_native.reference.evaluator import evaluator

CUBE = "(float[2, 3, 4] x) => (float[a, b, c] y)"
IMAGE = "(float[1, 4, 4, 6] x) => (float[n, c, h, w] y)"
GRID = {"g": normal(4, 1, 2, 3, 2, scale=0.5)}
LOWERED = [  # from, to, interface, nodes, initializers, how many nodes are rewritten
    (18, 13, CUBE, "y = ReduceMean(x, k)", {"k": i64(0, -1)}, 1),
    (18, 17, CUBE, "y = ReduceMax <keepdims = 1> (x)", {}, 1),
    (21, 13, CUBE, "y = ReduceL2 <noop_with_empty_axes = 1> (x, k)", {"k": i64(1)}, 1),
    (18, 13, CUBE, "t, y, u = Split <axis = 1, num_outputs = 3> (x)", {}, 1),
    (18, 13, CUBE, "t, y = Split <axis = 1, num_outputs = 2> (x)", {}, 1),
    (21, 13, CUBE, "t, y = Split <axis = 2> (x, k)", {"k": i64(1, 3)}, 1),
    (20, 16, IMAGE, 'y = GridSample <mode = "linear"> (x, g)', GRID, 1),
    (22, 19, IMAGE, 'y = GridSample <mode = "cubic", align_corners = 1> (x, g)', GRID, 1),
    (20, 17, IMAGE, 'y = GridSample <mode = "nearest"> (x, g)', GRID, 1),
    (19, 13, CUBE, 'y = Pad <mode = "reflect"> (x, k)', {"k": i64(0, 1, 0, 0, 0, 2)}, 0),
    (19, 13, IMAGE, "y = Resize <antialias = 0> (x, , s)", {"s": f32(1, 1, 2, 2)}, 0),
    (22, 13, IMAGE, "y = AveragePool <kernel_shape = [2, 2], dilations = [1, 1]> (x)", {}, None),
    (22, 17, IMAGE, "y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (x)", {}, None),
    (21, 13, CUBE, "t = Cast <to = 7, saturate = 1> (x) y = Cast <to = 1> (t)", {}, 0),
    (23, 17, CUBE, "t = Neg(x) y = Softmax <axis = 1> (t)", {}, 0),
]
REFUSED = [
    (20, 17, CUBE, "y = Gelu(x)", {}, "Gelu is newer"),
    (21, 18, IMAGE, "y = GroupNormalization <num_groups = 2> (x, s, s)", {"s": f32(1, 2, 3, 4)},
     "GroupNormalization is newer"),
    (19, 18, CUBE, 'y = Pad <mode = "wrap"> (x, k)', {"k": i64(0, 1, 0, 0, 0, 2)},
     "Pad with mode wrap is newer"),
    (18, 13, CUBE, "y = Pad(x, k, , a)", {"k": i64(1, 1), "a": i64(1)},
     "Pad with 4 inputs is newer"),
    (18, 17, CUBE, "s = Shape(x) k = Slice(s, z, z) y = ReduceSumSquare(x, k)", {"z": i64(0)},
     "ReduceSumSquare with computed axes is newer"),
    (18, 17, CUBE, "y = ReduceL1 <noop_with_empty_axes = 1> (x)", {},
     "ReduceL1 that may reduce nothing is newer"),
    (22, 18, IMAGE, "y = AveragePool <kernel_shape = [2, 2], dilations = [2, 1]> (x)", {},
     "AveragePool with dilations is newer"),
    (18, 17, IMAGE, "y = Resize <antialias = 1> (x, , s)", {"s": f32(1, 1, 2, 2)},
     "Resize with antialias is newer"),
    (22, 21, IMAGE, "y = MaxPool <kernel_shape = [3, 3], ceil_mode = 1> (x)", {},
     "MaxPool with ceil_mode was changed"),
    (18, 17, "(float[2, n] x) => (float[2, m] y)",
     "t, y = Split <axis = 1, num_outputs = 2> (x)", {},
     "Split into a number of parts of an unknown extent"),
    (21, 18, "(float16[4] x) => (float16[4] y)",
     "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
     {"s": np.array(0.5, np.float16), "z": np.array(0, np.int8)},
     "QuantizeLinear in FLOAT16 is newer"),
    (22, 12, CUBE, "y = Neg(x)", {}, "models are not lowered to opsets before 13"),
]  # fmt: skip


def prepared(opset, interface, nodes, weights):
    graph = model(f"{interface} {{ {nodes} }}", opset, **weights)
    normalize(graph)
    infer_values(graph)
    return graph


def reference(graph, x):
    proto = ir.to_proto(graph)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    return evaluator(proto.graph, opsets).run(None, {"x": x})


@pytest.mark.parametrize(("old", "new", "interface", "nodes", "weights", "rewritten"), LOWERED)
def test_a_lowered_model_is_valid_and_computes_the_same(
    old, new, interface, nodes, weights, rewritten
):
    graph = prepared(old, interface, nodes, weights)
    x = normal(0, *(int(axis) for axis in graph.graph.inputs[0].shape))
    expected = reference(graph, x)
    counts = lower_opset(graph, new)
    if rewritten is not None:
        assert sum(counts.values()) == rewritten
    made = ir.to_proto(graph)
    assert made.opset_import[0].version == new
    assert made.ir_version <= max(8, onnx.helper.find_min_ir_version_for(made.opset_import))
    onnx.checker.check_model(made, full_check=True)
    for f, e in zip(reference(graph, x), expected, strict=True):
        np.testing.assert_array_equal(f, e)


@pytest.mark.parametrize(("old", "new", "interface", "nodes", "weights", "problem"), REFUSED)
def test_what_has_no_older_form_is_refused_by_name(old, new, interface, nodes, weights, problem):
    graph = prepared(old, interface, nodes, weights)
    before = ir.to_proto(graph).SerializeToString()
    with pytest.raises(UnsupportedError, match=f"cannot be lowered to opset {new}: .*{problem}"):
        lower_opset(graph, new)
    assert ir.to_proto(graph).SerializeToString() == before


@pytest.mark.parametrize(("wanted", "nodes"), [(21, {}), (17, {"ReduceMean": 1}), (18, {})])
def test_the_pass_gives_a_model_the_opset_that_was_asked_for(wanted, nodes):
    graph = prepared(18, CUBE, "y = ReduceMean(x, k)", {"k": i64(1)})
    context = PassContext(config=BuildConfig(), precision=ResolvedPrecision(), opset=wanted)
    one = ChangeOpset(context)
    assert one.needed(graph)
    one(graph)
    assert graph.opset_imports[""] == wanted
    assert one.record == {"before": 18, "opset": wanted, "nodes": nodes}
    assert one.summarize(one.record).startswith(f"opset 18 to {wanted}")
    assert not one.needed(graph)


def test_the_pass_refuses_to_raise_what_it_cannot():
    graph = prepared(10, IMAGE, "y = Resize(x, s)", {"s": f32(1, 1, 0.7, 2)})
    context = PassContext(config=BuildConfig(), precision=ResolvedPrecision(), opset=18)
    with pytest.raises(UnsupportedError, match="cannot be raised to opset 18: Resize to"):
        ChangeOpset(context)(graph)
