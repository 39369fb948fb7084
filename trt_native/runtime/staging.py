"""Runs with arrays on the host: page-locked staging, device buffers, and copies between them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from trt_native.arrays import Array
from trt_native.cuda import (
    DeviceBuffer,
    Event,
    PinnedBlock,
    PinnedPool,
    Stream,
    copy_host,
    copy_to_device,
    copy_to_host,
    stream_handle,
)
from trt_native.errors import CudaError
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime.execution import BoundShapes, ExecutionContext
from trt_native.runtime.tensor_views import TensorView, nbytes_of

__all__ = ["HostExecution", "StagingPipeline"]

_DEFAULT_EXECUTIONS = 4
_MAX_LENT_BYTES = 2 << 30
"""Limit of page-locked memory held by results; results beyond it get ordinary memory."""


class HostExecution:
    """Memory of one run with arrays on the host: staging, and device buffers at fixed addresses.

    Created by :meth:`~trt_native.runtime.Session.create_execution`. Its three steps may be enqueued
    on any streams and repeated; the caller orders them. Nothing may be in flight when it is filled
    or closed.
    """

    def __init__(self, context: ExecutionContext, pool: PinnedPool) -> None:
        self._context = context
        self._pool = pool
        self._buffers: dict[str, DeviceBuffer] = {}
        self._staging: dict[str, PinnedBlock] = {}
        self._staged: list[tuple[str, Array]] = []
        self._uploads: list[tuple[int, int, int]] = []  # device address, host address, bytes
        self._downloads: list[tuple[PlanTensor, int]] = []
        self._refillable = False  # filled, and no address came from the caller
        self._bound: BoundShapes | None = None
        self._addresses: tuple[int, ...] = ()
        self._fetched: dict[str, Array] = {}
        self.uploaded = Event(ordinal=context.engine.ordinal)
        self.computed = Event(ordinal=context.engine.ordinal)
        self.finished = Event(ordinal=context.engine.ordinal)
        self._finishing = 0  # its recording; others may record it once that is done

    @property
    def busy(self) -> bool:
        """Whether the last run may be in flight, without a query to the GPU."""
        return not self.finished.passed(self._finishing)

    def done(self) -> bool:
        """Whether the last run is done."""
        return not self.busy or self.finished.done()

    @property
    def input_bytes(self) -> int:
        """Bytes that :meth:`upload` copies."""
        return sum(nbytes for _, _, nbytes in self._uploads)

    @property
    def output_bytes(self) -> int:
        """Bytes that the last :meth:`download` copied."""
        return sum(array.nbytes for array in self._fetched.values())

    def fill(
        self, bound: BoundShapes, views: Mapping[str, TensorView], outputs: Mapping[str, int]
    ) -> None:
        """Copy inputs that are on the host to the staging memory, and allocate the device buffers.

        Args:
            bound: The shapes of the inputs.
            views: The inputs; those on the GPU stay where they are.
            outputs: Device addresses of outputs that are allocated already.
        """
        self.uploaded.synchronize()  # the staging memory is free again
        self._refillable = False
        self._bound = bound
        self._staged = []
        self._uploads = []
        given: dict[str, int] = {}
        for tensor in self._context.device_inputs:
            view = views[tensor.name]
            given[tensor.name] = (
                view.pointer if view.host is None else self._stage(tensor, view.host)
            )
        addresses = list(given.values())
        self._downloads = []
        for tensor in self._context.engine.outputs:
            address = outputs.get(tensor.name)
            if address is None:
                alias = self._context.aliases.get(tensor.name)
                address = given[alias] if alias else self._output_address(bound, tensor)
                self._downloads.append((tensor, address))
            addresses.append(address)
        self._addresses = tuple(addresses)
        self._refillable = not outputs and all(o.host is not None for o in views.values())

    def refill(self, bound: BoundShapes, arrays: Mapping[str, Array]) -> bool:
        """Copy inputs like those of the last :meth:`fill`, without checks or allocations.

        Args:
            bound: The shapes of the inputs, none of which TensorRT reads on the host.
            arrays: The inputs, of these shapes.

        Returns:
            False, without a copy, if the last :meth:`fill` was for other shapes or used addresses
            of the caller.
        """
        if bound is not self._bound or not self._refillable:
            return False
        if self.busy:
            self.uploaded.synchronize()
        for name, staged in self._staged:
            copy_host(staged, arrays[name])
        return True

    def upload(self, stream: Any) -> None:
        """Copy the staged inputs to the GPU, in a stream's order."""
        handle = stream_handle(stream)
        for device, host, nbytes in self._uploads:
            copy_to_device(device, host, nbytes, handle)

    def enqueue(self, stream: Any, *, graph: bool = True) -> None:
        """Run the engine, in a stream's order."""
        assert self._bound is not None, "fill() comes first"  # noqa: S101
        self._context.launch(self._bound, self._addresses, stream_handle(stream), graph=graph)

    def download(self, stream: Any, into: Mapping[str, Array] | None = None) -> None:
        """Copy the outputs to the host, in a stream's order.

        Args:
            stream: The stream.
            into: C-contiguous arrays for some outputs; the others get new ones.
        """
        handle = stream_handle(stream)
        into = into or {}
        self._fetched = {
            tensor.name: self._fetch(tensor, address, handle, into)
            for tensor, address in self._downloads
        }

    def record_end(self, event: Event, stream: int) -> None:
        """Record an event of the caller after the run; it marks the run's end."""
        recording = event.record(stream)
        self.finished, self._finishing = event, recording

    def results(self) -> dict[str, Array]:
        """Outputs of the last :meth:`download`, complete once its stream is synchronized.

        Their page-locked memory is not reused while they or views of them exist.
        """
        return dict(self._fetched)

    def close(self) -> None:
        """Free the memory. Idempotent."""
        for buffer in self._buffers.values():
            buffer.close()
        self._refillable = False
        self._staging.clear()
        self._staged.clear()
        self._uploads.clear()

    def _stage(self, tensor: PlanTensor, array: Array) -> int:
        address = self._reserve(tensor.name, array.nbytes)
        if array.nbytes:
            block = self._staging.get(tensor.name)
            if block is None or block.nbytes < array.nbytes:
                block = self._staging[tensor.name] = self._pool.lend(array.nbytes)
            staged = block.array(array.shape, tensor.dtype)
            copy_host(staged, array)
            self._staged.append((tensor.name, staged))
            self._uploads.append((address, block.address, array.nbytes))
        return address

    def _output_address(self, bound: BoundShapes, tensor: PlanTensor) -> int:
        shape = bound.outputs[tensor.name]
        if -1 in shape or tensor.name in self._context.host_names:
            return 0
        return self._reserve(tensor.name, nbytes_of(shape, tensor.dtype))

    def _reserve(self, name: str, nbytes: int) -> int:
        buffer = self._buffers.get(name)
        if buffer is None:
            buffer = self._buffers[name] = DeviceBuffer()
        if buffer.nbytes >= max(nbytes, 1):
            return buffer.pointer
        if self.busy:
            self.finished.synchronize()
        buffer.reserve(nbytes, self._context.stream)
        self._context.stream.synchronize()  # from here on any stream may use the memory
        return buffer.pointer

    def _fetch(
        self, tensor: PlanTensor, pointer: int, stream: int, into: Mapping[str, Array]
    ) -> Array:
        if tensor.name in self._context.host_names:
            return self._context.host_output(tensor.name)
        assert self._bound is not None  # noqa: S101
        shape = self._bound.outputs[tensor.name]
        own = None
        if -1 in shape:
            own, shape = self._context.take_dynamic_output(tensor.name)
            pointer = own.pointer
        nbytes = nbytes_of(shape, tensor.dtype)
        array = into.get(tensor.name)
        if array is not None:
            address = array.ctypes.data
        else:
            array, address = self._new_array(shape, tensor.dtype, nbytes)
        copy_to_host(address, pointer, nbytes, stream)
        if own is not None:
            Stream.borrowed(stream).synchronize()
            own.close()
        return array

    def _new_array(self, shape: tuple[int, ...], dtype: str, nbytes: int) -> tuple[Array, int]:
        """Allocate an output on the host; returns it and its address."""
        if self._pool.lent_bytes > _MAX_LENT_BYTES:
            ordinary: Array = np.empty(shape, dtype)
            return ordinary, ordinary.ctypes.data
        block = self._pool.lend(nbytes)
        return block.array(shape, dtype), block.address


