"""Sources of calibration data: files of several layouts, and a function of the user's."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from trt_native.arrays import Array, Batch, StoredArray, open_array, open_arrays
from trt_native.calibration.folder import MANIFEST_NAME, DataManifest, read_data_manifest
from trt_native.errors import USER_CODE_ERRORS, CalibrationError
from trt_native.files import is_within
from trt_native.shapes import TensorSpec

__all__ = ["Source", "StoredBatch", "load_function", "open_source"]

StoredBatch: TypeAlias = Mapping[str, "Array | StoredArray"]
"""Input name to array, which may not have been read from its file yet."""

_SOURCES = (
    "give a folder of .npz or .npy files, one .npz file, or FILE.py:FUNCTION that yields"
    " {input name: array}"
)


class Source:
    """Batches as they are, before any check.

    Attributes:
        manifest: The folder's manifest; None without one.
        problems: Problems of the source as a whole.
        hint: Advice for a user whose data does not fit; empty without one.
    """

    manifest: DataManifest | None = None
    problems: tuple[str, ...] = ()
    hint: str = ""

    def scan(self) -> Iterator[tuple[str, StoredBatch | CalibrationError]]:
        """Every batch, or why it cannot be read, with a label; its files are open until the next.

        To read an array may raise a CalibrationError.
        """
        raise NotImplementedError

    def read(self, numbers: range) -> Iterator[StoredBatch]:
        """These batches, the files of each open until the next; the numbers ascend.

        Raises:
            CalibrationError: one cannot be read any more.
        """
        raise NotImplementedError


def open_source(text: str, inputs: Sequence[TensorSpec], limit: int | None) -> Source:
    """Find out what ``text`` names; see :func:`trt_native.calibration.batches.read_batches`.

    Raises:
        CalibrationError: nothing that holds batches.
    """
    path = Path(text)
    if path.is_dir():
        return _open_folder(path, inputs, limit)
    if ".py:" in text:
        return _Function(text, limit)
    if not path.exists():
        raise CalibrationError(f"{text}: no such calibration data; {_SOURCES}")
    if path.suffix != ".npz":
        raise CalibrationError(f"{text}: not calibration data; {_SOURCES}")
    with _open_npz(path) as batch:
        known = {t.name: batch[t.name] for t in inputs if t.name in batch}
        if _is_stacked(known, inputs):
            return _Stacked(path, known, limit)
    alone = _Files([(path.name, partial(_open_npz, path))])
    alone.hint = "a file of several batches has one more axis than the input, first, in each array"
    return alone


def _open_folder(folder: Path, inputs: Sequence[TensorSpec], limit: int | None) -> Source:
    manifest = read_data_manifest(folder)
    archives = _files(folder, ".npz")
    if manifest is not None:
        return _listed(folder, manifest, archives, limit)
    arrays = _files(folder, ".npy")
    if bool(archives) == bool(arrays):
        found = "both .npz and .npy files" if archives else "no .npz and no .npy files"
        raise CalibrationError(f"{folder}: has {found}; {_SOURCES}")
    if arrays:
        return _loose(folder, arrays, inputs, limit)
    return _Files([(name, partial(_open_npz, folder / name)) for name in archives[:limit]])


def _listed(
    folder: Path, manifest: DataManifest, archives: Sequence[str], limit: int | None
) -> Source:
    """The files that a manifest lists."""
    names = [str(batch["file"]) for batch in manifest.batches]
    root = folder.resolve()
    for name in names:
        if not is_within(folder / name, root):
            raise CalibrationError(
                f"{folder}: {name!r} leads outside the folder; it is not followed"
            )
    source = _Files([(name, partial(_open_npz, folder / name)) for name in names[:limit]])
    source.manifest = manifest
    source.problems = tuple(
        f"{name} is in the folder but not in its {MANIFEST_NAME}"
        for name in archives
        if name not in names
    )
    return source


def _loose(
    folder: Path, names: Sequence[str], inputs: Sequence[TensorSpec], limit: int | None
) -> Source:
    """Files of one array each, ``BATCH.INPUT.npy``."""
    groups: dict[str, dict[str, Path]] = {}
    problems = []
    for name in names:
        stem = name.removesuffix(".npy")
        owner = next((t.name for t in inputs if stem.endswith(f".{t.name}")), None)
        if owner is not None:
            groups.setdefault(stem.removesuffix(f".{owner}"), {})[owner] = folder / name
        elif len(inputs) == 1:
            groups.setdefault(stem, {})[inputs[0].name] = folder / name
        else:
            problems.append(f"{name}: name it BATCH.INPUT.npy, such as 0001.{inputs[0].name}.npy")
    chosen = list(groups.items())[:limit]
    source = _Files([(label, partial(_open_npys, paths)) for label, paths in chosen])
    source.problems = tuple(problems)
    return source


def _files(folder: Path, suffix: str) -> list[str]:
    names = (path.name for path in folder.iterdir() if path.suffix == suffix)
    return sorted(name for name in names if not name.startswith("."))


class _Files(Source):
    """Batches that each have files of their own."""

    def __init__(
        self, entries: Sequence[tuple[str, Callable[[], AbstractContextManager[StoredBatch]]]]
    ) -> None:
        self._entries = entries

    def scan(self) -> Iterator[tuple[str, StoredBatch | CalibrationError]]:
        for label, opened in self._entries:
            try:
                with opened() as batch:
                    yield label, batch
            except CalibrationError as error:
                yield label, error

    def read(self, numbers: range) -> Iterator[StoredBatch]:
        for number in numbers:
            with self._entries[number][1]() as batch:
                yield batch


class _Stacked(Source):
    """Batches along the first axis of the arrays of one file, which is read batch by batch."""

    def __init__(self, path: Path, stacks: Mapping[str, StoredArray], limit: int | None) -> None:
        counts = {name: stack.shape[0] for name, stack in stacks.items()}
        if len(set(counts.values())) > 1:
            raise CalibrationError(
                f"{path}: the first axes hold different numbers of batches: {counts}"
            )
        self._path = path
        self._stacks = tuple(stacks)
        self._numbers = range(max(counts.values()))[:limit]

    def scan(self) -> Iterator[tuple[str, StoredBatch | CalibrationError]]:
        for number, batch in enumerate(self.read(self._numbers)):
            yield f"batch {number}", batch

    def read(self, numbers: range) -> Iterator[StoredBatch]:
        with _open_npz(self._path) as arrays:
            stacks = {name: arrays[name] for name in self._stacks if name in arrays}
            others = {name: arrays[name] for name in arrays if name not in stacks}
            for number in numbers:
                yield {name: stack.row(number) for name, stack in stacks.items()} | others


def _is_stacked(batch: Mapping[str, StoredArray], inputs: Sequence[TensorSpec]) -> bool:
    ranks = {tensor.name: len(tensor.shape) for tensor in inputs if tensor.shape is not None}
    extra = {len(array.shape) - ranks[name] for name, array in batch.items() if name in ranks}
    return extra == {1} and all(math.prod(array.shape) for array in batch.values())


class _Function(Source):
    """Batches that a function of the user's yields."""

    def __init__(self, text: str, limit: int | None) -> None:
        self._text = text
        self._function = load_function(text)
        self._limit = limit
        self._digests: list[bytes] = []

    def scan(self) -> Iterator[tuple[str, StoredBatch | CalibrationError]]:
        try:
            for number, batch in enumerate(self._yielded()):
                self._digests.append(_digest(batch))
                yield f"batch {number}", batch
        except CalibrationError as error:
            yield f"batch {len(self._digests)}", error

    def read(self, numbers: range) -> Iterator[StoredBatch]:
        if not numbers:
            return
        for number, batch in enumerate(self._yielded()):
            if number not in numbers:
                continue
            if _digest(batch) != self._digests[number]:
                raise CalibrationError(
                    f"{self._text}: batch {number} is not what it was when the data was checked;"
                    " the function must yield the same batches every time, so seed it"
                )
            yield batch
            if number == numbers[-1]:
                return
        raise CalibrationError(f"{self._text}: yields fewer batches than when the data was checked")

    def _yielded(self) -> Iterator[Batch]:
        with contextlib.closing(self._call()) as batches:
            for item in itertools.islice(batches, self._limit):
                if not isinstance(item, Mapping):
                    raise CalibrationError(
                        f"the function must yield {{input name: array}}, found a"
                        f" {type(item).__name__}"
                    )
                yield {str(name): _as_array(str(name), value) for name, value in item.items()}

    def _call(self) -> Generator[Any, None, None]:
        """Yield the function's batches; raise its exceptions as a CalibrationError."""
        try:
            yield from self._function()
        except USER_CODE_ERRORS as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise CalibrationError(f"{self._text} raised {reason}") from error


