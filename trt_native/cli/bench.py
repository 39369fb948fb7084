"""``trt-native bench``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import guarded, print_json, stderr, stdout, table
from trt_native.cli.inputs import INPUT_HELP, check_seed, fill_random, read_inputs, read_shapes
from trt_native.spec import Shape, format_bytes

if TYPE_CHECKING:
    import numpy as np

    from trt_native.bench import BenchReport, Comparison
    from trt_native.plan import PlanTensor

__all__ = ["LAYER_COLUMNS", "bench", "fact_rows", "layer_rows", "phase_table", "ratio_lines"]

LAYER_COLUMNS = ("layer", "median ms", "mean ms", "share")

_STATISTICS = ("min", "mean", "median", "p90", "p95", "p99", "max")
_MOST_MS_AS_US = 100


@guarded
def bench(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan to measure.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help=INPUT_HELP),
    ] = None,
    random: Annotated[
        int, typer.Option(metavar="SEED", help="Of the values of inputs that are not given.")
    ] = 0,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            "--shapes",
            help="Shape of a random input, NAME=1x3x8x8. Repeatable."
            " \\[default: the profile's opt]",
        ),
    ] = None,
    iterations: Annotated[
        int, typer.Option(metavar="N", help="Measure each phase at least so many times.")
    ] = 10,
    duration: Annotated[
        float, typer.Option(metavar="SECONDS", help="Measure each phase at least so long.")
    ] = 1.0,
    warmup: Annotated[
        float, typer.Option(metavar="MILLISECONDS", help="Run so long before measuring.")
    ] = 200.0,
    depth: Annotated[
        int, typer.Option(metavar="N", help="Calls in flight in the pipelined measurement.")
    ] = 2,
    streams: Annotated[
        int,
        typer.Option(metavar="N", help="Also measure so many sessions at once, each in a thread."),
    ] = 1,
    layers: Annotated[bool, typer.Option("--layers", help="Also time each layer.")] = False,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="OTHER", help="A plan to run in turns with this one."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained page to this file.")
    ] = None,
    manifest: Annotated[
        bool,
        typer.Option("--manifest/--no-manifest", help="Heed the manifest beside a plan."),
    ] = True,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print all as JSON; with --layers also for inspect --html --times."
        ),
    ] = False,
) -> None:
    """Measure how fast a plan runs on the GPU, and what bounds it."""
    from trt_native.bench import BenchOptions, bench_plan
    from trt_native.plan import Plan, check_writable, replacing

    options = BenchOptions(
        iterations=iterations,
        duration_s=duration,
        warmup_s=warmup / 1e3,
        depth=depth,
        streams=streams,
        layers=layers,
    )
    shapes = read_shapes(shape or [])
    check_seed(random, shapes)
    supply = _supply(read_inputs(inputs or []), shapes, random)
    if html is not None:
        check_writable(html)
    loaded = Plan.load(plan, ignore_manifest=not manifest)
    other = None if compare is None else Plan.load(compare, ignore_manifest=not manifest)
    with stderr.status("measuring"):
        report = bench_plan(loaded, supply, options, other=other)
    if html is not None:
        from trt_native.cli.bench_html import bench_page

        with replacing(html) as opened:
            opened.write(bench_page(report).encode(errors="replace"))
        stderr.print(f"written to {html}", markup=False, highlight=False)
    for warning in report.warnings:
        stderr.print(f"warning: {warning}", markup=False, highlight=False)
    if json:
        print_json(report.to_json())
    else:
        _print(report)


def _supply(
    given: dict[str, np.ndarray[Any, Any]], shapes: dict[str, Shape], seed: int
) -> Callable[[Sequence[PlanTensor]], dict[str, np.ndarray[Any, Any]]]:
    """What gives inputs: for the first plan as asked, for another with the shapes of the first."""
    import numpy as np

    first: dict[str, Shape] = {}

    def supply(tensors: Sequence[PlanTensor]) -> dict[str, np.ndarray[Any, Any]]:
        arrays = fill_random(tensors, given, first or shapes, np.random.default_rng(seed))
        first.update({n: array.shape for n, array in arrays.items() if n not in given})
        return arrays

    return supply


def phase_table(report: BenchReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the statistics, in microseconds where that is no long figure."""
    from trt_native.bench import PHASES

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
        f"{i['name']} {i['dtype']} {'x'.join(map(str, i['shape'])) or 'scalar'}"
        for i in report.inputs
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


def ratio_lines(plan: str, comparison: Comparison) -> list[str]:
    """What a comparison says, one line for each phase."""
    from trt_native.bench import PHASES

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


def _print(report: BenchReport) -> None:
    path = report.plan["path"]
    table(path, *phase_table(report))
    table("", ("", ""), fact_rows(report))
    if report.layers is not None:
        table(f"Layers ({len(report.layers)})", LAYER_COLUMNS, layer_rows(report))
    if report.comparison is not None:
        for line in ratio_lines(path, report.comparison):
            stdout.print(line, markup=False, highlight=False)
    stdout.print(report.verdict.text, markup=False, highlight=False)
