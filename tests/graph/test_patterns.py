"""Nodes by patterns of names and operator types."""

from __future__ import annotations

import fnmatch

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trt_native.errors import SpecError
from trt_native.graph.patterns import match_nodes

NAMES = {
    "/down.0/to_q": "MatMul",
    "/down.0/to_k": "MatMul",
    "/down.1/norm": "LayerNormalization",
    "/up.0/resize": "Resize",
    "/up.0/Norm": "InstanceNormalization",
    None: "MatMul",
}
NODES = [ir.node(operator, [], name=name) for name, operator in NAMES.items()]


def names(nodes):
    return {node.name for node in nodes}


def test_patterns_of_names():
    found = match_nodes(NODES, ["*/to_[qk]", "/down.?/norm", "*norm"], ("keep_fp32",))
    assert list(found) == ["*/to_[qk]", "/down.?/norm", "*norm"]
    assert names(found["*/to_[qk]"]) == {"/down.0/to_q", "/down.0/to_k"}
    assert names(found["/down.?/norm"]) == {"/down.1/norm"}
    assert names(found["*norm"]) == {"/down.1/norm"}  # case counts


def test_patterns_of_operator_types_find_nodes_without_a_name():
    found = match_nodes(NODES, ["op:MatMul", "op:*Normalization"], ("keep_fp32",))
    assert names(found["op:MatMul"]) == {"/down.0/to_q", "/down.0/to_k", None}
    assert names(found["op:*Normalization"]) == {"/down.1/norm", "/up.0/Norm"}


@given(st.text("/.*?[!]abdnopruw_01", min_size=1, max_size=6))
def test_patterns_match_as_fnmatch_says(pattern):
    expected = {node.name for node in NODES if fnmatch.fnmatchcase(node.name or "", pattern)}
    if expected:
        assert names(match_nodes(NODES, [pattern], ("exclude",))[pattern]) == expected
    else:
        with pytest.raises(SpecError):
            match_nodes(NODES, [pattern], ("exclude",))


def test_no_patterns_match_nothing():
    assert match_nodes(NODES, [], ("exclude",)) == {}


def test_nodes_may_be_an_iterator():
    found = match_nodes(iter(NODES), ["op:Resize", "op:MatMul"], ("exclude",))
    assert [len(nodes) for nodes in found.values()] == [1, 3]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "/up.0/resise",
            r"exclude pattern '/up.0/resise' matches no node name; close: /up.0/resize",
        ),
        ("op:matmul", r"exclude pattern 'op:matmul' matches no operator type; close: MatMul"),
        ("zzzzzzzz", r"exclude pattern 'zzzzzzzz' matches no node name$"),
    ],
)
def test_a_pattern_without_a_match_is_an_error(pattern, message):
    with pytest.raises(SpecError, match=message) as caught:
        match_nodes(NODES, ["op:Resize", pattern], ("exclude",))
    assert caught.value.options == ("exclude",)