def _as_array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except USER_CODE_ERRORS as error:  # a tensor on a GPU, a ragged list: each has its own kind
        reason = " ".join(str(error).split())
        raise CalibrationError(f"{name!r} cannot be read as an array: {reason}") from None


def _digest(batch: Batch) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(batch.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def load_function(text: str, *, kind: str = "function") -> Callable[..., Any]:
    """Load ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``: this is for the user's own code.

    As with a script, the file's folder becomes a place to import from; for a module, the working
    folder does.

    Args:
        text: Where it is.
        kind: What is looked for, such as ``class or function``, for errors.

    Raises:
        CalibrationError: the file or module is missing or fails, or has no such function.
    """
    origin, separator, name = text.rpartition(":")
    if not (separator and origin and name):
        name = "FUNCTION" if kind == "function" else "NAME"
        raise CalibrationError(f"{text}: write FILE.py:{name} or package.module:{name}")
    is_file = origin.endswith(".py")
    if is_file and not Path(origin).is_file():
        raise CalibrationError(f"{origin}: no such file")
    try:
        module = _load_file(Path(origin)) if is_file else _load_module(origin)
    except USER_CODE_ERRORS as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and not is_file else None
        if missing is not None and origin.startswith(missing):
            raise CalibrationError(f"{text}: there is no module {origin}") from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CalibrationError(f"{origin} raised {reason} when it was loaded") from error
    function = getattr(module, name, None)
    if not callable(function):
        wanted = inspect.isfunction if kind == "function" else callable
        members = inspect.getmembers(module, wanted)
        here = module.__name__
        own = [n for n, f in members if getattr(f, "__module__", "") == here and n[0] != "_"]
        there = "its functions are" if kind == "function" else "there are"
        raise CalibrationError(
            f"{origin} has no {kind} {name!r}; {there} {', '.join(own) or 'none'}"
        )
    return function  # type: ignore[no-any-return]


def _load_file(path: Path) -> ModuleType:
    name = f"_trt_native_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look
    sys.path.insert(0, str(path.absolute().parent))
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:  # as with python -m
        sys.path.insert(0, folder)
    return importlib.import_module(name)


_open_npz = partial(open_arrays, kind=CalibrationError)


@contextlib.contextmanager
def _open_npys(paths: Mapping[str, Path]) -> Iterator[dict[str, StoredArray]]:
    with contextlib.ExitStack() as files:
        yield {
            name: files.enter_context(open_array(path, CalibrationError))
            for name, path in paths.items()
        }
