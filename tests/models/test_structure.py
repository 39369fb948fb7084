"""Names, shapes and random values of parameters, against the module and the published model."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from helpers import DATA

from trt_native.models.latentsync import UNet, UNetConfig
from trt_native.models.latentsync.structure import parameter_shapes, random_parameters


def test_the_published_model_has_these_parameters():
    with gzip.open(DATA / "latentsync_1_6_state_dict.json.gz") as file:
        published = {name: tuple(shape) for name, (shape, _) in json.load(file).items()}
    found = parameter_shapes(UNetConfig.load("latentsync-1.6"))
    assert found == published


def test_the_order_is_that_of_the_module():
    config = UNetConfig.load("small")
    with torch.device("meta"):
        state = UNet(config).state_dict()
    found = parameter_shapes(config)
    assert list(found.items()) == [(name, tuple(tensor.shape)) for name, tensor in state.items()]


@pytest.mark.parametrize("seed", [0, 2**32 + 7])
def test_random_values_are_those_of_the_module(seed):
    config = UNetConfig.load("small")
    unet = UNet(config)
    unet.init_random(seed)
    expected = unet.state_dict()
    for name, values in random_parameters(config, seed):
        if name.endswith(".pe"):
            np.testing.assert_allclose(values, expected.pop(name), rtol=0, atol=1e-6)
        else:
            assert np.array_equal(values, expected.pop(name)), name
    assert not expected
