"""TensorRT 11: strongly typed, so precision comes from the graph."""

from __future__ import annotations

from trt_native.backends.base import Capabilities
from trt_native.backends.callbacks import stream_reader_class
from trt_native.backends.native import (
    DOCUMENTED_BLOCK_SIZES,
    DOCUMENTED_QUANTIZED_OPS,
    TENSORRT_UNSUPPORTED_OPTIONS,
    TensorRTBackend,
)

__all__ = ["TensorRT11Backend"]


class TensorRT11Backend(TensorRTBackend):
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
            quantized_ops=DOCUMENTED_QUANTIZED_OPS,
            block_sizes=DOCUMENTED_BLOCK_SIZES,
            attention_layer=hasattr(self._trt, "IAttentionInputLayer"),
            streams_plans=hasattr(self._trt.Builder, "build_serialized_network_to_stream"),
            loads_streams=stream_reader_class(self._trt) is not None,
            debug_tensors=hasattr(
                self._trt.INetworkDefinition, "mark_unfused_tensors_as_debug_tensors"
            ),
            unsupported_options=TENSORRT_UNSUPPORTED_OPTIONS,
        )

    def _network_flags(self, *, strongly_typed: bool) -> int:  # noqa: ARG002
        return 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
