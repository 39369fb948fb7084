from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers import tiny_models
from helpers.passes import normalized
from onnx.reference import ReferenceEvaluator

from trt_native.errors import SpecError
from trt_native.graph.onnx_file import read_model
from trt_native.passes.autocast import autocast
from trt_native.passes.mark_outputs import mark_outputs


def test_tensors_come_out_as_they_are_inside(tmp_path, rng):
    path = tiny_models.norm(tmp_path / "m.onnx")
    x = rng.standard_normal((2, 16)).astype(np.float32)
    whole = ReferenceEvaluator(str(path)).run(None, {"x": x}, intermediate=True)
    model = read_model(path)
    mark_outputs(model, ["m", "n", "y", "m"])
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.output] == ["y", "m", "n"]
    for name, found in zip("ymn", ReferenceEvaluator(proto).run(None, {"x": x}), strict=True):
        np.testing.assert_array_equal(found, whole[name])


def test_a_rewritten_graph_gives_them_in_its_own_types(tmp_path, rng):
    path = tiny_models.norm(tmp_path / "m.onnx")
    x = rng.standard_normal((2, 16)).astype(np.float32)
    plain = read_model(path)
    autocast(plain, ir.DataType.FLOAT16)
    exposed = read_model(path)
    autocast(exposed, ir.DataType.FLOAT16)
    mark_outputs(exposed, ["m", "n"])
    assert [node.op_type for node in exposed.graph] == [node.op_type for node in plain.graph]
    reference = ReferenceEvaluator(str(path)).run(None, {"x": x}, intermediate=True)
    outputs = ReferenceEvaluator(ir.to_proto(exposed)).run(None, {"x": x})
    assert [array.dtype.name for array in outputs] == ["float32", "float16", "float32"]
    for name, found in zip("ymn", outputs, strict=True):
        np.testing.assert_allclose(found.astype(np.float64), reference[name], rtol=0, atol=0.02)


def test_tensors_in_functions():
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 18, "mine": 1]>
        g (float[4] x) => (float[4] y) { y = mine.twice(x) }
        <domain: "mine", opset_import: ["": 18]>
        twice (p) => (q) { r = Neg(p)  q = Sub(p, r) }
    """)
    model = normalized(proto)
    from onnx_ir.passes import common

    inlined = ir.from_proto(proto)
    common.InlinePass()(inlined)
    inside = [v.name for node in inlined.graph for v in node.outputs if v.name != "y"]
    mark_outputs(model, inside)
    x = np.arange(4, dtype=np.float32)
    y, r = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    np.testing.assert_array_equal(y, 2 * x)
    np.testing.assert_array_equal(r, -x)


def test_tensors_that_no_node_makes(tmp_path):
    model = read_model(tiny_models.norm(tmp_path / "m.onnx"))
    with pytest.raises(SpecError, match="no node makes a tensor 'q' and 1 more"):
        mark_outputs(model, ["m", "q", "x"])
