"""A U-Net with weights: their source, configuration and type."""

from __future__ import annotations

import hashlib

import pytest
import torch
from helpers import DATA

from trt_native.errors import ModelError, SpecError
from trt_native.models.latentsync import UNetConfig, load_checkpoint, load_unet

CHECKPOINT = DATA / "unet_small.pt"


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


def test_random_weights_differ_by_seed():
    one, again, other = (
        load_unet(config="small", random_seed=seed)[0].conv_in.weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
