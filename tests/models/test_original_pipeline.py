"""The drop-in in LatentSync's own pipeline, compared with LatentSync's own U-Net in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import DATA
from helpers.denoising import (
    FRACTIONAL_TIMESTEPS,
    SCHEDULERS,
    deepcache_drop_in,
    diffusers_scheduler,
    drop_in,
)
from helpers.metrics import relative_error
from helpers.original_latentsync import make_pipeline, original_modules, run_pipeline

from trt_native.models.latentsync import UNetConfig, load_checkpoint, load_unet

pytestmark = pytest.mark.usefixtures("one_thread")
CHECKPOINT = DATA / "unet_small.pt"
FRAMES = 5  # two chunks of two, and a last one of one


@pytest.fixture
def modules(monkeypatch):
    return original_modules(monkeypatch)


@pytest.fixture
def original(modules):
    config = json.loads((DATA / "unet_small.json").read_text())
    return modules[0].UNet3DConditionModel.from_pretrained(config, str(CHECKPOINT))[0].eval()


@pytest.fixture(scope="module")
def ours():
    return load_unet(config="small", checkpoint=CHECKPOINT)[0]


def both(modules, tmp_path, original, replacement, name, prepare=lambda pipeline: None, **options):
    found = []
    for unet in (original, replacement):
        pipeline = make_pipeline(modules[1], unet, diffusers_scheduler(name))
        if unet is original:
            prepare(pipeline)
        found.append(run_pipeline(pipeline, tmp_path, **options))
    (latents, video), (found_latents, found_video) = found
    errors = relative_error(found_latents, latents), relative_error(found_video, video)
    print(f"{name} {options}: latents {errors[0]:.1e}, video {errors[1]:.1e}")
    return max(errors)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_guidance(modules, tmp_path, original, ours, guidance):
    options = {"frames": FRAMES, "guidance": guidance}
    assert both(modules, tmp_path, original, drop_in(ours), "DDIM", **options) <= 1e-6


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(modules, tmp_path, original, ours, name):
    kind = "float32" if name in FRACTIONAL_TIMESTEPS else "int64"
    replacement = drop_in(ours, timestep=kind)
    options = {"frames": 3, "steps": 5}
    assert both(modules, tmp_path, original, replacement, name, **options) <= 1e-6


@pytest.mark.parametrize(
    ("name", "interval"), [*((name, 3) for name in SCHEDULERS), ("DDIM", 2), ("PNDM", 2)]
)
def test_deepcache(modules, tmp_path, original, ours, name, interval):
    helpers = pytest.importorskip("DeepCache")
    kind = "float32" if name in FRACTIONAL_TIMESTEPS else "int64"
    replacement, _, shallow = deepcache_drop_in(ours, interval, timestep=kind)

    def enabled(pipeline):
        helper = helpers.DeepCacheSDHelper(pipe=pipeline)
        helper.set_params(cache_interval=interval, cache_branch_id=0)
        helper.enable()

    options = {"frames": 3, "steps": 10}
    assert both(modules, tmp_path, original, replacement, name, enabled, **options) <= 1e-6
    assert shallow.runs


@pytest.mark.parametrize("part", ["down_blocks", "motion_modules"])
def test_a_checkpoint_without_motion_modules(modules, tmp_path, part):
    """The original loads it with strict=False, into motion modules that start as zeros."""
    state = {
        name: tensor
        for name, tensor in load_checkpoint(CHECKPOINT).state_dict.items()
        if not (name.startswith(part) or part == "motion_modules") or "motion_modules" not in name
    }
    path = tmp_path / "unet.pt"
    torch.save({"state_dict": state}, path)
    config = json.loads((DATA / "unet_small.json").read_text())
    original = modules[0].UNet3DConditionModel.from_pretrained(config, str(path))[0].eval()
    ours = load_unet(config="small", checkpoint=path)[0]
    assert ours.config.use_motion_module == (part == "down_blocks")
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 13, 3, 16, 24, generator=random)
    audio = torch.randn(6, 50, 24, generator=random)
    with torch.inference_mode():
        expected = original(latents, 7, audio).sample
        assert relative_error(ours(latents, 7, audio), expected) <= 1e-5


def test_the_released_configurations(modules):
    folder = Path(modules[0].__file__).parents[2] / "configs/unet"
    for name, preset in (("stage2", "latentsync-1.5"), ("stage2_512", "latentsync-1.6")):
        assert UNetConfig.load(folder / f"{name}.yaml") == UNetConfig.load(preset)
    config = json.loads((DATA / "unet_small.json").read_text())
    with torch.device("meta"):
        original = modules[0].UNet3DConditionModel.from_config(config)
    ours = drop_in(load_unet(config="small", random_seed=0)[0])
    assert ours.num_parameters() == original.num_parameters()
