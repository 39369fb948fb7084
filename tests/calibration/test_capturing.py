"""Capturing a denoiser's inputs, and the set that comes with the repository."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from trt_native.calibration import capture
from trt_native.calibration.batches import read_batches
from trt_native.calibration.folder import read_data_manifest
from trt_native.errors import CalibrationError, SpecError
from trt_native.models.latentsync import UNetConfig, denoiser_inputs, load_unet
from trt_native.shapes import TensorSpec

ROOT = Path(__file__).parents[2]
SET = ROOT / "calib_data" / "latentsync_small"
LATENTSYNC_SMALL = (
    TensorSpec("latents", "float32", ("batch", 13, "frames", "height", "width")),
    TensorSpec("timestep", "int64", (1,)),
    TensorSpec("encoder_hidden_states", "float32", ("batch*frames", 50, 24)),
)


class Denoiser(torch.nn.Module):
    def forward(self, sample, timestep, audio=None, return_dict=True):
        return sample * 2


class Nameless:
    """As functions written in C can be."""

    __signature__ = "none"

    def __call__(self, *args):
        return args


def arrays_in(folder):
    """The batches as stored, in order, with their manifest entries."""
    manifest = read_data_manifest(folder)
    return [(entry, dict(np.load(folder / entry["file"]))) for entry in manifest.batches]


def run(denoiser, folder, steps, passes=1, **options):
    """Call the denoiser once per step and pass, with the number of the call."""
    calls = []
    with capture(denoiser, folder, **options) as observed:
        target = denoiser if isinstance(denoiser, torch.nn.Module) else observed
        for _ in range(passes):
            for step in steps:
                sample = torch.full((2, 3), float(len(calls)))
                assert torch.equal(target(sample, torch.tensor(step)), sample * 2)
                calls.append(step)
                sample.zero_()  # what was captured must be a copy
    return calls


class TestCapture:
    def test_a_module_where_it_is(self, tmp_path):
        denoiser = Denoiser()
        calls = run(denoiser, tmp_path / "d", range(5))
        found = arrays_in(tmp_path / "d")
        assert sorted(entry["timestep"] for entry, _ in found) == list(range(5))
        for entry, arrays in found:
            assert set(arrays) == {"sample", "timestep"}
            assert arrays["timestep"] == entry["timestep"]
            assert calls[int(arrays["sample"][0, 0])] == entry["timestep"]
            assert arrays["sample"].dtype == np.float32
        assert not denoiser._forward_pre_hooks, "the hook must be gone"

    def test_any_callable(self, tmp_path):
        class Engine:
            config = "its own"

            def __call__(self, sample, timestep):
                return sample * 2

        engine = Engine()
        run(engine, tmp_path / "d", range(3))
        assert len(arrays_in(tmp_path / "d")) == 3
        with capture(engine, tmp_path / "e") as observed:
            assert observed.config == "its own"
            observed(np.ones(1), 3)

    def test_the_budget_is_spread_over_the_timesteps(self, tmp_path):
        run(Denoiser(), tmp_path / "d", range(20), passes=5, batches=50)
        counts = Counter(entry["timestep"] for entry, _ in arrays_in(tmp_path / "d"))
        assert set(counts) == set(range(20))
        assert sorted(counts.values()) == [2] * 10 + [3] * 10
        assert read_data_manifest(tmp_path / "d").origin["calls"] == 100

    def test_fewer_than_the_timesteps(self, tmp_path):
        run(Denoiser(), tmp_path / "d", range(20), passes=3, batches=8)
        steps = {entry["timestep"] for entry, _ in arrays_in(tmp_path / "d")}
        assert len(steps) == 8

    def test_calls_of_one_timestep_are_equally_likely(self, tmp_path):
        # Two calls per step, as where each half of the guidance has its own: both must turn up.
        halves = Counter()
        for seed in range(40):
            denoiser = Denoiser()
            with capture(denoiser, tmp_path / str(seed), batches=10, seed=seed):
                for step in range(10):
                    for half in (0.0, 1.0):
                        denoiser(torch.full((1,), half), step)
            halves.update(float(a["sample"][0]) for _, a in arrays_in(tmp_path / str(seed)))
        # 400 fair draws: 5 standard deviations are 50.
        assert abs(halves[0.0] - 200) < 50
        assert halves[0.0] + halves[1.0] == 400

    def test_the_order_is_shuffled_by_the_seed_alone(self, tmp_path):
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            run(Denoiser(), tmp_path / name, range(20), batches=20, seed=seed)
        a, b, c = ([e["timestep"] for e, _ in arrays_in(tmp_path / name)] for name in "abc")
        assert a == b
        assert a != c
        assert a != sorted(a)
        assert a != sorted(a, reverse=True)

    def test_types(self, tmp_path):
        with capture(Denoiser(), tmp_path / "d") as denoiser:
            pass_on = denoiser(torch.ones(2, dtype=torch.bfloat16), 7, audio=torch.ones(1).half())
        assert pass_on.dtype == torch.bfloat16
        ((entry, arrays),) = arrays_in(tmp_path / "d")
        assert entry["timestep"] == 7
        assert {name: str(array.dtype) for name, array in arrays.items()} == {
            "sample": "float32",
            "timestep": "int64",
            "audio": "float16",
        }

    def test_calls_of_another_form_are_left_out_and_counted(self, tmp_path, caplog):
        denoiser = Denoiser()
        with capture(denoiser, tmp_path / "d"):
            denoiser(torch.ones(2), 1)
            denoiser(torch.ones(3), 2)
            denoiser(torch.ones(2), 3, audio=torch.ones(1))
        assert [entry["timestep"] for entry, _ in arrays_in(tmp_path / "d")] == [1]
        assert "2 of 3 calls had other inputs, types or shapes" in caplog.text

    def test_without_timesteps(self, tmp_path):
        with capture(torch.nn.ReLU(), tmp_path / "d", timestep=None, batches=2) as relu:
            for i in range(5):
                relu(torch.full((1,), float(i)))
        found = arrays_in(tmp_path / "d")
        assert [set(arrays) for _, arrays in found] == [{"input"}] * 2
        assert all("timestep" not in entry for entry, _ in found)

    def test_progress(self, tmp_path):
        calls = []
        run(Denoiser(), tmp_path / "d", range(3), batches=2, progress=lambda *c: calls.append(c))
        assert calls == [
            *(("Capturing calls", done, 0) for done in range(4)),
            *(("Writing the batches", done, 2) for done in range(3)),
        ]

    def test_an_exception_in_the_block_leaves_nothing(self, tmp_path):
        def fail(*_):
            raise ZeroDivisionError

        denoiser = Denoiser()
        denoiser.register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError), capture(denoiser, tmp_path / "d"):
            denoiser(torch.ones(2), 1)
        assert list(tmp_path.iterdir()) == []
        assert not denoiser._forward_pre_hooks

    def test_a_denoiser_that_is_not_called(self, tmp_path):
        denoiser = Denoiser()
        with (
            pytest.raises(CalibrationError, match="was not called inside the block"),
            capture(denoiser, tmp_path / "d"),
        ):
            denoiser.forward(torch.ones(2), 1)

    def test_arguments_that_are_no_arrays(self, tmp_path):
        denoiser = Denoiser()
        with (
            pytest.raises(CalibrationError, match=r"'audio' is a list, not an array.* arguments="),
            capture(denoiser, tmp_path / "d"),
        ):
            denoiser(torch.ones(2), 1, audio=[torch.ones(2)])

    def test_an_unknown_timestep(self, tmp_path):
        with (
            pytest.raises(CalibrationError, match=r"no input 't' .* called with sample, timestep"),
            capture(Denoiser(), tmp_path / "d", timestep="t") as denoiser,
        ):
            denoiser(torch.ones(2), 1)

    def test_what_is_refused_beforehand(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(SpecError, match="at least 1"):
            capture(Denoiser(), tmp_path / "d", batches=0)
        with pytest.raises(SpecError, match="it is there already"):
            capture(Denoiser(), tmp_path)
        with pytest.raises(SpecError, match="give arguments="):
            capture(Nameless(), tmp_path / "d")

    def test_a_patched_forward_keeps_the_names(self, tmp_path):
        # DeepCache and others put forward(*args, **kwargs) on the object.
        denoiser = Denoiser()
        own = denoiser.forward
        denoiser.forward = lambda *args, **kwargs: own(*args, **kwargs)
        run(denoiser, tmp_path / "d", range(2))
        assert {frozenset(arrays) for _, arrays in arrays_in(tmp_path / "d")} == {
            frozenset({"sample", "timestep"})
        }


class TestLatentSync:
    def test_what_is_captured_is_what_the_model_takes(self, tmp_path):
        unet, _ = load_unet(config=UNetConfig.load("small"), random_seed=0)
        with capture(unet, tmp_path / "d", arguments=denoiser_inputs), torch.inference_mode():
            expected = unet(
                torch.ones(1, 13, 2, 8, 8),
                torch.tensor(5),
                encoder_hidden_states=torch.ones(1, 2, 50, 24),
            )
        (batch,) = read_batches(tmp_path / "d", LATENTSYNC_SMALL)
        with torch.inference_mode():
            found = unet(**{name: torch.from_numpy(array) for name, array in batch.items()})
        assert torch.equal(found, expected)


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestTheShippedSet:
    def test_ddim_is_that_of_diffusers(self):
        # diffusers 0.42.1, DDIMScheduler(beta_start=0.00085, beta_end=0.012,
        # beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        # 20 steps: the latents after steps 1, 10 and 20.
        expected = {
            1: [-2.501701210069435, -1.2228230303352925, -0.03121452009096054,
                1.1603939901533717, 2.4392721698875137],
            10: [-10.786720034238918, -4.580614241207034, -0.33695918505705286,
                 3.4892893847620234, 9.653646795052312],
            20: [-17.803322407864982, -7.250403497804245, -0.4471049624041245,
                 5.125775242414819, 15.607340046316727],
        }  # fmt: skip
        ddim = script("latentsync_small").Ddim(20)
        assert ddim.timesteps.tolist() == list(range(951, 0, -50))
        latents = torch.linspace(-2, 2, 5, dtype=torch.float64)
        for count, timestep in enumerate(ddim.timesteps, 1):
            latents = ddim.step(0.5 * torch.tanh(latents) + 0.1, timestep, latents)
            if count in expected:
                np.testing.assert_allclose(latents.numpy(), expected[count], rtol=1e-6)

    def test_it_fits_the_exported_model(self):
        found = read_batches(SET, LATENTSYNC_SMALL)
        steps = [entry["timestep"] for entry in found.manifest.batches]
        assert sorted(steps, reverse=True) == list(range(951, 0, -50))
        assert steps != sorted(steps, reverse=True)
        assert found.common_shapes()["latents"] == (2, 13, 4, 16, 16)
        for step, batch in zip(steps, found, strict=True):
            assert batch["timestep"].tolist() == [step]
            without, with_audio = batch["encoder_hidden_states"].reshape(2, 4, 50, 24)
            assert not without.any(), "the first half of the guidance has no audio"
            assert 0.3 < with_audio.std() < 3
            np.testing.assert_array_equal(*batch["latents"])
        size = sum(path.stat().st_size for path in SET.iterdir())
        assert size < 4e6

    @pytest.mark.slow
    def test_its_script_makes_it_again(self, tmp_path):
        again = tmp_path / "again"
        pipeline = ROOT / "scripts" / "latentsync_small.py"
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / "capture_calibration.py",
             f"{pipeline}:sample", "-o", again, "--json"],
            check=True,
            capture_output=True,
            text=True,
        )  # fmt: skip
        found, expected = json.loads(done.stdout), json.loads((SET / "manifest.json").read_text())
        for manifest in (found, expected):
            del manifest["origin"]["producer"]  # names the version
        assert found == expected
        for (entry, arrays), (_, expected) in zip(arrays_in(again), arrays_in(SET), strict=True):
            for name, array in expected.items():
                np.testing.assert_allclose(
                    arrays[name], array, rtol=1e-3, atol=1e-3, err_msg=f"{entry} {name}"
                )

    def test_a_pipeline_that_uses_no_hook(self, tmp_path):
        (tmp_path / "pipeline.py").write_text("def run(hook): ...\n")
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / "capture_calibration.py",
             f"{tmp_path}/pipeline.py:run", "-o", tmp_path / "out"],
            check=False,
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 1
        assert "captured nothing: run the pipeline in `with hook(...)`" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
