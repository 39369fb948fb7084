"""Running an engine: one execution context with its stream and buffers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (makes bfloat16 and float8 known to NumPy by name)
import numpy as np

from trt_native.cuda import DeviceBuffer, Stream
from trt_native.engine import Engine
from trt_native.errors import ClosedError, CudaError, SpecError
from trt_native.plan import Plan, PlanTensor
from trt_native.spec import Shape

__all__ = ["Session", "check_inputs"]

Array = np.ndarray[Any, np.dtype[Any]]


class Session:
    """One execution context of an engine, with a stream and device buffers of its own.

    Synchronous: :meth:`run` copies the inputs to the GPU, runs the engine, copies the outputs back
    and waits. A session belongs to one thread at a time.

    Args:
        engine: An engine, or a plan or its path, which the session then loads and owns.
        backend: See :class:`~trt_native.engine.Engine`; only for a plan.

    Raises:
        PlanError, UnsupportedError, CudaError: as :class:`~trt_native.engine.Engine`.
    """

    def __init__(
        self, engine: Engine | Plan | str | os.PathLike[str], *, backend: str = "auto"
    ) -> None:
        self._context: Any = None
        self._owns_engine = not isinstance(engine, Engine)
        self.engine = engine if isinstance(engine, Engine) else Engine(engine, backend=backend)
        self._stream = Stream(self.engine.ordinal)
        self._buffers = {tensor.name: DeviceBuffer() for tensor in self.engine.tensors}
        self._host: dict[str, Array] = {}
        self._context = self.engine.create_context()
        self._profile = int(self._context.active_optimization_profile)
        self._allocator = self.engine.backend.output_allocator(
            lambda name, size: self._buffers[name].reserve(size, self._stream)
        )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the engine once.

        Args:
            inputs: An array for every input, of exactly its dtype, with a shape that one of the
                engine's profiles allows. Arrays need not be contiguous.

        Returns:
            A new array for every output, owned by the caller.

        Raises:
            SpecError: names, dtypes or shapes do not fit; all faults in one error.
            CudaError: the GPU has too little memory, or TensorRT failed.
            ClosedError: the session was closed.
        """
        if self._context is None:
            raise ClosedError("the session is closed")
        profile = check_inputs(self.engine.inputs, self.engine.profile_count, inputs)
        with self.engine.backend.collected_errors() as errors:
            self._use_profile(profile, errors)
            for tensor in self.engine.inputs:
                self._bind_input(tensor, inputs[tensor.name], errors)
            deferred = [t for t in self.engine.outputs if not self._bind_output(t)]
            if not self._context.execute_async_v3(self._stream.handle):
                raise CudaError("TensorRT did not run the engine", errors)
            self._stream.synchronize()
            outputs = {
                tensor.name: self._fetch(tensor, tensor in deferred)
                for tensor in self.engine.outputs
            }
            self._stream.synchronize()
        return outputs

    def close(self) -> None:
        """Free the context, the buffers and, if the session loaded it, the engine.

        Waits for work in flight. May be called again.
        """
        if self._context is None:
            return
        self._stream.synchronize()
        self._context = None
        for buffer in self._buffers.values():
            buffer.close()
        self._stream.close()
        if self._owns_engine:
            self.engine.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _use_profile(self, profile: int, errors: list[str]) -> None:
        if profile == self._profile:
            return
        if not self._context.set_optimization_profile_async(profile, self._stream.handle):
            raise CudaError(f"TensorRT did not switch to profile {profile}", errors)
        self._profile = profile

    def _bind_input(self, tensor: PlanTensor, value: Array, errors: list[str]) -> None:
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        if not self._context.set_input_shape(tensor.name, array.shape):
            raise CudaError(f"TensorRT refused shape {array.shape} of {tensor.name!r}", errors)
        if self.engine.is_host_tensor(tensor.name):
            self._host[tensor.name] = array  # TensorRT reads it during the run
            address = array.ctypes.data
        else:
            address = self._buffers[tensor.name].reserve(array.nbytes, self._stream)
            self._buffers[tensor.name].upload(array, self._stream)
        self._set_address(tensor.name, address)

    def _bind_output(self, tensor: PlanTensor) -> bool:
        """Give an output memory; False if its shape will be known only after the run."""
        shape = self._output_shape(tensor)
        if -1 in shape:
            self._context.set_output_allocator(tensor.name, self._allocator)
            return False
        if self.engine.is_host_tensor(tensor.name):
            self._host[tensor.name] = np.empty(shape, tensor.dtype)
            self._set_address(tensor.name, self._host[tensor.name].ctypes.data)
        else:
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
            self._set_address(tensor.name, self._buffers[tensor.name].reserve(size, self._stream))
        return True

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise CudaError(f"TensorRT refused the address of {name!r}")

    def _output_shape(self, tensor: PlanTensor) -> Shape:
        return tuple(int(extent) for extent in self._context.get_tensor_shape(tensor.name))

    def _fetch(self, tensor: PlanTensor, deferred: bool) -> Array:
        if tensor.name in self._host:
            return self._host[tensor.name]
        shape = self._allocator.shape(tensor.name) if deferred else self._output_shape(tensor)
        array: Array = np.empty(shape, tensor.dtype)
        self._buffers[tensor.name].download(array, self._stream)
        return array


def check_inputs(
    tensors: tuple[PlanTensor, ...], profile_count: int, inputs: Mapping[str, Array]
) -> int:
    """Check arrays against the inputs of an engine, and choose the optimization profile.

    Args:
        tensors: The engine's inputs.
        profile_count: How many profiles it has.
        inputs: The arrays, by name.

    Returns:
        Number of the first profile that allows all the shapes.

    Raises:
        SpecError: an input is missing, unknown, of another dtype, or its shape is allowed by no
            profile; all faults in one error.
    """
    known = {tensor.name for tensor in tensors}
    faults = [f"{name!r} is not an input" for name in inputs if name not in known]
    for tensor in tensors:
        if tensor.name not in inputs:
            faults.append(f"{tensor.name!r} is missing")
        else:
            faults += _faults_of(tensor, inputs[tensor.name])
    if not faults:
        for index in range(profile_count):
            if all(_allowed(tensor, inputs[tensor.name], index) for tensor in tensors):
                return index
        faults.append("no one profile allows these shapes together")
    listing = [f"- {fault}" for fault in faults] + ["the engine's inputs:"]
    listing += [f"- {describe_input(tensor)}" for tensor in tensors]
    raise SpecError("the inputs do not fit the engine:", listing)


def _faults_of(tensor: PlanTensor, array: Array) -> list[str]:
    faults = []
    if array.dtype != np.dtype(tensor.dtype):
        faults.append(
            f"{tensor.name!r} needs {tensor.dtype}, found {array.dtype}; convert it with"
            f" .astype({tensor.dtype!r})"
        )
    if not any(_allowed(tensor, array, index) for index in range(max(1, len(tensor.profiles)))):
        shape = "x".join(map(str, array.shape)) or "scalar"
        faults.append(f"{tensor.name!r} cannot have the shape {shape}")
    return faults


def _allowed(tensor: PlanTensor, array: Array, profile: int) -> bool:
    if tensor.profiles:
        return tensor.profiles[profile].contains(array.shape)
    return bool(array.shape == tensor.shape)


def describe_input(tensor: PlanTensor) -> str:
    """One line: name, dtype, and the shapes that are allowed."""
    ranges = " or ".join(map(str, tensor.profiles)) or "x".join(map(str, tensor.shape)) or "scalar"
    return f"{tensor.name}: {tensor.dtype} {ranges}"
