"""Folders that appear complete, with a plan and what belongs to it."""

from __future__ import annotations

import contextlib
import filecmp
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from trt_native.errors import PlanError, SpecError
from trt_native.plans.plan import Plan

__all__ = ["new_folder", "put_plan", "write_file"]


@contextlib.contextmanager
def new_folder(
    parent: Path, name: str, *, force: bool, replaced: str | None = None
) -> Iterator[Path]:
    """A folder to fill, which is in its place, complete, when the block ends.

    Args:
        parent: Where its place is; made if it is missing.
        name: Its name there. What is there already must be such a model, and equal.
        force: Replace one that differs.
        replaced: How names of files begin that such a model may have, and this one lacks.

    Raises:
        SpecError: something else is there, or another model without ``force``.
        PlanError: a file or folder cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _staging(parent, name) as staged:
            yield staged
            _put_folder(staged, parent / name, force=force, replaced=replaced)
    except OSError as error:
        raise PlanError(f"cannot write {parent / name}: {error.strerror or error}") from error


@contextlib.contextmanager
def _staging(repository: Path, name: str) -> Iterator[Path]:
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


def _put_folder(staged: Path, folder: Path, *, force: bool, replaced: str | None) -> None:
    """Move a new model to its place; see :func:`new_folder`."""
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
