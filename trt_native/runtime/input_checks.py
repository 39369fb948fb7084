"""Checks of inputs and output buffers, and the choice of the optimization profile."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from trt_native.arrays import Array
from trt_native.errors import SpecError
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime.tensor_views import ALIGNMENT, TensorView, nbytes_of, read
from trt_native.shapes import Shape, format_shape

__all__ = [
    "check_aliases",
    "check_inputs",
    "check_outputs",
    "check_views",
    "choose_profile",
    "count_profiles",
    "describe_input",
    "host_values",
    "native_order",
    "overlaps",
    "read_inputs",
]


def read_inputs(inputs: Mapping[str, Any]) -> tuple[dict[str, TensorView], list[str]]:
    """View the inputs; the second result lists the values that are not arrays."""
    views, problems = {}, []
    for name, value in inputs.items():
        try:
            views[name] = read(value)
        except SpecError as error:
            problems.append(f"{name!r}: {error}")
    return views, problems


def check_inputs(
    tensors: tuple[PlanTensor, ...],
    profile_count: int,
    inputs: Mapping[str, Any],
    *,
    partial: bool = False,
) -> int:
    """Check arrays against the inputs of an engine, and choose the optimization profile.

    Args:
        tensors: The engine's inputs.
        profile_count: Number of its profiles.
        inputs: The arrays, by name.
        partial: Whether inputs may be missing.

    Returns:
        Number of the tightest profile that allows all the shapes.

    Raises:
        SpecError: an input is missing, unknown, of another dtype, or its shape is allowed by no
            profile; one error lists all problems.
    """
    views, problems = read_inputs(inputs)
    return check_views(tensors, profile_count, views, frozenset(), problems, partial=partial)


def count_profiles(tensors: Iterable[PlanTensor]) -> int:
    """The number of optimization profiles, as far as inputs show it; at least 1."""
    return max((len(tensor.profiles) for tensor in tensors), default=0) or 1


def check_views(
    tensors: tuple[PlanTensor, ...],
    profile_count: int,
    views: Mapping[str, TensorView],
    on_host: frozenset[str],
    problems: Iterable[str] = (),
    ordinal: int | None = None,
    *,
    partial: bool = False,
) -> int:
    """Check inputs as :func:`check_inputs`, given views of them.

    Args:
        tensors: The engine's inputs.
        profile_count: Number of its profiles.
        views: The arrays, by name.
        on_host: Names of the inputs that TensorRT reads on the host.
        problems: Known problems.
        ordinal: CUDA ordinal of the engine's GPU.
        partial: Whether inputs may be missing.
    """
    known = {tensor.name for tensor in tensors}
    found = list(problems)
    found += [f"{name!r} is not an input" for name in views if name not in known]
    for tensor in tensors:
        if tensor.name in views:
            found += _problems_of(tensor, views[tensor.name], tensor.name in on_host)
            found += _elsewhere(tensor.name, views[tensor.name], ordinal)
        elif not partial and not any(p.startswith(f"{tensor.name!r}:") for p in found):
            found.append(f"{tensor.name!r} is missing")
    if not found:
        shapes = {name: view.shape for name, view in views.items()}
        given = tuple(tensor for tensor in tensors if tensor.name in shapes)
        profile = choose_profile(given, profile_count, shapes)
        if profile is not None:
            return profile
        found.append("no single profile allows these shapes together")
    listing = ["the engine's inputs:"]
    listing += [f"- {describe_input(tensor)}" for tensor in tensors]
    raise SpecError("the inputs do not fit the engine:", listing, problems=found)


def zeros_for(
    tensors: Iterable[PlanTensor], given: Mapping[str, Any], profile: int = 0
) -> dict[str, Any]:
    """Arrays for inputs: those that are given, else zeros of the shapes that are.

    An input without either has the optimum in one profile: its shape, or its values.

    Raises:
        SpecError: an input is unknown, or what is given for it is neither.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    if unknown := sorted(given.keys() - by_name.keys()):
        raise SpecError(
            f"not inputs of the engine: {', '.join(unknown)}; it has {', '.join(by_name)}"
        )
    return {name: _zeros(tensor, given.get(name), profile) for name, tensor in by_name.items()}


