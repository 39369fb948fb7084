"""Shapes, ranges of shapes, optimization profiles and tensor descriptions: plain, frozen data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trt_native.errors import SpecError
from trt_native.units import INT64_MAX

__all__ = [
    "DimRange",
    "Profile",
    "ProfileSpec",
    "Shape",
    "ShapeRange",
    "TensorSpec",
    "format_shape",
    "parse_shape",
]


Shape = tuple[int, ...]
"""Extents in elements, outermost axis first; ``()`` is a scalar."""

_EXTENT = r"[0-9]{1,19}"


def parse_shape(text: str) -> Shape:
    """Read ``1x3x8x8``; ``scalar`` (or nothing) is the empty shape.

    Raises:
        SpecError: an axis is not a whole number of at least 0, or none that 64 bits hold.
    """
    text = text.strip()
    if text in ("", "scalar"):
        return ()
    axes = [axis.strip() for axis in re.split(r"[x,]", text)]
    if not all(re.fullmatch(_EXTENT, axis) and int(axis) <= INT64_MAX for axis in axes):
        raise SpecError(f"not a shape: {text!r}; write for example 1x3x8x8")
    return tuple(int(axis) for axis in axes)


def format_shape(shape: Iterable[int | str]) -> str:
    """Write a shape as ``1x3x8x8``; the empty one is ``scalar``."""
    return "x".join(map(str, shape)) or "scalar"


def _split_range(text: str, example: str) -> tuple[str, str, str]:
    parts = str(text).split(":")
    if len(parts) == 1:
        return (parts[0], parts[0], parts[0])
    if len(parts) == 3:
        return (parts[0], parts[1], parts[2])
    raise SpecError(f"not a range: {text!r}; write one value, or MIN:OPT:MAX such as {example}")


@dataclass(frozen=True, slots=True)
class DimRange:
    """Extents one symbolic dimension may take: ``min <= opt <= max``, in elements."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not all(isinstance(extent, int) for extent in (self.min, self.opt, self.max)):
            raise SpecError(f"not a range of extents: {self}; a range needs whole numbers")
        if not 0 <= self.min <= self.opt <= self.max:
            raise SpecError(f"not ordered: {self}; a range needs 0 <= MIN <= OPT <= MAX")
        if self.max > INT64_MAX:
            raise SpecError(f"too large: {self}; an extent has 64 bits")

    @classmethod
    def parse(cls, text: str | int) -> DimRange:
        """Read ``2`` (fixed) or ``1:2:4`` (min:opt:max).

        Raises:
            SpecError: the text has neither form, or is not ordered.
        """
        parts = [part.strip() for part in _split_range(str(text), "1:2:4")]
        if not all(re.fullmatch(_EXTENT, part) for part in parts):
            raise SpecError(f"not a range of extents: {text!r}; write for example 2 or 1:2:4")
        return cls(int(parts[0]), int(parts[1]), int(parts[2]))

    def __str__(self) -> str:
        fixed = self.min == self.opt == self.max
        return str(self.min) if fixed else f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes one input may take: ``min <= opt <= max`` on every axis, in elements."""

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise SpecError(f"ranks differ: {self}; MIN, OPT and MAX need the same number of axes")
        if not all(a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise SpecError(f"not ordered: {self}; every axis needs MIN <= OPT <= MAX")

    @classmethod
    def parse(cls, text: str) -> ShapeRange:
        """Read ``1x3x8x8`` (static) or ``1x3x8x8:4x3x8x8:8x3x8x8`` (min:opt:max).

        Raises:
            SpecError: the text has neither form, or an axis is not ordered.
        """
        low, best, high = (parse_shape(part) for part in _split_range(text, "1x8:2x8:4x8"))
        return cls(low, best, high)

    @property
    def is_static(self) -> bool:
        """Whether only one shape is allowed."""
        return self.min == self.max

    def contains(self, shape: Shape) -> bool:
        """Whether ``shape`` has this rank and lies between ``min`` and ``max`` on every axis."""
        return len(shape) == len(self.min) and all(
            low <= extent <= high
            for low, extent, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        texts = [format_shape(shape) for shape in (self.min, self.opt, self.max)]
        return texts[0] if self.is_static else ":".join(texts)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: The tensor's name, as in the ONNX file and in the plan.
        dtype: The element type, by its NumPy or ml_dtypes name (``float32``, ``bfloat16``, ...).
        shape: One entry per axis: an extent, the text of a symbolic dimension (a name or an
            expression of names), or None where the extent is unknown and has no name. None
            instead of a tuple means that even the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @property
    def is_static(self) -> bool:
        """Whether every extent is a number."""
        return self.shape is not None and all(isinstance(axis, int) for axis in self.shape)

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name}: {self.dtype} of unknown rank"
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name}: {self.dtype}({axes})"


@dataclass(frozen=True, slots=True)
class Profile:
    """One optimization profile, resolved: a range for every input that has a dynamic shape.

    Attributes:
        shapes: Input name to the shapes it may take.
        values: Name of an input that *is* a shape to the values it may take.
    """

    shapes: Mapping[str, ShapeRange]
    values: Mapping[str, ShapeRange] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """One optimization profile as a user asks for it.

    A range may be given as its text (``"1:2:4"``, ``"1x8:2x8:4x8"``), as a list or tuple of its
    minimum, optimum and maximum, or as the one extent or shape that it has.

    Attributes:
        dims: Symbolic dimension to its range.
        shapes: Input name to its shapes. Wins over ``dims``, and binds the symbolic dimensions
            of that input, so that other inputs follow.
    """

    dims: Mapping[str, DimRange] = field(default_factory=dict)
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems: list[str] = []
        dims = _read_ranges("dims", self.dims, DimRange, _dim_text, problems)
        shapes = _read_ranges("shapes", self.shapes, ShapeRange, _shape_text, problems)
        _raise_problems(problems)
        object.__setattr__(self, "dims", dims)
        object.__setattr__(self, "shapes", shapes)

    def overridden_by(self, later: ProfileSpec) -> ProfileSpec:
        """This profile with every entry that ``later`` names replaced by ``later``'s."""
        return ProfileSpec({**self.dims, **later.dims}, {**self.shapes, **later.shapes})

    @classmethod
    def parse(cls, dims: Iterable[str] = (), shapes: Iterable[str] = ()) -> ProfileSpec:
        """Read ``NAME=MIN:OPT:MAX`` texts.

        Raises:
            SpecError: an entry has no ``NAME=`` or its range cannot be read; reports all problems.
        """
        problems: list[str] = []
        spec = cls(
            _parse_entries(dims, DimRange.parse, "batch=1:2:4", problems),
            _parse_entries(shapes, ShapeRange.parse, "x=1x8:2x8:4x8", problems),
        )
        _raise_problems(problems)
        return spec

    @classmethod
    def from_mapping(cls, data: object) -> ProfileSpec:
        """Read one profile of a profile file: a mapping with ``dims`` and/or ``shapes``.

        Raises:
            SpecError: the mapping has other keys, or a range cannot be read.
        """
        if not isinstance(data, Mapping) or not set(data) <= {"dims", "shapes", "name"}:
            found = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
            raise SpecError(f"a profile needs the keys 'dims' and/or 'shapes', found {found}")
        return cls(data.get("dims") or {}, data.get("shapes") or {})


