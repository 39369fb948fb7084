"""Options and results of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trt_native.arrays import Array
from trt_native.bench.statistics import (
    PHASES,
    Bottleneck,
    LayerTime,
    Ratio,
    Statistics,
    find_bottleneck,
    stability_problems,
)
from trt_native.cuda import GpuInfo
from trt_native.errors import SpecError

__all__ = ["PHASES", "BenchOptions", "BenchReport", "Memory", "PlanComparison", "Span"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """Options of a benchmark.

    Attributes:
        iterations: Least number of executions that each phase is measured with.
        duration_s: Least time that each phase is measured for.
        warmup_s: Time for which the plan runs before anything is measured.
        depth: Calls in flight in the pipelined measurement.
        streams: Sessions on the one engine, each in a thread of its own.
        layers: Whether to time each layer.

    Raises:
        SpecError: a value is out of range.
    """

    iterations: int = 10
    duration_s: float = 1.0
    warmup_s: float = 0.2
    depth: int = 2
    streams: int = 1
    layers: bool = False

    def __post_init__(self) -> None:
        for name in ("iterations", "depth", "streams"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} {getattr(self, name)}: must be at least 1")
        for name in ("duration_s", "warmup_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                what = name.removesuffix("_s")
                raise SpecError(f"{what} of {value:g} s: give a time that is not negative")


@dataclass(frozen=True, slots=True)
class PlanComparison:
    """Comparison of the plan with another one.

    Attributes:
        other: The other plan's path.
        ratios: In GPU compute, and end to end.
    """

    other: str
    ratios: tuple[Ratio, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """A time span of one call, in milliseconds from its start; the median of many calls.

    Attributes:
        lane: ``host`` or ``GPU``.
        name: The activity.
        start_ms: When it starts.
        stop_ms: When it stops.
    """

    lane: str
    name: str
    start_ms: float
    stop_ms: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Device memory, in bytes.

    Attributes:
        weights: What loading the plan took.
        context: What making a session took.
        activations: What TensorRT says a context needs.
        peak: The most that was in use at the end of a phase, above what was before the plan.
        inputs: Size of all inputs.
        outputs: Size of all outputs.
    """

    weights: int
    context: int
    activations: int
    peak: int
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Results of a benchmark.

    Attributes:
        plan: Path, product, version and size of the plan.
        gpu: The GPU and its driver.
        options: How it was measured.
        inputs: Name, dtype and shape of each input.
        samples: Milliseconds by phase (a key of :data:`PHASES`), in the order they were taken.
        throughput: Calls per second: ``compute`` and ``compute_no_graph`` with what is on the GPU;
            ``synchronous`` and ``pipelined`` from NumPy to NumPy; ``streams`` of all threads.
        load_ms: To deserialize the plan, to make a session, and the first call.
        memory: Device memory.
        timeline: Activities of a single call.
        layers: Slowest first; None unless asked for.
        comparison: None unless asked for.
    """

    plan: dict[str, Any]
    gpu: GpuInfo
    options: BenchOptions
    inputs: tuple[dict[str, Any], ...]
    samples: Mapping[str, Array] = field(repr=False)
    throughput: dict[str, float]
    load_ms: dict[str, float]
    memory: Memory
    timeline: tuple[Span, ...]
    layers: tuple[LayerTime, ...] | None = None
    comparison: PlanComparison | None = None

    @property
    def phases(self) -> dict[str, Statistics]:
        """The statistics of each phase."""
        return {name: Statistics.of(values) for name, values in self.samples.items()}

    @property
    def bottleneck(self) -> Bottleneck:
        """The bottleneck of the throughput."""
        return find_bottleneck(
            {name: float(np.median(values)) for name, values in self.samples.items()}
        )

    @property
    def pipeline_share(self) -> float:
        """Pipelined throughput over what the slowest of H2D, compute and D2H alone allows."""
        slowest = max(float(np.median(self.samples[n])) for n in ("gpu_compute", "h2d", "d2h"))
        return self.throughput["pipelined"] * slowest / 1e3

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the figures."""
        return tuple(
            f"{PHASES[name]} is unstable: {' and '.join(problems)}; lock the clocks with nvidia-smi"
            ", stop what else uses the machine, or raise the warm-up and the duration"
            for name in ("gpu_compute", "end_to_end")
            if (problems := stability_problems(self.samples[name]))
        )

    def to_json(self) -> dict[str, Any]:
        """As ``trt-native bench --json`` prints it."""
        gpu = asdict(self.gpu)
        del gpu["free_bytes"]
        return {
            "kind": "bench",
            "plan": self.plan,
            "gpu": gpu,
            "options": asdict(self.options),
            "inputs": list(self.inputs),
            "phases": {name: stats.to_json() for name, stats in self.phases.items()},
            "throughput_per_s": self.throughput,
            "pipeline_share": self.pipeline_share,
            "load_ms": self.load_ms,
            "memory_bytes": asdict(self.memory),
            "timeline": [asdict(span) for span in self.timeline],
            "bottleneck": asdict(self.bottleneck),
            "warnings": list(self.warnings),
            "layers": None if self.layers is None else [asdict(layer) for layer in self.layers],
            "comparison": None if self.comparison is None else asdict(self.comparison),
        }
