"""Parts of a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from markupsafe import Markup

from trt_native.page.graph import Graph, in_order
from trt_native.units import counted

__all__ = [
    "Bar",
    "Bars",
    "Cell",
    "Figure",
    "Page",
    "Status",
    "Table",
    "bars_of",
    "precision_bars",
]

_MOST_BARS = 10
Cell: TypeAlias = "str | tuple[str, ...]"


@dataclass(frozen=True, slots=True)
class Status:
    """The result of a page in a few words.

    Attributes:
        tone: ``good``, ``bad`` or ``plain``.
        text: The words.
    """

    tone: str
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart.

    Attributes:
        label: What it stands for.
        share: Length of the bar, from 0 to 1.
        text: The figure, for a person.
        tone: Class of its colour: a precision, ``good``, ``bad``, or empty.
        title: More about it, on hovering.
    """

    label: str
    share: float
    text: str
    tone: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """A chart of bars; a wide one has the page's width, for long labels."""

    title: str
    bars: Sequence[Bar]
    note: str = ""
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table; ``numeric`` are columns of figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    numeric: frozenset[int] = frozenset()
    open: bool = True


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing with a heading."""

    title: str
    drawing: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Content of a page, in its order.

    Attributes:
        title: Heading.
        kind: What the page is about, such as ``TensorRT plan``.
        status: The result, if there is one.
        facts: Names and values.
        remarks: Sentences below the facts.
        bars: Charts.
        figures: Drawings.
        graphs: Graphs, of which one is shown at a time.
        tables: Tables.
    """

    title: str
    kind: str
    status: Status | None = None
    facts: Sequence[tuple[str, Cell]] = ()
    remarks: Sequence[str] = ()
    bars: Sequence[Bars] = ()
    figures: Sequence[Figure] = ()
    graphs: Sequence[Graph] = ()
    tables: Sequence[Table] = field(default=())


def bars_of(
    title: str,
    amounts: Mapping[str, float],
    text: Mapping[str, str] | None = None,
    *,
    note: str = "",
    tones: Mapping[str, str] | None = None,
    ordered: bool = False,
) -> Bars:
    """Bars of amounts, the largest first, with those that are left over in one bar.

    Args:
        title: Heading.
        amounts: Amounts by label.
        text: Figure of each; the amount as a whole number where there is none.
        note: A line below the heading.
        tones: Class of the colour of each.
        ordered: Keep the order of the amounts.
    """
    whole = sum(amounts.values()) or 1.0
    ranked = list(amounts) if ordered else sorted(amounts, key=lambda name: -amounts[name])
    shown, others = ranked[:_MOST_BARS], ranked[_MOST_BARS:]
    longest = max(amounts.values(), default=0) or 1.0

    def bar(label: str) -> Bar:
        figure = text[label] if text else f"{amounts[label]:,.0f}"
        share = amounts[label] / whole
        tone = (tones or {}).get(label, "")
        return Bar(label, amounts[label] / longest, f"{figure} ({share:.0%})", tone)

    bars = [bar(label) for label in shown]
    if others:
        left = sum(amounts[label] for label in others) / whole
        bars.append(Bar(counted(len(others), "other"), 0, f"{left:.0%}"))
    return Bars(title, bars, note)


def precision_bars(title: str, precisions: Iterable[str], note: str = "") -> Bars:
    """Bars of how often each precision occurs, from the widest to the narrowest."""
    counts = Counter(precision or "unknown" for precision in precisions)
    amounts = {name: float(counts[name]) for name in in_order(counts)}
    return bars_of(title, amounts, note=note, tones={n: n for n in amounts}, ordered=True)
