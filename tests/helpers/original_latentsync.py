"""LatentSync's own U-Net and pipeline from a checkout, without video, audio and face detection."""

from __future__ import annotations

import importlib
import os
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch

CHECKOUT = "TRT_NATIVE_LATENTSYNC"
TOKENS, FEATURES = 50, 24


def original_modules(monkeypatch):
    """Import ``latentsync.models.unet`` and ``latentsync.pipelines.lipsync_pipeline``.

    Skips the test where there is no checkout of github.com/bytedance/LatentSync in the folder
    that TRT_NATIVE_LATENTSYNC names.
    """
    folder = checkout()
    for name in ("diffusers", "einops"):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "latentsync"]:
        monkeypatch.delitem(sys.modules, name)
    for name, contents in _stand_ins().items():
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)  # importlib.util.find_spec needs one
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    unet = importlib.import_module("latentsync.models.unet")
    pipeline = importlib.import_module("latentsync.pipelines.lipsync_pipeline")
    monkeypatch.setattr(pipeline.subprocess, "run", lambda *_args, **_options: None)
    return unet, pipeline


def original_audio_encoder(monkeypatch):
    """LatentSync's ``AudioEncoder``, without what its file imports for text."""
    folder = checkout()
    package = "original_whisper"
    parent = types.ModuleType(package)
    parent.__path__ = [str(folder / "latentsync/whisper/whisper")]
    monkeypatch.setitem(sys.modules, package, parent)
    for name, contents in (
        ("transcribe", {"transcribe": None}),
        ("decoding", {"detect_language": None, "decode": None}),
    ):
        module = types.ModuleType(f"{package}.{name}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, f"{package}.model", raising=False)
    return importlib.import_module(f"{package}.model").AudioEncoder


def checkout(variable=CHECKOUT, repository="bytedance/LatentSync"):
    """The folder of a checkout that an environment variable names; skips the test without it."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"set {variable} to a checkout of github.com/{repository}")
    if not (Path(folder) / "latentsync/pipelines/lipsync_pipeline.py").is_file():
        pytest.fail(f"{variable}={folder}: no latentsync/pipelines/lipsync_pipeline.py there")
    return Path(folder)


def _stand_ins():
    resize = types.SimpleNamespace(resize=lambda face, **_options: face)
    transforms = types.ModuleType("torchvision.transforms")
    transforms.functional = resize
    transforms.InterpolationMode = types.SimpleNamespace(BICUBIC="bicubic")
    return {
        "cv2": {},
        "soundfile": {"write": lambda *_arguments: None},
        "torchvision": {"transforms": transforms},
        "torchvision.transforms": vars(transforms),
        "latentsync.utils.util": {
            "zero_rank_log": lambda *_arguments: None,
            "check_ffmpeg_installed": lambda: None,
            "read_audio": lambda _path: torch.zeros(16000),
            "read_video": lambda path, **_options: _frames(int(path)),
            "write_video": lambda _path, frames, **_options: _WRITTEN.append(frames),
        },
        "latentsync.utils.image_processor": {
            "ImageProcessor": _ImageProcessor,
            "load_fixed_mask": lambda *_arguments: None,
        },
        "latentsync.whisper.audio2feature": {"Audio2Feature": _AudioEncoder},
    }


_WRITTEN: list[np.ndarray] = []


def _frames(count):
    random = np.random.default_rng(count)
    return random.uniform(-1, 1, (count, 3, _ImageProcessor.size, _ImageProcessor.size))


class _ImageProcessor:
    """Takes every frame for a face that fills it, and masks the lower half."""

    size = 128

    def __init__(self, _resolution, **_options):
        self.restorer = types.SimpleNamespace(restore_img=lambda _frame, face, _matrix: face)

    def affine_transform(self, frame):
        return torch.from_numpy(frame).float(), (0, 0, self.size, self.size), None

    def prepare_masks_and_masked_images(self, faces, **_options):
        masks = torch.ones(len(faces), 1, self.size, self.size)
        masks[:, :, self.size // 2 :] = 0
        return faces, faces * masks, masks


class _AudioEncoder:
    def audio2feat(self, path):
        random = torch.Generator().manual_seed(0)
        return torch.randn(int(path), TOKENS, FEATURES, generator=random)

    def feature2chunks(self, feature_array, **_options):
        return list(feature_array)


def make_pipeline(module, unet, scheduler):
    """LatentSync's pipeline around a U-Net, with a small VAE of random weights."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
    ).eval()
    vae.config.scaling_factor = 0.18215
    vae.config.shift_factor = 0
    made = module.LipsyncPipeline(
        vae=vae, audio_encoder=_AudioEncoder(), unet=unet, scheduler=scheduler
    )
    made.set_progress_bar_config(disable=True)
    return made.to("cpu")


def run_pipeline(pipeline, tmp_path, *, frames, chunk=2, steps=20, guidance=1.5):
    """The latents after each chunk's last step, and the video, (frames, 3, height, width).

    The pipeline sets the timesteps once for all chunks, which suits DDIM alone: schedulers that
    count their steps would go on after the last one, so they are set again after each chunk.
    """
    latents = []

    def keep(step, _timestep, found):
        if step == len(pipeline.scheduler.timesteps) - 1:
            latents.append(found.clone())
            pipeline.scheduler.set_timesteps(steps)

    _WRITTEN.clear()
    torch.manual_seed(7)
    pipeline(
        video_path=str(frames),
        audio_path=str(frames),
        video_out_path="out.mp4",
        num_frames=chunk,
        height=_ImageProcessor.size,
        width=_ImageProcessor.size,
        num_inference_steps=steps,
        guidance_scale=guidance,
        weight_dtype=torch.float32,
        temp_dir=str(tmp_path / "temp"),
        callback=keep,
    )
    return torch.cat(latents, dim=2), torch.from_numpy(_WRITTEN[0])
