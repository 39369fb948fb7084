"""Inputs and outputs that an engine has in other layouts than C order: packed and unpacked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trt_native.cuda import DeviceBuffer, Stream, copy_rows, fill_zeros
from trt_native.io_formats import IO_FORMATS, IoFormat
from trt_native.plans.manifest import PlanTensor
from trt_native.shapes import Shape

__all__ = ["PackedTensors"]


@dataclass(frozen=True, slots=True)
class _Bound:
    layout: IoFormat
    shape: Shape
    itemsize: int
    plain: int  # addresses
    packed: int

    def copy(self, stream: int, *, packs: bool) -> None:
        """Move all elements from C order to the layout, or back, in the order of a stream."""
        for one in self.layout.copies(self.shape, self.itemsize):
            plain = self.plain + one.plain, one.plain_pitch
            packed = self.packed + one.packed, one.packed_pitch
            target, source = (packed, plain) if packs else (plain, packed)
            copy_rows(*target, *source, width=one.width, rows=one.rows, stream=stream)


class PackedTensors:
    """Device memory in the layouts of an engine, beside the caller's arrays in C order.

    Its addresses stay valid until it is closed, as CUDA graphs hold them: memory that became too
    small is kept beside the larger one, which has at least twice its size.

    Args:
        stream: Stream to allocate on.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffers: dict[str, list[DeviceBuffer]] = {}
        self._inputs: list[_Bound] = []
        self._outputs: list[_Bound] = []

    def reset(self) -> None:
        """Forget the arrays that were bound."""
        self._inputs.clear()
        self._outputs.clear()

    def bind(self, tensor: PlanTensor, shape: Shape, address: int) -> int:
        """Bind an array in C order, and return the address to give the engine.

        Args:
            tensor: The tensor; the address of one without a format is returned as it is.
            shape: Its shape in this run.
            address: Device address of the array.

        Raises:
            CudaError: the GPU has too little memory.
        """
        if tensor.format is None:
            return address
        layout, itemsize = IO_FORMATS[tensor.format], np.dtype(tensor.dtype).itemsize
        packed = self._reserve(tensor.name, layout.nbytes(shape, itemsize))
        bound = _Bound(layout, shape, itemsize, address, packed)
        (self._inputs if tensor.mode == "input" else self._outputs).append(bound)
        return packed

    def pack(self, stream: int) -> None:
        """Write the inputs in their layouts, in the order of a stream; gaps become 0."""
        for bound in self._inputs:
            if bound.layout.is_padded(bound.shape):
                nbytes = bound.layout.nbytes(bound.shape, bound.itemsize)
                fill_zeros(bound.packed, nbytes, stream)
            bound.copy(stream, packs=True)

    def unpack(self, stream: int) -> None:
        """Write the outputs in C order, in the order of a stream."""
        for bound in self._outputs:
            bound.copy(stream, packs=False)

    def close(self) -> None:
        """Free the memory, once nothing runs on it. Idempotent."""
        self.reset()
        for buffers in self._buffers.values():
            for buffer in buffers:
                buffer.close()
        self._buffers.clear()

    def _reserve(self, name: str, nbytes: int) -> int:
        buffers = self._buffers.setdefault(name, [])
        if not buffers or buffers[-1].nbytes < nbytes:
            larger = DeviceBuffer()
            larger.reserve(max(nbytes, 2 * buffers[-1].nbytes if buffers else 0), self._stream)
            self._stream.synchronize()  # from here on any stream may use the memory
            buffers.append(larger)
        return buffers[-1].pointer
