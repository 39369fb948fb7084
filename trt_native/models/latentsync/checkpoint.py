"""LatentSync checkpoints: reading the formats in use, and putting their weights into a module.

PyTorch is imported for its own format and for modules alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import mmap
import os
import re
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from trt_native.errors import ModelError, UnsupportedError
from trt_native.files import open_regular_file, sha256_of_file
from trt_native.installing import install_command
from trt_native.models.latentsync.releases import current_names
from trt_native.progress import Progress, byte_phase
from trt_native.progress_bars import AnyProgress, shows_progress

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Checkpoint",
    "LoadReport",
    "check_fit",
    "check_plain",
    "load_checkpoint",
    "load_into",
    "load_safetensors",
    "page_out",
]

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_CONFIG_KEYS = {"state_dict": "config", "model_state_dict": "dims", "model": "config"}
"""Keys of a state dict inside a file, and of its configuration; the second is Whisper's, the third
that of many training scripts."""
_SHOWN = 5  # keys of each kind in an error
_SAFETENSORS_TYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


@dataclass(frozen=True)
class Checkpoint:
    """The contents of one checkpoint file.

    Attributes:
        state_dict: Weights by name, on the CPU; where the format allows, still on disk and read
            when they are used. Tensors of PyTorch, or of onnx_ir from :func:`load_safetensors`.
        config: The configuration inside the file; None where it has none, as the published one.
        sha256: Hash of the file.
        global_step: Training step; None where the file does not say.
    """

    state_dict: Mapping[str, Any]
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


@shows_progress
def load_checkpoint(path: str | Path, *, progress: AnyProgress = None) -> Checkpoint:
    """Read a ``.safetensors`` file or one that ``torch.save`` wrote, without running its pickle.

    The latter may hold ``{"global_step", "state_dict"}``, ``{"config", "state_dict"}``, Whisper's
    ``{"dims", "model_state_dict"}``, ``{"model"}`` or a bare state dict. A common prefix
    ``module.`` is dropped.

    Raises:
        ModelError: the file is missing, empty, truncated, not a checkpoint, or has pickled code.
        UnsupportedError: PyTorch is not installed.
    """
    return _load(path, _read_torch_or_safetensors, progress)


@shows_progress
def load_safetensors(path: str | Path, *, progress: AnyProgress = None) -> Checkpoint:
    """Read a ``.safetensors`` file without PyTorch, its tensors as those of onnx_ir.

    They are read from the file each time they are asked for, and not kept.

    Raises:
        ModelError: the file is missing, empty, truncated or not of this format.
    """
    return _load(path, _map_safetensors, progress)


def _load(path: str | Path, read: Callable[[Path], Any], progress: Progress | None) -> Checkpoint:
    path = Path(path)
    try:
        with open_regular_file(path) as file:  # before a reader waits for a pipe
            size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ModelError(f"{path}: is empty; download the checkpoint again")
        data = read(path)
        with byte_phase(progress, "Hashing the checkpoint", size) as hashed:
            sha256 = sha256_of_file(path, hashed)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    header: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    inside = next((key for key in _CONFIG_KEYS if isinstance(header.get(key), Mapping)), None)
    state = header[inside] if inside else data
    if not _is_state_dict(state):
        raise ModelError(f"{path}: not a checkpoint: it holds no state dict of named tensors")
    config = header.get(_CONFIG_KEYS[inside]) if inside else None
    step = header.get("global_step") if inside else None
    return Checkpoint(
        state_dict=_without_prefix(state),
        config=dict(config) if isinstance(config, Mapping) else None,
        sha256=sha256,
        global_step=step if isinstance(step, int) else None,
    )


def _read_torch_or_safetensors(path: Path) -> Any:
    try:
        with _held_interrupts():
            import torch
    except ImportError:
        advice = "" if path.suffix == ".safetensors" else ", or save its weights as .safetensors"
        raise UnsupportedError(
            f"{path}: reading it needs PyTorch, which is not installed:"
            f" {install_command('export')}{advice}"
        ) from None
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return {**_safetensors_metadata(path), "state_dict": load_file(path)}
    with path.open("rb") as file:  # torch's format before 1.6 cannot be mapped
        start = file.read(len(_ZIP_MAGIC))
    can_map = start == _ZIP_MAGIC
    if not can_map and start[:1] != _PICKLE_MAGIC:
        raise ModelError(f"{path}: not a checkpoint: torch.save writes other first bytes")
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


@contextlib.contextmanager
def _held_interrupts() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM for a block; the first that came is raised after it.

    In the middle of its import, PyTorch aborts the process, or goes on.
    """
    came: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # signals interrupt only that one
        for kind in (signal.SIGINT, signal.SIGTERM):
            before[kind] = signal.signal(kind, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _safetensors_metadata(path: Path) -> dict[str, Any]:
    """The texts in the file that are read here, after checking all its offsets and sizes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file, or truncated: {_brief(error)}") from None
    data = {}
    for key in ("config", "global_step"):
        try:
            data[key] = json.loads(metadata.get(key, "null"))
        except (ValueError, RecursionError):
            raise ModelError(f"{path}: the metadata entry {key!r} is not JSON") from None
    return data


def _map_safetensors(path: Path) -> Any:
    """As safetensors' own reader for NumPy, which lacks BF16 and keeps what it has read."""
    data = _safetensors_metadata(path)
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    unknown = {entry["dtype"] for entry in header.values()} - _SAFETENSORS_TYPES.keys()
    if unknown:
        raise ModelError(f"{path}: has tensors in {', '.join(sorted(unknown))}; save them in F32")
    state = {}
    for name, entry in header.items():
        dtype, shape = np.dtype(_SAFETENSORS_TYPES[entry["dtype"]]), tuple(entry["shape"])
        offset = 8 + length + entry["data_offsets"][0]
        read = functools.partial(_mapped, path, dtype, shape, offset)
        kind = ir.DataType.from_numpy(dtype)
        state[name] = ir.LazyTensor(read, kind, ir.Shape(shape), name=name)
    return {**data, "state_dict": state}


def _mapped(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int
) -> ir.TensorProtocol:
    if 0 in shape:  # cannot be mapped
        return ir.Tensor(np.empty(shape, dtype))
    return ir.Tensor(np.memmap(path, dtype, "r", offset, shape))


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and hasattr(type(v), "shape") for k, v in value.items())
    )


