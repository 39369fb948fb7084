"""LatentSync's VAE as TensorRT plans, a drop-in replacement of ``pipeline.vae``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from trt_native.errors import ClosedError, SpecError, UnsupportedError
from trt_native.models.latentsync.plan_module import (
    AttrDict,
    PlanModule,
    StepRunner,
    StreamFollower,
)
from trt_native.models.latentsync.side_stream import SideStream
from trt_native.models.latentsync.vae import VaeConfig
from trt_native.models.latentsync.vae_export import IMAGE, LATENTS, MOMENTS
from trt_native.runtime.tensor_views import torch_dtype
from trt_native.shapes import Shape, ShapeRange, format_shape

__all__ = ["LatentSyncVAE"]


class EncoderOutput(NamedTuple):
    """Result of :meth:`LatentSyncVAE.encode`.

    Attributes:
        latent_dist: diffusers' ``DiagonalGaussianDistribution`` of the latents.
    """

    latent_dist: Any


class DecoderOutput(NamedTuple):
    """Result of :meth:`LatentSyncVAE.decode`.

    Attributes:
        sample: Images, (frames, channels, height, width).
    """

    sample: Tensor


class LatentSyncVAE(PlanModule):
    """diffusers' ``AutoencoderKL`` as two plans, with the interface that the pipeline uses.

    Images and latents may have any floating-point type and number of frames. They pass through a
    plan in pieces of as many frames as it takes at most, which bounds the memory. A last piece
    that is shorter than the plan takes is padded; frames do not affect each other. Results have
    the type and device of the input. Sampling is diffusers' own, in PyTorch.

    It runs in the order of torch's current stream and does not synchronize. One thread at a time
    may call it.

    Args:
        encoder: Runs the encoder of :func:`trt_native.models.latentsync.vae_export.export_vae`.
        decoder: Runs the decoder.
        config: The configuration.
        overlap: Decode on a stream of its own: what follows on the current stream does not wait
            for the images until it reads them. Needs a GPU.

    Attributes:
        config: The configuration, by item and by attribute.

    Raises:
        SpecError: a runner is not that of the encoder or decoder.
    """

    def __init__(
        self, encoder: StepRunner, decoder: StepRunner, *, config: VaeConfig, overlap: bool = False
    ) -> None:
        scale, latent = config.downscale, config.latent_channels
        self._encode = _FrameRunner(encoder, IMAGE, MOMENTS, 2 * latent, (1, scale))
        self._decode = _FrameRunner(decoder, LATENTS, IMAGE, config.out_channels, (scale, 1))
        super().__init__(encoder, self._encode.source.dtype)
        self.config = AttrDict(config.to_dict())
        self._side = SideStream(self.device) if overlap else None
        self._closed = False

    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[Any]:
        """Encode images.

        Args:
            x: (frames, in_channels, height, width), floating-point, on any device.
            return_dict: Whether to return an object with ``.latent_dist``, or a tuple.

        Raises:
            SpecError: the plan was not built for this shape.
            UnsupportedError: diffusers is not installed.
            ClosedError: it was closed.
        """
        try:
            from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        except ImportError:
            raise UnsupportedError(
                "sampling latents needs diffusers, which is not installed; install LatentSync's"
                " requirements"
            ) from None
        latents = DiagonalGaussianDistribution(self._run(self._encode, x))
        return EncoderOutput(latents) if return_dict else (latents,)

    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: object = None,  # noqa: ARG002
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode latents.

        Args:
            z: (frames, latent_channels, height, width), floating-point, on any device.
            return_dict: Whether to return an object with ``.sample``, or a tuple.
            generator: Not used, as by diffusers.

        Raises:
            SpecError: the plan was not built for this shape.
            ClosedError: it was closed.
        """
        if self._side is not None and z.device == self.device:
            image = self._side.run(self._run, self._decode, z)
        else:
            image = self._run(self._decode, z)
        return DecoderOutput(image) if return_dict else (image,)

    def forward(self, sample: Tensor, **unsupported: Any) -> Tensor:  # noqa: ARG002
        """Not available: the pipeline encodes and decodes.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("the plans of a VAE encode and decode; call .encode or .decode")

    def enable_slicing(self) -> None:
        """Accepted without effect: frames pass through the plans a few at a time anyway."""

    def disable_slicing(self) -> None:
        """Accepted without effect, as :meth:`enable_slicing`."""

    def enable_tiling(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002
        """Not available.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "the plans of a VAE take whole frames; for less memory, build them for fewer frames"
            " at a time, instead of tiling"
        )

    def disable_tiling(self) -> None:
        """Accepted without effect: there is no tiling."""

    def close(self) -> None:
        """Free the plans and their memory. Idempotent."""
        self._closed = True
        self._encode.close()
        self._decode.close()

    def _run(self, runner: _FrameRunner, x: Tensor) -> Tensor:
        if self._closed:
            raise ClosedError("the VAE is closed; load its plans again")
        # Buffers outlive this call, so they must not be inference tensors of the caller.
        with torch.inference_mode(False), torch.no_grad():
            return runner(x.detach())


