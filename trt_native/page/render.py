"""A page as HTML: one file, which loads nothing.

Everything in it that comes from a model, a plan or a command line is escaped: text by Jinja's
autoescape, the data of graphs as JSON without ``<``. The page's policy lets only its own script and
style run, by their hashes, and no request leave it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from importlib.resources import files

import jinja2
from markupsafe import Markup

from trt_native._version import __version__
from trt_native.errors import on_one_line, shortened
from trt_native.page.content import Cell, Page

__all__ = ["render"]

_STATIC = files("trt_native.page") / "static"
_SCRIPTS = ("libraries.js", "layout.js", "details.js", "graph.js", "page.js")
_MOST_ROWS = 500


def render(page: Page) -> str:
    """The page as HTML. Half-surrogates and controls in names are written as escapes."""
    style = _read("page.css")
    script = "\n".join(map(_read, _SCRIPTS)) if page.graphs else _read("page.js")
    template = _environment().get_template("page.html")
    return template.render(
        page=page,
        version=__version__,
        style=Markup(style),  # noqa: S704  # this package's own file
        script=Markup(script),  # noqa: S704  # likewise
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_json([graph.document() for graph in page.graphs]),
        most_rows=_MOST_ROWS,
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trt_native.page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["lines"] = _lines
    environment.filters["line"] = lambda cell: " ".join(_lines(cell))
    return environment


@functools.cache
def _read(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def _lines(cell: Cell) -> list[str]:
    """The lines of a cell, as a person can read them."""
    lines = cell if isinstance(cell, tuple) else str(cell).split("\n")
    return [shortened(on_one_line(line)) for line in lines]


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _json(data: object) -> Markup:
    text = json.dumps(data, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704  # so no tag begins in it
