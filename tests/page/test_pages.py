"""What pages hold, read as a browser would: facts, bars, tables, the data of graphs; their size."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from helpers import ROOT
from helpers.html_reader import Collector
from helpers.made_plans import LAYERS, X, Y, make_plan
from helpers.made_reports import make_report
from helpers.page_models import blocks_model, hostile_model, long_model

from trt_native.bench import LayerTime
from trt_native.inspection import diff_plans, inspect_plan
from trt_native.page import bench_page, diff_page, plan_page, verify_page
from trt_native.verify import Thresholds, verify_plan
from trt_native.verify.check import Case
from trt_native.verify.layer_report import LayerReport, TensorResult
from trt_native.verify.metrics import compare_outputs

EVIL = '"></script><script>alert(1)</script><img src=http://x onerror=y>'


@pytest.fixture
def report(tmp_path):
    found = inspect_plan(make_plan(tmp_path / "m.plan", (X, Y)))
    return dataclasses.replace(found, raw_layers=LAYERS, activation_bytes=2048)


def graphs_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def bars_of(text, title):
    """Labels, lengths in percent and figures of a chart."""
    chart = text.split(f"<h2>{title}</h2>")[1].split("</table>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th>.*?width="(.*?)%".*?figure">(.*?)</td>', chart)
    return [(label, float(length), figure) for label, length, figure in rows]


def test_every_page_is_complete_and_loads_nothing(report, text_of):
    policy = "default-src 'none'; style-src 'sha256-"
    for text in (plan_page(report), text_of(blocks_model()), bench_page(make_report())):
        found = Collector(text)
        assert {name for name, _ in found.attributes} & {
            "src",
            "srcset",
            "onload",
            "style",
        } == set()
        links = {value for name, value in found.attributes if name == "href"}
        assert all(link.startswith(("#", "data:")) for link in links)
        policies = [v for name, v in found.attributes if name == "content" and "src" in (v or "")]
        assert policies[0].startswith(policy)
        assert "unsafe" not in policies[0]
        assert not re.search(
            r"\b(fetch|XMLHttpRequest|import)\s*\(", text.rpartition("<script>")[2]
        )


def test_a_plan_with_layers_and_times(report):
    text = plan_page(report, {"conv1 + relu1": 0.25, "gone": 1})
    found = Collector(text).text
    for part in ("2.0 KiB in each context", "1x3x8x8:4x3x16x8:8x3x32x8", "fp16 16×256×28×28"):
        assert part in found
    assert "1 of the times belong to no layer here." in found
    assert bars_of(text, "Slowest") == [("conv1 + relu1", 100, "0.2500 ms (100%)")]
    (graph,) = graphs_of(text)
    assert [node.get("t") for node in graph["nodes"]] == [0.25, None, None]


def test_shares_of_precisions_are_from_the_widest_to_the_narrowest(report):
    assert bars_of(plan_page(report), "Layers by precision") == [
        ("fp16", 50, "1 (33%)"),
        ("unknown", 100, "2 (67%)"),
    ]


def test_a_plan_without_layers_says_why(report):
    text = plan_page(dataclasses.replace(report, raw_layers=None, layers_error="no <GPU>"))
    assert "The engine's layers are not known: no <GPU>" in Collector(text).text
    assert 'id="data"' not in text


def test_the_models_nodes_have_the_precision_of_their_layer(report):
    layers = [{**LAYERS[0], "Metadata": "[ONNX Layer: blocks.0.mlp/MatMul]\x1f[ONNX Layer: other]"}]
    text = plan_page(dataclasses.replace(report, raw_layers=layers), model=blocks_model(1))
    _, nodes = graphs_of(text)
    product = next(node for node in nodes["nodes"] if node["k"] == "MatMul")
    assert product["p"] == "fp16"
    assert ["computed in", "conv1 + relu1"] in product["a"]


def test_the_page_of_a_model(text_of):
    text = text_of(blocks_model(3), {"batch": 5})
    assert bars_of(text, "Operators")[0] == ("MatMul", 100, "3 (30%)")
    assert bars_of(text, "Multiply-adds by module") == [
        (f"blocks.{n}", 100, "320 (33%)") for n in range(3)
    ]
    assert "with batch=5" in text
    weights = bars_of(text, "Weights by type")
    assert weights == [("fp32", 100, "768 B (97%)"), ("int64", 3.12, "24 B (3%)")]


@pytest.mark.parametrize(("nodes", "most"), [(500, 10**6), (2500, 2 * 10**6)])
def test_size_of_a_page(text_of, nodes, most):
    assert len(text_of(long_model(nodes)).encode()) <= most


def test_the_libraries_are_those_that_npm_pins():
    bundled = (ROOT / "trt_native/page/static/libraries.js").read_text().partition(": licences")[0]
    found = dict(entry.split(" ") for entry in bundled.removeprefix("// ").split(", "))
    lock = json.loads((ROOT / "scripts/page_libraries/package-lock.json").read_text())
    pinned = {
        name.removeprefix("node_modules/"): about["version"]
        for name, about in lock["packages"].items()
        if name and not about.get("dev") and not about.get("optional")
    }
    assert found == pinned
    licences = (ROOT / "trt_native/page/static/libraries.LICENSES.txt").read_text()
    assert all(f"{name} {version} (" in licences for name, version in found.items())


def test_names_are_escaped_everywhere(report, text_of):
    layers = [{"Name": EVIL, "LayerType": EVIL, "Outputs": [{"Name": EVIL}], "TacticName": EVIL}]
    changed = dataclasses.replace(
        report, path=EVIL, raw_layers=layers, tensors=(dataclasses.replace(X, name=EVIL), Y)
    )
    bench = make_report(
        plan={"path": EVIL, "product": EVIL, "version": EVIL, "bytes": 1},
        layers=(LayerTime(EVIL, 1.0, 1.0, 1.0),),
        inputs=({"name": EVIL, "dtype": "float32", "shape": [1]},),
    )
    pages = [
        plan_page(changed, {EVIL: 1.0}, hostile_model(EVIL)),
        diff_page(changed, report, diff_plans(changed, report)),
        bench_page(bench, changed),
        text_of(hostile_model(EVIL)),
    ]
    for text in pages:
        found = Collector(text)
        assert "img" not in found.tags
        assert found.tags.count("script") == 2
        assert not {"src", "onerror"} & {name for name, _ in found.attributes}
        assert EVIL in " ".join(found.text)


def test_half_surrogates_and_controls_are_escapes(report):
    text = plan_page(dataclasses.replace(report, path="a\ud800\x07\u202eb"))
    assert "<h1>a\\ud800\\x07\\u202eb</h1>" in text
    text.encode()


def test_two_plans(report):
    changed = [{**LAYERS[0], "TacticName": "other"}, *LAYERS[1:]]
    other = dataclasses.replace(report, path="b.plan", raw_layers=changed, plan_bytes=4096)
    text = diff_page(report, other, diff_plans(report, other))
    assert "2 differences" in Collector(text).text
    one, two = graphs_of(text)
    for graph in (one, two):
        assert [node.get("d", "") for node in graph["nodes"]] == ["not in the other plan", "", ""]
    assert [label for label, _, _ in bars_of(text, "Layers by type")][:2] == [
        "A CaskConvolution",
        "B CaskConvolution",
    ]
    assert "B: 4.0 KiB" in Collector(text).text


def test_equal_plans(report):
    text = diff_page(report, report, diff_plans(report, report))
    assert "The plans are the same byte for byte." in Collector(text).text
    assert all("d" not in node for graph in graphs_of(text) for node in graph["nodes"])


def verification(errors=(0.0, 0.5)):
    expected = {"y": np.array([3.0, 4.0]), "z": np.array([1.0])}
    return verify_plan(
        lambda inputs: {**expected, "y": expected["y"] + [0, inputs["e"]]},
        [Case({"e": error}, lambda: expected, f"error {error}") for error in errors],
        Thresholds(max_relative_error=0.05),
    )


def test_a_verification_that_fails():
    text = verify_page("m.plan", "m.onnx", verification(), "as given")
    found = Collector(text).text
    assert "FAILED: 1 of 2 outputs exceed the tolerance." in found
    assert "y: relative L2 0.1 > 0.05 (error 0.5)" in found
    assert bars_of(text, "Relative L2 error of outputs") == [("y", 100, "0.1"), ("z", 0, "0")]
    assert bars_of(text, "Largest error of each batch")[1] == ("error 0.5", 100, "0.1")


def test_a_verification_that_passes():
    text = verify_page("m.plan", "m.onnx", verification([0.0]), "as given")
    assert "PASSED: all outputs are within the tolerance." in Collector(text).text
    assert "Largest error of each batch" not in text


def test_bars_of_errors_are_logarithmic_and_end_at_the_limit():
    found = verification([0.0025])
    text = verify_page("m.plan", "m.onnx", found, "as given")
    error = 0.0025 / 5
    length = 100 * (1 + np.log10(error / 0.05) / 8)
    ((_, shown, _), _) = bars_of(text, "Relative L2 error of outputs")
    assert shown == pytest.approx(length, abs=0.01)


def test_mismatches_inside_a_model_are_marked():
    wrong = compare_outputs("y0_a", np.ones(2), np.zeros(2) + 2)
    first = TensorResult("y0_a", "blocks.0.mlp/MatMul", "MatMul", wrong, False)
    layers = LayerReport(first, (first,), 9, 5, 2, (), "onnx.reference")
    text = verify_page(
        "m.plan", "m.onnx", verification(), "as given", layers=layers, model=blocks_model(1)
    )
    (graph,) = graphs_of(text)
    marked = {node["n"]: node["d"] for node in graph["nodes"] if "d" in node}
    assert marked == {"blocks.0.mlp/MatMul": "first mismatch"}
    assert "5 of 9" in Collector(text).text
