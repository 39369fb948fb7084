"""Benchmark reports of given times, without a benchmark."""

from __future__ import annotations

from helpers.fake_machine import GPU
from trt_native.bench import PHASES, BenchOptions, BenchReport, Memory, Span

SAMPLES = {
    **dict.fromkeys(PHASES, (1.0, 2.0, 3.0, 4.0, 5.0)),
    "enqueue": (0.5, 0.5, 0.5, 0.5, 0.5),
    "h2d": (0.25, 0.25, 0.25, 0.25, 0.25),
}
"""The median of GPU compute is 3 ms."""


def make_report(**changes):
    """A benchmark of a plan with one input; ``changes`` are fields of ``BenchReport``."""
    fields = {
        "plan": {"path": "m.plan", "product": "TensorRT-RTX", "version": "1.6", "bytes": 10},
        "gpu": GPU,
        "options": BenchOptions(),
        "inputs": ({"name": "x", "dtype": "float32", "shape": [2, 3]},),
        "samples": SAMPLES,
        "throughput": {
            "compute": 333.333,
            "compute_no_graph": 300.0,
            "synchronous": 200.0,
            "pipelined": 250.0,
        },
        "load_ms": {"load": 40.25, "session": 5.0, "first_call": 300.0},
        "memory": Memory(
            weights=10 << 20,
            context=4 << 20,
            activations=3 << 20,
            peak=3 << 30,
            inputs=24,
            outputs=2048,
        ),
        "timeline": (Span("host", "upload", 0.0, 0.5),),
    }
    return BenchReport(**{**fields, **changes})
