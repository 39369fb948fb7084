"""The steps of LatentSync's U-Net on one device: its buffers, DeepCache's schedule, its checks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trt_native.errors import SpecError
from trt_native.models.latentsync.config import UNetConfig
from trt_native.models.latentsync.inputs import fractional_timestep
from trt_native.models.latentsync.plan_module import StepRunner, StreamFollower
from trt_native.plans.manifest import PlanTensor
from trt_native.runtime.tensor_views import torch_dtype

__all__ = ["UNetSteps"]

_LATENTS, _TIMESTEP, _AUDIO = "latents", "timestep", "encoder_hidden_states"
_NOISE, _FEATURES = "noise_pred", "deep_features"
_AXES = {"batch": 0, "frames": 2, "height": 3, "width": 4}  # of the latents
_ROUNDING = 1e-3  # of timesteps up to 1000 in float32
_LOGGER = logging.getLogger(__name__)


class UNetSteps:
    """Runs steps on one device, in the order of torch's current stream there.

    Args:
        full: Runs full steps.
        shallow: Runs steps that reuse the deep features of an earlier one.
        config: The U-Net's configuration.
        interval: With ``shallow``: number of timesteps per full step.

    Attributes:
        runners: The runners; the caller owns them.
        device: The device.
        dtype: Type of the latents, by NumPy's name.

    Raises:
        SpecError: the runners do not match the configuration, or each other.
    """

    def __init__(
        self, full: StepRunner, shallow: StepRunner | None, *, config: UNetConfig, interval: int
    ) -> None:
        _check_plans(full, shallow, config, interval)
        self.runners = (full,) if shallow is None else (full, shallow)
        self.device = full.device
        self.dtype = _tensor(full, _LATENTS).dtype
        self._config = config
        self._full = full
        self._shallow = shallow
        self._schedule = None if shallow is None else _Schedule(interval)
        self._memory: _Memory | None = None
        self._streams = StreamFollower(self.device)
        _warn_of_fixed_frames(full)

    def reset(self) -> None:
        """Make the next step a full one. No effect without a shallow plan."""
        if self._schedule is not None:
            self._schedule.reset()

    def release(self) -> None:
        """Free the buffers, which the next step allocates again."""
        self._memory = None

    def run(self, sample: Tensor, timestep: Tensor | float, audio: Tensor | None) -> Tensor:
        """Run a step.

        Args:
            sample: Latents, on any device.
            timestep: A number, 0-d, (1,) or (batch,) with equal values.
            audio: (batch*frames, tokens, features) or (batch, frames, tokens, features).

        Returns:
            The noise in the plan's type on this device, in memory that the next step overwrites.

        Raises:
            SpecError: the inputs do not fit the model, or the plan was not built for their shapes.
        """
        self._streams.follow(self._memory.tensors.values() if self._memory else ())
        shapes = self.shapes(sample, audio)
        if self._memory is None or self._memory.shapes != shapes:
            self._check_shapes(shapes)
            self._memory = None  # before the new ones are allocated
            self._memory = self._allocate(shapes)
        tensors = self._memory.tensors
        self._fill_timestep(tensors[_TIMESTEP], timestep, len(sample))
        tensors[_LATENTS].copy_(sample)
        if _AUDIO in tensors and audio is not None:
            tensors[_AUDIO].copy_(audio.detach().reshape(tensors[_AUDIO].shape))
        runner = self._runner_for(timestep, shapes)
        runner.run(
            {t.name: tensors[t.name] for t in runner.tensors if t.mode == "input"},
            {t.name: tensors[t.name] for t in runner.tensors if t.mode == "output"},
        )
        return tensors[_NOISE]

    def _runner_for(self, timestep: Tensor | float, shapes: Mapping[str, Any]) -> StepRunner:
        if self._schedule is None or self._shallow is None:
            return self._full
        value = timestep.flatten()[0].item() if isinstance(timestep, Tensor) else timestep
        return self._full if self._schedule.is_full(value, shapes) else self._shallow

    def shapes(self, sample: Tensor, audio: Tensor | None) -> dict[str, tuple[int, ...]]:
        """Derive the shapes of all tensors of a step from the caller's.

        Raises:
            SpecError: they are not those of latents and audio.
        """
        config = self._config
        fits = sample.ndim == 5 and sample.shape[1] == config.in_channels
        if not fits or not sample.is_floating_point():
            raise SpecError(
                f"sample needs (batch, {config.in_channels}, frames, height, width) in floating"
                f" point, found {tuple(sample.shape)} in {sample.dtype}"
            )
        batch, _, frames, height, width = sample.shape
        shapes: dict[str, tuple[int, ...]] = {
            _LATENTS: tuple(sample.shape),
            _TIMESTEP: (1,),
            _NOISE: (batch, config.out_channels, frames, height, width),
            _FEATURES: (batch * frames, config.block_out_channels[0], height, width),
        }
        if config.add_audio_layer:
            shapes[_AUDIO] = _audio_shape(audio, batch, frames, config.cross_attention_dim)
        return shapes

    def _check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        frames, most = shapes[_LATENTS][2], self._config.max_frames
        if most is not None and frames > most:
            raise SpecError(
                f"sample has {frames} frames, the model has positions for {most};"
                " split the video into shorter chunks"
            )
        for runner in (self._full, self._shallow):
            if runner is not None:
                _check_allowed(runner, shapes)

    def _allocate(self, shapes: dict[str, tuple[int, ...]]) -> _Memory:
        """Allocate the buffers that all steps share: CUDA graphs need fixed addresses."""
        plans = (self._full, self._shallow)
        tensors = [tensor for plan in plans if plan is not None for tensor in plan.tensors]
        return _Memory(
            shapes,
            {
                tensor.name: torch.empty(
                    shapes[tensor.name], dtype=torch_dtype(tensor.dtype), device=self.device
                )
                for tensor in {tensor.name: tensor for tensor in tensors}.values()
            },
        )

    def _fill_timestep(self, buffer: Tensor, timestep: Tensor | float, batch: int) -> None:
        takes_fractions = buffer.dtype == torch.float32
        kind = str(buffer.dtype).removeprefix("torch.")
        if not isinstance(timestep, Tensor):
            timestep = torch.tensor(timestep, dtype=torch.float64)
        values = timestep.detach().reshape(-1)
        if timestep.ndim > 1 or len(values) not in (1, batch):
            raise SpecError(
                f"timestep needs 1 or {batch} values, found shape {tuple(timestep.shape)}"
            )
        if len(values) > 1 and bool((values != values[0]).any()):
            raise SpecError(
                f"the plan takes one timestep for the whole batch, found {values.tolist()}"
            )
        if values.is_floating_point() and not takes_fractions:
            if bool((values != values.round()).any()):
                raise fractional_timestep(values[0].item(), kind)
            values = values.round()
        if values.is_cpu:
            buffer.fill_(values[0].item())  # a copy would wait for the GPU
        else:
            buffer.copy_(values[:1])


@dataclass(frozen=True, slots=True)
class _Memory:
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, Tensor]


class _Schedule:
    """Choice of full timesteps, as DeepCache makes it for uniform intervals.

    Its helper takes a timestep's first place in the scheduler's list. Without a scheduler, this
    counts the calls since the start of the chunk; within a chunk timesteps do not rise, except by
    rounding where a scheduler interpolates them.
    """

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self.reset()

    def reset(self) -> None:
        self._calls = self._place = 0
        self._timestep: float | None = None
        self._shapes: Mapping[str, Any] | None = None

    def is_full(self, timestep: float, shapes: Mapping[str, Any]) -> bool:
        last = self._timestep
        if last is None or timestep > last + _ROUNDING or shapes != self._shapes:
            self._calls = self._place = 0
        else:
            self._calls += 1
            if timestep != last:
                self._place = self._calls
        self._timestep, self._shapes = timestep, shapes
        return self._place % self._interval == 0


def _check_plans(
    full: StepRunner, shallow: StepRunner | None, config: UNetConfig, interval: int
) -> None:
    if interval < 1:
        raise SpecError(
            f"interval {interval}: must be at least 1, the number of timesteps per full step"
        )
    audio = {_AUDIO} if config.add_audio_layer else set()
    inputs = {_LATENTS, _TIMESTEP} | audio
    needed = {_NOISE} if shallow is None else {_NOISE, _FEATURES}
    hint = ""
    if _FEATURES in _names(full, "input"):
        hint = ": this is the shallow step of DeepCache, which LatentSyncUNet.from_plans(full,"
        hint += " shallow) takes second"
    elif _FEATURES in needed - _names(full, "output"):
        hint = ": for from_plans, export with export_deepcache and build NAME.onnx"
    _check_names(full, inputs, needed, hint)
    if shallow is not None:
        hint = ": for from_plans, build NAME.shallow.onnx of export_deepcache"
        _check_names(shallow, inputs | {_FEATURES}, {_NOISE}, hint)
        types = {t.name: t.dtype for t in full.tensors}
        for tensor in shallow.tensors:
            if tensor.dtype != types[tensor.name]:
                raise SpecError(
                    f"{tensor.name} is {types[tensor.name]} in {full.name} and {tensor.dtype} in"
                    f" {shallow.name}; build both with the same options"
                )


def _check_names(runner: StepRunner, inputs: set[str], outputs: set[str], hint: str) -> None:
    """Reject a plan that is not the required step; the other output is allowed."""
    found = _names(runner, "input"), _names(runner, "output")
    if found[0] != inputs or not outputs <= found[1] <= {_NOISE, _FEATURES}:
        raise SpecError(
            f"{runner.name} is not the required step of a LatentSync U-Net{hint};"
            f" found {', '.join(sorted(found[0]))} -> {', '.join(sorted(found[1]))}, needed"
            f" {', '.join(sorted(inputs))} -> {', '.join(sorted(outputs))}"
        )


def _names(runner: StepRunner, mode: str) -> set[str]:
    return {tensor.name for tensor in runner.tensors if tensor.mode == mode}


def _tensor(runner: StepRunner, name: str) -> PlanTensor:
    return next(tensor for tensor in runner.tensors if tensor.name == name)


def _audio_shape(
    audio: Tensor | None, batch: int, frames: int, features: int
) -> tuple[int, int, int]:
    if audio is None:
        raise SpecError("encoder_hidden_states are required: this model has audio layers")
    leading = tuple(audio.shape[:-2])
    if leading not in ((batch * frames,), (batch, frames)) or audio.shape[-1] != features:
        raise SpecError(
            f"encoder_hidden_states need ({batch * frames}, tokens, {features}) or ({batch},"
            f" {frames}, tokens, {features}) for a sample of {batch} x {frames} frames, found"
            f" {tuple(audio.shape)}"
        )
    return batch * frames, audio.shape[-2], features


def _warn_of_fixed_frames(runner: StepRunner) -> None:
    """Warn early of a plan that would fail at the last chunk of a video."""
    ranges = _ranges(_tensor(runner, _LATENTS), _AXES["frames"])
    if all(low > 1 for low, _, _ in ranges):
        _LOGGER.warning(
            "%s takes at least %d frames, and the last chunk of a video may have fewer; build it"
            " with dims frames=1:16:16 for videos of any length",
            runner.name,
            min(low for low, _, _ in ranges),
        )


def _check_allowed(runner: StepRunner, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Reject shapes that no profile of the plan allows, naming ranges that would."""
    inputs = [tensor for tensor in runner.tensors if tensor.mode == "input"]
    count = max(1, *(len(tensor.profiles) for tensor in inputs))
    if any(all(_allows(t, shapes[t.name], index) for t in inputs) for index in range(count)):
        return
    found = {name: shapes[_LATENTS][axis] for name, axis in _AXES.items()}
    latents = _tensor(runner, _LATENTS)
    allowed, dims, together = [], [], True
    for name, axis in _AXES.items():
        ranges = _outermost(_ranges(latents, axis))
        allowed.append(f"{name} {' or '.join(_span(low, high) for low, _, high in ranges)}")
        if not any(low <= found[name] <= high for low, _, high in ranges):
            dims.append(_wider(name, found[name], *ranges[0]))
    extents = ", ".join(f"{name} {extent}" for name, extent in found.items())
    if not dims and _AUDIO in shapes:
        extents += f", {shapes[_AUDIO][1]} audio tokens per frame"
        tokens = _outermost(_ranges(_tensor(runner, _AUDIO), 1))
        together = any(low <= shapes[_AUDIO][1] <= high for low, _, high in tokens)
        allowed.append(f"{' or '.join(_span(low, high) for low, _, high in tokens)} audio tokens")
    advice = f"; build it again with dims {', '.join(dims)}" if dims else ""
    if not dims and count > 1 and together:
        advice = f"; none of its {count} profiles has these together"
    raise SpecError(f"{runner.name} takes {', '.join(allowed)}; found {extents}{advice}")


def _outermost(ranges: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Drop ranges (min, opt, max) that are inside another one, or duplicates."""
    found: list[tuple[int, int, int]] = []
    for one in ranges:
        if not any(_holds(other, one) for other in found):
            found = [*(other for other in found if not _holds(one, other)), one]
    return found


def _holds(outer: tuple[int, int, int], inner: tuple[int, int, int]) -> bool:
    return outer[0] <= inner[0] and inner[2] <= outer[2]


def _allows(tensor: PlanTensor, shape: tuple[int, ...], profile: int) -> bool:
    if tensor.profiles:
        return tensor.profiles[profile].contains(shape)
    return tensor.shape == shape


def _ranges(tensor: PlanTensor, axis: int) -> list[tuple[int, int, int]]:
    """Return (min, opt, max) of an axis in each profile."""
    if tensor.profiles:
        return [(p.min[axis], p.opt[axis], p.max[axis]) for p in tensor.profiles]
    return [(tensor.shape[axis],) * 3]


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _wider(name: str, found: int, low: int, best: int, high: int) -> str:
    """Return the entry of ``dims`` that extends a range; last chunks may have any length."""
    least = 1 if name == "frames" else min(found, low)
    return f"{name}={least}:{best}:{max(found, high)}"
