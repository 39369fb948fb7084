"""Plans and layer timings kept between builds, so that an unchanged build returns at once.

A plan is found again by what went into it: the content of the ONNX file and its external weights,
the build options with the content of the files they name, the shapes, the version of TensorRT, the
GPU, and the version of this package. Names of files do not count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import mmap
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_native.config import QuantizationSpec, as_config
from trt_native.errors import PlanError, SpecError
from trt_native.files import (
    as_path,
    atomic_write,
    open_regular_file,
    read_text_file,
    sha256_of_file,
)
from trt_native.plans.manifest import MANIFEST_SCHEMA, Manifest
from trt_native.plans.plan import Plan
from trt_native.plans.plan_file import PlanFile
from trt_native.plans.plugins import plugin_records
from trt_native.progress import Progress, phase
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from filelock import FileLock

    from trt_native.backends.base import Backend
    from trt_native.builder.build import PreparedBuild
    from trt_native.config import BuildConfig
    from trt_native.cuda import GpuInfo

__all__ = [
    "FOLDERS",
    "FOLDER_VARIABLE",
    "SIZE_VARIABLE",
    "BuiltPlan",
    "CacheEntry",
    "EngineCache",
    "PruneResult",
    "code_hash",
]

FOLDER_VARIABLE = "TRT_NATIVE_CACHE"
"""Environment variable that names the cache folder where no argument does."""

SIZE_VARIABLE = "TRT_NATIVE_CACHE_SIZE"
"""Environment variable that limits the size of the kept plans, such as ``50GiB``."""

FOLDERS = ("engines", "timing", "hashes", "locks", "notes")
"""The folders in a cache folder."""

_LOGGER = logging.getLogger(__name__)
_MOST_BYTES = 20 * 2**30
_MOST_HASHES = 4096
_LEAST_DIGITS = 4
_SETTLED_NS = 2 * 10**9  # the coarsest file times of the file systems in use
_TAG_NAME = "CACHEDIR.TAG"
_OWNER = "# This folder is a cache of trt-native.\n"
_TAG = f"Signature: 8a477f597d28d172789f06886806bc55\n{_OWNER}"

# The names of this cache's own files. Any others in its folders are someone else's.
_PLAN = re.compile(r"[0-9a-f]{64}\.plan")
_SEAL = re.compile(r"[0-9a-f]{64}\.json")
_KERNELS_ENDING = ".plan.cache"
_KERNELS = re.compile(r"[0-9a-f]{64}\.plan\.cache")
_LOCK = re.compile(r"[0-9a-f]{64}\.lock")
_HASH = re.compile(r"[0-9a-f]{32}\.json")
_TIMING = re.compile(r"(rtx|trt\d+)-[\w.-]+\.cache")
_TEMPORARY = re.compile(r"\..{1,50}\.[0-9a-f]{8}-[0-9a-f]{4}")


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """A plan, and where it came from.

    Attributes:
        plan: The plan with its manifest, not yet saved.
        cached: Whether it was taken from the cache instead of being built.
        key: Its key in the cache; None if it is not kept there.
    """

    plan: Plan
    cached: bool = False
    key: str | None = None

    @property
    def manifest(self) -> Manifest:
        """The plan's manifest."""
        if self.plan.manifest is None:
            raise PlanError("a plan without a manifest was not built here")
        return self.plan.manifest


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A plan in the cache.

    Attributes:
        key: 64 hexadecimal digits.
        bytes: Size on disk.
        used: Time of the last build or use, in seconds since 1970.
        manifest: The plan's manifest; None if it cannot be read, so that it will be built again.
    """

    key: str
    bytes: int
    used: float
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class PruneResult:
    """Counts of removed files.

    Attributes:
        plans: Number of plans.
        files: Number of all files.
        bytes: Their size.
    """

    plans: int = 0
    files: int = 0
    bytes: int = 0

    def __add__(self, other: PruneResult) -> PruneResult:
        return PruneResult(
            self.plans + other.plans, self.files + other.files, self.bytes + other.bytes
        )


class EngineCache:
    """A folder with built plans, timing caches and remembered file hashes.

    Any number of processes may use one folder at a time. A folder that cannot be written to costs
    a warning, and plans that are there are still found.

    Args:
        folder: Path of the folder. None: the value of ``TRT_NATIVE_CACHE``, else ``trt-native`` in
            the user's cache folder.
        max_bytes: Size at which the plans that were not used for longest are removed. None: the
            value of ``TRT_NATIVE_CACHE_SIZE``, else 20 GiB, or a tenth of the disk if that is less.

    Attributes:
        folder: Path of the folder.

    Raises:
        SpecError: ``TRT_NATIVE_CACHE_SIZE`` is not a size; or the folder has no name, or holds
            files but is not such a cache.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, max_bytes: int | None = None
    ) -> None:
        if folder is not None and not os.fspath(folder):
            raise SpecError("the cache folder has an empty name; name a folder")
        self.folder = Path(folder) if folder is not None else _default_folder()
        _check_own(self.folder)
        if max_bytes is None and (text := os.environ.get(SIZE_VARIABLE)):
            max_bytes = parse_bytes(text)
        self._max_bytes = max_bytes
        self._engines, self._timings, self._hashes, self._locks, self._notes = (
            self.folder / name for name in FOLDERS
        )
        self._hashed: dict[str, dict[str, Any]] = {}
        self._warned: set[str] = set()

    @property
    def max_bytes(self) -> int:
        """Size in bytes that the plans may have together."""
        if self._max_bytes is not None:
            return self._max_bytes
        try:
            disk = shutil.disk_usage(_existing(self.folder)).total
        except OSError:
            disk = 0
        return min(_MOST_BYTES, disk // 10) if disk else _MOST_BYTES

    # Building

    @shows_progress
    def build_plan(
        self,
        model: str | os.PathLike[str],
        config: BuildConfig | None = None,
        *,
        backend: str | Backend = "auto",
        progress: AnyProgress = None,
        output: PlanFile | None = None,
    ) -> BuiltPlan:
        """Return the plan if it is here, else build it and keep it.

        Another process that builds the same plan is waited for. The manifest of a plan from the
        cache records when and how it was built, and names the model that is requested now.

        Where the backend measures layers and ``config`` names no timing cache, one for this
        TensorRT and GPU is kept here.

        Args:
            model: As for :func:`trt_native.builder.build_plan.build_plan`, like the rest.
            config: The same.
            backend: The same.
            progress: The same.
            output: File for a plan that is built, where the backend can write it as it is made.

        Raises:
            UnsupportedError, ModelError, SpecError, BuildError: as
                :func:`trt_native.builder.build_plan.build_plan`.
        """
        from trt_native.backends.registry import load_backend

        path, config, chosen = as_path(model), as_config(config), load_backend(backend)
        request = self._request(path, config, chosen)
        found = request and self._find_requested(request, config)
        if found:
            return found
        from trt_native.builder.build import build_prepared, prepare

        calibration = self._calibration(config)
        prepared = prepare(
            path, config, backend=chosen, progress=progress, hash_file=self.hash_file
        )
        key = self._key(prepared)
        plan = key and self._find(key, config, prepared.files)
        if plan:
            if calibration == self._calibration(config):
                self._remember(request, key, prepared)
            return BuiltPlan(plan, cached=True, key=key)
        with self._build_lock(key, progress):
            # Another builder may have built it, or written the files that the options name.
            key = self._key(prepared)
            plan = key and self._find(key, config, prepared.files)
            if plan:
                return BuiltPlan(plan, cached=True, key=key)
            plan = build_prepared(
                prepared,
                progress=progress,
                timing_cache=self._timing_cache(prepared),
                output=output,
            )
            # A build may write files that its options name. With those as they are now, the same
            # build would come out the same.
            key = self._key(prepared)
            is_native = prepared.decisions.precision.calibrates  # which writes its cache
            if not is_native and calibration != self._calibration(config):
                self._warn("the plan is not kept: its calibration changed while it was built")
            elif key and self._keep(key, BuiltPlan(plan)):
                self._remember(self._request(path, config, chosen), key, prepared)
                return BuiltPlan(plan, key=key)
        return BuiltPlan(plan)

    def find_plan(self, key: str, config: BuildConfig) -> Plan | None:
        """The plan of a key that :meth:`build_plan` returned, if it is still here.

        Args:
            key: The key.
            config: The configuration that the plan was built with, for its manifest.
        """
        return self._find(key, config, {}) if _PLAN.fullmatch(f"{key}.plan") else None

    def plan_path(self, key: str) -> Path:
        """The file of the plan of a key, beside which a runtime cache may be."""
        return self._engines / f"{key}.plan"

    def request_key(self, config: BuildConfig, backend: Backend, **parts: Any) -> str | None:
        """The key of a note about a request, of which the model is not known yet.

        It depends on all that a build depends on, but for the model. None where something that
        ``config`` names has no fingerprint.

        Args:
            config: The configuration.
            backend: The loaded backend.
            parts: What else the request depends on, as JSON holds it.
        """
        from trt_native.backends.building import default_workspace
        from trt_native.cuda import gpu_info

        gpu = gpu_info()
        return self._described(
            config,
            backend,
            gpu,
            profiles=config.profiles,
            workspace_bytes=config.workspace_bytes or default_workspace(gpu),
            **parts,
        )

    def write_note(self, key: str, content: dict[str, Any]) -> None:
        """Keep a note, for :meth:`read_note`.

        Args:
            key: 64 hexadecimal digits.
            content: The note, as JSON holds it.
        """
        with self._optional():
            self._make(self._notes)
            _write_checksummed(self._notes / f"{key}.json", content)

    def read_note(self, key: str) -> dict[str, Any] | None:
        """The note that :meth:`write_note` kept; None if there is none, or it is damaged."""
        with contextlib.suppress(OSError, ValueError):
            return _read_checksummed(self._notes / f"{key}.json")
        return None

    def record_fallback(
        self,
        model: str | os.PathLike[str],
        config: BuildConfig,
        content: dict[str, Any],
        *,
        backend: str | Backend = "auto",
    ) -> None:
        """Keep the settings that a failing build fell back to, for :meth:`find_fallback`.

        Args:
            model: As for :meth:`build_plan`.
            config: The same.
            content: The settings, as JSON holds them.
            backend: The same.

        Raises:
            UnsupportedError, ModelError, SpecError: as :meth:`build_plan`.
        """
        key = self._key_of(model, config, backend)
        if key is not None:
            self.write_note(key, content)

    def find_fallback(
        self,
        model: str | os.PathLike[str],
        config: BuildConfig,
        *,
        backend: str | Backend = "auto",
    ) -> dict[str, Any] | None:
        """The settings that :meth:`record_fallback` kept for an unchanged build, or None.

        Raises:
            UnsupportedError, ModelError, SpecError: as :meth:`build_plan`.
        """
        key = self._key_of(model, config, backend)
        return None if key is None else self.read_note(key)

    def _key_of(
        self, model: str | os.PathLike[str], config: BuildConfig, backend: str | Backend
    ) -> str | None:
        from trt_native.builder.build import prepare

        return self._key(prepare(model, config, backend=backend, hash_file=self.hash_file))

    def _request(self, path: Path, config: BuildConfig, backend: Backend) -> str | None:
        """What is asked for, as far as it is known before the model is read."""
        try:
            name = os.fsencode(path.absolute()).hex()
        except OSError:  # the working folder is gone
            return None
        return self.request_key(config, backend, path=name)

    def _key(self, prepared: PreparedBuild) -> str | None:
        files, decisions = prepared.files, prepared.decisions
        return self._described(
            prepared.config,
            prepared.backend,
            prepared.gpu,
            model=files["sha256"],
            external={file["file"]: file["sha256"] for file in files["external"]},
            profiles=decisions.profiles,
            workspace_bytes=decisions.workspace_bytes,
        )

    def _described(
        self, config: BuildConfig, backend: Backend, gpu: GpuInfo | None, **parts: Any
    ) -> str | None:
        """A digest of all that goes into a plan; None where something has no fingerprint."""
        try:
            return self.build_key(
                config,
                backend=(backend.name, backend.version),
                gpu=(gpu.name, gpu.compute_capability) if gpu else None,
                **parts,
            )
        except TypeError as error:
            self._warn(f"the plan is not kept: {error}")
            return None
        except OSError as error:
            self._warn(f"the plan is not kept: {error.filename}: {error.strerror}")
            return None

    def build_key(
        self,
        config: BuildConfig,
        *,
        backend: tuple[str, str],
        gpu: tuple[str, str] | None,
        **parts: Any,
    ) -> str:
        """A digest of all that goes into a plan, for a build on any machine.

        Args:
            config: The configuration. Its profiles and workspace are among ``parts``.
            backend: Name and version of the backend.
            gpu: Name and compute capability of the GPU; None without one.
            parts: What else the plan depends on, as JSON holds it.

        Returns:
            64 hexadecimal digits.

        Raises:
            TypeError: something that ``config`` names has no fingerprint.
            OSError: a file that ``config`` names cannot be read.
        """
        options = {
            name: getattr(config, name)
            for name in config.__dataclass_fields__
            if name not in ("profiles", "workspace_bytes")
        }
        described = {
            "code": code_hash(),
            "schema": MANIFEST_SCHEMA,
            **parts,
            "config": options,
            "calibration": _calibration_files(config),
            "plugins": plugin_records(config.plugins),
            "backend": backend,
            "gpu": gpu,
        }
        return _digest(self._key_part(described))

    def _key_part(self, value: Any) -> Any:
        """A JSON value that is equal only for equal values; files count by their content."""
        if isinstance(value, Enum):
            return value.value
        if value is None or isinstance(value, (str, int, float)):
            return value
        if isinstance(value, Path):
            return {"content": self._content(value)}
        if isinstance(value, Mapping):
            return {str(key): self._key_part(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return [self._key_part(item) for item in value]
        if isinstance(value, (set, frozenset)):
            return sorted(_digest(self._key_part(item)) for item in value)
        if dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            if isinstance(value, QuantizationSpec):
                del fields["calibration_data"]  # whose content counts, by _calibration_files
            return {"type": type(value).__name__, "fields": self._key_part(fields)}
        raise TypeError(
            f"an option holds a {type(value).__name__}, which cannot be part of a cache key"
        )

    def _content(self, path: Path) -> Any:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return {str(file.relative_to(path)): self.hash_file(file) for file in files}
        if path.exists() and not path.is_file():
            raise TypeError(f"{path} is neither a file nor a folder")
        return self.hash_file(path) if path.exists() else None

    def _calibration(self, config: BuildConfig) -> Any:
        """The content of the files that calibrate, to see whether they change during a build."""
        try:
            return self._key_part(
                (config.quantization.calibration_cache, _calibration_files(config))
            )
        except (TypeError, OSError):
            return None

    def _timing_cache(self, prepared: PreparedBuild) -> Path | None:
        """The timing cache for this TensorRT and GPU; None where it has no use or no place."""
        gpu = prepared.gpu
        if not prepared.backend.capabilities.timing_cache:
            return None
        names = [prepared.backend.name, prepared.backend.version]
        names += [gpu.name, gpu.compute_capability] if gpu else ["no GPU"]
        with self._optional():
            self._make(self._timings)
            return self._timings / (re.sub(r"[^\w.-]+", "_", "-".join(names)) + ".cache")
        return None

    # Entries

    def _remember(self, request: str | None, key: str | None, prepared: PreparedBuild) -> None:
        """Note which plan a request came to, so that the model need not be read for the next."""
        if request is None or key is None:
            return
        from trt_native.graph.onnx_file import weight_links

        paths = [str(path.absolute()) for path in prepared.states]
        links = {str(k.absolute()): str(file) for k, file in weight_links(prepared.graph).items()}
        content = {"key": key, "files": prepared.files, "paths": paths, "links": links}
        self.write_note(request, content)

    def _find_requested(self, request: str, config: BuildConfig) -> BuiltPlan | None:
        """The plan that the same request came to, if all files of the model are as they were."""
        try:
            note = _read_checksummed(self._notes / f"{request}.json")
            files = note["files"]
            hashes = [file["sha256"] for file in (files, *files["external"])]
            if hashes != [self.hash_file(Path(path)) for path in note["paths"]]:
                return None
            if any(os.path.realpath(link) != file for link, file in note["links"].items()):
                return None
            if not _PLAN.fullmatch(f"{note['key']}.plan"):
                return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        plan = self._find(note["key"], config, files)
        return BuiltPlan(plan, cached=True, key=note["key"]) if plan else None

    def _find(self, key: str, config: BuildConfig, files: Mapping[str, Any]) -> Plan | None:
        with self._optional():
            try:
                manifest, data = self._read(key)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except (ValueError, PlanError) as error:
                self._warn(f"entry {key[:12]} is damaged ({error}); building the plan again")
                self._remove(key)
                return None
            options = config.options()
            model = {**manifest.model, **files}  # the same content, by this build's names
            manifest = dataclasses.replace(manifest, model=model, options=options)
            return Plan(data, manifest, plugins=config.plugins)
        return None

    def _read(self, key: str) -> tuple[Manifest, memoryview]:
        file = self._engines / f"{key}.plan"
        sealed = _read_checksummed(file.with_suffix(".json"))
        with open_regular_file(file) as opened:
            data = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        manifest = Manifest.from_json(sealed.get("manifest"))
        if sealed.get("key") != key:
            raise ValueError("the entry belongs to another key")
        if hashlib.sha256(data).hexdigest() != manifest.plan_sha256:
            raise ValueError("the plan does not match its checksum")
        with contextlib.suppress(OSError):
            os.utime(file)
        return manifest, data

    def _keep(self, key: str, built: BuiltPlan) -> bool:
        """Keep a plan; returns whether it is here now."""
        limit, size = self.max_bytes, built.manifest.plan_bytes
        if size > limit:
            self._warn(
                f"the plan is not kept: it has {format_bytes(size)}, the limit is"
                f" {format_bytes(limit)}; raise it with {SIZE_VARIABLE}"
            )
            return False
        with self._optional():
            self._make(self._engines)
            # The plan comes last: without it the entry does not exist.
            sealed = {"key": key, "manifest": built.manifest.to_json()}
            _write_checksummed(self._engines / f"{key}.json", sealed)
            with atomic_write(self._engines / f"{key}.plan", durable=False) as file:
                file.write(built.plan.data)
            self.prune()
            return True
        return False

    def _remove(self, key: str) -> PruneResult:
        removed = PruneResult(plans=1)
        for suffix in (".plan", ".json", _KERNELS_ENDING):
            removed += _unlink(self._engines / f"{key}{suffix}")
        return removed

    @contextlib.contextmanager
    def _build_lock(self, key: str | None, progress: Progress | None) -> Iterator[None]:
        """Hold off other builders of the same plan; without effect where no lock can be had."""
        from filelock import FileLock, Timeout

        with contextlib.ExitStack() as held:
            with self._optional():
                if key is not None:
                    self._make(self._locks)
                    lock = FileLock(self._locks / f"{key}.lock")
                    try:
                        lock.acquire(blocking=False)
                    except Timeout:
                        with phase(progress, "Waiting for another build of this plan"):
                            lock.acquire()
                    held.callback(_release, lock)
            yield

    # Hashes

    def hash_file(self, path: Path) -> str:
        """SHA-256 of a file in hexadecimal, remembered while the file stays as it is.

        The file stays as it is while its path, size, inode and times of change are the same.

        Raises:
            OSError: the file cannot be read.
        """
        name = os.path.abspath(path)
        memo = self._hashes / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.json"
        before: dict[str, Any] = {"path": name, **_signature(path)}
        known = self._hashed.get(name)
        if known is not None and known == {**before, "sha256": known["sha256"]}:
            return str(known["sha256"])
        with contextlib.suppress(OSError, ValueError):
            known = _read_checksummed(memo)
            if known == {**before, "sha256": known.get("sha256")}:
                return str(known["sha256"])
        age = time.time_ns() - max(before["mtime_ns"], before["ctime_ns"])
        known = {**before, "sha256": sha256_of_file(path)}
        if before == {"path": name, **_signature(path)}:
            self._hashed[name] = known
            # One that had changed just before could change again without a change of its times.
            if age > _SETTLED_NS:
                with self._optional():
                    self._make(self._hashes)
                    _write_checksummed(memo, known)
        return str(known["sha256"])

    # Upkeep

    def entries(self) -> list[CacheEntry]:
        """The plans that are kept, the last used first. Their bytes are not checked.

        Raises:
            OSError: the folder cannot be read.
        """
        found = []
        for file in _files(self._engines, _PLAN):
            seal = file.with_suffix(".json")
            manifest = None
            with contextlib.suppress(OSError, ValueError, PlanError):
                manifest = Manifest.from_json(_read_checksummed(seal).get("manifest"))
            with contextlib.suppress(FileNotFoundError):  # removed by another process just now
                stat = file.stat()
                kernels = file.with_suffix(_KERNELS_ENDING)
                further = sum(one.stat().st_size for one in (seal, kernels) if one.exists())
                size = stat.st_size + further
                found.append(CacheEntry(file.stem, size, stat.st_mtime, manifest))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def prune(self, older_than_s: float | None = None) -> PruneResult:
        """Remove unreadable plans, then those unused for longest until the size limit is kept.

        Args:
            older_than_s: Also remove the plans that were not used for this number of seconds.

        Raises:
            OSError: something cannot be removed.
        """
        removed = self._remove_leftovers()
        limit, total, now = self.max_bytes, 0, time.time()
        for entry in self.entries():
            aged = older_than_s is not None and now - entry.used > older_than_s
            if not aged and entry.manifest is not None:
                total += entry.bytes
                if total <= limit:
                    continue
            removed += self._remove(entry.key)
        return removed

    def remove(self, keys: Sequence[str]) -> PruneResult:
        """Remove single plans.

        Args:
            keys: The beginning of the key of each, at least 4 digits, enough to distinguish it.

        Raises:
            SpecError: no plan has such a key, or several have; none is removed then.
            OSError: something cannot be removed.
        """
        known, found, problems = [entry.key for entry in self.entries()], [], []
        for key in dict.fromkeys(keys):
            matches = [name for name in known if name.startswith(key.lower())]
            found += matches
            if len(key) < _LEAST_DIGITS or len(matches) > 1:
                problems.append(f"{key!r}: give more digits of the key")
            elif not matches:
                problems.append(f"{key!r}: no plan has this key")
        if problems:
            raise SpecError(f"{self.folder}: nothing was removed", problems=problems)
        return sum(map(self._remove, dict.fromkeys(found)), PruneResult())

    def _remove_leftovers(self) -> PruneResult:
        """Remove leftovers of dead processes: locks, partial files, hashes of files long gone."""
        from filelock import FileLock, Timeout

        removed = PruneResult()
        for file in _files(self._locks, _LOCK):
            with contextlib.suppress(Timeout), FileLock(file, blocking=False):
                removed += _unlink(file)
        day_ago = time.time() - 86400
        for folder in (self._engines, self._timings, self._hashes, self._notes):
            for file in _files(folder, _TEMPORARY):
                if _modified(file) < day_ago:
                    removed += _unlink(file)
        for file in (*_files(self._engines, _SEAL), *_files(self._engines, _KERNELS)):
            plan = self.plan_path(file.name.partition(".")[0])
            if not plan.exists() and _modified(file) < day_ago:
                removed += _unlink(file)
        for folder, pattern in ((self._hashes, _HASH), (self._notes, _SEAL)):
            small = sorted(_files(folder, pattern), key=_modified)
            for file in small[: max(0, len(small) - _MOST_HASHES)]:
                removed += _unlink(file)
        return removed

    def clear(self) -> PruneResult:
        """Remove everything that is kept here, and nothing else in the folder.

        Raises:
            OSError: something cannot be removed.
        """
        removed = PruneResult()
        for entry in self.entries():
            removed += self._remove(entry.key)
        for folder, pattern in (
            (self._engines, _SEAL),
            (self._engines, _KERNELS),
            (self._timings, _TIMING),
            (self._hashes, _HASH),
            (self._notes, _SEAL),
        ):
            for file in _files(folder, pattern):
                removed += _unlink(file)
        return removed + self._remove_leftovers()

    def timing_caches(self) -> list[Path]:
        """The timing caches that are kept."""
        return _files(self._timings, _TIMING)

    # Error handling

    def _make(self, folder: Path) -> None:
        """Create a folder of the cache, readable by the user alone: plans are run as code."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tag = self.folder / _TAG_NAME
        if not tag.exists():
            with atomic_write(tag, durable=False) as file:
                file.write(_TAG.encode())
        folder.mkdir(mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def _optional(self) -> Iterator[None]:
        """Go on with a warning where the cache folder cannot be used."""
        try:
            yield
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            self._warn(
                f"cannot be used here: {reason}; name another with {FOLDER_VARIABLE}, or build"
                " without one"
            )

    def _warn(self, problem: str) -> None:
        if problem not in self._warned:
            self._warned.add(problem)
            _LOGGER.warning("cache %s: %s", self.folder, problem)


@functools.cache
def code_hash() -> str:
    """Hash of this package: a version from a repository changes without a new number."""
    folder = Path(__file__).parents[1]
    files = sorted(folder.rglob("*.py"))
    return _digest([[str(file.relative_to(folder)), sha256_of_file(file)] for file in files])


def _default_folder() -> Path:
    if text := os.environ.get(FOLDER_VARIABLE):
        return Path(text)
    return _user_folder()


def _user_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("trt-native", appauthor=False)


def _calibration_files(config: BuildConfig) -> dict[str, Path]:
    """Calibration data, and with a cache the JSON file that its ranges come from, too."""
    spec, files = config.quantization, {}
    if spec.calibration_data is not None:
        files["data"] = _path_of_data(spec.calibration_data)
    if spec.calibration_cache is not None:
        from trt_native.calibration.caches import provenance_path

        files["provenance"] = provenance_path(spec.calibration_cache)
    return files


def _path_of_data(source: str) -> Path:
    if not (path := Path(source)).exists():
        raise TypeError(f"the data of the function {source} may differ next time")
    return path


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _signature(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {
        "size": stat.st_size,
        "inode": stat.st_ino,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
    }


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _write_checksummed(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with its own hash, so that damage is noticed."""
    with atomic_write(path, durable=False) as file:  # what is lost is noticed, and made again
        file.write(json.dumps({"sha256": _digest(content), "content": content}).encode())


def _read_checksummed(path: Path) -> dict[str, Any]:
    """The inverse of :func:`_write_checksummed`.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        sealed = json.loads(read_text_file(path))
        content = sealed["content"]
        intact = isinstance(content, dict) and _digest(content) == sealed["sha256"]
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} does not match its checksum: {error}") from None
    if not intact:
        raise ValueError(f"{path.name} does not match its checksum")
    return dict(content)


def _check_own(folder: Path) -> None:
    """Refuse a folder with other files than those of such a cache.

    Raises:
        SpecError: it has some.
    """
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(f".{_TAG_NAME}.")]
        own = not names or _OWNER in (folder / _TAG_NAME).read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        own = not folder.is_dir()
    except OSError:  # reported where the cache is used
        return
    if not own and folder != _user_folder():  # that one has our name
        raise SpecError(
            f"{folder}: is not a cache of trt-native, and not empty; name another folder for it"
        )


def _files(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The files of a form of names."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    paths = (folder / name for name in names if pattern.fullmatch(name))
    return sorted(path for path in paths if path.is_file())


def _modified(file: Path) -> float:
    """Time in seconds since 1970; now, for a file that is gone."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _unlink(file: Path) -> PruneResult:
    try:
        size = file.stat().st_size
        file.unlink()
    except FileNotFoundError:
        return PruneResult()
    return PruneResult(files=1, bytes=size)


def _release(lock: FileLock) -> None:
    """Release a lock, and leave no file."""
    with contextlib.suppress(OSError):
        os.unlink(lock.lock_file)
    lock.release()
