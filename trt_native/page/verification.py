"""The page of a verification."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from trt_native.page.content import Bar, Bars, Page, Status, Table
from trt_native.page.graph import Graph
from trt_native.page.model_graph import input_shapes, model_graph
from trt_native.page.render import render
from trt_native.verify import LayerReport, Verification
from trt_native.verify.tables import (
    COMPARISON_COLUMNS,
    TENSOR_COLUMNS,
    comparison_row,
    output_rows,
    tensor_rows,
)

__all__ = ["verify_page"]

_DECADES = 8  # that the bars of errors span, below the largest


def verify_page(
    plan: str,
    reference: str,
    found: Verification,
    origin: str,
    *,
    layers: LayerReport | None = None,
    model: ir.Model | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """A verification: its result, errors of outputs and of batches, and tensors inside.

    Args:
        plan: Path of the plan.
        reference: What it was compared with.
        found: The comparison.
        origin: Where the limit of the relative error is from.
        layers: The search for the first mismatch, if it was made.
        model: The ONNX model, whose nodes are drawn with what mismatches.
        remarks: Sentences below the facts.
    """
    problems = {name: reasons for name, reasons in found.problems().items() if reasons}
    failed = [f"{name}: {'; '.join(reasons)}" for name, reasons in problems.items()]
    facts = [
        ("reference", reference),
        ("limits", f"{found.thresholds}; the relative error is {origin}"),
        ("batches", f"{len(found.batches):,}"),
        ("outputs", f"{len(found.worst()):,}"),
    ]
    if layers is not None:
        facts += [
            ("tensors compared", f"{layers.compared:,} of {layers.tensors:,}"),
            ("their reference", layers.reference),
            ("plans built", f"{layers.plans:,}"),
        ]
    skipped = [f"Not compared: {label}: {reason}" for label, reason in found.skipped.items()]
    graphs = [] if model is None else [_marked(model, layers)]
    return render(
        Page(
            title=plan,
            kind="Verification of a plan",
            status=_status(found, len(problems)),
            facts=facts,
            remarks=[*remarks, *failed, *skipped],
            bars=_bars(found, layers),
            graphs=[graph for graph in graphs if graph.nodes],
            tables=_tables(found, layers),
        )
    )


def _status(found: Verification, failed: int) -> Status:
    if found.passed:
        return Status("good", "PASSED: all outputs are within the tolerance.")
    return Status("bad", f"FAILED: {failed} of {len(found.worst())} outputs exceed the tolerance.")


def _bars(found: Verification, layers: LayerReport | None) -> list[Bars]:
    """Relative errors on a logarithmic scale that ends at the largest of all and the limit."""
    limit = found.thresholds.max_relative_error
    problems = found.problems()
    charts = [
        (
            "Relative L2 error of outputs",
            [(c.name, c.relative_l2, bool(problems[c.name])) for c in found.worst()],
        ),
    ]
    if len(found.batches) > 1:
        rows = [
            (label, max(c.relative_l2 for c in batch), any(map(found.thresholds.problems, batch)))
            for label, batch in zip(found.labels, found.batches, strict=True)
        ]
        charts.append(("Largest error of each batch", rows))
    if layers is not None:
        worst = [(r.name, r.comparison.relative_l2, not r.agrees) for r in layers.worst]
        charts.append(("Tensors inside, the worst first", worst))
    note = "logarithmic" + ("" if limit is None else f"; the limit is {limit:g}")
    return [Bars(title, _error_bars(rows, limit), note) for title, rows in charts if rows]


def _error_bars(rows: Sequence[tuple[str, float, bool]], limit: float | None) -> list[Bar]:
    finite = [error for _, error, _ in rows if math.isfinite(error)]
    top = max([*finite, limit or 0.0]) or 1.0

    def share(error: float) -> float:
        if not math.isfinite(error):
            return 1.0
        return 0.0 if error <= 0 else max(0.01, 1 + math.log10(error / top) / _DECADES)

    return [
        Bar(name, share(error), f"{error:.3g}", "bad" if fails else "good", title=name)
        for name, error, fails in rows
    ]


def _tables(found: Verification, layers: LayerReport | None) -> list[Table]:
    numeric = frozenset(range(3, 3 + len(COMPARISON_COLUMNS)))
    columns: tuple[str, ...] = ("output", "dtype", "shape", *COMPARISON_COLUMNS, "")
    tables = [Table("Outputs, the worst of all batches", columns, output_rows(found), "", numeric)]
    if len(found.batches) > 1:
        rows = [
            (label, c.name, c.dtype, *comparison_row(c))
            for label, batch in zip(found.labels, found.batches, strict=True)
            for c in batch
        ]
        columns = ("batch", "output", "dtype", *COMPARISON_COLUMNS)
        tables.append(Table("Batches", columns, rows, numeric=numeric, open=False))
    if layers is not None:
        rows = tensor_rows(layers)
        tables.append(Table("Tensors inside", TENSOR_COLUMNS, rows, numeric=numeric))
    return tables


def _marked(model: ir.Model, layers: LayerReport | None) -> Graph:
    """The model's graph, with the nodes whose tensors mismatch marked."""
    graph = model_graph(model, input_shapes(model, {})).graph
    wrong = {r.name: r for r in (layers.worst if layers else ()) if not r.agrees}
    first = layers.first.name if layers and layers.first else None

    def mark(outputs: Sequence[int]) -> str:
        names = [graph.tensors[index].name for index in outputs]
        if first in names:
            return "first mismatch"
        errors = [f"{wrong[n].comparison.relative_l2:.3g}" for n in names if n in wrong]
        return f"mismatch: relative L2 {errors[0]}" if errors else ""

    nodes = tuple(replace(node, mark=mark(node.outputs)) for node in graph.nodes)
    return replace(graph, nodes=nodes)
