"""The LatentSync U-Net to ONNX: as one graph, or as the two that DeepCache alternates between."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trt_native.errors import SpecError
from trt_native.export.module import (
    ExportReport,
    export_module,
    exported_model,
    require_torch,
    writing,
)
from trt_native.files import check_writable
from trt_native.graph.onnx_file import save_models
from trt_native.models.latentsync.config import UNetConfig
from trt_native.progress import ByteProgress, no_progress

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

    from trt_native.models.latentsync import UNet
    from trt_native.models.latentsync.checkpoint import Checkpoint

__all__ = ["AUDIO_TOKENS", "export_deepcache", "export_latentsync"]

AUDIO_TOKENS = 50
"""Audio features per frame that the LatentSync U-Net is exported for."""

DEEP_FEATURES = "deep_features"

_PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Extents to trace with. None is 1, here or at the U-Net's deepest level.
_EXAMPLE_EXTENTS = {"batch": 2, "frames": 3, "height": 16, "width": 24}


def export_latentsync(
    path: str | Path,
    *,
    config: UNetConfig | str | Path | None = None,
    checkpoint: Checkpoint | Mapping[str, Tensor] | str | Path | None = None,
    random_seed: int | None = None,
    precision: str = "fp32",
    static: Mapping[str, int] | None = None,
    opset: int | None = None,
    allow_mismatch: bool = False,
    progress: ByteProgress | None = None,
) -> ExportReport:
    """Export the LatentSync U-Net with the weights of a checkpoint, or with random ones.

    The ONNX has the inputs ``latents`` (batch, channels, frames, height, width), ``timestep``
    (1,) int64 and, if the model has audio layers, ``encoder_hidden_states`` (batch*frames, 50,
    features), and the output ``noise_pred``; height and width are those of the latents. All but
    ``timestep`` have the type of ``precision``. Norms and softmax work in FP32 inside.

    Configuration, precision and the checkpoint's SHA-256 (or the seed) are in the model's
    key-value pairs, under names that start with ``trt_native.``.

    Args:
        path: The file to write.
        config: A configuration, its YAML or JSON file, or a preset's name. Default: the
            checkpoint's own, else ``latentsync-1.6``.
        checkpoint: A checkpoint, its file, or a state dict.
        random_seed: Random weights that depend on this number alone, instead of a checkpoint.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        static: Extents for any of ``batch``, ``frames``, ``height`` and ``width``; the others
            stay dynamic.
        opset: ONNX operator-set version; as for :func:`trt_native.export.export_module` if None.
        allow_mismatch: Whether to go on where the checkpoint does not fit: what is unexpected
            is ignored, and what is missing gets random values.
        progress: Receives the phase and the number of bytes done.

    Returns:
        What was written.

    Raises:
        SpecError: arguments contradict each other or the model.
        ModelError: the checkpoint cannot be read, or does not fit the configuration.
        ExportError: see :func:`trt_native.export.export_module`.
        UnsupportedError: see :func:`trt_native.export.export_module`.
    """
    source = _source(config, checkpoint, random_seed, precision, static, allow_mismatch, progress)
    return export_module(
        source.unet,
        source.inputs,
        path=path,
        dynamic=source.dynamic,
        output_names=["noise_pred"],
        opset=opset,
        metadata=source.metadata,
        progress=progress,
    )


def export_deepcache(
    path: str | Path,
    *,
    config: UNetConfig | str | Path | None = None,
    checkpoint: Checkpoint | Mapping[str, Tensor] | str | Path | None = None,
    random_seed: int | None = None,
    precision: str = "fp32",
    static: Mapping[str, int] | None = None,
    opset: int | None = None,
    allow_mismatch: bool = False,
    progress: ByteProgress | None = None,
) -> tuple[ExportReport, ExportReport]:
    """Export the LatentSync U-Net as the two graphs that DeepCache (branch 0) alternates between.

    ``NAME.onnx`` is the full step of :func:`export_latentsync` with a second output,
    ``deep_features`` (batch*frames, block_out_channels[0], height, width). ``NAME.shallow.onnx``
    takes these as its last input and computes the outermost layers alone. Both have their weights
    in ``NAME.deepcache.data``. Arguments and errors are those of :func:`export_latentsync`.

    Returns:
        What was written for the full step and for the shallow one; the shared weights count for
        the size of the first.
    """
    started = time.perf_counter()
    path, report = Path(path), progress or no_progress
    shallow_path = path.with_name(f"{path.stem}.shallow{path.suffix}")
    data = path.with_name(f"{path.stem}.deepcache.data")
    for file in (path, shallow_path, data):
        check_writable(file)
    source = _source(config, checkpoint, random_seed, precision, static, allow_mismatch, progress)
    from trt_native.models.latentsync import DeepCacheFull, DeepCacheShallow

    full = _exported_step(DeepCacheFull, source, opset, report)
    shallow = _exported_step(DeepCacheShallow, _with_features(source), opset, report)
    with writing(path):
        sizes = save_models({path: full, shallow_path: shallow}, data, report)
    unet, own_bytes = source.unet, sizes[path] + sizes[data]
    return (
        ExportReport.of(full, unet, path, data, own_bytes, started),
        ExportReport.of(shallow, unet, shallow_path, data, sizes[shallow_path], started),
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """A U-Net to export, with the arguments of ``export_module`` for it."""

    unet: UNet
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, str]]
    metadata: dict[str, str]


def _source(
    config: UNetConfig | str | Path | None,
    checkpoint: Checkpoint | Mapping[str, Tensor] | str | Path | None,
    random_seed: int | None,
    precision: str,
    static: Mapping[str, int] | None,
    allow_mismatch: bool,
    progress: ByteProgress | None,
) -> _Source:
    require_torch()
    from trt_native.models.latentsync import load_unet

    if precision not in _PRECISIONS:
        raise SpecError(f"precision {precision!r} cannot be exported: use fp32, fp16 or bf16")
    unet, checkpoint_sha256 = load_unet(
        config=config,
        checkpoint=checkpoint,
        random_seed=random_seed,
        dtype=_PRECISIONS[precision],
        allow_mismatch=allow_mismatch,
        progress=progress,
    )
    extents = _checked_static(static or {}, unet.config)
    metadata = {
        "model": "latentsync-unet",
        "config": json.dumps(unet.config.to_dict()),
        "precision": precision,
        "checkpoint_sha256": checkpoint_sha256,
        "random_seed": random_seed,
    }
    inputs, dynamic = _latentsync_inputs(unet.config, extents, _PRECISIONS[precision])
    texts = {f"trt_native.{k}": str(v) for k, v in metadata.items() if v is not None}
    return _Source(unet, inputs, dynamic, texts)


def _with_features(source: _Source) -> _Source:
    """The source with example deep features among the inputs."""
    latents, free = source.inputs["latents"], source.dynamic["latents"]
    batch, _, frames, height, width = latents.shape
    channels = source.unet.config.block_out_channels[0]
    features = latents.new_zeros(batch * frames, channels, height, width)
    product = _product(free.get(0, str(batch)), free.get(2, str(frames)))
    dims = {0: product, 2: free.get(3, ""), 3: free.get(4, "")}
    dynamic = {axis: dim for axis, dim in dims.items() if dim}
    return replace(
        source,
        inputs={**source.inputs, DEEP_FEATURES: features},
        dynamic={**source.dynamic, DEEP_FEATURES: dynamic},
    )


def _exported_step(
    kind: type[UNet], source: _Source, opset: int | None, progress: ByteProgress
) -> ir.Model:
    """Export another kind of step with the parameters of the source's U-Net."""
    import torch

    unet = source.unet
    with torch.device("meta"):
        step = kind(unet.config)
    step.load_state_dict(unet.state_dict(), assign=True)
    full = DEEP_FEATURES not in source.inputs
    return exported_model(
        step.requires_grad_(False).eval(),
        source.inputs,
        dynamic=source.dynamic,
        output_names=["noise_pred", DEEP_FEATURES][: 1 + full],
        opset=opset,
        metadata={**source.metadata, "trt_native.deepcache": "full" if full else "shallow"},
        progress=progress,
    )


