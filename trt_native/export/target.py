"""A module and its example as texts name them: ``FILE.py:NAME``, ``x=1x3x224x224``."""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_native.arrays import open_array, open_arrays
from trt_native.calibration.sources import load_function
from trt_native.errors import USER_CODE_ERRORS, CalibrationError, ExportError, SpecError
from trt_native.shapes import parse_shape

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

__all__ = ["load_module", "read_arguments", "read_axes", "read_example"]

_KINDS = (
    "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip


def load_module(target: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Load a module, or make it.

    What the user's code prints goes to standard error.

    Args:
        target: ``FILE.py:NAME`` or ``package.module:NAME``: a module, or a class or function that
            makes one.
        arguments: Keyword arguments for that.

    Raises:
        SpecError: there is no such name, or it is something else.
        ExportError: the code of the user's raised an error.
    """
    import torch

    with contextlib.redirect_stdout(sys.stderr):
        try:
            found: Any = load_function(target, kind="module, class or function")
        except CalibrationError as error:
            raise SpecError(error.message, options=("target",)) from error
        if isinstance(found, torch.nn.Module):
            if arguments:
                raise SpecError(
                    f"{target} is a module, which takes no arguments; name its class, or leave out"
                    f" {', '.join(arguments)}",
                    options=("arguments",),
                )
            return found
        try:
            made = found(**(arguments or {}))
        except USER_CODE_ERRORS as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            raise ExportError(f"{target} raised {reason}", options=("arguments",)) from error
    if not isinstance(made, torch.nn.Module):
        raise SpecError(
            f"{target} returned a {type(made).__name__}, not a torch.nn.Module", options=("target",)
        )
    return made


def read_arguments(entries: Sequence[str], option: str) -> dict[str, Any]:
    """Read ``NAME=VALUE``; a value is a number, text or other literal of Python's.

    Args:
        entries: The texts.
        option: Name of the option that they belong to, for errors.

    Raises:
        SpecError: an entry has another form, or a name is there twice.
    """
    found: dict[str, Any] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals or not name.strip():
            raise SpecError(f"{entry!r} is not NAME=VALUE", options=(option,))
        if found.setdefault(name.strip(), value := _literal(text)) is not value:
            raise SpecError(f"{name.strip()} is given twice", options=(option,))
    return found


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def read_axes(entries: Sequence[str]) -> dict[str, dict[int, str]]:
    """Read ``NAME=AXIS:DIM,AXIS:DIM`` for each input with dynamic axes.

    Raises:
        SpecError: an entry has another form.
    """
    found: dict[str, dict[int, str]] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        parts = [re.fullmatch(r"\s*(\d{1,3})\s*:\s*([^\s:]+)\s*", one) for one in text.split(",")]
        if not name or not equals or not all(parts):
            raise SpecError(
                f"{entry!r} is not NAME=AXIS:DIMENSION; write for example x=0:batch,2:height",
                options=("dynamic",),
            )
        axes = found.setdefault(re.sub(r"\W", "_", name.strip()), {})
        for part in parts:
            assert part is not None  # noqa: S101  # for the type checker
            if axes.setdefault(int(part[1]), part[2]) != part[2]:
                raise SpecError(f"{entry!r}: axis {part[1]} has two names", options=("dynamic",))
    return found


def read_example(
    module: nn.Module, entries: Sequence[str], constants: Mapping[str, Any], seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make the arguments of ``forward``.

    Args:
        module: The module, whose floating-point type inputs have that name none.
        entries: For each tensor ``NAME=SHAPE``, ``NAME=SHAPE:TYPE`` or ``NAME=FILE.npy``; or
            ``FILE.npz`` with arrays by name. A name is that of a parameter, followed by keys
            (``batch.image``) or by numbers of a list (``parts.0``).
        constants: Further arguments by such names.
        seed: Of the random values: normal for floating point, else 0 or 1.

    Returns:
        Positional and keyword arguments.

    Raises:
        SpecError: an entry has another form, a name is there twice or is no parameter, or a file
            cannot be read.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    values: dict[str, Any] = {}
    for entry in entries:
        for name, value in _tensors(entry, dtype, generator):
            if name in values:
                raise SpecError(f"{name} is given twice", options=("inputs",))
            values[name] = value
    if both := sorted(values.keys() & constants.keys()):
        raise SpecError(f"{both[0]} is an input and a constant", options=("inputs", "constants"))
    return _placed(module, _nested({**values, **constants}))


def _tensors(entry: str, dtype: Any, generator: Generator) -> Iterator[tuple[str, Tensor]]:
    import torch

    name, equals, text = entry.partition("=")
    if not equals and entry.endswith(".npz"):
        with open_arrays(Path(entry)) as arrays:
            yield from ((key, torch.from_numpy(stored.read())) for key, stored in arrays.items())
    elif equals and text.endswith(".npy"):
        with open_array(Path(text)) as stored:
            yield name, torch.from_numpy(stored.read())
    elif equals and name:
        yield name, _random(entry, text, dtype, generator)
    else:
        raise SpecError(
            f"{entry!r}: write NAME=1x3x224x224, NAME=2x16:int64, NAME=FILE.npy, or name an .npz"
            " file",
            options=("inputs",),
        )


def _random(entry: str, text: str, dtype: Any, generator: Generator) -> Tensor:
    import torch

    shape_text, colon, kind = text.partition(":")
    if colon and kind not in _KINDS:
        raise SpecError(
            f"{entry!r}: no type {kind!r}; write {', '.join(_KINDS)}", options=("inputs",)
        )
    chosen: Any = getattr(torch, kind) if colon else dtype
    try:
        shape = parse_shape(shape_text)
        if chosen.is_floating_point:
            return torch.randn(shape, generator=generator).to(chosen)
        return torch.randint(0, 2, shape, generator=generator).to(chosen)
    except SpecError as error:
        raise SpecError(f"{entry!r}: {error.message}", options=("inputs",)) from None
    except RuntimeError:  # torch's for memory
        raise SpecError(
            f"{entry!r}: too large for this machine's memory", options=("inputs",)
        ) from None


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values whose names have dots, in mappings and lists."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".")
        inner = found
        for key in path:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise SpecError(f"{name}: {key} is a value itself", options=("inputs",))
        if last in inner:
            raise SpecError(f"{name} is given twice", options=("inputs",))
        inner[last] = value
    return {name: _as_list(value) for name, value in found.items()}


def _as_list(value: Any) -> Any:
    """A mapping of 0, 1, ... as a list, in any depth."""
    if not isinstance(value, dict):
        return value
    inner = {key: _as_list(item) for key, item in value.items()}
    if sorted(inner) == sorted(map(str, range(len(inner)))):
        return [inner[str(number)] for number in range(len(inner))]
    return inner


def _placed(module: nn.Module, values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The values by position where parameters have no name in a call."""
    parameters = inspect.signature(module.forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds and (
        unknown := values.keys() - parameters.keys()
    ):
        raise SpecError(
            f"{', '.join(sorted(unknown))}: {type(module).__name__}.forward takes"
            f" {', '.join(parameters) or 'nothing'}",
            options=("inputs",),
        )
    rest = next(
        (n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL and n in values), ""
    )
    args: list[Any] = []
    for name, parameter in parameters.items():
        before_rest = rest and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if name in values and (parameter.kind is parameter.POSITIONAL_ONLY or before_rest):
            args.append(values.pop(name))
    if rest:
        items = values.pop(rest)
        args += items if isinstance(items, list) else [items]
    return tuple(args), values
