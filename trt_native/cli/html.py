"""Reports as one self-contained HTML page: no scripts, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from trt_native.errors import shortened
from trt_native.plans.prefix import describe_prefix
from trt_native.shapes import format_shape
from trt_native.units import format_bytes

if TYPE_CHECKING:
    from trt_native.inspection import LayerTensor, PlanReport
    from trt_native.plans.manifest import PlanTensor

__all__ = ["TENSOR_COLUMNS", "GraphNode", "page", "plan_page", "tensor_rows"]

_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff; }
table { border-collapse: collapse; margin: 0 0 2em; }
td, th { border: 1px solid #ccc; padding: 2px 8px; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; white-space: pre-line; }
.graph { overflow: auto; max-height: 90vh; border: 1px solid #ccc; }
text { font: 11px system-ui, sans-serif; }
text.kind { font-weight: bold; }
path { fill: none; stroke: #999; }
rect { stroke: #666; }
"""
_COLORS = {
    "fp32": "#dce9f7",
    "fp16": "#dcf3dc",
    "bf16": "#e3f3d0",
    "fp8": "#fde9c9",
    "int8": "#fbdcd2",
}
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 210, 58, 16, 26
_LETTERS = 34  # that fit into a box
_Table = tuple[str, Sequence[str], Iterable[Iterable[object]]]

TENSOR_COLUMNS = ("", "name", "dtype", "shape", "min:opt:max by profile")


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A box of the graph.

    Attributes:
        name: Its name.
        kind: Type of the layer.
        inputs: Names of the tensors it reads.
        outputs: Names of the tensors it writes.
        shape: Its first output, for a person.
        precision: Decides the colour.
        note: One more line, such as its time.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shape: str = ""
    precision: str = ""
    note: str = ""


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


def plan_page(report: PlanReport, times: Mapping[str, float] | None = None) -> str:
    """A plan's facts, tensors, profiles, and where they are known its layers as table and graph."""
    facts = [("made by", f"{report.product} {report.version}")]
    facts.append(("size", format_bytes(report.plan_bytes)))
    if report.activation_bytes is not None:
        facts.append(("activations", format_bytes(report.activation_bytes)))
    if report.manifest:
        manifest = report.manifest
        facts += [
            ("built", f"{manifest.created} on {manifest.gpu or 'a machine without a GPU'}"),
            ("for", ", ".join(manifest.compute_capabilities) or "every GPU of the backend"),
            ("model", str(manifest.model["file"])),
            ("precision", manifest.arithmetic),
            *((f"option {name}", str(value)) for name, value in manifest.options.items()),
        ]
    facts += describe_prefix(report.prefix)
    tables: list[_Table] = [("", ("", ""), facts)]
    if report.tensors is not None:
        tables.append(("Tensors", TENSOR_COLUMNS, tensor_rows(report.tensors)))
    layers = report.layers
    if layers is None:
        return page(report.path, tables, (), f"The layers are not known: {report.layers_error}")
    known = times or {}
    notes = [f"{known[layer.name]:.4f} ms" if layer.name in known else "" for layer in layers]
    tables.append(
        (
            "Layers",
            ("name", "type", "precision", "output", "tactic", "time"),
            [
                (x.name, x.kind, x.precision, _tensor_text(x.outputs), x.tactic or "", note)
                for x, note in zip(layers, notes, strict=True)
            ],
        )
    )
    nodes = [
        GraphNode(
            name=layer.name,
            kind=layer.kind,
            inputs=tuple(tensor.name for tensor in layer.inputs),
            outputs=tuple(tensor.name for tensor in layer.outputs),
            shape=_tensor_text(layer.outputs),
            precision=layer.precision,
            note=note,
        )
        for layer, note in zip(layers, notes, strict=True)
    ]
    unmatched = (
        f"{len(set(known) - {x.name for x in layers})} of the times belong to no layer here."
    )
    return page(report.path, tables, nodes, unmatched if times else "")


def _tensor_text(tensors: Sequence[LayerTensor]) -> str:
    if not tensors:
        return ""
    shape = tensors[0].shape
    extents = "" if shape is None else format_shape(shape)
    return f"{tensors[0].precision} {extents}".strip()


