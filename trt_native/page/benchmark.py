"""The page of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping

from trt_native.bench import PHASES, BenchReport
from trt_native.bench.tables import (
    LAYER_COLUMNS,
    fact_rows,
    layer_rows,
    phase_table,
    ratio_lines,
)
from trt_native.inspection import PlanReport
from trt_native.page.content import Bar, Bars, Figure, Page, Status, Table
from trt_native.page.drawings import histogram, time_line
from trt_native.page.layer_graph import layer_graph
from trt_native.page.plan import known_layers, layer_bars
from trt_native.page.render import render

__all__ = ["bench_page"]

_SLOWEST = 40


def bench_page(report: BenchReport, plan: PlanReport | None = None) -> str:
    """A benchmark: its figures, the time line of a call, distributions, and layers with times.

    Args:
        report: The benchmark.
        plan: What is known of the plan, for the graph of its layers.
    """
    times = {layer.name: layer.median_ms for layer in report.layers or ()}
    layers, source = known_layers(plan) if plan is not None else ((), "")
    graphs = [layer_graph(layers, source, times=times)] if layers else []
    figures = [Figure("Time line of one call", time_line(report.timeline))]
    figures += [
        Figure(f"Distribution: {PHASES[name]} ({len(values)} times)", histogram(values))
        for name, values in report.samples.items()
    ]
    return render(
        Page(
            title=report.plan["path"],
            kind="Benchmark of a plan",
            status=Status("plain", report.bottleneck.text.partition(":")[0]),
            facts=fact_rows(report),
            remarks=[report.bottleneck.text, *(f"Warning: {w}." for w in report.warnings)],
            bars=[
                _rates(report.throughput),
                *(layer_bars(layers, source, times) if layers else ()),
                *_layer_bars(report),
            ],
            figures=figures,
            graphs=graphs,
            tables=_tables(report),
        )
    )


def _layer_bars(report: BenchReport) -> list[Bars]:
    if not report.layers:
        return []
    shown = report.layers[:_SLOWEST]
    longest = shown[0].median_ms or 1.0
    count = len(report.layers)
    title = "Layers" if count <= _SLOWEST else f"The slowest {_SLOWEST} of {count} layers"
    bars = [
        Bar(
            layer.name,
            layer.median_ms / longest,
            f"{layer.median_ms:.4f} ms {layer.share:.1%}",
            title=layer.name,
        )
        for layer in shown
    ]
    return [Bars(title, bars, wide=True)]


def _rates(throughput: Mapping[str, float]) -> Bars:
    longest = max(throughput.values(), default=0) or 1.0
    bars = [
        Bar(name.replace("_", " "), rate / longest, f"{rate:.1f}/s")
        for name, rate in throughput.items()
    ]
    return Bars("Calls per second", bars)


def _tables(report: BenchReport) -> list[Table]:
    columns, rows = phase_table(report)
    tables = [Table("Phases", columns, rows, numeric=frozenset(range(1, len(columns))))]
    if report.comparison is not None:
        lines = ratio_lines(report.plan["path"], report.comparison)
        tables.append(Table("Comparison", ("",), [(line,) for line in lines]))
    if report.layers is not None:
        numeric = frozenset(range(1, len(LAYER_COLUMNS)))
        rows = layer_rows(report)
        tables.append(Table("Layers", LAYER_COLUMNS, rows, numeric=numeric, open=False))
    return tables
