"""All plans in a pipeline, with PyTorch in their places, against the pipeline's own modules."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT
from helpers.denoising import TorchStepRunner, plan_tensors
from helpers.made_plans import GOLDEN, make_plan, tensor

from trt_native import LatentSyncPipelineEngines, LatentSyncUNet, LatentSyncVAE
from trt_native.errors import ClosedError, PlanError, SpecError, UnsupportedError
from trt_native.models.latentsync import (
    DeepCacheFull,
    DeepCacheShallow,
    UNetConfig,
    engines,
)
from trt_native.models.latentsync.whisper import WhisperConfig, load_whisper

pytest.importorskip("diffusers")
from helpers.autoencoders import SMALL, diffusers_vae, runners

UNET = UNetConfig.load("small")
# A stream of its own takes CUDA; tests/models/test_side_stream.py has one without.
from_folder = functools.partial(LatentSyncPipelineEngines.from_folder, overlap=False)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def loop():
    """The pipeline's loop, of scripts/bench."""
    folder = str(ROOT / "scripts" / "bench")
    names = ("latentsync_loop", "naive_unet")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("latentsync_loop")
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture
def theirs(unet, vae):
    """A pipeline with modules of PyTorch."""
    module = diffusers_vae()
    module.load_state_dict(vae.state_dict())
    return SimpleNamespace(
        vae=module,
        unet=lambda sample, step, encoder_hidden_states: (
            unet(sample, step, encoder_hidden_states).clone(),
        ),
    )


def step_runner(kind, unet, name):
    step = kind(unet.config).eval().requires_grad_(False)
    step.load_state_dict(unet.state_dict())
    which = {DeepCacheFull: "full", DeepCacheShallow: "shallow"}[kind]
    return TorchStepRunner(name, step, plan_tensors(which, frames="1:2:16", size="8:16:16"))


def made(unet, vae, interval=1):
    full = step_runner(DeepCacheFull, unet, "unet.plan")
    shallow = step_runner(DeepCacheShallow, unet, "unet.shallow.plan") if interval > 1 else None
    return LatentSyncPipelineEngines(
        LatentSyncUNet(full, shallow, config=UNET, interval=interval),
        LatentSyncVAE(*runners(vae, frames="2", size=(16, 16)), config=vae.config),
    )


def run(loop, pipeline, unet=None, steps=4, guidance=1.5):
    scheduler = loop.SCHEDULERS["DDIM"]()
    scheduler.set_timesteps(steps)
    video = loop.synthetic_video(5, 128, UNET.cross_attention_dim)
    # Two chunks of 2 frames, and a last one of 1.
    options = {"chunk": 2, "guidance": guidance, "device": torch.device("cpu")}
    return loop.run_chunks(
        pipeline.vae, unet or pipeline.unet, scheduler, video, dtype=torch.float32, **options
    )


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_a_video_through_the_installed_plans(loop, theirs, unet, vae, guidance):
    expected = run(loop, theirs, guidance=guidance)
    made(unet, vae).install(theirs)
    assert isinstance(theirs.vae, LatentSyncVAE)
    found = run(loop, theirs, guidance=guidance)
    assert found.shape == (5, 3, 128, 128)
    assert (found.int() - expected.int()).abs().max() <= 1


def test_a_video_with_deepcache(loop, theirs, unet, vae):
    scheduler = loop.SCHEDULERS["DDIM"]()
    scheduler.set_timesteps(4)
    naive = sys.modules["naive_unet"].NaiveUNet(UNET).eval().requires_grad_(False)
    naive.load_state_dict(unet.state_dict())
    skipping = loop.SkippingUNet(naive, scheduler.timesteps, 3)
    expected = run(loop, theirs, unet=skipping)
    every_step = run(loop, theirs)
    assert (expected.int() - every_step.int()).abs().max() > 1, "skipping does matter"
    made(unet, vae, interval=3).install(theirs)
    assert (run(loop, theirs).int() - expected.int()).abs().max() <= 1


