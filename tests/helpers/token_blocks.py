"""A transformer with convolutions over its tokens, which TensorRT miscompiles in FP16 as it is."""

from __future__ import annotations

import torch

SIDE, WIDTH, HEADS = 8, 32, 2


class Block(torch.nn.Module):
    """Attention, and a feed-forward part with a depthwise convolution."""

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.inner, self.outer = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.image = nn.Conv2d(4 * WIDTH, 4 * WIDTH, 3, padding=1, groups=4 * WIDTH)

    def forward(self, x):
        batch, tokens, width = x.shape
        y = self.norms[0](x)
        heads = [
            layer(y).reshape(batch, tokens, HEADS, -1).transpose(1, 2)
            for layer in self.projections[:3]
        ]
        q, k, v = heads
        scores = (q @ k.transpose(-1, -2) * (width // HEADS) ** -0.5).softmax(-1)
        x = x + self.projections[3]((scores @ v).transpose(1, 2).reshape(batch, tokens, width))
        y = self.inner(self.norms[1](x)).transpose(1, 2).reshape(batch, -1, SIDE, SIDE)
        y = self.image(y).reshape(batch, -1, tokens).transpose(1, 2)
        return x + self.outer(torch.nn.functional.gelu(y))


def two_blocks():
    """Two blocks with weights that are always the same; TensorRT has two wrong, and one right."""
    torch.manual_seed(33)
    return torch.nn.Sequential(Block(), Block()).eval()
