"""The page of an ONNX model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from trt_native.graph.onnx_file import ModelSummary, dtype_name
from trt_native.page.content import Bars, Cell, Page, Table, bars_of, precision_bars
from trt_native.page.graph import Node, precision_of, shape_text
from trt_native.page.model_graph import ModelGraph, input_shapes, model_graph
from trt_native.page.render import render
from trt_native.shapes import TensorSpec
from trt_native.units import counted, format_bytes

__all__ = ["model_bars", "model_page"]

_THOUSANDS = ("", "k", "M", "G", "T", "P")


def model_page(
    path: Path, model: ir.Model, summary: ModelSummary, extents: Mapping[str, int] | None = None
) -> str:
    """An ONNX model: its facts, shares of operators, weights and multiply-adds, graph and tensors.

    Args:
        path: Where it was read from.
        model: The model.
        summary: Its summary.
        extents: Extents of dynamic dimensions, at which multiply-adds are counted; 1 for others.
    """
    found = model_graph(model, input_shapes(model, extents or {}))
    problem = f"Shapes inside the model are not known: {found.problem}"
    sides = (("input", summary.inputs), ("output", summary.outputs))
    tensors = [(mode, t.name, t.dtype, _shape_text(t)) for mode, side in sides for t in side]
    weights = _weights_by_type(model)
    return render(
        Page(
            title=str(path),
            kind="ONNX model",
            facts=list(_facts(summary, found)),
            remarks=[problem] if found.problem else [],
            bars=[*model_bars(found), *weights],
            graphs=[found.graph] if found.graph.nodes else [],
            tables=[
                Table("Tensors", ("", "name", "dtype", "shape"), tensors),
                *_metadata_table(summary),
                _operator_table(summary),
            ],
        )
    )


def _facts(summary: ModelSummary, found: ModelGraph) -> Iterator[tuple[str, Cell]]:
    nodes = found.graph.nodes
    products = sum(node.multiply_adds or 0 for node in nodes)
    yield "producer", summary.producer or "unknown"
    opsets = ", ".join(f"{domain or 'ai.onnx'} {opset}" for domain, opset in summary.opsets.items())
    yield "opset", opsets
    yield "nodes", f"{len(nodes):,}"
    yield "parameters", f"{summary.parameters:,} ({format_bytes(summary.weight_bytes)})"
    if products:
        yield "multiply-adds", " ".join(filter(None, (short_number(products), _assumed(found))))
    yield "file", format_bytes(summary.file_bytes)


def short_number(count: float) -> str:
    """A count with three digits, such as ``1.23 G``."""
    step = 0
    while count >= 1000 and step < len(_THOUSANDS) - 1:
        count /= 1000
        step += 1
    return f"{count:.3g} {_THOUSANDS[step]}".strip()


def _shape_text(tensor: TensorSpec) -> str:
    if tensor.shape is None:
        return "unknown rank"
    return shape_text(tensor.shape)


def model_bars(found: ModelGraph) -> list[Bars]:
    """Charts of a model's operators, precisions, weights and multiply-adds."""
    nodes = found.graph.nodes
    shown = [node for node in nodes if not node.computes_shapes]
    hidden = len(nodes) - len(shown)
    note = f"without {counted(hidden, 'node')} that only compute shapes or constants"
    operators = Counter(node.kind for node in shown)
    charts = [
        bars_of(
            "Operators", {k: float(n) for k, n in operators.items()}, note=note if hidden else ""
        ),
        precision_bars("Nodes by precision", (node.precision for node in shown)),
    ]
    weights = Counter[str]()
    for node in nodes:
        weights[_group(node)] += node.weight_bytes
    if len(_positive(weights)) > 1:
        sizes = {name: format_bytes(size) for name, size in weights.items()}
        charts.append(bars_of("Weights by module", _positive(weights), sizes))
    charts += _multiply_add_bars(found, nodes)
    return charts


def _assumed(found: ModelGraph) -> str:
    """The extents at which multiply-adds were counted."""
    extents = ", ".join(f"{name}={extent}" for name, extent in found.extents.items())
    return f"with {extents}" if extents else ""


def _multiply_add_bars(found: ModelGraph, nodes: Sequence[Node]) -> Iterator[Bars]:
    note = _assumed(found)
    if found.uncounted:
        note += f"{', ' if note else ''}{counted(found.uncounted, 'product')} of unknown shape"
    for title, name_of, least in (
        ("Multiply-adds by operator", lambda node: node.kind, 1),
        ("Multiply-adds by module", _group, 2),
    ):
        sums = Counter[str]()
        for node in nodes:
            sums[name_of(node)] += node.multiply_adds or 0
        counts = _positive(sums)
        if len(counts) >= least:
            texts = {name: short_number(count) for name, count in counts.items()}
            yield bars_of(title, counts, texts, note=note)


def _positive(counts: Mapping[str, int]) -> dict[str, float]:
    return {name: float(count) for name, count in counts.items() if count}


def _group(node: Node) -> str:
    """The two outermost modules that a node is in."""
    return ".".join(node.path[:2]) or "(no module)"


def _weights_by_type(model: ir.Model) -> list[Bars]:
    sizes = Counter[str]()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                dtype = precision_of(dtype_name(value.const_value.dtype))
                sizes[dtype] += int(value.const_value.nbytes)
    if not sizes:
        return []
    texts = {name: format_bytes(size) for name, size in sizes.items()}
    tones = dict(zip(sizes, sizes, strict=True))
    return [bars_of("Weights by type", _positive(sizes), texts, tones=tones)]


def _metadata_table(summary: ModelSummary) -> list[Table]:
    rows = list(summary.metadata.items())
    return [Table("Metadata of the file", ("key", "value"), rows, open=False)] if rows else []


def _operator_table(summary: ModelSummary) -> Table:
    rows = [(name, f"{count:,}") for name, count in summary.operators.items()]
    total = counted(sum(summary.operators.values()), "node")
    columns = ("operator", "count")
    return Table(f"Operators ({total})", columns, rows, numeric=frozenset({1}), open=False)
