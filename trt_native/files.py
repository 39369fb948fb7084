"""Reading files safely and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from trt_native.errors import SpecError
from trt_native.units import format_bytes

__all__ = [
    "AtomicFile",
    "as_path",
    "atomic_write",
    "check_companion",
    "check_writable",
    "is_within",
    "open_regular_file",
    "open_standard_descriptors",
    "parse_yaml",
    "read_text_file",
    "remove_temporaries",
    "save_with_json",
    "set_temporary_tag",
    "sha256_of_file",
    "source_file",
    "with_ending",
]
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_OPEN_FLAGS = sum(getattr(os, flag, 0) for flag in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_MAX_TEXT_BYTES = 256 * 2**20
_MAX_YAML_DEPTH = 64


def as_path(given: str | os.PathLike[str]) -> Path:
    """The path that is given, as a text or an object of a path.

    Raises:
        SpecError: it is neither, or holds what no path can.
    """
    try:
        path = Path(given)
    except TypeError:
        raise SpecError(f"expected the path of a file, found {type(given).__name__}") from None
    try:
        if b"\0" not in os.fsencode(path):
            return path
    except UnicodeEncodeError:
        pass
    raise SpecError(f"not the path of a file: {str(path)!r}")


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path stays in a resolved folder, links followed; a loop of links does not.

    Raises:
        OSError, ValueError: it is too long, or no path.
    """
    try:
        return path.resolve().is_relative_to(folder)
    except RuntimeError:  # before Python 3.13, a loop
        return False


