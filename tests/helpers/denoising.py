"""LatentSync's denoising loop, what can take a U-Net's place in it, and DeepCache in PyTorch."""

from __future__ import annotations

import sys

import numpy as np
import torch
from onnx.reference import ReferenceEvaluator

from helpers import ROOT
from helpers.made_plans import tensor
from trt_native.models.latentsync import DeepCacheFull, DeepCacheShallow
from trt_native.models.latentsync.pipeline import LatentSyncUNet, UNetOutput

STEPS, GUIDANCE, SIZE, TOKENS = 20, 1.5, 8, 50

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DPM_SOLVER = "DPMSolverMultistepScheduler"
WHOLE_TIMESTEPS = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "DPM++ Karras": (DPM_SOLVER, {"use_karras_sigmas": True}),
    "DPM++ SDE": (DPM_SOLVER, {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "PNDM with Runge-Kutta steps": ("PNDMScheduler", {}),
}
FRACTIONAL_TIMESTEPS = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}),
    "KDPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
}
SCHEDULERS = {**WHOLE_TIMESTEPS, **FRACTIONAL_TIMESTEPS}
"""Classes of diffusers and their arguments besides LatentSync's."""


def diffusers_scheduler(name="DDIM"):
    """A scheduler of diffusers with the settings of LatentSync's DDIM; timesteps are not set."""
    import diffusers

    kind, arguments = SCHEDULERS[name]
    return getattr(diffusers, kind)(**BETAS, steps_offset=1, **arguments)


def scheduler(steps=STEPS, name="DDIM"):
    """A scheduler of diffusers; the DDIM of the scripts where diffusers is not installed.

    test_pipeline.py compares the two.
    """
    try:
        made = diffusers_scheduler(name)
    except ImportError:
        print("diffusers is not installed: DDIM of scripts/latentsync_small.py")
        return OwnDdim(steps)
    made.set_timesteps(steps)
    return made


class OwnDdim:
    """The scripts' DDIM with the interface of diffusers' schedulers, as far as it is used here."""

    def __init__(self, steps):
        scripts = str(ROOT / "scripts")
        sys.path.insert(0, scripts)
        try:
            from latentsync_small import Ddim
        finally:
            sys.path.remove(scripts)
        self._ddim = Ddim(steps)
        self.timesteps = self._ddim.timesteps
        self.init_noise_sigma = 1.0

    def set_timesteps(self, steps):
        assert steps == len(self.timesteps)

    def scale_model_input(self, latents, _timestep):
        return latents

    def step(self, noise, timestep, latents):
        return UNetOutput(self._ddim.step(noise.cpu(), timestep, latents.cpu()).to(noise.device))


def video(frames, size=SIZE, seed=0, features=24):
    """Latents of mask, masked image and reference (1, 9, frames, size, size); audio per frame."""
    random = torch.Generator().manual_seed(seed)
    condition = torch.randn(1, 9, frames, size, size, generator=random)
    condition[:, :1] = (condition[:, :1] > 0).float()
    return condition, torch.randn(frames, TOKENS, features, generator=random)


def denoise(
    unet, condition, audio, *, guidance=GUIDANCE, chunk=2, seed=0, steps=STEPS, schedule="DDIM"
):
    """Denoise a video in chunks, the last one perhaps shorter, as LatentSync's pipeline does.

    The unet is called with the scheduler's own 0-d timesteps, and with both halves of guidance in
    one call. Schedulers draw their noise from torch's default generator, which is seeded.

    Returns:
        The latents, (1, 4, frames, height, width), in the type of ``condition``.
    """
    random = torch.Generator().manual_seed(seed)
    shape = (1, 4, 1, *condition.shape[-2:])
    start = torch.randn(shape, generator=random).to(condition.device, condition.dtype)
    torch.manual_seed(seed)
    noises, done = scheduler(steps, schedule), []
    for first in range(0, condition.shape[2], chunk):
        part = condition[:, :, first : first + chunk]
        heard = audio[first : first + chunk]
        if done:  # schedulers of more than one stage remember where they are
            noises.set_timesteps(steps)
        latents = start.repeat(1, 1, part.shape[2], 1, 1) * noises.init_noise_sigma
        if guidance > 1:
            part, heard = torch.cat([part] * 2), torch.cat([torch.zeros_like(heard), heard])
        for step in noises.timesteps:
            halves = noises.scale_model_input(torch.cat([latents] * len(part)), step)
            given = torch.cat([halves, part], dim=1)
            noise = unet(given, step.to(given.device), encoder_hidden_states=heard).sample
            if guidance > 1:
                without, with_audio = noise.chunk(2)
                noise = without + guidance * (with_audio - without)
            latents = noises.step(noise, step, latents)[0]
        done.append(latents)
    return torch.cat(done, dim=2)


class InPyTorch:
    """A module of the package, called as LatentSync calls its own."""

    def __init__(self, unet):
        self.unet = unet

    def __call__(self, sample, timestep, encoder_hidden_states=None):
        with torch.inference_mode():
            return UNetOutput(self.unet(sample, timestep, encoder_hidden_states).clone())


