"""Comparisons as rows of tables, for the terminal and for pages."""

from __future__ import annotations

from trt_native.shapes import format_shape
from trt_native.verify.check import Verification
from trt_native.verify.layer_report import LayerReport
from trt_native.verify.metrics import OutputComparison

__all__ = [
    "COMPARISON_COLUMNS",
    "TENSOR_COLUMNS",
    "comparison_row",
    "output_rows",
    "tensor_rows",
]

COMPARISON_COLUMNS = ("relative L2", "max abs", "cosine", "PSNR dB", "NaN", "Inf")
TENSOR_COLUMNS = ("tensor", "node", "operator", *COMPARISON_COLUMNS, "seen as", "")


def comparison_row(found: OutputComparison) -> tuple[str, ...]:
    """The figures under ``COMPARISON_COLUMNS``; with a star where the floor was the measure."""
    return (
        f"{found.relative_l2:.3g}{'*' if found.floored else ''}",
        f"{found.max_abs:.3g}",
        f"{found.cosine:.7g}",
        f"{found.psnr:.4g}",
        _both(found.nan),
        _both(found.inf),
    )


def _both(counts: tuple[int, int]) -> str:
    return f"{counts[0]} / {counts[1]}" if any(counts) else "0"


def output_rows(found: Verification) -> list[tuple[str, ...]]:
    """Name, type, shape, figures and verdict of each output, the worst of all batches."""
    problems = found.problems()
    return [
        (
            c.name,
            c.dtype,
            format_shape(c.shape),
            *comparison_row(c),
            "FAILS" if problems[c.name] else "agrees",
        )
        for c in found.worst()
    ]


def tensor_rows(report: LayerReport) -> list[tuple[str, ...]]:
    """The tensors with the largest errors under ``TENSOR_COLUMNS``."""
    return [
        (
            result.name,
            result.node,
            result.operator,
            *comparison_row(result.comparison),
            result.observed,
            "matches" if result.agrees else "mismatch",
        )
        for result in report.worst
    ]
