"""New values of a plan's weights: checked, converted and kept alive while they are copied."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_native.arrays import Array
from trt_native.backends.base import WeightValues
from trt_native.cuda import Event, Stream, copy_to_host
from trt_native.errors import PlanError, SpecError, close_names
from trt_native.graph.refit_record import RefitRecord
from trt_native.graph.weight_sources import CONVERTED_TYPES, SplitLayout, convert_weight
from trt_native.plans.plan import Plan
from trt_native.runtime.tensor_views import (
    ALIGNMENT,
    TensorView,
    read,
    torch_dtype,
    torch_record_stream,
    torch_stream,
)
from trt_native.shapes import Shape, TensorSpec, format_shape

__all__ = ["NewWeight", "WeightReader"]

_WIDE = ("float32", "float64")


@dataclass(frozen=True, slots=True)
class _Target:
    """A weight of the graph that TensorRT parsed, made of one of the ONNX file.

    Attributes:
        name: Its name.
        dtype: Its type.
        shape: Shape of the weight in the ONNX file.
        split: See :class:`~trt_native.graph.weight_sources.WeightSource`.
    """

    name: str
    dtype: str
    shape: Shape
    split: SplitLayout | None

    @property
    def accepted(self) -> tuple[str, ...]:
        """Types that values may have: its own, and what is rounded to it."""
        if self.dtype not in CONVERTED_TYPES:
            return (self.dtype,)
        return tuple(dict.fromkeys((*_WIDE, self.dtype)))


@dataclass(frozen=True, slots=True)
class NewWeight:
    """Values in the type and layout of a plan.

    Attributes:
        values: Where they are.
        owner: What keeps them alive.
        held: Whether it must be kept until the GPU has the values. Else they are free when
            TensorRT returns, or their memory is reused in the order of the stream.
    """

    values: WeightValues
    owner: Any
    held: bool = False


class WeightReader:
    """Reads new weights for a plan, by their names in the ONNX file.

    Args:
        plan: The plan.
        ordinal: CUDA ordinal of the GPU that its engine is on.

    Raises:
        PlanError: the plan's weights cannot be replaced, or its manifest does not say how.
    """

    def __init__(self, plan: Plan, ordinal: int) -> None:
        record = RefitRecord.of(plan)
        if record.sources is None:
            raise PlanError(
                f"{plan.path or 'the plan'}: its manifest does not record which weights of the"
                " ONNX file its own are made of; build it again"
            )
        plan.check_complete()
        self._ordinal = ordinal
        self._marked = record.marked
        self._rewritten = record.sources.rewritten
        self._targets: dict[str, list[_Target]] = {}
        for name, source in record.sources.sources.items():
            dtype, text, _ = record.signature.weights[name].split(" ")
            shape = () if text == "scalar" else tuple(map(int, text.split("x")))
            if source.split is not None:
                shape = source.split.whole_shape(shape)
            target = _Target(name, dtype, shape, source.split)
            self._targets.setdefault(source.weight, []).append(target)

    def replaceable(self) -> tuple[TensorSpec, ...]:
        """The weights that the plan takes, in the type that it has them in, by name."""
        return tuple(
            TensorSpec(name, targets[0].dtype, targets[0].shape)
            for name, targets in sorted(self._targets.items())
            if self._is_marked(targets)
        )

    def _is_marked(self, targets: Sequence[_Target]) -> bool:
        return self._marked is None or all(one.name in self._marked for one in targets)

    def read(self, weights: Mapping[str, Any], stream: int) -> dict[str, NewWeight]:
        """Check all weights, then convert them.

        Args:
            weights: Arrays on the host or the GPU, by name in the ONNX file.
            stream: Handle of the stream in whose order values on the GPU are converted.

        Returns:
            The values by their names in the graph that TensorRT parsed.

        Raises:
            SpecError: names, types or shapes do not fit, or a type cannot hold the values; all
                problems in one error.
        """
        if not isinstance(weights, Mapping) or not weights:
            raise SpecError("weights: give an array for one weight or more, by name")
        problems: list[str] = []
        views = {}
        for name, value in weights.items():
            try:
                views[name] = view = read(value)
            except SpecError as error:
                problems.append(f"{name!r}: {error.message}")
                continue
            problems += self._problems(name, view)
        _raise(problems)
        return self._convert(views, stream)

    def _problems(self, name: str, view: TensorView) -> Iterator[str]:
        targets = self._targets.get(name)
        if targets is None:
            yield self._unknown(name)
            return
        if not self._is_marked(targets):
            yield f"{name!r} was not made replaceable when the plan was built"
            return
        if view.shape != targets[0].shape or not all(view.dtype in t.accepted for t in targets):
            accepted = [t for t in targets[0].accepted if all(t in o.accepted for o in targets)]
            found = f"{view.dtype} {format_shape(view.shape)}"
            wanted = f"{' or '.join(accepted)} {format_shape(targets[0].shape)}"
            yield f"{name!r} is {found}, the plan needs {wanted}"
        elif view.ordinal not in (None, self._ordinal):
            yield f"{name!r} is on GPU {view.ordinal}, the engine on GPU {self._ordinal}"
        elif view.kind == "foreign" and not view.contiguous:
            yield f"{name!r} is not contiguous"

    def _unknown(self, name: str) -> str:
        if name in self._rewritten:
            made = ", ".join(map(repr, self._rewritten[name])) or "other constants"
            return f"{name!r} is computed into {made}: put it in by a file (refit_plan)"
        close = close_names(name, self._targets)
        return f"{name!r} is unknown to the plan" + (f"; close: {close[0]!r}" if close else "")

    def _convert(self, views: Mapping[str, TensorView], stream: int) -> dict[str, NewWeight]:
        made: dict[str, NewWeight] = {}
        overflows: dict[tuple[str, str], Any] = {}
        hop = Event(ordinal=self._ordinal)
        for name, view in views.items():
            view = _on_stream(view, stream, self._ordinal, hop)
            for target in self._targets[name]:
                convert = _from_torch if view.kind == "torch" and view.on_device else _from_host
                made[target.name], overflows[name, target.dtype] = convert(view, target, stream)
        _raise(
            f"{name!r} has values that {dtype} cannot hold, which the plan has it in"
            for (name, dtype), beyond in _truths(overflows, stream).items()
            if beyond
        )
        return made


def _raise(problems: Any) -> None:
    problems = tuple(problems)
    if problems:
        raise SpecError(
            "the weights do not fit the plan, which keeps those that it has:",
            problems=problems,
            options=("weights",),
        )


def _on_stream(view: TensorView, stream: int, ordinal: int, hop: Event) -> TensorView:
    """The array, complete in the order of a stream; one on the GPU that is torch's or as it is."""
    if not view.on_device:
        return view
    if view.kind == "torch":
        current = torch_stream(ordinal)
        if current != stream:
            hop.pass_on(current, stream)
            torch_record_stream(view.value, stream)
        return view
    if view.producer not in (None, stream):
        hop.pass_on(view.producer, stream)
    return view


