"""One run of a plan that was just built."""

from __future__ import annotations

import ml_dtypes  # noqa: F401  (makes bfloat16 and float8 known to NumPy by name)
import numpy as np

from trt_native.arrays import Array
from trt_native.cuda import require_gpu
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan
from trt_native.runtime import Session

__all__ = ["run_once"]


def run_once(plan: Plan) -> None:
    """Run a plan on zeros of the first profile's optimum shapes.

    Raises:
        PlanError, UnsupportedError: the plan cannot be loaded on this machine.
        CudaError: there is no GPU, it has too little memory, or TensorRT failed.
    """
    require_gpu()
    with Session(plan, cuda_graphs=0) as session:
        session.run({tensor.name: _zeros(tensor) for tensor in session.engine.inputs})


def _zeros(tensor: PlanTensor) -> Array:
    if tensor.values:
        return np.array(tensor.values[0].opt, tensor.dtype).reshape(tensor.shape)
    return np.zeros(tensor.profiles[0].opt if tensor.profiles else tensor.shape, tensor.dtype)
