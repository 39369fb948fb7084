"""Weights of the U-Net for a graph, read and converted when they are written."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from trt_native.errors import SpecError
from trt_native.models.latentsync.checkpoint import (
    Checkpoint,
    LoadReport,
    check_fit,
    check_plain,
    load_checkpoint,
    load_safetensors,
)
from trt_native.models.latentsync.config import UNetConfig
from trt_native.models.latentsync.releases import current_names, without_absent_motion
from trt_native.models.latentsync.structure import parameter_shapes, random_parameters
from trt_native.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Weights", "check_source", "choose_config", "load_weights", "open_checkpoint"]

_MOST_RANDOM = 10**10
_DEFAULT_PRESET = "latentsync-1.6"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Weights:
    """A U-Net's weights and where they are from.

    Attributes:
        config: The U-Net's configuration.
        tensors: All its parameters by name, in the types of their source; those of a file are
            read whenever they are asked for.
        sha256: Hash of the checkpoint's file, if there is one.
    """

    config: UNetConfig
    tensors: Mapping[str, ir.TensorProtocol]
    sha256: str | None


def load_weights(
    *,
    config: UNetConfig | str | Path | None,
    checkpoint: Checkpoint | Mapping[str, Tensor] | str | Path | None,
    random_seed: int | None,
    dtype: ir.DataType,
    allow_mismatch: bool,
    progress: Progress | None,
) -> Weights:
    """Find a U-Net's weights, without PyTorch unless they are its tensors or in its format.

    Arguments and errors are those of :func:`trt_native.models.latentsync.load_unet`. Random
    values are held in ``dtype``, and nothing else is.
    """
    check_source(checkpoint, random_seed)
    if isinstance(checkpoint, str | Path):
        checkpoint = open_checkpoint(checkpoint, progress)
    whole = checkpoint if isinstance(checkpoint, Checkpoint) else None
    chosen = choose_config(config, whole.config if whole else None)
    tensors = {}
    if checkpoint is not None:
        given = checkpoint.state_dict if isinstance(checkpoint, Checkpoint) else checkpoint
        given = current_names(given)
        chosen = without_absent_motion(chosen, given)
        tensors = _fitting(chosen, given, strict=not allow_mismatch)
    shapes = parameter_shapes(chosen)
    missing = shapes.keys() - tensors.keys()
    if missing:
        elements = sum(math.prod(shapes[name]) for name in missing)
        if elements > _MOST_RANDOM:
            raise SpecError(
                f"the configuration has {elements:,} random weights; at most {_MOST_RANDOM:,} are"
                " possible"
            )
        tensors |= {
            name: ir.Tensor(values.astype(dtype.numpy()), name=name)
            for name, values in random_parameters(chosen, random_seed or 0)
            if name in missing
        }
    return Weights(chosen, tensors, whole.sha256 if whole else None)


def open_checkpoint(path: str | Path, progress: Progress | None = None) -> Checkpoint:
    """Read a checkpoint, without PyTorch unless it is in its format.

    Raises:
        ModelError: as :func:`trt_native.models.latentsync.load_checkpoint`.
    """
    is_safetensors = Path(path).suffix == ".safetensors"
    return (load_safetensors if is_safetensors else load_checkpoint)(path, progress=progress)


def _fitting(
    config: UNetConfig, given: Mapping[str, Any], *, strict: bool
) -> dict[str, ir.TensorProtocol]:
    """The tensors that the configuration has a place for; all of them if ``strict``."""
    own = parameter_shapes(config)
    check_plain({name: value for name, value in given.items() if name in own})
    found = {name: _shape(value) for name, value in given.items()}
    report = check_fit(own, found, strict=strict)
    if report != LoadReport():
        _logger.warning("the checkpoint does not fit: %s", report)
    fitting = (name for name in given if own.get(name) == found[name])
    return {name: _as_tensor(given[name], name) for name in fitting}


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape.numpy() if isinstance(value.shape, ir.Shape) else value.shape)


def _as_tensor(value: Any, name: str) -> ir.TensorProtocol:
    return ir.tensor(value.detach() if hasattr(value, "detach") else value, name=name)


def check_source(checkpoint: object | None, random_seed: int | None) -> None:
    """Reject none or two sources of weights.

    Raises:
        SpecError: not exactly one is given.
    """
    if (checkpoint is None) == (random_seed is None):
        raise SpecError("give either a checkpoint or a random_seed for the U-Net's weights")


def choose_config(
    given: UNetConfig | str | Path | None, own: Mapping[str, object] | None
) -> UNetConfig:
    """The configuration that is given, else the checkpoint's own, else the default."""
    if isinstance(given, UNetConfig):
        return given
    if given is None and own is not None:
        return UNetConfig.from_mapping(own)
    return UNetConfig.load(given or _DEFAULT_PRESET)