def _from_host(view: TensorView, target: _Target, stream: int) -> tuple[NewWeight, bool]:
    if view.on_device and _is_ready(view, target):
        count = math.prod(view.shape)
        values = WeightValues(target.dtype, count, view.pointer, True)
        return NewWeight(values, view.value, held=True), False
    array = _downloaded(view, stream) if view.host is None else view.host
    converted = convert_weight(array, target.dtype, target.split)
    values = WeightValues(target.dtype, converted.size, converted.ctypes.data, False)
    return NewWeight(values, converted), _overflows(array, target.dtype)


def _is_ready(view: TensorView, target: _Target) -> bool:
    return view.dtype == target.dtype and target.split is None and view.aligned


def _downloaded(view: TensorView, stream: int) -> Array:
    array = np.empty(view.shape, view.dtype)
    copy_to_host(array.ctypes.data, view.pointer, array.nbytes, stream)
    Stream.borrowed(stream).synchronize()
    return array


def _overflows(array: Array, dtype: str) -> bool:
    """Whether a finite value becomes infinite in a type."""
    if array.dtype == np.dtype(dtype):
        return False
    ends = (array.min(initial=0), array.max(initial=0))  # NaN where there is one
    if np.isfinite(ends).all():
        return bool(np.isinf(convert_weight(np.array(ends, array.dtype), dtype, None)).any())
    return bool((np.isinf(convert_weight(array, dtype, None)) & np.isfinite(array)).any())


def _from_torch(view: TensorView, target: _Target, stream: int) -> tuple[NewWeight, Any]:
    """Convert a tensor on the GPU, in the order of a stream."""
    torch = sys.modules["torch"]
    value = view.value.detach()
    with torch.cuda.stream(torch.cuda.ExternalStream(stream, value.device)):
        converted = value.to(torch_dtype(target.dtype))
        beyond = None
        if converted.dtype != value.dtype:
            beyond = (torch.isinf(converted) & torch.isfinite(value)).any()
        if target.split is not None:
            high = converted.to(torch.bfloat16).to(converted.dtype)
            converted = target.split.join(converted, high, torch.cat)
        converted = converted.contiguous()
        if converted.data_ptr() % ALIGNMENT:
            converted = converted.clone()
    values = WeightValues(target.dtype, converted.numel(), converted.data_ptr(), True)
    return NewWeight(values, converted), beyond


def _truths(flags: Mapping[Any, Any], stream: int) -> dict[Any, bool]:
    """Flags as truth values; those that a stream computes are read all at once."""
    known = {key: flag for key, flag in flags.items() if isinstance(flag, bool)}
    remote = {key: flag for key, flag in flags.items() if flag is not None and key not in known}
    if remote:
        torch = sys.modules["torch"]
        first = next(iter(remote.values()))
        with torch.cuda.stream(torch.cuda.ExternalStream(stream, first.device)):
            found = torch.stack(list(remote.values())).tolist()
        known |= dict(zip(remote, found, strict=True))
    return known
