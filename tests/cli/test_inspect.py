"""``trt-native inspect`` of models and plans."""

from __future__ import annotations

import json

import pytest
from helpers.program import DIMS, HAS_GPU, trt_native
from helpers.program import failing as fails


def test_inspect_onnx(model):
    result = trt_native("inspect", model, "--json")
    data = json.loads(result.stdout)
    assert data["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}
    ]
    assert data["operators"] == {"Relu": 1, "Conv": 1}
    assert data["opsets"] == {"": 18}
    assert "batch x 3 x height x width" in trt_native("inspect", model).stdout


@pytest.mark.backend
def test_inspect_plan(model, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    trt_native("build", model, *DIMS, "--backend", "rtx")
    plan = tmp_path / "m.plan"
    data = json.loads(trt_native("inspect", plan, "--json").stdout)
    assert data["product"] == "TensorRT-RTX"
    assert data["bytes"] == plan.stat().st_size
    assert data["manifest"] == json.loads((tmp_path / "m.plan.json").read_text())
    assert (data["layers"] is not None) == HAS_GPU
    if not HAS_GPU:
        assert "only a machine with a GPU" in data["layers_unreadable"]
    plan.write_bytes(plan.read_bytes()[:-1])
    assert "damaged: its header says" in fails("inspect", plan)
