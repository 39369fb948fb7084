"""Arrays in NumPy's files: one in an ``.npy``, several by name in an ``.npz``."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from trt_native.errors import SpecError, TrtNativeError
from trt_native.files import atomic_write, open_regular_file

__all__ = [
    "ArrayArchive",
    "ArrayWriter",
    "Batch",
    "is_float",
    "load_arrays",
    "open_arrays",
    "reading",
    "save_arrays",
    "write_arrays",
]

Array = np.ndarray[Any, np.dtype[Any]]

Batch: TypeAlias = Mapping[str, Array]
"""Input name to array, for one run of a model."""


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether elements are floating-point numbers, ``ml_dtypes``' bfloat16 and so on too."""
    return dtype.kind == "f" or "float" in dtype.name


def load_arrays(path: Path) -> Array | dict[str, Array]:
    """One array of an ``.npy`` file, or all arrays of an ``.npz`` file by name.

    Raises:
        SpecError: the file cannot be read, is damaged, or holds something else.
    """
    with reading(path), open_regular_file(path) as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        archive = ArrayArchive(path, loaded)
        return {name: archive[name] for name in archive.names}


class ArrayArchive:
    """An open ``.npz`` file; each array is read when it is asked for. See :func:`open_arrays`.

    Attributes:
        path: The file.
        names: Names of the arrays, in the file's order.
    """

    def __init__(self, path: Path, archive: Any) -> None:
        self.path = path
        self.names: tuple[str, ...] = tuple(archive.files)
        self._archive = archive

    def __getitem__(self, name: str) -> Array:
        """Read an array.

        Raises:
            SpecError: it is damaged, or not an array.
        """
        with reading(self.path):
            array = self._archive[name]
        if not isinstance(array, np.ndarray):
            raise SpecError(f"{self.path}: {name!r} is not an array")
        return array


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[ArrayArchive]:
    """Open an ``.npz`` file for the time of a block.

    Raises:
        SpecError: the file cannot be read, is damaged, or is not an ``.npz``.
    """
    with contextlib.ExitStack() as stack:
        with reading(path):
            file = stack.enter_context(open_regular_file(path))
            loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise SpecError(f"{path}: holds one array without a name; write an .npz file")
        yield ArrayArchive(path, loaded)


class ArrayWriter:
    """Writes the arrays of an ``.npz`` file one by one. See :func:`write_arrays`."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def __call__(self, name: str, array: Array) -> None:
        """Write an array; types that NumPy's files do not know become float32.

        ``numpy.savez`` takes the names as keywords, and so cannot write one called ``file``.
        """
        known = array.astype(np.float32) if array.dtype.kind == "V" else array
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, known, allow_pickle=False)


@contextlib.contextmanager
def write_arrays(path: Path) -> Iterator[ArrayWriter]:
    """Write an ``.npz`` file in a block, which is complete after it, or does not exist."""
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        yield ArrayWriter(archive)


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an ``.npz`` file of these arrays."""
    with write_arrays(path) as write:
        for name, array in arrays.items():
            write(name, array)


@contextlib.contextmanager
def reading(path: Path, kind: type[TrtNativeError] = SpecError) -> Iterator[None]:
    """Convert every exception from reading a NumPy file in the block into one error type."""
    try:
        yield
    except kind:
        raise
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # zipfile, zlib and NumPy have kinds of their own
        reason = " ".join(str(error).split())
        raise kind(f"{path}: not a NumPy file, or damaged ({reason})") from None
