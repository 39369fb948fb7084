"""``trt-native diff``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trt_native.cli.console import print_json, report_errors, stderr, stdout, table
from trt_native.cli.options import AllowHostCode, IgnoreManifest, LeanRuntime, PluginsOption
from trt_native.cli.pages import write_text

__all__ = ["diff"]

_HELP = "A plan, or what 'trt-native inspect --json' printed of one where there is a GPU."


@report_errors
def diff(
    left: Annotated[Path, typer.Argument(metavar="A.plan", help=_HELP)],
    right: Annotated[Path, typer.Argument(metavar="B.plan", help=_HELP)],
    html: Annotated[
        Path | None,
        typer.Option(help="Write one self-contained page with both plans to this file."),
    ] = None,
    ignore_manifest: IgnoreManifest = False,
    allow_host_code: AllowHostCode = False,
    lean_runtime: LeanRuntime = None,
    plugins: PluginsOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the differences as JSON.")] = False,
) -> None:
    """Compare two plans. Exit code 0: no difference was found; 1: they differ.

    $ trt-native diff old.plan new.plan
    $ trt-native diff old.plan new.plan --html diff.html
    """
    from trt_native.graph.outputs import check_outputs
    from trt_native.inspection import diff_plans, read_report

    if html is not None:
        check_outputs([html], reads=[left, right])
    one, other = (
        read_report(
            path,
            ignore_manifest=ignore_manifest,
            allow_host_code=allow_host_code,
            lean_runtime=lean_runtime,
            plugins=plugins or (),
        )
        for path in (left, right)
    )
    found = diff_plans(one, other)
    if html is not None:
        from trt_native.page import diff_page

        write_text(html, diff_page(one, other, found))
    if json:
        print_json({"left": str(left), "right": str(right), **asdict(found)})
    else:
        if found.differences:
            rows = (
                (d.section, d.name, *("-" if side is None else side for side in (d.left, d.right)))
                for d in found.differences
            )
            table("Differences", ("", "", str(left), str(right)), rows)
        else:
            same = "byte for byte" if found.same_bytes else "in all that was compared"
            stdout.print(f"The plans are the same {same}.")
        for line in found.not_compared:
            stderr.print(f"not compared: {line}", markup=False, highlight=False)
    if found.differences:
        raise typer.Exit(1)
