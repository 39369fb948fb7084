"""Options and results of a benchmark."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.fake_machine import Speed
from helpers.made_plans import STATIC, TWO, Y
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
