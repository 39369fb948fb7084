"""Arrays in NumPy's files: one in an ``.npy``, several by name in an ``.npz``."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from trt_native.errors import SpecError, TrtNativeError
from trt_native.files import atomic_write, open_regular_file
from trt_native.shapes import Shape, format_shape
from trt_native.units import format_bytes

__all__ = [
    "ArrayArchive",
    "ArrayWriter",
    "Batch",
    "StoredArray",
    "is_float",
    "member_of",
    "open_array",
    "open_arrays",
    "save_arrays",
    "write_arrays",
]

Array = np.ndarray[Any, np.dtype[Any]]

_MAGIC = np.lib.format.MAGIC_PREFIX
_ZIP_MAGIC = b"PK\x03\x04"
_LONGEST_NAME = 2**16 - 1 - len(".npy")  # bytes
_PIECE = 1 << 22  # bytes that are read at a time

Batch: TypeAlias = Mapping[str, Array]
"""Input name to array, for one run of a model."""


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether elements are floating-point numbers, ``ml_dtypes``' bfloat16 and so on too."""
    return dtype.kind == "f" or "float" in dtype.name


@dataclass(frozen=True, slots=True)
class _Origin:
    """The file that arrays come from, and the kind of error that it raises."""

    path: Path
    kind: type[TrtNativeError]

    def error(self, text: str) -> TrtNativeError:
        return self.kind(f"{self.path}: {text}")

    def open(self, stack: contextlib.ExitStack, other: bytes, reason: str) -> BufferedReader:
        """Open the file for as long as a stack lives; refuse one that begins as another kind."""
        with self.reading():
            file = stack.enter_context(open_regular_file(self.path))
            if file.peek(len(other)).startswith(other):
                raise self.error(reason)
            return file

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Convert every exception from reading the file in the block into one of this kind."""
        try:
            yield
        except self.kind:
            raise
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror or error}") from None
        except Exception as error:  # zipfile, zlib and NumPy have kinds of their own
            reason = " ".join(str(error).split())
            raise self.error(f"not a NumPy file, or damaged ({reason})") from None


class StoredArray:
    """An array in an open file: its header has been read, its values are read when asked for.

    Attributes:
        dtype: Type of the elements.
        shape: Extents, in elements.
    """

    def __init__(
        self,
        origin: _Origin,
        label: str,
        file: BinaryIO,
        start: int,
        header: tuple[Shape, bool, np.dtype[Any]],
    ) -> None:
        self.shape, self._fortran_order, self.dtype = header
        self._origin = origin
        self._label = label
        self._file = file
        self._start = start

    @classmethod
    def open(cls, origin: _Origin, label: str, file: BinaryIO, size: int) -> StoredArray:
        """Read the header at the start of a file of ``size`` bytes.

        Raises:
            TrtNativeError: of the origin's kind; there is none, the array is of Python objects, or
                the file is smaller than the header says.
        """
        with origin.reading():
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                header = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                header = np.lib.format.read_array_header_2_0(file)
            else:
                raise ValueError(f"version {version} of its header is not known")
            array = cls(origin, label, file, file.tell(), header)
            present = size - array._start
            if array.dtype.hasobject:
                raise ValueError("it holds Python objects")
            if min(array.shape, default=0) < 0 or array.nbytes > present:
                raise origin.error(
                    f"{array} is declared, but the file has {format_bytes(present)} of it;"
                    " write it again"
                )
            return array

    def __str__(self) -> str:
        size = format_bytes(self.nbytes)
        return f"{self._label} of {self.dtype} {format_shape(self.shape)} ({size})"

    @property
    def nbytes(self) -> int:
        """Size of the values, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def placeholder(self, dtype: np.dtype[Any] | None = None) -> Array:
        """An array of this shape, for checks: read-only, and without memory of its own."""
        with self._origin.reading():
            return np.broadcast_to(np.zeros((), dtype or self.dtype), self.shape)

    def read(self) -> Array:
        """The array; one of an ``.npy`` file is mapped, and changes to it are not written.

        Raises:
            TrtNativeError: of the file's kind; it is damaged, or larger than the machine's memory.
        """
        memory = _physical_memory()
        if memory is not None and self.nbytes > memory:
            raise self._origin.error(
                f"{self} does not fit the {format_bytes(memory)} of memory of this machine; give a"
                " smaller one"
            )
        order: Any = "F" if self._fortran_order else "C"
        with self._origin.reading():
            if isinstance(self._file, BufferedReader) and self.nbytes:
                shape = self.shape or (1,)
                mapped = np.memmap(self._file, self.dtype, "c", self._start, shape, order)
                return np.asarray(mapped).reshape(self.shape, order=order)
            values = np.empty(math.prod(self.shape), self.dtype)
            filled = 0
            for piece in self.pieces():
                values[filled : filled + len(piece)] = piece
                filled += len(piece)
            return values.reshape(self.shape, order=order)

    def pieces(self) -> Iterator[Array]:
        """The elements in the order of the file, as flat arrays of at most 4 MiB.

        Raises:
            TrtNativeError: of the file's kind; they are damaged.
        """
        end = self._start + self.nbytes
        most = max(1, _PIECE // max(1, self.dtype.itemsize)) * self.dtype.itemsize
        for position in range(self._start, end, most or 1):
            size = min(most, end - position)
            with self._origin.reading():
                self._file.seek(position)
                block = self._file.read(size)
                if len(block) < size:
                    raise EOFError("it ends before the array does")
            yield np.frombuffer(block, self.dtype)

    def row(self, number: int) -> StoredArray:
        """A part along the first axis; ascending ones are read in one pass over the file."""
        stored = self._in_rows if self._fortran_order else self
        header = (self.shape[1:], False, self.dtype)
        part = StoredArray(self._origin, self._label, stored._file, 0, header)
        part._start = stored._start + number * part.nbytes
        return part

    @functools.cached_property
    def _in_rows(self) -> StoredArray:
        """The array in memory, row by row, for one that the file has column by column."""
        header = (self.shape, False, self.dtype)
        return StoredArray(self._origin, self._label, BytesIO(self.read().tobytes()), 0, header)


def _physical_memory() -> int | None:
    """The machine's memory in bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


class ArrayArchive(Mapping[str, StoredArray]):
    """The arrays of an open ``.npz`` file by name, in its order. See :func:`open_arrays`.

    The names are those of the file's table of contents; an array's header is read when the array is
    looked up.

    Attributes:
        path: The file.
    """

    def __init__(self, origin: _Origin, archive: zipfile.ZipFile) -> None:
        self.path = origin.path
        self._origin = origin
        self._archive = archive
        self._members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
        if len(self._members) < len(archive.infolist()):
            raise origin.error("two arrays in it have the same name")

    def __getitem__(self, name: str) -> StoredArray:
        """Read the header of an array.

        Raises:
            KeyError: there is none of that name.
            TrtNativeError: of the file's kind; it is damaged, or not an array.
        """
        member = self._members[name]
        with self._origin.reading():
            file: Any = self._archive.open(member)
            if not file.peek(len(_MAGIC)).startswith(_MAGIC):
                raise self._origin.error(f"{name!r} is not an array")
            return StoredArray.open(self._origin, f"array {name!r}", file, member.file_size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


@contextlib.contextmanager
def open_arrays(path: Path, kind: type[TrtNativeError] = SpecError) -> Iterator[ArrayArchive]:
    """Open an ``.npz`` file for the time of a block.

    Args:
        path: The file.
        kind: Class of the errors, also of those that reading its arrays raises.

    Raises:
        SpecError: or ``kind``; the file cannot be read, is damaged, or is not an ``.npz``.
    """
    origin = _Origin(path, kind)
    with contextlib.ExitStack() as stack:
        reason = "holds one array without a name; write an .npz file"
        file = origin.open(stack, _MAGIC, reason)
        with origin.reading():
            archive = ArrayArchive(origin, stack.enter_context(zipfile.ZipFile(file)))
        yield archive


@contextlib.contextmanager
def open_array(path: Path, kind: type[TrtNativeError] = SpecError) -> Iterator[StoredArray]:
    """Open an ``.npy`` file for the time of a block.

    Args:
        path: The file.
        kind: Class of the errors, also of those that reading the array raises.

    Raises:
        SpecError: or ``kind``; the file cannot be read, is damaged, or is not an ``.npy``.
    """
    origin = _Origin(path, kind)
    with contextlib.ExitStack() as stack:
        reason = "holds several arrays by name; write one to an .npy file"
        file = origin.open(stack, _ZIP_MAGIC, reason)
        with origin.reading():
            size = os.fstat(file.fileno()).st_size
        yield StoredArray.open(origin, "an array", file, size)


def member_of(name: str) -> str:
    """The name that the array of a name has in an ``.npz`` file.

    Raises:
        SpecError: it is longer than a name in a ZIP archive can be.
    """
    if len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        raise SpecError(f"{name!r} is too long for an .npz file, by its {len(name):,} characters")
    return f"{name}.npy"


class ArrayWriter:
    """Writes the arrays of an ``.npz`` file one by one. See :func:`write_arrays`."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def __call__(self, name: str, array: Array) -> None:
        """Write an array; types that NumPy's files do not know become float32.

        ``numpy.savez`` takes the names as keywords, and so cannot write one called ``file``.
        """
        known = array.astype(np.float32) if array.dtype.kind == "V" else array
        with self._archive.open(member_of(name), "w", force_zip64=True) as member:
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
