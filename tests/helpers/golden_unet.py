"""The small golden U-Net: its checkpoint, and outputs of the original for some inputs."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir

from helpers import DATA
from trt_native.graph.onnx_file import save_model
from trt_native.models.latentsync.export import unet_model
from trt_native.models.latentsync.graph import Dims
from trt_native.models.latentsync.weights import load_weights

DIMS = ("batch=1:2:2", "frames=1:4:16", "height=8:16:32", "width=8:16:32", "tokens=5:5:10")


def two_level_config():
    """The golden configuration with two of its four levels, for what need not have its outputs."""
    return {
        **json.loads((DATA / "unet_small.json").read_text()),
        "block_out_channels": [32, 32],
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    }


def cases():
    arrays = np.load(DATA / "unet_small.npz")
    names = sorted({key.split(".")[0] for key in arrays})
    return [
        {key.split(".")[1]: arrays[key] for key in arrays if key.startswith(f"{name}.")}
        for name in names
    ]


def export(path, dtype=ir.DataType.FLOAT):
    """Export with a dynamic number of audio tokens, which differs between the golden cases."""
    weights = load_weights(
        config=DATA / "unet_small.json",
        checkpoint=DATA / "unet_small.pt",
        random_seed=None,
        dtype=dtype,
        allow_mismatch=False,
        progress=None,
    )
    dims = Dims("batch", "frames", "height", "width", "tokens")
    save_model(unet_model(weights, dims, dtype=dtype), path)
    return path
