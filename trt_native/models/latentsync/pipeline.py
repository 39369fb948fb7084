"""LatentSync's U-Net as TensorRT plans, a drop-in replacement of ``pipeline.unet``.

The interface follows LatentSync's ``LipsyncPipeline``, its ``inference.py`` and DeepCache's
``DeepCacheSDHelper``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from trt_native.errors import (
    ClosedError,
    PlanError,
    SpecError,
    TrtNativeError,
    UnsupportedError,
)
from trt_native.installing import install_command
from trt_native.models.latentsync.config import UNetConfig
from trt_native.models.lora import LoraStack
from trt_native.plans.plan import Plan
from trt_native.runtime.engine import Engine

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
    gpu_ordinal,
)
from trt_native.models.latentsync.unet_steps import UNetSteps

__all__ = ["LatentSyncUNet", "UNetOutput", "gpu_ordinal", "gpu_ordinals"]


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
        others: Full and shallow runners on further devices, which compute a share of each batch.

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
        others: Sequence[tuple[StepRunner, StepRunner | None]] = (),
    ) -> None:
        steps = [
            UNetSteps(*pair, config=config, interval=interval)
            for pair in ((full, shallow), *others)
        ]
        super().__init__(full, steps[0].dtype)
        self._config = config
        self.config = AttrDict(config.to_dict())
        self.add_audio_layer = config.add_audio_layer
        self._full = full
        self._steps = steps
        self._closed = False

    @classmethod
    def from_plan(
        cls,
        plan: Plan | str | os.PathLike[str],
        *,
        config: UNetConfig | str | Path | None = None,
        backend: str = "auto",
        device: torch.device | int | str | None = None,
        devices: Sequence[torch.device | int | str] = (),
    ) -> LatentSyncUNet:
        """Load the plan of a U-Net from a LatentSync export.

        Args:
            plan: The plan or its path.
            config: The U-Net's configuration, its file, or a preset's name; by default the one
                in the plan's manifest.
            backend: As for :class:`~trt_native.Engine`.
            device: The GPU; by default torch's current one.
            devices: GPUs that share each batch, the first of which has the inputs and results:
                with classifier-free guidance two of them compute half of a step each. The plan
                must have been built for their shares, such as ``batch=1``. Errors of a share begin
                with its device, such as ``cuda:1:``. Instead of ``device``.

        Raises:
            PlanError, UnsupportedError, CudaError: as :class:`~trt_native.Engine`; also where
                the manifest has no configuration, or torch has no CUDA.
            SpecError: the plan is not that of a LatentSync U-Net.
        """
        return cls._load([plan], config, backend, device, devices, 1)

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
        devices: Sequence[torch.device | int | str] = (),
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
            devices: As for :meth:`from_plan`; each keeps the deep features of its share.

        Raises:
            PlanError, UnsupportedError, CudaError, SpecError: as :meth:`from_plan`; also where
                the two do not belong together.
        """
        return cls._load([full, shallow], config, backend, device, devices, interval)

    @classmethod
    def _load(
        cls,
        plans: list[Plan | str | os.PathLike[str]],
        config: UNetConfig | str | Path | None,
        backend: str,
        device: torch.device | int | str | None,
        devices: Sequence[torch.device | int | str],
        interval: int,
    ) -> LatentSyncUNet:
        given = UNetConfig.load(config) if isinstance(config, (str, Path)) else config
        loaded = [plan if isinstance(plan, Plan) else Plan.open(plan) for plan in plans]
        configs = [given or _config_of(plan) for plan in loaded]
        _check_origins(loaded, configs)
        ordinals = gpu_ordinals(device, devices)
        runners: list[EngineRunner] = []
        try:
            for ordinal in ordinals:
                with _errors_at(f"cuda:{ordinal}" if devices else ""):
                    for plan in loaded:
                        engine = Engine(plan, backend=backend, ordinal=ordinal)
                        runners.append(EngineRunner(engine))
            first, *others = _pairs(runners, len(loaded))
            return cls(*first, config=configs[0], interval=interval, others=others)
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
        for steps in self._steps:
            steps.reset()

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
        runners = [one for steps in self._steps for one in steps.runners]
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
        for steps in self._steps:
            steps.release()
            for runner in steps.runners:
                runner.close()

    def __getattr__(self, name: str) -> Any:
        if name in ("down_blocks", "mid_block", "up_blocks"):
            raise AttributeError(
                f"a plan has no {name}, so code that modifies them, such as DeepCacheSDHelper,"
                " cannot work with it; for DeepCache, use LatentSyncUNet.from_plans with the full"
                " and the shallow plan of export_deepcache"
            )
        return super().__getattr__(name)

    def _step(self, sample: Tensor, timestep: Tensor | float, audio: Tensor | None) -> Tensor:
        first, *others = self._steps
        if not others or sample.ndim != 5 or len(sample) == 1:  # or reports it
            for steps in others:
                steps.reset()
            noise = first.run(sample, timestep, audio)
            return noise.to(sample.device, sample.dtype, copy=True)
        result = sample.new_empty(first.shapes(sample, audio)["noise_pred"])
        pieces = _pieces(len(self._steps), sample, timestep, audio)
        for steps in self._steps[len(pieces) :]:
            steps.reset()
        # The first device's copies to the others come before its own step, theirs back after it.
        working = list(zip(self._steps, pieces, strict=False))[::-1]
        noises = [_run(steps, piece) for steps, piece in working][::-1]
        for part, noise in zip(result.chunk(len(self._steps)), noises, strict=True):
            part.copy_(noise)
        return result


_Piece = tuple[Tensor, Tensor | float, Tensor | None]


def _run(steps: UNetSteps, piece: _Piece) -> Tensor:
    """The noise for a share of a batch; errors name the device."""
    with _errors_at(str(steps.device)):
        return steps.run(*piece)


@contextlib.contextmanager
def _errors_at(place: str) -> Iterator[None]:
    try:
        yield
    except TrtNativeError as error:
        if not place:
            raise
        raise error.at(place) from error


def _pieces(
    count: int, sample: Tensor, timestep: Tensor | float, audio: Tensor | None
) -> list[_Piece]:
    """Divide the entries of a batch among devices, one after the other."""
    samples = sample.chunk(count)
    rows = [len(one) * (1 if _has_batches(audio, sample) else sample.shape[2]) for one in samples]
    audios = [None] * len(samples) if audio is None else torch.split(audio, rows)
    timesteps: Sequence[Tensor | float] = [timestep] * len(samples)
    if isinstance(timestep, Tensor) and timestep.ndim == 1 and len(timestep) == len(sample):
        timesteps = timestep.chunk(count)
    return list(zip(samples, timesteps, audios, strict=True))


def _has_batches(audio: Tensor | None, sample: Tensor) -> bool:
    """Whether audio is (batch, frames, tokens, features), not (batch*frames, tokens, features)."""
    return audio is not None and audio.ndim == 4 and len(audio) == len(sample)


def gpu_ordinals(
    device: torch.device | int | str | None, devices: Sequence[torch.device | int | str]
) -> list[int]:
    """CUDA ordinals of one device, or of several."""
    if device is not None and devices:
        raise SpecError("give either device or devices, which has the first one, too")
    return [gpu_ordinal(one) for one in devices or (device,)]


def _pairs(runners: Sequence[StepRunner], plans: int) -> list[tuple[StepRunner, StepRunner | None]]:
    """The full and the shallow runner of each device, from those of all devices in turn."""
    if plans == 1:
        return [(runner, None) for runner in runners]
    return list(zip(runners[::2], runners[1::2], strict=True))


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
