"""Replacing the weights of an engine in the order of a stream."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trt_native.backends.base import Backend, StagedWeights
from trt_native.cuda import Event, Stream, is_capturing, stream_handle
from trt_native.errors import CudaError
from trt_native.plans.plan import Plan
from trt_native.runtime.future import RunTracker, StartedRun

if TYPE_CHECKING:
    from trt_native.runtime.new_weights import NewWeight, WeightReader

__all__ = ["WeightUpdater"]

_LOGGER = logging.getLogger(__name__)
_DEFAULT_STREAMS = (0, 1, 2)  # null, legacy and per-thread: TensorRT would synchronize on them


class WeightUpdater:
    """Hands new weights to TensorRT, and keeps them alive until the GPU has them.

    Args:
        plan: The plan.
        backend: The library that has deserialized it.
        ordinal: CUDA ordinal of the GPU.
    """

    def __init__(self, plan: Plan, backend: Backend, ordinal: int) -> None:
        self._plan = plan
        self._backend = backend
        self._ordinal = ordinal
        self._lock = threading.Lock()
        self._tracker = RunTracker(ordinal, _report)

    @contextlib.contextmanager
    def ordered(self, stream: Any) -> Iterator[int]:
        """Yield the handle of a stream to work on, ordered with the caller's on both sides.

        One thread at a time.

        Raises:
            CudaError: the caller is capturing the stream into a CUDA graph.
        """
        handle = None if stream is None else stream_handle(stream)
        with self._lock:
            if handle is not None and handle not in _DEFAULT_STREAMS:
                if is_capturing(handle):
                    raise CudaError(
                        "weights cannot be replaced in a stream that is being captured into a CUDA"
                        " graph"
                    )
                yield handle
                return
            hop, own = Event(ordinal=self._ordinal), _lasting_stream(self._ordinal)
            if handle is not None:
                hop.pass_on(handle, own)
            yield own
            if handle is not None:
                hop.pass_on(own, handle)

    @functools.cached_property
    def reader(self) -> WeightReader:
        """Reads the weights.

        Raises:
            PlanError: the plan's weights cannot be replaced.
        """
        from trt_native.runtime.new_weights import WeightReader

        return WeightReader(self._plan, self._ordinal)

    def stage(self, native: Any, new: Mapping[str, NewWeight], stream: int) -> StagedWeights:
        """See :meth:`~trt_native.backends.base.Backend.stage_weights`."""
        self._tracker.reap(query=True)
        values = {name: weight.values for name, weight in new.items()}
        return self._backend.stage_weights(native, values, stream)

    def keep(self, held: Any, stream: int) -> None:
        """Keep objects alive until a stream has done its work."""
        self._tracker.track(StartedRun({}, None, stream), held)

    def finish(self) -> None:
        """Wait until the GPU has all weights, and forget them."""
        for future in self._tracker.futures:
            future.result()
        self._tracker.reap(query=False)

    def close(self) -> None:
        """Wait until the GPU has all weights. Idempotent."""
        self.finish()


@functools.cache
def _lasting_stream(ordinal: int) -> int:
    """A stream of a GPU that lasts as long as the process.

    Torch's allocator uses it once more when a tensor that was read on it is freed, which may be
    after the engine is closed, or while the interpreter ends.
    """
    stream = Stream(ordinal)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))  # it is never destroyed
    return stream.handle


def _report(error: BaseException) -> None:
    _LOGGER.debug("replacing weights: %s", error)
