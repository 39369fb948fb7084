"""A store of plans by what went into them: a folder, or anything that fsspec has a URL for.

``inputs/DIGEST/`` has the files of a model, ``plans/KEY/`` a plan with its manifest, and
``builds/KEY.json``, which is written last, says that the plan of a key is there, and what it must
be. A file is written whole or not at all; one that another process left in parts has no entry.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trt_native.errors import PlanError, SpecError, UnsupportedError
from trt_native.files import AtomicFile, sha256_of_file
from trt_native.plans.manifest import manifest_path, runtime_cache_path
from trt_native.ray.library import import_optional

__all__ = ["BuildStore", "FileSet", "StoredPlan"]

_MARK = "store.json"
_LAYOUT = 1
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """An entry of a store.

    Attributes:
        key: 64 hexadecimal digits: a hash of all that went into the build.
        plan: The plan's file, relative to the store.
        sha256: Hash of the plan.
        bytes: Its size.
        build_s: Time in seconds that the build took.
        node: Name of the machine that built it.
    """

    key: str
    plan: str
    sha256: str
    bytes: int
    build_s: float
    node: str


@dataclass(frozen=True, slots=True)
class FileSet:
    """Files that a build reads, and that belong together: a model, or calibration data.

    Attributes:
        main: Name of the file or folder that the build is given.
        hashes: SHA-256 of each file by its name, relative to the folder they are put into.
    """

    main: str
    hashes: Mapping[str, str]

    @property
    def digest(self) -> str:
        """A hash of all of them."""
        text = json.dumps([self.main, sorted(self.hashes.items())])
        return hashlib.sha256(text.encode()).hexdigest()


class BuildStore:
    """A store of plans.

    Any number of processes, on any number of machines, may use one at a time.

    Args:
        url: A folder that all machines share, or a URL of fsspec such as ``s3://bucket/plans``.

    Attributes:
        url: The same, a folder as an absolute path.

    Raises:
        UnsupportedError: fsspec, or what it needs for this URL, is not installed.
        SpecError: the URL cannot be read.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        fsspec = import_optional("fsspec")
        text = os.fspath(url)
        try:
            self._files, self._root = fsspec.core.url_to_fs(text)
        except (ImportError, ValueError) as error:
            kind = UnsupportedError if isinstance(error, ImportError) else SpecError
            raise kind(
                f"store {text!r}: {' '.join(str(error).split())}", options=("store",)
            ) from None
        local = import_optional("fsspec.implementations.local").LocalFileSystem
        self.folder = Path(self._root) if isinstance(self._files, local) else None
        self.url = str(self.folder) if self.folder is not None else text

    def open(self) -> str:
        """Make the store if there is none.

        Returns:
            Its identity, which another machine that sees the same store sees, too.

        Raises:
            SpecError: there is something else, or it cannot be written to.
        """
        try:
            if not self._files.exists(self._at(_MARK)):
                self._refuse_others()
                mark = {"producer": "trt-native", "layout": _LAYOUT, "id": secrets.token_hex(16)}
                self._write(_MARK, json.dumps(mark).encode())
            return self.identity()
        except SpecError:
            raise
        except Exception as error:  # each kind of storage has its own, without access above all
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise SpecError(
                f"store {self.url}: {reason}; name another", options=("store",)
            ) from None

    def identity(self) -> str:
        """The identity of a store that was made.

        Raises:
            FileNotFoundError: there is none.
            SpecError: another version of this package made it.
        """
        try:
            mark = json.loads(self._files.cat_file(self._at(_MARK)))
            layout, identity = mark["layout"], str(mark["id"])
        except (ValueError, LookupError, TypeError):
            raise SpecError(f"store {self.url}: {_MARK} is damaged; name another") from None
        if layout != _LAYOUT:
            raise SpecError(
                f"store {self.url}: has layout {layout}, and this version knows {_LAYOUT}; name"
                " another",
                options=("store",),
            )
        return identity

    # What builds read

    def put_inputs(self, files: FileSet, sources: Mapping[str, Path]) -> None:
        """Copy files here, but those that are.

        Args:
            files: The files.
            sources: Where each is now.

        Raises:
            OSError: one cannot be read or written.
            SpecError: one is not what was hashed before.
        """
        folder = f"inputs/{files.digest}"
        present = self._sizes(folder)
        for name, source in sources.items():
            target = f"{folder}/{name}"
            if present.get(target) != source.stat().st_size:
                self._put(source, target, files.hashes[name])

    def fetch_inputs(self, files: FileSet, folder: Path) -> Path:
        """The file or folder that a build is given, with the other files where it names them.

        Args:
            files: The files.
            folder: An empty folder to copy them to, where the store is not a folder.

        Raises:
            FileNotFoundError: a file is not here.
            PlanError: one was damaged on its way.
        """
        at = f"inputs/{files.digest}"
        if self.folder is not None:
            main = self.folder / at / files.main
            main.stat()
            return main
        for name, expected in files.hashes.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(self._at(f"{at}/{name}"), str(target))
            if sha256_of_file(target) != expected:
                raise PlanError(f"store {self.url}: {at}/{name} is damaged; remove it")
        return folder / files.main

    # Plans

    def entries(self) -> dict[str, StoredPlan]:
        """The plans that are here whole, by their keys."""
        sizes = self._sizes("plans")
        names = [name for name in self._sizes("builds") if name.endswith(".json")]
        found = {}
        for content in (
            self._files.cat([self._at(name) for name in names]).values() if names else ()
        ):
            entry = _read_entry(content)
            if entry is not None and self._is_whole(entry, sizes):
                found[entry.key] = entry
        return found

    def find(self, key: str) -> StoredPlan | None:
        """The plan of a key, if it is here whole."""
        try:
            entry = _read_entry(self._files.cat_file(self._at(f"builds/{key}.json")))
        except FileNotFoundError:
            return None
        if entry is None or not self._is_whole(entry, self._sizes(f"plans/{key}")):
            return None
        return entry

    def keep(self, key: str, plan: Path, *, build_s: float, node: str) -> StoredPlan:
        """Copy a plan here, with its manifest and, if it has one, its runtime cache.

        Args:
            key: Its key.
            plan: The plan's file.
            build_s: Time in seconds that the build took.
            node: Name of the machine that built it.

        Raises:
            OSError: one cannot be read or written.
        """
        sha256 = sha256_of_file(plan)
        name = f"plans/{key}/{plan.name}"
        kernels = runtime_cache_path(plan)
        for source in (kernels, manifest_path(plan)):
            if source.exists():
                ending = source.name.removeprefix(plan.name)
                self._put(source, name + ending, sha256_of_file(source))
        self._put(plan, name, sha256)
        entry = StoredPlan(key, name, sha256, plan.stat().st_size, build_s, node)
        self._write(f"builds/{key}.json", json.dumps(asdict(entry)).encode())
        return entry

    def path_of(self, entry: StoredPlan) -> str:
        """The path or URL of a plan."""
        if self.folder is not None:
            return str(self.folder / entry.plan)
        return posixpath.join(self.url, entry.plan)

    # Files

    def _at(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _is_whole(self, entry: StoredPlan, sizes: Mapping[str, int]) -> bool:
        manifest = str(manifest_path(Path(entry.plan)))
        return sizes.get(entry.plan) == entry.bytes and manifest in sizes

    def _sizes(self, folder: str) -> dict[str, int]:
        """Sizes of the files in a folder and its folders, by their names in the store."""
        self._files.invalidate_cache()
        found = self._files.find(self._at(folder), detail=True)
        root = self._root.rstrip("/")
        return {
            name.removeprefix(root).lstrip("/"): int(info["size"] or 0)
            for name, info in found.items()
        }

    def _refuse_others(self) -> None:
        """Refuse a folder with other files.

        Raises:
            SpecError: it has some.
        """
        try:
            others = self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            others = [self._root]
        if others:
            raise SpecError(
                f"store {self.url}: is not a store of trt-native, and not empty; name another",
                options=("store",),
            )

    def _write(self, name: str, content: bytes) -> None:
        if self.folder is not None:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with AtomicFile(path) as new:
                new.file.write(content)
            return
        self._files.makedirs(posixpath.dirname(self._at(name)), exist_ok=True)
        self._files.pipe_file(self._at(name), content)

    def _put(self, source: Path, name: str, expected: str) -> None:
        """Copy a file here; it has its name only when it is whole."""
        if self.folder is not None:
            _copy(source, self.folder / name, expected)
            return
        # What a file system shows of a file while it is written differs; a renamed one is whole.
        temporary = self._at(f"tmp/{secrets.token_hex(8)}")
        for folder in (posixpath.dirname(temporary), posixpath.dirname(self._at(name))):
            self._files.makedirs(folder, exist_ok=True)
        self._files.put_file(str(source), temporary)
        if sha256_of_file(source) != expected:
            self._files.rm_file(temporary)
            raise _changed(source)
        self._files.mv(temporary, self._at(name))


def _copy(source: Path, target: Path, expected: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with AtomicFile(target) as new, source.open("rb") as file:
        shutil.copyfileobj(file, new.file, _BLOCK)
        new.file.seek(0)
        digest = hashlib.sha256()
        while block := new.file.read(_BLOCK):
            digest.update(block)
        if digest.hexdigest() != expected:
            raise _changed(source)


def _changed(source: Path) -> SpecError:
    return SpecError(f"{source}: changed while it was read; start again once it is complete")


def _read_entry(content: bytes) -> StoredPlan | None:
    """An entry; None where it is damaged, so that the plan is built again."""
    try:
        fields: dict[str, Any] = json.loads(content)
        return StoredPlan(**fields)
    except (ValueError, TypeError):
        return None
