"""The file of a plan that is being built."""

from __future__ import annotations

import hashlib
import mmap
import threading
from pathlib import Path

from trt_native.errors import PlanError
from trt_native.files import AtomicFile
from trt_native.units import format_bytes

__all__ = ["PlanFile"]


class PlanFile:
    """A new file that takes a plan's bytes as they are made, so that they need no memory.

    It has its name once :meth:`trt_native.plans.plan.Plan.save` has published it, and nothing is on
    disk before the first bytes. At the end of a ``with`` block it is gone, unless it was published.

    Args:
        path: Where the plan is to be saved.

    Attributes:
        path: The same.
        new: The file; None before the first bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.new: AtomicFile | None = None
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, chunk: bytes) -> None:
        """Add bytes to the file, and to their hash meanwhile, which takes longer.

        Raises:
            PlanError: the folder cannot be written to, or the disk is full.
        """
        hashing = threading.Thread(target=self._digest.update, args=(chunk,))
        hashing.start()
        try:
            if self.new is None:
                self.new = AtomicFile(self.path)
            self.new.file.write(chunk)
        except OSError as error:
            needed = format_bytes(self._size + len(chunk))
            raise PlanError(
                f"cannot write {self.path} ({needed} or more): {error.strerror or error};"
                " no partial file was written"
            ) from error
        finally:
            hashing.join()
        self._size += len(chunk)

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far, in hexadecimal."""
        return self._digest.hexdigest()

    def content(self) -> memoryview:
        """The bytes that were written, mapped: they stay readable after the file is gone.

        Raises:
            PlanError: the disk is full.
        """
        if self.new is None or not self._size:
            return memoryview(b"")
        try:
            self.new.file.flush()
            mapped = mmap.mmap(self.new.file.fileno(), self._size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise PlanError(
                f"cannot write {self.path} ({format_bytes(self._size)}):"
                f" {error.strerror or error}; no partial file was written"
            ) from error
        return memoryview(mapped)

    def __enter__(self) -> PlanFile:
        return self

    def __exit__(self, *error: object) -> None:
        if self.new is not None:
            self.new.discard()
