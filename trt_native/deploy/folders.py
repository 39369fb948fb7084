"""Folders that appear complete, with a plan and what belongs to it."""

from __future__ import annotations

import contextlib
import filecmp
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from trt_native.errors import SpecError
from trt_native.plans.plan import Plan

__all__ = ["put_folder", "put_plan", "staging", "write_file"]


@contextlib.contextmanager
def staging(repository: Path, name: str) -> Iterator[Path]:
    """A new folder on a repository's file system, outside of it where that is possible.

    Triton treats every folder in its repository as a model.
    """
    parent = repository.resolve().parent
    is_sibling = parent.stat().st_dev == repository.stat().st_dev and os.access(parent, os.W_OK)
    staged = (parent if is_sibling else repository) / f".{name}.{secrets.token_hex(4)}"
    staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def put_plan(plan: Plan, target: Path) -> None:
    """Hard link a plan to a path where that is possible, else copy it, without a prefix."""
    try:
        linked = plan.path is not None and plan.prefix is None
        if plan.path is not None and linked:
            target.hardlink_to(plan.path.resolve())
    except OSError:  # another file system, or one without links
        linked = False
    if not linked:
        write_file(target, plan.data)


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a new file, and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def put_folder(staged: Path, folder: Path, *, force: bool, replaced: str | None = None) -> None:
    """Move a new model to its place.

    Args:
        staged: Its folder now.
        folder: Its folder then. What is there already must be such a model, and equal.
        force: Replace one that differs.
        replaced: How names of files begin that such a model may have, and this one lacks.

    Raises:
        SpecError: something else is there, or another model without ``force``.
    """
    if not folder.exists():
        staged.rename(folder)
        return
    extra = sorted(_files(folder) - _files(staged))
    unknown = [name for name in extra if replaced is None or not name.startswith(replaced)]
    if unknown:
        raise SpecError(
            f"{folder} holds {unknown[0]}, which is not of this kind of model; move it away, or"
            " choose another name",
            options=("name",),
        )
    _, differing, unreadable = filecmp.cmpfiles(staged, folder, sorted(_files(staged)), False)
    if not (extra or differing or unreadable):
        return
    if not force:
        changed = ", ".join(sorted({*extra, *differing, *unreadable}))
        raise SpecError(
            f"{folder} already exists and differs ({changed}); choose another name, or replace it",
            options=("name", "force"),
        )
    old = staged.with_name(staged.name + ".old")
    folder.rename(old)
    try:
        staged.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