def _zeros(tensor: PlanTensor, value: Any, profile: int) -> Any:
    if hasattr(value, "nbytes"):
        return value
    if value is None and tensor.values:
        return np.array(tensor.values[profile].opt, tensor.dtype).reshape(tensor.shape)
    if value is None:
        value = tensor.profiles[profile].opt if tensor.profiles else tensor.shape
    shape = value if isinstance(value, tuple | list) else ()
    if shape is not value or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise SpecError(
            f"{tensor.name!r}: neither a shape nor an array: {value!r}; write for example"
            " (1, 3, 8, 8)"
        )
    return np.zeros(shape, tensor.dtype)


def choose_profile(
    tensors: tuple[PlanTensor, ...], profile_count: int, shapes: Mapping[str, Shape]
) -> int | None:
    """Return the tightest profile that allows all the shapes; None if there is none.

    The tightest is the one whose largest shapes hold the fewest elements, and among equals whose
    smallest shapes hold the most, as it was optimized for shapes closest to these; then the first.
    """
    allowing = [
        index
        for index in range(profile_count)
        if all(_allowed(tensor, shapes[tensor.name], index) for tensor in tensors)
    ]
    return min(allowing, key=lambda index: _room(tensors, index), default=None)


def _room(tensors: tuple[PlanTensor, ...], profile: int) -> tuple[int, int]:
    ranges = [tensor.profiles[profile] for tensor in tensors if tensor.profiles]
    return (
        sum(math.prod(allowed.max) for allowed in ranges),
        -sum(math.prod(allowed.min) for allowed in ranges),
    )


def _problems_of(tensor: PlanTensor, view: TensorView, on_host: bool) -> list[str]:
    problems = []
    if view.dtype != tensor.dtype:
        advice = f".astype({tensor.dtype!r})" if view.kind == "numpy" else "cast=True"
        problems.append(
            f"{tensor.name!r} needs {tensor.dtype}, found {view.dtype}; convert it with {advice}"
        )
    shape = view.shape
    if not any(_allowed(tensor, shape, index) for index in range(max(1, len(tensor.profiles)))):
        problems.append(f"{tensor.name!r} cannot have the shape {format_shape(shape)}")
    if view.on_device and on_host:
        problems.append(f"{tensor.name!r} is read on the host; give it as a NumPy array")
    if view.on_device and not view.contiguous:
        problems.append(
            f"{tensor.name!r} is not contiguous; make it so, or allow it with cast=True"
        )
    elif view.on_device and not view.aligned:
        problems.append(
            f"{tensor.name!r} begins at an address that is not a multiple of {ALIGNMENT}; copy it,"
            " or allow that with cast=True"
        )
    return problems


def _elsewhere(name: str, view: TensorView, ordinal: int | None) -> list[str]:
    """Problem of an array on a GPU other than the engine's."""
    if view.ordinal is None or ordinal is None or view.ordinal == ordinal:
        return []
    return [f"{name!r} is on GPU {view.ordinal}, the engine on GPU {ordinal}: copy it there"]


def _allowed(tensor: PlanTensor, shape: Shape, profile: int) -> bool:
    if tensor.profiles:
        return tensor.profiles[profile].contains(shape)
    return bool(shape == tensor.shape)


def describe_input(tensor: PlanTensor) -> str:
    """Describe an input in one line: name, dtype and allowed shapes."""
    ranges = " or ".join(map(str, tensor.profiles)) or format_shape(tensor.shape)
    return f"{tensor.name}: {tensor.dtype} {ranges}"


