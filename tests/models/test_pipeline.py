"""The drop-in for LatentSync's U-Net, with PyTorch and onnx.reference in the plan's place."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from helpers import DATA, denoising
from helpers.denoising import (
    FRACTIONAL_TIMESTEPS,
    SCHEDULERS,
    InPyTorch,
    OnnxStepRunner,
    TorchStepRunner,
    deepcache_drop_in,
    denoise,
    drop_in,
    of_kind,
    plan_tensors,
    psnr,
    video,
    with_cached_modules,
)
from helpers.made_plans import make_plan, tensor
from helpers.metrics import relative_error

from trt_native import LatentSyncUNet
from trt_native.errors import ClosedError, CudaError, PlanError, SpecError, UnsupportedError
from trt_native.models.latentsync import (
    UNet,
    UNetConfig,
    load_unet,
    pipeline,
    unet_steps,
)

SMALL = UNetConfig.load("small")
AUDIO = (denoising.TOKENS, 24)
pytestmark = pytest.mark.usefixtures("one_thread")


def inputs(batch=1, frames=2, height=8, width=8, seed=0, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 13, frames, height, width, generator=random)
    return sample.to(dtype), torch.randn(batch * frames, *AUDIO, generator=random).to(dtype)


class TestTheLoopOfLatentSync:
    @pytest.mark.parametrize("guidance", [1.5, 1.0])
    def test_in_one_type(self, unet, guidance):
        # Two chunks of 2 frames, and a last one of 1.
        condition, audio = video(5)
        options = {"guidance": guidance, "steps": 8}
        expected = denoise(InPyTorch(unet), condition, audio, **options)
        found = denoise(drop_in(unet), condition, audio, **options)
        assert found.shape == (1, 4, 5, 8, 8)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("schedule", SCHEDULERS)
    def test_schedulers(self, unet, schedule):
        pytest.importorskip("diffusers")
        condition, audio = video(2)
        options = {"schedule": schedule, "steps": 5, "guidance": 1}
        kind = "float32" if schedule in FRACTIONAL_TIMESTEPS else "int64"
        expected = denoise(InPyTorch(unet), condition, audio, **options)
        found = denoise(drop_in(unet, timestep=kind), condition, audio, **options)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if kind != "int64":
            with pytest.raises(SpecError, match="is not an integer"):
                denoise(drop_in(unet), condition, audio, **options)

    def test_an_fp16_pipeline_on_a_plan_with_fp32_inputs(self, unet):
        condition, audio = video(2)
        expected = denoise(InPyTorch(unet), condition, audio)
        found = denoise(drop_in(unet), condition.half(), audio.half())
        assert found.dtype is torch.float16
        print(f"PSNR {psnr(found, expected):.1f} dB")
        assert psnr(found, expected) >= 40

    @pytest.mark.slow
    def test_onnx_in_the_plans_place(self, unet, deepcache_onnx):
        full, shallow, _ = deepcache_onnx
        condition, audio = video(2)
        one = LatentSyncUNet(OnnxStepRunner(full, plan_tensors("full")), config=SMALL)
        found, expected = (denoise(u, condition, audio) for u in (one, InPyTorch(unet)))
        # Of 8 x 8 latents one pixel is left at the deepest level: its norms divide what is next to
        # nothing by as little, and 20 steps magnify what two ways of rounding make of that.
        assert relative_error(found, expected) <= 5e-3

        both = LatentSyncUNet(
            OnnxStepRunner(full, plan_tensors("full")),
            OnnxStepRunner(shallow, plan_tensors("shallow")),
            config=SMALL,
            interval=3,
        )
        timesteps = denoising.scheduler().timesteps
        reference = with_cached_modules(of_kind(UNet, unet), 3, timesteps)
        found, cached = (denoise(u, condition, audio) for u in (both, InPyTorch(reference)))
        assert relative_error(found, cached) <= 5e-3
        assert relative_error(cached, expected) > 1e-2, "the steps that were skipped do matter"

    def test_the_pipeline_of_diffusers_takes_it(self, unet):
        diffusers = pytest.importorskip("diffusers")

        class Pipeline(diffusers.DiffusionPipeline):
            def __init__(self, unet, scheduler):
                super().__init__()
                self.register_modules(unet=unet, scheduler=scheduler)

            def __call__(self):
                was_training = self.unet.training
                self.unet.eval()
                latents = denoise(self.unet, condition, audio)
                if was_training:
                    self.unet.train()
                return latents

        condition, audio = video(2)
        replacement = drop_in(unet)
        pipeline = Pipeline(unet=replacement, scheduler=denoising.scheduler())
        assert pipeline.to("cpu").unet is replacement
        assert pipeline.device == torch.device("cpu")
        assert pipeline.dtype is torch.float32
        assert not hasattr(pipeline.unet.config, "_diffusers_version")
        assert pipeline.unet.config.sample_size * 8 == 128
        expected = denoise(InPyTorch(unet), condition, audio)
        torch.testing.assert_close(pipeline(), expected, rtol=1e-5, atol=1e-5)
        second = Pipeline(unet=unet, scheduler=denoising.scheduler())
        second.unet = replacement
        assert second.components["unet"] is replacement

    def test_our_scheduler_is_that_of_diffusers(self):
        pytest.importorskip("diffusers")
        theirs, ours = denoising.scheduler(), denoising.OwnDdim(denoising.STEPS)
        assert type(theirs).__name__ == "DDIMScheduler"
        assert [int(t) for t in theirs.timesteps] == [int(t) for t in ours.timesteps]
        latents = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        for step in theirs.timesteps:
            noise = torch.sin(17 * latents)
            expected = theirs.step(noise, step, latents)[0]
            torch.testing.assert_close(ours.step(noise, step, latents)[0], expected)
            latents = expected


class TestDevices:
    """Batches that several devices share: here all of them are the CPU."""

    @pytest.fixture
    def halves(self, unet):
        """Two devices with plans of a batch of one, and their runners."""
        runners = [TorchStepRunner("unet.plan", unet, plan_tensors(batch="1")) for _ in range(2)]
        first, second = runners
        return LatentSyncUNet(first, config=SMALL, others=[(second, None)]), runners

    @pytest.mark.parametrize("by_batch", [False, True])
    @pytest.mark.parametrize("timestep", [7, torch.tensor(7), torch.tensor([7, 7])])
    def test_each_computes_its_share(self, unet, halves, timestep, by_batch):
        replacement, runners = halves
        sample, audio = inputs(batch=2)
        given = audio.unflatten(0, (2, 2)) if by_batch else audio
        found = replacement(sample, timestep, given).sample
        for entry in range(2):
            expected = unet(sample[entry : entry + 1], 7, audio[2 * entry : 2 * entry + 2])
            assert torch.equal(found[entry : entry + 1], expected)
        assert [len(runner.runs) for runner in runners] == [1, 1]

    def test_the_loop_of_latentsync(self, unet, halves):
        condition, audio = video(3)
        expected = denoise(InPyTorch(unet), condition, audio, guidance=1.5, steps=5)
        found = denoise(halves[0], condition, audio, guidance=1.5, steps=5)
        assert relative_error(found, expected) <= 1e-4  # batches of two are summed in another order

    def test_deepcache_keeps_each_ones_features(self, unet):
        one, full, shallow = deepcache_drop_in(unet)
        other = deepcache_drop_in(unet, batch="1")[1:]
        both = LatentSyncUNet(*deepcache_drop_in(unet, batch="1")[1:], config=SMALL, interval=3,
                              others=[other])  # fmt: skip
        condition, audio = video(4)
        options = {"guidance": 1.5, "steps": 7}
        expected, found = (denoise(u, condition, audio, **options) for u in (one, both))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert [len(r.runs) for r in other] == [len(full.runs), len(shallow.runs)]
        assert other[0].runs[0][1]["deep_features"] is other[1].runs[0][0]["deep_features"]

    def test_a_batch_of_one_is_the_first_ones(self, unet):
        first, second = (deepcache_drop_in(unet, batch="1")[1:] for _ in range(2))
        replacement = LatentSyncUNet(*first, config=SMALL, interval=3, others=[second])
        counts = []
        for batch, timestep in ((2, 9), (1, 8), (2, 7)):
            sample, audio = inputs(batch=batch)
            replacement(sample, timestep, audio)
            counts.append([len(runner.runs) for runner in second])
        assert counts == [[1, 0], [1, 0], [2, 0]], "the second has skipped a step: full again"

    def test_more_entries_than_devices_and_fewer(self, unet):
        runners = [TorchStepRunner("u.plan", unet, plan_tensors(batch="1:2:2")) for _ in range(3)]
        replacement = LatentSyncUNet(
            runners[0], config=SMALL, others=[(runner, None) for runner in runners[1:]]
        )
        for batch, expected in ((5, [2, 2, 1]), (2, [1, 1])):
            sample, audio = inputs(batch=batch)
            found = replacement(sample, 3, audio).sample
            torch.testing.assert_close(found, unet(sample, 3, audio), rtol=1e-5, atol=1e-5)
            shares = [len(runner.runs[-1][0]["latents"]) for runner in runners[: len(expected)]]
            assert shares == expected

    def test_errors(self, unet, halves):
        replacement, runners = halves
        sample, audio = inputs(batch=3)
        with pytest.raises(SpecError, match=r"^cpu: unet\.plan takes batch 1.*found batch 2"):
            replacement(sample, 3, audio)
        with pytest.raises(SpecError, match="encoder_hidden_states are required"):
            replacement(inputs(batch=2)[0], 3)
        with pytest.raises(SpecError, match="sample needs"):
            replacement(sample[0], 3, audio)
        with pytest.raises(SpecError, match=r"^unet\.plan takes batch 1.*found batch 2"):
            LatentSyncUNet(runners[0], config=SMALL)(*inputs(batch=2)[:1], 3, inputs(batch=2)[1])
        replacement.close()
        assert all(runner.closed for runner in runners)

    def test_an_error_of_the_driver_keeps_its_code(self, halves, monkeypatch):
        replacement, runners = halves

        def run(*_args):
            raise CudaError("an illegal address", code=700)

        monkeypatch.setattr(runners[1], "run", run)
        with pytest.raises(CudaError, match=r"^cpu: an illegal address") as caught:
            replacement(inputs(batch=2)[0], 3, inputs(batch=2)[1])
        assert caught.value.sticky


class TestOneCall:
    @pytest.mark.parametrize(
        "timestep",
        [
            501,
            501.0,
            torch.tensor(501),
            torch.tensor([501]),
            torch.tensor([501, 501]),
            torch.tensor(501.0),
            torch.tensor([501], dtype=torch.int32),
        ],
        ids=str,
    )
    def test_timesteps(self, unet, timestep):
        sample, audio = inputs(batch=2)
        found = drop_in(unet)(sample, timestep, encoder_hidden_states=audio).sample
        assert torch.equal(found, unet(sample, 501, audio))
        assert not torch.equal(found, unet(sample, 502, audio))

    def test_audio_by_clip_and_frame(self, unet):
        sample, audio = inputs(batch=2, frames=3)
        found = drop_in(unet)(sample, 1, audio.reshape(2, 3, *AUDIO)).sample
        assert torch.equal(found, unet(sample, 1, audio))

    def test_what_comes_back(self, unet):
        replacement = drop_in(unet)
        sample, audio = inputs()
        with torch.inference_mode():
            first = replacement(sample, 1, audio).sample
        kept = first.clone()
        (second,) = replacement(sample, 900, audio, return_dict=False)
        assert replacement(sample, 900, audio)[0].equal(second)
        assert first.equal(kept), "a later step must not change what the caller has"
        assert not first.equal(second)
        assert not first.is_inference()
        assert not replacement(sample.requires_grad_(), 1, audio).sample.requires_grad

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_types_are_converted(self, unet, dtype):
        sample, audio = inputs(dtype=dtype)
        found = drop_in(unet)(sample, 1, audio).sample
        assert found.dtype is dtype
        assert torch.equal(found, unet(sample.float(), 1, audio.float()).to(dtype))

    def test_a_plan_with_fp16_inputs(self, unet):
        half = of_kind(UNet, unet).half()
        replacement = drop_in(half, dtype="float16")
        assert replacement.dtype is torch.float16
        sample, audio = inputs()
        found = replacement(sample, 1, audio).sample
        assert found.dtype is torch.float32
        assert torch.equal(found, half(sample.half(), 1, audio.half()).float())

    def test_tensors_that_are_not_contiguous(self, unet):
        sample, audio = inputs(frames=4)
        chunk = sample.transpose(3, 4)[:, :, 1:3]
        found = drop_in(unet)(chunk, 1, audio[1:3]).sample
        assert torch.equal(found, unet(chunk.contiguous(), 1, audio[1:3]))

    def test_without_audio_layers(self):
        config = UNetConfig.from_mapping({**SMALL.to_dict(), "add_audio_layer": False})
        silent, _ = load_unet(config=config, random_seed=0)
        tensors = [t for t in plan_tensors() if t.name != "encoder_hidden_states"]
        replacement = LatentSyncUNet(TorchStepRunner("unet.plan", silent, tensors), config=config)
        assert replacement.add_audio_layer is False
        sample, _ = inputs()
        found = replacement(sample, 7, encoder_hidden_states=None).sample
        assert torch.equal(found, silent(sample, 7))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"sample": torch.zeros(1, 4, 2, 8, 8)}, r"needs \(batch, 13, frames, height, width\)"),
            ({"sample": torch.zeros(13, 2, 8, 8)}, r"found \(13, 2, 8, 8\)"),
            ({"sample": torch.zeros(1, 13, 2, 8, 8).int()}, "in torch.int32"),
            ({"sample": torch.zeros(1, 13, 25, 8, 8)}, r"found \(2, 50, 24\)"),
            ({"encoder_hidden_states": None}, "are required: this model has audio layers"),
            ({"encoder_hidden_states": torch.zeros(4, *AUDIO)}, r"need \(2, tokens, 24\)"),
            ({"encoder_hidden_states": torch.zeros(2, 50, 23)}, r"found \(2, 50, 23\)"),
            ({"encoder_hidden_states": torch.zeros(2, 49, 24)}, "takes .* 50 audio tokens; found"),
            ({"timestep": torch.zeros(3)}, r"needs 1 or 1 values, found shape \(3,\)"),
            ({"timestep": torch.zeros(1, 1)}, r"found shape \(1, 1\)"),
            ({"timestep": 1.5}, "timestep 1.5 is not an integer"),
            ({"timestep": float("nan")}, "timestep nan is not an integer"),
            ({"timestep": torch.tensor(1.5)}, "timestep 1.5 is not an integer"),
        ],
    )
    def test_inputs_that_do_not_fit(self, unet, changes, message):
        given = {"sample": inputs()[0], "timestep": 1, "encoder_hidden_states": inputs()[1]}
        with pytest.raises(SpecError, match=message):
            drop_in(unet)(**{**given, **changes})

    @pytest.mark.parametrize(
        "timestep", [961.4, torch.tensor(961.4), torch.tensor([961.4, 961.4]), torch.tensor(961)]
    )
    def test_a_plan_with_timesteps_in_float32(self, unet, timestep):
        sample, audio = inputs(batch=2)
        found = drop_in(unet, timestep="float32")(sample, timestep, audio).sample
        one = timestep[:1] if isinstance(timestep, torch.Tensor) and timestep.ndim else timestep
        assert torch.equal(found, unet(sample, one, audio))

    def test_a_plan_with_timesteps_in_float16(self, unet):
        # As io_precision makes of a timestep in float32: it has no room for all fractions.
        replacement = drop_in(unet, timestep="float16")
        sample, audio = inputs()
        assert torch.equal(replacement(sample, 961, audio).sample, unet(sample, 961, audio))
        with pytest.raises(SpecError, match=r"961\.4 is not an integer, .* takes float16"):
            replacement(sample, 961.4, audio)

    def test_different_timesteps_in_one_batch(self, unet):
        sample, audio = inputs(batch=2)
        with pytest.raises(SpecError, match=r"one timestep for the whole batch, found \[1, 2\]"):
            drop_in(unet)(sample, torch.tensor([1, 2]), audio)

    def test_arguments_that_no_plan_has(self, unet):
        sample, audio = inputs()
        replacement = drop_in(unet)
        replacement(sample, 1, audio, class_labels=None, attention_mask=None)
        with pytest.raises(UnsupportedError, match="takes no attention_mask"):
            replacement(sample, 1, audio, attention_mask=torch.ones(1))

    def test_after_closing(self, unet):
        sample, audio = inputs()
        with drop_in(unet) as replacement:
            replacement(sample, 1, audio)
        replacement.close()
        with pytest.raises(ClosedError, match="load its plan again"):
            replacement(sample, 1, audio)


class TestShapes:
    def test_a_dynamic_plan_takes_all_of_its_range(self, unet):
        replacement = drop_in(unet)
        for batch, frames, height, width in (
            (2, 4, 16, 16),
            (2, 1, 16, 16),
            (1, 16, 8, 8),
            (2, 3, 9, 13),
            (2, 4, 16, 16),
        ):
            sample, audio = inputs(batch, frames, height, width)
            assert torch.equal(replacement(sample, 1, audio).sample, unet(sample, 1, audio))

    @pytest.mark.parametrize(
        ("extents", "advice"),
        [
            ({"frames": 3}, "frames 3, .*; build it again with dims frames=1:4:4$"),
            ({"frames": 5}, "with dims frames=1:4:5$"),
            ({"batch": 1}, "with dims batch=1:2:2$"),
            ({"height": 8, "width": 32}, "with dims height=8:16:16, width=16:16:32$"),
        ],
    )
    def test_a_static_plan_names_what_to_build(self, unet, extents, advice):
        replacement = drop_in(unet, batch="2", frames="4", size="16")
        right = {"batch": 2, "frames": 4, "height": 16, "width": 16}
        sample, audio = inputs(**right)
        assert torch.equal(replacement(sample, 1, audio).sample, unet(sample, 1, audio))
        start = "^unet.plan takes batch 2, frames 4, height 16, width 16; found "
        with pytest.raises(SpecError, match=f"{start}.*{advice}"):
            replacement(*inputs(**{**right, **extents})[:1], 1, inputs(**{**right, **extents})[1])

    def test_several_profiles(self, unet):
        shapes = ((2, 4), (1, 8))
        tensors = (
            tensor("latents", "input", "float32", *(f"{b}x13x{f}x16x16" for b, f in shapes)),
            tensor("timestep", "input", "int64", shape=(1,)),
            tensor("encoder_hidden_states", "input", "float32", *["8x50x24"] * 2),
            tensor("noise_pred", "output", "float32", shape=(-1, 4, -1, 16, 16)),
        )
        replacement = LatentSyncUNet(TorchStepRunner("unet.plan", unet, tensors), config=SMALL)
        for batch, frames in shapes:
            sample, audio = inputs(batch, frames, 16, 16)
            assert torch.equal(replacement(sample, 1, audio).sample, unet(sample, 1, audio))
        sample, audio = inputs(1, 4, 16, 16)
        with pytest.raises(
            SpecError, match=r"batch 2 or 1, frames 4 or 8, .* none of its 2 profiles"
        ):
            replacement(sample, 1, audio)
        sample, audio = inputs(2, 5, 16, 16)
        with pytest.raises(SpecError, match=r"found batch 2, frames 5, .* dims frames=1:4:5$"):
            replacement(sample, 1, audio)

    def test_a_profile_of_the_optimum_alone_is_not_listed(self, unet):
        tensors = (
            tensor(
                "latents", "input", "float32", "1x13x1x16x16:2x13x4x16x16:2x13x8x16x16",
                "2x13x4x16x16",
            ),
            tensor("timestep", "input", "int64", shape=(1,)),
            tensor(
                "encoder_hidden_states", "input", "float32", "1x50x24:8x50x24:16x50x24", "8x50x24"
            ),
            tensor("noise_pred", "output", "float32", shape=(-1, 4, -1, 16, 16)),
        )  # fmt: skip
        replacement = LatentSyncUNet(TorchStepRunner("unet.plan", unet, tensors), config=SMALL)
        sample, audio = inputs(2, 9, 16, 16)
        with pytest.raises(SpecError, match=r"takes batch 1 to 2, frames 1 to 8, height 16, .* 9,"):
            replacement(sample, 1, audio)
        sample, audio = inputs(2, 4, 16, 16)
        with pytest.raises(
            SpecError, match=r"50 audio tokens; found .*, 7 audio tokens per frame$"
        ):
            replacement(sample, 1, audio[:, :7])

    def test_outside_a_dynamic_plan(self, unet):
        replacement = drop_in(unet)
        sample, audio = inputs(2, 17)
        message = "takes batch 1 to 2, frames 1 to 16, .* dims frames=1:4:17$"
        with pytest.raises(SpecError, match=message):
            replacement(sample, 1, audio)
        sample, audio = inputs(2, 25)
        with pytest.raises(SpecError, match="25 frames, the model has positions for 24"):
            replacement(sample, 1, audio)

    def test_a_plan_that_cannot_take_short_chunks_says_so_when_it_is_loaded(self, unet, caplog):
        drop_in(unet)
        assert not caplog.records
        drop_in(unet, frames="4:4:16")
        assert "takes at least 4 frames" in caplog.text


class TestAsAModule:
    def test_configuration(self, unet):
        config = drop_in(unet).config
        assert config.sample_size == config["sample_size"] == 16
        assert config.get("in_channels") == 13
        assert dict(config) == SMALL.to_dict()
        assert not hasattr(config, "num_class_embeds")
        with pytest.raises(AttributeError, match="has no 'x'"):
            config.x  # noqa: B018

    def test_modes_and_moves(self, unet, caplog):
        replacement = drop_in(unet)
        assert replacement.training is False
        assert replacement.train().training is True
        assert replacement.eval().training is False
        assert replacement.requires_grad_(False) is replacement
        assert not list(replacement.parameters())
        assert replacement.device == torch.device("cpu")
        assert replacement.dtype is torch.float32
        sample = torch.zeros(1)
        for same in (("cpu",), (torch.device("cpu"), torch.float32), (sample,), (None, None)):
            assert replacement.to(*same) is replacement
        assert replacement.to(device="cpu", dtype=None, non_blocking=True) is replacement
        assert replacement.cpu() is replacement
        assert not caplog.records
        assert replacement.to(dtype=torch.float16).dtype is torch.float32
        assert (
            "unet.plan takes torch.float32, not torch.float16: inputs are converted" in caplog.text
        )

    @pytest.mark.parametrize(
        "move",
        [
            lambda unet: unet.to("cuda"),
            lambda unet: unet.to(0),
            lambda unet: unet.to(device=torch.device("meta")),
            lambda unet: unet.to(torch.zeros(1, device="meta")),
            lambda unet: unet.cuda(),
        ],
    )
    def test_it_stays_where_it_is(self, unet, move):
        with pytest.raises(UnsupportedError, match="is on cpu and cannot be moved to"):
            move(drop_in(unet))

    def test_methods_of_diffusers_models(self, unet):
        replacement = drop_in(unet)
        assert replacement.num_parameters() == sum(p.numel() for p in unet.parameters())
        assert replacement.num_parameters(only_trainable=True) == 0
        sample, audio = inputs()
        before = replacement(sample, 1, audio).sample
        assert replacement.enable_xformers_memory_efficient_attention() is None
        assert replacement.set_attention_slice("auto") is None
        assert replacement.half() is replacement.float() is replacement
        assert torch.equal(replacement(sample, 1, audio).sample, before)
        with pytest.raises(UnsupportedError, match=r"the weights are inside unet\.plan: export"):
            replacement.load_state_dict({}, strict=False)

    @pytest.mark.parametrize("fullgraph", [False, True])
    def test_compilers_leave_it_alone(self, unet, fullgraph):
        sample, audio = inputs()
        expected = unet(sample, 1, audio)
        replacement = drop_in(unet)
        runner = replacement._full
        graphs = []

        def compile_graph(graph, _example):
            graphs.append(graph)
            return graph.forward

        compiled = torch.compile(replacement, backend=compile_graph)
        assert torch.equal(compiled(sample, 1, encoder_hidden_states=audio).sample, expected)
        assert compiled.config.sample_size == 16
        assert not graphs
        around = torch.compile(
            lambda: replacement(sample + 0, 1, audio).sample * 2,
            backend=compile_graph,
            fullgraph=fullgraph,
        )
        if fullgraph:
            with pytest.raises(torch._dynamo.exc.Unsupported):
                around()
            return
        assert torch.equal(around(), expected * 2)
        assert len(graphs) == 2, "before and behind the plan"
        replacement.compile(backend=compile_graph)
        assert torch.equal(replacement(sample, 1, audio).sample, expected)
        undisturbed = torch.compiler.disable(replacement)
        assert torch.equal(undisturbed(sample, 1, audio).sample, expected)
        assert len(runner.runs) == 4

    def test_deepcaches_own_helper_is_directed_to_from_plans(self, unet):
        replacement = drop_in(unet)
        assert not hasattr(replacement, "up_blocks")
        with pytest.raises(AttributeError, match=r"use LatentSyncUNet\.from_plans"):
            replacement.down_blocks  # noqa: B018
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            replacement.nothing  # noqa: B018


class TestDeepCache:
    @pytest.mark.parametrize("interval", [2, 3])
    def test_step_by_step_over_chunks(self, unet, interval):
        """Two chunks and a short one; 7 is not a multiple of 2 or 3: each restarts the schedule."""
        replacement, full, shallow = deepcache_drop_in(unet, interval)
        timesteps = denoising.scheduler(7).timesteps
        reference = InPyTorch(with_cached_modules(of_kind(UNet, unet), interval, timesteps))
        for chunk, frames in enumerate((2, 2, 1)):
            full.runs.clear()
            shallow.runs.clear()
            for index, step in enumerate(timesteps):
                # Other latents at each step: features that are old are then seen to be old.
                sample, audio = inputs(2, frames, seed=100 * chunk + index)
                found = replacement(sample, step, encoder_hidden_states=audio).sample
                expected = reference(sample, step, encoder_hidden_states=audio).sample
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert len(full.runs) == len(timesteps[::interval])
            assert len(shallow.runs) == len(timesteps) - len(full.runs)

    @pytest.mark.parametrize(
        ("guidance", "schedule"), [(1.5, "DDIM"), (1.0, "DDIM"), (1.5, "PNDM")]
    )
    def test_the_loop_of_latentsync(self, unet, guidance, schedule):
        condition, audio = video(5)
        options = {"guidance": guidance, "schedule": schedule, "steps": 8}
        timesteps = denoising.scheduler(8, schedule).timesteps
        reference = InPyTorch(with_cached_modules(of_kind(UNet, unet), 3, timesteps))
        expected = denoise(reference, condition, audio, **options)
        found = denoise(deepcache_drop_in(unet)[0], condition, audio, **options)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        every = denoise(drop_in(unet), condition, audio, **options)
        assert relative_error(every, expected) > 1e-2

    def kinds(self, unet, steps, interval=3):
        """F or S for each of (timestep, frames) in turn."""
        replacement, full, shallow = deepcache_drop_in(unet, interval)
        kinds = ""
        for timestep, frames in steps:
            before = len(full.runs)
            sample, audio = inputs(frames=frames)
            replacement(sample, timestep, audio)
            kinds += "S" if len(full.runs) == before else "F"
        assert len(full.runs) + len(shallow.runs) == len(steps)
        return kinds

    @pytest.mark.parametrize(
        ("timesteps", "kinds"),
        [
            ([9, 7, 5, 3, 1], "FSSFS"),
            ([9, 7, 5, 3, 1, 9, 7], "FSSFSFS"),  # a new chunk
            ([9, 7, 9, 7, 5, 3], "FSFSSF"),  # the run before was given up
            ([9, 7, 7, 5, 3, 1], "FSSFSS"),  # PNDM repeats its second timestep
            ([9, 7, 7, 5, 5, 3, 3], "FSSFFSS"),  # Heun repeats all but the first
            ([9, 7, 5, 6], "FSSF"),
            ([9, 9, 9], "FFF"),  # chunks of one step
            ([1, 3, 5], "FFF"),  # rising timesteps are never skipped
            ([torch.tensor(9), torch.tensor([7]), 5.0, torch.tensor(3)], "FSSF"),
        ],
    )
    def test_which_steps_are_full(self, unet, timesteps, kinds):
        assert self.kinds(unet, [(timestep, 2) for timestep in timesteps]) == kinds

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_steps_are_those_of_the_helper_for_every_scheduler(self, name):
        """DeepCache's helper looks a timestep up in the scheduler's list, which finds the first."""
        pytest.importorskip("diffusers")
        for steps in (4, 10, 20):  # of 10, KDPM2's ancestral timesteps rise by rounding
            timesteps = [float(step) for step in denoising.scheduler(steps, name).timesteps]
            for interval in (1, 2, 3, 5):
                expected = [timesteps.index(step) % interval == 0 for step in timesteps]
                schedule = unet_steps._Schedule(interval)
                found = [schedule.is_full(step, {}) for step in [*timesteps, *timesteps]]
                assert found == [*expected, *expected], (steps, interval)

    def test_other_shapes_begin_a_chunk(self, unet):
        steps = [(9, 2), (7, 2), (5, 1), (3, 1), (1, 2)]
        assert self.kinds(unet, steps) == "FSFSF"

    def test_the_features_are_not_copied(self, unet):
        replacement, full, shallow = deepcache_drop_in(unet)
        for timestep in (9, 7, 5):
            sample, audio = inputs()
            replacement(sample, timestep, audio)
        written = full.runs[0][1]["deep_features"]
        for given, _ in shallow.runs:
            assert given["deep_features"] is written
            assert given["latents"] is full.runs[0][0]["latents"]

    def test_after_a_failure_and_a_reset_comes_a_full_step(self, unet):
        replacement, full, shallow = deepcache_drop_in(unet)
        sample, audio = inputs()
        replacement(sample, 9, audio)
        with pytest.raises(SpecError, match="are required"):
            replacement(sample, 7)
        replacement(sample, 7, audio)
        assert (len(full.runs), len(shallow.runs)) == (2, 0)
        replacement(sample, 5, audio)
        replacement.reset_cache()
        replacement(sample, 3, audio)
        assert (len(full.runs), len(shallow.runs)) == (3, 1)

    def test_shapes_that_only_one_of_the_plans_takes(self, unet):
        _, full, _ = deepcache_drop_in(unet)
        _, _, shallow = deepcache_drop_in(unet, frames="2")
        replacement = LatentSyncUNet(full, shallow, config=SMALL, interval=3)
        sample, audio = inputs(frames=4)
        with pytest.raises(SpecError, match=r"^unet\.shallow\.plan takes .*dims frames=1:2:4"):
            replacement(sample, 9, audio)
        assert not full.runs, "found before the first step, not at the second"

    def test_plans_that_are_not_a_pair(self, unet):
        _, full, shallow = deepcache_drop_in(unet)
        single = TorchStepRunner("unet.plan", unet, plan_tensors())
        with pytest.raises(SpecError, match=r"shallow step of DeepCache, which .* takes second"):
            LatentSyncUNet(shallow, full, config=SMALL)
        with pytest.raises(SpecError, match="shallow step of DeepCache"):
            LatentSyncUNet(shallow, config=SMALL)
        with pytest.raises(SpecError, match=r"build NAME\.onnx; found encoder_hidden_states"):
            LatentSyncUNet(single, shallow, config=SMALL)
        with pytest.raises(SpecError, match=r"build NAME\.shallow\.onnx"):
            LatentSyncUNet(full, full, config=SMALL)
        with pytest.raises(SpecError, match="interval 0: must be at least 1"):
            LatentSyncUNet(full, shallow, config=SMALL, interval=0)
        other = TorchStepRunner("s.plan", None, plan_tensors("shallow", dtype="float16"))
        with pytest.raises(SpecError, match=r"latents is float32 in unet\.plan and float16 in s"):
            LatentSyncUNet(full, other, config=SMALL)

    def test_the_full_plan_alone_is_a_whole_unet(self, unet):
        replacement = LatentSyncUNet(deepcache_drop_in(unet)[1], config=SMALL)
        for timestep in (9, 7):
            sample, audio = inputs(seed=timestep)
            expected = unet(sample, timestep, audio)
            assert torch.equal(replacement(sample, timestep, audio).sample, expected)


class TestLoading:
    """On plans that TensorRT would not load; tests/gpu has real ones."""

    @pytest.fixture
    def runners(self, unet, monkeypatch):
        """Puts PyTorch in the place of the GPU, as of there."""
        made = []

        def open_engine(plan, *, backend, ordinal):
            made.append(TorchStepRunner(plan.path.name, unet, plan.manifest.tensors))
            assert backend == "auto"
            made[-1].ordinal = ordinal
            return made[-1]

        monkeypatch.setattr(pipeline, "Engine", open_engine)
        monkeypatch.setattr(pipeline, "EngineRunner", lambda engine: engine)
        monkeypatch.setattr(pipeline, "gpu_ordinal", lambda device: device or 0)
        return made

    def plan(self, path, kind="single", **metadata):
        model = {**json.loads((DATA / "plan_manifest_1.json").read_text())["model"]}
        model["metadata"] = {f"trt_native.{key}": value for key, value in metadata.items()}
        return make_plan(path, plan_tensors(kind), model=model).path

    def test_the_configuration_comes_from_the_manifest(self, tmp_path, unet, runners):
        path = self.plan(tmp_path / "unet.plan", config=json.dumps(SMALL.to_dict()))
        replacement = LatentSyncUNet.from_plan(path)
        assert replacement.config.sample_size == 16
        sample, audio = inputs()
        assert torch.equal(replacement(sample, 1, audio).sample, unet(sample, 1, audio))

    def test_or_from_the_caller(self, tmp_path, runners):
        path = self.plan(tmp_path / "unet.plan")
        for config in ("small", DATA / "unet_small.json", SMALL):
            assert LatentSyncUNet.from_plan(path, config=config).config.sample_size == 16
        with pytest.raises(
            PlanError, match=r"no U-Net configuration in its manifest: .*config='latentsync"
        ):
            LatentSyncUNet.from_plan(path)

    def test_on_several_devices(self, tmp_path, runners):
        config = json.dumps(SMALL.to_dict())
        names = [("full.plan", "full"), ("shallow.plan", "shallow")]
        plans = [self.plan(tmp_path / name, kind, config=config) for name, kind in names]
        LatentSyncUNet.from_plans(*plans, devices=[2, 0])
        LatentSyncUNet.from_plan(plans[0], devices=[1])
        LatentSyncUNet.from_plan(plans[0], device=3)
        found = [(runner.name, runner.ordinal) for runner in runners]
        pairs = [("full.plan", 2), ("shallow.plan", 2), ("full.plan", 0), ("shallow.plan", 0)]
        assert found == [*pairs, ("full.plan", 1), ("full.plan", 3)]
        with pytest.raises(SpecError, match="give either device or devices"):
            LatentSyncUNet.from_plan(plans[0], device=0, devices=[0, 1])

    @pytest.mark.parametrize("config", ["{", "[]", '{"sample_size": "x"}'])
    def test_a_damaged_configuration(self, tmp_path, runners, config):
        path = self.plan(tmp_path / "unet.plan", config=config)
        with pytest.raises(PlanError, match=r"unet\.plan: the U-Net configuration in its manifest"):
            LatentSyncUNet.from_plan(path)

    def test_two_plans_of_different_weights(self, tmp_path, runners):
        config = json.dumps(SMALL.to_dict())
        full, same, other = (
            self.plan(tmp_path / name, kind, config=config, random_seed=seed)
            for name, kind, seed in (
                ("full.plan", "full", "0"),
                ("same.plan", "shallow", "0"),
                ("other.plan", "shallow", "1"),
            )
        )
        assert LatentSyncUNet.from_plans(full, same).dtype is torch.float32
        with pytest.raises(SpecError, match="are of different U-Nets"):
            LatentSyncUNet.from_plans(full, other)

    def test_what_was_loaded_is_freed_after_an_error(self, tmp_path, runners):
        config = json.dumps(SMALL.to_dict())
        paths = [self.plan(tmp_path / name, config=config) for name in ("a.plan", "b.plan")]
        with pytest.raises(SpecError, match=r"build NAME\.onnx"):
            LatentSyncUNet.from_plans(*paths)
        assert [runner.closed for runner in runners] == [True, True]

    def test_without_a_gpu_that_torch_sees(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        path = self.plan(tmp_path / "unet.plan")
        with pytest.raises(UnsupportedError, match="PyTorch finds no GPU"):
            LatentSyncUNet.from_plan(path, config="small")

    def test_devices_other_than_gpus(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        path = self.plan(tmp_path / "unet.plan")
        with pytest.raises(SpecError, match="runs on a GPU, not on cpu"):
            LatentSyncUNet.from_plan(path, config="small", device="cpu")

    def test_files_that_are_not_plans(self, tmp_path):
        (tmp_path / "unet.plan").write_bytes(b"no plan at all, but long enough for a header")
        with pytest.raises(PlanError, match="not a TensorRT plan"):
            LatentSyncUNet.from_plan(tmp_path / "unet.plan")

    @pytest.mark.parametrize("name", ["LatentSyncUNet", "TensorRTModule"])
    def test_without_torch(self, name):
        code = (
            "import sys; sys.modules['torch'] = None\n"
            "import trt_native\n"
            f"try: trt_native.{name}\n"
            "except trt_native.TrtNativeError as error: print(type(error).__name__, error)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.startswith(f"UnsupportedError {name} needs PyTorch"), done.stderr
