"""A U-Net with weights: their source, configuration and type."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import DATA
from helpers.metrics import relative_error

from trt_native.errors import ModelError, SpecError
from trt_native.models.latentsync import UNetConfig, load_checkpoint, load_unet

CHECKPOINT = DATA / "unet_small.pt"


@pytest.fixture(scope="module")
def state():
    return torch.load(CHECKPOINT, weights_only=True)["state_dict"]


def test_the_weights_are_those_of_the_file(state):
    unet, sha256 = load_unet(config="small", checkpoint=CHECKPOINT)
    assert sha256 == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    found = unet.state_dict()
    assert torch.equal(found["conv_in.weight"], state["conv_in.weight"].float())
    assert not unet.training
    assert not any(parameter.requires_grad for parameter in unet.parameters())


def test_a_state_dict_has_no_hash(state):
    unet, sha256 = load_unet(config="small", checkpoint=dict(state), dtype="bfloat16")
    assert sha256 is None
    assert {tensor.dtype for tensor in unet.parameters()} == {torch.bfloat16}
    assert torch.equal(unet.conv_in.weight, state["conv_in.weight"].bfloat16())


@pytest.mark.parametrize("sources", [{}, {"checkpoint": CHECKPOINT, "random_seed": 0}])
def test_there_is_exactly_one_source_of_weights(sources):
    with pytest.raises(SpecError, match="either a checkpoint or a random_seed"):
        load_unet(config="small", **sources)


def test_the_configuration_of_the_checkpoint_is_the_default(tmp_path, state):
    path = tmp_path / "c.pt"
    own = {**UNetConfig.load("small").to_dict(), "norm_eps": 0.25}
    torch.save({"config": own, "state_dict": dict(state)}, path)
    assert load_unet(checkpoint=path)[0].config.norm_eps == 0.25
    small = UNetConfig.load("small")
    for given in ("small", small, DATA / "unet_small.json"):
        assert load_unet(config=given, checkpoint=load_checkpoint(path))[0].config == small


def test_a_checkpoint_that_does_not_fit(state, caplog):
    partial = dict(state)
    del partial["conv_in.bias"]
    with pytest.raises(ModelError, match=r"1 missing: conv_in\.bias"):
        load_unet(config="small", checkpoint=partial)
    unet, _ = load_unet(config="small", checkpoint=partial, allow_mismatch=True)
    assert "the checkpoint does not fit: 1 missing: conv_in.bias" in caplog.text
    assert torch.equal(unet.conv_in.weight, state["conv_in.weight"].float())
    assert torch.isfinite(unet.conv_in.bias).all()


def without_motion(state):
    return {name: tensor for name, tensor in state.items() if ".motion_modules." not in name}


@pytest.mark.parametrize("allow_mismatch", [False, True])
@pytest.mark.parametrize("preset", ["small", "without motion"])
def test_a_checkpoint_of_latentsync_1_0(state, caplog, preset, allow_mismatch):
    old = {
        re.sub(r"\.(norm|attn)2\.", r".audio_cross_attn.\1.", name) if ".attentions." in name
        else name: tensor
        for name, tensor in without_motion(state).items()
    }  # fmt: skip
    assert sum("audio_cross_attn.norm." in name for name in old) > 10
    config = UNetConfig.load("small")
    if preset != "small":
        config = replace(config, use_motion_module=False)
    unet, _ = load_unet(config=config, checkpoint=old, allow_mismatch=allow_mismatch)
    inputs, expected = np.load(DATA / "unet_small.npz"), np.load(DATA / "unet_1_0_small.npz")
    for name in ("case0", "case1", "case2"):
        given = [inputs[f"{name}.{i}"] for i in ("latents", "timestep", "encoder_hidden_states")]
        found = unet(*map(torch.from_numpy, given))
        assert relative_error(found, torch.from_numpy(expected[f"{name}.noise_pred"])) <= 1e-5
    assert unet.config.use_motion_module is False
    assert unet.config.max_frames is None
    warned = "has no weights for the motion modules: they are left out" in caplog.text
    assert warned == (preset == "small")
    assert "does not fit" not in caplog.text


def test_a_name_of_1_0_beside_todays_is_unexpected(state):
    name = next(name for name in state if ".attentions." in name and ".norm2.weight" in name)
    old = name.replace("norm2", "audio_cross_attn.norm")
    with pytest.raises(ModelError, match=rf"1 unexpected: {re.escape(old)}"):
        load_unet(config="small", checkpoint={**state, old: state[name]})


def test_a_motion_module_with_some_weights_missing_is_an_error(state):
    part = next(name for name in state if "motion_modules" in name and "proj_out" in name)
    with pytest.raises(ModelError, match=rf"1 missing: {re.escape(part)}"):
        load_unet(config="small", checkpoint={k: v for k, v in state.items() if k != part})
    module = part.partition(".temporal_transformer.")[0]
    others = {name: tensor for name, tensor in state.items() if not name.startswith(module)}
    with pytest.raises(ModelError, match=rf"missing: {re.escape(module)}"):
        load_unet(config="small", checkpoint=others)


def test_a_decoder_without_an_encoders_motion_modules(state, caplog):
    decoder = {
        name: tensor for name, tensor in state.items() if not re.match(r"down.*motion", name)
    }
    unet, _ = load_unet(config="small", checkpoint=decoder)
    assert unet.config == replace(UNetConfig.load("small"), motion_module_decoder_only=True)
    assert "has no weights for some of the motion modules" in caplog.text


def test_random_weights_differ_by_seed():
    one, again, other = (
        load_unet(config="small", random_seed=seed)[0].conv_in.weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
