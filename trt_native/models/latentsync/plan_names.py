"""Names of the plans in a folder that ``trt-native build-latentsync`` writes."""

from __future__ import annotations

__all__ = ["ALL", "DECODER", "ENCODER", "FULL", "SHALLOW", "WHISPER"]

FULL, SHALLOW = "unet.plan", "unet.shallow.plan"
ENCODER, DECODER = "vae.encoder.plan", "vae.decoder.plan"
WHISPER = "whisper.encoder.plan"
ALL = (FULL, SHALLOW, ENCODER, DECODER, WHISPER)
