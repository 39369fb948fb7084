"""Settings to retry a failed build with, where it lacked memory or an implementation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from trt_native.config import BuildConfig
from trt_native.errors import BuildError, TrtNativeError
from trt_native.units import format_bytes

__all__ = ["Attempt", "ResourceError", "fallback_configs", "retry_cause"]

_MIB = 2**20
_DEFAULT_LEVEL = 3  # TensorRT's builder optimization level
_CAUSES = {
    "could not find any implementation": "TensorRT found no implementation",
    "outofmemory": "out of memory",
    "out of memory": "out of memory",
    "cudaerrormemoryallocation": "out of memory",
    "could not be allocated": "out of memory",
    "memory allocation failed": "out of memory",
    "cannot allocate memory": "out of memory",
    "bad_alloc": "out of memory",
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """A failed build that was retried with less.

    Attributes:
        workspace_bytes: Scratch memory one layer could take.
        optimization_level: The requested level; None is TensorRT's default.
        cause: Cause of the failure.
    """

    workspace_bytes: int
    optimization_level: int | None
    cause: str

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        level = "the default" if self.optimization_level is None else self.optimization_level
        workspace = format_bytes(self.workspace_bytes)
        return f"workspace {workspace}, optimization level {level}: {self.cause}"


class ResourceError(BuildError):
    """A build failed for lack of memory or of an implementation.

    Args:
        error: The error of the build.
        cause: Cause of the failure.
        workspace_bytes: The workspace it had.
        has_levels: Whether optimization levels have an effect on the backend.
    """

    def __init__(
        self, error: TrtNativeError, cause: str, workspace_bytes: int, *, has_levels: bool = True
    ) -> None:
        super().__init__(
            error.message, error.details, options=error.options, problems=error.problems
        )
        self.cause = cause
        self.workspace_bytes = workspace_bytes
        self.has_levels = has_levels


def fallback_configs(
    config: BuildConfig, workspace_bytes: int, *, has_levels: bool = True
) -> Iterator[BuildConfig]:
    """Configurations to try after a failed build, in order.

    Each has a quarter of the workspace of the one before. The second also lowers the optimization
    level to 2 at most, the third to 0.

    Args:
        config: The configuration that failed.
        workspace_bytes: The workspace it had.
        has_levels: Whether optimization levels have an effect on the backend; else they stay.
    """
    level = _DEFAULT_LEVEL if config.optimization_level is None else config.optimization_level
    smallest = min(workspace_bytes, 32 * _MIB)
    last = (workspace_bytes, level)
    for divisor, highest in ((4, level), (16, min(level, 2)), (64, 0)):
        highest = highest if has_levels else level
        rung = (max(workspace_bytes // divisor, smallest), highest)
        if rung != last:
            changed = config.optimization_level if highest == level else highest
            yield replace(config, workspace_bytes=rung[0], optimization_level=changed)
        last = rung


def retry_cause(error: TrtNativeError) -> str | None:
    """Reason why a smaller workspace or a lower level may help; None if it would not."""
    text = str(error).lower()
    return next((cause for sign, cause in _CAUSES.items() if sign in text), None)
