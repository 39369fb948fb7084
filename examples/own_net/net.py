"""A network of your own, and its export."""

import torch
from torch import nn

from trt_native.export import export_module


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, image):
        features = torch.relu(self.norm(self.conv(image)))
        return self.head(features.mean((2, 3)))


torch.manual_seed(0)
net = Net().eval()

if __name__ == "__main__":
    export_module(
        net,
        {"image": torch.zeros(2, 3, 32, 32)},
        path="net.onnx",
        dynamic={"image": {0: "batch"}},
        output_names=["logits"],
    )
