"""Settings to retry a failed build with: after a lack of memory, workspace or implementation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from trt_native.backends.workspace_shortage import WorkspaceShortage, find_shortage
from trt_native.config import BuildConfig
from trt_native.errors import BuildError, TrtNativeError
from trt_native.units import INT64_MAX, format_bytes

__all__ = [
    "RETRIES",
    "Attempt",
    "FallbackLadder",
    "FusionError",
    "ResourceError",
    "RetryableError",
    "resource_error",
]

RETRIES = 3
"""How often a build is tried again."""

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
    """A failed build that was retried with other settings.

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


class RetryableError(BuildError):
    """A build failed in a way that another one with other settings may not.

    Attributes:
        cause: Cause of the failure, in a few words.
        workspace_bytes: The workspace that the build had.
    """

    def __init__(self, error: TrtNativeError, cause: str, workspace_bytes: int) -> None:
        super().__init__(
            error.message, error.details, options=error.options, problems=error.problems
        )
        self.cause = cause
        self.workspace_bytes = workspace_bytes


class ResourceError(RetryableError):
    """A build failed for lack of memory, of workspace or of an implementation.

    Attributes:
        shortage: Set where the workspace was too small.
        has_levels: Whether optimization levels have an effect on the backend.
    """

    def __init__(
        self,
        error: TrtNativeError,
        cause: str,
        workspace_bytes: int,
        shortage: WorkspaceShortage | None = None,
        *,
        has_levels: bool = True,
    ) -> None:
        super().__init__(error, cause, workspace_bytes)
        self.shortage = shortage
        self.has_levels = has_levels


class FusionError(RetryableError):
    """A plan has a fusion for which TensorRT has no kernel on the GPU of this machine.

    Attributes:
        tensors: Tensors across which the fusion may go.
    """

    def __init__(
        self, error: TrtNativeError, fusion: str, tensors: tuple[str, ...], workspace_bytes: int
    ) -> None:
        cause = f"no kernel on this GPU for the fusion {fusion}"
        super().__init__(error, cause, workspace_bytes)
        self.tensors = tensors


def resource_error(
    error: BuildError, workspace_bytes: int, *, has_levels: bool = True
) -> ResourceError | None:
    """The error as a :class:`ResourceError`; None if other settings would not help.

    Arguments are those of :class:`ResourceError`.
    """
    shortage = find_shortage(error.details)
    text = str(error).lower()
    causes = (cause for sign, cause in _CAUSES.items() if sign in text)
    cause = next(causes, None) if shortage is None else str(shortage)
    if cause is None:
        return None
    return ResourceError(error, cause, workspace_bytes, shortage, has_levels=has_levels)


class FallbackLadder:
    """Chooses the configuration to try after each failed attempt, :data:`RETRIES` times at most.

    Where the workspace was too small, the next one is a larger power of two: what TensorRT says it
    needs, and at least twice as much. Otherwise each has a quarter of the workspace of the one
    before; the second also lowers the optimization level to 2 at most, the third to 0. Sizes that
    were too small, or too large, are not tried again.
    """

    def __init__(self) -> None:
        self._down: Iterator[BuildConfig] | None = None
        self._too_small, self._too_large = 0, INT64_MAX
        self._left = RETRIES

    def next_config(self, config: BuildConfig, failure: ResourceError) -> BuildConfig | None:
        """The configuration to try next; None if there is none.

        Args:
            config: The configuration that failed last.
            failure: How it failed.
        """
        if not self._left:
            return None
        self._left -= 1
        tried = failure.workspace_bytes
        if failure.shortage is not None:
            self._too_small = max(self._too_small, tried)
            larger = failure.shortage.larger_workspace(tried)
            return replace(config, workspace_bytes=larger) if larger < self._too_large else None
        self._too_large = min(self._too_large, tried)
        self._down = self._down or _smaller_configs(config, tried, failure.has_levels)
        smaller = next(self._down, None)
        if smaller is None or (smaller.workspace_bytes or 0) <= self._too_small:
            return None
        return smaller


def _smaller_configs(
    config: BuildConfig, workspace_bytes: int, has_levels: bool
) -> Iterator[BuildConfig]:
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
