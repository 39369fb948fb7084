"""Facts about plans as rows of tables, for the terminal and for pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trt_native.plans.manifest import PlanTensor

__all__ = ["TENSOR_COLUMNS", "engine_layers_text", "tensor_rows"]

TENSOR_COLUMNS = ("", "name", "dtype", "shape", "min:opt:max by profile")


def tensor_rows(tensors: Iterable[PlanTensor]) -> list[tuple[str | tuple[str, ...], ...]]:
    """A plan's inputs and outputs as rows under ``TENSOR_COLUMNS``."""
    return [
        (
            t.mode,
            t.name,
            t.describe_type(),
            t.describe_shape(),
            tuple(map(str, t.profiles or t.values)),
        )
        for t in tensors
    ]


def engine_layers_text(record: Mapping[str, Any] | None) -> str:
    """Number of an engine's layers that compute in INT8 or FP8, from its manifest."""
    if record is None:
        return "unknown: the engine was not inspected where it was built, or does not report it"
    counts = {precision.upper(): len(record.get(precision, ())) for precision in ("int8", "fp8")}
    found = " and ".join(f"{count} in {name}" for name, count in counts.items() if count)
    return f"{found or 'none'} of {record['layers']} layers"
