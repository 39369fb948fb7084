"""Benchmarks of plans: speed on this GPU, bottleneck, and comparison with another plan.

The phases are those of trtexec's summary: GPU compute, enqueue, H2D, D2H, latency. What is measured
and with which clock:

- ``gpu_compute``: between two CUDA events around one execution, on a queue that is never empty, so
  that the host's own time is not in it unless enqueueing takes longer than computing.
- ``enqueue``: host time to enqueue one execution, in the same loop.
- ``h2d``, ``d2h``: between two events around the copies of all inputs, or outputs, from and to
  page-locked memory.
- ``latency``: host time of one call at a time from page-locked memory to page-locked memory.
- ``end_to_end``: host time of one :meth:`Session.run` with NumPy arrays, copies on the host in it.

The phases alternate over several rounds, so that clock drift affects all of them alike. All access
to the GPU is in :class:`Machine` and the protocols above it.
"""

from trt_native.bench.machine import CudaMachine, Machine
from trt_native.bench.measure import bench_plan
from trt_native.bench.report import PHASES, BenchOptions, BenchReport, Memory, PlanComparison, Span
from trt_native.bench.statistics import Bottleneck, LayerTime, Ratio, Statistics

__all__ = [
    "PHASES",
    "BenchOptions",
    "BenchReport",
    "Bottleneck",
    "CudaMachine",
    "LayerTime",
    "Machine",
    "Memory",
    "PlanComparison",
    "Ratio",
    "Span",
    "Statistics",
    "bench_plan",
]
