"""Weights, modules, ONNX files and plans of the U-Net benchmark, and their creation.

Without a checkpoint, weights repeat one block of random values. GPUs do not mind, plans with them
compress by xz to a thousandth, and every machine makes the same ones in a second: plans that were
built without a GPU can be brought to one, and checked there, without moving gigabytes.
"""

from __future__ import annotations

import json
import lzma
import math
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from naive_unet import NaiveUNet
from torch import Tensor

from trt_native.errors import BuildError, SpecError
from trt_native.export import export_module
from trt_native.models.latentsync import UNet, UNetConfig, load_unet
from trt_native.models.latentsync.export import AUDIO_TOKENS, export_deepcache, export_latentsync
from trt_native.plans.manifest import manifest_path

ONNX = {
    "static": "unet",
    "dynamic": "unet",
    "naive": "naive",
    "full": "deepcache",
    "shallow": "deepcache.shallow",
}
"""The ONNX file that each plan is built from, without its ending."""

PERIOD = 16384  # of repeated weights
# Long matches from far back, searched for quickly: what repeats, repeats in many places.
_PACKING = [{"id": lzma.FILTER_LZMA2, "preset": 1, "nice_len": 273, "dict_size": 64 << 20}]

_Kind = TypeVar("_Kind", bound=UNet)


@dataclass(frozen=True)
class Setup:
    """The measured configuration, and the paths of its files.

    Attributes:
        work: Folder for what is made.
        config: A preset's name, or a YAML or JSON file.
        checkpoint: Weights; None for repeated ones.
        batch: Extent of the latents, as the next two.
        frames: The same.
        size: Height and width.
    """

    work: Path
    config: str = "latentsync-1.6"
    checkpoint: Path | None = None
    batch: int = 2
    frames: int = 16
    size: int = 64

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Setup:
        """The inverse of :meth:`to_json`."""
        data = json.loads(text)
        paths = {name: Path(data[name]) for name in ("work", "checkpoint") if data[name]}
        return cls(**{**data, **paths})

    def plan(self, name: str) -> Path:
        """Path of a plan, whether or not it exists."""
        return self.work / f"{name}.plan"

    def inputs(self, device: str) -> tuple[Tensor, Tensor]:
        """Latents and audio in FP32, the same in every process."""
        config = UNetConfig.load(self.config)
        random = torch.Generator().manual_seed(0)
        shape = (self.batch, config.in_channels, self.frames, self.size, self.size)
        audio = (self.batch * self.frames, AUDIO_TOKENS, config.cross_attention_dim)
        latents, heard = (torch.randn(s, generator=random) for s in (shape, audio))
        if self.batch == 2:
            heard[: self.frames] = 0  # the unconditional half of guidance
        return latents.to(device), heard.to(device)


def load_module(
    kind: type[_Kind], setup: Setup, device: str, dtype: torch.dtype = torch.float16
) -> _Kind:
    """A U-Net of either layout with the weights that are measured."""
    with torch.device("meta"):
        unet = kind(UNetConfig.load(setup.config))
    if setup.checkpoint is None:
        unet.half().to_empty(device=device)
        repeat_weights(unet)
    else:
        name = str(dtype).removeprefix("torch.")
        made, _ = load_unet(config=setup.config, checkpoint=setup.checkpoint, dtype=name)
        unet.load_state_dict(made.state_dict(), assign=True)
    return unet.to(device, dtype).requires_grad_(False).eval()


