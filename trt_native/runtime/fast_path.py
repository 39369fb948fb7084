"""Inputs like those of an earlier run: nothing of them need be checked again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_native.runtime.execution import BoundShapes
from trt_native.runtime.tensor_views import ALIGNMENT, empty_like_factory

__all__ = ["CachedLaunch", "input_signature"]


@dataclass(slots=True)
class CachedLaunch:
    """What to do with torch tensors on the GPU like those that were run before.

    Attributes:
        layout: Their layout.
        order: For each input of the engine, which of the given tensors it is.
        outputs: Name of each output, and what makes a tensor for it.
    """

    layout: BoundShapes
    order: tuple[int, ...]
    outputs: tuple[tuple[str, Callable[[], Any]], ...]

    @classmethod
    def of(
        cls,
        layout: BoundShapes,
        names: Sequence[str],
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
    ) -> CachedLaunch:
        """Of a run: its layout, the names of the engine's inputs, and the tensors in and out."""
        given = tuple(inputs)
        order = tuple(given.index(name) for name in names)
        made = tuple((name, empty_like_factory(value)) for name, value in outputs.items())
        return cls(layout, order, made)


def input_signature(inputs: Mapping[str, Any]) -> Hashable:
    """What is checked of inputs, in a form that is quick to make and compare.

    Returns:
        A key if all are NumPy arrays, or all are torch tensors on the GPU that need no copy: inputs
        with equal keys pass the same checks. None for anything else.
    """
    torch = sys.modules.get("torch")
    key: list[Any] = []
    kind: Any = None
    for name, value in inputs.items():
        if kind is None:
            kind = type(value)
            key.append(kind)
        if type(value) is not kind:
            return None
        if kind is np.ndarray:
            key += (name, value.shape, value.dtype)
        elif torch is not None and kind is torch.Tensor:
            if not value.is_cuda or not value.is_contiguous() or value.data_ptr() % ALIGNMENT:
                return None
            key += (name, value.shape, value.dtype, value.get_device())
        else:
            return None
    return tuple(key) or None
