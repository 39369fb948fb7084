"""Summaries that ``trt-native build`` prints of a build or a dry run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_native.builder.isolated import Job, Outcome, decide_in_child
from trt_native.cli.console import print_json, stderr, stdout, table
from trt_native.plans.manifest import runtime_cache_path
from trt_native.plans.tables import TENSOR_COLUMNS, engine_layers_text, tensor_rows
from trt_native.units import format_bytes

if TYPE_CHECKING:
    from trt_native.plans.manifest import Manifest

__all__ = ["build_document", "print_dry_run", "print_summary"]


def build_document(target: Path, outcome: Outcome) -> dict[str, Any]:
    """What ``--json`` prints of a plan that was built, or taken from the cache."""
    warmed = {} if outcome.warming_s is None else {"warming_s": outcome.warming_s}
    return {
        "path": str(target),
        "cached": outcome.cached,
        **warmed,
        "failed_attempts": [attempt.to_json() for attempt in outcome.attempts],
        **outcome.manifest.to_json(),
    }


def print_summary(target: Path, outcome: Outcome) -> None:
    """Print the summary of a plan that was built, or taken from the cache."""
    manifest = outcome.manifest
    times = ", ".join(f"{name} {value:.1f} s" for name, value in manifest.seconds.items())
    rows: list[tuple[str, object]] = [
        ("plan", f"{target} ({format_bytes(manifest.plan_bytes)})"),
        ("backend", f"{manifest.backend} {manifest.backend_version}"),
        ("built on", manifest.gpu or "a machine without a GPU"),
        ("for", _targets_text(manifest)),
        ("precision", _precision_lines(manifest)),
        *_pass_rows(manifest.passes),
        ("cached", f"built {manifest.created} ({times})") if outcome.cached else ("time", times),
    ]
    if outcome.warming_s is not None:
        cache = runtime_cache_path(target)
        rows.append(("kernels", f"in {cache}, compiled in {outcome.warming_s:.1f} s"))
    if outcome.attempts:
        rows.append(("failed before", outcome.attempts))
        rows.append(("built with", _memory_text(manifest)))
    table("Unchanged: from the cache" if outcome.cached else "Built", ("", ""), rows)
    table("Tensors", TENSOR_COLUMNS, tensor_rows(manifest.tensors))


def _memory_text(manifest: Manifest) -> str:
    options = manifest.options
    workspace = format_bytes(options["workspace_bytes"])
    level = options.get("optimization_level", "the default")
    return f"workspace {workspace}, optimization level {level}"


def _targets_text(manifest: Manifest) -> str:
    if manifest.compute_capabilities:
        return "compute capability " + ", ".join(manifest.compute_capabilities)
    return "every GPU that the backend supports"


def _precision_lines(manifest: Manifest) -> tuple[str, ...]:
    precision = manifest.precision
    text = manifest.arithmetic
    if "calibrated" in precision:
        text += f" by {precision['calibrated']['by']}, which chooses the layers"
    if not precision.get("engine_layers"):
        return (text,)
    return (text, f"in the engine: {engine_layers_text(precision['engine_layers'])}")


def _pass_rows(passes: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (record["name"], tuple(record["summary"].split("\n")))
        for record in passes
        if record["summary"]
    ]


def print_dry_run(job: Job, json: bool) -> None:
    """Print the decisions of a build, whose model its passes and TensorRT's parser have taken."""
    from trt_native.progress_bars import ProgressDisplay

    with ProgressDisplay(stderr) as progress:
        decisions = decide_in_child(job, progress)
    version = decisions.pop("version")
    if json:
        print_json({**decisions, "options": job.config.options()})
        return
    typing = "from the graph" if decisions["strongly_typed"] else "from builder flags"
    if decisions["calibrates"]:
        typing += "; TensorRT calibrates and chooses the layers"
    rows = [
        ("backend", f"{decisions['backend']} {version}"),
        ("precision", f"{decisions['precision']} (types {typing})"),
        *_pass_rows(decisions["passes"]),
        ("workspace", format_bytes(decisions["workspace_bytes"])),
    ]
    table("Would build", ("", ""), rows)
    ranges = [
        (index, name, *(text.split(":") if ":" in text else [text] * 3))
        for index, profile in enumerate(decisions["profiles"])
        for name, text in (*profile["shapes"].items(), *profile["values"].items())
    ]
    if ranges:
        table("Profiles", ("", "input", "min", "opt", "max"), ranges)
    else:
        stdout.print("No profiles: every input is static.")
