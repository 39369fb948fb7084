"""Traces of benchmarks, in the format that Perfetto reads."""

from __future__ import annotations

import json

from helpers.made_reports import make_report

from trt_native.bench import LayerTime, Span
from trt_native.bench.trace import chrome_trace
from trt_native.plans.engine_layers import Layer, LayerTensor

SPANS = (Span("host", "enqueue", 0.0, 0.5), Span("GPU", "compute", 0.25, 2.25))
TIMES = (LayerTime("b", 1.5, 1.6, 0.75), LayerTime("a", 0.5, 0.5, 0.25))


def events(trace, kind):
    return [event for event in trace["traceEvents"] if event["ph"] == kind]


def test_spans_are_complete_events_in_microseconds():
    trace = chrome_trace(make_report(timeline=SPANS))
    json.dumps(trace, allow_nan=False)
    found = [(e["name"], e["ts"], e["dur"]) for e in events(trace, "X")]
    assert found == [("enqueue", 0, 500), ("compute", 250, 2000)]
    names = {e["tid"]: e["args"]["name"] for e in events(trace, "M") if e["name"] == "thread_name"}
    assert [names[e["tid"]] for e in events(trace, "X")] == ["host", "GPU"]
    (process,) = (e for e in events(trace, "M") if e["name"] == "process_name")
    assert process["args"]["name"].startswith("m.plan on ")


def test_layers_follow_one_another_in_the_order_of_the_engine():
    layers = [Layer("a", "Conv", "kernel", (), (LayerTensor("y", "fp16", None),)), Layer("b")]
    trace = chrome_trace(make_report(timeline=SPANS, layers=TIMES), layers)
    last = events(trace, "X")[2:]
    assert [(e["name"], e["ts"], e["dur"]) for e in last] == [("a", 250, 500), ("b", 750, 1500)]
    assert last[0]["args"] == {
        "share": 0.25,
        "type": "Conv",
        "precision": "fp16",
        "kernel": "kernel",
    }


def test_layers_of_an_engine_that_is_not_known_are_slowest_first():
    trace = chrome_trace(make_report(timeline=SPANS, layers=TIMES))
    assert [e["name"] for e in events(trace, "X")[2:]] == ["b", "a"]
