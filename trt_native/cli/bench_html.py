"""The page of ``trt-native bench --html``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_native.bench import PHASES, Span
from trt_native.cli.bench_tables import (
    LAYER_COLUMNS,
    fact_rows,
    layer_rows,
    phase_table,
    ratio_lines,
)
from trt_native.cli.html import page
from trt_native.errors import shortened

if TYPE_CHECKING:
    from trt_native.bench import BenchReport, LayerTime

__all__ = ["bench_page"]

_WIDTH, _HEIGHT, _LEFT = 900, 120, 120
_BINS = 60
_MOST_BARS = 60
_FILL = {"host": "#dce9f7", "GPU": "#dcf3dc"}
_TEXT = 34  # letters next to a bar


def bench_page(report: BenchReport) -> str:
    """The distribution of each phase, the time line of a call, bars of the layers, and tables."""
    figures = [("Time line of one call", _timeline(report.timeline))]
    if report.layers:
        figures.append((_layers_heading(len(report.layers)), _bars(report.layers)))
    figures += [
        (f"Distribution: {PHASES[name]} ({len(values)} times)", _histogram(values))
        for name, values in report.samples.items()
    ]
    tables: list[Any] = [
        ("", ("", ""), fact_rows(report)),
        ("Phases", *phase_table(report)),
    ]
    if report.comparison is not None:
        lines = ratio_lines(report.plan["path"], report.comparison)
        tables.append(("Comparison", ("",), [(line,) for line in lines]))
    if report.layers is not None:
        tables.append(("Layers", LAYER_COLUMNS, layer_rows(report)))
    remark = " ".join((report.bottleneck.text, *(f"Warning: {w}." for w in report.warnings)))
    return page(report.plan["path"], tables, (), remark, figures)


def _layers_heading(count: int) -> str:
    return "Layers" if count <= _MOST_BARS else f"The slowest {_MOST_BARS} of {count} layers"


def _svg(width: float, height: float, shapes: Iterator[str]) -> str:
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}">\n'
        f"{body}\n</svg>"
    )


def _rect(x: float, y: float, width: float, height: float, fill: str, title: str) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{fill}">'
        f"<title>{escape(shortened(title))}</title></rect>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{escape(shortened(text))}</text>'


def _histogram(values: np.ndarray[Any, Any]) -> str:
    """Up to p99.5, since one late call would squeeze all the others into one bar."""
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    if high <= low:
        low, high = low * 0.99, low * 1.01 or 1.0
    counts, edges = np.histogram(values, _BINS, (low, high))
    beyond = int((values > high).sum())

    def place(value: float) -> float:
        return 8 + (value - low) / (high - low) * _WIDTH

    def shapes() -> Iterator[str]:
        step = _WIDTH / _BINS
        for count, left, right in zip(counts, edges, edges[1:], strict=False):
            if count:
                height = max(1.0, _HEIGHT * count / counts.max())
                title = f"{left:.4f} to {right:.4f} ms: {count}"
                yield _rect(place(left), 20 + _HEIGHT - height, step, height, "#dce9f7", title)
        for row, percent in enumerate((50, 90, 99)):
            value = float(np.percentile(values, percent))
            x = place(value)
            yield f'<path d="M{x:.2f} 8V{20 + _HEIGHT}"/>'
            yield _text(x + 3, 12 + 13 * row, f"p{percent} {value:.4f}")
        yield _text(8, 36 + _HEIGHT, f"{low:.4f} ms")
        end = f"{high:.4f} ms" + (f", {beyond} beyond, the last {values.max():.4f}" * bool(beyond))
        yield _text(8 + _WIDTH, 36 + _HEIGHT, end, "end")

    return _svg(_WIDTH + 100, _HEIGHT + 48, shapes())


def _timeline(spans: Sequence[Span]) -> str:
    end = max(span.stop_ms for span in spans) or 1.0
    lanes = list(dict.fromkeys(span.lane for span in spans))

    def shapes() -> Iterator[str]:
        for row, lane in enumerate(lanes):
            y = 8 + 44 * row
            yield _text(8, y + 20, lane)
            for span in (s for s in spans if s.lane == lane):
                x = _LEFT + span.start_ms / end * _WIDTH
                width = (span.stop_ms - span.start_ms) / end * _WIDTH
                title = f"{span.name}: {span.stop_ms - span.start_ms:.4f} ms"
                yield _rect(x, y, max(width, 0.5), 32, _FILL.get(lane, "#f2f2f2"), title)
                if width > 7 * len(span.name):
                    yield _text(x + 4, y + 20, span.name)
        yield _text(_LEFT, 20 + 44 * len(lanes), "0")
        yield _text(_LEFT + _WIDTH, 20 + 44 * len(lanes), f"{end:.4f} ms", "end")

    return _svg(_LEFT + _WIDTH + 16, 30 + 44 * len(lanes), shapes())


def _bars(layers: Sequence[LayerTime]) -> str:
    shown = layers[:_MOST_BARS]
    longest = shown[0].median_ms or 1.0

    def shapes() -> Iterator[str]:
        for row, layer in enumerate(shown):
            y = 4 + 20 * row
            short = layer.name if len(layer.name) <= _TEXT else layer.name[: _TEXT - 1] + "\u2026"
            width = max(0.5, layer.median_ms / longest * (_WIDTH - 240))
            yield _text(232, y + 12, short, "end")
            yield _rect(240, y, width, 16, "#dcf3dc", layer.name)
            yield _text(246 + width, y + 12, f"{layer.median_ms:.4f} ms {layer.share:.1%}")

    return _svg(_WIDTH + 120, 8 + 20 * len(shown), shapes())
