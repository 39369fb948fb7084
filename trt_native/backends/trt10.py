"""TensorRT 10: weakly typed by default, so precision comes from builder flags."""

from __future__ import annotations

from typing import Any

from trt_native.backends.base import BuildRequest, Capabilities
from trt_native.backends.native import TENSORRT_REFUSALS, NativeBackend
from trt_native.spec import IoPrecision, Precision

__all__ = ["TensorRT10Backend"]


class TensorRT10Backend(NativeBackend):
    """``tensorrt`` 10.3 to 10.16."""

    name = "trt10"
    product = "TensorRT"

    def _capabilities(self) -> Capabilities:
        return Capabilities(
            weakly_typed=True,
            timing_cache=True,
            build_needs_gpu=True,
            targets=(),
            refusals=TENSORRT_REFUSALS,
        )

    def _network_flags(self, request: BuildRequest) -> int:
        flag = self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return 1 << int(flag) if request.strongly_typed else 0

    def _set_precision(self, request: BuildRequest, network: Any, config: Any) -> None:
        if request.strongly_typed:
            return
        flags = self._trt.BuilderFlag
        if request.precision is Precision.FP16:
            config.set_flag(flags.FP16)
        elif request.precision is Precision.BF16:
            config.set_flag(flags.BF16)
        self._set_io_types(request, network)
        if request.fp32_nodes:
            config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
            self._hold_fp32(request.fp32_nodes, network)

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
