"""LatentSync checkpoints: reading the formats in use, and putting their weights into a module."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from trt_native.errors import ModelError
from trt_native.files import open_regular_file, sha256_of_file
from trt_native.models.latentsync.releases import current_names
from trt_native.progress import ByteProgress, no_progress

__all__ = ["Checkpoint", "LoadReport", "load_checkpoint", "load_into"]

_ZIP_MAGIC = b"PK\x03\x04"
_SHOWN = 5  # keys of each kind in an error


@dataclass(frozen=True)
class Checkpoint:
    """The contents of one checkpoint file.

    Attributes:
        state_dict: Weights by name, on the CPU; where the format allows, still on disk and read
            when first used.
        config: The configuration inside the file; None where it has none, as the published one.
        sha256: Hash of the file.
        global_step: Training step; None where the file does not say.
    """

    state_dict: Mapping[str, Tensor]
    config: dict[str, Any] | None
    sha256: str
    global_step: int | None


@dataclass(frozen=True)
class LoadReport:
    """Mismatches that :func:`load_into` found.

    Attributes:
        missing: Names the module has and the state dict lacks.
        unexpected: Names the state dict has and the module lacks.
        mismatched: Names both have, in different shapes, each as ``name (found, expected)``.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    def __str__(self) -> str:
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.mismatched,
        }
        return "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}"
            for kind, names in kinds.items()
            if names
        )


def load_checkpoint(path: str | Path, progress: ByteProgress | None = None) -> Checkpoint:
    """Read a ``.safetensors`` file or one that ``torch.save`` wrote, without running its pickle.

    The latter may hold ``{"global_step", "state_dict"}``, ``{"config", "state_dict"}`` or a bare
    state dict. A common prefix ``module.`` is dropped.

    Raises:
        ModelError: the file is missing, empty, truncated, not a checkpoint, or has pickled code.
    """
    path = Path(path)
    report = progress or no_progress
    try:
        with open_regular_file(path) as file:  # before torch waits for a pipe
            size = os.fstat(file.fileno()).st_size
            magic = file.read(len(_ZIP_MAGIC))
        if size == 0:
            raise ModelError(f"{path}: is empty; download the checkpoint again")
        if path.suffix == ".safetensors":
            data = _read_safetensors(path)
        else:  # torch's format before 1.6 cannot be mapped
            data = _read_torch(path, can_map=magic == _ZIP_MAGIC)
        sha256 = sha256_of_file(path, lambda n: report("Hashing the checkpoint", n, size))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    has_header = isinstance(data, Mapping) and isinstance(data.get("state_dict"), Mapping)
    header: Mapping[str, Any] = data if has_header else {}
    state = header.get("state_dict", data)
    if not _is_state_dict(state):
        raise ModelError(f"{path}: not a checkpoint: it holds no state dict of named tensors")
    config, step = header.get("config"), header.get("global_step")
    return Checkpoint(
        state_dict=_without_prefix(state),
        config=dict(config) if isinstance(config, Mapping) else None,
        sha256=sha256,
        global_step=step if isinstance(step, int) else None,
    )


def _read_torch(path: Path, *, can_map: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=can_map)
    except UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise ModelError(f"{path}: not a checkpoint, or damaged: {_brief(error)}") from None
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a pickled {found[1]}" if found else "pickled objects other than tensors"
        raise ModelError(
            f"{path}: refused: it holds {what}, and unpickling that can run any code;"
            " save its state dict alone"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path}: not a checkpoint, truncated or damaged: {_brief(error)}"
        ) from None


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        data: dict[str, Any] = {"state_dict": load_file(path)}
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file, or truncated: {_brief(error)}") from None
    for key in ("config", "global_step"):  # texts in this format
        try:
            data[key] = json.loads(metadata.get(key, "null"))
        except ValueError:
            raise ModelError(f"{path}: the metadata entry {key!r} is not JSON") from None
    return data


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _without_prefix(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state dict without the ``module.`` that DistributedDataParallel puts before names."""
    prefix = "module."
    if not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def load_into(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    strict: bool = True,
    progress: ByteProgress | None = None,
) -> LoadReport:
    """Put weights into a module, converted to its dtype and device.

    The names of LatentSync 1.0's weights are known: what it calls ``audio_cross_attn.norm`` and
    ``.attn`` is ``norm2`` and ``attn2`` here, as in later releases.

    Tensors that need no conversion are used as they are, not copied: those of a mapped file stay
    on disk, and later changes to the module's weights show in ``state_dict``. A module on the
    meta device takes the weights' device.

    Args:
        module: The module that takes the weights.
        state_dict: Weights by name.
        strict: Whether anything missing, unexpected or of another shape is an error. If not, it
            is left out, and what is missing keeps its value in the module.
        progress: Receives the number of bytes converted.

    Returns:
        What was left out; empty if ``strict``.

    Raises:
        ModelError: the state dict does not fit the module; all mismatches are in this one error.
    """
    own = module.state_dict()
    state_dict = current_names(state_dict)
    shared = own.keys() & state_dict.keys()
    wrong = {name for name in shared if own[name].shape != state_dict[name].shape}
    report = LoadReport(
        missing=tuple(name for name in own if name not in shared),
        unexpected=tuple(name for name in state_dict if name not in shared),
        mismatched=tuple(
            f"{name} (found {tuple(state_dict[name].shape)}, expected {tuple(own[name].shape)})"
            for name in own
            if name in wrong
        ),
    )
    if strict and report != LoadReport():
        raise ModelError(f"the weights do not fit the model's configuration: {report}")
    fitting = {name: tensor for name, tensor in state_dict.items() if name in shared - wrong}
    converted = dict(_converted(fitting, own, progress or no_progress))
    module.load_state_dict(converted, strict=False, assign=True)
    return report


def _converted(
    state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor], progress: ByteProgress
) -> Iterator[tuple[str, Tensor]]:
    total = sum(tensor.nbytes for tensor in state_dict.values())
    done = 0
    for name, source in state_dict.items():
        target = own[name]
        device = source.device if target.is_meta else target.device
        converted = source.to(device=device, dtype=target.dtype)
        if converted is not source:
            _page_out(source)
        done += source.nbytes
        progress("Converting the weights", done, total)
        yield name, converted


def _page_out(tensor: Tensor) -> None:
    """Let the kernel take back the pages of a tensor that is not needed for now.

    A mapped checkpoint would otherwise count as this process's memory once it has been read. The
    contents stay: MADV_PAGEOUT (Linux 5.4) drops nothing that is not on disk.
    """
    libc: Any = ctypes.CDLL(None)
    advice = 21  # MADV_PAGEOUT in Linux's mman-common.h
    if tensor.device.type == "cpu" and hasattr(libc, "madvise"):
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = tensor.data_ptr() + tensor.nbytes - start
        if length > 0:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)
