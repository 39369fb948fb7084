"""A benchmark in the trace format of Chrome, which Perfetto and chrome://tracing open.

The format is described in "Trace Event Format" of the Chromium project: complete events (``X``)
with ``ts`` and ``dur`` in microseconds, metadata events (``M``) that name processes and threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trt_native.bench.report import BenchReport
from trt_native.plans.engine_layers import Layer

__all__ = ["chrome_trace"]

_LAYERS = "layers, each on its own"


def chrome_trace(report: BenchReport, layers: Sequence[Layer] = ()) -> dict[str, Any]:
    """One call of a plan: what host and GPU do, and below them its layers one after the other.

    Layers were measured on their own, between two synchronisations; their sum is larger than the
    time of a call. They are in the order in which they run where ``layers`` has it, else the
    slowest is first.

    Args:
        report: The benchmark.
        layers: The engine's layers, for their order, type and precision.
    """
    events = [_named("process_name", 0, f"{report.plan['path']} on {report.gpu.name}")]
    lanes = list(dict.fromkeys(span.lane for span in report.timeline))
    events += [_named("thread_name", number, lane) for number, lane in enumerate(lanes, start=1)]
    events += [
        _event(s.name, lanes.index(s.lane) + 1, s.start_ms, s.stop_ms - s.start_ms)
        for s in report.timeline
    ]
    if report.layers:
        thread = len(lanes) + 1
        events.append(_named("thread_name", thread, _LAYERS))
        events += _layer_events(report, layers, thread)
    other = {"product": report.plan["product"], "version": report.plan["version"]}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}


def _layer_events(
    report: BenchReport, layers: Sequence[Layer], thread: int
) -> Iterator[dict[str, Any]]:
    known: Mapping[str, Layer] = {layer.name: layer for layer in layers}
    order = {name: place for place, name in enumerate(known)}
    timed = sorted(report.layers or (), key=lambda t: order.get(t.name, len(order)))
    start = min((span.start_ms for span in report.timeline if span.lane == "GPU"), default=0.0)
    for time in timed:
        about: dict[str, Any] = {"share": time.share}
        if layer := known.get(time.name):
            about |= {"type": layer.kind, "precision": layer.precision, "kernel": layer.tactic}
        yield {**_event(time.name, thread, start, time.median_ms), "args": about}
        start += time.median_ms


def _named(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": thread, "args": {"name": name}}


def _event(name: str, thread: int, start_ms: float, length_ms: float) -> dict[str, Any]:
    times = {"ts": start_ms * 1e3, "dur": length_ms * 1e3}
    return {"name": name, "ph": "X", "pid": 1, "tid": thread, **times}
