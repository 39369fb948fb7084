"""Plans behind the interface of the PyTorch modules that they replace."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from trt_native.errors import SpecError, UnsupportedError
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime import ActivationMemory, Session
from trt_native.runtime.engine import Engine
from trt_native.runtime.tensor_views import torch_dtype, torch_stream

__all__ = ["AttrDict", "EngineRunner", "PlanModule", "StepRunner", "StreamFollower", "gpu_ordinal"]

_LOGGER = logging.getLogger(__name__)
_Module = TypeVar("_Module", bound="PlanModule")


class AttrDict(dict[str, Any]):
    """A model's configuration, by item and by attribute like diffusers' ``FrozenDict``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the configuration has no {name!r}") from None


class StepRunner(Protocol):
    """Runs the steps of one plan.

    Attributes:
        name: Name for errors.
        tensors: Inputs and outputs.
        device: Device of all tensors.
    """

    name: str
    tensors: tuple[PlanTensor, ...]
    device: torch.device

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Write ``outputs`` in place, in the order of torch's current stream."""

    def close(self) -> None:
        """Free the plan. Idempotent."""


class EngineRunner:
    """A :class:`StepRunner` of an engine, which it owns.

    Args:
        engine: The engine, on a GPU.
        memory: Memory for activations, shared with runners that do not run at the same time; None
            for memory of its own. The caller closes it, after the runners.

    Attributes:
        engine: The engine.
    """

    def __init__(self, engine: Engine, memory: ActivationMemory | None = None) -> None:
        self.name = engine.plan.path.name if engine.plan.path else "the plan"
        self.device = torch.device("cuda", engine.ordinal)
        self.tensors = engine.tensors
        self.engine = engine
        try:
            self._session = Session(engine, activation_memory=memory)
        except BaseException:
            engine.close()
            raise

    def run(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """See :class:`StepRunner`."""
        stream = torch_stream(self.engine.ordinal)
        self._session.run(inputs, out=outputs, stream=stream)

    def close(self) -> None:
        """See :class:`StepRunner`."""
        self._session.close()
        self.engine.close()


class StreamFollower:
    """Orders calls on different streams of torch that share buffers.

    Args:
        device: Device of the buffers; without effect on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def follow(self, buffers: Iterable[Tensor]) -> None:
        """Let the current stream wait for the calls before, which used the same buffers."""
        if self._device.type != "cuda":
            return
        stream = torch.cuda.current_stream(self._device)
        if self._stream is not None and self._stream != stream:
            stream.wait_stream(self._stream)
            for tensor in buffers:
                tensor.record_stream(stream)
        self._stream = stream


class PlanModule(nn.Module):
    """A module without parameters whose device and type are those of a plan.

    ``.to`` another device is an error, ``.to`` another type only logs a warning.

    Args:
        runner: Runs the plan.
        dtype: Type of the plan's inputs, by NumPy's name.
    """

    def __init__(self, runner: StepRunner, dtype: str) -> None:
        super().__init__()
        self._plan_name = runner.name
        self._device = runner.device
        self._dtype: torch.dtype = torch_dtype(dtype)
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of the plan."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the plan's inputs."""
        return self._dtype

    def to(self: _Module, *args: Any, **kwargs: Any) -> _Module:
        """Check that the plan is on the requested device; types are converted in each call.

        Raises:
            UnsupportedError: it is on another device.
        """
        for value in (*args, kwargs.get("device"), kwargs.get("dtype"), kwargs.get("tensor")):
            if isinstance(value, Tensor):
                self.to(value.device, value.dtype)
            elif isinstance(value, torch.dtype):
                self._warn_of_type(value)
            elif isinstance(value, (str, torch.device)):
                self._check_device(torch.device(value))
            elif isinstance(value, int) and not isinstance(value, bool):
                self._check_device(torch.device("cuda", value))
        return self

    def cuda(self: _Module, device: torch.device | int | str | None = None) -> _Module:
        """Check the device, as :meth:`to`."""
        return self.to("cuda" if device is None else device)

    def cpu(self: _Module) -> _Module:
        """Check the device, as :meth:`to`."""
        return self.to("cpu")

    def close(self) -> None:
        """Free the plans and their memory. Idempotent."""
        raise NotImplementedError

    def __enter__(self: _Module) -> _Module:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_device(self, device: torch.device) -> None:
        index = self.device.index if device.index is None else device.index
        if (device.type, index) != (self.device.type, self.device.index):
            raise UnsupportedError(
                f"{self._plan_name} is on {self.device} and cannot be moved to {device}; load it"
                " there with device=..., and keep it out of CPU offloading"
            )

    def _warn_of_type(self, dtype: torch.dtype) -> None:
        if dtype != self.dtype:
            _LOGGER.warning(
                "%s takes %s, not %s: inputs are converted in each call; a plan's types are fixed"
                " when it is exported and built",
                self._plan_name,
                self.dtype,
                dtype,
            )


def gpu_ordinal(device: torch.device | int | str | None) -> int:
    """CUDA ordinal of a device that plans can run on; by default torch's current one."""
    if not torch.cuda.is_available():
        raise UnsupportedError(
            "PyTorch finds no GPU, and a plan runs on one"
            f" (torch {torch.__version__}, CUDA {torch.version.cuda})"
        )
    chosen = torch.device("cuda" if device is None else device)
    if chosen.type != "cuda":
        raise SpecError(f"a plan runs on a GPU, not on {chosen}")
    return torch.cuda.current_device() if chosen.index is None else chosen.index
