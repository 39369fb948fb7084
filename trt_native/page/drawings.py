"""Drawings of times. Names in them are escaped by Markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from markupsafe import Markup

from trt_native.arrays import Array
from trt_native.bench import Span
from trt_native.page.graph import for_display

__all__ = ["histogram", "time_line"]

_WIDTH, _HEIGHT, _LEFT = 900, 120, 90
_BINS = 60
_SVG = Markup('<svg viewBox="0 0 {:g} {:g}">{}</svg>')
_RECT = Markup(
    '<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"><title>{}</title></rect>'
)
_TEXT = Markup('<text x="{:.2f}" y="{:.2f}" text-anchor="{}">{}</text>')
_MARK = Markup('<path class="mark" d="M{:.2f} 8V{:g}"/>')


def _svg(width: float, height: float, shapes: Iterable[Markup]) -> Markup:
    return _SVG.format(width, height, Markup("\n").join(shapes))


def histogram(samples: Sequence[float] | Array) -> Markup:
    """The distribution of times in milliseconds.

    It ends at the percentile 99.5, since one late call would squeeze all the others into one bar.
    """
    values = np.asarray(samples, np.float64)
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    if high <= low:
        low, high = low * 0.99, low * 1.01 or 1.0
    counts, edges = np.histogram(values, _BINS, (low, high))
    beyond = int((values > high).sum())

    def place(value: float) -> float:
        return 8 + (value - low) / (high - low) * _WIDTH

    def shapes() -> Iterator[Markup]:
        for count, left, right in zip(counts, edges, edges[1:], strict=False):
            if count:
                height = max(1.0, _HEIGHT * count / counts.max())
                title = f"{left:.4f} to {right:.4f} ms: {count}"
                top = 20 + _HEIGHT - height
                yield _RECT.format("bar", place(left), top, _WIDTH / _BINS, height, title)
        for row, percent in enumerate((50, 90, 99)):
            value = float(np.percentile(values, percent))
            yield _MARK.format(place(value), 20 + _HEIGHT)
            yield _TEXT.format(place(value) + 3, 12 + 13 * row, "start", f"p{percent} {value:.4f}")
        yield _TEXT.format(8, 36 + _HEIGHT, "start", f"{low:.4f} ms")
        end = f"{high:.4f} ms" + (f", {beyond} beyond, the last {values.max():.4f}" * bool(beyond))
        yield _TEXT.format(8 + _WIDTH, 36 + _HEIGHT, "end", end)

    return _svg(_WIDTH + 100, _HEIGHT + 48, shapes())


def time_line(spans: Sequence[Span]) -> Markup:
    """What host and GPU do during one call, each on a line of its own."""
    end = max((span.stop_ms for span in spans), default=0) or 1.0
    lanes = list(dict.fromkeys(span.lane for span in spans))

    def shapes() -> Iterator[Markup]:
        for row, lane in enumerate(lanes):
            y = 8 + 44 * row
            yield _TEXT.format(8, y + 20, "start", lane)
            for span in (s for s in spans if s.lane == lane):
                x = _LEFT + span.start_ms / end * _WIDTH
                width = (span.stop_ms - span.start_ms) / end * _WIDTH
                title = f"{for_display(span.name)}: {span.stop_ms - span.start_ms:.4f} ms"
                yield _RECT.format(f"bar {lane.lower()}", x, y, max(width, 0.5), 32, title)
                if width > 7 * len(span.name):
                    yield _TEXT.format(x + 4, y + 20, "start", for_display(span.name))
        yield _TEXT.format(_LEFT, 20 + 44 * len(lanes), "start", "0")
        yield _TEXT.format(_LEFT + _WIDTH, 20 + 44 * len(lanes), "end", f"{end:.4f} ms")

    return _svg(_LEFT + _WIDTH + 16, 30 + 44 * len(lanes), shapes())
