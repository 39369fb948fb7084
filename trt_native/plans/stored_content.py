"""The bytes of a plan that stay in its file until they are needed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader
from pathlib import Path

from trt_native.errors import PlanError
from trt_native.files import open_regular_file

__all__ = ["ContentReader", "StoredContent", "new_memory"]

_CHUNK = 16 * 2**20


@dataclass(frozen=True, slots=True)
class StoredContent:
    """The bytes of a plan in a file, of which only those that are read take memory.

    Attributes:
        path: The file.
        offset: Where the plan begins in it, in bytes.
        size: Length of the plan in bytes.
        state: Device, inode, size and time of the file when it was checked.
    """

    path: Path
    offset: int
    size: int
    state: tuple[int, int, int, int]

    @classmethod
    def of(cls, path: Path, file: BufferedReader, offset: int) -> StoredContent:
        """The bytes from an offset to the end of an open file."""
        state = _state(file)
        return cls(path.absolute(), offset, state[2] - offset, state)

    @contextlib.contextmanager
    def open(self) -> Iterator[ContentReader]:
        """Open the file for reading.

        Raises:
            PlanError: it is gone, or is another one than when it was checked, or changes before
                the block ends.
        """
        try:
            with open_regular_file(self.path) as file:
                self._check(file)
                yield ContentReader(file, self.offset, self.size)
                self._check(file)
        except OSError as error:
            raise PlanError(f"cannot read {self.path}: {error.strerror or error}") from None

    def _check(self, file: BufferedReader) -> None:
        if _state(file) != self.state:
            raise PlanError(f"{self.path}: changed since it was opened; open the plan again")

    def read(self) -> memoryview:
        """All bytes, in memory of their own.

        Raises:
            PlanError: as :meth:`open`.
        """
        memory = new_memory(self.size)
        with self.open() as reader:
            reader.read_into(memory)
        return memory.toreadonly()

    def head(self, size: int) -> bytes:
        """The first bytes.

        Raises:
            PlanError: as :meth:`open`.
        """
        with self.open() as reader:
            return reader.read(size)

    def sha256(self, memory: memoryview | None = None) -> str:
        """SHA-256 of the bytes in hexadecimal, hashed while the next ones are read.

        Args:
            memory: Memory of :attr:`size` bytes, which are left in it.

        Raises:
            PlanError: as :meth:`open`.
        """
        if memory is None:
            memory = new_memory(min(self.size, 2 * _CHUNK))
        digest = hashlib.sha256()
        hashing: threading.Thread | None = None
        with self.open() as reader:
            for start in range(0, self.size, _CHUNK):
                place = start % len(memory)
                chunk = memory[place : place + min(_CHUNK, self.size - start)]
                reader.read_into(chunk)
                if hashing is not None:
                    hashing.join()
                hashing = threading.Thread(target=digest.update, args=(chunk,))
                hashing.start()
        if hashing is not None:
            hashing.join()
        return digest.hexdigest()


def new_memory(size: int) -> memoryview:
    """Memory that, unlike a bytearray, is not filled with zeros first."""
    return memoryview(mmap.mmap(-1, size))


class ContentReader:
    """Reads the bytes of a plan from an open file, in any order."""

    def __init__(self, file: BufferedIOBase, offset: int, size: int) -> None:
        self._file = file
        self._offset = offset
        self._size = size
        self._position = 0
        file.seek(offset)

    def read(self, size: int) -> bytes:
        """Some of the next bytes, 16 MiB at most; none at the end.

        Raises:
            OSError: the file cannot be read.
        """
        data = self._file.read(max(0, min(size, self._size - self._position, _CHUNK)))
        self._position += len(data)
        return data

    def read_into(self, memory: memoryview) -> None:
        """Fill memory with the next bytes.

        Raises:
            OSError: the file cannot be read, or is shorter now.
        """
        if self._file.readinto(memory) != len(memory):
            raise OSError(errno.EIO, "became shorter while it was read")
        self._position += len(memory)

    def seek(self, offset: int, whence: int) -> bool:
        """Go to an offset from the start (0), the position (1) or the end (2) of the plan.

        Returns:
            Whether there is such a place; else the position stays as it is.

        Raises:
            OSError: the file cannot be read.
        """
        position = (0, self._position, self._size)[whence] + offset
        if not 0 <= position <= self._size:
            return False
        self._file.seek(self._offset + position)
        self._position = position
        return True


def _state(file: BufferedReader) -> tuple[int, int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
