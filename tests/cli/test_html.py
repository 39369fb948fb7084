"""The HTML page: well-formed, self-contained, and safe with any name."""

from __future__ import annotations

import dataclasses

import pytest
from helpers.html_reader import SVG, Collector, svg
from helpers.made_plans import LAYERS, X, Y, make_plan

from trt_native.cli.html import GraphNode, page, plan_page
from trt_native.inspection import inspect_plan


@pytest.fixture
def report(tmp_path):
    report = inspect_plan(make_plan(tmp_path / "m.plan", (X, Y)))
    return dataclasses.replace(report, raw_layers=LAYERS, activation_bytes=2048)


def test_a_plan_with_layers_and_times(report):
    text = plan_page(report, {"conv1 + relu1": 0.25, "gone": 1})
    found = Collector(text)
    for part in ("2.0 KiB", "1x3x8x8:4x3x16x8:8x3x32x8", "fp16 16x256x28x28", "0.2500 ms"):
        assert part in found.text
    assert "1 of the times belong to no layer here." in found.text
    graph = svg(text)
    assert [title.text for title in graph.iter(f"{SVG}title")] == [x["Name"] for x in LAYERS]
    assert len(list(graph.iter(f"{SVG}path"))) == 1  # from conv1 to the cast that reads it
    assert "CaskConvolution 0.2500 ms" in [t.text for t in graph.iter(f"{SVG}text")]


def test_a_plan_without_layers_says_why(report):
    text = plan_page(dataclasses.replace(report, raw_layers=None, layers_error="no <GPU>"))
    assert "The layers are not known: no <GPU>" in Collector(text).text
    assert "<svg" not in text


def test_nothing_is_loaded_and_nothing_runs(report):
    evil = '"><script>alert(1)</script><img src=http://x onerror=y>'
    layers = [{"Name": evil, "LayerType": evil, "Outputs": [{"Name": evil}], "TacticName": evil}]
    changed = dataclasses.replace(
        report, path=evil, raw_layers=layers, tensors=(dataclasses.replace(X, name=evil), Y)
    )
    found = Collector(plan_page(changed))
    assert not {"script", "img", "link", "iframe", "object", "a"} & set(found.tags)
    assert not {"src", "href", "onerror", "onload"} & {name for name, _ in found.attributes}
    assert found.text.count(evil) >= 4


def test_every_box_is_below_what_it_reads():
    def node(name, *inputs):
        return GraphNode(name, "op", inputs, (name,))

    nodes = [
        node("a", "input"),
        node("b", "a"),
        node("constant"),
        node("c", "b", "constant"),
        node("d", "a", "c"),
    ]
    graph = svg(page("t", (), nodes))
    boxes = [(int(r.get("x")), int(r.get("y"))) for r in graph.iter(f"{SVG}rect")]
    tops = dict(zip((n.name for n in nodes), (y for _, y in boxes), strict=True))
    assert tops["a"] < tops["b"] < tops["c"] < tops["d"]
    assert tops["constant"] == tops["b"]  # right above its reader, not at the top
    assert len(set(boxes)) == len(boxes)
    width, height = int(graph.get("width")), int(graph.get("height"))
    assert all(x + 210 <= width and y + 58 <= height for x, y in boxes)
