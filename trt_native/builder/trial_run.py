"""One run of a plan that was just built."""

from __future__ import annotations

from trt_native.cuda import require_gpu
from trt_native.plans.plan import Plan
from trt_native.runtime import Session
from trt_native.runtime.input_checks import zeros_for

__all__ = ["run_once"]


def run_once(plan: Plan) -> bytes:
    """Run a plan on zeros of the first profile's optimum shapes.

    Returns:
        The kernels that were compiled for that, as a runtime cache holds them.

    Raises:
        PlanError, UnsupportedError: the plan cannot be loaded on this machine.
        CudaError: there is no GPU, it has too little memory, or TensorRT failed.
    """
    require_gpu()
    with Session(plan, cuda_graphs=0) as session:
        session.run(zeros_for(session.inputs, {}))
        return session.engine.compiled_kernels()
