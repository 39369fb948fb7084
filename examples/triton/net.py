"""A small network for images, and its export."""

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
    export_module(
        Net().eval(),
        {"image": torch.zeros(2, 3, 32, 32)},
        path="net.onnx",
        dynamic={"image": {0: "batch"}},
        output_names=["logits"],
    )
