"""What the commands that run a plan make of ``--input``, ``--shape`` and ``--random``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_native.errors import SpecError
from trt_native.spec import Shape, ShapeRange, parse_shape

if TYPE_CHECKING:
    import numpy as np

    from trt_native.plan import PlanTensor

__all__ = ["fill_inputs", "read_inputs", "read_shapes"]


def read_inputs(entries: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of ``--input``: ``NAME=FILE.npy``, or an .npz file.

    Raises:
        SpecError: an entry is malformed, or its file is.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for entry in entries:
        name, _, file = entry.partition("=")
        if not (name and file) and not entry.endswith(".npz"):
            raise SpecError(f"--input {entry!r}: write NAME=FILE.npy, or name an .npz file")
        one = bool(name and file)
        loaded = _load(Path(file if one else entry))
        if isinstance(loaded, dict) == one:
            found = "several arrays" if one else "one array without a name"
            raise SpecError(
                f"--input {entry!r}: the file holds {found}; write NAME=FILE.npy for one array,"
                " or name an .npz file for arrays by name"
            )
        arrays.update({name: loaded} if one else loaded)
    return arrays


def _load(path: Path) -> Any:
    """One array, or arrays by name."""
    import numpy as np

    from trt_native.plan import open_regular

    try:
        with open_regular(path) as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # zipfile, zlib and NumPy have kinds of their own
        reason = " ".join(str(error).split())
        raise SpecError(f"{path}: not a NumPy file, or damaged ({reason})") from None
    for name, array in arrays.items() if isinstance(arrays, dict) else ():
        if not isinstance(array, np.ndarray):
            raise SpecError(f"{path}: {name!r} in it is no array")
    return arrays


def read_shapes(entries: list[str]) -> dict[str, Shape]:
    """Read the shapes of ``--shape``: ``NAME=1x3x8x8``.

    Raises:
        SpecError: an entry is malformed.
    """
    shapes = {}
    for entry in entries:
        name, separator, text = entry.rpartition("=")
        if not separator:
            raise SpecError(f"--shape {entry!r}: write NAME=1x3x8x8")
        shapes[name] = parse_shape(text)
    return shapes


def fill_inputs(
    tensors: Sequence[PlanTensor],
    given: dict[str, np.ndarray[Any, Any]],
    shapes: dict[str, Shape],
    seed: int,
) -> dict[str, np.ndarray[Any, Any]]:
    """Random values for inputs that were not given: normal for floats, 0 or 1 for the rest.

    Args:
        tensors: The inputs of an engine.
        given: Those that there are, by name.
        shapes: Shapes of others, by name; the first profile's opt by default.
        seed: Of the random values.

    Raises:
        SpecError: a shape is of no input, or no profile allows it.
    """
    import numpy as np

    unknown = set(shapes) - {tensor.name for tensor in tensors}
    if unknown:
        names = ", ".join(tensor.name for tensor in tensors)
        raise SpecError(f"--shape {', '.join(sorted(unknown))}: the inputs are {names}")
    generator = np.random.default_rng(seed)
    filled = dict(given)
    for tensor in tensors:
        if tensor.name in given:
            continue
        if tensor.values:
            filled[tensor.name] = np.array(tensor.values[0].opt, tensor.dtype).reshape(tensor.shape)
            continue
        ranges = tensor.profiles or (ShapeRange(tensor.shape, tensor.shape, tensor.shape),)
        shape = shapes.get(tensor.name, ranges[0].opt)
        if not any(allowed.contains(shape) for allowed in ranges):
            listing = " or ".join(map(str, ranges))
            raise SpecError(f"--shape {tensor.name}={'x'.join(map(str, shape))}: outside {listing}")
        if np.issubdtype(np.dtype(tensor.dtype), np.integer) or tensor.dtype == "bool":
            filled[tensor.name] = generator.integers(0, 2, shape).astype(tensor.dtype)
        else:
            filled[tensor.name] = generator.standard_normal(shape, np.float32).astype(tensor.dtype)
    return filled
