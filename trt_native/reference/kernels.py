"""What the operators of this package have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from trt_native.arrays import Array

__all__ = ["Kernel", "is_narrow", "opset_of_node", "widened"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """An implementation of versions of an operator.

    Attributes:
        operator: The operator, of the standard domain.
        run: Gets the node, the inputs, None for those left out, and as keywords the attributes with
            the defaults of the operator's version. Returns the outputs.
        since: The first version.
        below: The first later version that it does not implement; None if there is none.
        has_body: Whether the operator runs a body.
    """

    operator: str
    run: Callable[..., tuple[Any, ...]]
    since: int = 1
    below: int | None = None
    has_body: bool = False

    def covers(self, version: int) -> bool:
        """Whether it implements a version of the operator."""
        return self.since <= version and (self.below is None or version < self.below)


def opset_of_node(node: OpRun) -> int:
    """Version of the standard operators around a node."""
    return int(node.run_params["opsets"][""])


def is_narrow(dtype: np.dtype[Any]) -> bool:
    """Whether a type is FP16 or BF16."""
    return dtype.name in ("float16", "bfloat16")


def widened(array: Array) -> Array:
    """FP16 and BF16 as FP32; anything else as it is."""
    return array.astype(np.float32) if is_narrow(array.dtype) else array
