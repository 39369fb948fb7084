"""Calls with arrays on the host: page-locked staging, device buffers, and copies between them."""

from __future__ import annotations

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
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime.execution import BoundShapes, ExecutionContext
from trt_native.runtime.tensor_views import TensorView, nbytes_of

__all__ = ["HostExecution"]

_MOST_LENT_BYTES = 2 << 30
"""Results beyond this, if the caller keeps them, move from page-locked to ordinary memory."""


class HostExecution:
    """Memory for one call with arrays on the host: staging, and device buffers at fixed addresses.

    :meth:`~trt_native.runtime.Session.prepare` makes one. Its three steps may be put on any streams
    and repeated; the caller orders them. Nothing may be in flight when it is filled or closed.
    """

    def __init__(self, runner: ExecutionContext, pool: PinnedPool) -> None:
        self._runner = runner
        self._pool = pool
        self._buffers: dict[str, DeviceBuffer] = {}
        self._staging: dict[str, PinnedBlock] = {}
        self._staged: list[tuple[str, Array]] = []
        self._uploads: list[tuple[int, int, int]] = []  # device address, host address, bytes
        self._downloads: list[tuple[PlanTensor, int]] = []
        self._refillable = False  # filled, and no address came from the caller
        self._layout: BoundShapes | None = None
        self._addresses: tuple[int, ...] = ()
        self._fetched: dict[str, Array] = {}
        self.uploaded = Event(ordinal=runner.engine.ordinal)
        self.computed = Event(ordinal=runner.engine.ordinal)
        self.finished = Event(ordinal=runner.engine.ordinal)
        self._finishing = 0  # its recording; others may record it once that is done

    @property
    def busy(self) -> bool:
        """Whether the last run may still be going on, as far as is known here."""
        return not self.finished.passed(self._finishing)

    def done(self) -> bool:
        """Whether the last run is done."""
        return not self.busy or self.finished.done()

    @property
    def input_bytes(self) -> int:
        """How much :meth:`upload` copies."""
        return sum(nbytes for _, _, nbytes in self._uploads)

    @property
    def output_bytes(self) -> int:
        """How much the last :meth:`download` copied."""
        return sum(array.nbytes for array in self._fetched.values())

    def fill(
        self, layout: BoundShapes, operands: Mapping[str, TensorView], outputs: Mapping[str, int]
    ) -> None:
        """Copy inputs that are on the host to the staging memory, and find memory for the rest.

        Args:
            layout: The layout of the inputs.
            operands: The inputs; those on the GPU stay where they are.
            outputs: Addresses of the outputs for which there is memory already.
        """
        self.uploaded.synchronize()  # the staging memory is free again
        self._refillable = False
        self._layout = layout
        self._staged = []
        self._uploads = []
        addresses = []
        for tensor in self._runner.device_inputs:
            operand = operands[tensor.name]
            if operand.host is None:
                addresses.append(operand.pointer)
            else:
                addresses.append(self._stage(tensor, operand.host))
        self._downloads = []
        for tensor in self._runner.engine.outputs:
            address = outputs.get(tensor.name)
            if address is None:
                address = self._output_address(layout, tensor)
                self._downloads.append((tensor, address))
            addresses.append(address)
        self._addresses = tuple(addresses)
        self._refillable = not outputs and all(o.host is not None for o in operands.values())

    def refill(self, layout: BoundShapes, arrays: Mapping[str, Array]) -> bool:
        """As :meth:`fill`, if that was last done for the same layout and without arrays on the GPU.

        Args:
            layout: The layout of the inputs, none of which TensorRT reads on the host.
            arrays: The inputs, of the layout's shapes.

        Returns:
            Whether it was.
        """
        if layout is not self._layout or not self._refillable:
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
        assert self._layout is not None, "a call is filled before it is handed out"  # noqa: S101
        self._runner.launch(self._layout, self._addresses, stream_handle(stream), graph=graph)

    def download(self, stream: Any, into: Mapping[str, Array] | None = None) -> None:
        """Copy the outputs to the host, in a stream's order.

        Args:
            stream: The stream.
            into: C-contiguous arrays for some outputs; the others come in new ones.
        """
        handle = stream_handle(stream)
        self._fetched = {
            tensor.name: self._fetch(tensor, address, handle, into or {})
            for tensor, address in self._downloads
        }

    def record_end(self, event: Event, stream: int) -> None:
        """Record an event, which is the caller's, behind the run that was put on streams."""
        recording = event.record(stream)
        self.finished, self._finishing = event, recording

    def results(self) -> dict[str, Array]:
        """The outputs of the last :meth:`download`, once its stream was synchronized.

        They lie in page-locked memory that is theirs for as long as they or views of them exist.
        """
        return dict(self._fetched)

    def close(self) -> None:
        """Give the memory back. May be called again."""
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

    def _output_address(self, layout: BoundShapes, tensor: PlanTensor) -> int:
        shape = layout.outputs[tensor.name]
        if -1 in shape or tensor.name in self._runner.host_names:
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
        buffer.reserve(nbytes, self._runner.stream)
        self._runner.stream.synchronize()  # from here on any stream may use the memory
        return buffer.pointer

    def _fetch(
        self, tensor: PlanTensor, pointer: int, stream: int, into: Mapping[str, Array]
    ) -> Array:
        if tensor.name in self._runner.host_names:
            return self._runner.host_output(tensor.name)
        assert self._layout is not None  # noqa: S101
        shape = self._layout.outputs[tensor.name]
        own = None
        if -1 in shape:
            own, shape = self._runner.take_dynamic_output(tensor.name)
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
        """Memory for an output, and its address."""
        if self._pool.lent_bytes > _MOST_LENT_BYTES:
            ordinary: Array = np.empty(shape, dtype)
            return ordinary, ordinary.ctypes.data
        block = self._pool.lend(nbytes)
        return block.array(shape, dtype), block.address
