"""Manifests of schema 1, read as ones of schema 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trt_native.units import counted

__all__ = ["from_schema_1"]

_PASSES = {
    "pinned_fp32_nodes": "pin_fp32_nodes",
    "quantized": "quantize",
    "rewritten": "autocast",
    "mended": "parser_workarounds",
    "split_products": "split_fp32_products",
}
"""Property of ``precision`` to the pass that it records, in the order of a build."""

_OPTIONS = {"opt_profile": "add_opt_shape_profiles"}
_QUANTIZATION_OPTIONS = {
    "calibration": "calibration_cache",
    "data": "calibration_data",
    "method": "calibration_method",
    "activations": "calibration_runner",
    "memory_bytes": "calibration_memory_bytes",
    "skip": "exclude",
}


def from_schema_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a manifest, as JSON holds it.

    Raises:
        KeyError, AttributeError, TypeError: a property is missing or malformed.
    """
    precision = dict(data["precision"])
    passes = [
        _record(name, precision.pop(key)) for key, name in _PASSES.items() if key in precision
    ]
    options = _renamed(data["options"], _OPTIONS)
    if "quantization" in options:
        options["quantization"] = _renamed(options["quantization"], _QUANTIZATION_OPTIONS)
    return {**data, "schema": 2, "precision": precision, "passes": passes, "options": options}


def _record(name: str, found: Any) -> dict[str, Any]:
    if isinstance(found, int):
        return {
            "name": name,
            "nodes": {"nodes": found},
            "summary": f"{name}: {counted(found, 'node')}",
        }
    counts = found.get("quantized", found.get("reduced", found))
    details = {} if counts is found else dict(found)
    text = ", ".join(f"{count} {operator}" for operator, count in counts.items())
    return {"name": name, "nodes": dict(counts), **details, "summary": f"{name}: {text}"}


def _renamed(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in options.items()}
