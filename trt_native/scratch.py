"""Folders for temporary files, which a later process removes where one was killed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["hold_folder", "new_scratch_path", "remove_abandoned", "scratch_folder"]

_PREFIX = "trt_native-"
_NAME = re.compile(r"trt_native-[0-9a-z_]{8}")  # as tempfile and a token make it
_YOUNG_S = 60.0  # its process may not hold it yet


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder for the time of a block; those of processes that were killed are removed.

    Args:
        parent: Where to make it. None: in the folder for temporary files.
    """
    remove_abandoned(parent)
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent) as name,
        hold_folder(Path(name)),
    ):
        yield Path(name)


def new_scratch_path(token: str) -> Path:
    """Where a process that is started with a token of 8 digits makes its folder."""
    return Path(tempfile.gettempdir(), _PREFIX + token)


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for the time of a block, which ends with the process at the latest."""
    descriptor = _locked(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_abandoned(parent: Path | None = None) -> None:
    """Remove folders of this user that no process holds; of no other form, and no links."""
    with contextlib.suppress(OSError), os.scandir(parent or tempfile.gettempdir()) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(folder: Path) -> None:
    with contextlib.suppress(OSError):
        found = folder.lstat()
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == _user()
        if not own or time.time() - found.st_mtime < _YOUNG_S:
            return
        descriptor = _locked(folder)
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0  # as stat says on Windows


def _locked(folder: Path) -> int | None:
    """A descriptor of a folder that is locked by it; None where it cannot be locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process holds it, or the file system has no locks
            os.close(descriptor)
        else:
            return descriptor
    return None
