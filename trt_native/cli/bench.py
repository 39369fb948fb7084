"""``trt-native bench``."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_json, report_errors, stderr, stdout, table
from trt_native.cli.inputs import (
    INPUT_HELP,
    GivenInputs,
    check_seed,
    fill_random,
    open_inputs,
    read_shapes,
    split_entry,
)
from trt_native.cli.options import (
    AllowHostCode,
    DeviceOption,
    IgnoreManifest,
    KernelSpecializationOption,
    LeanRuntime,
    PluginsOption,
    open_plan,
    select_device,
)
from trt_native.cli.pages import write_text
from trt_native.progress import phase
from trt_native.shapes import Shape

if TYPE_CHECKING:
    import numpy as np

    from trt_native.bench import BenchReport
    from trt_native.plans.manifest import PlanTensor
    from trt_native.plans.plan import Plan

__all__ = ["bench"]


@report_errors
def bench(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan to measure.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help=INPUT_HELP),
    ] = None,
    random: Annotated[
        int, typer.Option(metavar="SEED", help="Seed of the values of inputs that are not given.")
    ] = 0,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            help="Shape of a random input, NAME=1x3x8x8. Repeatable."
            " \\[default: the profile's opt]",
        ),
    ] = None,
    iterations: Annotated[
        int, typer.Option(metavar="N", help="Least number of measurements of each phase.")
    ] = 10,
    duration: Annotated[
        float, typer.Option(metavar="SECONDS", help="Least time to measure each phase for.")
    ] = 1.0,
    warmup: Annotated[
        float, typer.Option(metavar="MILLISECONDS", help="Time to run before measuring.")
    ] = 200.0,
    depth: Annotated[
        int, typer.Option(metavar="N", help="Calls in flight in the pipelined measurement.")
    ] = 2,
    streams: Annotated[
        int,
        typer.Option(metavar="N", help="Also measure N sessions at once, each in a thread."),
    ] = 1,
    layers: Annotated[bool, typer.Option("--layers", help="Also time each layer.")] = False,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="OTHER", help="A plan to run in turns with this one."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write one self-contained page to this file; with --layers also the graph of"
            " layers with their times."
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Write one call as a trace for Perfetto or chrome://tracing; with --layers also"
            " the layers.",
        ),
    ] = None,
    kernel_specialization: KernelSpecializationOption = None,
    device: DeviceOption = None,
    ignore_manifest: IgnoreManifest = False,
    allow_host_code: AllowHostCode = False,
    lean_runtime: LeanRuntime = None,
    plugins: PluginsOption = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print all as JSON; with --layers also for inspect --html --times."
        ),
    ] = False,
) -> None:
    """Measure the speed of a plan on the GPU, and find its bottleneck.

    $ trt-native bench net.plan --shape image=8x3x32x32
    $ trt-native bench net.plan --compare other.plan --layers
    """
    select_device(device)
    from trt_native.bench import BenchOptions, CudaMachine, bench_plan
    from trt_native.graph.outputs import check_outputs
    from trt_native.progress_bars import ProgressDisplay

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
    with open_inputs(inputs or []) as given:
        files = [file for _, file in map(split_entry, inputs or [])]
        written = [path for path in (html, trace) if path is not None]
        check_outputs(written, reads=[plan, compare, *files])
        reading = ignore_manifest, allow_host_code, lean_runtime, plugins
        loaded = open_plan(plan, *reading)
        other = None if compare is None else open_plan(compare, *reading)
        with ProgressDisplay(stderr, brief=True) as progress, phase(progress, "Measuring"):
            supply = _supply(given, shapes, random)
            machine = CudaMachine(kernel_specialization=kernel_specialization)
            report = bench_plan(loaded, supply, options, other=other, machine=machine)
    _write_files(report, loaded, html, trace)
    for warning in report.warnings:
        stderr.print(f"warning: {warning}", markup=False, highlight=False)
    if json:
        print_json(report.to_json())
    else:
        _print(report)


def _write_files(report: BenchReport, plan: Plan, html: Path | None, trace: Path | None) -> None:
    if html is None and trace is None:
        return
    from trt_native.inspection import inspect_plan

    about = inspect_plan(plan) if report.layers is not None else None
    if html is not None:
        from trt_native.page import bench_page

        write_text(html, bench_page(report, about))
    if trace is not None:
        from trt_native.bench.trace import chrome_trace

        layers = (about.layers or ()) if about is not None else ()
        write_text(trace, json_module.dumps(chrome_trace(report, layers)))


def _supply(
    given: GivenInputs, shapes: dict[str, Shape], seed: int
) -> Callable[[Sequence[PlanTensor]], dict[str, np.ndarray[Any, Any]]]:
    """A function that makes inputs: as requested for the first plan, of its shapes for others."""
    import numpy as np

    first: dict[str, Shape] = {}

    def supply(tensors: Sequence[PlanTensor]) -> dict[str, np.ndarray[Any, Any]]:
        own, generator = given.read(tensors), np.random.default_rng(seed)
        arrays = fill_random(tensors, own, first or shapes, generator)
        first.update({n: array.shape for n, array in arrays.items() if n not in own})
        return arrays

    return supply


def _print(report: BenchReport) -> None:
    from trt_native.bench.tables import (
        LAYER_COLUMNS,
        fact_rows,
        layer_rows,
        phase_table,
        ratio_lines,
    )

    path = report.plan["path"]
    table(path, *phase_table(report))
    table("", ("", ""), fact_rows(report))
    if report.layers is not None:
        table(f"Layers ({len(report.layers)})", LAYER_COLUMNS, layer_rows(report))
    if report.comparison is not None:
        for line in ratio_lines(path, report.comparison):
            stdout.print(line, markup=False, highlight=False)
    stdout.print(report.bottleneck.text, markup=False, highlight=False)
