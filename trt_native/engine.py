"""A plan on the GPU: its tensors, profiles and layers."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trt_native.backends.base import DTYPES, Backend, load_backend
from trt_native.cuda import GpuInfo, require_gpu
from trt_native.errors import ClosedError, CudaError, PlanError, UnsupportedError
from trt_native.plan import Environment, Plan, PlanTensor, compatibility
from trt_native.spec import ShapeRange

__all__ = ["Engine", "environment_of", "layer_records"]

_LOGGER = logging.getLogger(__name__)


class Engine:
    """A deserialized plan, ready to make execution contexts.

    Args:
        plan: A plan, or the path of one.
        backend: ``auto`` takes the library that the plan's header names.
        ordinal: CUDA ordinal of the GPU to load it on.

    Attributes:
        plan: The plan.
        backend: The library that loaded it.
        tensors: Inputs, then outputs, in the engine's order.
        profile_count: Number of optimization profiles; at least 1.
        ordinal: CUDA ordinal of the GPU it is on.

    Raises:
        PlanError: the plan is damaged, or for another TensorRT or GPU.
        UnsupportedError: the TensorRT that the plan needs is not installed.
        CudaError: there is no GPU.
    """

    def __init__(
        self,
        plan: Plan | str | os.PathLike[str],
        *,
        backend: str | Backend = "auto",
        ordinal: int = 0,
    ) -> None:
        self._native: Any = None
        self.plan = plan if isinstance(plan, Plan) else Plan.load(Path(plan))
        self.ordinal = ordinal
        self.backend = _backend_for(self.plan, backend)
        _check(self.plan, environment_of([self.backend], require_gpu(ordinal)))
        self._native = self.backend.deserialize(self.plan.data)
        with self._readable():
            self.profile_count = max(1, int(self._native.num_optimization_profiles))
            self.tensors = self._read_tensors()

    @property
    def native(self) -> Any:
        """TensorRT's own ``ICudaEngine``; it must not be used after :meth:`close`."""
        if self._native is None:
            raise ClosedError("the engine is closed")
        return self._native

    @property
    def inputs(self) -> tuple[PlanTensor, ...]:
        """The tensors to be supplied."""
        return tuple(tensor for tensor in self.tensors if tensor.mode == "input")

    @property
    def outputs(self) -> tuple[PlanTensor, ...]:
        """The tensors that come back."""
        return tuple(tensor for tensor in self.tensors if tensor.mode == "output")

    @property
    def activation_bytes(self) -> int:
        """Device memory that one execution context needs for the largest profile."""
        return int(self.native.device_memory_size_v2)

    def is_host_tensor(self, name: str) -> bool:
        """Whether TensorRT reads or writes the tensor in host memory, as it does with shapes."""
        return str(self.native.get_tensor_location(name).name) == "HOST"

    def create_context(self) -> Any:
        """A new ``IExecutionContext`` with device memory of its own.

        Raises:
            PlanError: the plan's weights were left out.
            CudaError: TensorRT gave none: too little memory, or no kernel for this GPU.
        """
        self.plan.check_complete()
        with self.backend.collected_errors() as errors:
            context = self.native.create_execution_context()
        if context is None:
            raise CudaError(
                f"{self.backend.product} gave no execution context: too little GPU memory"
                f" ({self.activation_bytes} bytes are needed), or a kernel is missing for this GPU",
                errors,
            )
        return context

    def layers(self) -> list[dict[str, Any]]:
        """What the engine inspector tells of each layer.

        Returns:
            One mapping per layer. With profiling verbosity ``detailed`` it has the layer's name,
            type, precision and tensors; with less, only ``Name``.
        """
        inspector, form = self.native.create_engine_inspector(), self.backend.json_format()
        with self._readable():
            whole = layer_records(inspector.get_engine_information(form))
            if whole is not None:
                return whole
            count = int(self.native.num_layers)
            texts = [str(inspector.get_layer_information(i, form)) for i in range(count)]
        return [
            layer for text in texts for layer in layer_records(text) or [{"Name": text.strip()}]
        ]

    def close(self) -> None:
        """Free the engine's device memory. May be called again."""
        self._native = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Blame the plan where what the engine tells makes no sense: names that are no text, say.

        The bytes of a plan without a manifest may be damaged in a way that TensorRT does not see.
        """
        try:
            yield
        except (IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PlanError(
                f"{self.backend.product} loaded the plan, but what it tells of it makes no sense"
                f" ({reason}): the plan is damaged; copy or build it again"
            ) from error

    def _read_tensors(self) -> tuple[PlanTensor, ...]:
        known = {t.name: t for t in self.plan.manifest.tensors} if self.plan.manifest else {}
        count = int(self.native.num_io_tensors)
        tensors = [self._read_tensor(self.native.get_tensor_name(i), known) for i in range(count)]
        return tuple(sorted(tensors, key=lambda tensor: tensor.mode != "input"))

    def _read_tensor(self, name: str, known: dict[str, PlanTensor]) -> PlanTensor:
        engine = self.native
        dtype = DTYPES[engine.get_tensor_dtype(name).name]
        if dtype in ("int4", "float4_e2m1fn"):
            raise UnsupportedError(f"tensor {name!r} is {dtype}: packed types are no plan inputs")
        is_input = engine.get_tensor_mode(name).name == "INPUT"
        shape = tuple(int(extent) for extent in engine.get_tensor_shape(name))
        host = is_input and self.is_host_tensor(name)
        profiles = range(self.profile_count) if is_input else ()
        return PlanTensor(
            name=name,
            mode="input" if is_input else "output",
            dtype=dtype,
            shape=shape,
            dims=known[name].dims if name in known else (None,) * len(shape),
            profiles=tuple(
                _range(engine.get_tensor_profile_shape(name, index))
                for index in profiles
                if -1 in shape
            ),
            values=tuple(
                _range(bounds)
                for index in profiles
                if host and (bounds := engine.get_tensor_profile_values(index, name))
            ),
        )


def layer_records(text: Any) -> list[dict[str, Any]] | None:
    """The layers in what an engine inspector wrote about an engine, or about one layer.

    Returns:
        One mapping per layer; a layer of which only the name is told has only ``Name``. None where
        the text is no JSON, or tells no layers.
    """
    try:
        data = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    if isinstance(data, dict):
        data = data.get("Layers", [data] if "Name" in data else None)
    elif isinstance(data, str):
        data = [data]
    if not isinstance(data, list):
        return None
    return [dict(layer) if isinstance(layer, dict) else {"Name": str(layer)} for layer in data]


def environment_of(backends: Iterable[Backend], gpu: GpuInfo | None) -> Environment:
    """What these libraries and this GPU mean for loading plans."""
    loaded = list(backends)
    return Environment(
        libraries={backend.product: backend.version for backend in loaded},
        targets={b.product: b.capabilities.targets for b in loaded if b.capabilities.targets},
        gpu=gpu.name if gpu else None,
        compute_capability=gpu.compute_capability if gpu else None,
        driver=gpu.driver if gpu else None,
        total_bytes=gpu.total_bytes if gpu else None,
        free_bytes=gpu.free_bytes if gpu else None,
    )


def _check(plan: Plan, environment: Environment) -> None:
    """Refuse a plan that is known not to load, before TensorRT sees its bytes."""
    verdict = compatibility(plan.header, plan.manifest, environment)
    if not verdict.loads:
        raise PlanError(
            f"this plan cannot be loaded: {'; '.join(verdict.faults)}"
            " (trt-native doctor PLAN tells how to build it again)"
        )
    for doubt in verdict.doubts:
        _LOGGER.info("%s: %s", plan.path or "plan", doubt)


def _range(bounds: Any) -> ShapeRange:
    low, best, high = (tuple(int(extent) for extent in bound) for bound in bounds)
    return ShapeRange(low, best, high)


def _backend_for(plan: Plan, backend: str | Backend) -> Backend:
    if not isinstance(backend, str):
        return backend
    if backend == "auto":
        backend = "rtx" if plan.header.product == "TensorRT-RTX" else "tensorrt"
    return load_backend(backend)
