"""The U-Net against outputs, keys and files of the original module."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trt_native.errors import ModelError, SpecError
from trt_native.models.latentsync import UNet, UNetConfig, load_checkpoint, load_into

DATA = Path(__file__).parents[1] / "data"


def golden_cases():
    arrays = np.load(DATA / "unet_small.npz")
    names = sorted({key.split(".")[0] for key in arrays})
    return {
        name: {key.split(".")[1]: torch.from_numpy(arrays[key]) for key in arrays if name in key}
        for name in names
    }


CASES = golden_cases()


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def unet():
    unet = UNet(UNetConfig.load(DATA / "unet_small.json")).eval()
    load_into(unet, load_checkpoint(DATA / "unet_small.pt").state_dict)
    return unet


@pytest.mark.parametrize("name", CASES)
def test_golden_outputs(unet, name):
    case = dict(CASES[name])
    expected = case.pop("noise_pred")
    with torch.inference_mode():
        assert relative_error(unet(**case), expected) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_types_keep_statistics_in_fp32(dtype):
    unet = UNet(UNetConfig.load("small")).eval()
    load_into(unet, load_checkpoint(DATA / "unet_small.pt").state_dict)
    unet.to(dtype)
    case = {k: v.to(dtype) if v.is_floating_point() else v for k, v in CASES["case1"].items()}
    expected = CASES["case1"]["noise_pred"]
    del case["noise_pred"]
    with torch.inference_mode():
        found = unet(**case)
    assert found.dtype is dtype
    assert relative_error(found.float(), expected) <= (5e-3 if dtype is torch.float16 else 5e-2)


def test_activations_beyond_fp16_squares_stay_finite():
    # Values of 1000 have squares that FP16 cannot hold: statistics in FP16 would be infinite.
    unet = UNet(UNetConfig.load("small")).eval()
    unet.init_random(0)
    case = CASES["case0"]
    with torch.inference_mode():
        reference = unet(case["latents"] * 1000, case["timestep"], case["encoder_hidden_states"])
        found = unet.half()(
            (case["latents"] * 1000).half(),
            case["timestep"],
            case["encoder_hidden_states"].half(),
        )
    assert relative_error(found.float(), reference) <= 2e-2


def test_the_full_model_has_exactly_the_published_keys_and_shapes():
    with gzip.open(DATA / "latentsync_1_6_state_dict.json.gz") as file:
        published = {name: tuple(shape) for name, (shape, _) in json.load(file).items()}
    with torch.device("meta"):
        own = UNet(UNetConfig.load("latentsync-1.6")).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in own.items()} == published
    assert sum(tensor.numel() for name, tensor in own.items() if ".pe" not in name) == 1267099844


def test_the_ways_to_give_a_timestep_and_audio(unet):
    case = CASES["case1"]
    latents, audio = case["latents"], case["encoder_hidden_states"]
    step = int(case["timestep"])
    batch, frames = latents.shape[0], latents.shape[2]
    with torch.inference_mode():
        expected = unet(latents, case["timestep"], audio)
        for timestep in (step, torch.tensor([step]), torch.full((batch,), step)):
            assert relative_error(unet(latents, timestep, audio), expected) <= 1e-5
        by_batch = audio.reshape(batch, frames, *audio.shape[1:])
        assert torch.equal(unet(latents, case["timestep"], by_batch), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": torch.zeros(1, 4, 2, 8, 8)}, r"latents need \(batch, 13, frames"),
        ({"latents": torch.zeros(1, 13, 25, 8, 8)}, "25 frames, the model has positions for 24"),
        ({"timestep": torch.zeros(3)}, "timestep needs 1 or 1 values"),
        ({"encoder_hidden_states": None}, "encoder_hidden_states are needed"),
        ({"encoder_hidden_states": torch.zeros(3, 5, 24)}, r"need \(2, tokens, 24\)"),
        ({"latents": torch.zeros(1, 13, 2, 8, 8).half()}, "latents are torch.float16"),
    ],
)
def test_inputs_that_do_not_fit(unet, changes, message):
    inputs = {
        "latents": torch.zeros(1, 13, 2, 8, 8),
        "timestep": 1,
        "encoder_hidden_states": torch.zeros(2, 5, 24),
    }
    with pytest.raises(SpecError, match=message):
        unet(**{**inputs, **changes})


def test_random_weights_depend_on_the_seed_alone():
    def make(seed):
        unet = UNet(UNetConfig.load("small")).eval()
        unet.init_random(seed)
        return unet

    case = CASES["case0"]
    inputs = case["latents"], case["timestep"], case["encoder_hidden_states"]
    with torch.inference_mode():
        first, again, other = (make(seed)(*inputs) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert relative_error(first, other) > 0.1
    assert first.std() > 0.01


class TestConfig:
    def test_round_trip(self):
        for preset in ("latentsync-1.6", "small"):
            config = UNetConfig.load(preset)
            assert UNetConfig.from_mapping(json.loads(json.dumps(config.to_dict()))) == config

    @pytest.mark.parametrize("eps", ["1e-5", 1e-5])
    def test_yaml_1_1_readers_make_a_text_of_1e_5(self, eps):
        data = {**json.loads((DATA / "unet_small.json").read_text()), "norm_eps": eps}
        assert UNetConfig.from_mapping(data).norm_eps == 1e-5

    def test_yaml_with_a_model_section(self, tmp_path):
        section = json.loads((DATA / "unet_small.json").read_text())
        lines = [f"  {key}: {json.dumps(value)}" for key, value in section.items()]
        text = "\n".join(lines).replace("1e-05", "1e-5")
        path = tmp_path / "unet.yaml"
        path.write_text(f"data: {{num_frames: 16}}\nmodel:\n{text}\n")
        assert UNetConfig.load(path) == UNetConfig.load("small")

    def test_all_problems_come_at_once(self):
        data = {**json.loads((DATA / "unet_small.json").read_text())}
        data.update(in_chanels=4, out_channels="four", act_fn="gelu", norm_num_groups=7)
        with pytest.raises(SpecError) as caught:
            UNetConfig.from_mapping(data)
        text = str(caught.value)
        for part in ("in_chanels", "out_channels", "act_fn"):
            assert part in text

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("none.yaml", None, "no such file, and not a preset"),
            ("c.json", "{", "not valid YAML or JSON"),
            ("c.yaml", "a: [", "not valid YAML or JSON"),
            ("c.yaml", "- 1", "c.yaml"),
            ("c.yaml", "[" * 20_000, "not valid YAML or JSON"),
            ("c.json", "[" * 200_000, "not valid YAML or JSON"),
            ("c.yaml", "in_channels: .inf\nnorm_num_groups: 1e999", "whole number, found inf"),
            ("c.yaml", "in_channels: &a [*a]", "needs a whole number, found"),
        ],
    )
    def test_bad_files(self, tmp_path, name, content, message):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(SpecError, match=message):
            UNetConfig.load(tmp_path / name)

    @pytest.mark.timeout(60)
    def test_a_list_of_a_million_million_entries_is_abbreviated(self, tmp_path):
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
        path = tmp_path / "c.yaml"
        path.write_text("\n".join([*lines, "in_channels: *a11"]))
        with pytest.raises(SpecError, match="in_channels needs a whole number") as caught:
            UNetConfig.load(path)
        assert len(str(caught.value)) < 2000

    @pytest.mark.timeout(60)
    def test_paths_that_are_not_files(self, tmp_path):
        os.mkfifo(tmp_path / "c.yaml")
        for path in (tmp_path / "c.yaml", Path("/dev/zero"), tmp_path):
            with pytest.raises(SpecError, match=r"is a pipe or a device|directory"):
                UNetConfig.load(path)


class TestCheckpoint:
    @pytest.fixture
    def state(self):
        return load_checkpoint(DATA / "unet_small.pt").state_dict

    def test_the_real_format(self):
        raw = torch.load(DATA / "unet_small.pt", weights_only=True)
        loaded = load_checkpoint(DATA / "unet_small.pt")
        assert loaded.global_step == raw["global_step"]
        assert loaded.config is None
        assert {k: v.shape for k, v in loaded.state_dict.items()} == {
            k: v.shape for k, v in raw["state_dict"].items()
        }

    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("kind", ["bare", "with config", "prefixed"])
    def test_other_formats(self, tmp_path, state, kind, legacy):
        path = tmp_path / "c.pt"
        data = {
            "bare": dict(state),
            "with config": {"config": {"in_channels": 13}, "state_dict": dict(state)},
            "prefixed": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        }[kind]
        torch.save(data, path, _use_new_zipfile_serialization=not legacy)
        loaded = load_checkpoint(path)
        assert loaded.config == ({"in_channels": 13} if kind == "with config" else None)
        assert loaded.state_dict.keys() == state.keys()
        assert all(torch.equal(loaded.state_dict[k], state[k]) for k in state)

    def test_safetensors(self, tmp_path, state):
        path = tmp_path / "c.safetensors"
        save_file({k: v.clone() for k, v in state.items()}, path)
        loaded = load_checkpoint(path)
        assert all(torch.equal(loaded.state_dict[k], state[k]) for k in state)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("c.pt", None, "No such file"),
            ("c.pt", b"", "is empty"),
            ("c.pt", b"hello world", "not a checkpoint"),
            ("c.safetensors", b"hello world", "not a safetensors file"),
        ],
    )
    def test_bad_files(self, tmp_path, name, content, message):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=message) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize("name", ["c.pt", "c.safetensors", "/dev/zero"])
    def test_paths_that_are_not_files(self, tmp_path, name):
        path = tmp_path / name
        if not path.exists():
            os.mkfifo(path)
        with pytest.raises(ModelError, match="is a pipe or a device"):
            load_checkpoint(path)

    def test_a_truncated_file(self, tmp_path):
        whole = (DATA / "unet_small.pt").read_bytes()
        path = tmp_path / "c.pt"
        for length in (10, 1000, len(whole) // 2, len(whole) - 10):
            path.write_bytes(whole[:length])
            with pytest.raises(ModelError, match=r"damaged|not a checkpoint"):
                load_checkpoint(path)

    def test_pickled_code_is_refused_and_not_run(self, tmp_path):
        ran = tmp_path / "ran"

        class Evil:
            def __reduce__(self):
                return (Path.touch, (ran,))

        path = tmp_path / "c.pt"
        torch.save({"state_dict": Evil()}, path, pickle_module=pickle)
        with pytest.raises(ModelError, match=r"holds a pickled \S*(touch|getattr)"):
            load_checkpoint(path)
        assert not ran.exists()

    def test_progress_counts_all_bytes(self):
        reported = {}

        def progress(phase, done, total):
            assert done <= total
            reported[phase] = (done, total)

        path = DATA / "unet_small.pt"
        loaded = load_checkpoint(path, progress)
        load_into(UNet(UNetConfig.load("small")), loaded.state_dict, progress=progress)
        size = path.stat().st_size
        weights = sum(t.numel() * t.element_size() for t in loaded.state_dict.values())
        assert reported == {
            "Hashing the checkpoint": (size, size),
            "Converting the weights": (weights, weights),
        }

    def test_every_key_that_does_not_fit_is_reported(self, state):
        wrong = dict(state)
        del wrong["conv_in.bias"]
        wrong["extra.weight"] = torch.zeros(1)
        wrong["conv_out.bias"] = torch.zeros(7)
        unet = UNet(UNetConfig.load("small"))
        with pytest.raises(ModelError) as caught:
            load_into(unet, wrong)
        text = str(caught.value)
        for part in (
            "1 missing: conv_in.bias",
            "1 unexpected: extra.weight",
            "conv_out.bias (found (7,), expected (4,))",
        ):
            assert part in text
        report = load_into(unet, wrong, strict=False)
        assert report.missing == ("conv_in.bias",)
        assert torch.equal(unet.conv_in.weight, state["conv_in.weight"])
