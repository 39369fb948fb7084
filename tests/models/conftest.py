"""Models and weights that several tests of LatentSync use."""

from __future__ import annotations

import pytest
import torch
from helpers import DATA

from trt_native.models.latentsync import load_unet
from trt_native.models.latentsync.vae import VAE_PRESETS, load_vae


@pytest.fixture(scope="module")
def unet():
    """The small U-Net with the weights of the golden data."""
    return load_unet(config="small", checkpoint=DATA / "unet_small.pt")[0]


@pytest.fixture(scope="module")
def state():
    """Those weights, as PyTorch reads them."""
    return torch.load(DATA / "unet_small.pt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def vae():
    """The small VAE with random weights."""
    return load_vae(config=VAE_PRESETS["small"], random_seed=3)[0]