def _checked_static(static: Mapping[str, int], config: UNetConfig) -> Mapping[str, int]:
    unknown = sorted(set(static) - set(_EXAMPLE_EXTENTS))
    too_small = sorted(name for name, extent in static.items() if extent < 1)
    if unknown or too_small:
        raise SpecError(
            f"static extents {dict(static)}: need {', '.join(_EXAMPLE_EXTENTS)} of at least 1"
        )
    if config.max_frames is not None and static.get("frames", 1) > config.max_frames:
        raise SpecError(
            f"{static['frames']} frames: the model has positions for {config.max_frames}"
        )
    return static


def _latentsync_inputs(
    config: UNetConfig, static: Mapping[str, int], dtype: str
) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Example inputs, and the dimensions that ``static`` leaves dynamic."""
    import torch

    extents = {**_EXAMPLE_EXTENTS, **static}
    batch, frames, height, width = extents.values()
    kind = getattr(torch, dtype)
    inputs = {
        "latents": torch.zeros(batch, config.in_channels, frames, height, width, dtype=kind),
        "timestep": torch.zeros(1, dtype=torch.int64),
    }
    free = {0: "batch", 2: "frames", 3: "height", 4: "width"}
    dynamic = {"latents": {axis: name for axis, name in free.items() if name not in static}}
    if config.add_audio_layer:
        audio = (batch * frames, AUDIO_TOKENS, config.cross_attention_dim)
        inputs["encoder_hidden_states"] = torch.zeros(audio, dtype=kind)
        product = _product(*(str(static.get(name, name)) for name in ("batch", "frames")))
        dynamic["encoder_hidden_states"] = {0: product} if product else {}
    return inputs, dynamic


def _product(batch: str, frames: str) -> str:
    """The dimension that has one entry per frame; empty where both are numbers."""
    if batch.isdecimal() and frames.isdecimal():
        return ""
    return "*".join(factor for factor in (batch, frames) if factor != "1")
