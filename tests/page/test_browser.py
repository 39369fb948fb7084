"""Pages in a headless Chromium: what they draw, how they answer, and that they load nothing."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from helpers.made_plans import LAYERS, X, Y, make_plan
from helpers.made_reports import make_report
from helpers.page_models import blocks_model, hostile_model, long_model

from trt_native.bench import LayerTime
from trt_native.inspection import diff_plans, inspect_plan
from trt_native.page import bench_page, diff_page, plan_page, verify_page
from trt_native.verify import Thresholds, verify_plan
from trt_native.verify.check import Case

pytestmark = pytest.mark.slow  # so that it is among the first of the files

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{7*7}}"


@pytest.fixture
def blocks(opened, text_of):
    page = opened(text_of(blocks_model(), {"batch": 4}))
    page.tab.locator("#close-all").click()
    return page


def transform(page):
    return page.tab.locator("#drawing > g").get_attribute("transform")


def selected(page):
    return page.tab.eval_on_selector_all("#drawing .selected", "all => all.map(b => b.dataset.key)")


def test_modules_inputs_and_outputs_are_drawn(blocks):
    assert sorted(blocks.boxes().values()) == ["Softmax", "blocks", "probabilities", "x"]
    assert len(blocks.tab.query_selector_all("#drawing .edge")) == 3


def test_a_double_click_opens_and_closes_a_module(blocks):
    blocks.click_box("m1", count=2)
    assert {"0", "1", "2"} < set(blocks.boxes().values())
    blocks.click_box("m1", count=2)
    assert "0" not in blocks.boxes().values()


def test_the_sign_of_a_module_opens_it(blocks):
    blocks.tab.locator('.box[data-key="m1"] .sign').click()
    assert {"0", "1", "2"} < set(blocks.boxes().values())


def test_all_modules_open_and_close(blocks):
    blocks.tab.locator("#open-all").click()
    assert list(blocks.boxes().values()).count("MatMul") == 3
    blocks.tab.locator("#close-all").click()
    assert len(blocks.boxes()) == 4


def test_nodes_that_compute_shapes_are_shown_on_request(blocks):
    blocks.tab.locator("#open-all").click()
    assert not {"Shape", "Concat"} & set(blocks.boxes().values())
    blocks.tab.locator("#chains").check()
    assert list(blocks.boxes().values()).count("Shape") == 3


def test_a_click_shows_attributes(blocks):
    blocks.tab.locator("#open-all").click()
    (key,) = (key for key, line in blocks.boxes().items() if line == "Softmax")
    blocks.click_box(key)
    details = blocks.tab.locator("#details").inner_text()
    for part in ("/Softmax", "axis -1", "probabilities float32 batch×8", "y2 float32"):
        assert part in details
    assert selected(blocks) == [key]
    blocks.tab.get_by_label("Close", exact=True).click()
    assert not blocks.tab.locator("#details").is_visible()


def test_links_in_the_details_lead_to_neighbours(blocks):
    (key,) = (key for key, line in blocks.boxes().items() if line == "Softmax")
    blocks.click_box(key)
    blocks.tab.locator("#details").get_by_text("blocks.2/Reshape", exact=True).click()
    assert blocks.tab.locator("#details h3").inner_text() == "Reshape"
    (chosen,) = selected(blocks)
    assert blocks.boxes()[chosen] == "Reshape"


def test_search_finds_what_is_in_closed_modules(blocks):
    blocks.tab.keyboard.press("/")
    blocks.tab.keyboard.type("blocks.1.mlp/rel")
    assert blocks.tab.locator("#results li").all_inner_texts() == ["blocks.1.mlp/Relu\nRelu"]
    blocks.tab.keyboard.press("Enter")
    assert blocks.tab.locator("#details .title").inner_text().split() == [
        "Relu",
        "blocks.1.mlp/Relu",
    ]
    box = blocks.tab.locator("#drawing .selected").bounding_box()
    around = blocks.tab.locator("#drawing").bounding_box()
    assert around["x"] <= box["x"] <= around["x"] + around["width"] - box["width"]
    assert around["y"] <= box["y"] <= around["y"] + around["height"] - box["height"]


def test_search_finds_tensors_types_and_modules_or_nothing(blocks):
    field, results = blocks.tab.locator("#search"), blocks.tab.locator("#results li")
    field.fill("y1_b")
    assert results.all_inner_texts() == ["y1_b\ntensor"]
    field.fill("matmul")
    assert len(results.all_inner_texts()) == 3
    field.fill("blocks.2")
    assert results.all_inner_texts()[0] == "blocks.2\nmodule"
    field.fill("nowhere")
    assert results.all_inner_texts() == ["nothing found"]


def test_a_result_that_computes_shapes_is_shown(blocks):
    blocks.tab.locator("#search").fill("blocks.1/Concat")
    blocks.tab.keyboard.press("Enter")
    assert blocks.tab.locator("#chains").is_checked()
    assert [blocks.boxes()[key] for key in selected(blocks)] == ["Concat"]


def test_the_keyboard_alone(blocks):
    blocks.tab.locator("#drawing").focus()
    visited = []
    for _ in range(4):
        blocks.tab.keyboard.press("ArrowDown")
        visited.append(blocks.boxes()[selected(blocks)[0]])
    assert visited == ["x", "blocks", "Softmax", "probabilities"]
    blocks.tab.keyboard.press("ArrowUp")
    blocks.tab.keyboard.press("ArrowUp")
    blocks.tab.keyboard.press("Enter")
    assert {"0", "1", "2"} < set(blocks.boxes().values())
    blocks.tab.keyboard.press("Escape")
    assert selected(blocks) == []
    before = transform(blocks)
    blocks.tab.keyboard.press("+")
    assert transform(blocks) != before


def test_every_control_can_be_reached_by_tab(blocks):
    reached = set()
    blocks.tab.locator("#theme").focus()
    for _ in range(30):
        blocks.tab.keyboard.press("Tab")
        reached.add(blocks.tab.evaluate("document.activeElement.id"))
    wanted = {"search", "fit", "closer", "farther", "open-all", "close-all", "chains", "colour"}
    assert wanted | {"drawing"} <= reached


def test_the_wheel_zooms_once_the_graph_was_clicked(blocks):
    box = blocks.show_graph()
    blocks.tab.mouse.move(box["x"] + 20, box["y"] + 20)
    before, scrolled = transform(blocks), blocks.tab.evaluate("scrollY")
    blocks.tab.mouse.wheel(0, -200)
    blocks.tab.wait_for_function("before => scrollY !== before", arg=scrolled)
    assert transform(blocks) == before
    box = blocks.show_graph()
    blocks.tab.mouse.click(box["x"] + 20, box["y"] + 20)
    blocks.tab.mouse.wheel(0, -200)
    blocks.tab.wait_for_function(
        "before => document.querySelector('#drawing > g').getAttribute('transform') !== before",
        arg=before,
    )


def test_dragging_moves_the_graph(blocks):
    box = blocks.show_graph()
    before = blocks.tab.locator('.box[data-key="m1"]').bounding_box()
    blocks.tab.mouse.move(box["x"] + 30, box["y"] + 30)
    blocks.tab.mouse.down()
    blocks.tab.mouse.move(box["x"] + 90, box["y"] + 50, steps=3)
    blocks.tab.mouse.up()
    after = blocks.tab.locator('.box[data-key="m1"]').bounding_box()
    assert (after["x"] - before["x"], after["y"] - before["y"]) == (60, 20)


def test_colours_by_weights(blocks):
    blocks.tab.locator("#open-all").click()
    blocks.tab.locator("#colour").select_option("weights")
    strengths = {
        line: blocks.tab.locator(f'.box[data-key="{key}"] .heat').get_attribute("fill-opacity")
        for key, line in blocks.boxes().items()
        if line in ("MatMul", "Relu")
    }
    assert float(strengths["MatMul"]) == pytest.approx((1 / 3) ** 0.5, abs=0.05)
    assert float(strengths["Relu"]) == 0


def test_names_of_a_model_stay_names(opened, text_of):
    page = opened(text_of(hostile_model(HOSTILE)))
    page.tab.locator("#open-all").click()
    assert page.tab.query_selector_all("img") == []
    assert len(page.tab.query_selector_all("script")) == 2
    page.tab.locator("#search").fill("onerror")
    assert HOSTILE in page.tab.locator("#results").inner_text()
    page.tab.locator("#search").fill("Mystery")
    page.tab.keyboard.press("Enter")
    assert HOSTILE in page.tab.locator("#details").inner_text()
    assert HOSTILE in page.tab.locator("#tables").inner_text()
    page.screenshot("hostile_names")


def test_a_script_that_is_injected_does_not_run(browser, tmp_path, text_of):
    """Even if a name were not escaped, the page's policy would stop it."""
    from helpers.chromium import OpenPage

    text = text_of(blocks_model()).replace(
        "<footer>", "<script>alert(1)</script><img src=x onerror='alert(2)'><footer>"
    )
    (tmp_path / "injected.html").write_text(text)
    page = OpenPage(browser, tmp_path / "injected.html")
    page.tab.wait_for_timeout(200)
    page.close()
    assert not {"1", "2"} & set(page.problems)
    assert any("Content Security Policy" in problem for problem in page.problems)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_button(opened, text_of, scheme):
    page = opened(text_of(blocks_model()), color_scheme=scheme)

    def background():
        return page.tab.evaluate("getComputedStyle(document.body).backgroundColor")

    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}
    assert background() == colours[scheme]
    page.screenshot(f"model_{scheme}")
    page.tab.locator("#theme").click()
    assert background() == colours["dark" if scheme == "light" else "light"]


