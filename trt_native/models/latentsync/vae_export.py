"""The image autoencoder to ONNX: its encoder and its decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from trt_native.export.module import ExportReport, export_module, require_torch
from trt_native.files import check_writable, with_ending
from trt_native.graph.onnx_file import dtype_name
from trt_native.graph.outputs import check_outputs
from trt_native.models.latentsync.export import graph_dtype
from trt_native.progress_bars import AnyProgress, shows_progress

if TYPE_CHECKING:
    from trt_native.models.latentsync.vae import VaeConfig

__all__ = ["IMAGE", "LATENTS", "MOMENTS", "export_vae", "vae_paths"]

IMAGE, LATENTS, MOMENTS = "image", "latents", "moments"
"""Tensors of the two graphs."""


def vae_paths(path: str | Path) -> tuple[Path, Path]:
    """``NAME.encoder.onnx`` and ``NAME.decoder.onnx`` for ``NAME.onnx``."""
    path = Path(path)
    encoder, decoder = (
        with_ending(path, f".{part}{path.suffix}") for part in ("encoder", "decoder")
    )
    return encoder, decoder


@shows_progress
def export_vae(
    path: str | Path,
    *,
    folder: str | Path | None = None,
    config: VaeConfig | str | Path | None = None,
    random_seed: int | None = None,
    precision: str = "fp32",
    opset: int | None = None,
    progress: AnyProgress = None,
) -> tuple[ExportReport, ExportReport]:
    """Export an ``AutoencoderKL`` with the weights of a folder, or with random ones.

    ``NAME.encoder.onnx`` takes ``image`` (frames, in_channels, height, width), with height and
    width that the downscaling divides, and returns ``moments`` (frames, 2 * latent_channels, ...):
    means and logarithms of variances, as diffusers' ``DiagonalGaussianDistribution`` takes them.
    ``NAME.decoder.onnx`` takes ``latents`` (frames, latent_channels, height, width), not scaled,
    and returns ``image``. All have the type of ``precision``; norms and softmax work in FP32
    inside. Frames, height and width are dynamic.

    Args:
        path: ``NAME.onnx``, from which the two names are made.
        folder: A folder as diffusers saves it; see :func:`trt_native.models.latentsync.load_vae`.
        config: With ``random_seed``: a configuration, its ``config.json``, or a preset's name.
        random_seed: Random weights that depend on this number alone, instead of a folder.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        opset: ONNX operator-set version; as for :func:`trt_native.export.export_module` if None.
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.

    Returns:
        What was written for the encoder and for the decoder.

    Raises:
        SpecError, ModelError: see :func:`trt_native.models.latentsync.load_vae`.
        ExportError, UnsupportedError: see :func:`trt_native.export.export_module`.
    """
    require_torch()
    import torch

    from trt_native.models.latentsync.vae import VaeConfig, VaeDecoder, VaeEncoder, load_vae

    dtype = dtype_name(graph_dtype(precision))
    paths = vae_paths(path)
    reads = [source for source in (folder, config) if isinstance(source, str | Path)]
    check_writable(Path(path))  # a folder would give files of hidden names
    check_outputs(paths, reads=reads)
    given = VaeConfig.load(config) if isinstance(config, str | Path) else config
    vae, sha256 = load_vae(config=given, folder=folder, random_seed=random_seed, dtype=dtype)
    found = {
        "config": json.dumps(vae.config.to_dict()),
        "precision": precision,
        "checkpoint_sha256": sha256,
        "random_seed": random_seed,
    }
    metadata = {f"trt_native.{k}": str(v) for k, v in found.items() if v is not None}
    # Large enough that no extent shrinks to 1 in the encoder.
    scale = vae.config.downscale
    image = torch.zeros(2, vae.config.in_channels, 2 * scale, 3 * scale)
    latents = torch.zeros(2, vae.config.latent_channels, 2, 3)
    free = {0: "frames", 2: "height", 3: "width"}
    encoder, decoder = (
        export_module(
            module,
            {source: example.to(getattr(torch, dtype))},
            path=file,
            dynamic={source: free},
            output_names=[result],
            opset=opset,
            metadata={**metadata, "trt_native.model": f"latentsync-vae-{part}"},
            progress=progress,
        )
        for module, part, source, result, example, file in (
            (VaeEncoder(vae), "encoder", IMAGE, MOMENTS, image, paths[0]),
            (VaeDecoder(vae), "decoder", LATENTS, IMAGE, latents, paths[1]),
        )
    )
    return encoder, decoder
