"""A browser for all tests of a file, and pages of models in it."""

from __future__ import annotations

import pytest
from helpers.chromium import OpenPage, open_browser

from trt_native.graph.onnx_file import summarize
from trt_native.page import model_page


@pytest.fixture(scope="module")  # as long as it is open, an event loop runs in this thread
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page with a text; at the end it must not have logged, or asked for, anything."""
    pages = []

    def open_text(text, **options):
        file = tmp_path / f"page{len(pages)}.html"
        file.write_text(text, encoding="utf-8", errors="replace")
        pages.append(OpenPage(browser, file, **options))
        return pages[-1]

    yield open_text
    for page in pages:
        page.close()
        assert page.problems == []
        assert page.requests == []


@pytest.fixture
def text_of(tmp_path):
    """The page of a model."""

    def text(model, extents=None):
        path = tmp_path / "m.onnx"
        path.write_bytes(b"")
        return model_page(path, model, summarize(path, model), extents)

    return text
