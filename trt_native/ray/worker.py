"""What runs on the nodes of a build farm."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trt_native.builder.isolated import Job, build_with_retries
from trt_native.builder.plan_cache import code_hash
from trt_native.config import BuildConfig
from trt_native.errors import BuildError, TrtNativeError
from trt_native.files import with_ending
from trt_native.plans.manifest import Manifest
from trt_native.ray.store import BuildStore, FileSet
from trt_native.scratch import scratch_folder

__all__ = ["BuildRequest", "NodeFacts", "build_on_node", "describe_node"]


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node builds with, which is the same for all nodes of a target.

    Attributes:
        code: Hash of this package.
        store: Identity of the store, as the node sees it; empty if it sees none.
        backend: Name of the backend.
        version: Its version.
        gpu: Name and compute capability of the GPU; None where builds have none.
    """

    code: str
    store: str
    backend: str
    version: str
    gpu: tuple[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """A build for a node.

    Attributes:
        key: Key of the plan in the store.
        store: URL of the store.
        facts: What the node must have.
        model: The model's files.
        backend: ``auto``, ``tensorrt`` or ``rtx``.
        calibration: Files of calibration, by field of ``QuantizationSpec``.
        config: The configuration.
        timeout_s: Longest time in seconds; None for no limit.
        retry: Whether to build again with other settings where memory is lacking.
        warm: Whether to compile the plan's kernels, too.
    """

    key: str
    store: str
    facts: NodeFacts
    model: FileSet
    backend: str
    calibration: dict[str, FileSet]
    config: BuildConfig
    timeout_s: float | None = None
    retry: bool = False
    warm: bool = False


def describe_node(backend: str, store: str, with_gpu: bool) -> dict[str, Any]:
    """Find out what a node builds with.

    Args:
        backend: ``auto``, ``tensorrt`` or ``rtx``.
        store: URL of the store.
        with_gpu: Whether builds use the node's GPU.

    Returns:
        ``facts``, or ``error`` as :func:`build_on_node` has it.
    """
    with _reported() as found, _gpu_seen(with_gpu):
        from trt_native.backends.registry import load_backend
        from trt_native.cuda import gpu_info, require_gpu

        loaded = load_backend(backend)
        if with_gpu:  # which Ray may take a node to have that has none that works
            require_gpu()
        gpu = gpu_info()
        described = (gpu.name, gpu.compute_capability) if gpu else None
        identity = _identity(BuildStore(store))
        found["facts"] = NodeFacts(code_hash(), identity, loaded.name, loaded.version, described)
    return found


def build_on_node(request: BuildRequest) -> dict[str, Any]:
    """Build a plan in a process of its own, and put it into the store.

    Nothing is done where it is there already: a node may be lost between the two, and its build
    started again on another.

    Returns:
        ``entry``: the plan's :class:`~trt_native.ray.store.StoredPlan`; or ``error``: kind,
        message, details and problems of what failed. And ``node``, the name of the machine.
    """
    with _reported() as found:
        store = BuildStore(request.store)
        _check_node(request, store)
        found["entry"] = store.find(request.key) or _build(request, store)
    return found


def _build(request: BuildRequest, store: BuildStore) -> Any:
    started = time.perf_counter()
    with scratch_folder() as folder, _gpu_seen(request.facts.gpu is not None):
        job = Job(
            model=_fetched(store, request.model, folder / "model"),
            target=with_ending(folder / request.model.main, ".plan"),
            config=_with_calibration(request, store, folder),
            backend=request.backend,
            cache=None,
            cache_bytes=None,
            warm=request.warm,
        )
        outcome = build_with_retries(job, None, timeout_s=request.timeout_s, retry=request.retry)
        _check_built(request.facts, outcome.manifest)
        seconds = time.perf_counter() - started
        return store.keep(request.key, job.target, build_s=seconds, node=platform.node())


def _with_calibration(request: BuildRequest, store: BuildStore, folder: Path) -> BuildConfig:
    paths: dict[str, Any] = {
        name: _fetched(store, files, folder / name) for name, files in request.calibration.items()
    }
    if not paths:
        return request.config
    if "calibration_data" in paths:
        paths["calibration_data"] = str(paths["calibration_data"])
    quantization = replace(request.config.quantization, **paths)
    return replace(request.config, quantization=quantization)


def _fetched(store: BuildStore, files: FileSet, folder: Path) -> Path:
    folder.mkdir()
    try:
        return store.fetch_inputs(files, folder)
    except FileNotFoundError as error:
        raise BuildError(
            f"{platform.node()} does not find {error.filename or files.main} in the store"
            f" {store.url}: name a folder that all nodes share, or a URL"
        ) from None


def _identity(store: BuildStore) -> str:
    try:
        return store.identity()
    except FileNotFoundError:
        return ""


def _check_node(request: BuildRequest, store: BuildStore) -> None:
    """Refuse a build where the node is not what its target's other nodes are.

    Raises:
        BuildError: it is not.
    """
    if code_hash() != request.facts.code:
        raise BuildError(f"{platform.node()} has another trt_native than the other nodes")
    if _identity(store) != request.facts.store:
        raise BuildError(f"{platform.node()} sees another store at {store.url} than the others")


def _check_built(facts: NodeFacts, manifest: Manifest) -> None:
    """Refuse a plan that another TensorRT or GPU than the target's made.

    Raises:
        BuildError: it did.
    """
    expected = facts.backend, facts.version, facts.gpu[0] if facts.gpu else None
    found = manifest.backend, manifest.backend_version, manifest.gpu
    if expected != found:
        raise BuildError(
            f"{platform.node()} built with {' '.join(filter(None, found))}, the target's first node"
            f" has {' '.join(filter(None, expected))}: name the kind of GPU, or labels that nodes"
            " of one kind have"
        )


@contextlib.contextmanager
def _gpu_seen(wanted: bool) -> Iterator[None]:
    """Hide the node's GPU from what is started in the block, unless it is wanted.

    What TensorRT-RTX builds on a machine without a GPU must not depend on where it is built.
    """
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    if not wanted:
        os.environ[name] = ""
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif not wanted:
            del os.environ[name]


@contextlib.contextmanager
def _reported() -> Iterator[dict[str, Any]]:
    """A result, to which an error in the block is added as plain data."""
    found: dict[str, Any] = {"node": platform.node()}
    try:
        yield found
    except TrtNativeError as error:
        found["error"] = _described(type(error), error.message, error.details, error.problems)
    except OSError as error:
        text = f"{error.filename or 'input/output'}: {error.strerror or error}"
        found["error"] = _described(BuildError, text)
    except MemoryError:
        found["error"] = _described(BuildError, "the node has too little memory for this")


def _described(
    kind: type[TrtNativeError], message: str, details: Any = (), problems: Any = ()
) -> dict[str, Any]:
    known = (kind, *kind.__mro__)
    public = next(one for one in known if one.__module__ == "trt_native.errors")
    return {
        "kind": public.__name__,
        "message": message,
        "details": list(details),
        "problems": list(problems),
    }
