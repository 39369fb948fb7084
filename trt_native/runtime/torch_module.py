"""A plan as a PyTorch module, without copies of its tensors."""

from __future__ import annotations

import os
from typing import Any

from trt_native.errors import SpecError, UnsupportedError
from trt_native.plans.plan import Plan
from trt_native.runtime import Session
from trt_native.runtime.engine import Engine
from trt_native.runtime.tensor_views import torch_stream

try:
    import torch
except ImportError:
    raise UnsupportedError(
        "TensorRTModule needs PyTorch, which is not installed: pip install torch, or give arrays of"
        " another kind to trt_native.Session"
    ) from None

__all__ = ["TensorRTModule"]


class TensorRTModule(torch.nn.Module):
    """A TensorRT engine as a module, for inference.

    Tensors on the GPU are not copied, and nothing is synchronized: the engine runs on PyTorch's
    current stream, and its outputs are ready in that stream's order, as with any other module.
    Where all inputs are on the host, the outputs are too, and complete when the call returns.
    Inside ``torch.cuda.graph(...)`` it becomes part of the captured graph, once it has run with the
    same shapes before. ``torch.compile`` leaves it as it is and compiles what is around it.

    The module belongs to one thread at a time, as a session does. It has no parameters: ``.to()``
    and ``.half()`` do not change it.

    Args:
        engine: A session, an engine, or a plan or its path. The caller closes a
            session of its own.
        options: As for :class:`~trt_native.runtime.Session`, unless ``engine`` is one.

    Attributes:
        session: The session that runs it.

    Raises:
        PlanError, UnsupportedError, CudaError: as :class:`~trt_native.runtime.Session`.
    """

    def __init__(
        self, engine: Session | Engine | Plan | str | os.PathLike[str], **options: Any
    ) -> None:
        super().__init__()
        self._owns_session = not isinstance(engine, Session)
        self.session = engine if isinstance(engine, Session) else Session(engine, **options)
        self.input_names = tuple(tensor.name for tensor in self.session.engine.inputs)

    @torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """Run the engine.

        Args:
            args: Inputs in the engine's order.
            kwargs: Inputs by name.

        Returns:
            The output, or a dict of outputs by name where there are several.

        Raises:
            UnsupportedError: an input requires gradients.
            SpecError: names, dtypes or shapes do not fit; one error lists all problems.
            CudaError: TensorRT failed.
        """
        outputs = self._run(self._by_name(args, kwargs))
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def close(self) -> None:
        """Close the session, unless it is the caller's. Idempotent."""
        if self._owns_session:
            self.session.close()

    def extra_repr(self) -> str:
        """Describe the engine's inputs and outputs."""
        tensors = self.session.engine.tensors
        return ", ".join(f"{t.name}: {t.dtype} {t.describe_shape()}" for t in tensors)

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the engine; results on the host are complete, those on the GPU in stream order."""
        if torch.is_grad_enabled() and any(value.requires_grad for value in inputs.values()):
            raise UnsupportedError(
                "a TensorRT engine has no backward: call it under torch.no_grad() or"
                " torch.inference_mode(), or detach its inputs"
            )
        on_gpu = any(value.is_cuda for value in inputs.values())
        stream = torch_stream(self.session.engine.ordinal) if on_gpu else None
        return self.session.run(inputs, stream=stream)

    def _by_name(
        self, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        if len(args) > len(self.input_names):
            raise SpecError(
                f"{len(args)} inputs for an engine with {len(self.input_names)}:"
                f" {', '.join(self.input_names)}"
            )
        inputs = dict(zip(self.input_names, args, strict=False))
        twice = inputs.keys() & kwargs.keys()
        if twice:
            raise SpecError(f"given twice, by position and by name: {', '.join(sorted(twice))}")
        return {**inputs, **kwargs}