def test_the_pipelines_factors_are_kept(theirs, unet, vae):
    theirs.vae.config.scaling_factor = 0.5
    theirs.vae.config.shift_factor = 0
    parts = made(unet, vae)
    parts.install(theirs)
    assert theirs.vae.config.scaling_factor == 0.5
    assert theirs.vae.config.shift_factor == 0


def test_a_vae_of_another_kind(theirs, unet, vae):
    before = theirs.unet
    theirs.vae = diffusers_vae(latent_channels=16)
    with pytest.raises(SpecError, match="has latent_channels 16, the plans' has 4"):
        made(unet, vae).install(theirs)
    with pytest.raises(SpecError, match="has latent_channels None"):
        made(unet, vae).install(SimpleNamespace(unet=None))
    assert theirs.unet is before


def test_the_name_of_the_unet_in_earlier_code(theirs, unet, vae):
    theirs.denoising_unet = vars(theirs).pop("unet")
    parts = made(unet, vae)
    parts.install(theirs)
    assert theirs.denoising_unet is parts.unet
    assert not hasattr(theirs, "unet")


def test_a_pipeline_without_a_unet(theirs, unet, vae):
    del theirs.unet
    before = theirs.vae
    with pytest.raises(SpecError, match="no U-Net: neither unet nor denoising_unet"):
        made(unet, vae).install(theirs)
    assert theirs.vae is before


def test_timesteps_stay_on_the_host(loop, theirs, unet, vae):
    theirs.scheduler, expected = (loop.SCHEDULERS["DPM++"]() for _ in range(2))
    made(unet, vae).install(theirs)
    theirs.scheduler.set_timesteps(7, device="meta")
    expected.set_timesteps(7)
    assert theirs.scheduler.timesteps.equal(expected.timesteps)
    theirs.scheduler.set_timesteps(5, "meta")
    assert theirs.scheduler.timesteps.is_cpu


def test_without_a_vae(theirs, unet, vae):
    own = theirs.vae
    LatentSyncPipelineEngines(made(unet, vae).unet).install(theirs)
    assert theirs.vae is own
    assert isinstance(theirs.unet, LatentSyncUNet)


def test_it_closes_all(unet, vae):
    with made(unet, vae) as parts:
        pass
    with pytest.raises(ClosedError):
        parts.vae.decode(torch.zeros(1, 4, 16, 16))
    with pytest.raises(ClosedError):
        parts.unet(torch.zeros(1, 13, 1, 16, 16), 1, torch.zeros(1, 50, 24))


def noted(config, seed="0"):
    """Origin of a model's weights, as an export notes it."""
    return {"trt_native.config": json.dumps(config.to_dict()), "trt_native.random_seed": seed}


def plan_of(path, tensors, metadata):
    make_plan(path, tensors, model={**GOLDEN["model"], "metadata": metadata})


WHISPER = WhisperConfig(n_mels=8, n_audio_ctx=12, n_audio_state=16, n_audio_head=2, n_audio_layer=2)


def whisper_runner():
    tensors = [
        tensor("mel", "input", "float32", shape=(1, 8, 24)),
        tensor("features", "output", "float32", shape=(1, 12, 16)),
        tensor("embeddings", "output", "float32", shape=(1, 3, 12, 16)),
    ]
    module = load_whisper(config=WHISPER, random_seed=0)[0]
    return TorchStepRunner("whisper.encoder.plan", module, tensors)


