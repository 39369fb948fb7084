"""The pages of plans: one plan, and two side by side."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from trt_native.inspection import Layer, PlanDiff, PlanReport
from trt_native.page.content import Bar, Bars, Cell, Page, Status, Table, bars_of, precision_bars
from trt_native.page.graph import Graph, shape_text
from trt_native.page.layer_graph import layer_graph, layers_of_nodes
from trt_native.page.model import model_bars
from trt_native.page.model_graph import ModelGraph, input_shapes, model_graph
from trt_native.page.render import render
from trt_native.plans.manifest import Manifest
from trt_native.plans.prefix import describe_prefix
from trt_native.plans.tables import TENSOR_COLUMNS, engine_layers_text, tensor_rows
from trt_native.units import counted, format_bytes

__all__ = ["diff_page", "plan_page"]


def plan_page(
    report: PlanReport,
    times: Mapping[str, float] | None = None,
    model: ir.Model | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """A plan: its facts, shares of precisions, kernels, times and weights, graphs and tables.

    Args:
        report: What is known of the plan.
        times: Milliseconds by the name of a layer.
        model: The ONNX model that it was built from, for the graph of its nodes.
        remarks: Sentences below the facts.
    """
    layers, source = known_layers(report)
    nodes = None if model is None else _model_graph(report, model, layers)
    graphs = [layer_graph(layers, source, times=times)] if layers else []
    if nodes is not None:
        graphs.append(nodes.graph)
    return render(
        Page(
            title=report.path,
            kind=f"{report.product} plan",
            facts=_facts(report),
            remarks=[*remarks, *_remarks(report, layers, times, nodes)],
            bars=[
                *layer_bars(layers, source, times),
                *_slowest(layers, times or {}),
                *(model_bars(nodes) if nodes else ()),
            ],
            graphs=graphs,
            tables=_tables(report, layers, source, times),
        )
    )


def known_layers(report: PlanReport) -> tuple[tuple[Layer, ...], str]:
    """The engine's layers, else the kernels that the plan lists; and what to call them."""
    if report.layers is not None:
        return report.layers, "Layers"
    return report.kernels or (), "Kernels"


def _model_graph(report: PlanReport, model: ir.Model, layers: Sequence[Layer]) -> ModelGraph:
    """The model at the optimum of the first profile, with what the plan computes each node in."""
    optima = {t.name: t.profiles[0].opt for t in report.tensors or () if t.profiles}
    found = model_graph(model, {**input_shapes(model, {}), **optima}, "ONNX nodes")
    inside = layers_of_nodes(layers)
    if not inside:
        return found
    nodes = []
    for node in found.graph.nodes:
        computed = inside.get(node.name, ())
        names = tuple(("computed in", layer.name) for layer in computed)
        precision = computed[-1].precision if computed else node.precision
        nodes.append(
            replace(
                node,
                attributes=(*names, *node.attributes),
                precision=node.precision if precision == "unknown" else precision,
            )
        )
    return replace(found, graph=replace(found.graph, nodes=tuple(nodes)))


def _facts(report: PlanReport) -> list[tuple[str, Cell]]:
    facts: list[tuple[str, Cell]] = [
        ("made by", f"{report.product} {report.version}"),
        ("size", format_bytes(report.plan_bytes)),
    ]
    if report.activation_bytes is not None:
        facts.append(("activations", f"{format_bytes(report.activation_bytes)} in each context"))
    if report.manifest is not None:
        facts += _manifest_facts(report.manifest)
    facts += describe_prefix(report.prefix)
    facts.append(("SHA-256", f"{report.sha256[:16]}..."))
    return facts


def _manifest_facts(manifest: Manifest) -> Iterator[tuple[str, Cell]]:
    yield "precision", manifest.arithmetic
    if "engine_layers" in manifest.precision:
        yield "computes in it", engine_layers_text(manifest.precision["engine_layers"])
    targets = ", ".join(manifest.compute_capabilities)
    yield "for", f"compute capability {targets}" if targets else "every GPU of the backend"
    yield "built", f"{manifest.created} on {manifest.gpu or 'a machine without a GPU'}"
    yield "time", ", ".join(f"{name} {value:.1f} s" for name, value in manifest.seconds.items())
    yield "model", str(manifest.model["file"])
    yield "producer", manifest.producer


def _remarks(
    report: PlanReport,
    layers: Sequence[Layer],
    times: Mapping[str, float] | None,
    nodes: ModelGraph | None,
) -> Iterator[str]:
    if report.layers is None:
        read = "The kernels below are those that the plan lists as text. " if layers else ""
        yield f"{read}The engine's layers are not known: {report.layers_error}"
    unmatched = set(times or {}) - {layer.name for layer in layers}
    if unmatched:
        yield f"{len(unmatched)} of the times belong to no layer here."
    if nodes is not None and nodes.problem:
        yield f"Shapes inside the model are not known: {nodes.problem}"


def layer_bars(
    layers: Sequence[Layer], source: str, times: Mapping[str, float] | None = None
) -> list[Bars]:
    """Charts of precisions, types and times of layers."""
    if not layers:
        return []
    kinds = Counter(layer.kind or "layer" for layer in layers)
    charts = [
        precision_bars(f"{source} by precision", (layer.precision for layer in layers)),
        bars_of(f"{source} by type", {kind: float(n) for kind, n in kinds.items()}),
    ]
    known = {layer.name: layer for layer in layers if layer.name in (times or {})}
    if times and known:
        by_kind: defaultdict[str, float] = defaultdict(float)
        by_precision: defaultdict[str, float] = defaultdict(float)
        for name, layer in known.items():
            by_kind[layer.kind or "layer"] += times[name]
            by_precision[layer.precision] += times[name]
        for title, sums in (("type", by_kind), ("precision", by_precision)):
            texts = {name: f"{value:.3f} ms" for name, value in sums.items()}
            tones = dict(zip(sums, sums, strict=True)) if title == "precision" else None
            charts.append(bars_of(f"Time by {title}", dict(sums), texts, tones=tones))
    return charts


