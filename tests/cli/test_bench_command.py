"""``trt-native bench`` as a user meets it; where it measures, on a machine of known times."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.fake_machine import FakeMachine, Speed
from helpers.html_reader import SVG, Collector, svgs
from helpers.made_plans import LAYERS, X, Y, make_plan
from helpers.program import HAS_GPU

from trt_native.bench import BenchOptions, bench_plan
from trt_native.inspection import inspect_plan, read_layer_times
from trt_native.page import bench_page, plan_page

FAST = ("--duration", "0.02", "--warmup", "1")


@pytest.fixture
def bench(tmp_path, monkeypatch, main_in_process):
    """Run the command in this process; returns exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    make_plan(tmp_path / "m.plan", (X, Y))
    make_plan(tmp_path / "other.plan", (X, Y))
    speeds = {"m.plan": Speed(), "other.plan": Speed(compute=1.0)}
    machine = FakeMachine(speeds)
    monkeypatch.setattr("trt_native.bench.CudaMachine", lambda **_: machine)

    def call(*arguments):
        ended = main_in_process("bench", *arguments)
        assert machine.open == []
        return ended

    call.speeds = speeds
    return call


def test_the_tables(bench):
    code, out, err = bench("m.plan", *FAST)
    assert (code, err) == (0, "")
    rows = {tuple(c.strip() for c in line.split("│")[1:-1]) for line in out.splitlines()}
    (compute,) = (row for row in rows if row and row[0] == "GPU compute")
    assert compute[1:8] == ("500.0",) * 7
    assert any(row[:1] == ("end to end",) for row in rows)
    assert "2000.0 calls/s, 100% of what the slowest of H2D, compute and D2H allows" in out
    assert "weights 10.0 MiB, context 4.0 MiB (activations 3.0 MiB), peak 14.0 MiB" in out
    assert "x float32 4x3x16x8" in out
    assert out.splitlines()[-1].startswith("bound by compute: ")


def test_shapes_and_inputs(bench, tmp_path):
    found = json.loads(bench("m.plan", *FAST, "--shape", "x=8x3x9x8", "--json")[1])
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": [8, 3, 9, 8]}]
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 8), np.float32))
    found = json.loads(bench("m.plan", *FAST, "--input", "x=x.npy", "--json")[1])
    assert found["inputs"][0]["shape"] == [1, 3, 8, 8]


def test_the_other_plan_gets_the_same_shapes(bench):
    _, out, _ = bench(
        "m.plan", "--shape", "x=8x3x9x8", "--compare", "other.plan", *FAST, "--streams", 2
    )
    assert "m.plan 0.5000 ms, other.plan 1.0000 ms; m.plan is 2.000 times as fast" in out
    assert "2 threads" in out


def test_long_times_are_in_milliseconds(bench):
    bench.speeds["m.plan"] = Speed(compute=120.4121)
    _, out, _ = bench("m.plan", "--iterations", 1, "--duration", 0)
    assert "120.412" in out
    assert "┃ ms " in out


def test_an_unstable_measure_is_a_warning_on_standard_error(bench):
    bench.speeds["m.plan"] = Speed(factor=lambda n: 3.0 if n % 4 == 0 else 1.0)
    code, out, err = bench("m.plan", *FAST, "--json")
    assert code == 0
    assert err.startswith("warning: GPU compute is unstable: coefficient of variation ")
    assert json.loads(out)["warnings"][0] in err.replace("\n", "")


def test_times_of_layers_go_to_inspect(bench, tmp_path):
    bench.speeds["m.plan"] = Speed(layers={"conv1 + relu1": [0.25, 0.25], "__myl_Cast": [0.5]})
    _, out, _ = bench("m.plan", "--layers", *FAST, "--json")
    (tmp_path / "times.json").write_text(out)
    times = read_layer_times(tmp_path / "times.json")
    assert list(times) == ["__myl_Cast", "conv1 + relu1"]
    plan = make_plan(tmp_path / "m.plan", (X, Y))
    report = dataclasses.replace(inspect_plan(plan), raw_layers=LAYERS)
    assert "0.2500 ms" in Collector(plan_page(report, times)).text
    code, _, err = bench("m.plan", "--layers", *FAST)
    assert (code, err) == (0, "")


