"""From symbolic dimensions to optimization profiles.

A user gives ranges to the dimensions a model names; every input's shapes follow from them, also
where an axis is an expression such as ``batch*frames``, so that coupled axes stay consistent.
"""

from __future__ import annotations

import json
import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from trt_native.errors import ModelError, SpecError, close_names
from trt_native.files import parse_yaml, read_text_file
from trt_native.shapes import (
    DimRange,
    Profile,
    ProfileSpec,
    Shape,
    ShapeRange,
    TensorSpec,
    format_shape,
)

__all__ = [
    "LIMIT_KEY",
    "dimension_symbols",
    "evaluate_dimension",
    "fixed_axes",
    "fixed_dimensions",
    "fixed_extents",
    "read_limits",
    "read_profile_file",
    "resolve_profiles",
    "shape_problems",
    "with_fast_profiles",
    "with_opt_shape_profiles",
    "write_limits",
]

_LONGEST = 200  # letters of an expression


LIMIT_KEY = "trt_native.max."
"""Prefix of metadata of an ONNX file that limits a dimension, as ``trt_native.max.frames: 24``."""


def write_limits(limits: Mapping[str, int]) -> dict[str, str]:
    """The metadata of an ONNX file with which a build refuses larger extents of dimensions."""
    return {f"{LIMIT_KEY}{name}": str(limit) for name, limit in limits.items()}


def read_limits(metadata: Mapping[str, str]) -> dict[str, int]:
    """Read the largest extents of dimensions from the metadata of an ONNX file.

    Raises:
        ModelError: a limit is not a whole number.
    """
    given = {
        key.removeprefix(LIMIT_KEY): text
        for key, text in metadata.items()
        if key.startswith(LIMIT_KEY)
    }
    for name, text in given.items():
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise ModelError(
                f"the model's metadata {LIMIT_KEY}{name} is {text!r}, which is not a number of"
                " elements; export the model again"
            )
    return {name: int(text) for name, text in given.items()}


def resolve_profiles(
    inputs: Sequence[TensorSpec],
    specs: Sequence[ProfileSpec],
    limits: Mapping[str, int] | None = None,
) -> tuple[Profile, ...]:
    """Work out the shapes of every input in every profile.

    Within one profile a range for an input's shape wins over ranges for dimensions, and binds the
    dimensions that this input names, so that other inputs follow it.

    Args:
        inputs: The model's inputs.
        specs: The requested profiles.
        limits: Dimension to the largest extent that the model can have.

    Returns:
        One resolved profile for each of ``specs``, with every input whose shape is dynamic. An
        empty tuple where all inputs are static and no values of shape inputs were given.

    Raises:
        SpecError: ranges are missing, unknown, unordered or contradict the model. All problems are
            in this one error, with the list of the model's dimensions.
    """
    problems: list[str] = []
    many = len(specs) > 1
    profiles = tuple(
        _resolve(inputs, spec, f"profile {index}: " if many else "", problems, limits or {})
        for index, spec in enumerate(specs or (ProfileSpec(),))
    )
    if problems:
        raise SpecError(
            "the requested shapes do not fit the model:",
            [_known_dimensions(inputs)],
            problems=list(dict.fromkeys(problems)),
            options=("dims", "shapes"),
        )
    return profiles if any(profile.shapes or profile.values for profile in profiles) else ()


def with_opt_shape_profiles(profiles: Sequence[Profile]) -> tuple[Profile, ...]:
    """The profiles, and behind them one of the optimum shapes alone for each that has ranges.

    TensorRT gives a profile without ranges the kernels of a static plan; the weights are shared.
    """
    optima = (Profile(_optima(profile.shapes), _optima(profile.values)) for profile in profiles)
    return _extended(profiles, optima)


def _extended(profiles: Sequence[Profile], more: Iterable[Profile]) -> tuple[Profile, ...]:
    """Profiles, and behind them others that are not among them."""
    found = list(profiles)
    for profile in more:
        if profile not in found:
            found.append(profile)
    return tuple(found)


def with_fast_profiles(
    profiles: Sequence[Profile],
    inputs: Sequence[TensorSpec],
    specs: Sequence[ProfileSpec],
    fast: Sequence[ProfileSpec],
) -> tuple[Profile, ...]:
    """The profiles, and behind them one of each of single shapes inside of them.

    Args:
        profiles: The profiles.
        inputs: The model's inputs.
        specs: What the profiles were resolved from.
        fast: The shapes. What they leave open has the optimum of the profile that has room for it.

    Raises:
        SpecError: a shape does not fit the model, or no profile.
    """
    return _extended(profiles, (_fast_profile(profiles, inputs, specs, one) for one in fast))


