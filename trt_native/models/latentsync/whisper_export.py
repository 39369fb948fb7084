"""Whisper's audio encoder to ONNX."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from trt_native.errors import SpecError
from trt_native.export.module import ExportReport, export_module, require_torch
from trt_native.graph.onnx_file import dtype_name
from trt_native.graph.outputs import check_outputs
from trt_native.models.latentsync.export import graph_dtype
from trt_native.progress_bars import AnyProgress, shows_progress

if TYPE_CHECKING:
    from trt_native.models.latentsync.whisper import WhisperConfig

__all__ = ["EMBEDDINGS", "FEATURES", "MEL", "export_whisper"]

MEL, FEATURES, EMBEDDINGS = "mel", "features", "embeddings"
"""Tensors of the graph."""


@shows_progress
def export_whisper(
    path: str | Path,
    *,
    checkpoint: str | Path | None = None,
    config: WhisperConfig | str | None = None,
    random_seed: int | None = None,
    precision: str = "fp32",
    opset: int | None = None,
    progress: AnyProgress = None,
) -> ExportReport:
    """Export the encoder of a Whisper, for one segment of 30 s.

    The graph takes ``mel`` (1, n_mels, 2 * n_audio_ctx), a logarithmic mel spectrogram, and returns
    ``features`` (1, n_audio_ctx, n_audio_state) and ``embeddings`` (1, n_audio_layer + 1,
    n_audio_ctx, n_audio_state): what goes into the first block and comes out of each. All have the
    type of ``precision``; norms and softmax work in FP32 inside.

    Args:
        path: The file to write.
        checkpoint: OpenAI's file, such as ``tiny.pt``.
        config: With ``random_seed``: dimensions, or ``tiny`` or ``small``.
        random_seed: Random weights that depend on this number alone, instead of a file.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        opset: As for :func:`trt_native.export.export_module`.
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.

    Raises:
        SpecError, ModelError: as :func:`trt_native.models.latentsync.whisper.load_whisper`; also
            where the preset is unknown.
        ExportError, UnsupportedError: as :func:`trt_native.export.export_module`.
    """
    require_torch()
    import torch

    from trt_native.models.latentsync.whisper import WHISPER_PRESETS, load_whisper

    dtype = dtype_name(graph_dtype(precision))
    check_outputs([Path(path)], reads=[checkpoint])
    if isinstance(config, str):
        if config not in WHISPER_PRESETS:
            raise SpecError(f"{config}: not a preset of Whisper ({', '.join(WHISPER_PRESETS)})")
        config = WHISPER_PRESETS[config]
    encoder, sha256 = load_whisper(
        config=config, checkpoint=checkpoint, random_seed=random_seed, dtype=dtype
    )
    found = {
        "model": "latentsync-whisper-encoder",
        "config": json.dumps(dataclasses.asdict(encoder.config)),
        "precision": precision,
        "checkpoint_sha256": sha256,
        "random_seed": random_seed,
    }
    size = encoder.config
    mel = torch.zeros(1, size.n_mels, 2 * size.n_audio_ctx, dtype=getattr(torch, dtype))
    return export_module(
        encoder,
        {MEL: mel},
        path=path,
        output_names=[FEATURES, EMBEDDINGS],
        opset=opset,
        metadata={f"trt_native.{k}": str(v) for k, v in found.items() if v is not None},
        progress=progress,
    )