def page(
    title: str,
    tables: Iterable[_Table],
    nodes: Sequence[GraphNode],
    remark: str = "",
    figures: Iterable[tuple[str, str]] = (),
) -> str:
    """A page with a heading, a remark, figures, tables, and a graph if there are nodes.

    Args:
        title: Its heading.
        tables: Each a heading, the columns' names, and rows. A cell that is a tuple has several
            lines.
        nodes: Boxes of the graph.
        remark: A line below the heading.
        figures: Each a heading, and markup that goes into the page as it is.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]
    if remark:
        parts.append(f"<p>{escape(shortened(remark))}</p>")
    if nodes:
        parts += ["<h2>Graph</h2>", '<div class="graph">', *_svg(nodes), "</div>"]
    for heading, markup in figures:
        parts += [f"<h2>{escape(heading)}</h2>", markup]
    for heading, columns, rows in tables:
        parts.append(f"<h2>{escape(heading)}</h2><table>" if heading else "<table>")
        if any(columns):
            parts.append("<tr>" + "".join(f"<th>{escape(c)}</th>" for c in columns) + "</tr>")
        for row in rows:
            parts.append("<tr>" + "".join(f"<td>{_cell(c)}</td>" for c in row) + "</tr>")
        parts.append("</table>")
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _cell(content: object) -> str:
    lines = content if isinstance(content, tuple) else str(content).split("\n")
    return escape("\n".join(map(shortened, lines)))


def _svg(nodes: Sequence[GraphNode]) -> Iterator[str]:
    """Boxes in rows, each below all that it reads from; nodes come in the order of execution."""
    writers = {name: index for index, node in enumerate(nodes) for name in node.outputs}
    sources = [
        sorted({writers[name] for name in node.inputs if writers.get(name, index) < index})
        for index, node in enumerate(nodes)
    ]
    rows = _rows(sources)
    filled: dict[int, int] = {}
    places = []
    for row in rows:
        column = filled.get(row, 0)
        filled[row] = column + 1
        places.append((8 + column * (_WIDTH + _GAP_X), 8 + row * (_HEIGHT + _GAP_Y)))
    width = 16 + max(filled.values()) * (_WIDTH + _GAP_X)
    height = 16 + (max(rows) + 1) * (_HEIGHT + _GAP_Y)
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
    for (x, y), before in zip(places, sources, strict=True):
        end_x = x + _WIDTH // 2
        for index in before:
            start_x, start_y = places[index][0] + _WIDTH // 2, places[index][1] + _HEIGHT
            bend = (y - start_y) // 2
            yield (
                f'<path d="M{start_x} {start_y}C{start_x} {start_y + bend}'
                f' {end_x} {y - bend} {end_x} {y}"/>'
            )
    for (x, y), node in zip(places, nodes, strict=True):
        color = _COLORS.get(node.precision, "#f2f2f2")
        yield f"<g><title>{escape(shortened(node.name))}</title>"
        yield f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" fill="{color}"/>'
        lines = (f"{node.kind} {node.note}".strip(), node.name, node.shape)
        for number, line in enumerate(lines):
            shown = line if len(line) <= _LETTERS else line[: _LETTERS - 1] + "\u2026"
            kind = ' class="kind"' if number == 0 else ""
            yield f'<text{kind} x="{x + 6}" y="{y + 17 + 16 * number}">{escape(shown)}</text>'
        yield "</g>"
    yield "</svg>"


def _rows(sources: Sequence[Sequence[int]]) -> list[int]:
    """Each node's row: below all it reads; one that reads nothing right above its first reader."""
    rows: list[int] = []
    for before in sources:
        rows.append(1 + max((rows[index] for index in before), default=-1))
    readers: dict[int, int] = {}
    for row, before in zip(rows, sources, strict=True):
        for index in before:
            readers[index] = min(row, readers.get(index, row))
    return [
        row if before else max(0, readers.get(index, 1) - 1)
        for index, (row, before) in enumerate(zip(rows, sources, strict=True))
    ]
