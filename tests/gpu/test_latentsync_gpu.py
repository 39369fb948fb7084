"""The drop-in for LatentSync's U-Net with real plans of the golden U-Net, against PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import DATA, denoising
from helpers.backends import backend_or_skip
from helpers.denoising import InPyTorch, denoise, psnr, video, with_cached_modules
from helpers.metrics import relative_error

from trt_native import LatentSyncUNet, Plan, Session
from trt_native.errors import SpecError, UnsupportedError
from trt_native.models.latentsync import load_unet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.backend,
    pytest.mark.slow,
    pytest.mark.usefixtures("exact_fp32"),
]

DIMS = {"batch": "1:2:2", "frames": "1:4:16", "height": "8:16:32", "width": "8:16:32"}
# Not smaller: of 8 x 8 latents one pixel is left at the deepest level. With few frames its norms
# see so few values that FP16 says little about them, in PyTorch too.
SIZE, CHUNK = 16, 4


def command(*words):
    done = subprocess.run(
        [sys.executable, "-m", "trt_native", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "4"},
    )
    assert done.returncode == 0, done.stderr


def build(onnx):
    """A dynamic plan, FP16 inside and FP32 outside, as the options' defaults give it."""
    plan = onnx.with_suffix(".plan")
    dims = [f"--dim={name}={text}" for name, text in DIMS.items()]
    command("build", onnx, "-o", plan, "--no-cache", *dims)
    return plan


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """One plan of the golden U-Net, and DeepCache's two; built at the same time, or elsewhere."""
    built_elsewhere = os.environ.get("TRT_NATIVE_TEST_PLANS")
    if built_elsewhere:
        names = ("unet", "full", "full.shallow")
        one, *two = (Path(built_elsewhere) / f"{name}.plan" for name in names)
        return one, tuple(two)
    folder = tmp_path_factory.mktemp("plans")
    golden = (DATA / "unet_small.pt", "--config", "small")

    def single():
        command("export", "latentsync", *golden, "-o", folder / "unet.onnx")
        return build(folder / "unet.onnx")

    def pair():
        command("export", "latentsync", *golden, "--deepcache", "-o", folder / "full.onnx")
        with ThreadPoolExecutor() as pool:
            return tuple(pool.map(build, (folder / "full.onnx", folder / "full.shallow.onnx")))

    with ThreadPoolExecutor() as pool:
        one, two = pool.submit(single), pool.submit(pair)
        return one.result(), two.result()


def fresh():
    """The golden U-Net in PyTorch, in FP32 on the GPU."""
    return load_unet(config="small", checkpoint=DATA / "unet_small.pt")[0].cuda()


@pytest.fixture(scope="module")
def unet():
    return fresh()


@pytest.fixture(scope="module")
def replacement(plans):
    with LatentSyncUNet.from_plan(plans[0]) as loaded:
        yield loaded


@pytest.fixture
def cached(plans):
    with LatentSyncUNet.from_plans(*plans[1], interval=3) as loaded:
        yield loaded


def inputs(batch=2, frames=CHUNK, height=SIZE, width=SIZE, seed=0):
    random = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 13, frames, height, width, generator=random).cuda()
    return sample, torch.randn(batch * frames, denoising.TOKENS, 24, generator=random).cuda()


def close(found, expected, most=1e-2):
    assert found.shape == expected.shape
    error = relative_error(found.cpu(), expected.cpu())
    assert error <= most, error
    return error


def compare(found, expected, what):
    """Report, and require that the final latents are those of PyTorch."""
    found, expected = found.float().cpu(), expected.float().cpu()
    error, decibels = relative_error(found, expected), psnr(found, expected)
    print(f"{what}: relative L2 {error:.2e}, PSNR {decibels:.1f} dB")
    assert found.shape == expected.shape
    assert decibels >= 40


