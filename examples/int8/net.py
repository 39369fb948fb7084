"""A classifier of feature vectors, its calibration data, and its export."""

import numpy as np
import torch
from torch import nn

from trt_native.export import export_module


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10)
        )

    def forward(self, features):
        return self.layers(features)


def net():
    torch.manual_seed(0)
    return Net().eval()


def samples(count, seed):
    """Feature vectors (count, 64) in float32, as the network meets them in use."""
    return np.random.default_rng(seed).standard_normal((count, 64), np.float32)


def calibration():
    """Batches of the inputs by name; the same every time, as they are read twice."""
    for seed in range(8):
        yield {"features": samples(32, seed)}


if __name__ == "__main__":
    export_module(
        net(),
        {"features": torch.from_numpy(samples(2, 0))},
        path="net.onnx",
        dynamic={"features": {0: "batch"}},
        output_names=["logits"],
    )
    np.save("held_out.npy", samples(32, 100))
