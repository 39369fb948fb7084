"""A network for images of 64 x 64, its export, and samples of data: .npz files and a video."""

from pathlib import Path

import av
import numpy as np
import torch
from torch import nn

from trt_native.export import export_module


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


def write_samples(folder, files=4, images=25):
    """Write files of images with their labels."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for i in range(files):
        batch = generator.random((images, 3, 64, 64), np.float32)
        labels = generator.integers(0, 10, images)
        np.savez(folder / f"{i:03}.npz", image=batch, label=labels)


def write_video(path, frames=50):
    """Write a video of 96 x 64 whose frames become brighter."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(frames):
            pixels = np.full((64, 96, 3), 5 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    torch.manual_seed(0)
    export_module(
        Net().eval(),
        {"image": torch.zeros(2, 3, 64, 64)},
        path="net.onnx",
        dynamic={"image": {0: "batch"}},
        output_names=["logits"],
    )
    write_samples(Path("samples"))
    Path("videos").mkdir(exist_ok=True)
    write_video("videos/clip.mp4")
