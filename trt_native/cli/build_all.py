"""``trt-native build-all``."""

from __future__ import annotations

import json as json_format
import logging
from contextlib import redirect_stdout
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_native.cli.console import print_json, report_errors, stderr, stdout, table
from trt_native.cli.options import RetryOption
from trt_native.errors import SpecError
from trt_native.files import atomic_write, check_writable
from trt_native.units import counted, format_bytes, parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trt_native.ray import BuildFailure, BuildRow, FarmReport

__all__ = ["build_all"]

_LOGGER = logging.getLogger(__name__)
_MOST_ROWS = 200


@report_errors
def build_all(
    matrix: Annotated[Path, typer.Argument(metavar="MATRIX.yaml", help="The matrix of builds.")],
    store: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|URL",
            help="Where plans go: a folder that all machines share, or a URL of fsspec such as"
            " s3://bucket/plans. \\[default: the matrix's]",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="auto|HOST:PORT",
            help="The Ray cluster. \\[default: a Ray on this machine, for this command alone]",
        ),
    ] = None,
    restarts: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="How often a build is started again whose node is lost."
        ),
    ] = 3,
    wait: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long to wait for a node that a build needs, where the cluster has none.",
            show_default="no time",
        ),
    ] = None,
    retry: RetryOption = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Write the report to this file, as --json has it."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Build the plans of a matrix of models, precisions, profiles and targets on a Ray cluster.

    Plans that are in the store are not built again. The exit code is 1 if a build failed.

    $ trt-native build-all matrix.yaml
    $ trt-native build-all matrix.yaml --address auto
    """
    from trt_native import ray
    from trt_native.progress_bars import ProgressDisplay

    wait_s = parse_duration(wait) if wait is not None else 0.0
    if report is not None:
        check_writable(report, reads=(matrix,))
    builds = ray.read_matrix(matrix)
    with ProgressDisplay(stderr) as progress, redirect_stdout(_RayOutput()):
        found = ray.build_all(
            builds,
            store=store,
            address=address,
            restarts=restarts,
            retry=retry,
            wait_s=wait_s,
            progress=progress,
        )
    document = found.to_json()
    if report is not None:
        _write(report, document)
    if json:
        print_json(document)
    else:
        _print_report(found)
    if found.counts["failed"]:
        raise typer.Exit(1)


class _RayOutput(TextIOBase):
    """What Ray prints about lost workers, as log lines: results go to standard output."""

    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            _LOGGER.info("%s", line)
        return len(text)


def _write(path: Path, document: object) -> None:
    try:
        with atomic_write(path) as file:
            file.write(json_format.dumps(document, indent=1).encode() + b"\n")
    except OSError as error:
        raise SpecError(f"cannot write {path}: {error.strerror}") from None


def _print_report(report: FarmReport) -> None:
    shown = report.rows
    if len(shown) > _MOST_ROWS:  # of many, what a person must look at
        shown = tuple(row for row in shown if row.state == "failed")
    if shown:
        columns = ("model", "precision", "profile", "target", "result", "time", "size")
        table("Builds", columns, map(_cells, shown))
    _print_failures(report.rows)
    states = ", ".join(f"{count} {state}" for state, count in report.counts.items())
    total = counted(len(report.rows), "build")
    stdout.print(f"{total}: {states}; {report.seconds:.1f} s; {report.store}", highlight=False)


def _print_failures(rows: Iterable[BuildRow]) -> None:
    """Print each failure once, with the builds that it is that of."""
    names: dict[BuildFailure, list[str]] = {}
    for row in rows:
        if row.failure is not None:
            names.setdefault(row.failure, []).append(_name(row))
    for failure, (first, *others) in names.items():
        more = f" (and {counted(len(others), 'other')})" if others else ""
        problems = [f"- {problem}" for problem in failure.problems]
        lines = (f"{first}{more}: {failure.message}", *problems, *failure.details)
        stderr.print("error: ", style="bold red", end="")
        stderr.print("\n  ".join(lines), highlight=False)


def _name(row: BuildRow) -> str:
    build = row.build
    return ", ".join(filter(None, (build.model, build.precision, build.profile, build.target.name)))


def _cells(row: BuildRow) -> tuple[str, ...]:
    build, plan = row.build, row.plan
    restarted = f" ({row.starts} starts)" if row.starts > 1 else ""
    time = f"{plan.build_s:.1f} s" if plan is not None and row.state == "built" else ""
    size = format_bytes(plan.bytes) if plan is not None else ""
    state = row.state + restarted
    return build.model, build.precision, build.profile, build.target.name, state, time, size