@pytest.mark.parametrize("guidance", [1.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_loop_of_latentsync(replacement, unet, guidance, dtype):
    # 20 steps for each of two chunks of 4 frames and a last one of 2.
    condition, audio = (tensor.cuda() for tensor in video(10, SIZE))
    expected = denoise(InPyTorch(unet), condition, audio, guidance=guidance, chunk=CHUNK)
    found = denoise(
        replacement, condition.to(dtype), audio.to(dtype), guidance=guidance, chunk=CHUNK
    )
    assert found.dtype is dtype
    assert found.device == condition.device
    compare(found, expected, f"{dtype}, guidance {guidance}")


@pytest.mark.parametrize("guidance", [1.5, 1.0])
def test_the_loop_with_deepcache(cached, unet, guidance):
    condition, audio = (tensor.cuda() for tensor in video(10, SIZE))
    timesteps = denoising.scheduler().timesteps
    reference = InPyTorch(with_cached_modules(fresh(), 3, timesteps))
    expected = denoise(reference, condition, audio, guidance=guidance, chunk=CHUNK)
    compare(
        denoise(cached, condition, audio, guidance=guidance, chunk=CHUNK), expected, "DeepCache"
    )
    every_step = denoise(InPyTorch(unet), condition, audio, guidance=guidance, chunk=CHUNK)
    assert relative_error(every_step.cpu(), expected.cpu()) > 1e-2


def test_deepcache_step_by_step(cached):
    timesteps = denoising.scheduler().timesteps
    reference = InPyTorch(with_cached_modules(fresh(), 3, timesteps))
    for chunk, frames in enumerate((4, 4, 2)):
        kept = None
        for index, step in enumerate(timesteps):
            sample, audio = inputs(2, frames, seed=100 * chunk + index)
            found = cached(sample, step.cuda(), encoder_hidden_states=audio).sample
            close(found, reference(sample, step.cuda(), audio).sample)
            features = cached._steps[0]._memory.tensors["deep_features"]
            if index % 3:
                assert torch.equal(features, kept), "a shallow step only reads them"
            else:
                assert kept is None or not torch.equal(features, kept)
                kept = features.clone()


@pytest.fixture
def devices():
    """Two GPUs, or one GPU twice."""
    return [0, min(1, torch.cuda.device_count() - 1)]


def test_a_batch_that_devices_share(plans, devices):
    with (
        LatentSyncUNet.from_plan(plans[0], devices=devices) as shared,
        LatentSyncUNet.from_plan(plans[0]) as alone,
    ):
        for seed in range(3):
            sample, audio = inputs(seed=seed)
            found = shared(sample, 501, audio).sample
            assert found.device == sample.device
            for i in range(2):
                rows = audio[i * CHUNK : (i + 1) * CHUNK]
                assert torch.equal(found[i : i + 1], alone(sample[i : i + 1], 501, rows).sample)


def test_the_loop_that_devices_share_with_deepcache(plans, devices, cached):
    condition, audio = (tensor.cuda() for tensor in video(10, SIZE))
    options = {"guidance": 1.5, "chunk": CHUNK}
    expected = denoise(cached, condition, audio, **options)
    with LatentSyncUNet.from_plans(*plans[1], interval=3, devices=devices) as shared:
        compare(denoise(shared, condition, audio, **options), expected, f"DeepCache on {devices}")
        steps = shared._steps
        features = [one._memory.tensors["deep_features"].device.index for one in steps]
    assert features == devices


def test_all_shapes_of_the_profile(replacement, unet):
    for shape in ((1, 1, 16, 16), (2, 16, 16, 16), (1, 3, 32, 9), (2, 2, 13, 24), (1, 1, 16, 16)):
        sample, audio = inputs(*shape)
        close(replacement(sample, 501, audio).sample, unet(sample, 501, audio))
    sample, audio = inputs(2, 17)
    with pytest.raises(SpecError, match=r"frames 1 to 16, .*dims frames=1:4:17"):
        replacement(sample, 501, audio)


def test_timesteps_and_audio_in_all_their_forms(replacement, unet):
    sample, audio = inputs()
    expected = unet(sample, 501, audio)
    first = replacement(sample, 501, audio).sample
    close(first, expected)
    on_gpu = torch.tensor(501, device="cuda")
    for step in (501.0, torch.tensor(501), on_gpu, on_gpu[None], on_gpu.repeat(2)):
        assert torch.equal(replacement(sample, step, audio).sample, first)
    by_frame = audio.reshape(2, CHUNK, *audio.shape[1:])
    (tupled,) = replacement(sample, 501, by_frame, return_dict=False)
    assert torch.equal(tupled, first)
    assert not torch.equal(replacement(sample, 1, audio).sample, first)
    on_cpu = replacement(sample.cpu(), 501, audio.cpu()).sample
    assert on_cpu.device.type == "cpu"
    assert torch.equal(on_cpu, first.cpu())


def test_many_steps_take_no_more_memory_and_change_nothing_returned(replacement):
    sample, audio = inputs()
    first = replacement(sample, 501, audio).sample
    kept = first.clone()
    for step in range(900, 890, -1):
        replacement(sample, step, audio)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    for step in range(890, 840, -1):
        replacement(sample, step, audio)
    torch.cuda.synchronize()
    assert before - torch.cuda.mem_get_info()[0] < 2**21
    assert torch.equal(first, kept)


def test_it_follows_torchs_stream(replacement, unet):
    """Inputs that come late on a busy stream are waited for, and so is the result."""
    sample, audio = inputs()
    expected = [unet(sample * scale, 501, audio) for scale in (1, 2, 3)]
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    found = []
    for scale, stream in enumerate(streams, start=1):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            scaled = sample * scale
            found.append(replacement(scaled, 501, audio).sample * 1)
    for stream, value, reference in zip(streams, found, expected, strict=True):
        stream.synchronize()
        close(value, reference)


def test_as_a_module(replacement, plans):
    assert replacement.device == torch.device("cuda", 0)
    assert replacement.dtype is torch.float32
    assert replacement.config.sample_size == 16
    assert replacement.add_audio_layer is True
    assert replacement.to("cuda").cuda().to(torch.device("cuda:0")).eval().training is False
    with pytest.raises(UnsupportedError, match="cannot be moved to cpu"):
        replacement.to("cpu")
    # Without a manifest, as a plan of trtexec.
    bare = Plan.load(plans[0], ignore_manifest=True)
    sample, audio = inputs()
    with LatentSyncUNet.from_plan(bare, config="small", device="cuda:0") as loaded:
        found = loaded(sample, 501, audio).sample
    assert torch.equal(found, replacement(sample, 501, audio).sample)


def test_the_pipeline_of_diffusers_takes_it(replacement):
    diffusers = pytest.importorskip("diffusers")

    class Pipeline(diffusers.DiffusionPipeline):
        def __init__(self, unet, scheduler):
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)

    pipeline = Pipeline(unet=replacement, scheduler=denoising.scheduler()).to("cuda")
    assert pipeline.unet is replacement
    assert pipeline.device == torch.device("cuda", 0)


def test_from_a_checkpoint_to_a_warm_plan_in_one_command(unet, tmp_path):
    plan, kept = tmp_path / "unet.plan", tmp_path / "unet.plan.cache"
    words = ["export", "latentsync", DATA / "unet_small.pt", "--config", "small", "--build", plan]
    words += ["--static", f"batch=2,frames={CHUNK},height={SIZE},width={SIZE}", "--no-cache"]
    if backend_or_skip().name != "rtx":
        command(*words)
        assert {file.name for file in tmp_path.iterdir()} == {"unet.plan", "unet.plan.json"}
        return
    command(*words, "--warm")
    assert {file.name for file in tmp_path.iterdir()} == {
        "unet.plan", "unet.plan.json", "unet.plan.cache",
    }  # fmt: skip
    content = kept.read_bytes()
    command("run", plan, "--random", 0)
    assert kept.read_bytes() == content, "the run compiled nothing"
    sample, audio = inputs()
    with Session(plan) as session:
        given = {"latents": sample, "encoder_hidden_states": audio}
        (found,) = session.run({**given, "timestep": torch.tensor([501]).cuda()}).values()
    with torch.inference_mode():
        close(found, unet(sample, 501, audio))
    assert kept.read_bytes() == content
