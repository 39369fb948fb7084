"""The small golden U-Net: its checkpoint, and outputs of the original for some inputs."""

from __future__ import annotations

import numpy as np

from helpers import DATA

DIMS = ("batch=1:2:2", "frames=1:4:16", "height=8:16:32", "width=8:16:32", "tokens=5:5:10")


def cases():
    arrays = np.load(DATA / "unet_small.npz")
    names = sorted({key.split(".")[0] for key in arrays})
    return [
        {key.split(".")[1]: arrays[key] for key in arrays if key.startswith(f"{name}.")}
        for name in names
    ]


def export(path, dtype="float32"):
    """Export with a dynamic number of audio tokens, which differs between the golden cases.

    The example's shapes are those of none of them.
    """
    import torch

    from trt_native.export import export_module
    from trt_native.models.latentsync import UNet, UNetConfig, load_checkpoint, load_into

    checkpoint = load_checkpoint(DATA / "unet_small.pt")
    unet = UNet(UNetConfig.load(DATA / "unet_small.json"))
    load_into(unet, checkpoint.state_dict)
    kind = getattr(torch, dtype)
    inputs = {
        "latents": torch.zeros(2, 13, 5, 24, 32, dtype=kind),
        "timestep": torch.zeros(1, dtype=torch.int64),
        "encoder_hidden_states": torch.zeros(10, 7, 24, dtype=kind),
    }
    dynamic = {
        "latents": {0: "batch", 2: "frames", 3: "height", 4: "width"},
        "encoder_hidden_states": {0: "batch*frames", 1: "tokens"},
    }
    unet.to(kind)
    export_module(unet, inputs, path=path, dynamic=dynamic, output_names=["noise_pred"])
    return path
