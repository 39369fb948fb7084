"""Differences between an array and its reference, and their limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from trt_native.arrays import Array
from trt_native.errors import SpecError
from trt_native.plans.manifest import Manifest
from trt_native.shapes import format_shape

__all__ = [
    "FLOOR",
    "OutputComparison",
    "Thresholds",
    "compare_outputs",
    "default_thresholds",
    "relative_limit",
    "root_mean_square",
]


FLOOR = 1e-6
"""Smallest root mean square that a relative error of an output is measured against."""

# Relative L2 error that rounding alone stays well below, by the arithmetic of the plan.
_RELATIVE = {
    "fp32": 1e-4,
    "tf32": 5e-3,
    "fp16": 1e-2,
    "bf16": 5e-2,
    "int8-weights": 5e-2,
    "int4-weights": 2.5e-1,
    "int8": 1e-1,
    "fp8": 1e-1,
}
_CHUNK = 1 << 20  # elements that are converted to float64 at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputComparison:
    """Comparison of one tensor of a plan with its reference.

    All numbers are of the elements that are finite on both sides, in float64; integers and booleans
    are compared as numbers. With p and r the plan's and the reference's values:

    Attributes:
        name: The tensor.
        shape: Its shape.
        dtype: Its type in the plan.
        relative_l2: ``||p - r|| / max(||r||, floor * sqrt(n))``; 0 if all is equal.
        max_abs: ``max |p - r|``.
        cosine: ``p.r / (||p|| ||r||)``; 1 if both are all zeros, 0 if one is.
        psnr: ``20 log10(range / rms(p - r))`` in dB, where the range is ``max r - min r``, or
            ``max |r|`` of a constant; infinite if all is equal.
        rms: Root mean square of r.
        floored: Whether that is below the floor. Then direction and range of r are those of noise,
            and cosine and PSNR are not judged.
        nan: Number of NaN in the plan's values, and in the reference's.
        inf: Number of infinities, likewise.
        nonfinite_differs: Number of elements that are not finite on one side and something else on
            the other; these fail with any thresholds.
        compared: Number of elements that the other numbers are of. None of many fails, too.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    relative_l2: float
    max_abs: float
    cosine: float
    psnr: float
    rms: float
    floored: bool
    nan: tuple[int, int]
    inf: tuple[int, int]
    nonfinite_differs: int
    compared: int

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it: null for what is infinite or NaN, as the PSNR of equal values is."""
        data = asdict(self)
        for side, key in enumerate(("plan", "reference")):
            data[key] = {"nan": self.nan[side], "inf": self.inf[side]}
        del data["nan"], data["inf"]
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in data.items()
        }

    def worst(self, other: OutputComparison) -> OutputComparison:
        """The worse of each number, and the sum of each count."""
        return replace(
            self,
            relative_l2=_larger(self.relative_l2, other.relative_l2),
            max_abs=_larger(self.max_abs, other.max_abs),
            cosine=min(self.cosine, other.cosine),
            psnr=min(self.psnr, other.psnr),
            floored=self.floored or other.floored,
            nan=(self.nan[0] + other.nan[0], self.nan[1] + other.nan[1]),
            inf=(self.inf[0] + other.inf[0], self.inf[1] + other.inf[1]),
            nonfinite_differs=self.nonfinite_differs + other.nonfinite_differs,
            compared=self.compared + other.compared,
        )


def _larger(one: float, other: float) -> float:
    return other if math.isnan(other) or other > one else one


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Limits that an :class:`OutputComparison` must keep to pass; None does not judge.

    Attributes:
        max_relative_error: Largest relative L2 error.
        max_absolute_error: Largest absolute error.
        min_cosine: Least cosine.
        min_psnr: Least PSNR in dB.
        floor: Smallest root mean square that relative errors are measured against, so that noise
            around zero is not an error. It hides errors of tensors that are that small on purpose;
            0 measures everything as it is.

    Raises:
        SpecError: a number that nothing could pass or fail.
    """

    max_relative_error: float | None = None
    max_absolute_error: float | None = None
    min_cosine: float | None = None
    min_psnr: float | None = None
    floor: float = FLOOR

    def __post_init__(self) -> None:
        for name in ("max_relative_error", "max_absolute_error", "floor"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise SpecError(f"{_words(name)} {value}: it is a number of at least 0")
        if self.min_cosine is not None and not -1 <= self.min_cosine <= 1:
            raise SpecError(f"minimum cosine {self.min_cosine}: it lies between -1 and 1")
        if self.min_psnr is not None and math.isnan(self.min_psnr):
            raise SpecError("minimum PSNR nan: it is a number of decibels")
        if math.isinf(self.floor):
            raise SpecError("floor inf: everything would pass")

    def problems(self, found: OutputComparison) -> list[str]:
        """The limits that a comparison exceeds, a few words each; empty if it passes."""
        problems = []
        if found.nonfinite_differs:
            problems.append(f"{found.nonfinite_differs} NaN or infinite on one side alone")
        elif not found.compared and 0 not in found.shape:
            problems.append("nothing to compare: no value is finite")
        limits = (
            ("relative L2", found.relative_l2, self.max_relative_error),
            ("max abs", found.max_abs, self.max_absolute_error),
        )
        for name, value, limit in limits:
            if limit is not None and not value <= limit:
                problems.append(f"{name} {value:.3g} > {limit:g}")
        least = (("cosine", found.cosine, self.min_cosine), ("PSNR", found.psnr, self.min_psnr))
        for name, value, limit in least:
            if limit is not None and not found.floored and not value >= limit:
                problems.append(f"{name} {value:.6g} < {limit:g}")
        return problems

    def __str__(self) -> str:
        limits = (
            ("relative L2 <=", self.max_relative_error),
            ("max abs <=", self.max_absolute_error),
            ("cosine >=", self.min_cosine),
            ("PSNR >=", self.min_psnr),
        )
        return ", ".join(f"{name} {value:g}" for name, value in limits if value is not None)


def _words(name: str) -> str:
    return name.replace("max_", "maximum ").replace("_", " ")


def default_thresholds(manifest: Manifest | None) -> tuple[Thresholds, str]:
    """The relative error that a plan of this precision may have, and why, in a few words.

    What rounding does to a deep network of that arithmetic stays below it, what a wrong layer does
    seldom: 1e-4 for FP32, 5e-3 for TF32, 1e-2 for FP16, 5e-2 for BF16 and INT8 weights, 1e-1 for
    INT8 and FP8, 2.5e-1 for INT4 weights. A plan whose precision is not known counts as FP16.
    """
    applied = str(manifest.precision.get("applied")) if manifest else "unknown"
    if applied == "fp32" and manifest is not None and manifest.precision.get("tf32"):
        applied = "tf32"
    limit = _RELATIVE.get(applied)
    if limit is not None:
        return Thresholds(max_relative_error=limit), f"the default for a plan in {applied}"
    why = "whose types are the model's own" if manifest else "without a manifest"
    return Thresholds(max_relative_error=_RELATIVE["fp16"]), f"the default for a plan {why}"


def relative_limit(arithmetic: str) -> float:
    """The relative L2 error of :func:`default_thresholds` for an arithmetic, such as ``fp16``."""
    return _RELATIVE[arithmetic]


def compare_outputs(
    name: str, found: Array, expected: Array, *, floor: float = FLOOR
) -> OutputComparison:
    """Compare an array with what it should be.

    Args:
        name: The tensor, for messages.
        found: The plan's values.
        expected: The reference's, of any numeric type.
        floor: See :attr:`OutputComparison.relative_l2`.

    Raises:
        SpecError: the shapes differ, or an array holds no numbers.
    """
    for side, array in (("the plan's", found), ("the reference's", expected)):
        if array.dtype.kind not in "fiub" and "float" not in array.dtype.name:
            raise SpecError(
                f"{side} {name!r} has the type {array.dtype}, which cannot be compared; store"
                " bfloat16 and float8 as float32"
            )
    if found.shape != expected.shape:
        shapes = [format_shape(a.shape) for a in (found, expected)]
        raise SpecError(
            f"output {name!r} has the shape {shapes[0]} in the plan and {shapes[1]} in the"
            " reference; compare with the model that the plan was built from"
        )
    sums = _Sums()
    for p, r in _chunks(found, expected):
        sums.add(p, r)
    rms = sums.rms_of(sums.square_r)
    return OutputComparison(
        name=name,
        shape=tuple(map(int, found.shape)),
        dtype=str(found.dtype),
        relative_l2=sums.relative(floor),
        max_abs=sums.max_abs,
        cosine=sums.cosine(),
        psnr=sums.psnr(),
        rms=rms,
        floored=rms < floor,
        nan=sums.nan,
        inf=sums.inf,
        nonfinite_differs=sums.nonfinite_differs,
        compared=sums.count,
    )


def root_mean_square(array: Array) -> float:
    """Of the finite elements, in float64; 0 if there are none."""
    sums = _Sums()
    for values, _ in _chunks(array, array):
        sums.add(values, values)
    return sums.rms_of(sums.square_r)


def _chunks(found: Array, expected: Array) -> Iterator[tuple[Array, Array]]:
    """Both arrays piece by piece in float64, so that their copies stay small."""
    flat = found.reshape(-1), expected.reshape(-1)
    for start in range(0, found.size, _CHUNK):
        one, other = (array[start : start + _CHUNK].astype(np.float64) for array in flat)
        yield one, other


class _Sums:
    """Sums over the elements that are finite on both sides.

    Squares are of values divided by a power of two near the largest one so far, so that they
    neither overflow nor vanish.
    """

    def __init__(self) -> None:
        self.count = 0
        self.unit = 0.0
        self.square_p = self.square_r = self.square_d = self.product = 0.0
        self.max_abs = 0.0
        self.low, self.high = math.inf, -math.inf
        self.nan = self.inf = (0, 0)
        self.nonfinite_differs = 0

    def add(self, p: Array, r: Array) -> None:
        finite = np.isfinite(p) & np.isfinite(r)
        if not finite.all():
            self._count_nonfinite(p, r)
            p, r = p[finite], r[finite]
        if not p.size:
            return
        self.count += p.size
        self._widen(float(max(np.abs(p).max(), np.abs(r).max())))
        if self.unit:
            p_unit, r_unit = p / self.unit, r / self.unit
            difference = p_unit - r_unit
            self.square_p += float(p_unit @ p_unit)
            self.square_r += float(r_unit @ r_unit)
            self.square_d += float(difference @ difference)
            self.product += float(p_unit @ r_unit)
        with np.errstate(over="ignore"):
            self.max_abs = max(self.max_abs, float(np.abs(p - r).max()))
        self.low, self.high = min(self.low, float(r.min())), max(self.high, float(r.max()))

    def _count_nonfinite(self, p: Array, r: Array) -> None:
        nan, inf = (np.isnan(p), np.isnan(r)), (np.isinf(p), np.isinf(r))
        self.nan = (self.nan[0] + int(nan[0].sum()), self.nan[1] + int(nan[1].sum()))
        self.inf = (self.inf[0] + int(inf[0].sum()), self.inf[1] + int(inf[1].sum()))
        same = (nan[0] & nan[1]) | (inf[0] & inf[1] & (p == r))
        self.nonfinite_differs += int(((nan[0] | nan[1] | inf[0] | inf[1]) & ~same).sum())

    def _widen(self, peak: float) -> None:
        if peak <= self.unit:
            return
        unit = math.ldexp(1.0, min(math.frexp(peak)[1], 1023))
        factor = (self.unit / unit) ** 2
        self.square_p, self.square_r = self.square_p * factor, self.square_r * factor
        self.square_d, self.product = self.square_d * factor, self.product * factor
        self.unit = unit

    def rms_of(self, square: float) -> float:
        return self.unit * math.sqrt(square / self.count) if self.count else 0.0

    def relative(self, floor: float) -> float:
        error, size = self.rms_of(self.square_d), max(self.rms_of(self.square_r), floor)
        if size:
            return error / size
        return math.inf if error else 0.0

    def cosine(self) -> float:
        if self.square_p and self.square_r:
            return self.product / math.sqrt(self.square_p) / math.sqrt(self.square_r)
        return 1.0 if self.square_p == self.square_r else 0.0

    def psnr(self) -> float:
        error = self.rms_of(self.square_d)
        if not error:
            return math.inf
        span = self.high - self.low or abs(self.high)
        return 20 * math.log10(span / error) if span else -math.inf