def _fast_profile(
    profiles: Sequence[Profile],
    inputs: Sequence[TensorSpec],
    specs: Sequence[ProfileSpec],
    shapes: ProfileSpec,
) -> Profile:
    text = ",".join(f"{name}={r}" for name, r in (*shapes.dims.items(), *shapes.shapes.items()))
    if not profiles:
        raise SpecError(
            f"fast at {text}: no effect, because every shape of the model is fixed",
            options=("fast_at",),
        )
    for profile, spec in zip(profiles, specs, strict=True):
        try:
            (alone,) = resolve_profiles(inputs, [_completed(spec, profile, shapes)])
        except SpecError as error:
            raise SpecError(
                f"fast at {text}: the shape does not fit the model:",
                error.details,
                problems=error.problems,
                options=("fast_at",),
            ) from None
        if _has_room(profile.shapes, alone.shapes) and _has_room(profile.values, alone.values):
            return alone
    raise SpecError(
        f"fast at {text}: outside of the ranges of the profiles; widen them, or leave it out",
        options=("fast_at",),
    )


def _completed(spec: ProfileSpec, profile: Profile, shapes: ProfileSpec) -> ProfileSpec:
    """Shapes, and for what they leave open the optima of a profile."""
    dims = {name: DimRange(r.opt, r.opt, r.opt) for name, r in spec.dims.items()}
    # A shape of an input would win over the dimensions that are given here.
    kept = {name: r for name, r in spec.shapes.items() if not shapes.dims or name in profile.values}
    return ProfileSpec({**dims, **shapes.dims}, {**_optima(kept), **shapes.shapes})


def _has_room(outer: Mapping[str, ShapeRange], inner: Mapping[str, ShapeRange]) -> bool:
    return outer.keys() == inner.keys() and all(
        outer[name].contains(r.opt) for name, r in inner.items()
    )


def _optima(ranges: Mapping[str, ShapeRange]) -> dict[str, ShapeRange]:
    return {name: ShapeRange(r.opt, r.opt, r.opt) for name, r in ranges.items()}


def _resolve(
    inputs: Sequence[TensorSpec],
    spec: ProfileSpec,
    where: str,
    problems: list[str],
    limits: Mapping[str, int],
) -> Profile:
    add = partial(_add_problem, problems, where)
    by_name = {tensor.name: tensor for tensor in inputs}
    values: dict[str, ShapeRange] = {}
    given: dict[str, ShapeRange] = {}
    for name, shapes in spec.shapes.items():
        if name not in by_name:
            add(f"input {name!r} is not one of the model's{_close(name, by_name)}")
        elif _may_be_shape_input(by_name[name], shapes):
            values[name] = shapes
        elif problem := _contradiction(by_name[name], shapes):
            add(problem)
        else:
            given[name] = shapes
    ranges = _bind_dimensions(inputs, spec.dims, given, add)
    for name, limit in limits.items():
        if name in ranges and ranges[name].max > limit:
            add(f"dimension {name!r} reaches {ranges[name].max}, but the model has at most {limit}")
    resolved = {}
    for tensor in inputs:
        if not tensor.is_static:
            shapes_or_none = given.get(tensor.name) or _shapes_from(tensor, ranges, add)
            if shapes_or_none is not None:
                resolved[tensor.name] = shapes_or_none
    return Profile(resolved, values)


def _add_problem(problems: list[str], where: str, problem: str) -> None:
    problems.append(where + problem)


def _close(name: str, known: Any) -> str:
    match = close_names(name, known)
    return f"; did you mean {match[0]!r}?" if match else ""


def _may_be_shape_input(tensor: TensorSpec, shapes: ShapeRange) -> bool:
    """Whether the range speaks of the *values* of a small integer input, as a shape input has."""
    return (
        tensor.dtype in ("int32", "int64")
        and tensor.is_static
        and tensor.shape in ((), (len(shapes.min),))
    )


def _contradiction(tensor: TensorSpec, shapes: ShapeRange) -> str | None:
    if tensor.shape is None:
        return None
    if len(tensor.shape) != len(shapes.min):
        return f"{tensor} has {len(tensor.shape)} axes, the range {shapes} has {len(shapes.min)}"
    for index, axis in enumerate(tensor.shape):
        if isinstance(axis, int) and not shapes.min[index] == shapes.max[index] == axis:
            return f"axis {index} of {tensor} is fixed, the range {shapes} changes it"
    return None


