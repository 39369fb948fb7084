"""Statistics of measured times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from trt_native.arrays import Array

__all__ = [
    "PAIRS",
    "PHASES",
    "Bottleneck",
    "LayerTime",
    "Ratio",
    "Statistics",
    "find_bottleneck",
    "ratio_of",
    "slowest_first",
    "stability_problems",
]


PHASES = {
    "gpu_compute": "GPU compute",
    "gpu_compute_no_graph": "GPU compute, no graph",
    "enqueue": "enqueue",
    "enqueue_no_graph": "enqueue, no graph",
    "h2d": "H2D",
    "d2h": "D2H",
    "latency": "latency",
    "end_to_end": "end to end",
}
"""Keys of the measured phases, and their names for users."""

PAIRS = 20
"""Number of alternating runs with which two plans are compared."""

_T_95 = 2.093  # Student's t of 19 degrees of freedom, two-sided 95 %
_UNSTABLE_CV = 0.05
_UNSTABLE_DRIFT = 0.03
_ENQUEUE_SHARE = 0.8  # of GPU compute, from which the GPU waits for the host: trtexec's threshold


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of one phase; times in milliseconds.

    Percentiles interpolate between samples. ``cv`` is the standard deviation over the mean.
    """

    count: int
    min: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    max: float
    cv: float

    @classmethod
    def of(cls, samples: Sequence[float] | Array) -> Statistics:
        """Describe times in milliseconds; there is at least one."""
        values = np.asarray(samples, np.float64)
        mean = float(values.mean())
        spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
        median, p90, p95, p99 = (float(p) for p in np.percentile(values, (50, 90, 95, 99)))
        return cls(
            count=int(values.size),
            min=float(values.min()),
            mean=mean,
            median=median,
            p90=p90,
            p95=p95,
            p99=p99,
            max=float(values.max()),
            cv=spread / mean if mean > 0 else 0.0,
        )

    def to_json(self) -> dict[str, float]:
        """A dictionary with the unit in the keys."""
        return {
            f.name if f.name in ("count", "cv") else f"{f.name}_ms": getattr(self, f.name)
            for f in fields(self)
        }


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The resource that limits the speed of consecutive calls.

    Attributes:
        bound: ``compute``, ``transfer`` or ``enqueue``.
        text: One line for users.
    """

    bound: str
    text: str


def find_bottleneck(medians: Mapping[str, float]) -> Bottleneck:
    """Determine what bounds the throughput from the medians of the phases, in milliseconds.

    Copies in both directions, the GPU's computing and the host's enqueueing overlap when calls
    follow one another, so the slowest of them is the bound. Where enqueueing takes about as long as
    computing, the GPU waits for the host between kernels, and what looks like computing is waiting.
    """
    compute, enqueue = medians["gpu_compute"], medians["enqueue"]
    direction = max(("h2d", "d2h"), key=lambda name: medians[name])
    transfer = medians[direction]
    if enqueue >= _ENQUEUE_SHARE * compute and enqueue >= transfer:
        bound = "enqueue"
        text = "the host enqueues work no faster than the GPU does it: more work in each call helps"
    elif transfer > compute:
        bound = "transfer"
        text = (
            f"{PHASES[direction]} takes longer than computing: keep tensors on the GPU, or make"
            " them smaller"
        )
    else:
        bound = "compute"
        text = "the GPU computes, and the rest hides behind it when calls overlap"
    figures = ", ".join(
        f"{PHASES[name]} {medians[name]:.4f} ms"
        for name in ("gpu_compute", "h2d", "d2h", "enqueue")
    )
    return Bottleneck(bound, f"bound by {bound}: {text} ({figures})")


def stability_problems(samples: Sequence[float] | Array) -> list[str]:
    """Reasons not to trust times, given in the order they were taken; empty if they are stable."""
    values = np.asarray(samples, np.float64)
    problems = []
    cv = Statistics.of(values).cv
    if cv > _UNSTABLE_CV:
        problems.append(f"coefficient of variation {cv:.1%}")
    quarter = values.size // 4
    if quarter >= 2:
        drift = float(np.median(values[-quarter:]) / np.median(values[:quarter])) - 1
        if abs(drift) > _UNSTABLE_DRIFT:
            problems.append(f"drift {drift:+.1%} from the first to the last quarter")
    return problems


@dataclass(frozen=True, slots=True)
class Ratio:
    """Speedup of the first plan over the other, in one phase.

    Attributes:
        phase: A key of :data:`PHASES`.
        plan_ms: Median of the first plan.
        other_ms: Median of the other.
        speedup: Time of the other over time of the first.
        low: Lower end of its 95 % confidence interval.
        high: Upper end.
    """

    phase: str
    plan_ms: float
    other_ms: float
    speedup: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1 <= self.high


def ratio_of(phase: str, plan_ms: Sequence[float], other_ms: Sequence[float]) -> Ratio:
    """Compute the ratio of times that were taken in pairs.

    The interval is Student's, of the logarithms of the ratios, which are as often too large as too
    small where the ratios themselves are not.

    Args:
        phase: A key of :data:`PHASES`.
        plan_ms: One time of the first plan for each of the 20 pairs.
        other_ms: The other's.
    """
    logs = np.log(np.asarray(other_ms, np.float64) / np.asarray(plan_ms, np.float64))
    if logs.size != PAIRS:
        raise ValueError(f"{logs.size} pairs; the interval is that of {PAIRS}")
    mean = float(logs.mean())
    half = _T_95 * float(logs.std(ddof=1)) / math.sqrt(PAIRS)
    return Ratio(
        phase=phase,
        plan_ms=float(np.median(plan_ms)),
        other_ms=float(np.median(other_ms)),
        speedup=math.exp(mean),
        low=math.exp(mean - half),
        high=math.exp(mean + half),
    )


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Time of a layer, measured on its own between two synchronisations.

    Attributes:
        name: Its name in the engine.
        median_ms: Median of the iterations.
        mean_ms: Mean of the iterations.
        share: Of the sum of all layers' medians.
    """

    name: str
    median_ms: float
    mean_ms: float
    share: float


def slowest_first(times: Mapping[str, Sequence[float]]) -> tuple[LayerTime, ...]:
    """Describe the times of layers."""
    medians = {name: float(np.median(values)) for name, values in times.items()}
    total = sum(medians.values()) or 1.0
    layers = [
        LayerTime(name, medians[name], float(np.mean(values)), medians[name] / total)
        for name, values in times.items()
    ]
    return tuple(sorted(layers, key=lambda layer: -layer.median_ms))
