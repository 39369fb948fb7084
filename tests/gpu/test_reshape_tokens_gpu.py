"""Transformers with convolutions over their tokens, in FP16, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.passes import pass_records

from trt_native import BuildConfig, Precision, Session, build_plan
from trt_native.export import export_module
from trt_native.shapes import ProfileSpec

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.gpu

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


@pytest.mark.parametrize("dim", ["b=2", "b=1:2:4"])
def test_blocks_with_several_heads(tmp_path, dim):
    torch.manual_seed(33)
    module = torch.nn.Sequential(Block(), Block()).eval()
    example = torch.randn(2, SIDE * SIDE, WIDTH)
    path = tmp_path / "m.onnx"
    export_module(module, (example,), path=path, dynamic={"x": {0: "b"}}, input_names=["x"])
    config = BuildConfig(precision=Precision.FP16, profiles=(ProfileSpec.parse([dim]),))
    plan = build_plan(path, config)
    assert pass_records(plan.manifest)["reshape_tokens"]["nodes"] == {"Reshape": 2}
    with Session(plan) as session:
        for batch in [2] if dim == "b=2" else [1, 2, 3, 4]:
            x = torch.randn(batch, SIDE * SIDE, WIDTH)
            (found,) = session.run({"x": x.numpy()}).values()
            expected = module(x).detach().numpy()
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            assert error < 5e-3, batch
