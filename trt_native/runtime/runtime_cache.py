"""Runtime cache of TensorRT-RTX: compiled kernels of a plan, in a file next to it."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_native.backends.base import Backend
from trt_native.cuda import GpuInfo
from trt_native.errors import PlanError
from trt_native.files import atomic_write, open_regular_file
from trt_native.plans.manifest import runtime_cache_path
from trt_native.plans.plan import Plan

__all__ = ["RuntimeCacheFile", "save_runtime_cache_file"]

_LOGGER = logging.getLogger(__name__)
_HEAD_BYTES = 1 << 16


@dataclass
class RuntimeCacheFile:
    """Compiled kernels of one plan on one GPU, in a file next to the plan.

    The file is one line of JSON that identifies plan, GPU and library, then TensorRT-RTX's bytes.

    Attributes:
        path: The file.
        owner: Plan, GPU, driver and library that the kernels are for.
        content: TensorRT-RTX's bytes, as last read or written.
    """

    path: Path
    owner: dict[str, str]
    content: bytes = b""

    @classmethod
    def of(cls, plan: Plan, backend: Backend, gpu: GpuInfo) -> RuntimeCacheFile | None:
        """Return the file of a plan on a GPU; None for a plan that is not a file."""
        if plan.path is None:
            return None
        owner = {
            "kernels_of": plan.sha256,
            "gpu": gpu.name,
            "compute_capability": gpu.compute_capability,
            "driver": gpu.driver,
            "library": f"{backend.product} {backend.version}",
        }
        return cls(runtime_cache_path(plan.path), owner)

    def read(self) -> bytes:
        """Return the kernels; nothing if the file is missing, damaged, or has another owner."""
        try:
            with open_regular_file(self.path) as file:
                head, _, content = file.read().partition(b"\n")
            kept = json.loads(head)
        except (OSError, ValueError, PlanError):
            return b""
        if kept != {**self.owner, "sha256": hashlib.sha256(content).hexdigest()}:
            return b""
        self.content = content
        return content

    def check(self) -> None:
        """Refuse to replace a file of another program.

        Raises:
            PlanError: there is one.
        """
        if self._is_foreign():
            raise PlanError(
                f"cannot write {self.path}: it is there and is not a runtime cache; move it"
            )

    def _is_foreign(self) -> bool:
        """Whether there is a file of this name with anything else in it."""
        try:
            with open_regular_file(self.path) as file:
                head = file.readline(_HEAD_BYTES)
                return bool(head) and "kernels_of" not in json.loads(head)
        except FileNotFoundError:
            return False
        except (OSError, ValueError, TypeError, RecursionError):
            return True

    def write(self, content: bytes) -> None:
        """Write kernels, if they are more than those that were read.

        TensorRT-RTX serializes equal kernels to different bytes, but of equal length.

        Raises:
            PlanError: the file cannot be written, or is of another program.
        """
        if len(content) <= len(self.content):
            return
        self.check()
        head = json.dumps({**self.owner, "sha256": hashlib.sha256(content).hexdigest()})
        try:
            with atomic_write(self.path) as file:
                file.write(head.encode() + b"\n" + content)
        except OSError as error:
            reason = error.strerror or error
            raise PlanError(f"cannot write the runtime cache {self.path}: {reason}") from None
        self.content = content


def save_runtime_cache_file(contexts: Any, file: RuntimeCacheFile | None) -> None:
    """Write the kernels that an engine's contexts compiled, if it has a file that can be written.

    The plan runs without.
    """
    if file is not None:
        try:
            file.write(contexts.cache())
        except PlanError as error:
            _LOGGER.debug("%s", error.message)
