"""LatentSync's U-Net and VAE as real plans of tiny models, in its loop, against PyTorch."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import DATA, ROOT, denoising
from helpers.denoising import InPyTorch, with_cached_modules
from helpers.metrics import relative_error

from trt_native import BuildConfig, Engine, LatentSyncPipelineEngines, build_plan
from trt_native.errors import SpecError
from trt_native.models.latentsync import load_unet
from trt_native.models.latentsync.plan_module import EngineRunner
from trt_native.models.latentsync.whisper import load_whisper
from trt_native.models.latentsync.whisper_export import export_whisper
from trt_native.models.latentsync.whisper_pipeline import LatentSyncWhisperEncoder

pytest.importorskip("diffusers")
from helpers.autoencoders import diffusers_vae

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.backend,
    pytest.mark.slow,
    pytest.mark.usefixtures("exact_fp32"),
]

SIZE, LATENTS, CHUNK = 128, 16, 4
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """diffusers' VAE in FP32, and the folder that it saved itself to."""
    torch.manual_seed(4)
    module, folder = diffusers_vae(), tmp_path_factory.mktemp("vae")
    module.save_pretrained(folder)
    return module.to(GPU), folder


@pytest.fixture(scope="module")
def folder(vae, tmp_path_factory):
    """All plans, in FP16, the VAE for 4 frames at a time."""
    plans = tmp_path_factory.mktemp("plans")
    words = ("build-latentsync", DATA / "unet_small.pt", "--config", "small", "--vae", vae[1])
    done = subprocess.run(
        [sys.executable, "-m", "trt_native", *map(str, words), "--no-cache", "-o", str(plans)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "4"},
    )
    assert done.returncode == 0, done.stderr
    return plans


@pytest.fixture(scope="module")
def loop():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts" / "bench"))
        yield importlib.import_module("latentsync_loop")
        for name in ("latentsync_loop", "naive_unet"):
            sys.modules.pop(name, None)


def unet():
    return load_unet(config="small", checkpoint=DATA / "unet_small.pt")[0].to(GPU)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(GPU)


def close(found, expected, most):
    assert found.shape == expected.shape
    error = relative_error(found.float().cpu(), expected.float().cpu())
    print(f"relative L2 {error:.2e}")
    assert error <= most


@pytest.mark.parametrize("overlap", [False, True])
class TestVae:
    @pytest.fixture
    def engines(self, folder, overlap):
        with LatentSyncPipelineEngines.from_folder(folder, overlap=overlap) as loaded:
            yield loaded

    @pytest.mark.parametrize("frames", [1, 4, 7, 16])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_encode_and_decode(self, engines, vae, frames, dtype):
        image, latents = randn(frames, 3, SIZE, SIZE), randn(frames, 4, LATENTS, LATENTS)
        found = engines.vae.encode(image.to(dtype)).latent_dist
        assert found.mean.dtype is dtype
        close(found.parameters, vae[0].encode(image).latent_dist.parameters, 1e-2)
        found = engines.vae.decode(latents.to(dtype)).sample
        assert found.dtype is dtype
        close(found, vae[0].decode(latents).sample, 2e-2)

    def test_many_calls_whose_results_are_read_late(self, engines, vae):
        # The allocator would give a decoder's input or output to the next call if it were let.
        chunks = [randn(5, 4, LATENTS, LATENTS, seed=i) for i in range(6)]
        found = []
        for chunk in chunks:
            found.append(engines.vae.decode(chunk * 1.0).sample * 0.5 + 1)
            engines.vae.encode(randn(4, 3, SIZE, SIZE))
        for image, chunk in zip(found, chunks, strict=True):
            close(image, vae[0].decode(chunk).sample * 0.5 + 1, 2e-2)


def test_whispers_encoder(tmp_path):
    """Whisper tiny with random weights, a segment of 30 s in FP16."""
    module = load_whisper(random_seed=1)[0].to(GPU)
    export_whisper(tmp_path / "whisper.onnx", random_seed=1, precision="fp16")
    plan = build_plan(tmp_path / "whisper.onnx", BuildConfig())
    mel = randn(1, 80, 3000)
    with torch.no_grad():
        features, embeddings = module(mel)
    with LatentSyncWhisperEncoder(EngineRunner(Engine(plan)), config=module.config) as encoder:
        found = encoder(mel.half(), include_embeddings=True)
        again = encoder(mel.half(), include_embeddings=True)
    close(found[0], features, 5e-3)
    close(torch.from_numpy(found[1]), embeddings, 5e-3)
    assert torch.equal(found[0], again[0])


def run(loop, parts, guidance, frames=10, unet=None):
    scheduler = loop.SCHEDULERS["DDIM"]()
    scheduler.set_timesteps(20, device=GPU)
    video = loop.synthetic_video(frames, SIZE, 24)
    options = {"chunk": CHUNK, "guidance": guidance, "device": GPU, "dtype": torch.float32}
    return loop.run_chunks(parts.vae, unet or parts.unet, scheduler, video, **options)


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_video_with_a_short_last_chunk(loop, folder, vae, interval, guidance, overlap):
    timesteps = denoising.scheduler().timesteps
    module = InPyTorch(with_cached_modules(unet(), interval, timesteps))
    pipeline = SimpleNamespace(vae=vae[0], unet=module)
    expected = run(loop, pipeline, guidance)
    options = {"interval": interval, "overlap": overlap}
    with LatentSyncPipelineEngines.from_folder(folder, **options) as engines:
        engines.install(pipeline)
        assert pipeline.unet is engines.unet
        found = run(loop, pipeline, guidance)
        again = run(loop, pipeline, guidance)
    difference = (found.int() - expected.int()).abs()
    print(
        f"images differ by {difference.float().mean():.3f} on average, {difference.max()} at most"
    )
    assert difference.float().mean() <= 1
    assert torch.equal(found, again)


def test_lengths_that_compile_nothing(loop, folder, vae):
    pipeline = SimpleNamespace(vae=vae[0], unet=InPyTorch(unet()))
    expected = run(loop, pipeline, 1.5)
    options = {"interval": 1, "kernel_specialization": "none"}
    with LatentSyncPipelineEngines.from_folder(folder, **options) as engines:
        engines.install(pipeline)
        found = run(loop, pipeline, 1.5)
    assert (found.int() - expected.int()).abs().float().mean() <= 1


def test_resolutions_that_were_not_built(folder):
    with LatentSyncPipelineEngines.from_folder(folder) as engines:
        with pytest.raises(SpecError, match=r"takes image of 4x3x128x128"):
            engines.vae.encode(randn(4, 3, 64, 64))
        assert engines.vae.encode(randn(4, 3, SIZE, SIZE)).latent_dist.mean.shape[0] == 4
