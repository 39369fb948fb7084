"""Loading and saving plans."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import html
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from trt_native.errors import PlanError, on_one_line
from trt_native.files import AtomicFile, as_path, open_regular_file, save_with_json
from trt_native.plans.header import HEADER_BYTES, PlanHeader
from trt_native.plans.manifest import Manifest, manifest_path, read_manifest
from trt_native.plans.plan_file import PlanFile
from trt_native.plans.prefix import read_prefix
from trt_native.units import format_bytes

__all__ = ["Plan"]


_CHUNK = 16 * 2**20


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """A serialized engine.

    Attributes:
        data: TensorRT's bytes. They may be memory that TensorRT owns; it lives as long as this.
        manifest: What is known of the plan; None for a plan that came without a manifest.
        path: Where it was loaded from, if it was.
        prefix: Metadata that Ultralytics' exports have in front of the plan in its file; None
            without. It is no part of ``data``, and not saved.
    """

    data: bytes | memoryview
    manifest: Manifest | None = None
    path: Path | None = None
    prefix: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"Plan({', '.join(self._facts())})"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"

    def _facts(self) -> list[str]:
        """Where it is from, its size, what made it, and its precision, as far as known."""
        facts = [] if self.path is None else [repr(str(self.path))]
        facts.append(format_bytes(len(self.data)))
        if self.manifest is not None:
            facts.append(self.manifest.describe())
        return facts

    def summary(self) -> str:
        """Describe the plan for a person: its facts, and its inputs and outputs, a line each."""
        tensors = [] if self.manifest is None else self.manifest.tensors
        lines = [", ".join(self._facts()), *(f"  {tensor.mode:6} {tensor}" for tensor in tensors)]
        return "\n".join(map(on_one_line, lines))

    @property
    def header(self) -> PlanHeader:
        """The plan's header.

        Raises:
            PlanError: the bytes are not a plan.
        """
        return PlanHeader.parse(self.data)

    def check_complete(self) -> None:
        """Refuse a plan whose manifest records that its weights were left out.

        Raises:
            PlanError: they were.
        """
        if self.manifest is not None and self.manifest.options.get("strip_weights"):
            raise PlanError(
                f"{self.path or 'this plan'} cannot run: its weights were left out; refit"
                " it first (trt_native.refit_plan, or trt-native refit)"
            )

    def save(self, path: str | os.PathLike[str], *, written: PlanFile | None = None) -> Path:
        """Write the plan to ``path`` and its manifest to ``path`` + ``.json``.

        Both are complete on disk or not there at all; a file that was there before stays until
        both new ones are ready.

        Args:
            path: The file.
            written: A file for this path, which is published if it has this plan's bytes.

        Raises:
            PlanError: the folder cannot be written to, or the disk is full.
        """
        target = as_path(path)
        try:
            document = None if self.manifest is None else self.manifest.to_json()
            content = self.data if written is None else self._written(written)
            save_with_json(target, content, manifest_path(target), document)
        except OSError as error:
            needed = format_bytes(len(self.data))
            raise PlanError(
                f"cannot write {target} ({needed}): {error.strerror or error};"
                " no partial file was written"
            ) from error
        return target

    def _written(self, file: PlanFile) -> memoryview | bytes | AtomicFile:
        same = self.manifest is not None and self.manifest.plan_sha256 == file.sha256
        return file.new if same and file.new is not None else self.data

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, ignore_manifest: bool = False) -> Plan:
        """Read a plan and the manifest next to it, if there is one; check both.

        Args:
            path: The plan's file, with or without metadata in front as in Ultralytics' exports.
            ignore_manifest: Read the plan alone, as if it came from another tool.

        Raises:
            PlanError: the file is missing, is not a plan, is truncated, or differs from what its
                manifest describes.
        """
        source = as_path(path)
        try:
            with open_regular_file(source) as file:
                size = os.fstat(file.fileno()).st_size
                offset, prefix = _prefix(source, file, size)
                file.seek(offset)
                size -= offset
                _check_header(source, file.read(HEADER_BYTES), size)
                manifest = None if ignore_manifest else read_manifest(source)
                if manifest and manifest.plan_bytes != size:
                    raise _differs(source, f"{size} bytes instead of {manifest.plan_bytes}")
                file.seek(offset)
                data, digest = _read_hashed(file, size, hashed=manifest is not None)
        except OSError as error:
            raise PlanError(f"cannot read {source}: {error.strerror}") from None
        if manifest and manifest.plan_sha256 != digest:
            raise _differs(source, "SHA-256 differs")
        return cls(data, manifest, source, prefix)


def _read_hashed(file: BufferedReader, size: int, *, hashed: bool) -> tuple[memoryview, str]:
    """A file's bytes and, if wanted, their SHA-256, which takes as long as reading: side by side.

    Raises:
        OSError: the file cannot be read, or is shorter now.
    """
    memory = memoryview(mmap.mmap(-1, size))  # unlike a bytearray it is not filled with zeros first
    digest = hashlib.sha256()
    chunks = [memory[start : start + _CHUNK] for start in range(0, size, _CHUNK)]
    with contextlib.ExitStack() as stack:
        read_all: Callable[..., Iterator[int]] = map
        if len(chunks) > 1:  # to start a thread takes longer than to read one chunk
            from concurrent.futures import ThreadPoolExecutor

            read_all = stack.enter_context(ThreadPoolExecutor(1)).map
        for chunk, read in zip(chunks, read_all(file.readinto, chunks), strict=True):
            if read != len(chunk):
                raise OSError(errno.EIO, "became shorter while it was read")
            if hashed:
                digest.update(chunk)
    return memory.toreadonly(), digest.hexdigest()


def _prefix(path: Path, file: BufferedReader, size: int) -> tuple[int, dict[str, Any] | None]:
    try:
        return read_prefix(file, size)
    except PlanError as error:
        raise PlanError(f"{path}: {error.message}") from None


def _check_header(path: Path, head: bytes, size: int) -> None:
    try:
        header = PlanHeader.parse(head)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None
    if header.declared_bytes not in (None, size):
        raise PlanError(
            f"{path}: damaged: its header says {header.declared_bytes} bytes,"
            f" the file has {size}; copy or build it again"
        )


def _differs(path: Path, difference: str) -> PlanError:
    return PlanError(
        f"{path}: its bytes are not those that {manifest_path(path).name} describes"
        f" ({difference}): the plan is damaged or was replaced; copy or build it again,"
        " or ignore the manifest if the plan came from another tool",
        options=("ignore_manifest",),
    )
