"""Names by which a weakly typed TensorRT finds the nodes to pin."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from helpers.text_models import i64, model

from trt_native.config import BuildConfig, Precision
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.name_nodes import NameNodes
from trt_native.passes.pin_fp32_nodes import pinned_nodes
from trt_native.passes.pipelines import BUILD, run_passes, select_passes

NORM = """(float[4,64] x) => (float[4,64] y) {{
    {0} m = ReduceMean (x, ax) {1} d = Sub (x, m) {2} q = Mul (d, d) {3} v = ReduceMean (q, ax)
    {4} s = Sqrt (v) {5} n = Div (d, s) {6} y = Relu (n)
}}"""
UNNAMED = [""] * 7
NAMED = [f"[n{i}]" for i in range(7)]
WEAK = PassContext(
    config=BuildConfig(precision=Precision.FP16),
    precision=ResolvedPrecision(applied=Precision.FP16, strongly_typed=False),
)


def pinned(names):
    graph = model(NORM.format(*names), ax=i64(-1))
    passes = select_passes(BUILD, graph, WEAK)
    run_passes(passes, graph)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    found = [node.name for node in graph.graph]
    assert all(found)
    assert len(set(found)) == len(found)
    kinds = {node.op_type for node in graph.graph if node.name in pinned_nodes(graph)}
    return passes, kinds, len(pinned_nodes(graph))


@pytest.mark.parametrize(
    "names", [UNNAMED, ["[same]"] * 7, [*NAMED[:3], *UNNAMED[3:]], ["[Sub_1]", *UNNAMED[1:]]]
)
def test_nodes_without_a_name_of_their_own_are_pinned_like_named_ones(names):
    usual, *expected = pinned(NAMED)
    assert not any(isinstance(one, NameNodes) for one in usual)
    passes, *found = pinned(names)
    assert found == expected
    (named,) = (one for one in passes if isinstance(one, NameNodes))
    assert named.rewrites
    assert named.summarize(named.record) == f"nodes that got a name: {named.record['named']}"


def test_names_do_not_matter_where_nothing_is_pinned():
    graph = model(NORM.format(*UNNAMED), ax=i64(-1))
    for precision in (
        ResolvedPrecision(applied=Precision.FP16),
        ResolvedPrecision(applied=Precision.FP32, strongly_typed=False),
    ):
        context = PassContext(config=BuildConfig(), precision=precision)
        assert not NameNodes(context).needed(graph)