def open_standard_descriptors() -> None:
    """Open the null device as standard input, output or error where the process has none.

    Else the next file that is opened takes the place, and what is printed goes into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:  # a lower one is closed at the same time by another thread
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)


def open_regular_file(path: Path) -> BufferedReader:
    """Open a file for reading that is one: a pipe or a device might never end, or never begin.

    Raises:
        OSError: it cannot be opened, is something else, or was left out by Git.
    """
    descriptor = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        file = os.fdopen(descriptor, "rb")
        if not file.peek(len(_LFS_POINTER)).startswith(_LFS_POINTER):
            return file
        file.close()
        raise OSError(errno.EINVAL, "is a Git LFS pointer; fetch its file: git lfs pull", str(path))
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "is a pipe or a device, not a file", str(path))


def read_text_file(path: Path) -> bytes:
    """Read a whole file of JSON or other text, of a size that such a file may have.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger than 256 MiB.
    """
    with open_regular_file(path) as file:
        content = file.read(_MAX_TEXT_BYTES + 1)
    if len(content) > _MAX_TEXT_BYTES:
        raise OSError(errno.EFBIG, f"is larger than {format_bytes(_MAX_TEXT_BYTES)}", str(path))
    return content


def parse_yaml(text: str) -> Any:
    """The value of a YAML 1.2 document of plain types, nested at most 64 deep.

    The time the parser takes grows with the square of the depth.

    Raises:
        ruamel.yaml.error.YAMLError: it is no YAML, or nested deeper.
    """
    from ruamel.yaml import YAML

    reader = YAML(typ="safe", pure=True)
    reader.max_depth = _MAX_YAML_DEPTH
    return reader.load(text)


_temporary_tag = secrets.token_hex(4)


def set_temporary_tag(tag: str) -> None:
    """Give the temporary files of this process a mark by which another process can find them."""
    global _temporary_tag
    _temporary_tag = tag


def remove_temporaries(folder: Path, tag: str) -> None:
    """Remove the temporary files that a process with this mark left in ``folder`` when it died.

    There are none where the filesystem has files without a name; see :class:`AtomicFile`.
    """
    for path in folder.glob(f".*.{tag}-*"):
        path.unlink(missing_ok=True)


class AtomicFile:
    """A new file that takes the place of ``path`` once it is published.

    Where the filesystem can do it, the file has no name until then, so that nothing is left even of
    a process that is killed. Elsewhere (NFS, for one) it has a temporary name.

    As a context manager it is published at the end of the block, or removed if that fails.

    Args:
        path: The target file.
        durable: Wait until the content is on disk, so that it outlives a loss of power.

    Attributes:
        file: The open file, to be written and read.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "is a folder, a pipe or a device", str(path))
        name = f".{path.name[:50]}.{_temporary_tag}-{secrets.token_hex(2)}"
        self._path, self._temporary, self._durable = path, path.with_name(name), durable
        unnamed = _open_unnamed(path.parent)
        self._is_named = unnamed is None
        self.file: BinaryIO = unnamed or self._temporary.open("x+b")

    def publish(self) -> None:
        """Close the file and give it its name; remove it if that fails.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        try:
            with self.file as file:
                file.flush()
                if self._durable:
                    os.fsync(file.fileno())
                if not self._is_named:
                    # A source directory, though unused, makes Python call linkat, which follows
                    # links.
                    link = f"/proc/self/fd/{file.fileno()}"
                    os.link(link, self._temporary, src_dir_fd=file.fileno(), follow_symlinks=True)
            self._temporary.replace(self._path)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove a file that was not published."""
        with contextlib.suppress(OSError):  # what is left to write, on a full disk
            self.file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.publish()
        else:
            self.discard()


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open an :class:`AtomicFile`, which is published once the block ends, if it succeeds.

    Raises:
        OSError: as :class:`AtomicFile`.
    """
    with AtomicFile(path, durable=durable) as new:
        yield new.file


def save_with_json(
    path: Path,
    data: bytes | memoryview | AtomicFile,
    json_path: Path,
    document: Mapping[str, Any] | None,
) -> None:
    """Write a file, and the JSON file that describes it.

    Both are complete on disk or not there at all; a file that was there before stays until both
    new ones are ready. Without a document, a JSON file that this package wrote is removed.

    Args:
        path: The file.
        data: Its content, or the file itself, written but not yet published.
        json_path: The JSON file.
        document: Its content.

    Raises:
        OSError: the folder cannot be written to, the disk is full, or there is a JSON file of
            another program.
    """
    is_own = _is_own_json(json_path)
    if document is not None and not is_own:
        raise FileExistsError(errno.EEXIST, _not_own(json_path), str(json_path))
    text = b"" if document is None else json.dumps(document, indent=1).encode() + b"\n"
    with _put_back(json_path), contextlib.ExitStack() as files:
        new = files.enter_context(data if isinstance(data, AtomicFile) else AtomicFile(path))
        if not isinstance(data, AtomicFile):
            new.file.write(data)
        if document is not None:
            files.enter_context(atomic_write(json_path)).write(text)
        new.file.flush()  # a full disk is noticed before the JSON file takes its place
        os.fsync(new.file.fileno())
    if document is None and is_own:
        json_path.unlink(missing_ok=True)


@contextlib.contextmanager
def _put_back(path: Path) -> Iterator[None]:
    """Leave a small file as it was, if the block fails."""
    before = path.read_bytes() if path.is_file() else None
    try:
        yield
    except BaseException:
        if before is None:
            path.unlink(missing_ok=True)
        elif path.read_bytes() != before:
            with atomic_write(path) as file:
                file.write(before)
        raise


def check_companion(path: Path) -> None:
    """Check that a JSON file that goes with an output would not replace one of another program.

    Raises:
        SpecError: it would.
    """
    if not _is_own_json(path):
        raise SpecError(f"cannot write {path}: {_not_own(path)}")


def _not_own(path: Path) -> str:
    return f"{path.name} is there and is not from trt-native; move it, or name another output"


def _is_own_json(path: Path) -> bool:
    """Whether a manifest or another JSON file that this package writes is there, or nothing."""
    try:
        document = json.loads(read_text_file(path) or b'{"producer": ""}')
    except FileNotFoundError:
        return True
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and isinstance(document.get("producer"), str)


def _open_unnamed(folder: Path) -> BinaryIO | None:
    """A file without a name in ``folder``; None where the filesystem does not support it."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.fdopen(os.open(folder, flag | os.O_RDWR, 0o666), "w+b")
    except OSError:  # opening it by name reports the problem, if there is one
        return None


def check_writable(path: Path, *, reads: Iterable[Path | None] = ()) -> None:
    """Check before long work that a file can be created at ``path``.

    Args:
        path: The target file.
        reads: Files that the work reads, which must not be replaced by what it makes.

    Raises:
        SpecError: it cannot, or must not.
    """
    if any(_same_file(path, file) for file in reads if file is not None):
        raise SpecError(f"cannot write {path}: it is one of the files to read; name another")
    try:
        if path.is_dir():
            raise SpecError(f"cannot write {path}: it is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise SpecError(f"cannot write {path}: it is a pipe or a device; name a file")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SpecError(f"cannot write {path}: {error.strerror} ({path.parent})") from None


def source_file(source: str | Path) -> Path:
    """The file or folder of a source of data, which may be ``FILE.py:FUNCTION``."""
    file, _, _ = str(source).rpartition(":")
    return Path(file) if ".py:" in str(source) and not Path(source).exists() else Path(source)


def with_ending(path: Path, ending: str) -> Path:
    """The path with another ending in the place of its suffix; unlike Path's, for any path."""
    return path.parent / f"{path.stem}{ending}"


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one is not there
        return False


def sha256_of_file(path: Path, on_read: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's content as 64 hexadecimal digits.

    Args:
        path: The file.
        on_read: Called repeatedly with the number of bytes read so far.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open_regular_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if on_read is not None:
                on_read(file.tell())
    return digest.hexdigest()
