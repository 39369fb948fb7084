"""All of LatentSync's plans, and their place in its pipeline."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch

from trt_native.config import KernelSpecialization
from trt_native.errors import PlanError, SpecError
from trt_native.models.latentsync.config import UNetConfig
from trt_native.models.latentsync.pipeline import LatentSyncUNet, gpu_ordinals
from trt_native.models.latentsync.plan_module import EngineRunner
from trt_native.models.latentsync.plan_names import DECODER, ENCODER, FULL, SHALLOW, WHISPER
from trt_native.models.latentsync.vae import VaeConfig
from trt_native.models.latentsync.vae_pipeline import LatentSyncVAE
from trt_native.models.latentsync.whisper import WhisperConfig
from trt_native.models.latentsync.whisper_pipeline import LatentSyncWhisperEncoder
from trt_native.plans.plan import Plan
from trt_native.runtime import ActivationMemory
from trt_native.runtime.engine import Engine

__all__ = ["LatentSyncPipelineEngines"]

_DEFAULT_INTERVAL = 3
_ORIGIN = ("trt_native.config", "trt_native.checkpoint_sha256", "trt_native.random_seed")
_UNETS = ("unet", "denoising_unet")
_Config = TypeVar("_Config", UNetConfig, VaeConfig, WhisperConfig)


class LatentSyncPipelineEngines:
    """LatentSync's U-Net, VAE and audio encoder as plans.

    :meth:`install` puts them into a pipeline in place of the originals. To load no originals at
    all, give :attr:`unet` and :attr:`vae` to ``LipsyncPipeline`` first. One thread at a time may
    use them.

    Args:
        unet: The U-Net.
        vae: The VAE; None leaves the pipeline's own.
        whisper: The encoder of Whisper; None leaves the pipeline's own.

    Attributes:
        unet: The U-Net.
        vae: The VAE, or None.
        whisper: The encoder of Whisper, or None.
    """

    def __init__(
        self,
        unet: LatentSyncUNet,
        vae: LatentSyncVAE | None = None,
        whisper: LatentSyncWhisperEncoder | None = None,
    ) -> None:
        self.unet = unet
        self.vae = vae
        self.whisper = whisper
        self._memory: ActivationMemory | None = None

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        *,
        interval: int | None = None,
        overlap: bool = True,
        kernel_specialization: KernelSpecialization | str | None = None,
        backend: str = "auto",
        device: torch.device | int | str | None = None,
        devices: Sequence[torch.device | int | str] = (),
    ) -> LatentSyncPipelineEngines:
        """Load the plans that ``trt-native build-latentsync`` wrote.

        Plans that run one after the other share their memory for activations.

        Args:
            folder: The folder with ``unet.plan``, and perhaps ``unet.shallow.plan``,
                ``vae.encoder.plan``, ``vae.decoder.plan`` and ``whisper.encoder.plan``.
            interval: DeepCache's number of timesteps per full step; 1 runs every step in full.
                Default: 3 where the folder has ``unet.shallow.plan``, else 1.
            overlap: Decode a chunk on a stream of its own while the next one is encoded and
                denoised; the decoder then has activation memory of its own. See
                :class:`LatentSyncVAE`.
            kernel_specialization: As for :class:`~trt_native.Engine`; here new shapes are last
                chunks of lengths that did not occur before.
            backend: As for :class:`~trt_native.Engine`.
            device: The GPU; by default torch's current one.
            devices: GPUs that share the U-Net's steps, as for :meth:`LatentSyncUNet.from_plan`;
                the VAE and the audio encoder are on the first.

        Raises:
            PlanError, UnsupportedError, CudaError: as :class:`~trt_native.Engine`; also where a
                plan is missing or has no manifest, or torch has no CUDA.
            SpecError: plans do not belong together, or are not LatentSync's.
        """
        path = Path(folder)
        shallow = (path / SHALLOW).exists() if interval is None else interval > 1
        has_vae = (path / ENCODER).exists() or (path / DECODER).exists()
        names = [FULL, *[SHALLOW] * shallow, *[ENCODER, DECODER] * has_vae]
        names += [WHISPER] * (path / WHISPER).exists()
        _check_present(path, names)
        ordinal, *others = gpu_ordinals(device, devices)
        with ExitStack() as undo:

            def load(name: str, ordinal: int) -> Engine:
                engine = Engine(
                    Plan.open(path / name),
                    backend=backend,
                    ordinal=ordinal,
                    kernel_specialization=kernel_specialization,
                )
                undo.callback(engine.close)
                return engine

            def shared(ordinal: int) -> tuple[EngineRunner, EngineRunner | None]:
                pair = [
                    EngineRunner(load(name, ordinal)) for name in (FULL, SHALLOW)[: 1 + shallow]
                ]
                for runner in pair:
                    undo.callback(runner.close)
                return pair[0], pair[1] if shallow else None

            engines = {name: load(name, ordinal) for name in names}
            configs = _unet_config(engines), _vae_config(engines), _whisper_config(engines)
            alone = [DECODER] if overlap and has_vae else []
            memory = ActivationMemory(*(e for name, e in engines.items() if name not in alone))
            undo.callback(memory.close)
            runners = {}
            for name, engine in engines.items():
                runner = EngineRunner(engine, None if name in alone else memory)
                undo.callback(runner.close)
                runners[name] = runner
            unet = LatentSyncUNet(
                runners[FULL],
                runners.get(SHALLOW),
                config=configs[0],
                interval=(interval or _DEFAULT_INTERVAL) if shallow else 1,
                others=[shared(other) for other in others],
            )
            vae = whisper = None
            if configs[1] is not None:
                pair = runners[ENCODER], runners[DECODER]
                vae = LatentSyncVAE(*pair, config=configs[1], overlap=overlap)
            if configs[2] is not None:
                whisper = LatentSyncWhisperEncoder(runners[WHISPER], config=configs[2])
            made = cls(unet, vae, whisper)
            made._memory = memory
            undo.pop_all()
        return made

    def install(self, pipeline: Any) -> None:
        """Replace the U-Net, the VAE and the audio encoder of a pipeline.

        The VAE keeps the scaling and shift factors that the pipeline's own has. The scheduler's
        timesteps stay on the host from then on: read from the GPU, each would make the host wait
        for the step before it, and the GPU then for the host.

        Args:
            pipeline: A ``LipsyncPipeline``, on the GPU of the plans. Its U-Net is the attribute
                ``unet``, in LatentSync's code of March 2025 ``denoising_unet``.

        Raises:
            SpecError: the pipeline's VAE has latents of another kind or its Whisper other
                dimensions, or there is none, or no U-Net.
        """
        unets = [name for name in _UNETS if hasattr(pipeline, name)]
        if not unets:
            raise SpecError(
                f"the pipeline has no U-Net: neither {' nor '.join(_UNETS)} is an attribute of it;"
                " give LatentSync's LipsyncPipeline"
            )
        if self.whisper is not None:
            self._check_dimensions(pipeline)
        if self.vae is not None:
            self._take_factors(getattr(pipeline, "vae", None))
            pipeline.vae = self.vae
        if self.whisper is not None:
            pipeline.audio_encoder.model.encoder = self.whisper
        for name in unets:
            setattr(pipeline, name, self.unet)
        if hasattr(pipeline, "scheduler"):
            _keep_timesteps_on_the_host(pipeline.scheduler)

    def close(self) -> None:
        """Free the plans and their memory. Idempotent."""
        self.unet.close()
        if self.vae is not None:
            self.vae.close()
        if self.whisper is not None:
            self.whisper.close()
        if self._memory is not None:
            self._memory.close()

    def __enter__(self) -> LatentSyncPipelineEngines:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_dimensions(self, pipeline: Any) -> None:
        assert self.whisper is not None  # noqa: S101  # for the type checker
        model = getattr(getattr(pipeline, "audio_encoder", None), "model", None)
        dims: Any = getattr(model, "dims", None)
        for name, own in dataclasses.asdict(self.whisper.config).items():
            found = getattr(dims, name, None)
            if found != own:
                raise SpecError(
                    f"the pipeline's Whisper has {name} {found}, the plan's has {own}; build the"
                    " plan from the Whisper that the pipeline loads"
                )

    def _take_factors(self, replaced: Any) -> None:
        assert self.vae is not None  # noqa: S101  # for the type checker
        config: Any = getattr(replaced, "config", None)
        own: Any = self.vae.config
        for name in ("latent_channels", "block_out_channels"):
            found = getattr(config, name, None)
            if found is None or _listed(found) != _listed(own[name]):
                raise SpecError(
                    f"the pipeline's VAE has {name} {found}, the plans' has {own[name]}; build the"
                    " plans from the VAE that the pipeline loads"
                )
        own.scaling_factor = config.scaling_factor
        own.shift_factor = getattr(config, "shift_factor", None) or 0.0


def _keep_timesteps_on_the_host(scheduler: Any) -> None:
    """Let ``set_timesteps`` ignore its device. Schedulers compute the same from either place."""
    original = scheduler.set_timesteps
    signature = inspect.signature(original)

    @functools.wraps(original)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs)
        given.arguments.pop("device", None)
        original(*given.args, **given.kwargs)

    scheduler.set_timesteps = set_timesteps


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _check_present(folder: Path, names: list[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise PlanError(
            f"{folder}: lacks {', '.join(missing)}; trt-native build-latentsync makes a folder"
            " with all plans"
        )


def _unet_config(engines: dict[str, Engine]) -> UNetConfig:
    names = [name for name in (FULL, SHALLOW) if name in engines]
    return _shared_config(engines, names, UNetConfig.from_mapping)


def _vae_config(engines: dict[str, Engine]) -> VaeConfig | None:
    if ENCODER not in engines:
        return None
    return _shared_config(engines, [ENCODER, DECODER], VaeConfig.from_mapping)


def _whisper_config(engines: dict[str, Engine]) -> WhisperConfig | None:
    if WHISPER not in engines:
        return None
    return _shared_config(engines, [WHISPER], WhisperConfig.from_mapping)


def _shared_config(
    engines: dict[str, Engine], names: list[str], read: Callable[[Any], _Config]
) -> _Config:
    """Read the configuration that the manifests of plans of one model have in common."""
    origins = [_origin(engines[name].plan) for name in names]
    if any(origin != origins[0] for origin in origins):
        raise SpecError(
            f"{' and '.join(names)} are of different models, by the weights and configuration in"
            " their manifests; build both with one call of trt-native build-latentsync"
        )
    try:
        return read(json.loads(origins[0][0] or ""))
    except ValueError as error:  # a SpecError is one
        raise PlanError(f"{names[0]}: the configuration in its manifest: {error}") from None


def _origin(plan: Plan) -> list[str | None]:
    metadata = plan.manifest.metadata if plan.manifest else {}
    if _ORIGIN[0] not in metadata:
        raise PlanError(
            f"{plan.path}: no configuration in its manifest: the manifest is missing, or the plan"
            " was not made by trt-native build-latentsync"
        )
    return [metadata.get(key) for key in _ORIGIN]