class _FrameRunner:
    """Runs a plan over any number of frames, in pieces.

    Args:
        runner: Runs the plan.
        source: Name of its input, (frames, channels, height, width).
        result: Name of its output, of the same rank.
        channels: Channels of the output.
        ratio: Height and width of the output, as a fraction of the input's.
    """

    def __init__(
        self,
        runner: StepRunner,
        source: str,
        result: str,
        channels: int,
        ratio: tuple[int, int],
    ) -> None:
        tensors = {(tensor.name, tensor.mode): tensor for tensor in runner.tensors}
        if set(tensors) != {(source, "input"), (result, "output")}:
            found = ", ".join(f"{name} ({mode})" for name, mode in tensors)
            raise SpecError(
                f"{runner.name} does not turn {source} into {result}, found {found}; build it from"
                " an export of latentsync-vae"
            )
        self.source = tensors[source, "input"]
        self._result = tensors[result, "output"]
        self._runner = runner
        self._channels, self._ratio = channels, ratio
        self._buffers: dict[Shape, tuple[Tensor, Tensor]] = {}
        self._streams = StreamFollower(runner.device)

    def __call__(self, x: Tensor) -> Tensor:
        ranges = self._ranges_for(x)
        most = max(allowed.max[0] for allowed in ranges)
        self._streams.follow(tensor for pair in self._buffers.values() for tensor in pair)
        found = torch.empty(self._result_shape(x.shape), dtype=x.dtype, device=x.device)
        for start in range(0, len(x), most):
            piece = x[start : start + most]
            # CUDA graphs need fixed addresses, and pieces of a tensor need not be aligned.
            given, returned = self._buffers_for(self._run_shape(piece, ranges))
            given[: len(piece)].copy_(piece)
            self._runner.run({self.source.name: given}, {self._result.name: returned})
            found[start : start + most].copy_(returned[: len(piece)])
        return found

    def close(self) -> None:
        self._buffers.clear()
        self._runner.close()

    def _ranges_for(self, x: Tensor) -> list[ShapeRange]:
        """The plan's profiles that take frames of this size."""
        own = self.source
        ranges = list(own.profiles) or [ShapeRange(own.shape, own.shape, own.shape)]
        if x.ndim == 4 and len(x) and x.is_floating_point():
            frame = tuple(x.shape[1:])
            fits = [
                r for r in ranges if ShapeRange(r.min[1:], r.opt[1:], r.max[1:]).contains(frame)
            ]
            if fits:
                return fits
        raise SpecError(
            f"{self._runner.name} takes {own.name} of {' or '.join(map(str, ranges))} (frames,"
            f" channels, height, width) and more frames in pieces; found"
            f" {format_shape(x.shape)} in {x.dtype}; build it for this height and width"
        )

    def _run_shape(self, piece: Tensor, ranges: list[ShapeRange]) -> Shape:
        """The piece's shape, with more frames where no profile takes so few."""
        frames = min(max(len(piece), r.min[0]) for r in ranges if len(piece) <= r.max[0])
        return (frames, *piece.shape[1:])

    def _result_shape(self, shape: Shape) -> Shape:
        up, down = self._ratio
        return (shape[0], self._channels, *(extent * up // down for extent in shape[2:]))

    def _buffers_for(self, shape: Shape) -> tuple[Tensor, Tensor]:
        if shape not in self._buffers:
            if any(known[1:] != shape[1:] for known in self._buffers):
                self._buffers.clear()  # of frames of another size
            device = self._runner.device
            self._buffers[shape] = (
                torch.zeros(shape, dtype=torch_dtype(self.source.dtype), device=device),
                torch.empty(
                    self._result_shape(shape), dtype=torch_dtype(self._result.dtype), device=device
                ),
            )
        return self._buffers[shape]