def test_the_page(bench, tmp_path):
    bench.speeds["m.plan"] = Speed(factor=lambda n: 1 + n * 7919 % 1000 / 1e4)
    command = ("m.plan", *FAST, "--layers", "--compare", "other.plan", "--html", "m.html")
    code, _, err = bench(*command)
    assert code == 0
    assert "written to m.html" in err
    text = (tmp_path / "m.html").read_text()
    found = Collector(text)
    for heading in ("Time line of one call", "Layers", "Comparison"):
        assert heading in found.text
    time_line, compute, *_ = (graph for graph in svgs(text) if graph.get("viewBox"))
    lanes = [t.text for t in time_line.iter(f"{SVG}title")]
    assert [lane.split(":")[0] for lane in lanes] == [
        *("upload", "enqueue", "download", "wait"),
        *("H2D", "compute", "D2H"),
    ]
    counted = sum(int(t.text.rpartition(": ")[2]) for t in compute.iter(f"{SVG}title"))
    beyond = next(t.text for t in compute.iter(f"{SVG}text") if "beyond" in t.text)
    heading = next(t for t in found.text if t.startswith("Distribution: GPU compute ("))
    total = int(heading.partition("(")[2].split()[0])
    assert counted + int(beyond.split(", ")[1].split()[0]) == total
    for graph in (time_line, compute):
        for box in graph.iter(f"{SVG}rect"):
            assert float(box.get("x")) >= 0
            width = float(graph.get("viewBox").split()[2])
            assert float(box.get("x")) + float(box.get("width")) <= width


def test_bars_of_layers_are_as_long_as_their_times(bench, tmp_path):
    bench("m.plan", *FAST, "--layers", "--html", "m.html")
    text = (tmp_path / "m.html").read_text()
    chart = text.split("<h2>Layers</h2>")[1].split("</table>")[0]
    bars = re.findall(r'<th scope="row">(.*?)</th>.*?width="(.*?)%"', chart)
    (slow, longest), (fast, shorter) = bars
    assert (slow, fast, float(longest)) == ("slow &lt;b&gt;", "fast", 100)
    assert float(shorter) == pytest.approx(100 * 0.1 / 0.35, abs=0.01)


def test_a_trace(bench, tmp_path):
    code, _, err = bench("m.plan", *FAST, "--layers", "--trace", "t.json")
    assert (code, err) == (0, "written to t.json\n")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert names[:7] == ["upload", "enqueue", "download", "wait", "H2D", "compute", "D2H"]
    assert names[7:] == ["slow <b>", "fast"]


def test_many_layers_and_equal_times(tmp_path):
    speed = Speed(layers={f"layer {n}": [n / 100] for n in range(200)})
    plan = make_plan(tmp_path / "m.plan", (X, Y))
    report = bench_plan(
        plan,
        lambda tensors: {"x": np.ones((1, 3, 8, 8), np.float32)},
        BenchOptions(iterations=5, duration_s=0, warmup_s=0, layers=True),
        machine=FakeMachine({"m.plan": speed}),
    )
    text = bench_page(report)
    assert "The slowest 40 of 200 layers" in text
    assert "nan" not in text.rpartition("<script>")[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no.plan",), "no.plan"),
        (("m.plan", "--iterations", 0), "iterations 0: must be at least 1"),
        (("m.plan", "--duration", "nan"), "duration of nan s"),
        (("m.plan", "--random", -1), "--random -1: a seed must not be negative"),
        (("m.plan", "--shape", "1x3"), "write NAME=1x3x8x8"),
        (("m.plan", "--shape", "y=1x3"), "--shape y: the inputs are x"),
        (("m.plan", "--shape", "x=9x3x8x8"), "--shape x=9x3x8x8: outside"),
        (("m.plan", "--input", "x=no.npy"), "no.npy: cannot be read"),
        (("m.plan", "--html", "no/m.html"), "no"),
        (("m.plan", "--compare", "no.plan"), "no.plan"),
    ],
)
def test_errors_are_one_line(bench, arguments, said):
    code, out, err = bench(*arguments)
    assert (code, out) == (1, "")
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_without_a_gpu(tmp_path):
    make_plan(tmp_path / "m.plan", (X, Y))
    result = subprocess.run(
        [sys.executable, "-m", "trt_native", "bench", "m.plan"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: cannot find a GPU")
    assert result.stderr.count("\n") == 1