def _slowest(layers: Sequence[Layer], times: Mapping[str, float]) -> list[Bars]:
    known = {layer.name: times[layer.name] for layer in layers if layer.name in times}
    texts = {name: f"{time:.4f} ms" for name, time in known.items()}
    return [bars_of("Slowest", known, texts)] if known else []


def _tables(
    report: PlanReport, layers: Sequence[Layer], source: str, times: Mapping[str, float] | None
) -> list[Table]:
    tables = []
    if report.tensors is not None:
        tables.append(Table("Tensors", TENSOR_COLUMNS, tensor_rows(report.tensors)))
    if report.manifest is not None:
        passes = [(record["name"], record["summary"]) for record in report.manifest.passes]
        if passes:
            tables.append(Table("Passes over the graph", ("pass", "what it did"), passes))
        options = [(name, "; ".join(lines)) for name, lines in report.manifest.option_lines()]
        if options:
            tables.append(Table("Build options", ("option", "value"), options))
    if layers:
        tables.append(layer_table(layers, source, times))
    return tables


def layer_table(
    layers: Sequence[Layer], source: str, times: Mapping[str, float] | None = None
) -> Table:
    """A row for each layer; the slowest first where times are known."""
    order = list(layers)
    if times:
        order.sort(key=lambda layer: -times.get(layer.name, 0.0))
    rows = [
        (
            layer.name,
            layer.kind,
            layer.precision,
            _output_text(layer),
            layer.tactic or ", ".join(layer.nodes),
            f"{times[layer.name]:.4f} ms" if times and layer.name in times else "",
        )
        for layer in order
    ]
    columns = ("name", "type", "precision", "output", "kernel or nodes", "time")
    return Table(source, columns, rows, numeric=frozenset({5}), open=False)


def _output_text(layer: Layer) -> str:
    if not layer.outputs:
        return ""
    first = layer.outputs[0]
    return f"{first.precision} {'' if first.shape is None else shape_text(first.shape)}".strip()


def diff_page(left: PlanReport, right: PlanReport, found: PlanDiff) -> str:
    """Two plans: their facts side by side, what differs, and both graphs with differences marked.

    Args:
        left: The first plan.
        right: The second one.
        found: As :func:`~trt_native.inspection.diff_plans` returns it.
    """
    reports = (left, right)
    known = [known_layers(report) for report in reports]
    signatures = [Counter(map(_signature, layers)) for layers, _ in known]
    graphs = [
        _marked(layers, f"{letter}: {report.path}", other)
        for letter, report, (layers, _), other in zip(
            "AB", reports, known, reversed(signatures), strict=True
        )
        if layers
    ]
    rows = [
        (d.section, d.name, *("-" if side is None else side for side in (d.left, d.right)))
        for d in found.differences
    ]
    return render(
        Page(
            title=f"{left.path} and {right.path}",
            kind="Comparison of two plans",
            status=_diff_status(found),
            facts=_both_facts(left, right),
            remarks=[f"Not compared: {reason}" for reason in found.not_compared],
            bars=_both_bars(known),
            graphs=graphs,
            tables=[Table("Differences", ("", "", "A", "B"), rows)] if rows else [],
        )
    )


def _diff_status(found: PlanDiff) -> Status:
    if found.differences:
        return Status("bad", counted(len(found.differences), "difference"))
    same = "byte for byte" if found.same_bytes else "in all that was compared"
    return Status("good", f"The plans are the same {same}.")


def _signature(layer: Layer) -> tuple[object, ...]:
    """What makes two layers the same; kernels with made-up names are known by their nodes."""
    return layer.kind, layer.precision, layer.tactic, frozenset(layer.nodes) or layer.name


def _marked(layers: Sequence[Layer], title: str, other: Counter[tuple[object, ...]]) -> Graph:
    def mark(layer: Layer) -> str:
        return "" if other[_signature(layer)] else "not in the other plan"

    return layer_graph(layers, title, mark=mark)


def _both_facts(left: PlanReport, right: PlanReport) -> list[tuple[str, Cell]]:
    one, other = dict(_facts(left)), dict(_facts(right))
    return [
        (name, _both(one.get(name, "-"), other.get(name, "-")))
        for name in dict.fromkeys((*one, *other))
    ]


def _both(one: Cell, other: Cell) -> Cell:
    if one == other:
        return one
    return tuple(
        f"{letter}: {line}"
        for letter, cell in (("A", one), ("B", other))
        for line in (cell if isinstance(cell, tuple) else (cell,))
    )


def _both_bars(known: Sequence[tuple[Sequence[Layer], str]]) -> list[Bars]:
    """For each precision and type a bar of either plan, below one another."""
    if not all(layers for layers, _ in known):
        return []
    source = known[0][1]
    charts = []
    for title, value in (("precision", "precision"), ("type", "kind")):
        counts = [Counter(getattr(layer, value) or "layer" for layer in ls) for ls, _ in known]
        longest = max(max(count.values()) for count in counts)
        names = sorted(set(counts[0]) | set(counts[1]), key=lambda n: (-counts[0][n], n))
        bars = [
            Bar(
                f"{letter} {name}",
                count[name] / longest,
                str(count[name]),
                name if title == "precision" else "",
            )
            for name in names
            for letter, count in zip("AB", counts, strict=True)
        ]
        charts.append(Bars(f"{source} by {title}", bars))
    return charts
