"""``trt-native inspect`` of plans, its page, and ``trt-native diff``, as a user meets them."""

from __future__ import annotations

import json
from functools import partial

import onnx
import pytest
from helpers import program, tiny_models
from helpers.made_plans import LAYERS, STATIC, X, Y, make_plan
from helpers.program import DIMS


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
    for part in ("LayerNormalization", "/matmul", "batch\u00d716", 'id="drawing"'):
        assert part in text


def test_extents_for_the_page_of_a_model(trt_native, tmp_path):
    tiny_models.norm(tmp_path / "m.onnx")
    trt_native("inspect", "m.onnx", "--html", "m.html", "--dim", "batch=7")
    assert "with batch=7" in (tmp_path / "m.html").read_text()


def test_files_for_viewers(trt_native, tmp_path):
    tiny_models.norm(tmp_path / "m.onnx")
    make_plan(tmp_path / "m.plan", STATIC)
    report = json.loads(trt_native("inspect", "m.plan", "--json").stdout)
    assert trt_native("inspect", "m.onnx", "--netron", "g.onnx").stderr == "written to g.onnx\n"
    found = onnx.load(tmp_path / "g.onnx", load_external_data=False)
    assert [n.op_type for n in found.graph.node] == ["LayerNormalization", "MatMul", "Softmax"]
    assert report["kernels"] is None
    refused = trt_native("inspect", "m.plan", "--netron", "l.onnx")
    assert refused.returncode == 1
    assert "the plan's layers are not known, and it lists no kernels" in refused.stderr
    assert not (tmp_path / "l.onnx").exists()


@pytest.mark.backend
def test_kernels_of_a_plan_without_a_gpu(trt_native, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    tiny_models.conv(tmp_path / "m.onnx")
    built = trt_native("build", "m.onnx", *DIMS, "--backend", "rtx", "--report", "built.html")
    assert "written to built.html" in built.stderr
    assert "TensorRT-RTX plan" in (tmp_path / "built.html").read_text()
    report = json.loads(trt_native("inspect", "m.plan", "--json").stdout)
    assert any("[ONNX Layer: conv]" in kernel["Metadata"] for kernel in report["kernels"])
    trt_native("inspect", "m.plan", "--netron", "l.onnx", "--html", "m.html")
    assert {n.domain for n in onnx.load(tmp_path / "l.onnx").graph.node} == {"tensorrt"}
    text = (tmp_path / "m.html").read_text()
    assert '"title":"ONNX nodes"' in text
    (tmp_path / "m.onnx").write_bytes(b"")
    trt_native("inspect", "m.plan", "--html", "m.html")
    text = (tmp_path / "m.html").read_text()
    assert '"title":"ONNX nodes"' not in text
    assert "The model&#39;s nodes are not shown: m.onnx next to it has changed" in text


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
    other = trt_native("diff", "a.plan", "b.plan", "--html", "d.html")
    assert other.returncode == 1
    assert "Comparison of two plans" in (tmp_path / "d.html").read_text()
    assert "TensorRT 10.16.1.12" in other.stdout
    assert other.stderr.startswith("written to d.html\nnot compared: layers: ")
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
        (("inspect", "m.plan", "--html", "h", "--dim", "b=1"), "--dim: a plan has profiles"),
        (("inspect", "m.plan", "--dim", "b=1"), "--dim: no effect without --html"),
        (("inspect", "m.plan", "--html", "h", "--netron", "h"), "two outputs have this name"),
        (("diff", "m.plan", "m.plan", "--html", "m.plan.json"), "m.plan.json"),
        (("diff", "m.plan", "m.plan", "--html", "/proc/d.html"), "cannot write /proc/d.html"),
        (("build", "m.onnx", "--dry-run", "--report", "h"), "a dry run makes no plan"),
    ],
    ids=str,
)
def test_bad_input(trt_native, tmp_path, arguments, message):
    make_plan(tmp_path / "m.plan", STATIC)
    result = trt_native(*arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "h").exists()