def _without_prefix(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict without the ``module.`` that DistributedDataParallel puts before names."""
    prefix = "module."
    if not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def check_fit(
    own: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], *, strict: bool
) -> LoadReport:
    """Compare the shapes of a model's parameters with those of a state dict.

    Raises:
        ModelError: they differ and ``strict``; all mismatches are in this one error.
    """
    report = LoadReport(
        missing=tuple(name for name in own if name not in found),
        unexpected=tuple(name for name in found if name not in own),
        mismatched=tuple(
            f"{name} (found {found[name]}, expected {shape})"
            for name, shape in own.items()
            if found.get(name, shape) != shape
        ),
    )
    if strict and report != LoadReport():
        raise ModelError(f"the weights do not fit the model's configuration: {report}")
    return report


def check_plain(tensors: Mapping[str, Any]) -> None:
    """Refuse tensors that are something else than floating-point numbers in memory or in a file.

    Args:
        tensors: Tensors of PyTorch or onnx_ir by name.

    Raises:
        ModelError: some are sparse, nested, quantized, without data, complex or whole numbers.
    """
    found = ((name, _special_kind(tensor)) for name, tensor in tensors.items())
    problems = [f"{name} is {kind}" for name, kind in found if kind is not None]
    if problems:
        more = f", and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ModelError(
            "the checkpoint has weights that are not dense floating-point tensors; save them as"
            f" such: {', '.join(problems[:_SHOWN])}{more}"
        )


def _special_kind(tensor: Any) -> str | None:
    if not hasattr(tensor, "layout"):  # of a safetensors file, whose types are known
        return None
    if tensor.is_nested:
        return "nested"
    if str(tensor.layout) != "torch.strided":
        return f"sparse ({tensor.layout})"
    if tensor.is_meta:
        return "without data (of the meta device)"
    if tensor.is_quantized or not tensor.is_floating_point():
        return f"of {tensor.dtype}"
    return None


@shows_progress
def load_into(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    strict: bool = True,
    progress: AnyProgress = None,
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
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.

    Returns:
        What was left out; empty if ``strict``.

    Raises:
        ModelError: the state dict does not fit the module; all mismatches are in this one error.
    """
    own = module.state_dict()
    state_dict = current_names(state_dict)
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    check_plain({name: tensor for name, tensor in state_dict.items() if name in own})
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    report = check_fit(shapes, found, strict=strict)
    fitting = {name: t for name, t in state_dict.items() if shapes.get(name) == found[name]}
    converted = dict(_converted(fitting, own, progress))
    module.load_state_dict(converted, strict=False, assign=True)
    return report


def _converted(
    state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor], progress: Progress | None
) -> Iterator[tuple[str, Tensor]]:
    total = sum(tensor.nbytes for tensor in state_dict.values())
    done = 0
    with byte_phase(progress, "Converting the weights", total) as report:
        for name, source in state_dict.items():
            target = own[name]
            device = source.device if target.is_meta else target.device
            converted = source.to(device=device, dtype=target.dtype)
            if converted is not source and source.device.type == "cpu":
                page_out(source.data_ptr(), source.nbytes)
            done += source.nbytes
            report(done)
            yield name, converted


def page_out(address: int, size: int) -> None:
    """Let the kernel take back the pages of memory that is not needed for now.

    A mapped checkpoint would otherwise count as this process's memory once it has been read. The
    contents stay: MADV_PAGEOUT (Linux 5.4) drops nothing that is not on disk.
    """
    libc: Any = ctypes.CDLL(None)
    advice = 21  # MADV_PAGEOUT in Linux's mman-common.h
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = address + size - start
    if hasattr(libc, "madvise") and length > 0:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)
