"""Everything of LatentSync that runs as a plan, from its weights to a folder of plans."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from trt_native.backends.registry import load_backend
from trt_native.builder.exported import build_exported
from trt_native.builder.isolated import Job
from trt_native.config import BuildConfig, Precision
from trt_native.errors import SpecError
from trt_native.export.module import require_torch
from trt_native.files import is_within
from trt_native.graph.dims import read_limits
from trt_native.graph.onnx_file import read_model
from trt_native.graph.outputs import check_outputs
from trt_native.models.latentsync import plan_names
from trt_native.models.latentsync.checkpoint import Checkpoint
from trt_native.models.latentsync.config import UNetConfig
from trt_native.models.latentsync.export import export_deepcache, export_latentsync
from trt_native.models.latentsync.profile import FRAMES
from trt_native.models.latentsync.vae_export import export_vae
from trt_native.models.latentsync.weights import choose_config, open_checkpoint
from trt_native.models.latentsync.whisper_export import export_whisper
from trt_native.plans.manifest import manifest_path
from trt_native.progress import Progress
from trt_native.progress_bars import AnyProgress, shows_progress
from trt_native.shapes import ProfileSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from trt_native.export import ExportReport
    from trt_native.models.latentsync.vae import VaeConfig

__all__ = ["BuiltPart", "FolderOptions", "ModelSources", "build_latentsync"]

VAE_FRAMES = 4
"""Default number of frames that pass through the VAE at a time."""

_USUAL_DOWNSCALE = 8  # of Stable Diffusion's VAE
_ONNX = ".onnx-files"


@dataclass(frozen=True, kw_only=True)
class ModelSources:
    """Where the weights of the models come from.

    Attributes:
        checkpoint: A U-Net's checkpoint, its file, or a state dict.
        vae: A folder of diffusers' ``AutoencoderKL``.
        whisper: OpenAI's file of Whisper, such as LatentSync's ``tiny.pt``. None: no plan is built
            of its encoder.
        random_seed: Random weights for U-Net and VAE that depend on this number alone, instead.
        config: The U-Net's configuration, its file, or a preset's name. Default: the checkpoint's
            own, else ``latentsync-1.6``.
        vae_config: With ``random_seed``: the VAE's; by default Stable Diffusion's.
        allow_mismatch: As for :func:`trt_native.models.latentsync.export.export_latentsync`.
    """

    checkpoint: Checkpoint | Mapping[str, Tensor] | str | Path | None = None
    vae: str | Path | None = None
    whisper: str | Path | None = None
    random_seed: int | None = None
    config: UNetConfig | str | Path | None = None
    vae_config: VaeConfig | str | Path | None = None
    allow_mismatch: bool = False


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """What is built, and how.

    Attributes:
        resolution: Height and width of the faces in pixels. None: what the U-Net was trained for.
        precision: ``fp16``, ``bf16`` or ``fp32``.
        deepcache: Also build the shallow step of DeepCache.
        guidance: Build for classifier-free guidance, whose batch is 2, with any batch from 1 on.
            False: for batch 1 alone.
        float_timestep: Take the timestep in FP32, for schedulers whose timesteps have fractions.
        vae: Whether to build the VAE too.
        vae_frames: Frames that pass through the VAE at a time; more take more memory.
        backend: ``auto``, ``tensorrt`` or ``rtx``.
        cache: Folder of the cache of built plans; None to build without one.
        warm: Compile the plans' kernels for this machine's GPU once they are built; see
            :func:`trt_native.runtime.warming.warm_plan`.
    """

    resolution: int | None = None
    precision: str = "fp16"
    deepcache: bool = True
    guidance: bool = True
    float_timestep: bool = False
    vae: bool = True
    vae_frames: int = VAE_FRAMES
    backend: str = "auto"
    cache: Path | None = None
    warm: bool = False


@dataclass(frozen=True)
class BuiltPart:
    """Record of one plan.

    Attributes:
        plan: Its path.
        plan_bytes: Its size.
        parameters: Number of elements in the parameters of the exported model.
        cached: Whether it came from the cache.
        export_s: Duration of the export in seconds, for the U-Net's two plans together.
        build_s: Duration of the build in seconds, of the earlier one if it is cached.
    """

    plan: Path
    plan_bytes: int
    parameters: int
    cached: bool
    export_s: float
    build_s: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {**asdict(self), "plan": str(self.plan)}


@shows_progress
def build_latentsync(
    folder: str | Path,
    weights: ModelSources,
    options: FolderOptions | None = None,
    *,
    progress: AnyProgress = None,
) -> list[BuiltPart]:
    """Export and build LatentSync's U-Net, VAE and audio encoder.

    Writes ``unet.plan``, ``vae.encoder.plan`` and ``vae.decoder.plan``, for DeepCache also
    ``unet.shallow.plan``, with a Whisper also ``whisper.encoder.plan``, and their manifests. Each
    is whole or not there; those that an interrupted call finished are taken from the cache by the
    next one. The ONNX files are temporary.

    Args:
        folder: The folder to write to; it is made where it is missing.
        weights: The weights.
        options: What is built, and how.
        progress: Receives progress; see :data:`trt_native.progress_bars.AnyProgress`.

    Returns:
        A record of each plan.

    Raises:
        SpecError: options are contradictory, the folder cannot be one, or another process builds
            in it.
        UnsupportedError: the backend is unknown or not installed.
        TrtNativeError: as the exports and :func:`trt_native.builder.exported.build_exported`.
    """
    options = options or FolderOptions()
    target = Path(folder)
    _check(target, weights, options)
    scale = _downscale(weights) if options.vae else _USUAL_DOWNSCALE
    weights = _opened(weights, progress)
    latents = _latent_size(weights, options.resolution, scale)
    target.mkdir(parents=True, exist_ok=True)
    run = _FolderBuild(target, weights, options, progress)
    with _only_builder(target):
        # The short ones first: what is wrong with their files shows before minutes of the U-Net.
        whisper = run.whisper() if weights.whisper is not None else []
        vae = run.vae(latents, scale) if options.vae else []
        return [*run.unet(latents), *vae, *whisper]


def _check(folder: Path, weights: ModelSources, options: FolderOptions) -> None:
    if (weights.checkpoint is None) == (weights.random_seed is None):
        raise SpecError("give either a checkpoint or a random_seed for the weights")
    if (weights.vae is not None) != (options.vae and weights.random_seed is None):
        raise SpecError(
            "give a folder for the VAE's weights exactly where it is built and not random"
        )
    if options.precision not in ("fp16", "bf16", "fp32"):
        raise SpecError(
            f"precision {options.precision!r}: use fp16, bf16 or fp32; for others export and build"
            " each model by itself",
            options=("precision",),
        )
    if options.vae_frames < 1:
        raise SpecError(f"vae_frames {options.vae_frames}: must be 1 or more")
    in_the_way = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if in_the_way is not None:
        raise SpecError(f"cannot write to {folder}: {in_the_way} is not a folder; name another")
    _check_targets(folder, weights)
    load_backend(options.backend)  # before minutes of export
    shallow = folder / plan_names.SHALLOW
    if not options.deepcache and shallow.exists():
        raise SpecError(
            f"{shallow} is from an earlier build with DeepCache and would be used with the new"
            f" {plan_names.FULL}; remove it, or build for DeepCache again",
            options=("deepcache",),
        )


def _check_targets(folder: Path, weights: ModelSources) -> None:
    """Refuse a folder in which a source would be replaced, or removed as an earlier ONNX file."""
    sources = [
        source
        for source in (
            weights.checkpoint, weights.vae, weights.whisper, weights.config, weights.vae_config
        )
        if isinstance(source, str | Path)
    ]  # fmt: skip
    temporary = (folder / _ONNX).resolve()
    if lost := next((s for s in sources if is_within(Path(s), temporary)), None):
        raise SpecError(f"{lost}: {temporary} is emptied by this build; move the file elsewhere")
    if folder.is_dir():
        plans = [folder / name for name in plan_names.ALL]
        check_outputs(plans, reads=sources, companions=map(manifest_path, plans))


def _opened(weights: ModelSources, progress: Progress | None) -> ModelSources:
    """Open the checkpoint first: without it, minutes for the VAE would be wasted."""
    if not isinstance(weights.checkpoint, str | Path):
        return weights
    return replace(weights, checkpoint=open_checkpoint(weights.checkpoint, progress))


def _downscale(weights: ModelSources) -> int:
    """Pixels per latent, of the VAE that is built."""
    require_torch()
    from trt_native.models.latentsync.vae import VaeConfig, vae_files

    config = vae_files(weights.vae)[0] if weights.vae else weights.vae_config or "sd"
    return (config if isinstance(config, VaeConfig) else VaeConfig.load(config)).downscale


def _latent_size(weights: ModelSources, resolution: int | None, scale: int) -> int:
    """Height and width of the latents; by default what the U-Net was trained for."""
    if resolution is not None:
        if resolution < scale or resolution % scale:
            raise SpecError(
                f"resolution {resolution}: must be a multiple of {scale} pixels, one latent's size",
                options=("resolution",),
            )
        return resolution // scale
    checkpoint = weights.checkpoint
    own = checkpoint.config if isinstance(checkpoint, Checkpoint) else None
    size = choose_config(weights.config, own).sample_size
    if size is None:
        raise SpecError(
            "the configuration has no sample_size; give a resolution in pixels",
            options=("resolution",),
        )
    return size


def _most_frames(model: Path) -> int:
    """Frames of a chunk, or fewer where the exported U-Net has fewer positions."""
    limits = read_limits(read_model(model).metadata_props)
    return min(FRAMES, limits.get("frames", FRAMES))


@contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """Work in the folder alone, and leave no ONNX files in it."""
    try:
        with FileLock(folder / ".build-latentsync.lock", timeout=0):
            shutil.rmtree(folder / _ONNX, ignore_errors=True)  # of a run that was killed
            (folder / _ONNX).mkdir()
            try:
                yield
            finally:
                shutil.rmtree(folder / _ONNX, ignore_errors=True)
    except Timeout:
        raise SpecError(f"{folder}: another process builds there; wait for it to end") from None


@dataclass(frozen=True)
class _FolderBuild:
    folder: Path
    weights: ModelSources
    options: FolderOptions
    progress: Progress | None

    def unet(self, latents: int) -> list[BuiltPart]:
        weights = self.weights
        write = export_deepcache if self.options.deepcache else export_latentsync

        def export() -> tuple[ExportReport, ...]:
            written = write(
                self._onnx(plan_names.FULL),
                config=weights.config,
                checkpoint=weights.checkpoint,
                random_seed=weights.random_seed,
                precision=self.options.precision,
                timestep_dtype="float32" if self.options.float_timestep else "int64",
                allow_mismatch=weights.allow_mismatch,
                durable=False,
                progress=self.progress,
            )
            return written if isinstance(written, tuple) else (written,)

        def dims(reports: tuple[ExportReport, ...]) -> list[list[str]]:
            frames = _most_frames(reports[0].path)
            batch = "1:2:2" if self.options.guidance else "1"
            ranges = [f"batch={batch}", f"frames=1:{frames}:{frames}"]
            return [[*ranges, f"height={latents}", f"width={latents}"]] * len(reports)

        return self._built(plan_names.FULL, export, dims)

    def vae(self, latents: int, scale: int) -> list[BuiltPart]:
        weights = self.weights

        def export() -> tuple[ExportReport, ...]:
            return export_vae(
                self.folder / _ONNX / "vae.onnx",
                folder=weights.vae,
                config=weights.vae_config,
                random_seed=weights.random_seed,
                precision=self.options.precision,
                progress=self.progress,
            )

        frames = f"frames={self.options.vae_frames}"
        sizes = [[frames, f"height={n}", f"width={n}"] for n in (scale * latents, latents)]
        return self._built(plan_names.ENCODER, export, lambda _: sizes)

    def whisper(self) -> list[BuiltPart]:
        def export() -> tuple[ExportReport, ...]:
            report = export_whisper(
                self._onnx(plan_names.WHISPER),
                checkpoint=self.weights.whisper,
                precision=self.options.precision,
                progress=self.progress,
            )
            return (report,)

        return self._built(plan_names.WHISPER, export, lambda _: [[]])

    def _onnx(self, plan: str) -> Path:
        return (self.folder / _ONNX / plan).with_suffix(".onnx")

    def _built(
        self,
        first: str,
        export: Callable[[], tuple[ExportReport, ...]],
        dims: Callable[[tuple[ExportReport, ...]], list[list[str]]],
    ) -> list[BuiltPart]:
        """Export models and build their plans, the first of which has this name.

        ``dims`` returns the ranges of each model's dimensions.
        """

        def checked(check_build: Callable[[], None]) -> tuple[ExportReport, ...]:
            if self.options.warm:  # what else could be refused was checked
                check_build()
            return export()

        def jobs(reports: tuple[ExportReport, ...]) -> list[Job]:
            profiles = map(ProfileSpec.parse, dims(reports))
            return [
                self._job(report.path, profile)
                for report, profile in zip(reports, profiles, strict=True)
            ]

        reports, outcomes = build_exported(
            self._job(self._onnx(first)), checked, jobs, self.progress
        )
        return [
            BuiltPart(
                plan=self._plan(report.path),
                plan_bytes=outcome.manifest.plan_bytes,
                parameters=report.parameters,
                cached=outcome.cached,
                export_s=round(report.seconds, 1),
                build_s=round(outcome.manifest.seconds["total"], 1),
            )
            for report, outcome in zip(reports, outcomes, strict=True)
        ]

    def _plan(self, model: Path) -> Path:
        return self.folder / model.with_suffix(".plan").name

    def _job(self, model: Path, profile: ProfileSpec | None = None) -> Job:
        ranges = profile.dims.values() if profile is not None else ()
        # An FP32 model would be built in FP16 by default; others keep their types.
        is_fp32 = self.options.precision == "fp32"
        config = BuildConfig(
            profiles=(profile,) if profile is not None else (),
            add_opt_shape_profiles=any(r.min != r.max for r in ranges),
            precision=Precision.FP32 if is_fp32 else Precision.AUTO,
        )
        return Job(
            model=model,
            target=self._plan(model),
            config=config,
            backend=self.options.backend,
            cache=self.options.cache,
            cache_bytes=None,
            warm=self.options.warm,
        )
