"""Pages: self-contained HTML files about models, plans, benchmarks and verifications.

Each is one file that loads nothing: facts first, then shares as bars, times, the graph, and tables.
The graph opens by modules; it can be moved, zoomed and searched with mouse, touch and keyboard.
Libraries in it: dagre places the boxes, d3 moves and zooms (``static/libraries.LICENSES.txt``).
"""

from typing import TYPE_CHECKING

from trt_native._lazy import lazy_exports

if TYPE_CHECKING:
    from trt_native.page.benchmark import bench_page as bench_page
    from trt_native.page.model import model_page as model_page
    from trt_native.page.plan import diff_page as diff_page
    from trt_native.page.plan import plan_page as plan_page
    from trt_native.page.verification import verify_page as verify_page

_LAZY_EXPORTS = {
    "bench_page": "benchmark",
    "diff_page": "plan",
    "model_page": "model",
    "plan_page": "plan",
    "verify_page": "verification",
}

__all__ = [*_LAZY_EXPORTS]

__getattr__, __dir__ = lazy_exports(__name__, _LAZY_EXPORTS)