def _bind_dimensions(
    inputs: Sequence[TensorSpec],
    dims: Mapping[str, DimRange],
    given: Mapping[str, ShapeRange],
    add: Any,
) -> dict[str, DimRange]:
    """Ranges by dimension: those of ``dims``, overridden by what whole shapes imply."""
    known = {name for tensor in inputs for axis in tensor.shape or () for name in _names(axis)}
    for name in dims:
        if name not in known:
            add(f"dimension {name!r} is not one of the model's{_close(name, known)}")
    bound: dict[str, DimRange] = {}
    for tensor in inputs:
        shapes = given.get(tensor.name)
        for index, axis in enumerate(tensor.shape or ()):
            if shapes is None or not isinstance(axis, str):
                continue
            implied = DimRange(shapes.min[index], shapes.opt[index], shapes.max[index])
            if bound.setdefault(axis, implied) != implied:
                add(f"dimension {axis!r} is {bound[axis]} in one shape and {implied} in another")
    return {**dims, **bound}


def _names(axis: int | str | None) -> set[str]:
    """The text of an axis, and the names it is an expression of."""
    if not isinstance(axis, str):
        return set()
    return {axis} | dimension_symbols(axis)


def dimension_symbols(text: str) -> set[str]:
    """The names in an expression of dimensions; the text itself where it is a name."""
    expression = None if text.isidentifier() else _expression(text)
    return {text} if expression is None else set(expression.free_symbols())


def _expression(text: str) -> ir.SymbolicDim | None:
    """The expression; None for a name like any other, and for what could take forever to work out.

    Powers are what a short text makes large numbers of; exporters write sums and products.
    """
    if len(text) > _LONGEST or "**" in text or re.search(r"\d{20}", text):
        return None
    expression = ir.SymbolicDim(text)
    try:
        expression.free_symbols()
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return None
    return expression


def evaluate_dimension(text: str, extents: Mapping[str, int]) -> Any:
    """Evaluate an expression of dimensions.

    Args:
        text: The expression.
        extents: Dimension to extent.

    Returns:
        An int; or something else where it comes out as no whole number, or is no expression.
    """
    if text.isidentifier() and text in extents:
        return extents[text]
    expression = _expression(text)
    try:
        return None if expression is None else expression.evaluate(extents)
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return None


def _shapes_from(tensor: TensorSpec, ranges: Mapping[str, DimRange], add: Any) -> ShapeRange | None:
    if tensor.shape is None:
        add(f"{tensor}: give its shapes as {tensor.name}=MIN:OPT:MAX")
        return None
    axes = [_axis_range(tensor, index, ranges, add) for index in range(len(tensor.shape))]
    complete = [axis for axis in axes if axis is not None]
    if len(complete) < len(axes):
        return None
    return ShapeRange(
        tuple(axis.min for axis in complete),
        tuple(axis.opt for axis in complete),
        tuple(axis.max for axis in complete),
    )


def _axis_range(
    tensor: TensorSpec, index: int, ranges: Mapping[str, DimRange], add: Any
) -> DimRange | None:
    axis = (tensor.shape or ())[index]
    if isinstance(axis, int):
        return DimRange(axis, axis, axis)
    if axis is None:
        add(
            f"axis {index} of {tensor} is dynamic and has no name:"
            f" give its shapes as {tensor.name}=MIN:OPT:MAX"
        )
        return None
    if axis in ranges:
        return ranges[axis]
    missing = sorted(dimension_symbols(axis) - set(ranges))
    for name in missing:
        add(f"dimension {name!r} has no range: give one as {name}=MIN:OPT:MAX")
    return None if missing else _evaluate(axis, ranges, add)


def _evaluate(axis: str, ranges: Mapping[str, DimRange], add: Any) -> DimRange | None:
    extents = [
        evaluate_dimension(axis, {name: getattr(r, end) for name, r in ranges.items()})
        for end in ("min", "opt", "max")
    ]
    try:
        return DimRange(*(operator.index(extent) for extent in extents))
    except (SpecError, TypeError, ValueError, ArithmeticError):
        low, best, high = extents
        add(
            f"dimension {axis!r} comes out as {low}:{best}:{high}, which is not an ordered range;"
            f" give one as {axis}=MIN:OPT:MAX"
        )
        return None


def _known_dimensions(inputs: Sequence[TensorSpec]) -> str:
    places: dict[str, list[str]] = {}
    for tensor in inputs:
        for index, axis in enumerate(tensor.shape or ()):
            if isinstance(axis, str):
                places.setdefault(axis, []).append(f"{tensor.name}[{index}]")
    listing = ", ".join(f"{name} ({', '.join(where)})" for name, where in places.items())
    unnamed = any(axis is None for tensor in inputs for axis in tensor.shape or ())
    none = "none has a name" if unnamed else "none, every input is static"
    return f"the model's dimensions: {listing or none}"


