"""Shared by the commands that write pages and other files about a graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trt_native.cli.console import stderr
from trt_native.errors import TrtNativeError

if TYPE_CHECKING:
    import onnx_ir as ir

    from trt_native.plans.manifest import Manifest

__all__ = ["model_of", "say_written", "write_plan_page", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write a file whole, or not at all, and say so."""
    from trt_native.files import atomic_write

    with atomic_write(path) as opened:
        opened.write(text.encode(errors="replace"))
    say_written(path)


def say_written(path: Path) -> None:
    """Name a file that was written, on standard error."""
    stderr.print(f"written to {path}", markup=False, highlight=False)


def model_of(
    manifest: Manifest | None, plan: Path, model: Path | None = None
) -> tuple[ir.Model | None, list[str]]:
    """The model that a plan was built from, and why its nodes are not shown where it is not there.

    Args:
        manifest: The plan's manifest.
        plan: Path of the plan, next to which the model is looked for.
        model: Where the model is, if that is known.
    """
    from trt_native.graph.onnx_file import read_model
    from trt_native.plans.manifest import find_model

    if manifest is None:
        return None, []
    try:
        note = ""
        if model is None:
            model, note = find_model(manifest, plan)
            if model is None or "changed" in note:
                return None, [f"The model's nodes are not shown: {note}."]
        return read_model(model), []
    except TrtNativeError as error:
        return None, [f"The model's nodes are not shown: {error.message}"]


def write_plan_page(plan: Path, html: Path, model: Path) -> None:
    """Write the page about a plan that was built from a model."""
    from trt_native.inspection import inspect_plan
    from trt_native.page import plan_page
    from trt_native.plans.plan import Plan

    report = inspect_plan(Plan.open(plan))
    write_text(html, plan_page(report, None, *model_of(report.manifest, plan, model)))
