"""The LatentSync U-Net to ONNX: as one graph, or as the two that DeepCache alternates between."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from trt_native._version import __version__
from trt_native.errors import SpecError
from trt_native.export.module import BFLOAT16_OPSET, DEFAULT_OPSET, ExportReport, writing
from trt_native.files import with_ending
from trt_native.graph.dims import write_limits
from trt_native.graph.onnx_file import save_model, save_models
from trt_native.graph.outputs import check_outputs
from trt_native.models.latentsync.config import UNetConfig
from trt_native.models.latentsync.graph import OLDEST_OPSET, Dims, write_graph
from trt_native.models.latentsync.structure import is_position, parameter_shapes
from trt_native.models.latentsync.weights import Weights, load_weights
from trt_native.progress import Progress
from trt_native.progress_bars import AnyProgress, shows_progress

if TYPE_CHECKING:
    from torch import Tensor

    from trt_native.models.latentsync.checkpoint import Checkpoint

__all__ = ["AUDIO_TOKENS", "export_deepcache", "export_latentsync", "graph_dtype", "unet_model"]

AUDIO_TOKENS = 50
"""Audio features per frame that the LatentSync U-Net is exported for."""

_PRECISIONS = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
_TIMESTEPS = {"int64": ir.DataType.INT64, "float32": ir.DataType.FLOAT}
_EXTENTS = ("batch", "frames", "height", "width")
_IR_VERSION = 10  # the newest that TensorRT 10.3 reads


@shows_progress
def export_latentsync(
    path: str | Path,
    *,
    config: UNetConfig | str | Path | None = None,
    checkpoint: Checkpoint | Mapping[str, Tensor] | str | Path | None = None,
    random_seed: int | None = None,
    precision: str = "fp32",
    static: Mapping[str, int] | None = None,
    opset: int | None = None,
    timestep_dtype: str = "int64",
    allow_mismatch: bool = False,
    durable: bool = True,
    progress: AnyProgress = None,
) -> ExportReport:
    """Export the LatentSync U-Net with the weights of a checkpoint, or with random ones.

    The ONNX has the inputs ``latents`` (batch, channels, frames, height, width), ``timestep``
    (1,) int64 and, if the model has audio layers, ``encoder_hidden_states`` (batch*frames, 50,
    features), and the output ``noise_pred``; height and width are those of the latents. All but
    ``timestep`` have the type of ``precision``. Norms and softmax work in FP32 inside.

    The graph is written from the configuration, and the weights go from their file to the ONNX one
    tensor at a time. PyTorch is needed to read its own format of checkpoints alone.

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
        opset: ONNX operator-set version, at least 17, and 22 for ``bf16``. Default: 18, and 22.
        timestep_dtype: Type of the timestep: ``int64``, or ``float32`` for schedulers whose
            timesteps have fractions, such as diffusers' Euler, Heun and KDPM2.
        allow_mismatch: Whether to go on where the checkpoint does not fit: what is unexpected
            is ignored, and what is missing gets random values.
        durable: Wait until the files are on disk, so that they outlive a loss of power.
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.

    Returns:
        What was written.

    Raises:
        SpecError: arguments contradict each other or the model.
        ModelError: the checkpoint cannot be read, or does not fit the configuration.
        ExportError: the file cannot be written, or a weight exceeds the range of ``precision``.
        UnsupportedError: the checkpoint is in PyTorch's format, and PyTorch is not installed.
    """
    started, path = time.perf_counter(), Path(path)
    options = _Options.checked(precision, opset, timestep_dtype)
    _check_outputs((path, Path(f"{path}.data")), checkpoint, config)
    weights = _weights(options, config, checkpoint, random_seed, static, allow_mismatch, progress)
    model = options.model(weights, static or {}, random_seed)
    with writing(path):
        data, total_bytes = save_model(model, path, progress, durable=durable)
    return ExportReport.of(model, _parameters(weights), path, data, total_bytes, started)


@shows_progress
def export_deepcache(
    path: str | Path,
    *,
    config: UNetConfig | str | Path | None = None,
    checkpoint: Checkpoint | Mapping[str, Tensor] | str | Path | None = None,
    random_seed: int | None = None,
    precision: str = "fp32",
    static: Mapping[str, int] | None = None,
    opset: int | None = None,
    timestep_dtype: str = "int64",
    allow_mismatch: bool = False,
    durable: bool = True,
    progress: AnyProgress = None,
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
    started, path = time.perf_counter(), Path(path)
    shallow_path = with_ending(path, f".shallow{path.suffix}")
    data = with_ending(path, ".deepcache.data")
    options = _Options.checked(precision, opset, timestep_dtype)
    _check_outputs((path, shallow_path, data), checkpoint, config)
    weights = _weights(options, config, checkpoint, random_seed, static, allow_mismatch, progress)
    full, shallow = (
        options.model(weights, static or {}, random_seed, kind) for kind in ("full", "shallow")
    )
    with writing(path):
        models = {path: full, shallow_path: shallow}
        sizes = save_models(models, data, progress, durable=durable)
    parameters, own_bytes = _parameters(weights), sizes[path] + sizes[data]
    return (
        ExportReport.of(full, parameters, path, data, own_bytes, started),
        ExportReport.of(shallow, parameters, shallow_path, data, sizes[shallow_path], started),
    )


def _check_outputs(outputs: tuple[Path, ...], *sources: object) -> None:
    reads = (source for source in sources if isinstance(source, str | Path))
    check_outputs(outputs, reads=reads)


def unet_model(
    weights: Weights,
    dims: Dims,
    *,
    dtype: ir.DataType = ir.DataType.FLOAT,
    timestep: ir.DataType = ir.DataType.INT64,
    opset: int = DEFAULT_OPSET,
    deepcache: str | None = None,
    metadata: Mapping[str, object] | None = None,
) -> ir.Model:
    """The ONNX model of a step, whose weights are read when it is saved.

    Args:
        weights: Configuration and weights.
        dims: Extents of the inputs.
        dtype: Type of everything but the timestep.
        timestep: Type of the timestep.
        opset: ONNX operator-set version.
        deepcache: As for :func:`trt_native.models.latentsync.graph.write_graph`.
        metadata: Entries for the model's own key-value pairs, without the prefix; None is left out.
    """
    graph = write_graph(
        weights, dims, dtype=dtype, timestep=timestep, opset=opset, deepcache=deepcache
    )
    entries = {f"trt_native.{k}": str(v) for k, v in (metadata or {}).items() if v is not None}
    if weights.config.max_frames is not None and dims.frames == "frames":
        entries |= write_limits({"frames": weights.config.max_frames})
    model = ir.Model(
        graph,
        ir_version=_IR_VERSION,
        producer_name="trt-native",
        producer_version=__version__,
        metadata_props=entries,
    )
    common.RemoveUnusedNodesPass()(model)  # extents that only annotate shapes
    return model


def graph_dtype(precision: str) -> ir.DataType:
    """The type of a graph in ``fp32``, ``fp16`` or ``bf16``.

    Raises:
        SpecError: it is none of these.
    """
    if precision not in _PRECISIONS:
        raise SpecError(
            f"precision {precision!r} cannot be exported: use fp32, fp16 or bf16",
            options=["precision"],
        )
    return _PRECISIONS[precision]


@dataclass(frozen=True, slots=True)
class _Options:
    """The types of a model, and the opset."""

    precision: str
    dtype: ir.DataType
    timestep: ir.DataType
    opset: int

    @classmethod
    def checked(cls, precision: str, opset: int | None, timestep: str) -> _Options:
        dtype = graph_dtype(precision)
        if timestep not in _TIMESTEPS:
            raise SpecError(
                f"timestep of {timestep!r}: use int64 or float32", options=["timestep_dtype"]
            )
        is_bf16 = precision == "bf16"
        oldest, newest = BFLOAT16_OPSET if is_bf16 else OLDEST_OPSET, onnx.defs.onnx_opset_version()
        default = BFLOAT16_OPSET if is_bf16 else DEFAULT_OPSET
        if opset is not None and not oldest <= opset <= newest:
            needs = "BF16 convolutions" if is_bf16 else "LayerNormalization"
            raise SpecError(
                f"opset {opset}: choose one from {oldest}, the first with {needs}, to {newest};"
                f" the default is {default}",
                options=["opset"],
            )
        return cls(precision, dtype, _TIMESTEPS[timestep], opset or default)

    def model(
        self,
        weights: Weights,
        static: Mapping[str, int],
        random_seed: int | None,
        deepcache: str | None = None,
    ) -> ir.Model:
        extents = {name: static.get(name, name) for name in _EXTENTS}
        metadata = {
            "model": "latentsync-unet",
            "config": json.dumps(weights.config.to_dict()),
            "precision": self.precision,
            "checkpoint_sha256": weights.sha256,
            "random_seed": random_seed,
            "deepcache": deepcache,
        }
        return unet_model(
            weights,
            Dims(**extents, tokens=AUDIO_TOKENS),
            dtype=self.dtype,
            timestep=self.timestep,
            opset=self.opset,
            deepcache=deepcache,
            metadata=metadata,
        )


def _weights(
    options: _Options,
    config: UNetConfig | str | Path | None,
    checkpoint: Checkpoint | Mapping[str, Tensor] | str | Path | None,
    random_seed: int | None,
    static: Mapping[str, int] | None,
    allow_mismatch: bool,
    progress: Progress | None,
) -> Weights:
    weights = load_weights(
        config=config,
        checkpoint=checkpoint,
        random_seed=random_seed,
        dtype=options.dtype,
        allow_mismatch=allow_mismatch,
        progress=progress,
    )
    _check_static(static or {}, weights.config)
    return weights


def _check_static(static: Mapping[str, int], config: UNetConfig) -> None:
    unknown = sorted(set(static) - set(_EXTENTS))
    too_small = sorted(name for name, extent in static.items() if extent < 1)
    if unknown or too_small:
        raise SpecError(f"static extents {dict(static)}: need {', '.join(_EXTENTS)} of at least 1")
    if config.max_frames is not None and static.get("frames", 1) > config.max_frames:
        raise SpecError(
            f"{static['frames']} frames: the model has positions for {config.max_frames}"
        )


def _parameters(weights: Weights) -> int:
    shapes = parameter_shapes(weights.config)
    return sum(math.prod(shape) for name, shape in shapes.items() if not is_position(name))