def fixed_axes(profiles: Sequence[Profile], name: str) -> tuple[int | None, ...]:
    """Extents of an input's axes that every profile fixes to one and the same number.

    Returns:
        One entry per axis: the extent, or None where it varies within or between profiles.
    """
    shapes: list[Shape] = [
        shape
        for profile in profiles
        for shape in (profile.shapes[name].min, profile.shapes[name].max)
    ]
    return tuple(
        extents[0] if len(set(extents)) == 1 else None for extents in zip(*shapes, strict=True)
    )


def fixed_extents(profiles: Sequence[Profile]) -> dict[str, tuple[int | None, ...]]:
    """:func:`fixed_axes` of every input that the profiles give ranges."""
    return {name: fixed_axes(profiles, name) for name in (profiles[0].shapes if profiles else ())}


def fixed_dimensions(
    inputs: Sequence[ir.Value], profiles: Sequence[Profile]
) -> tuple[dict[str, int], bool]:
    """Find the symbolic dimensions that have one extent in all profiles.

    Returns:
        Name of a dimension to its extent, and whether all dimensions of the inputs are fixed.
    """
    fixed = fixed_extents(profiles)
    dims: dict[str, int] = {}
    static = True
    for value in inputs:
        extents = fixed.get(str(value.name), ())
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, int):
                continue
            extent = extents[axis] if axis < len(extents) else None
            if extent is None:
                static = False
            elif dim.value is not None:
                dims[dim.value] = extent
    return dims, static


def shape_problems(inputs: Sequence[TensorSpec], shapes: Mapping[str, Shape]) -> list[str]:
    """Check the shapes of one set of arrays; returns the problems, none where the model takes them.

    Args:
        inputs: The model's inputs. One that ``shapes`` lacks is not looked at.
        shapes: Input name to the shape of its array.

    Returns:
        One line for each shape of another rank, each extent that the model fixes otherwise, and
        each dimension that comes out differently in two places, expressions of names included.
    """
    problems: list[str] = []
    extents: dict[str, tuple[int, str]] = {}
    for tensor in inputs:
        shape = shapes.get(tensor.name)
        if shape is None or tensor.shape is None:
            continue
        text = format_shape(shape)
        if len(shape) != len(tensor.shape):
            problems.append(f"{tensor} needs {len(tensor.shape)} axes, found {text}")
            continue
        for index, (axis, extent) in enumerate(zip(tensor.shape, shape, strict=True)):
            place = f"{tensor.name}[{index}]"
            if isinstance(axis, int) and axis != extent:
                problems.append(f"{tensor} needs {axis} on axis {index}, found {text}")
            elif isinstance(axis, str) and extents.setdefault(axis, (extent, place))[0] != extent:
                known, where = extents[axis]
                problems.append(
                    f"dimension {axis!r} is {known} in {where}, but {extent} in {place}"
                )
    return problems + _expression_problems(extents)


def _expression_problems(extents: Mapping[str, tuple[int, str]]) -> list[str]:
    """Expressions such as ``batch*frames`` that disagree with the names they are made of."""
    values = {text: extent for text, (extent, _) in extents.items()}
    problems = []
    for text, (extent, place) in extents.items():
        names = dimension_symbols(text)
        if text in names or not names <= set(values):
            continue
        expected = evaluate_dimension(text, values)
        if expected != extent:
            given = ", ".join(f"{name}={values[name]}" for name in sorted(names))
            problems.append(f"{place} needs {text} = {expected} ({given}), found {extent}")
    return problems


def read_profile_file(path: Path) -> tuple[ProfileSpec, ...]:
    """Read optimization profiles from a YAML, JSON or TOML file.

    The file holds a list ``profiles`` of mappings with ``dims`` and/or ``shapes``, or one such
    mapping alone::

        profiles:
          - dims: {batch: 1:2:2, frames: 16}
          - shapes: {latents: 1x13x8x64x64}

    Raises:
        SpecError: the file cannot be read, or holds anything else.
    """
    try:
        text = read_text_file(path).decode()
        data = _PARSERS[path.suffix.lower()](text)
    except KeyError:
        known = ", ".join(_PARSERS)
        raise SpecError(f"{path}: a profile file ends in one of {known}") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # each parser has its own kinds
        reason = " ".join(str(error).split())
        raise SpecError(f"{path}: not valid {path.suffix[1:].upper()}: {reason}") from None
    entries = data.get("profiles") if isinstance(data, dict) and "profiles" in data else [data]
    if not isinstance(entries, list) or not entries:
        found = "none" if entries == [] else f"a {type(entries).__name__}"
        raise SpecError(f"{path}: 'profiles' must be a list of mappings, found {found}")
    try:
        return tuple(ProfileSpec.from_mapping(entry) for entry in entries)
    except SpecError as error:
        raise SpecError(f"{path}: {error.message}", error.details) from None


def _parse_toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]
    return tomllib.loads(text)


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
    ".json": json.loads,
    ".toml": _parse_toml,
}
