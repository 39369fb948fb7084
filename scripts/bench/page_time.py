"""Time and size of the pages of models of many nodes, in a headless Chromium.

    python scripts/bench/page_time.py [NODES ...]      by default 500 and 2500

Prints for each how long the page takes to write and to open until its graph is drawn, to open all
modules, and to find the last node; the median of five. Needs Playwright (extra ``dev``) and a
Chromium (``scripts/install_chromium.sh``).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.chromium import OpenPage, open_browser  # noqa: E402
from helpers.page_models import long_model  # noqa: E402

from trt_native.graph.onnx_file import summarize  # noqa: E402
from trt_native.page import model_page  # noqa: E402

TIMES = 5
_DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def main() -> None:
    """Measure models of the sizes that are given."""
    sizes = [int(word) for word in sys.argv[1:]] or [500, 2500]
    print(f"{'nodes':>6} {'KiB':>6} {'write':>7} {'open':>7} {'all':>7} {'find':>7}   (seconds)")
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        for nodes in sizes:
            file = Path(folder) / f"{nodes}.html"
            writing = seconds(partial(write, nodes, file))
            runs = [measure(browser, file, nodes) for _ in range(TIMES)]
            medians = [statistics.median(column) for column in zip(*runs, strict=True)]
            figures = " ".join(f"{value:7.2f}" for value in (writing, *medians))
            print(f"{nodes:6} {file.stat().st_size // 1024:6} {figures}")


def write(nodes: int, file: Path) -> None:
    """Write the page of a model."""
    model = long_model(nodes)
    file.write_text(model_page(file, model, summarize(Path(__file__), model)), encoding="utf-8")


def measure(browser: object, file: Path, nodes: int) -> tuple[float, float, float]:
    """Seconds to open a page, to open all its modules, and to find its last node."""
    start = time.perf_counter()
    page = OpenPage(browser, file)
    page.tab.evaluate(_DRAWN)
    opening = time.perf_counter() - start

    def find() -> None:
        page.tab.locator("#search").fill(f"_{nodes - 2}")
        page.tab.keyboard.press("Enter")
        page.tab.evaluate(_DRAWN)

    def open_all() -> None:
        page.tab.evaluate("document.getElementById('open-all').click()")
        page.tab.evaluate(_DRAWN)

    finding, all_of_it = seconds(find), seconds(open_all)
    page.close()
    return opening, all_of_it, finding


def seconds(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