@torch.no_grad()
def repeat_weights(unet: UNet) -> None:
    """Fill with one block of random values times powers of two that keep the variance.

    The first value of each is its own, or TensorRT would keep equal weights only once.
    """
    random = np.random.RandomState(0)  # its values are the same in every version of NumPy
    block = torch.from_numpy(random.uniform(-1, 1, PERIOD)).half()
    for number, (name, parameter) in enumerate(unet.named_parameters()):
        if parameter.ndim > 1:
            scale = 2.0 ** round(math.log2(math.sqrt(3 / parameter[0].numel())))
            values = block * scale
        else:
            scale = 0.125
            values = block * scale + float("norm" in name and name.endswith("weight"))
        repeats = -(-parameter.numel() // PERIOD)
        flat = values.to(parameter.device).repeat(repeats)[: parameter.numel()]
        flat[0] += scale * (number % 1024 - 512) / 1024
        parameter.copy_(flat.view(parameter.shape))
    positions: list[Any] = [module for module in unet.modules() if hasattr(module, "pe")]
    for module in positions:
        module.reset()


# From weights to plans ----------------------------------------------------------------------------


def export(setup: Setup, stem: str) -> None:
    """Write WORK/STEM.onnx in FP16; ``deepcache`` writes its shallow step too."""
    path = setup.work / f"{stem}.onnx"
    if stem == "naive":
        unet = load_module(NaiveUNet, setup, "cpu")
        latents, audio = (tensor.half() for tensor in setup.inputs("cpu"))
        export_module(
            unet,
            {
                "latents": latents,
                "timestep": torch.ones(1, dtype=torch.int64),
                "encoder_hidden_states": audio,
            },
            path=path,
            output_names=["noise_pred"],
            metadata={"trt_native.config": json.dumps(unet.config.to_dict())},
        )
        return
    write: Any = export_deepcache if stem == "deepcache" else export_latentsync
    source = setup.checkpoint or load_module(UNet, setup, "cpu").state_dict()
    write(path, config=setup.config, checkpoint=source, precision="fp16")


def build(setup: Setup, name: str) -> None:
    """Build a plan from its ONNX file, as users do."""
    batch, frames, size = setup.batch, setup.frames, setup.size
    dims: dict[str, object] = {"batch": batch, "frames": frames, "height": size, "width": size}
    if name == "dynamic":
        sides = f"{max(size // 2, 8)}:{size}:{size}"
        dims = {"batch": f"1:{batch}:{batch}", "frames": f"1:{frames}:{frames}"}
        dims |= {"height": sides, "width": sides}
    elif name == "naive":
        dims = {}  # its ONNX file has these extents and no others
    words: list[Any] = [
        "build",
        setup.work / f"{ONNX[name]}.onnx",
        "-o",
        setup.plan(name),
        "--no-cache",
    ]
    words += [f"--dim={dim}={text}" for dim, text in dims.items()]
    command([*words, *(["--add-opt-shape-profiles"] if name == "dynamic" else [])])


def command(words: list[Any]) -> str:
    """Run trt-native.

    Returns:
        What it wrote about its progress: a line for each phase, with the time.

    Raises:
        BuildError: it failed.
    """
    run = [sys.executable, "-m", "trt_native", *map(str, words)]
    done = subprocess.run(run, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()[-10:]
        raise BuildError(f"{' '.join(run[2:5])} failed ({done.returncode})", lines)
    return done.stderr


def pack(plan: Path) -> None:
    """Replace a plan by PLAN.xz; its manifest stays."""
    target = plan.with_name(f"{plan.name}.xz")
    with plan.open("rb") as file, lzma.open(target, "wb", filters=_PACKING) as packed:
        shutil.copyfileobj(file, packed, 1 << 22)
    plan.unlink()


def unpack(folder: Path, setup: Setup, name: str) -> None:
    """Put a plan of a folder into the work folder, with its manifest.

    Raises:
        SpecError: there is none.
    """
    target, source = setup.plan(name), folder / f"{name}.plan"
    packed = source.with_name(f"{source.name}.xz")
    if not source.exists() and not packed.exists():
        raise SpecError(
            f"{folder} has no {name}.plan or {name}.plan.xz; 'unet.py prepare' makes it"
        )
    partial = target.with_name(f"{target.name}.partial")
    with (
        source.open("rb") if source.exists() else lzma.open(packed) as file,
        partial.open("wb") as written,
    ):
        shutil.copyfileobj(file, written, 1 << 22)
    if source != target:
        shutil.copyfile(manifest_path(source), manifest_path(target))
    partial.replace(target)
