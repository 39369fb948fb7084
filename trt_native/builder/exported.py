"""Builds of models that are exported first, by processes that start meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from trt_native.builder.isolated import ChildBuild, Job, Outcome, build_with_retries
from trt_native.progress import Progress

__all__ = ["build_exported"]

_Report = TypeVar("_Report")


def build_exported(
    first: Job,
    export: Callable[[Callable[[], None]], tuple[_Report, ...]],
    jobs: Callable[[tuple[_Report, ...]], Sequence[Job]],
    progress: Progress | None,
    *,
    timeout_s: float | None = None,
    retry: bool = False,
) -> tuple[tuple[_Report, ...], list[Outcome]]:
    """Export models, and build a plan of each in a child process.

    The first process imports what it needs and checks its options during the export, each other one
    while the plan before is built.

    Args:
        first: The first build, as far as it is known before the export.
        export: Writes the models, and returns a report of each. Before what takes long it calls its
            argument, which raises the error of a build that would be refused.
        jobs: Returns the builds for these reports; that of the first is for the target of
            ``first``.
        progress: Receives progress callbacks of the builds.
        timeout_s: Longest time in seconds that the builds may take together.
        retry: As for :func:`~trt_native.builder.isolated.build_with_retries`.

    Returns:
        The reports, and the outcome of each build.

    Raises:
        TrtNativeError, KeyboardInterrupt: as ``export`` and
            :func:`~trt_native.builder.isolated.build_with_retries`; plans that were built before
            are there.
    """
    with ChildBuild(first) as child:
        child.start()
        reports = export(child.wait_until_ready)
        return reports, _build_in_turn(jobs(reports), progress, timeout_s, retry, child)


def _build_in_turn(
    jobs: Sequence[Job],
    progress: Progress | None,
    timeout_s: float | None,
    retry: bool,
    child: ChildBuild | None,
) -> list[Outcome]:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    outcomes = []
    with contextlib.ExitStack() as children:
        for job, following in zip(jobs, (*jobs[1:], None), strict=True):
            waiting = None
            if following is not None:
                waiting = children.enter_context(ChildBuild(following))
                waiting.start()
            left = None if deadline is None else deadline - time.monotonic()
            outcomes.append(
                build_with_retries(job, progress, timeout_s=left, retry=retry, child=child)
            )
            child = waiting
    return outcomes
