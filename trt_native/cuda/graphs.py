"""CUDA graphs: a stream's work, recorded once and launched with one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from trt_native.cuda.driver import check, translated
from trt_native.cuda.streams import Stream

__all__ = ["Graph"]


class Graph:
    """The work that a function puts on a stream, recorded and ready to be launched.

    The memory that the work uses must stay where it is for as long as the graph is launched.

    Args:
        stream: A stream that is not in use otherwise; nothing is run on it.
        work: Puts the work on that stream, and must do nothing but that.

    Raises:
        CudaError: the work cannot be captured.
    """

    def __init__(self, stream: Stream, work: Callable[[], None]) -> None:
        with translated("capture a CUDA graph"):
            from cuda.bindings import driver

            self._driver = driver
            builder = stream.core.create_graph_builder()
            try:
                builder.begin_building("thread_local")
                try:
                    work()
                except BaseException:
                    with contextlib.suppress(Exception):  # what broke it is the error to tell
                        builder.end_building()
                    raise
                builder.end_building()
                self._graph: Any = builder.complete()
            finally:
                builder.close()
            self._handle = driver.CUgraphExec(int(self._graph.handle))

    def launch(self, stream: int) -> None:
        """Run the work once, in the order of a stream given by its handle.

        Raises:
            CudaError: the launch failed.
        """
        code = self._driver.cuGraphLaunch(self._handle, stream)
        if code[0]:
            with translated("launch a CUDA graph"):
                check(code)

    def close(self) -> None:
        """Free the graph, which must not be running. May be called again."""
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()
