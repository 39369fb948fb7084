"""Loading and saving plans."""

from __future__ import annotations

import hashlib
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from trt_native.errors import PlanError, on_one_line, shortened
from trt_native.files import AtomicFile, as_path, open_regular_file, save_with_json
from trt_native.plans.header import HEADER_BYTES, PlanHeader
from trt_native.plans.host_code import (
    HEAD_BYTES,
    LEAN_RUNTIME,
    PLUGINS,
    HostCode,
    carried_code,
)
from trt_native.plans.manifest import Manifest, manifest_path, read_manifest
from trt_native.plans.plan_file import PlanFile
from trt_native.plans.prefix import read_prefix
from trt_native.plans.stored_content import StoredContent, new_memory
from trt_native.units import format_bytes

__all__ = ["Plan"]


class _Data:
    """The field ``data`` of a plan, which may be in its file."""

    def __get__(self, plan: Plan | None, _: object = None) -> bytes | memoryview:
        if plan is None:
            raise AttributeError("the field has no default")
        content: bytes | memoryview | StoredContent = plan.__dict__["content"]
        return content.read() if isinstance(content, StoredContent) else content

    def __set__(self, plan: Plan, content: bytes | memoryview | StoredContent) -> None:
        plan.__dict__["content"] = content


@dataclass(frozen=True, repr=False)
class Plan:
    """A serialized engine.

    Attributes:
        data: TensorRT's bytes. They may be memory that TensorRT owns; it lives as long as this.
            Those of a plan that was opened are read from its file each time.
        manifest: What is known of the plan; None for a plan that came without a manifest.
        path: Where it was loaded from, if it was.
        prefix: Metadata that Ultralytics' exports have in front of the plan in its file; None
            without. It is no part of ``data``, and not saved.
        allow_host_code: Whether code for the CPU that the plan carries may run where it is loaded,
            also without a manifest that says that it was built version compatible.
        lean_runtime: Library of the lean runtime (``libnvinfer_lean``) of the TensorRT that built
            the plan, for one that was built version compatible without it.
        plugins: Plugins to load it with: paths of libraries, ``FILE.py:FUNCTION`` or
            ``package.module:FUNCTION``. Those that the manifest names are not loaded unless they
            are here.
    """

    data: _Data = _Data()
    manifest: Manifest | None = None
    path: Path | None = None
    prefix: dict[str, Any] | None = None
    allow_host_code: bool = False
    lean_runtime: Path | None = None
    plugins: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Plan({', '.join(self._facts())})"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"

    def _facts(self) -> list[str]:
        """Where it is from, its size, what made it, and its precision, as far as known."""
        facts = [] if self.path is None else [repr(str(self.path))]
        facts.append(format_bytes(self.size))
        if self.manifest is not None:
            facts.append(self.manifest.describe())
        return facts

    def summary(self) -> str:
        """Describe the plan for a person: its facts, and its inputs and outputs, a line each."""
        tensors = [] if self.manifest is None else self.manifest.tensors
        lines = [", ".join(self._facts()), *(f"  {tensor.mode:6} {tensor}" for tensor in tensors)]
        return "\n".join(shortened(on_one_line(line)) for line in lines)

    @property
    def content(self) -> bytes | memoryview | StoredContent:
        """TensorRT's bytes, or where they are for a plan that was opened."""
        content: bytes | memoryview | StoredContent = self.__dict__["content"]
        return content

    @property
    def size(self) -> int:
        """Number of TensorRT's bytes."""
        content = self.content
        return content.size if isinstance(content, StoredContent) else len(content)

    @property
    def sha256(self) -> str:
        """SHA-256 of TensorRT's bytes in hexadecimal; the manifest's, which was checked."""
        if self.manifest is not None:
            return self.manifest.plan_sha256
        content = self.content
        if isinstance(content, StoredContent):
            return content.sha256()
        return hashlib.sha256(content).hexdigest()

    @property
    def header(self) -> PlanHeader:
        """The plan's header.

        Raises:
            PlanError: the bytes are not a plan.
        """
        return PlanHeader.parse(self._head(HEADER_BYTES))

    @property
    def host_code(self) -> HostCode:
        """The code for the CPU that comes with the plan, and whether it may run.

        A manifest that says that the plan was built so, version compatible or with its plugins
        inside, allows it.
        """
        options = {} if self.manifest is None else self.manifest.options
        said = {
            LEAN_RUNTIME: options.get("version_compatible")
            and not options.get("exclude_lean_runtime"),
            PLUGINS: options.get("serialize_plugins"),
        }
        carried = carried_code(self._head(HEAD_BYTES), self.size)
        built_so = bool(options.get("version_compatible") or options.get("serialize_plugins"))
        if built_so:
            known = (*(text for text, so in said.items() if so), *(carried or ()))
            carried = tuple(dict.fromkeys(known))
        return HostCode(
            carried=carried,
            allowed=self.allow_host_code
            or (built_so and all(said[text] for text in carried or ())),
            lean_runtime=self.lean_runtime,
        )

    def _head(self, size: int) -> bytes | memoryview:
        content = self.content
        return content.head(size) if isinstance(content, StoredContent) else content[:size]

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
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        ignore_manifest: bool = False,
        allow_host_code: bool = False,
        lean_runtime: str | os.PathLike[str] | None = None,
        plugins: Sequence[str | os.PathLike[str]] = (),
    ) -> Plan:
        """Read a plan and the manifest next to it, if there is one; check both.

        Args:
            path: The plan's file, with or without metadata in front as in Ultralytics' exports.
            ignore_manifest: Read the plan alone, as if it came from another tool.
            allow_host_code: Let code that the plan carries, TensorRT's lean runtime in one that was
                built version compatible, run in this process. Only for a plan that you trust.
            lean_runtime: See :class:`Plan`. It is run, too.
            plugins: The same.

        Raises:
            PlanError: the file is missing, is not a plan, is truncated, or differs from what its
                manifest describes.
        """
        source = as_path(path)
        content, manifest, prefix = _find(source, ignore_manifest)
        lean = None if lean_runtime is None else as_path(lean_runtime)
        named = tuple(os.fspath(plugin) for plugin in plugins)
        if manifest is None:
            return cls(content.read(), None, source, prefix, allow_host_code, lean, named)
        memory = new_memory(content.size)
        _check_hash(source, manifest, content.sha256(memory))
        return cls(memory.toreadonly(), manifest, source, prefix, allow_host_code, lean, named)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        ignore_manifest: bool = False,
        allow_host_code: bool = False,
        lean_runtime: str | os.PathLike[str] | None = None,
        plugins: Sequence[str | os.PathLike[str]] = (),
    ) -> Plan:
        """Check a plan and the manifest next to it as :meth:`load` does, but leave it in its file.

        No memory holds the plan. Its bytes are read when they are needed, such as by
        :class:`~trt_native.runtime.engine.Engine`; the file must stay as it is until then.

        Args:
            path: As for :meth:`load`.
            ignore_manifest: The same.
            allow_host_code: The same.
            lean_runtime: The same.
            plugins: The same.

        Raises:
            PlanError: as :meth:`load`.
        """
        source = as_path(path)
        content, manifest, prefix = _find(source, ignore_manifest)
        if manifest is not None:
            _check_hash(source, manifest, content.sha256())
        lean = None if lean_runtime is None else as_path(lean_runtime)
        named = tuple(os.fspath(plugin) for plugin in plugins)
        return cls(content, manifest, source, prefix, allow_host_code, lean, named)


def _find(
    source: Path, ignore_manifest: bool
) -> tuple[StoredContent, Manifest | None, dict[str, Any] | None]:
    """A plan in its file, its manifest, and what is in front of it; the hash is not checked."""
    try:
        with open_regular_file(source) as file:
            size = os.fstat(file.fileno()).st_size
            offset, prefix = _prefix(source, file, size)
            content = StoredContent.of(source, file, offset)
            file.seek(offset)
            _check_header(source, file.read(HEADER_BYTES), content.size)
    except OSError as error:
        raise PlanError(f"cannot read {source}: {error.strerror}") from None
    manifest = None if ignore_manifest else read_manifest(source)
    if manifest and manifest.plan_bytes != content.size:
        raise _differs(source, f"{content.size} bytes instead of {manifest.plan_bytes}")
    return content, manifest, prefix


def _check_hash(source: Path, manifest: Manifest, sha256: str) -> None:
    if manifest.plan_sha256 != sha256:
        raise _differs(source, "SHA-256 differs")


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
