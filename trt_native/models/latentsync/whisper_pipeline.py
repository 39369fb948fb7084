"""Whisper's audio encoder as a TensorRT plan, a drop-in replacement of the pipeline's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trt_native.errors import ClosedError, SpecError
from trt_native.models.latentsync.plan_module import PlanModule, StepRunner
from trt_native.models.latentsync.whisper import WhisperConfig
from trt_native.models.latentsync.whisper_export import EMBEDDINGS, FEATURES, MEL
from trt_native.runtime.tensor_views import torch_dtype
from trt_native.shapes import format_shape

__all__ = ["LatentSyncWhisperEncoder"]


class LatentSyncWhisperEncoder(PlanModule):
    """The ``AudioEncoder`` of LatentSync's Whisper as a plan, for a segment of 30 s at a time.

    It runs in the order of torch's current stream. One thread at a time may call it.

    Args:
        runner: Runs a plan of :func:`trt_native.models.latentsync.whisper_export.export_whisper`.
        config: The encoder's dimensions.

    Attributes:
        config: The encoder's dimensions.

    Raises:
        SpecError: the runner is not that of an encoder.
    """

    def __init__(self, runner: StepRunner, *, config: WhisperConfig) -> None:
        own = {(tensor.name, tensor.mode): tensor for tensor in runner.tensors}
        if set(own) != {(MEL, "input"), (FEATURES, "output"), (EMBEDDINGS, "output")}:
            found = ", ".join(f"{name} ({mode})" for name, mode in own)
            raise SpecError(
                f"{runner.name} does not turn {MEL} into {FEATURES} and {EMBEDDINGS}, found"
                f" {found}; build it from an export of latentsync-whisper"
            )
        super().__init__(runner, own[MEL, "input"].dtype)
        self.config = config
        self._runner = runner
        with torch.inference_mode(False):
            self._tensors = {
                tensor.name: torch.empty(
                    tensor.shape, dtype=torch_dtype(tensor.dtype), device=self.device
                )
                for tensor in runner.tensors
            }
        self._closed = False

    @torch.no_grad()
    def forward(self, x: Tensor, include_embeddings: bool = False) -> Any:
        """Encode a segment.

        Args:
            x: Logarithmic mel spectrogram, (1, n_mels, 2 * n_audio_ctx), floating-point, on any
                device.
            include_embeddings: Whether to also return what goes into the first block and comes out
                of each.

        Returns:
            The features, (1, n_audio_ctx, n_audio_state), in the type and on the device of ``x``.
            With embeddings a pair of these and an array, (1, n_audio_layer + 1, n_audio_ctx,
            n_audio_state).

        Raises:
            SpecError: the spectrogram has another shape.
            ClosedError: it was closed.
        """
        if self._closed:
            raise ClosedError("the audio encoder is closed; load its plan again")
        tensors = self._tensors
        if x.shape != tensors[MEL].shape or not x.is_floating_point():
            raise SpecError(
                f"{self._plan_name} takes a spectrogram of {format_shape(tensors[MEL].shape)} in"
                f" floating point, found {format_shape(x.shape)} in {x.dtype}"
            )
        tensors[MEL].copy_(x)
        outputs = {name: tensors[name] for name in (FEATURES, EMBEDDINGS)}
        self._runner.run({MEL: tensors[MEL]}, outputs)
        features = tensors[FEATURES].to(x.device, x.dtype, copy=True)
        if not include_embeddings:
            return features
        return features, tensors[EMBEDDINGS].to("cpu", x.dtype).numpy().copy()

    def close(self) -> None:
        """Free the plan and its memory. Idempotent."""
        self._closed = True
        self._tensors = {}
        self._runner.close()