class TestFolder:
    """Loading, with PyTorch in the engines' places."""

    @pytest.fixture
    def folder(self, tmp_path, unet, vae, monkeypatch):
        encoder, decoder = runners(vae, size=(16, 16))
        made_runners = {
            "unet.plan": step_runner(DeepCacheFull, unet, "unet.plan"),
            "unet.shallow.plan": step_runner(DeepCacheShallow, unet, "unet.shallow.plan"),
            "vae.encoder.plan": encoder,
            "vae.decoder.plan": decoder,
        }
        for name, runner in made_runners.items():
            config = UNET if name.startswith("unet") else SMALL
            plan_of(tmp_path / name, runner.tensors, noted(config))
        opened = []

        class Opened:
            def __init__(self, *args, **kwargs):
                self.args, self.closed = args, False
                self.plan = args[0]
                opened.append(self)

            def close(self):
                self.closed = True

        def runner_of(engine, memory):
            made_runners[engine.plan.path.name].memory = memory
            return made_runners[engine.plan.path.name]

        monkeypatch.setattr(engines, "gpu_ordinals", lambda *_: [0])
        monkeypatch.setattr(engines, "Engine", Opened)
        monkeypatch.setattr(engines, "ActivationMemory", Opened)
        monkeypatch.setattr(engines, "EngineRunner", runner_of)
        self.runners, self.opened = made_runners, opened
        return tmp_path

    def test_all_plans(self, folder, loop, theirs):
        expected = run(loop, theirs)
        parts = from_folder(folder, interval=1)
        parts.install(theirs)
        assert (run(loop, theirs).int() - expected.int()).abs().max() <= 1
        (memory,) = {runner.memory for n, runner in self.runners.items() if "shallow" not in n}
        assert [engine.plan.path.name for engine in memory.args] == [
            "unet.plan",
            "vae.encoder.plan",
            "vae.decoder.plan",
        ]
        parts.close()
        assert memory.closed

    def test_whispers_encoder(self, folder, theirs):
        runner = whisper_runner()
        self.runners["whisper.encoder.plan"] = runner
        origin = {"trt_native.config": json.dumps(dataclasses.asdict(WHISPER))}
        plan_of(folder / "whisper.encoder.plan", runner.tensors, origin)
        parts = from_folder(folder)
        with pytest.raises(SpecError, match="the pipeline's Whisper has n_mels None, the plan's"):
            parts.install(theirs)
        theirs.audio_encoder = SimpleNamespace(model=SimpleNamespace(dims=WHISPER, encoder=None))
        parts.install(theirs)
        assert theirs.audio_encoder.model.encoder is parts.whisper
        assert theirs.audio_encoder.model.encoder(torch.zeros(1, 8, 24)).shape == (1, 12, 16)
        parts.close()
        with pytest.raises(ClosedError):
            parts.whisper(torch.zeros(1, 8, 24))

    def test_deepcache_where_its_plan_is_there(self, folder):
        parts = from_folder(folder)
        assert parts.unet._steps[0]._schedule._interval == 3
        (folder / "unet.shallow.plan").unlink()
        assert from_folder(folder).unet._steps[0]._schedule is None
        with pytest.raises(PlanError, match=r"lacks unet\.shallow\.plan; .* build-latentsync"):
            from_folder(folder, interval=2)

    def test_without_a_vae(self, folder):
        (folder / "vae.encoder.plan").unlink()
        with pytest.raises(PlanError, match=r"lacks vae\.encoder\.plan"):
            from_folder(folder)
        (folder / "vae.decoder.plan").unlink()
        assert from_folder(folder).vae is None

    def test_plans_of_different_models(self, folder):
        tensors = self.runners["vae.decoder.plan"].tensors
        plan_of(folder / "vae.decoder.plan", tensors, noted(SMALL, seed="1"))
        with pytest.raises(SpecError, match=r"vae\.encoder\.plan and vae\.decoder\.plan are of"):
            from_folder(folder)
        assert all(opened.closed for opened in self.opened)

    def test_a_plan_of_something_else(self, folder):
        tensors = self.runners["unet.plan"].tensors
        plan_of(folder / "unet.plan", tensors, {})
        with pytest.raises(PlanError, match=r"unet\.plan: no configuration in its manifest"):
            from_folder(folder)
        plan_of(folder / "unet.plan", tensors, {"trt_native.config": "[]"})
        with pytest.raises(PlanError, match=r"unet\.plan: the configuration in its manifest"):
            from_folder(folder, interval=1)

    def test_no_gpu(self, folder, monkeypatch):
        from trt_native.models.latentsync.pipeline import gpu_ordinals

        monkeypatch.setattr(engines, "gpu_ordinals", gpu_ordinals)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UnsupportedError, match="finds no GPU"):
            from_folder(folder)
