"""``trt-native inspect`` of models and plans."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest
from helpers import tiny_models
from helpers.program import DIMS, HAS_GPU, trt_native
from helpers.program import failing as fails
from helpers.text_models import f32
from helpers.text_models import model as text_model


def test_inspect_onnx(model):
    result = trt_native("inspect", model, "--json")
    data = json.loads(result.stdout)
    assert data["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}
    ]
    assert data["operators"] == {"Relu": 1, "Conv": 1}
    assert data["opsets"] == {"": 18}
    assert "batch x 3 x height x width" in trt_native("inspect", model).stdout


def test_a_backend_that_there_is_not(model):
    assert "no backend 'nope'" in fails("inspect", model, "--backend", "nope")


@pytest.mark.backend
class TestSupport:
    @pytest.fixture(autouse=True)
    def _needs_rtx(self):
        pytest.importorskip("tensorrt_rtx")

    def test_the_command_that_builds(self, model):
        text = trt_native("inspect", model, "--backend", "rtx").stdout
        given = "--dim batch=MIN:OPT:MAX --dim height=MIN:OPT:MAX --dim width=MIN:OPT:MAX"
        assert f"trt-native build {model} --backend rtx {given}" in text.splitlines()

    def test_what_is_refused_and_rewritten(self, tmp_path):
        graph = text_model(
            """(float[b, 4] x) => (float[b, 4] y, float[b, 1] m, int64[2, k] z) {
            y, m, s = LayerNormalization(x, w) [where] z = NonZero(x) }""",
            w=f32(1, 2, 3, 4),
        )
        ir.save(graph, tmp_path / "m.onnx")
        result = trt_native("inspect", tmp_path / "m.onnx", "--backend", "rtx", "--json")
        support = json.loads(result.stdout)["support"]
        (refused,) = support["refused"]
        assert refused.startswith("NonZero 'where': TensorRT-RTX 1.")
        assert "has no NonZero; TensorRT 10 and 11 do" in refused
        assert "1 LayerNormalization" in support["rewritten"][0]
        assert (support["dimensions"], support["unranked"]) == (["b"], [])


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


def test_names_of_70_kilobytes(tmp_path):
    name = "h" * 70_000
    model = tiny_models.dense(tmp_path / "m.onnx", layers=1, name=name)
    page = tmp_path / "m.html"
    result = trt_native("inspect", model, "--html", page)
    assert result.returncode == 0
    assert len(result.stdout) < 20_000
    text = page.read_text()
    assert "h" * 501 not in text
    assert "hhh...(69,5" in text
    found = json.loads(trt_native("inspect", model, "--json").stdout)
    assert found["inputs"][0]["name"] == name + "0"
    assert f"input '{name}0' (70,001)" in found["support"]["refused"][0]
