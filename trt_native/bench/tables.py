"""Tables of a :class:`~trt_native.bench.BenchReport`, for the terminal and for pages."""

from __future__ import annotations

from trt_native.bench.report import BenchReport, PlanComparison
from trt_native.bench.statistics import PHASES
from trt_native.shapes import format_shape
from trt_native.units import format_bytes

__all__ = ["LAYER_COLUMNS", "fact_rows", "layer_rows", "phase_table", "ratio_lines"]

LAYER_COLUMNS = ("layer", "median ms", "mean ms", "share")

_STATISTICS = ("min", "mean", "median", "p90", "p95", "p99", "max")
_MOST_MS_AS_US = 100


def phase_table(report: BenchReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the statistics, in microseconds where that is a short figure."""
    phases = report.phases
    short = max(stats.p99 for stats in phases.values()) < _MOST_MS_AS_US
    unit, scale, digits = ("µs", 1e3, 1) if short else ("ms", 1.0, 3)
    rows = [
        (
            PHASES[name],
            *(f"{getattr(stats, key) * scale:.{digits}f}" for key in _STATISTICS),
            f"{stats.cv:.1%}",
        )
        for name, stats in phases.items()
    ]
    return (unit, *_STATISTICS, "CV"), rows


def fact_rows(report: BenchReport) -> list[tuple[str, str]]:
    """Everything that is one figure, with its unit."""
    gpu, memory, load, rate = report.gpu, report.memory, report.load_ms, report.throughput
    inputs = ", ".join(
        f"{i['name']} {i['dtype']} {format_shape(i['shape'])}" for i in report.inputs
    )
    rows = [
        ("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, CUDA {gpu.driver}"),
        ("made by", f"{report.plan['product']} {report.plan['version']}"),
        ("inputs", inputs),
        ("throughput, tensors on the GPU", f"{rate['compute']:.1f} calls/s"),
        ("without CUDA graph", f"{rate['compute_no_graph']:.1f} calls/s"),
        ("throughput, NumPy, one call at a time", f"{rate['synchronous']:.1f} calls/s"),
        (
            f"throughput, NumPy, pipelined (depth {report.options.depth})",
            f"{rate['pipelined']:.1f} calls/s, {report.pipeline_share:.0%} of what the slowest of"
            " H2D, compute and D2H allows",
        ),
    ]
    if "streams" in rate:
        rows.append(
            (
                f"throughput, NumPy, {report.options.streams} threads",
                f"{rate['streams']:.1f} calls/s",
            )
        )
    rows += [
        (
            "load",
            f"{load['load']:.1f} ms, session {load['session']:.1f} ms,"
            f" first call {load['first_call']:.1f} ms",
        ),
        (
            "device memory",
            f"weights {format_bytes(memory.weights)}, context {format_bytes(memory.context)}"
            f" (activations {format_bytes(memory.activations)}), peak {format_bytes(memory.peak)}",
        ),
        ("transfer", f"{format_bytes(memory.inputs)} in, {format_bytes(memory.outputs)} out"),
    ]
    return rows


def ratio_lines(plan: str, comparison: PlanComparison) -> list[str]:
    """A comparison, one line for each phase."""
    return [
        f"{PHASES[r.phase]}: {plan} {r.plan_ms:.4f} ms, {comparison.other} {r.other_ms:.4f} ms;"
        f" {plan} is {r.speedup:.3f} times as fast (95 % interval {r.low:.3f} to {r.high:.3f}"
        + (")" if r.differs else ", so no difference is proven)")
        for r in comparison.ratios
    ]


def layer_rows(report: BenchReport) -> list[tuple[str, ...]]:
    """The layers, slowest first, under ``LAYER_COLUMNS``."""
    return [
        (x.name, f"{x.median_ms:.4f}", f"{x.mean_ms:.4f}", f"{x.share:.1%}")
        for x in report.layers or ()
    ]
