"""``trt-native inspect`` of plans, its page, and ``trt-native diff``, as a user meets them."""

from __future__ import annotations

import json
from functools import partial

import pytest
from helpers import program, tiny_models
from helpers.made_plans import LAYERS, STATIC, X, Y, make_plan


@pytest.fixture
def trt_native(tmp_path):
    return partial(program.trt_native, cwd=tmp_path)


def test_the_page_of_a_plan(trt_native, tmp_path):
    make_plan(tmp_path / "m.plan", (X, Y))
    result = trt_native("inspect", "m.plan", "--html", "m.html")
    assert result.returncode == 0
    assert result.stderr == "written to m.html\n"
    assert "1x3x8x8:4x3x16x8:8x3x32x8" in (tmp_path / "m.html").read_text()


def test_the_page_of_a_model(trt_native, tmp_path):
    tiny_models.norm(tmp_path / "m.onnx")
    printed = trt_native("inspect", "m.onnx", "--html", "m.html", "--json")
    assert json.loads(printed.stdout)["kind"] == "onnx"
    text = (tmp_path / "m.html").read_text()
    for part in ("LayerNormalization", "/matmul", "float32 batch x 16", "<svg"):
        assert part in text
    assert text.count("<path") == 2


def test_a_plan_and_its_manifest(trt_native, tmp_path):
    make_plan(tmp_path / "m.plan", (X, Y))
    report = json.loads(trt_native("inspect", "m.plan", "--json").stdout)
    assert report["manifest"] == json.loads((tmp_path / "m.plan.json").read_text())
    (tmp_path / "m.plan.json").write_text(json.dumps({**report["manifest"], "plan_bytes": "x"}))
    assert "malformed manifest" in trt_native("inspect", "m.plan").stderr
    assert "ignored" in trt_native("inspect", "m.plan", "--no-manifest").stdout


def test_diff(trt_native, tmp_path):
    make_plan(tmp_path / "a.plan", (X, Y))
    make_plan(tmp_path / "b.plan", (X, Y), version=(10, 16, 1, 12))
    same = trt_native("diff", "a.plan", "a.plan")
    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout == "The plans are the same byte for byte.\n"
    other = trt_native("diff", "a.plan", "b.plan")
    assert other.returncode == 1
    assert "TensorRT 10.16.1.12" in other.stdout
    assert other.stderr.startswith("not compared: layers: ")
    data = json.loads(trt_native("diff", "a.plan", "b.plan", "--json").stdout)
    assert data["differences"] == [
        {
            "section": "plan",
            "name": "made by",
            "left": "TensorRT 10.16.1.11",
            "right": "TensorRT 10.16.1.12",
        }
    ]


def test_diff_of_reports_from_a_machine_with_a_gpu(trt_native, tmp_path):
    make_plan(tmp_path / "a.plan", STATIC)
    report = json.loads(trt_native("inspect", "a.plan", "--json").stdout)
    for name, layers in (("a", LAYERS), ("b", LAYERS[1:])):
        (tmp_path / f"{name}.json").write_text(json.dumps({**report, "layers": layers}))
    result = trt_native("diff", "a.json", "b.json", "--json")
    assert result.returncode == 1
    assert [d["name"] for d in json.loads(result.stdout)["differences"]] == [
        "precision mix",
        "count",
        "layer conv1 + relu1",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("diff", "m.plan", "none.plan"), "cannot read none.plan"),
        (("diff", "m.plan", "m.plan.json"), "not a report of trt-native inspect"),
        (("inspect", "m.plan", "--html", "/proc/m.html"), "cannot write /proc/m.html"),
        (("inspect", "m.plan", "--times", "t.json"), "it is shown in the page of --html"),
        (("inspect", "m.plan", "--html", "h", "--times", "t.json"), "cannot read t.json"),
        (("inspect", "m.plan", "--html", "h", "--times", "m.plan.json"), "no layer times"),
    ],
    ids=str,
)
def test_bad_input(trt_native, tmp_path, arguments, message):
    make_plan(tmp_path / "m.plan", STATIC)
    result = trt_native(*arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "h").exists()
