"""Tables of a benchmark, with figures that were computed by hand."""

from __future__ import annotations

import pytest
from helpers.made_reports import SAMPLES, make_report

from trt_native.bench import PHASES, BenchOptions, LayerTime, PlanComparison, Ratio
from trt_native.bench.tables import (
    LAYER_COLUMNS,
    fact_rows,
    layer_rows,
    phase_table,
    ratio_lines,
)


class TestPhases:
    def test_short_times_are_in_microseconds(self):
        columns, rows = phase_table(make_report())
        assert columns == ("µs", "min", "mean", "median", "p90", "p95", "p99", "max", "CV")
        table = {row[0]: row[1:] for row in rows}
        assert list(table) == list(PHASES.values())
        # Of 1 to 5: percentiles between 4 and 5; a standard deviation of sqrt(2.5), a mean of 3.
        assert table["GPU compute"] == (
            *("1000.0", "3000.0", "3000.0", "4600.0", "4800.0", "4960.0", "5000.0"),
            "52.7%",
        )
        assert table["H2D"] == ("250.0",) * 7 + ("0.0%",)

    @pytest.mark.parametrize(("milliseconds", "unit"), [(99.9, "µs"), (100.0, "ms")])
    def test_the_slowest_phase_decides_the_unit(self, milliseconds, unit):
        samples = {**SAMPLES, "latency": (milliseconds,) * 3}
        columns, rows = phase_table(make_report(samples=samples))
        assert columns[0] == unit
        compute = rows[0]
        assert compute[:2] == ("GPU compute", "1000.0" if unit == "µs" else "1.000")


class TestFacts:
    def test_every_figure_has_its_unit(self):
        assert dict(fact_rows(make_report())) == {
            "GPU": "Fake GPU, compute capability 9.0, CUDA 13.0",
            "made by": "TensorRT-RTX 1.6",
            "inputs": "x float32 2x3",
            "throughput, tensors on the GPU": "333.3 calls/s",
            "without CUDA graph": "300.0 calls/s",
            "throughput, NumPy, one call at a time": "200.0 calls/s",
            # 250 calls of 3 ms each take 750 ms of a second.
            "throughput, NumPy, pipelined (depth 2)": (
                "250.0 calls/s, 75% of what the slowest of H2D, compute and D2H allows"
            ),
            "load": "40.2 ms, session 5.0 ms, first call 300.0 ms",
            "device memory": (
                "weights 10.0 MiB, context 4.0 MiB (activations 3.0 MiB), peak 3.0 GiB"
            ),
            "transfer": "24 B in, 2.0 KiB out",
        }

    def test_scalar_and_further_inputs(self):
        inputs = (
            {"name": "x", "dtype": "float16", "shape": (1, 3)},
            {"name": "step", "dtype": "int64", "shape": ()},
        )
        facts = dict(fact_rows(make_report(inputs=inputs)))
        assert facts["inputs"] == "x float16 1x3, step int64 scalar"

    def test_threads_where_there_are_several(self):
        report = make_report(
            options=BenchOptions(streams=4, depth=3),
            throughput={**make_report().throughput, "streams": 1234.56},
        )
        facts = dict(fact_rows(report))
        assert facts["throughput, NumPy, 4 threads"] == "1234.6 calls/s"
        assert "throughput, NumPy, pipelined (depth 3)" in facts


def test_a_comparison_has_the_interval_and_its_meaning():
    ratios = (
        Ratio("gpu_compute", 1.0, 2.0, 2.0, 1.95, 2.05),
        Ratio("end_to_end", 3.0, 3.03, 1.01, 0.99, 1.0304),
    )
    assert ratio_lines("a.plan", PlanComparison("b.plan", ratios)) == [
        "GPU compute: a.plan 1.0000 ms, b.plan 2.0000 ms; a.plan is 2.000 times as fast"
        " (95 % interval 1.950 to 2.050)",
        "end to end: a.plan 3.0000 ms, b.plan 3.0300 ms; a.plan is 1.010 times as fast"
        " (95 % interval 0.990 to 1.030, so no difference is proven)",
    ]


def test_layers():
    layers = (LayerTime("conv", 0.75, 0.80004, 0.75), LayerTime("add", 0.25, 0.25, 0.25))
    rows = layer_rows(make_report(layers=layers))
    assert rows == [
        ("conv", "0.7500", "0.8000", "75.0%"),
        ("add", "0.2500", "0.2500", "25.0%"),
    ]
    assert all(len(row) == len(LAYER_COLUMNS) for row in rows)
    assert layer_rows(make_report()) == []
