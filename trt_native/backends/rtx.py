"""TensorRT-RTX: strongly typed, builds without a GPU, compiles kernels where the plan runs."""

from __future__ import annotations

from typing import Any

from trt_native.backends.base import ALL_QUANTIZED_OPS, BuildRequest, Capabilities, ContextFactory
from trt_native.backends.callbacks import stream_reader_class
from trt_native.backends.native import TensorRTBackend
from trt_native.config import BuildConfig, KernelSpecialization, Precision
from trt_native.cuda import gpu_info
from trt_native.errors import UnsupportedError
from trt_native.plans.stored_content import StoredContent

__all__ = ["RtxBackend"]

_FIRST_WITH_INT8_CONV = (1, 7)
_FIRST_TO_QUANTIZE_WITHOUT_GPU = (1, 5)
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_UNSUPPORTED_OPTIONS = {
    "timing_cache": (
        "it does not time tactics at build time, so there is nothing to keep; kernels are"
        " compiled and cached when a plan first runs"
    ),
    "version_compatible": (
        "the package does not contain the lean runtime (libnvinfer_lean) that such plans need;"
        " build with the version that will load the plan"
    ),
    "plugins": "it takes none; build for TensorRT 10 or 11 (backend tensorrt)",
    "replacement_map": "it takes no plugins",
    "serialize_plugins": "it takes no plugins",
    "exclude_lean_runtime": "its plans never have one",
    "optimization_level": (
        "it has no effect: nothing is timed at build, and every level gives the same plan"
    ),
    "sparse_weights": "it has no effect: the plan is the same with and without it",
    "runtime_platform": "it refuses another system than the one that it runs on; build there",
    "hardware_compatibility": (
        "its plans run on every supported GPU; narrow them with compute_capabilities instead"
    ),
}


_OPERATORS_ELSEWHERE = dict.fromkeys(
    ("NonZero", "NonMaxSuppression", "RoiAlign"),
    "TensorRT 10 and 11 do (backend tensorrt, on a machine with a GPU)",
)


_FIRST_TARGETS = {Precision.BF16: "8.0", Precision.INT4_WEIGHTS: "8.0", Precision.FP8: "8.9"}


class RtxBackend(TensorRTBackend):
    """``tensorrt_rtx`` 1.4 and later."""

    name = "rtx"
    product = "TensorRT-RTX"

    def _capabilities(self) -> Capabilities:
        members = self._trt.ComputeCapability.__members__
        targets = (name.removeprefix("SM") for name in members if name.startswith("SM"))
        release = tuple(int(part) for part in self.version.split(".")[:2])
        unsupported = frozenset() if release >= _FIRST_WITH_INT8_CONV else _CONVOLUTIONS
        return Capabilities(
            weakly_typed=False,
            timing_cache=False,
            build_needs_gpu=False,
            int8_calibrator=False,
            exact_fp32=False,  # on GPUs of compute capability 9.0 it takes TF32 all the same
            targets=tuple(f"{target[:-1]}.{target[-1]}" for target in targets),
            quantized_ops={
                **ALL_QUANTIZED_OPS,
                Precision.INT8: ALL_QUANTIZED_OPS[Precision.INT8] - unsupported,
            },
            first_targets=_FIRST_TARGETS,
            attention_layer=hasattr(self._trt, "IAttentionInputLayer"),
            streams_plans=hasattr(self._trt.Builder, "build_serialized_network_to_stream"),
            loads_streams=stream_reader_class(self._trt) is not None,
            operators_elsewhere=_OPERATORS_ELSEWHERE,
            unsupported_options=_UNSUPPORTED_OPTIONS,
            int8_unsupported=unsupported,
            quantizing_needs_gpu=release < _FIRST_TO_QUANTIZE_WITHOUT_GPU,
            dynamic_conditionals=False,
            specializes_kernels=True,
            debug_tensors=False,  # 1.6 gives some, but nobody has compared their values
            defers_weights=hasattr(self._trt.Runtime, "defer_weights_loading"),
            crashing_operators=frozenset({"RoiAlign"}),
            small_recurrent=False,
            fixed_norm_scales=False,  # 1.6: "Unknown builtin" with such a norm between two products
        )

    def check(self, config: BuildConfig) -> None:
        """See :meth:`trt_native.backends.base.Backend.check`."""
        if (config.refit or config.strip_weights) and gpu_info() is None:
            raise UnsupportedError(
                f"{self.product} {self.version} builds refittable and stripped"
                " plans only on a machine with a GPU"
            )
        super().check(config)

    def _network_flags(self, *, strongly_typed: bool) -> int:  # noqa: ARG002
        return 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def _set_targets(self, request: BuildRequest, config: Any) -> None:
        wanted = dict.fromkeys(request.config.compute_capabilities)
        if not wanted:
            return
        config.num_compute_capabilities = len(wanted)
        for index, target in enumerate(wanted):
            member = "SM" + target.replace(".", "")
            config.set_compute_capability(getattr(self._trt.ComputeCapability, member), index)

    def contexts(
        self,
        engine: Any,
        cached: bytes,
        *,
        specialization: KernelSpecialization = KernelSpecialization.EAGER,
    ) -> ContextFactory:
        """See :meth:`trt_native.backends.base.Backend.contexts`."""
        return _CompilingContextFactory(self._trt, engine, cached, specialization)

    def _load_error(self, runtime: Any, content: bytes | memoryview | StoredContent) -> str | None:
        if isinstance(content, StoredContent):
            content = content.head(int(runtime.engine_header_size))
        validity, diagnostics = runtime.get_engine_validity(content)
        if validity != self._trt.EngineValidity.INVALID:
            return None
        members = self._trt.EngineInvalidityDiagnostics.__members__.items()
        reasons = [name for name, value in members if diagnostics & int(value)]
        return ", ".join(reasons).lower().replace("_", " ") or "no usable GPU or driver"


class _CompilingContextFactory:
    """Creates contexts that compile kernels on the current GPU, and share a runtime cache.

    Kernels for new shapes are compiled at once, in the first run with these shapes, unless that is
    asked for otherwise: TensorRT's default is LAZY.
    """

    def __init__(
        self, trt: Any, engine: Any, cached: bytes, specialization: KernelSpecialization
    ) -> None:
        self._trt = trt
        self._engine = engine
        self._config = engine.create_runtime_config()
        self._config.dynamic_shapes_kernel_specialization_strategy = getattr(
            trt.DynamicShapesKernelSpecializationStrategy, specialization.value.upper()
        )
        self._cache = self._config.create_runtime_cache()
        if cached:
            self._cache.deserialize(cached)
        self._config.set_runtime_cache(self._cache)

    def create(self, *, user_managed: bool) -> Any:
        strategies = self._trt.ExecutionContextAllocationStrategy
        self._config.set_execution_context_allocation_strategy(
            strategies.USER_MANAGED if user_managed else strategies.STATIC
        )
        return self._engine.create_execution_context(self._config)

    def cache(self) -> bytes:
        return bytes(self._cache.serialize())
