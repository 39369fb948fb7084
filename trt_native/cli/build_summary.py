"""Summary tables of ``trt-native build`` and of its dry run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_native.cli.console import print_json, stdout, table
from trt_native.cli.html import TENSOR_COLUMNS, tensor_rows
from trt_native.cli.quantize import coverage_text, engine_layers_text
from trt_native.config import BuildConfig, Precision
from trt_native.shapes import format_shape
from trt_native.units import format_bytes

if TYPE_CHECKING:
    from trt_native.builder.build import BuildDecisions
    from trt_native.builder.isolated import Outcome
    from trt_native.plans.manifest import Manifest

__all__ = ["print_dry_run", "print_summary"]


def print_summary(target: Path, outcome: Outcome) -> None:
    """Print what was built, as tables."""
    manifest = outcome.manifest
    times = ", ".join(f"{name} {value:.1f} s" for name, value in manifest.seconds.items())
    rows = [
        ("plan", f"{target} ({format_bytes(manifest.plan_bytes)})"),
        ("backend", f"{manifest.backend} {manifest.backend_version}"),
        ("built on", manifest.gpu or "a machine without a GPU"),
        ("for", _targets_text(manifest)),
        ("precision", _precision_text(manifest)),
        ("time", times),
    ]
    if outcome.attempts:
        rows.append(("failed before", "\n".join(map(str, outcome.attempts))))
        rows.append(("built with", _memory_text(manifest)))
    if outcome.cached:
        rows[-1] = ("cached", f"built {manifest.created} ({times})")
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


def _precision_text(manifest: Manifest) -> str:
    precision = manifest.precision
    text = str(precision["applied"])
    quantized, rewritten = precision.get("quantized"), precision.get("rewritten")
    if quantized:
        text += f": {_quantized_text(quantized)}"
        text += f"\nrest {rewritten['target']}" if rewritten else "\nrest as in the model"
    if rewritten:
        reduced = sum(rewritten["reduced"].values())
        kept = sum(sum(operators.values()) for operators in rewritten["kept"].values())
        text += f" ({reduced} nodes; {kept} stay FP32, {rewritten['casts']} casts)"
    elif "calibrated" in precision:
        text += f" by {precision['calibrated']['by']}, which chooses the layers"
        text += f" ({precision['pinned_fp32_nodes']} nodes pinned to FP32)"
    elif "pinned_fp32_nodes" in precision:
        text += f" ({precision['pinned_fp32_nodes']} nodes pinned to FP32)"
    if split := sum(precision.get("split_fp32_products", {}).values()):
        text += f"\nFP32 products of split operands, which are exact in TF32: {split}"
    if mended := precision.get("mended"):
        listed = ", ".join(f"{count} {operator}" for operator, count in mended.items())
        text += f"\nwritten otherwise for TensorRT, which would misread them: {listed}"
    if precision.get("engine_layers"):
        text += f"\nin the engine: {engine_layers_text(precision['engine_layers'])}"
    return text


def _quantized_text(record: Mapping[str, Any]) -> str:
    text = coverage_text(record)
    calibration = record["calibration"]
    if calibration.get("runner"):
        text += f"\nranges from {calibration['batches']} batches run by {calibration['runner']}"
    return f"{text}\n{record['backend_lacks']}" if record["backend_lacks"] else text


def print_dry_run(model: Path, config: BuildConfig, backend: str, json: bool) -> None:
    """Print what would be built, as tables or JSON."""
    from trt_native.backends.registry import load_backend
    from trt_native.builder.build import outline

    chosen = load_backend(backend)
    planned = outline(model, config, backend=chosen)
    if json:
        print_json({"backend": chosen.name, **_outline_json(planned, config)})
        return
    typing = "from the graph" if planned.strongly_typed else "from builder flags"
    if planned.calibrates:
        typing += "; TensorRT calibrates and chooses the layers"
    if planned.rewrites:
        typing += ", which is rewritten"
    precision = "as in the model" if planned.precision is Precision.AUTO else planned.precision
    rows = [
        ("backend", f"{chosen.name} {chosen.version}"),
        ("precision", f"{precision} (types {typing})"),
        ("workspace", format_bytes(planned.workspace_bytes)),
    ]
    if planned.quantization is not None:
        rows.insert(2, ("quantized", _quantized_text(planned.quantization)))
    table("Would build", ("", ""), rows)
    ranges = [
        (index, name, *((format_shape(s)) for s in (r.min, r.opt, r.max)))
        for index, profile in enumerate(planned.profiles)
        for name, r in (*profile.shapes.items(), *profile.values.items())
    ]
    if ranges:
        table("Profiles", ("", "input", "min", "opt", "max"), ranges)
    else:
        stdout.print("No profiles: every input is static.")


def _outline_json(planned: BuildDecisions, config: BuildConfig) -> dict[str, object]:
    return {
        "precision": str(planned.precision),
        "strongly_typed": planned.strongly_typed,
        "rewrites": planned.rewrites,
        "workspace_bytes": planned.workspace_bytes,
        "options": config.options(),
        "calibrates": planned.calibrates,
        "quantization": planned.quantization,
        "profiles": [
            {
                "shapes": {name: str(r) for name, r in profile.shapes.items()},
                "values": {name: str(r) for name, r in profile.values.items()},
            }
            for profile in planned.profiles
        ],
    }
