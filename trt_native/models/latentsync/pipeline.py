"""LatentSync's U-Net as TensorRT plans, a drop-in replacement of ``pipeline.unet``.

The interface follows LatentSync's ``LipsyncPipeline``, its ``inference.py`` and DeepCache's
``DeepCacheSDHelper``.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from trt_native.errors import ClosedError, PlanError, SpecError, UnsupportedError
from trt_native.installing import install_command
from trt_native.models.latentsync.config import UNetConfig
from trt_native.models.latentsync.inputs import fractional_timestep
from trt_native.models.lora import LoraStack
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan
from trt_native.runtime.engine import Engine
from trt_native.runtime.tensor_views import torch_dtype

try:
    import torch
    from torch import Tensor
except ImportError:
    raise UnsupportedError(
        "LatentSyncUNet needs PyTorch, which is not installed: install LatentSync's requirements,"
        f" or {install_command('export')}"
    ) from None

from trt_native.models.latentsync.plan_module import (
    AttrDict,
    EngineRunner,
    PlanModule,
    StepRunner,
    StreamFollower,
    gpu_ordinal,
)

__all__ = ["LatentSyncUNet", "UNetOutput", "gpu_ordinal"]

_LATENTS, _TIMESTEP, _AUDIO = "latents", "timestep", "encoder_hidden_states"
_NOISE, _FEATURES = "noise_pred", "deep_features"
_AXES = {"batch": 0, "frames": 2, "height": 3, "width": 4}  # of the latents
_ROUNDING = 1e-3  # of timesteps up to 1000 in float32
_LOGGER = logging.getLogger(__name__)


class UNetOutput(NamedTuple):
    """Result of a step.

    Attributes:
        sample: The predicted noise, (batch, out_channels, frames, height, width).
    """

    sample: Tensor


class LatentSyncUNet(PlanModule):
    """LatentSync's U-Net as a plan, with the interface of the module it replaces.

    ``pipeline.unet = LatentSyncUNet.from_plan("unet.plan")``, or passed to ``LipsyncPipeline``
    itself, is all that is needed: the pipeline calls it as before. Latents and audio may have any
    floating-point type and are converted to the plan's; the result has the type of the latents. It
    runs in the order of torch's current stream and does not synchronize, except to read values on
    the GPU: the timestep with DeepCache, and timesteps that are not integers or one per batch
    entry.

    Its device and precision are the plan's: ``.to`` another device is an error, ``.to`` another
    type only logs a warning. It has no parameters and cannot be trained; ``train()`` and
    ``eval()`` set the flag that pipelines read. ``torch.compile`` leaves it as it is and compiles
    what is around it. One thread at a time may call it.

    Args:
        full: Runs full steps.
        shallow: Runs steps that reuse the deep features of an earlier one.
        config: The U-Net's configuration.
        interval: With ``shallow``: number of timesteps per full step.

    Attributes:
        config: The configuration, by item and by attribute.
        add_audio_layer: Whether ``encoder_hidden_states`` is used.

    Raises:
        SpecError: the runners do not match the configuration, or each other.
    """

    def __init__(
        self,
        full: StepRunner,
        shallow: StepRunner | None = None,
        *,
        config: UNetConfig,
        interval: int = 1,
    ) -> None:
        _check_plans(full, shallow, config, interval)
        super().__init__(full, _tensor(full, _LATENTS).dtype)
        self._config = config
        self.config = AttrDict(config.to_dict())
        self.add_audio_layer = config.add_audio_layer
        self._full = full
        self._shallow = shallow
        self._schedule = None if shallow is None else _Schedule(interval)
        self._memory: _Memory | None = None
        self._streams = StreamFollower(self.device)
        self._closed = False
        _warn_of_fixed_frames(full)

    @classmethod
    def from_plan(
        cls,
        plan: Plan | str | os.PathLike[str],
        *,
        config: UNetConfig | str | Path | None = None,
        backend: str = "auto",
        device: torch.device | int | str | None = None,
    ) -> LatentSyncUNet:
        """Load the plan of a U-Net from a LatentSync export.

        Args:
            plan: The plan or its path.
            config: The U-Net's configuration, its file, or a preset's name; by default the one
                in the plan's manifest.
            backend: As for :class:`~trt_native.Engine`.
            device: The GPU; by default torch's current one.

        Raises:
            PlanError, UnsupportedError, CudaError: as :class:`~trt_native.Engine`; also where
                the manifest has no configuration, or torch has no CUDA.
            SpecError: the plan is not that of a LatentSync U-Net.
        """
        return cls._load([plan], config, backend, device, 1)

    @classmethod
    def from_plans(
        cls,
        full: Plan | str | os.PathLike[str],
        shallow: Plan | str | os.PathLike[str],
        *,
        interval: int = 3,
        config: UNetConfig | str | Path | None = None,
        backend: str = "auto",
        device: torch.device | int | str | None = None,
    ) -> LatentSyncUNet:
        """Load the full and the shallow plan of a U-Net, from an export for DeepCache.

        The steps are those of DeepCache's helper with ``cache_interval=interval`` and
        ``cache_branch_id=0``: the first timestep of a chunk and every ``interval``-th after it
        run in full, the others reuse the deep features, which stay in the GPU's memory and are not
        copied. Each call is an entry in the scheduler's list of timesteps; entries that repeat a
        timestep, as PNDM's do, have the number of its first entry, as in the helper. A chunk begins
        where the timestep rises, the shapes change, a step has failed, or :meth:`reset_cache` was
        called.

        Args:
            full: The plan of the full step, or its path.
            shallow: The plan of the shallow step, or its path.
            interval: Number of timesteps per full step, at least 1.
            config: As for :meth:`from_plan`.
            backend: As for :meth:`from_plan`.
            device: As for :meth:`from_plan`.

        Raises:
            PlanError, UnsupportedError, CudaError, SpecError: as :meth:`from_plan`; also where
                the two do not belong together.
        """
        return cls._load([full, shallow], config, backend, device, interval)

    @classmethod
    def _load(
        cls,
        plans: list[Plan | str | os.PathLike[str]],
        config: UNetConfig | str | Path | None,
        backend: str,
        device: torch.device | int | str | None,
        interval: int,
    ) -> LatentSyncUNet:
        given = UNetConfig.load(config) if isinstance(config, (str, Path)) else config
        loaded = [plan if isinstance(plan, Plan) else Plan.open(plan) for plan in plans]
        configs = [given or _config_of(plan) for plan in loaded]
        _check_origins(loaded, configs)
        ordinal = gpu_ordinal(device)
        runners: list[EngineRunner] = []
        try:
            for plan in loaded:
                engine = Engine(plan, backend=backend, ordinal=ordinal)
                runners.append(EngineRunner(engine))
            return cls(*runners, config=configs[0], interval=interval)
        except BaseException:
            for runner in runners:
                runner.close()
            raise

    @torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        *,
        return_dict: bool = True,
        **unsupported: Any,
    ) -> UNetOutput | tuple[Tensor]:
        """Run one denoising step.

        Args:
            sample: (batch, in_channels, frames, height, width), floating-point, on any device.
            timestep: The scheduler's step: a number, 0-d, (1,), or (batch,) with equal values. It
                may have a fraction if the plan takes it in float32.
            encoder_hidden_states: (batch*frames, tokens, features) or (batch, frames, tokens,
                features). Not used, and may be None, without audio layers.
            return_dict: Whether to return an object with ``.sample``, or a tuple of one tensor.
            unsupported: Further arguments of the original, such as ``attention_mask``; None only.

        Returns:
            The predicted noise, (batch, out_channels, frames, height, width), in the type and on
            the device of ``sample``; the caller owns it.

        Raises:
            SpecError: the inputs do not fit the model, the plan was not built for their shapes, or
                its timestep cannot hold the fraction of this one.
            UnsupportedError: an argument was given that LatentSync does not use.
            ClosedError: it was closed.
        """
        if self._closed:
            raise ClosedError("the U-Net is closed; load its plan again")
        if given := sorted(name for name, value in unsupported.items() if value is not None):
            raise UnsupportedError(f"the plan of a U-Net takes no {', '.join(given)}")
        try:
            # Buffers outlive this call, so they must not be inference tensors of the caller.
            with torch.inference_mode(False), torch.no_grad():
                noise = self._step(sample.detach(), timestep, encoder_hidden_states)
        except BaseException:
            self.reset_cache()
            raise
        return UNetOutput(noise) if return_dict else (noise,)

    def reset_cache(self) -> None:
        """Make the next step a full one. No effect without a shallow plan."""
        if self._schedule is not None:
            self._schedule.reset()

    def num_parameters(
        self,
        only_trainable: bool = False,
        exclude_embeddings: bool = False,  # noqa: ARG002
    ) -> int:
        """The number of weights of the U-Net in the plan.

        Args:
            only_trainable: Whether to count trainable ones only: none is.
            exclude_embeddings: As for diffusers' models; the U-Net has no embedding tables.
        """
        from trt_native.models.latentsync.unet import UNet

        if only_trainable:
            return 0
        with torch.device("meta"):
            return sum(weight.numel() for weight in UNet(self._config).parameters())

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Do nothing: TensorRT chose the plan's attention kernels when it built the plan."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Do nothing, as :meth:`enable_xformers_memory_efficient_attention`."""

    def set_attention_slice(self, slice_size: str | int | list[int] | None = "auto") -> None:
        """Do nothing, as :meth:`enable_xformers_memory_efficient_attention`."""

    def load_lora(
        self, path: str | os.PathLike[str], scale: float = 1.0, *, name: str | None = None
    ) -> str:
        """Add a LoRA adapter to the weights in the plan, beside those that are loaded.

        The plan must have been built with ``refit``, and the ONNX file that it was built from must
        be next to it. Only the weights of the adapter's layers are replaced, on the GPU, and the
        steps that follow use them.

        Args:
            path: A ``.safetensors`` file of diffusers, PEFT or kohya's scripts.
            scale: Factor of all its changes.
            name: Name for :meth:`unload_lora`. None: that of the file, without its suffix.

        Returns:
            The name.

        Raises:
            SpecError: a layer is not in the U-Net, or of another shape; or there is no ONNX file.
            ModelError, UnsupportedError: as :func:`~trt_native.models.lora.read_lora`.
            PlanError, CudaError: as :meth:`~trt_native.Engine.refit`.
        """
        self.reset_cache()
        return self._adapters.load(path, scale, name=name)

    def unload_lora(self, name: str | None = None) -> None:
        """Take a LoRA adapter out of the weights; all of them where none is named.

        Raises:
            SpecError: there is no such adapter.
            PlanError, CudaError: as :meth:`load_lora`.
        """
        self.reset_cache()
        self._adapters.unload(name)

    @functools.cached_property
    def _adapters(self) -> LoraStack:
        runners = [one for one in (self._full, self._shallow) if one is not None]
        engines = [one.engine for one in runners if isinstance(one, EngineRunner)]
        if len(engines) < len(runners):
            raise UnsupportedError("LoRA adapters need a U-Net that runs a plan on a GPU")
        return LoraStack(*engines)

    def load_state_dict(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raise, because the weights are in the plan.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"the weights are inside {self._full.name}: export and build the other checkpoint, or"
            " put its weights into a refittable plan with trt_native.refit_plan, and load that plan"
        )

    def close(self) -> None:
        """Free the plans and their memory. Idempotent."""
        self._closed = True
        self._memory = None
        self._full.close()
        if self._shallow is not None:
            self._shallow.close()

    def __getattr__(self, name: str) -> Any:
        if name in ("down_blocks", "mid_block", "up_blocks"):
            raise AttributeError(
                f"a plan has no {name}, so code that modifies them, such as DeepCacheSDHelper,"
                " cannot work with it; for DeepCache, use LatentSyncUNet.from_plans with the full"
                " and the shallow plan of export_deepcache"
            )
        return super().__getattr__(name)

    def _step(self, sample: Tensor, timestep: Tensor | float, audio: Tensor | None) -> Tensor:
        self._streams.follow(self._memory.tensors.values() if self._memory else ())
        shapes = self._shapes(sample, audio)
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
        return tensors[_NOISE].to(sample.device, sample.dtype, copy=True)

    def _runner_for(self, timestep: Tensor | float, shapes: Mapping[str, Any]) -> StepRunner:
        if self._schedule is None or self._shallow is None:
            return self._full
        value = timestep.flatten()[0].item() if isinstance(timestep, Tensor) else timestep
        return self._full if self._schedule.is_full(value, shapes) else self._shallow

    def _shapes(self, sample: Tensor, audio: Tensor | None) -> dict[str, tuple[int, ...]]:
        """Derive the shapes of all tensors of a step from the caller's."""
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


def _config_of(plan: Plan) -> UNetConfig:
    name = plan.path or "the plan"
    text = plan.manifest.metadata.get("trt_native.config") if plan.manifest else None
    if text is None:
        raise PlanError(
            f"{name}: no U-Net configuration in its manifest: the manifest is missing, or the ONNX"
            " file was not written by trt-native export latentsync; give one with"
            " config='latentsync-1.6' or the path of a YAML file"
        )
    try:
        return UNetConfig.from_mapping(json.loads(text))
    except ValueError as error:  # a SpecError is one
        raise PlanError(f"{name}: the U-Net configuration in its manifest: {error}") from None


def _check_origins(plans: list[Plan], configs: list[UNetConfig]) -> None:
    """Reject two plans that are known to be of different U-Nets."""
    keys = ("trt_native.checkpoint_sha256", "trt_native.random_seed")
    origins = [
        [plan.manifest.metadata.get(key) for key in keys] if plan.manifest else None
        for plan in plans
    ]
    known = [origin for origin in origins if origin is not None]
    if any(config != configs[0] for config in configs) or any(o != known[0] for o in known):
        raise SpecError(
            "the two plans are of different U-Nets, by the checkpoint and configuration in their"
            " manifests; build both from one call of export_deepcache"
        )


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
