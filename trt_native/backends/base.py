"""The protocol that every TensorRT library implements for the rest of the package.

The rest of the code reads :class:`Capabilities`, never a version number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trt_native.arrays import Array
from trt_native.config import (
    BLOCK_SIZES,
    QUANTIZED_OPS,
    BuildConfig,
    KernelSpecialization,
    Precision,
)
from trt_native.errors import SpecError
from trt_native.plans.host_code import HostCode
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan_file import PlanFile
from trt_native.plans.stored_content import StoredContent
from trt_native.progress import Progress
from trt_native.shapes import Profile

if TYPE_CHECKING:
    from trt_native.calibration.batches import Batches
    from trt_native.graph.model_interface import ModelInterface

__all__ = [
    "ALL_QUANTIZED_OPS",
    "NUMPY_DTYPES",
    "Backend",
    "BuildRequest",
    "BuildResult",
    "Calibration",
    "Capabilities",
    "ContextFactory",
    "DebugTensor",
    "StagedWeights",
    "WeightValues",
]
NUMPY_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
    "FP8": "float8_e4m3fn",
    "INT4": "int4",
    "FP4": "float4_e2m1fn",
    "E8M0": "float8_e8m0fnu",
}
"""NumPy or ml_dtypes name of each member of TensorRT's ``DataType``."""

