"""LoRA adapters in the plan of the golden U-Net, against PyTorch with merged weights."""

from __future__ import annotations

import time

import pytest
import torch
from helpers import DATA, denoising
from helpers.denoising import InPyTorch
from helpers.metrics import relative_error
from safetensors.torch import save_file

from trt_native import BuildConfig, LatentSyncUNet, ProfileSpec, build_plan
from trt_native.errors import SpecError
from trt_native.models.latentsync import load_unet
from trt_native.models.latentsync.export import export_latentsync

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.backend,
    pytest.mark.slow,
    pytest.mark.usefixtures("exact_fp32"),
]

GOLDEN = {"config": "small", "checkpoint": DATA / "unet_small.pt"}
DIMS = ProfileSpec.parse(["batch=2", "frames=4", "height=16", "width=16"])


def loaded():
    return load_unet(**GOLDEN)[0].cuda().requires_grad_(False)


@pytest.fixture(scope="module", params=[(), ("*.weight*",)], ids=["all", "marked"])
def plan(request, tmp_path_factory):
    """An FP32 plan whose weights can be replaced, next to its ONNX file."""
    folder = tmp_path_factory.mktemp("lora")
    export_latentsync(folder / "unet.onnx", **GOLDEN)
    options = {"refit": True, "refit_weights": request.param}
    config = BuildConfig(profiles=DIMS, precision="fp32", **options)
    started = time.perf_counter()
    path = build_plan(folder / "unet.onnx", config).save(folder / "unet.plan")
    print(f"build: {time.perf_counter() - started:.1f} s")
    return path


@pytest.fixture
def replacement(plan):
    with LatentSyncUNet.from_plan(plan) as loaded:
        yield loaded


def layers(unet, kinds):
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
        and any(kind in name for kind in kinds)
    }


def adapter(path, unet, kinds, keys, rank=4, seed=0):
    """Save random factors of some layers; returns them by the layer's name."""
    random, made, tensors = torch.Generator().manual_seed(seed), {}, {}
    for name, module in layers(unet, kinds).items():
        outputs, inputs, *kernel = module.weight.shape
        down = torch.randn(rank, inputs, *kernel, generator=random) * 0.1
        up = torch.randn(outputs, rank, *[1 for _ in kernel], generator=random) * 0.1
        made[name] = up, down
        tensors |= dict(zip(keys(name), (up, down), strict=True))
    save_file(tensors, path)
    return made


def merge(unet, made, scale):
    for name, (up, down) in made.items():
        weight = unet.get_submodule(name).weight
        weight += scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape).cuda()


def diffusers_keys(name):
    return f"unet.{name}.lora.up.weight", f"unet.{name}.lora.down.weight"


def kohya_keys(name):
    flat = name.replace(".", "_")
    return f"lora_unet_{flat}.lora_up.weight", f"lora_unet_{flat}.lora_down.weight"


def run(unet):
    random = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 13, 4, 16, 16, generator=random).cuda()
    audio = torch.randn(8, denoising.TOKENS, 24, generator=random).cuda()
    with torch.no_grad():
        return unet(sample, torch.tensor(500).cuda(), audio).sample.cpu()


def test_adapters_are_those_of_merged_weights(replacement, tmp_path):
    unet = loaded()
    own = run(replacement)
    first = adapter(tmp_path / "a.safetensors", unet, ["to_q", "to_v", "to_out"], diffusers_keys)
    second = adapter(
        tmp_path / "b.safetensors", unet, ["to_q", "conv1", "ff.net"], kohya_keys, seed=1
    )
    assert len(first) > 20
    assert len(second) > 20
    started = time.perf_counter()
    replacement.load_lora(tmp_path / "a.safetensors", 0.8)
    print(f"first adapter of {len(first)} layers: {time.perf_counter() - started:.3f} s")
    started = time.perf_counter()
    replacement.load_lora(tmp_path / "b.safetensors", -0.5)
    print(f"second of {len(second)}: {time.perf_counter() - started:.3f} s")
    merge(unet, first, 0.8)
    merge(unet, second, -0.5)
    expected = run(InPyTorch(unet))
    assert relative_error(own, expected) > 1e-2
    assert relative_error(run(replacement), expected) <= 1e-3
    replacement.unload_lora("a")
    unet = loaded()
    merge(unet, second, -0.5)
    assert relative_error(run(replacement), run(InPyTorch(unet))) <= 1e-3
    replacement.unload_lora()
    assert torch.equal(run(replacement), own)


def test_an_adapter_of_another_model_changes_nothing(replacement, tmp_path):
    own = run(replacement)
    save_file(
        {name: torch.ones(4, 4) for name in kohya_keys("nowhere")}, tmp_path / "a.safetensors"
    )
    with pytest.raises(SpecError, match="nowhere is not in the U-Net"):
        replacement.load_lora(tmp_path / "a.safetensors")
    assert torch.equal(run(replacement), own)
