"""A small network for images: its export, an input for it, and the output that PyTorch computes."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from trt_native.export import export_module


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


if __name__ == "__main__":
    torch.manual_seed(0)
    net = Net().eval()
    image = torch.rand(8, 3, 32, 32)
    export_module(
        net,
        {"image": image},
        path="net.onnx",
        dynamic={"image": {0: "batch"}},
        output_names=["logits"],
    )
    np.save("image.npy", image.numpy())
    Path("expected").mkdir(exist_ok=True)
    with torch.inference_mode():
        np.save("expected/logits.npy", net(image).numpy())
