"""The inputs of a plan as a command line gives them: files, shapes, random values."""

from __future__ import annotations

import contextlib
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_native.cli.console import stderr
from trt_native.config import FixedValues
from trt_native.errors import SpecError
from trt_native.shapes import ProfileSpec, Shape, ShapeRange, format_shape, parse_shape

if TYPE_CHECKING:
    import numpy as np

    from trt_native.arrays import StoredArray
    from trt_native.plans.manifest import PlanTensor

__all__ = [
    "INPUT_HELP",
    "RANDOM_HELP",
    "SHAPE_HELP",
    "GivenInputs",
    "check_not_fixed",
    "check_seed",
    "fill_random",
    "open_inputs",
    "read_extents",
    "read_shapes",
    "split_entry",
]

INPUT_HELP = "NAME=FILE.npy, or FILE.npz with arrays by input name. Repeatable."
RANDOM_HELP = "Fill the inputs that are not given with random values."
SHAPE_HELP = "Shape of a random input, NAME=1x3x8x8. \\[default: the profile's opt]"


class GivenInputs:
    """The arrays that ``--input`` names. Made by :func:`open_inputs`.

    Args:
        stored: Input name to array, each read when it is looked up.
    """

    def __init__(self, stored: Mapping[str, StoredArray]) -> None:
        self.names = tuple(stored)
        self.shapes = {name: array.shape for name, array in stored.items()}
        self._stored = stored
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}

    def read(self, tensors: Sequence[PlanTensor]) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays, which are read once their types and shapes are known to fit a plan's inputs.

        Warns on standard error of NaN and infinite values.

        Raises:
            SpecError: a name is not of an input, an array does not fit, or is damaged.
        """
        from trt_native.runtime.input_checks import check_inputs, count_profiles

        found = self._arrays or {n: self._stored[n].placeholder() for n in self.names}
        check_inputs(tuple(tensors), count_profiles(tensors), found, partial=True)
        if not self._arrays:
            self._arrays = {name: self._stored[name].read() for name in self.names}
            _warn_of_nonfinite(self._arrays)
        return dict(self._arrays)


@contextlib.contextmanager
def open_inputs(entries: list[str]) -> Iterator[GivenInputs]:
    """Open the files that ``--input`` names for the time of a block.

    Raises:
        SpecError: an entry has another form, or its file cannot be read.
    """
    from trt_native.arrays import open_array, open_arrays

    with contextlib.ExitStack() as files:
        opened: ChainMap[str, StoredArray] = ChainMap()
        for entry in entries:
            name, file = split_entry(entry)
            if not name and not entry.endswith(".npz"):
                raise SpecError(f"--input {entry!r}: write NAME=FILE.npy, or name an .npz file")
            arrays: Any = (
                {name: files.enter_context(open_array(Path(file)))}
                if name
                else files.enter_context(open_arrays(Path(file)))
            )
            if twice := sorted(set(arrays) & set(opened)):
                raise SpecError(f"--input {entry!r}: {', '.join(twice)} was given before")
            opened.maps.insert(0, arrays)
        yield GivenInputs(opened)


def split_entry(entry: str) -> tuple[str, str]:
    """The name and the file of ``NAME=FILE.npy``; no name for any other form."""
    name, _, file = entry.partition("=")
    return (name, file) if name and file else ("", entry)


def read_shapes(entries: list[str]) -> dict[str, Shape]:
    """The shapes that ``--shape`` gives.

    Raises:
        SpecError: an entry has another form.
    """
    shapes: dict[str, Shape] = {}
    for entry in entries:
        name, separator, text = entry.rpartition("=")
        if not (separator and name):
            raise SpecError(f"--shape {entry!r}: write NAME=1x3x8x8")
        if name in shapes:
            raise SpecError(f"--shape {entry!r}: {name} was given before")
        shapes[name] = parse_shape(text)
    return shapes


def _warn_of_nonfinite(arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Warn on standard error of inputs with NaN or infinite values."""
    import numpy as np

    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            stderr.print(f"warning: input {name!r} has NaN or infinite values", markup=False)


def check_not_fixed(names: Iterable[str], fixed_inputs: FixedValues) -> None:
    """Reject values for inputs that are constants of the plan.

    Raises:
        SpecError: there are such.
    """
    if built_in := [f"{name} = {fixed_inputs[name]}" for name in names if name in fixed_inputs]:
        raise SpecError(
            f"--input: the plan was built with {', '.join(built_in)} and has no such input; leave"
            " it out, or build a plan for another value with --fix"
        )


def check_seed(seed: int | None, shapes: dict[str, Shape]) -> None:
    """Reject a negative seed, and shapes without a seed.

    Raises:
        SpecError: the seed is negative, or shapes have no effect.
    """
    if seed is not None and seed < 0:
        raise SpecError(f"--random {seed}: a seed must not be negative")
    if seed is None and shapes:
        raise SpecError("--shape: no effect without --random SEED; arrays have their own shape")


def fill_random(
    tensors: Sequence[PlanTensor],
    given: dict[str, np.ndarray[Any, Any]],
    shapes: dict[str, Shape],
    generator: np.random.Generator,
    *,
    values: Mapping[str, Shape] | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """Random values for inputs that were not given: normal for floats, 0 or 1 for the rest.

    An input that is itself a shape gets its ``values``, or else the profile's optimum.

    Raises:
        SpecError: a shape is not of an input, is of one that is given, or is outside the profiles.
    """
    import ml_dtypes  # noqa: F401  (makes bfloat16 and float8 known to NumPy by name)
    import numpy as np

    unknown = set(shapes) - {tensor.name for tensor in tensors}
    if unknown:
        names = ", ".join(tensor.name for tensor in tensors)
        raise SpecError(f"--shape {', '.join(sorted(unknown))}: the inputs are {names}")
    if both := sorted(set(shapes) & set(given)):
        raise SpecError(f"--shape {', '.join(both)}: no effect, as --input gives the array")
    filled = dict(given)
    for tensor in tensors:
        if tensor.name in given:
            continue
        if tensor.values:
            numbers = (values or {}).get(tensor.name, tensor.values[0].opt)
            filled[tensor.name] = np.array(numbers, tensor.dtype).reshape(tensor.shape)
            continue
        ranges = tensor.profiles or (ShapeRange(tensor.shape, tensor.shape, tensor.shape),)
        shape = shapes.get(tensor.name, ranges[0].opt)
        if not any(allowed.contains(shape) for allowed in ranges):
            listing = " or ".join(map(str, ranges))
            text = format_shape(shape)
            raise SpecError(f"--shape {tensor.name}={text}: outside {listing}")
        if np.issubdtype(np.dtype(tensor.dtype), np.integer) or tensor.dtype == "bool":
            filled[tensor.name] = generator.integers(0, 2, shape).astype(tensor.dtype)
        else:
            filled[tensor.name] = generator.standard_normal(shape, np.float32).astype(tensor.dtype)
    return filled


def read_extents(dims: list[str]) -> dict[str, int]:
    """Extents of dimensions from ``--dim NAME=N``, where an ONNX file alone is at hand."""
    ranges = ProfileSpec.parse(dims).dims
    for name, extents in ranges.items():
        if extents.min != extents.max:
            raise SpecError(
                f"--dim {name}={extents}: an ONNX file has no ranges; give one extent, or leave"
                " the dimension as it is"
            )
    return {name: extents.opt for name, extents in ranges.items()}