def check_outputs(
    tensors: tuple[PlanTensor, ...],
    shapes: Mapping[str, Shape],
    out: Mapping[str, TensorView],
    ordinal: int | None = None,
) -> None:
    """Check the caller's output buffers.

    Raises:
        SpecError: one is unknown, of another dtype or shape, or cannot be written in place; one
            error lists all problems.
    """
    known = {tensor.name: tensor for tensor in tensors}
    problems = [f"{name!r} is not an output" for name in out if name not in known]
    for name, view in out.items():
        if name not in known:
            continue
        if view.dtype != known[name].dtype:
            problems.append(f"{name!r} is {known[name].dtype}, its buffer {view.dtype}")
        if -1 in shapes[name]:
            problems.append(f"{name!r}: its shape depends on data, so it cannot have a buffer")
        elif view.shape != shapes[name]:
            problems.append(
                f"{name!r} has the shape {format_shape(shapes[name])},"
                f" its buffer {format_shape(view.shape)}"
            )
        problems += _elsewhere(name, view, ordinal)
        if view.on_device and not (view.contiguous and view.aligned):
            problems.append(
                f"{name!r}: its buffer is not contiguous, or not {ALIGNMENT}-byte aligned"
            )
        if view.host is not None and not view.host.flags.c_contiguous:
            problems.append(f"{name!r}: its buffer is not contiguous")
        if view.host is not None and not view.host.flags.writeable:
            problems.append(f"{name!r}: its buffer is read-only")
        if view.host is not None and not view.host.dtype.isnative:
            problems.append(f"{name!r}: its buffer is not in this machine's byte order")
    if problems:
        raise SpecError("the output buffers do not fit:", problems=problems)


def check_aliases(
    aliases: Mapping[str, str],
    views: Mapping[str, TensorView],
    out: Mapping[str, TensorView],
    *,
    on_device: bool,
) -> None:
    """Check the arrays of inputs that the engine writes outputs into.

    Args:
        aliases: Each such output, with the name of the input.
        views: The inputs.
        out: The caller's output buffers.
        on_device: Whether outputs without a buffer are wanted on the GPU.

    Raises:
        SpecError: an output is wanted elsewhere than in the memory of its input, or two inputs
            share it; one error lists all problems.
    """
    problems = overlaps(aliases, views)
    for name, alias in aliases.items():
        view, buffer = views[alias], out.get(name)
        place = f"{name!r} is written in the memory of {alias!r}"
        if buffer is not None and buffer.on_device and buffer.pointer != view.pointer:
            problems.append(f"{place}: give that array as its buffer, or none")
        elif buffer is None and on_device and not view.on_device:
            problems.append(f"{place}, which is on the host: give it on the GPU")
    if problems:
        raise SpecError("the arrays do not fit what the engine writes in place:", problems=problems)


def overlaps(aliases: Mapping[str, str], views: Mapping[str, TensorView]) -> list[str]:
    """A line for each input that shares memory with one that is written."""
    written = set(aliases.values())
    ranges = sorted(
        (view.pointer, view.pointer + nbytes_of(view.shape, view.dtype), name)
        for name, view in views.items()
        if view.on_device and 0 not in view.shape
    )
    found = []
    for index, (_, end, name) in enumerate(ranges):
        for start, _, other in ranges[index + 1 :]:
            if start >= end:
                break
            if written & {name, other}:
                found.append(
                    f"{name!r} and {other!r} share memory that is written: give each its own"
                )
    return found


def host_values(views: Mapping[str, TensorView], on_host: frozenset[str]) -> tuple[bytes, ...]:
    """Values of the inputs that TensorRT reads on the host, which determine shapes."""
    return tuple(
        native_order(views[name].host).tobytes()
        for name in sorted(on_host)
        if name in views and views[name].host is not None
    )


def native_order(array: Any) -> Array:
    """Return a C-contiguous copy in the machine's byte order."""
    return np.array(array, array.dtype.newbyteorder("="), order="C")
