"""Options and results of a benchmark."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.fake_machine import Speed
from helpers.made_plans import STATIC, TWO, Y
from helpers.made_reports import SAMPLES, make_report
from helpers.measured_plans import QUICK, measure

from trt_native.bench import BenchOptions
from trt_native.errors import SpecError
from trt_native.inspection import read_layer_times


@pytest.mark.parametrize("tensors", [STATIC, (TWO, Y)])
def test_json_holds_all_of_it(tmp_path, tensors):
    options = dataclasses.replace(QUICK, layers=True, streams=2)
    report = measure(tmp_path, options=options, tensors=tensors, other=Speed())
    data = json.loads(json.dumps(report.to_json()))
    assert data["phases"]["h2d"] == report.phases["h2d"].to_json()
    assert data["gpu"]["driver"] == "13.0"
    assert data["inputs"] == [{"name": "x", "dtype": "float32", "shape": [2, 3]}]
    assert data["comparison"]["ratios"][0]["speedup"] == report.comparison.ratios[0].speedup
    assert data["throughput_per_s"].keys() >= {"compute", "pipelined", "synchronous", "streams"}
    (tmp_path / "bench.json").write_text(json.dumps(data))
    assert read_layer_times(tmp_path / "bench.json") == {"slow <b>": 0.35, "fast": 0.1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"iterations": 0}, "iterations 0: must be at least 1"),
        ({"depth": -1}, "depth -1"),
        ({"streams": 0}, "streams 0"),
        ({"duration_s": float("nan")}, "duration of nan s"),
        ({"warmup_s": float("inf")}, "warmup of inf s"),
        ({"duration_s": -0.1}, "duration of -0.1 s"),
    ],
)
def test_options_out_of_range(changes, said):
    with pytest.raises(SpecError, match=said):
        BenchOptions(**changes)


def test_phases_are_statistics_of_the_samples():
    phases = make_report().phases
    assert (phases["gpu_compute"].median, phases["gpu_compute"].max) == (3, 5)
    assert (phases["h2d"].count, phases["h2d"].mean) == (5, 0.25)


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.75),  # 250 calls of 3 ms
        ({"d2h": (4.0, 4.0)}, 1.0),
        ({"gpu_compute": (1.0,), "d2h": (1.0,), "h2d": (2.0, 2.5, 1.0)}, 0.5),
        ({"enqueue": (100.0,), "latency": (100.0,)}, 0.75),
    ],
)
def test_the_share_of_the_pipeline_is_of_the_slowest_stage(changes, share):
    assert make_report(samples={**SAMPLES, **changes}).pipeline_share == pytest.approx(share)


@pytest.mark.parametrize(
    ("changes", "bound"),
    [({"d2h": (0.1,)}, "compute"), ({"d2h": (3.1,)}, "transfer"), ({"enqueue": (5.5,)}, "enqueue")],
)
def test_the_bottleneck_is_found_from_the_medians(changes, bound):
    assert make_report(samples={**SAMPLES, **changes}).bottleneck.bound == bound


def test_only_gpu_compute_and_the_whole_call_are_judged_for_stability():
    steady = {"gpu_compute": (2.0,) * 8, "end_to_end": (2.0,) * 8}
    assert make_report(samples={**SAMPLES, **steady}).warnings == ()
    drifting = {**steady, "end_to_end": (2.0,) * 6 + (2.08,) * 2}
    (warning,) = make_report(samples={**SAMPLES, **drifting}).warnings
    assert warning.startswith(
        "end to end is unstable: drift +4.0% from the first to the last quarter;"
    )


def test_json_leaves_out_the_free_memory_and_what_was_not_asked_for():
    data = json.loads(json.dumps(make_report().to_json()))
    assert data["gpu"] == {
        "name": "Fake GPU",
        "compute_capability": "9.0",
        "driver": "13.0",
        "total_bytes": 80 << 30,
    }
    assert (data["kind"], data["layers"], data["comparison"]) == ("bench", None, None)
    assert data["timeline"] == [{"lane": "host", "name": "upload", "start_ms": 0.0, "stop_ms": 0.5}]
    assert data["pipeline_share"] == pytest.approx(0.75)
    assert data["memory_bytes"]["peak"] == 3 << 30