def test_a_narrow_window_needs_no_scrolling_sideways(opened, text_of):
    page = opened(text_of(blocks_model()), width=400, height=800)
    width = page.tab.evaluate("document.documentElement.scrollWidth")
    assert width == 400
    small = page.tab.evaluate(
        "[...document.querySelectorAll('main *:not(svg *)')].filter("
        "e => e.textContent.trim() && parseFloat(getComputedStyle(e).fontSize) < 12).length"
    )
    assert small == 0
    page.screenshot("model_400")


def test_a_graph_of_2500_nodes(opened, text_of):
    page = opened(text_of(long_model(2500)))
    drawn = len(page.boxes())
    assert 3 <= drawn <= 60
    page.tab.locator("#search").fill("MatMul_2495")
    page.tab.keyboard.press("Enter")
    assert [page.boxes()[key] for key in selected(page)] == ["MatMul"]
    page.screenshot("model_of_2500_nodes")


def test_without_a_script_the_rest_is_there(browser, tmp_path, text_of):
    (tmp_path / "m.html").write_text(text_of(blocks_model()))
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto((tmp_path / "m.html").as_uri())
    text = tab.locator("main").inner_text()
    assert "MatMul" in text
    assert "The graph is drawn by a script, which is off here" in text
    context.close()


def test_the_data_is_that_of_the_graph(opened, text_of):
    page = opened(text_of(blocks_model()))
    (graph,) = json.loads(page.tab.locator("#data").text_content())
    assert len(graph["nodes"]) == 16
    assert [name for name, _ in graph["modules"]][:3] == ["", "blocks", "0"]


