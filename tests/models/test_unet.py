"""The U-Net against outputs, keys and files of the original module."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from helpers import DATA

from trt_native.errors import SpecError
from trt_native.models.latentsync import UNet, UNetConfig, load_checkpoint, load_into


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