def _read_ranges(
    section: str, given: Any, kind: Any, as_text: Callable[[Any], str], problems: list[str]
) -> dict[str, Any]:
    """A profile's ranges, of which each may have another form; appends what cannot be read."""
    if not isinstance(given, Mapping):
        problems.append(
            f"{section!r} of a profile needs NAME: RANGE entries, found a {type(given).__name__}"
        )
        return {}
    found = {}
    for name, value in given.items():
        try:
            found[str(name)] = value if isinstance(value, kind) else kind.parse(as_text(value))
        except SpecError as error:
            problems.append(f"{name}: {error}")
    return found


def _dim_text(value: Any) -> str:
    """The text of a dimension's range: ``[1, 2, 4]`` as well as ``1:2:4``."""
    return ":".join(map(_scalar, value)) if isinstance(value, list | tuple) else _scalar(value)


def _shape_text(value: Any) -> str:
    """The text of a range of shapes: ``[[1, 8], [2, 8], [4, 8]]`` as well as ``1x8:2x8:4x8``.

    Raises:
        SpecError: it may be a shape as well as a range of shapes.
    """
    if not isinstance(value, list | tuple):
        return _scalar(value)
    if any(isinstance(item, list | tuple | str) for item in value):
        return ":".join(map(_axes_text, value))
    if len(value) == 3:
        shape, extents = _axes_text(value), _dim_text(value)
        raise SpecError(
            f"{value!r} may be the shape {shape} or the range {extents}; write '{shape}' or"
            f" '{extents}'"
        )
    return _axes_text(value)


def _axes_text(value: Any) -> str:
    return "x".join(map(_scalar, value)) if isinstance(value, list | tuple) else _scalar(value)


def _scalar(value: Any) -> str:
    """Convert a scalar to text; a YAML collection, which may contain itself, only to its type."""
    if isinstance(value, (list, tuple, Mapping, set)):
        return f"a {type(value).__name__}"
    try:
        return str(value)
    except ValueError:  # more digits than Python writes
        return "a number far too large"


def _parse_entries(
    entries: Iterable[str], parse: Any, example: str, problems: list[str]
) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for entry in entries:
        # A symbolic expression may hold a comparison, so the last '=' separates.
        name, separator, text = entry.rpartition("=")
        if not separator or not name.strip():
            problems.append(f"{entry!r} is not NAME=RANGE; write for example {example}")
            continue
        name = name.strip()
        try:
            value = parse(text)
        except SpecError as error:
            problems.append(f"{name}: {error}")
            continue
        if parsed.setdefault(name, value) != value:
            problems.append(
                f"{name} is given twice, as {parsed[name]} and as {value}; give it once"
            )
    return parsed


def _raise_problems(problems: list[str]) -> None:
    if len(problems) == 1:
        raise SpecError(problems[0])
    if problems:
        raise SpecError(f"{len(problems)} problems:", problems)