@pytest.fixture
def report(tmp_path):
    layers = [
        {
            **LAYERS[0],
            "Metadata": "[ONNX Layer: blocks.0.mlp/MatMul]\x1f[ONNX Layer: blocks.0/Add]",
        },
        *LAYERS[1:],
    ]
    found = inspect_plan(make_plan(tmp_path / "m.plan", (X, Y)))
    return dataclasses.replace(found, raw_layers=layers)


def test_the_graphs_of_a_plan(opened, report):
    page = opened(plan_page(report, {"conv1 + relu1": 0.25}, blocks_model()))
    assert "CaskConvolution 0.250 ms" in page.boxes().values()
    page.tab.locator("#colour").select_option("time")
    page.tab.get_by_role("tab", name="ONNX nodes").click()
    assert page.tab.locator("#colour").input_value() == "p"
    assert "Softmax" in page.boxes().values()
    page.tab.get_by_role("tab", name="Layers").click()
    assert page.tab.locator("#colour").input_value() == "t"
    page.screenshot("plan")


def test_differences_between_two_plans_are_marked(opened, report):
    other = dataclasses.replace(report, path="other.plan", raw_layers=report.raw_layers[1:])
    page = opened(diff_page(report, other, diff_plans(report, other)))
    marked = page.tab.eval_on_selector_all(
        "#drawing .marked.node text.first", "all => all.map(text => text.textContent)"
    )
    assert marked == ["CaskConvolution"]
    page.screenshot("diff")


@pytest.mark.parametrize("width", [1280, 400])
def test_a_benchmark(opened, report, width):
    times = (LayerTime("conv1 + relu1", 0.25, 0.25, 0.8), LayerTime("__myl_Cast", 0.06, 0.06, 0.2))
    page = opened(bench_page(make_report(layers=times), report), width=width)
    assert page.tab.evaluate("document.documentElement.scrollWidth") == width
    assert page.tab.locator("#figures figure").count() == 9
    page.screenshot(f"bench_{width}")


def test_a_verification(opened):
    expected = {"probabilities": np.arange(8.0)}
    found = verify_plan(
        lambda inputs: {"probabilities": expected["probabilities"] * inputs["scale"]},
        [Case({"scale": scale}, lambda: expected) for scale in (1.0, 1.5)],
        Thresholds(max_relative_error=0.1),
    )
    text = verify_page("m.plan", "m.onnx", found, "as given", model=blocks_model())
    page = opened(text)
    assert page.tab.locator(".status.bad").inner_text().startswith("FAILED: 1 of 1")
    lengths = page.tab.eval_on_selector_all(
        ".card:first-child rect", "all => all.map(bar => bar.getBoundingClientRect().width)"
    )
    assert lengths[0] > 50
    page.screenshot("verify")
