"""Plans of a model whose inner tensors can be seen, loaded for the time of a block."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from trt_native.arrays import Batch
from trt_native.backends.base import Backend, DebugTensor
from trt_native.builder.build_plan import build_plan
from trt_native.config import BuildConfig, ProfilingVerbosity
from trt_native.progress import Progress
from trt_native.runtime import Session
from trt_native.verify.check import RunFn, open_session

__all__ = [
    "DebugRunFn",
    "OpenDebugRunner",
    "OpenRunner",
    "model_tensor",
    "open_with_debug_tensors",
    "open_with_extra_outputs",
]

OpenRunner: TypeAlias = Callable[[Sequence[str]], AbstractContextManager[RunFn]]
"""Opens a function that runs the model with these tensors among its outputs."""

DebugRunFn: TypeAlias = Callable[[Batch, Callable[[DebugTensor], None]], None]
"""Runs a plan, and gives a function the tensors inside it as they are made."""

OpenDebugRunner: TypeAlias = Callable[[], AbstractContextManager[DebugRunFn]]
"""Opens such a function."""

# A part of a plan numbers its tensors, and TensorRT's compiler what it stores of them; a pass names
# the copies of a tensor in another type.
_SUFFIX = re.compile(r"(?:\.\d+|_\d+_myl\d+|__(?:fp32|fp16|bf16))$")


@contextlib.contextmanager
def open_with_extra_outputs(
    model: Path,
    config: BuildConfig,
    names: Sequence[str],
    *,
    broken: Sequence[str] = (),
    backend: str | Backend = "auto",
    progress: Progress | None = None,
) -> Iterator[RunFn]:
    """Build a model with tensors among its outputs, and load it, for the time of a block.

    TensorRT does not fuse nodes across the ``broken`` tensors. Options without a use here, such as
    stripped weights, are left out of the build.

    Raises:
        TrtNativeError: as :func:`~trt_native.builder.build_plan.build_plan` and
            :func:`~trt_native.verify.check.open_session` raise it.
    """
    wanted = _plain(config)
    wanted = replace(wanted, break_fusions=tuple(dict.fromkeys((*wanted.break_fusions, *broken))))
    plan = build_plan(model, wanted, backend=backend, progress=progress, extra_outputs=names)
    with open_session(plan) as opened:
        yield opened.run


@contextlib.contextmanager
def open_with_debug_tensors(
    model: Path,
    config: BuildConfig,
    *,
    backend: str | Backend = "auto",
    progress: Progress | None = None,
) -> Iterator[DebugRunFn]:
    """Build a model with debug tensors, and load it, for the time of a block.

    Layers are fused as in a plan without them. Options without a use here are left out.

    Raises:
        TrtNativeError: as :func:`open_with_extra_outputs`.
        UnsupportedError: the backend gives out no debug tensors.
    """
    plan = build_plan(model, _plain(config), backend=backend, progress=progress, debug_tensors=True)
    with Session(plan) as session:
        yield session.debug_tensors


def _plain(config: BuildConfig) -> BuildConfig:
    """The configuration without options that have no use in a plan that is run here, once."""
    return replace(
        config,
        refit=False,
        strip_weights=False,
        io_formats=(),
        serialize_plugins=False,
        in_place_caches=False,
        version_compatible=False,
        exclude_lean_runtime=False,
        profiling_verbosity=ProfilingVerbosity.LAYER_NAMES_ONLY,
    )


def model_tensor(name: str, known: Collection[str]) -> str | None:
    """The tensor of a model that a tensor of its engine holds the values of; None if unknown.

    Args:
        name: A name in the engine, such as ``conv.1`` or ``norm__fp16.1``.
        known: Names of the model's tensors.
    """
    while name not in known:
        shorter = _SUFFIX.sub("", name)
        if shorter == name:
            return None
        name = shorter
    return name
