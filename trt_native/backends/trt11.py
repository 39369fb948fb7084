"""TensorRT 11: strongly typed, so precision comes from the graph."""

from __future__ import annotations

from trt_native.backends.base import QUANTIZES_ALL, BuildRequest, Capabilities
from trt_native.backends.native import TENSORRT_REFUSALS, NativeBackend

__all__ = ["TensorRT11Backend"]


class TensorRT11Backend(NativeBackend):
    """``tensorrt`` 11.x."""

    name = "trt11"
    product = "TensorRT"

    def _capabilities(self) -> Capabilities:
        return Capabilities(
            weakly_typed=False,
            timing_cache=True,
            build_needs_gpu=True,
            int8_calibrator=False,
            exact_fp32=True,
            targets=(),
            quantized_ops=QUANTIZES_ALL,
            refusals=TENSORRT_REFUSALS,
        )

    def _network_flags(self, request: BuildRequest) -> int:  # noqa: ARG002
        return 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
