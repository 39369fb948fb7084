"""Nodes that a weakly typed TensorRT computes in FP32."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from helpers.text_models import group_norm, model, normal

from trt_native.config import BuildConfig, Precision
from trt_native.graph.types import is_reduced
from trt_native.passes.base import PassContext, ResolvedPrecision
from trt_native.passes.pin_fp32_nodes import PinFp32Nodes, fp32_node_names, pinned_nodes


def test_statistics_nodes_change_nothing():
    original = group_norm()
    nodes = [(n.name, n.op_type) for n in original.graph]
    names = fp32_node_names(original, ["conv_out"])
    assert set(names) == {
        "mean", "centre", "square", "variance", "eps", "std", "norm", "gamma", "beta", "conv_out",
    }  # fmt: skip
    assert [(n.name, n.op_type) for n in original.graph] == nodes
    assert not is_reduced(original)


@pytest.mark.parametrize(
    ("precision", "needed"),
    [
        (ResolvedPrecision(applied=Precision.FP16, strongly_typed=False), True),
        (ResolvedPrecision(applied=Precision.BF16, strongly_typed=False), True),
        (ResolvedPrecision(applied=Precision.INT8, strongly_typed=False, calibrates=True), True),
        (ResolvedPrecision(applied=Precision.FP16), False),
        (ResolvedPrecision(applied=Precision.FP32, strongly_typed=False), False),
        (ResolvedPrecision(strongly_typed=False), False),
    ],
    ids=repr,
)
def test_only_reduced_types_of_builder_flags_need_pins(precision, needed):
    context = PassContext(config=BuildConfig(), precision=precision)
    assert PinFp32Nodes(context).needed(group_norm()) == needed


def test_pins_are_marks_on_nodes_and_survive_a_file(tmp_path):
    original = group_norm()
    precision = ResolvedPrecision(applied=Precision.FP16, strongly_typed=False)
    config = BuildConfig(precision=Precision.FP16, keep_fp32=("conv_out",))
    result = PinFp32Nodes(PassContext(config=config, precision=precision))
    assert pinned_nodes(original) == frozenset()
    result(original)
    assert pinned_nodes(original) == set(fp32_node_names(group_norm(), ["conv_out"]))
    assert sum(result.record["nodes"].values()) == len(pinned_nodes(original)) == 10
    assert result.record["nodes"]["ReduceMean"] == 2
    assert result.record["reasons"] == {"statistics": 8, "range": 1, "keep_fp32": 1}
    ir.save(original, tmp_path / "m.onnx")
    assert pinned_nodes(ir.load(tmp_path / "m.onnx")) == pinned_nodes(original)


def test_reasons_of_strongly_typed_plans_pin_nothing():
    """TensorRT-RTX's activations, and generators, whose types only a typed graph states."""
    original = model(
        """(float[2, 4] x) => (float[2, 4] y, float[2, 4] z) {
            [product] p = MatMul(x, w)
            [sigmoid] y = Sigmoid(p)
            [noise] r = RandomNormalLike(p)
            [sum] z = Add(p, r)
        }""",
        w=normal(0, 4, 4),
    )
    assert fp32_node_names(original) == {}