ALL_QUANTIZED_OPS = {
    precision: frozenset(QUANTIZED_OPS) for precision in Precision if precision.quantized
}
"""Value of :attr:`Capabilities.quantized_ops` for a backend that supports every operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Features and limits of a backend.

    Attributes:
        weakly_typed: Precision may come from builder flags. Otherwise it comes from the graph.
        timing_cache: Layer timings can be kept between builds.
        build_needs_gpu: Plans can be built only on a machine with a GPU.
        int8_calibrator: TensorRT can calibrate INT8 ranges itself, during the build.
        exact_fp32: With TF32 off, products of FP32 tensors keep FP32's 24 bits on every GPU.
            Otherwise the graph must be rewritten to get them; see
            :func:`~trt_native.passes.split_fp32_products.split_fp32_products`.
        targets: Compute capabilities a build may name, such as ``8.9``; empty where it may not.
        int8_unsupported: Operators of products that it parses between INT8 Q/DQ nodes, and then
            fails to build.
        quantizing_needs_gpu: Plans of models with Q/DQ nodes can be built only on a machine with a
            GPU, also where others can be built without.
        dynamic_conditionals: An ``If`` whose result has a dynamic shape is right at every shape
            of the profile.
        crashing_operators: Operators whose import ends the process.
        small_recurrent: A ``GRU`` or ``LSTM`` of a batch of 1 and a few hidden units is built in
            time.
        quantized_ops: Precision to the operators that the backend builds in it.
        fixed_norm_scales: An ``InstanceNormalization`` whose scale cannot be replaced is built next
            to weights that can.
        block_sizes: Numbers of INT4 weights that may share a scale.
        first_targets: Precision to the lowest compute capability that a build may name for it.
        attention_layer: It builds the attention layers that its parser makes, by a fused kernel
            where it has one and else as separate products. Otherwise ``Attention`` must be written
            out.
        operators_elsewhere: Operators that it lacks, to which other TensorRT has them.
        streams_plans: It writes a plan to a file as it is made, without the whole of it in memory.
        loads_streams: It reads a plan from a file as it is needed, likewise.
        defers_weights: It loads a plan without its weights, and these later.
        specializes_kernels: It compiles kernels for the shapes that are run, and can be asked not
            to, or to do so in the background.
        debug_tensors: A plan can be built that gives a listener the tensors between its kernels
            while it runs, with the kernels that it has without.
        unsupported_options: Name of a :class:`BuildConfig` field to the reason why this backend
            does not support it, and what to do instead.
    """

    weakly_typed: bool
    timing_cache: bool
    build_needs_gpu: bool
    int8_calibrator: bool
    exact_fp32: bool
    targets: tuple[str, ...]
    quantized_ops: Mapping[Precision, frozenset[str]]
    unsupported_options: Mapping[str, str]
    int8_unsupported: frozenset[str] = frozenset()
    quantizing_needs_gpu: bool = False
    block_sizes: tuple[int, ...] = BLOCK_SIZES
    first_targets: Mapping[Precision, str] = field(default_factory=dict)
    dynamic_conditionals: bool = True
    crashing_operators: frozenset[str] = frozenset()
    small_recurrent: bool = True
    fixed_norm_scales: bool = True
    attention_layer: bool = False
    operators_elsewhere: Mapping[str, str] = field(default_factory=dict)
    streams_plans: bool = False
    loads_streams: bool = False
    specializes_kernels: bool = False
    debug_tensors: bool = False
    defers_weights: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """INT8 ranges that TensorRT finds itself while it builds.

    Attributes:
        batches: The data, all batches of the same shapes, checked against the model that is
            built. None: the ranges come from ``cache``.
        cache: File of ranges in TensorRT's format. If it exists and is not empty, its ranges are
            used and the data is not read; otherwise it is written once all data was read.
        method: ``entropy`` or ``minmax``.
    """

    batches: Batches | None = None
    cache: Path | None = None
    method: str = "entropy"

    def __post_init__(self) -> None:
        if self.method not in ("entropy", "minmax"):
            raise SpecError(
                f"calibration method {self.method!r}: TensorRT's own are entropy and minmax"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """A build, decided in every detail.

    Attributes:
        onnx: The file to parse; external weights are found next to it.
        config: What the user asked for.
        profiles: Ranges of the inputs with dynamic shapes.
        fixed: For each input with a symbolic axis, its extents where every profile fixes them.
        builder_flags: Precision whose flags a weakly typed network gets; a strongly typed one
            gets none.
        strongly_typed: Take the types from the graph.
        fp32_nodes: Names of ONNX nodes to hold in FP32 on a weakly typed network.
        operators: Operator to the name of the first node that uses it.
        workspace_bytes: Upper limit for scratch memory.
        calibration: Build in INT8 on a weakly typed network, FP16 (or BF16, where that is
            ``builder_flags``) elsewhere.
        timing_cache: File with layer timings, read before the build and extended after it. One
            that cannot be used is an error if the config names it, else it is replaced.
        interface: The inputs and outputs that the parsed network must have; None to take what it
            has.
        output: File for the plan, where the backend can write it as it is made; see
            :attr:`Capabilities.streams_plans`.
        refit_weights: Names, in the ONNX file, of the only weights to make replaceable; None for
            all or none, as the config says.
        debug_tensors: Mark the tensors between kernels as debug tensors; see
            :attr:`Capabilities.debug_tensors`.
    """

    onnx: Path
    config: BuildConfig
    profiles: tuple[Profile, ...]
    fixed: Mapping[str, tuple[int | None, ...]]
    builder_flags: Precision
    strongly_typed: bool
    fp32_nodes: frozenset[str]
    operators: Mapping[str, str]
    workspace_bytes: int
    calibration: Calibration | None = None
    timing_cache: Path | None = None
    interface: ModelInterface | None = None
    output: PlanFile | None = None
    refit_weights: frozenset[str] | None = None
    debug_tensors: bool = False


@dataclass(frozen=True, slots=True)
class BuildResult:
    """Result of a build.

    Attributes:
        data: The serialized engine, in memory that TensorRT owns and this object keeps alive, or in
            the mapped file that the request gave.
        sha256: Its SHA-256, in hexadecimal.
        tensors: The network's inputs and outputs, without profiles and dimension names.
        seconds: Duration of ``parse`` and ``build``.
    """

    data: memoryview = field(repr=False)
    sha256: str
    tensors: tuple[PlanTensor, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class WeightValues:
    """New values of one weight, in memory that the caller keeps alive.

    Attributes:
        dtype: NumPy or ml_dtypes name of the type that the engine has.
        count: Number of elements.
        pointer: Address of the first element, without gaps to the others.
        on_device: Whether that is a device address.
    """

    dtype: str
    count: int
    pointer: int
    on_device: bool


@dataclass(frozen=True, slots=True)
class DebugTensor:
    """A tensor inside a plan that is running.

    Attributes:
        name: Its name in the engine; often that of the network's tensor with a suffix.
        dtype: NumPy or ml_dtypes name of its type.
        shape: Its extents.
        read: Copies the values to a new array on the host, in the order of TensorRT's memory. Only
            valid until the function that was given the tensor returns.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array] = field(repr=False)


class StagedWeights(Protocol):
    """New weights that an engine can take, and has not taken yet."""

    def apply(self, stream: int) -> None:
        """Replace the weights, in the order of a stream given by its handle.

        Nothing may be running on the engine but work of this stream. Values on the host may be
        freed when this returns, those on the GPU when the stream has done it; this object, too.

        Raises:
            CudaError: TensorRT failed; the engine may have some of the new weights.
        """


class ContextFactory(Protocol):
    """Makes the execution contexts of one engine."""

    def create(self, *, user_managed: bool) -> Any:
        """A new ``IExecutionContext``, or None where TensorRT creates none.

        Args:
            user_managed: The caller gives it memory for activations before it runs.
        """

    def cache(self) -> bytes:
        """The kernels compiled so far, to be kept; empty where the library compiles none."""
        ...


class Backend(Protocol):
    """One TensorRT library."""

    name: str
    product: str
    version: str
    capabilities: Capabilities

    def check(self, config: BuildConfig) -> None:
        """Refuse what cannot work, before any work is done.

        Raises:
            UnsupportedError: an option is not supported, or this machine cannot build at all.
        """

    def build(
        self, request: BuildRequest, progress: Progress | None, cancelled: threading.Event
    ) -> BuildResult:
        """Parse, configure and build.

        Args:
            request: What to build.
            progress: Receives progress callbacks.
            cancelled: Once set, the build stops at its next step.

        Raises:
            BuildError: TensorRT rejected the model or failed; its log is in ``details``.
            UnsupportedError: the parsed network has other inputs or outputs than the model; or a
                calibration, on a backend whose TensorRT has no calibrator.
            CalibrationError: the data or the cache cannot be used, or TensorRT did not read all
                of the data.
        """

    def parse(self, request: BuildRequest) -> None:
        """Parse a model and check its interface, as :meth:`build` does, and build nothing.

        Raises:
            BuildError, UnsupportedError: as :meth:`build`.
        """

    def parser_refusals(self, models: Sequence[bytes]) -> list[str]:
        """Ask the ONNX parser about models, which nothing is built of.

        Args:
            models: Serialized models, with their weights inside.

        Returns:
            For each the parser's reason to refuse it; empty where it supports all nodes.

        Raises:
            UnsupportedError: this machine cannot build at all.
        """
        ...

    def load_plugins(self, sources: Sequence[str]) -> None:
        """Register plugins, each once in the process.

        Args:
            sources: Paths of libraries, ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``.

        Raises:
            PlanError: one cannot be loaded.
            UnsupportedError: the library takes no plugins.
        """

    def deserialize(
        self,
        content: bytes | memoryview | StoredContent,
        host_code: HostCode,
        *,
        defer_weights: bool = False,
    ) -> Any:
        """Turn a plan into an ``ICudaEngine`` on the current GPU.

        The caller has checked the plan with :func:`trt_native.plans.compatibility.compatibility`.

        Args:
            content: The plan. One in a file is read as it is needed, where
                :attr:`Capabilities.loads_streams` says so, else into memory.
            host_code: Whether code that the plan carries may run, and the library of a lean runtime
                to load it with.
            defer_weights: Leave the weights to :meth:`load_weights`, where
                :attr:`Capabilities.defers_weights` says so.

        Raises:
            PlanError: TensorRT rejected the plan or the lean runtime, the plan carries code that
                may not run, or its file cannot be read or has changed.
            UnsupportedError: the library loads no lean runtimes.
        """

    def load_weights(
        self, engine: Any, content: bytes | memoryview | StoredContent, stream: int | None
    ) -> None:
        """Load the weights that :meth:`deserialize` has deferred.

        Args:
            engine: The ``ICudaEngine``.
            content: The same plan.
            stream: Handle of the stream in whose order to copy them from a file; None to have them
                copied when this returns, as those of a plan in memory are.

        Raises:
            PlanError: TensorRT did not take them, or the plan's file cannot be read or has changed.
        """

    def contexts(
        self,
        engine: Any,
        cached: bytes,
        *,
        specialization: KernelSpecialization = KernelSpecialization.EAGER,
    ) -> ContextFactory:
        """Create the factory for execution contexts of an engine.

        Args:
            engine: What :meth:`deserialize` returned.
            cached: What :meth:`ContextFactory.cache` returned in an earlier process, or nothing.
                Bytes that the library does not accept are ignored.
            specialization: Kernels for shapes in a profile's range, where the library compiles
                kernels as :attr:`Capabilities.specializes_kernels` says.
        """
        ...

    def profiler(self, report: Callable[[str, float], None]) -> Any:
        """An ``IProfiler`` that passes each layer's name and milliseconds on, in engine order.

        An exception that ``report`` raises is kept as the attribute ``failure`` of what this
        returns.
        """

    def listen(self, context: Any, receive: Callable[[DebugTensor], None]) -> Any:
        """Pass the debug tensors of every later run of an execution context on, in their order.

        Returns:
            The listener, which must live as long as the context. An exception that ``receive``
            raises is kept as its attribute ``failure``.

        Raises:
            UnsupportedError: TensorRT takes no listener, or the plan has no debug tensors.
        """

    def refit(
        self, engine: Any, onnx: Path, *, changed: Collection[str], refittable: bool
    ) -> memoryview:
        """Replace the weights of an engine, in place, by those of a model; serialize it with them.

        Args:
            engine: An ``ICudaEngine`` without an execution context.
            onnx: The file with the new weights; external ones are found next to it.
            changed: Names of the weights that differ from those the engine was built with.
            refittable: Whether the weights can be replaced in the result, too.

        Returns:
            The serialized engine, in memory that TensorRT owns and this object keeps alive.

        Raises:
            PlanError: the weights cannot be replaced, all or some; the engine is unusable then.
        """

    def stage_weights(
        self, engine: Any, weights: Mapping[str, WeightValues], stream: int
    ) -> StagedWeights:
        """Check new values for some of an engine's weights, without a change to the engine.

        Args:
            engine: An ``ICudaEngine``, which may have execution contexts.
            weights: The values by the names that TensorRT's refitter has.
            stream: Handle of the stream in whose order the values on the GPU are complete.

        Raises:
            PlanError: the engine's weights cannot be replaced, or not these.
            SpecError: the engine has merged some with others, whose values must be given, too.
        """
        ...

    def json_format(self) -> Any:
        """The ``LayerInformationFormat`` with which an engine inspector answers in JSON."""

    def output_allocator(self, allocate: Callable[[str, int], int]) -> Any:
        """An ``IOutputAllocator`` for outputs whose shape depends on data.

        Args:
            allocate: Given a tensor's name and a size in bytes, returns a device address that
                stays valid until the next call for that tensor. An exception it raises is kept
                and re-raised by the ``shape`` method of what this returns.
        """

    def collected_errors(self) -> AbstractContextManager[list[str]]:
        """Collect the errors that TensorRT logs while the block runs."""
        ...