class StagingPipeline:
    """Host executions used in rotation, and the streams for overlapping their copies with runs.

    Args:
        context: The context that runs the engine.

    Attributes:
        limit: Number of executions that may be in flight at a time.
        executions: The executions; the one used last comes last.
        streams: The streams for uploads and for downloads.
        pool: Page-locked memory for staging and results.
    """

    def __init__(self, context: ExecutionContext) -> None:
        ordinal = context.engine.ordinal
        self._context = context
        self.pool = PinnedPool()
        self.streams = (Stream(ordinal), Stream(ordinal))
        self.executions: deque[HostExecution] = deque()
        self.limit = _DEFAULT_EXECUTIONS

    def next_execution(self, compute: int) -> HostExecution:
        """Return an execution whose memory is free, or else the one that was started first.

        Raises:
            CudaError: the caller is capturing the compute stream.
        """
        if self._context.is_captured(compute):
            raise CudaError(
                "this stream is being captured into a CUDA graph, which takes inputs and outputs on"
                " the GPU only, of shapes that do not depend on data"
            )
        executions = self.executions
        if not executions or (len(executions) < self.limit and not executions[0].done()):
            executions.append(HostExecution(self._context, self.pool))
        else:
            executions.rotate(-1)
        return executions[-1]

    def run(
        self,
        execution: HostExecution,
        compute: int,
        end: Event,
        into: Mapping[str, Array] | None = None,
        *,
        spread: bool,
    ) -> int:
        """Enqueue upload, run and download of a filled execution.

        Args:
            execution: Result of :meth:`next_execution`, filled.
            compute: Handle of the stream that runs the engine.
            end: Recorded after the download.
            into: See :meth:`HostExecution.download`.
            spread: Copy on streams of their own, so that executions overlap.

        Returns:
            Handle of the stream of the download.
        """
        up, down = compute, compute
        if spread:
            up, down = self.streams[0].handle, self.streams[1].handle
        if execution.busy:  # with its previous run, whose buffers these are
            execution.finished.hold(compute)
            if up != compute:
                execution.computed.hold(up)
        try:
            execution.upload(up)
            execution.uploaded.record(up)
            if up != compute:
                execution.uploaded.hold(compute)
            execution.enqueue(compute)
            execution.computed.record(compute)
            if down != compute:
                execution.computed.hold(down)
            execution.download(down, into)
            execution.record_end(end, down)
        except BaseException:
            for handle in {up, compute, down}:  # no event marks the end of what was enqueued
                with contextlib.suppress(CudaError):
                    Stream.borrowed(handle).synchronize()
            raise
        return down
