"""Work on a stream of its own, whose results are waited for where they are first read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["SideStream"]

# Operators that stay on the stream of their operand; everything else waits for it first.
_DEFERRED = frozenset(
    name
    for stem in ("mul", "add", "sub", "div", "truediv")
    for name in (stem, f"__{stem}__", f"__r{stem}__")
) | {"clamp", "multiply", "subtract", "divide", "rsub"}
# Attributes that are known without the values.
_KNOWN = frozenset(
    ("shape", "dtype", "device", "ndim", "is_cuda", "is_cpu", "layout", "requires_grad", "grad_fn")
)


class SideStream:
    """A CUDA stream of its own for work that the current stream need not wait for.

    Results are tensors that behave like any other. Sums, products and the like of them continue on
    this stream; every other use makes the stream that is current then wait for them, on the GPU.
    Only code that passes a tensor to a C++ extension around PyTorch's dispatcher could read them
    too early.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function of tensors on the stream, after the current stream's work so far."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        for tensor in _tensors((args, kwargs)):
            if not isinstance(tensor, _Pending) and tensor.is_cuda:
                tensor.record_stream(self.stream)  # not to be reused before this has read it
        plain = _unwrapped((args, kwargs))
        with torch.cuda.stream(self.stream):
            found = function(*plain[0], **plain[1])
            done = self.stream.record_event()
        return pytree.tree_map_only(Tensor, lambda t: _Pending.of(t, self, done), found)

    def wait(self, tensor: Tensor, done: torch.cuda.Event) -> None:
        """Let the current stream wait for a result."""
        current = torch.cuda.current_stream(self.stream.device)
        current.wait_event(done)
        tensor.record_stream(current)


class _Pending(Tensor):
    """A tensor that a side stream computes."""

    side: SideStream
    done: torch.cuda.Event

    @classmethod
    def of(cls, tensor: Tensor, side: SideStream, done: torch.cuda.Event) -> _Pending:
        pending = tensor.as_subclass(cls)
        pending.side, pending.done = side, done
        return pending

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            name = getattr(func, "__name__", "")
            if name == "__get__" and getattr(func.__self__, "__name__", "") in _KNOWN:
                return func(*args, **kwargs)
            pending = [t for t in _tensors((args, kwargs)) if isinstance(t, _Pending)]
            if name in _DEFERRED and "out" not in kwargs:
                return pending[0].side.run(func, *args, **kwargs)
            plain_args, plain_kwargs = _unwrapped((args, kwargs))
            for tensor in pending:
                tensor.side.wait(tensor.as_subclass(Tensor), tensor.done)
            return func(*plain_args, **plain_kwargs)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _unwrapped(tree: Any) -> Any:
    return pytree.tree_map_only(_Pending, lambda tensor: tensor.as_subclass(Tensor), tree)
