"""Dynamic axes of a module's inputs, and the ranges of their dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trt_native.errors import SpecError
from trt_native.export.assumptions import multiple_of
from trt_native.shapes import DimRange, ProfileSpec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NamedAxes", "read_dynamic"]

NamedAxes = Mapping[str, Mapping[int, str]]
"""For each input with dynamic axes the name of the dimension of each."""

_EXAMPLE = "{'x': {0: 'batch=1:8:32'}}"


def read_dynamic(
    dynamic: Mapping[str, Any], tensors: Mapping[str, Tensor], *, has_profiles: bool
) -> tuple[NamedAxes, tuple[ProfileSpec, ...]]:
    """Read which axes are dynamic, and in which range.

    Args:
        dynamic: For each input its dynamic axes, as a mapping of axis to dimension, or a list with
            None for the others. A dimension is a name, with a range or without
            (``"batch=1:8:32"``), or a ``torch.export.Dim``. Where neither it nor the bounds of a
            ``Dim`` say so, it has extents from 1 to that of the example, and its optimum there.
            ``"height*8=64:512:1024"`` is always a multiple of 8.
        tensors: The example.
        has_profiles: Whether the ranges are given elsewhere.

    Returns:
        The axes with the names of their dimensions, and a profile with their ranges, if they have
        any.

    Raises:
        SpecError: it cannot be read, a dimension has two ranges, or the example is outside.
    """
    problems: list[str] = []
    axes: dict[str, dict[int, str]] = {}
    found: dict[str, DimRange] = {}
    examples: dict[str, int] = {}
    for name, axis, given in _entries(dynamic):
        dim, text = _name_and_range(given)
        axes.setdefault(name, {})[axis] = dim
        if name not in tensors or axis not in range(tensors[name].dim()):
            continue  # the export says so
        extent = tensors[name].shape[axis]
        symbol, multiple = _symbol(dim)
        if symbol is not None:
            examples.setdefault(symbol, max(1, extent // multiple))
        limits = _range(dim, text, given, extent)
        if limits is None:
            continue
        if not limits.min <= extent <= limits.max:
            problems.append(f"{dim} is {extent} in the inputs, outside {limits}")
        if symbol is None or any(n % multiple for n in (limits.min, limits.opt, limits.max)):
            why = f"not multiples of {multiple}" if symbol else "a product; give its factors theirs"
            problems.append(f"{dim} has the range {limits}: {why}")
            continue
        own = DimRange(limits.min // multiple, limits.opt // multiple, limits.max // multiple)
        if found.setdefault(symbol, own) != own:
            problems.append(f"{symbol} has two ranges: {found[symbol]} and {own}")
    if has_profiles and found:
        problems.append(f"{', '.join(found)}: has a range here and in the profiles of config")
    if problems:
        raise SpecError("dynamic dimensions do not fit:", problems=problems, options=("dynamic",))
    if has_profiles or not examples:
        return axes, ()
    rest = {name: DimRange(1, n, n) for name, n in examples.items() if name not in found}
    return axes, (ProfileSpec(found | rest),)


def _symbol(dim: str) -> tuple[str | None, int]:
    """The only name in a dimension, and the number that it is multiplied by."""
    names = [factor for factor in dim.split("*") if not factor.isdecimal()]
    return (names[0] if len(names) == 1 else None), multiple_of(dim)


def _entries(dynamic: Mapping[str, Any]) -> Iterator[tuple[str, int, Any]]:
    if not isinstance(dynamic, Mapping):
        raise SpecError(
            f"dynamic: write the axes of each input, such as {_EXAMPLE}; found {dynamic!r}",
            options=("dynamic",),
        )
    for name, given in dynamic.items():
        if not isinstance(given, (Mapping, list, tuple)):
            raise SpecError(
                f"dynamic axes of {name!r}: write for example {_EXAMPLE}; found {given!r}",
                options=("dynamic",),
            )
        axes = given.items() if isinstance(given, Mapping) else enumerate(given)
        yield from ((str(name), axis, dim) for axis, dim in axes if dim is not None)


def _name_and_range(given: Any) -> tuple[str, str | None]:
    if not isinstance(given, str):
        return str(getattr(given, "__name__", given)), None
    dim, equals, text = given.partition("=")
    return dim.strip(), text if equals else None


def _range(dim: str, text: str | None, given: Any, extent: int) -> DimRange | None:
    """The range that an entry gives; None for a name alone."""
    if text is not None:
        try:
            return DimRange.parse(text)
        except SpecError as error:
            raise SpecError(f"dynamic: {dim}: {error.message}", options=("dynamic",)) from None
    if isinstance(given, str) or not isinstance(getattr(given, "max", None), int):
        return None
    least = given.min if isinstance(getattr(given, "min", None), int) else 1
    low = max(1, least)
    return DimRange(low, min(max(low, extent), given.max), given.max)