class TorchStepRunner:
    """Runs a PyTorch module as if it were a plan with these tensors."""

    device = torch.device("cpu")

    def __init__(self, name, module, tensors):
        self.name, self.tensors = name, tensors
        self._module = module
        self.runs = []
        self.closed = False

    def run(self, inputs, outputs):
        self._check(inputs, "input")
        self._check(outputs, "output")
        self.runs.append((dict(inputs), dict(outputs)))
        with torch.no_grad():
            found = self.compute(inputs)
        for name, value in zip(outputs, found, strict=True):
            outputs[name].copy_(value)

    def compute(self, inputs):
        found = self._module(**inputs)
        return found if isinstance(found, tuple) else (found,)

    def close(self):
        self.closed = True

    def _check(self, given, mode):
        wanted = {t.name: t for t in self.tensors if t.mode == mode}
        assert list(given) == list(wanted)
        for name, value in given.items():
            assert str(value.dtype) == f"torch.{wanted[name].dtype}"
            assert value.is_contiguous()


class OnnxStepRunner(TorchStepRunner):
    """Runs an ONNX file with onnx.reference as if it were a plan with these tensors."""

    def __init__(self, path, tensors):
        super().__init__(path.name, None, tensors)
        self._evaluator = ReferenceEvaluator(str(path))

    def compute(self, inputs):
        found = self._evaluator.run(None, {name: value.numpy() for name, value in inputs.items()})
        return tuple(map(torch.from_numpy, found))


def plan_tensors(
    kind="single",
    dtype="float32",
    batch="1:2:2",
    frames="1:4:16",
    size="8:16:32",
    timestep="int64",
):
    """The tensors of the small U-Net's plan: ``single``, or DeepCache's ``full`` or ``shallow``."""
    bounds = [tuple(map(int, f"{text}:{text}:{text}".split(":")[:3])) for text in (batch, frames)]
    sides = tuple(map(int, f"{size}:{size}:{size}".split(":")[:3]))
    triples = list(zip(*bounds, sides, strict=True))

    def ranged(name, mode, *shapes):
        texts = ["x".join(map(str, shape)) for shape in shapes]
        if len(set(texts)) == 1:
            return tensor(name, mode, dtype, shape=shapes[0])
        return tensor(name, mode, dtype, ":".join(texts))

    inputs = [
        ranged("latents", "input", *((b, 13, f, s, s) for b, f, s in triples)),
        tensor("timestep", "input", timestep, shape=(1,)),
        ranged("encoder_hidden_states", "input", *((b * f, TOKENS, 24) for b, f, _ in triples)),
    ]
    outputs = [tensor("noise_pred", "output", dtype, shape=(-1, 4, -1, -1, -1))]
    features = [(b * f, 32, s, s) for b, f, s in triples]
    if kind == "shallow":
        inputs.append(ranged("deep_features", "input", *features))
    if kind == "full":
        outputs.append(tensor("deep_features", "output", dtype, shape=(-1, 32, -1, -1)))
    return (*inputs, *outputs)


def of_kind(kind, unet):
    """The U-Net with its weights as another class of the package."""
    step = kind(unet.config).eval().requires_grad_(False)
    step.load_state_dict(unet.state_dict())
    return step.to(next(unet.parameters()).dtype)


def drop_in(unet, **tensors):
    """LatentSyncUNet with a U-Net of the package in the plan's place."""
    return LatentSyncUNet(
        TorchStepRunner("unet.plan", unet, plan_tensors(**tensors)), config=unet.config
    )


def deepcache_drop_in(unet, interval=3, **tensors):
    """LatentSyncUNet with DeepCache's two steps in PyTorch, and the two runners."""
    full, shallow = (
        TorchStepRunner(name, of_kind(kind, unet), plan_tensors(step, **tensors))
        for name, kind, step in (
            ("unet.plan", DeepCacheFull, "full"),
            ("unet.shallow.plan", DeepCacheShallow, "shallow"),
        )
    )
    return LatentSyncUNet(full, shallow, config=unet.config, interval=interval), full, shallow


def with_cached_modules(unet, interval, timesteps):
    """DeepCache as published: outputs of all modules but the outermost ones are kept and reused.

    Written from the paper's rule for branch 0 and uniform intervals, as a wrapper around every
    ResNet block, transformer, sampler and block of a U-Net. The step's number is the place of its
    timestep among the scheduler's ``timesteps``.
    """
    places = [float(step) for step in timesteps]
    current = {"full": True}
    kept = {}
    last = unet.up_blocks[-1]
    blocks = [*unet.down_blocks, *unet.up_blocks]
    wrapped = [part for block in blocks for part in (*block.resnets, *block.attentions)]
    wrapped = [part for part in wrapped if part not in (last.resnets[-1], last.attentions[-1])]
    samplers = [block.downsamplers for block in unet.down_blocks if block.downsamplers]
    samplers += [block.upsamplers for block in unet.up_blocks if block.upsamplers]
    wrapped += [unet.mid_block, *(sampler[0] for sampler in samplers)]

    def wrap(module):
        forward = module.forward

        def cached(*args, **kwargs):
            if current["full"]:
                kept[module] = forward(*args, **kwargs)
            return kept[module]

        module.forward = cached

    for module in wrapped:
        wrap(module)

    def run(latents, timestep, encoder_hidden_states):
        current["full"] = places.index(float(timestep)) % interval == 0
        return unet(latents, timestep, encoder_hidden_states)

    return run


def psnr(found, expected):
    """In dB, against the range of the expected values; infinite where all are equal."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    error = float(np.mean((found - expected) ** 2))
    return 10 * np.log10((expected.max() - expected.min()) ** 2 / error) if error else np.inf
