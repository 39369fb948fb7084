"""TensorRT 10: weakly typed by default, so precision comes from builder flags."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from trt_native.backends.base import BuildRequest, Capabilities
from trt_native.backends.callbacks import stream_reader_class
from trt_native.backends.native import (
    DOCUMENTED_BLOCK_SIZES,
    DOCUMENTED_QUANTIZED_OPS,
    TENSORRT_UNSUPPORTED_OPTIONS,
    TensorRTBackend,
)
from trt_native.backends.trt10_calibrator import (
    DeviceUploader,
    check_calibration,
    make_calibrator,
)
from trt_native.config import IoPrecision, Precision
from trt_native.errors import BuildError
from trt_native.progress import Progress

__all__ = ["TensorRT10Backend"]


class TensorRT10Backend(TensorRTBackend):
    """``tensorrt`` 10.3 to 10.16."""

    name = "trt10"
    product = "TensorRT"

    def _capabilities(self) -> Capabilities:
        return Capabilities(
            weakly_typed=True,
            timing_cache=True,
            build_needs_gpu=True,
            int8_calibrator=True,
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

    def _network_flags(self, *, strongly_typed: bool) -> int:
        flag = self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return 1 << int(flag) if strongly_typed else 0

    def _set_precision(self, request: BuildRequest, network: Any, config: Any) -> None:
        if request.strongly_typed:
            return
        flags = self._trt.BuilderFlag
        if request.builder_flags is Precision.BF16:
            config.set_flag(flags.BF16)
        elif request.builder_flags is Precision.FP16 or request.calibration is not None:
            config.set_flag(flags.FP16)  # with INT8 alone, all that is not quantized were FP32
        if request.calibration is not None:
            config.set_flag(flags.INT8)
        self._set_io_types(request, network)
        if request.fp32_nodes:
            config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
            self._hold_fp32(request.fp32_nodes, network)

    @contextlib.contextmanager
    def _calibrating(
        self,
        request: BuildRequest,
        builder: Any,
        config: Any,
        progress: Progress | None,
        cancelled: threading.Event,
    ) -> Iterator[None]:
        if request.calibration is None:
            yield
            return
        check_calibration(request)
        calibrator = make_calibrator(
            self._trt, request.calibration, DeviceUploader(), progress, cancelled
        )
        try:
            config.int8_calibrator = calibrator
            self._set_calibration_profile(request, builder, config)
            yield
        except BuildError as error:
            if calibrator.failure is not None:
                raise calibrator.failure from error
            raise
        finally:
            calibrator.close()
        calibrator.check()

    def _set_calibration_profile(self, request: BuildRequest, builder: Any, config: Any) -> None:
        batches = request.calibration.batches if request.calibration else None
        if not request.profiles:
            return
        profile = builder.create_optimization_profile()
        shapes = batches.common_shapes() if batches is not None else {}
        with self._log.collect_errors() as errors:
            for name, shape_range in request.profiles[0].shapes.items():
                shape = shapes.get(name, shape_range.opt)
                profile.set_shape(name, shape, shape, shape)
            accepted = config.set_calibration_profile(profile)
        if not accepted or errors:
            raise BuildError(f"{self.product} rejected the calibration profile", errors)

    def _set_io_types(self, request: BuildRequest, network: Any) -> None:
        wanted = request.config.io_precision
        if wanted is IoPrecision.KEEP:
            return
        types = self._trt.DataType
        target = types.HALF if wanted is IoPrecision.FP16 else types.FLOAT
        outputs = (network.get_output(i) for i in range(network.num_outputs))
        for tensor in (*self._inputs(network), *outputs):
            if tensor.dtype in (types.FLOAT, types.HALF, types.BF16):
                tensor.dtype = target

    def _hold_fp32(self, nodes: frozenset[str], network: Any) -> None:
        """Pin the layers that came from these ONNX nodes; the parser notes the node in each."""
        types = self._trt.DataType
        wanted = {f"[ONNX Layer: {node}]" for node in nodes}
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.metadata not in wanted:
                continue
            floats = [
                i for i in range(layer.num_outputs) if layer.get_output(i).dtype == types.FLOAT
            ]
            if floats:
                layer.precision = types.FLOAT
                for output in floats:
                    layer.set_output_type(output, types.FLOAT)
