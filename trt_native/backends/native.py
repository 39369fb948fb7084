"""The walk that all TensorRT libraries share: parse, configure, build; and loading a plan."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from trt_native.arrays import Array
from trt_native.backends.base import (
    ALL_QUANTIZED_OPS,
    NUMPY_DTYPES,
    BuildRequest,
    BuildResult,
    Capabilities,
    ContextFactory,
    DebugTensor,
    StagedWeights,
    WeightValues,
)
from trt_native.backends.callbacks import (
    make_log,
    make_monitor,
    make_output_allocator,
    make_profiler,
    make_stream_reader,
    make_stream_writer,
)
from trt_native.backends.debug_listener import make_debug_listener
from trt_native.backends.plugin_loader import PluginLoader
from trt_native.backends.workspace_shortage import BUDGET_LINE, find_shortage
from trt_native.config import BuildConfig, KernelSpecialization, Precision, RuntimePlatform
from trt_native.cuda import Stream, copy_to_host
from trt_native.errors import (
    BuildError,
    CudaError,
    MergedWeightsError,
    PlanError,
    SpecError,
    UnsupportedError,
)
from trt_native.files import atomic_write, open_regular_file
from trt_native.installing import install_command
from trt_native.io_formats import OTHER_LAYOUTS
from trt_native.plans.header import PlanHeader
from trt_native.plans.host_code import HostCode
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan_file import PlanFile
from trt_native.plans.plugins import is_python_plugin
from trt_native.plans.stored_content import StoredContent
from trt_native.progress import Progress
from trt_native.units import format_bytes

__all__ = [
    "DOCUMENTED_BLOCK_SIZES",
    "DOCUMENTED_QUANTIZED_OPS",
    "TENSORRT_UNSUPPORTED_OPTIONS",
    "TensorRTBackend",
]

_LOGGER = logging.getLogger(__name__)

DOCUMENTED_BLOCK_SIZES = (64, 128)
"""Numbers of INT4 weights that may share a scale by TensorRT's documentation."""

DOCUMENTED_QUANTIZED_OPS = {
    **ALL_QUANTIZED_OPS,
    Precision.INT4_WEIGHTS: frozenset({"MatMul", "Gemm"}),
}
"""Value of ``Capabilities.quantized_ops``, likewise."""

TENSORRT_UNSUPPORTED_OPTIONS = {
    "compute_capabilities": (
        "TensorRT builds for the GPU it runs on; use hardware compatibility, or TensorRT-RTX"
        " (backend rtx) to name targets"
    )
}
"""Options that neither TensorRT 10 nor 11 supports."""

_BUILDER_FLAGS = {
    "sparse_weights": "SPARSE_WEIGHTS",
    "strip_weights": "STRIP_PLAN",
    "weight_streaming": "WEIGHT_STREAMING",
    "version_compatible": "VERSION_COMPATIBLE",
    "exclude_lean_runtime": "EXCLUDE_LEAN_RUNTIME",
}

_DATA_TYPES = {name: member for member, name in NUMPY_DTYPES.items()}

_HOST_CODE_REFUSED = "getEngineHostCodeAllowed()"
_HINT = "hint: leave these nodes out of the model, and compute them outside of the plan"
_PLUGIN_HINT = f"{_HINT}; or name plugins that have them"
_INNER_REASON = re.compile(
    r"Error Code \d+: [\w ]+\((?:\w+: )?(?P<reason>.*?)\.? In \S+ at ", re.DOTALL
)


def _release(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


class TensorRTBackend:
    """A :class:`~trt_native.backends.base.Backend` over an imported TensorRT module.

    Subclasses say what differs between the libraries: the capabilities, and the hooks
    :meth:`_network_flags`, :meth:`_set_precision`, :meth:`_set_targets`, :meth:`_calibrating` and
    :meth:`_load_error`.
    """

    name: str
    product: str

    def __init__(self, trt: Any) -> None:
        self._trt = trt
        self._log = make_log(trt)
        self._lean_runtimes: dict[HostCode, tuple[Any, Any]] = {}
        self.version = str(trt.__version__)
        self._plugins = PluginLoader(trt, self._log, f"{self.product} {self.version}")
        self.capabilities = self._capabilities()

    # What differs

    def _capabilities(self) -> Capabilities:
        raise NotImplementedError

    def _network_flags(self, *, strongly_typed: bool) -> int:
        raise NotImplementedError

    def _set_precision(self, request: BuildRequest, network: Any, config: Any) -> None:
        """Set types from flags; nothing to do where they come from the graph."""

    def _set_targets(self, request: BuildRequest, config: Any) -> None:
        """Choose the GPUs the plan is for."""

    def _load_error(
        self,
        runtime: Any,  # noqa: ARG002
        content: bytes | memoryview | StoredContent,  # noqa: ARG002
    ) -> str | None:
        """Reason why the library does not support this plan on this machine, if it reports one."""
        return None

    @contextlib.contextmanager
    def _calibrating(
        self,
        request: BuildRequest,  # noqa: ARG002
        builder: Any,  # noqa: ARG002
        config: Any,  # noqa: ARG002
        progress: Progress | None,  # noqa: ARG002
        cancelled: threading.Event,  # noqa: ARG002
    ) -> Iterator[None]:
        """Let TensorRT calibrate in the build that the block makes, where that was asked for."""
        yield

    # Checking

    def check(self, config: BuildConfig) -> None:
        """See :meth:`trt_native.backends.base.Backend.check`."""
        default = BuildConfig()
        refused = [
            f"{option} is not supported: {reason}"
            for option, reason in self.capabilities.unsupported_options.items()
            if getattr(config, option) != getattr(default, option)
        ]
        unknown = set(config.compute_capabilities) - set(self.capabilities.targets)
        if unknown and "compute_capabilities" not in self.capabilities.unsupported_options:
            targets = ", ".join(self.capabilities.targets)
            refused.append(
                f"compute capability {', '.join(sorted(unknown))} is not supported: it targets"
                f" {targets}"
            )
        built = self.capabilities.quantized_ops.get(config.precision, frozenset())
        unsupported = [operator for operator in config.quantization.ops if operator not in built]
        if unsupported:
            refused.append(
                f"{', '.join(unsupported)} in {config.precision} is not supported: it builds"
                f" {', '.join(sorted(built))} in that; leave {', '.join(unsupported)} out of the"
                " operators to quantize, or choose another precision"
            )
        size, sizes = config.quantization.block_size, self.capabilities.block_sizes
        if size is not None and size not in sizes:
            refused.append(
                f"a block size of {size} is not supported: it builds {', '.join(map(str, sizes))}"
            )
        first = self.capabilities.first_targets.get(config.precision, "0.0")
        older = [c for c in config.compute_capabilities if _release(c) < _release(first)]
        if older:
            refused.append(
                f"{config.precision} for compute capability {', '.join(older)} is not supported: it"
                f" needs {first} or newer; target those alone, or choose another precision"
            )
        if refused:
            raise UnsupportedError(f"{self.product} {self.version}: {'; '.join(refused)}")
        self.load_plugins(config.plugins)
        self._builder()

    def load_plugins(self, sources: Sequence[str]) -> None:
        """See :meth:`trt_native.backends.base.Backend.load_plugins`."""
        if not self._takes_plugins:
            if sources:
                raise UnsupportedError(
                    f"{self.product} {self.version}: plugin {sources[0]}: it takes none; use"
                    " TensorRT 10 or 11",
                    options=("plugins",),
                )
            return
        self._plugins.load(sources)

    @property
    def _takes_plugins(self) -> bool:
        return "plugins" not in self.capabilities.unsupported_options

    def _builder(self) -> Any:
        with self._log.collect_errors() as errors:
            try:
                return self._trt.Builder(self._log.tensorrt_logger)
            except Exception as error:  # pybind11 raises TypeError where a factory fails
                hint = (
                    "; it builds only on a machine with a GPU that it supports. TensorRT-RTX"
                    f" builds without one: {install_command('rtx')} and use backend rtx"
                    if self.capabilities.build_needs_gpu
                    else ""
                )
                raise UnsupportedError(
                    f"{self.product} {self.version} could not create a builder on this"
                    f" machine{hint}",
                    _relevant(errors) or [str(error).splitlines()[0]],
                ) from None

    def parser_refusals(self, models: Sequence[bytes]) -> list[str]:
        """See :meth:`trt_native.backends.base.Backend.parser_refusals`."""
        if not models:
            return []
        builder = self._builder()
        with self._log.quiet(), self._log.collect_errors():
            return [self._parser_refusal(builder, model) for model in models]

    def _parser_refusal(self, builder: Any, model: bytes) -> str:
        network = builder.create_network(self._network_flags(strongly_typed=True))
        parser = self._trt.OnnxParser(network, self._log.tensorrt_logger)
        ask = getattr(parser, "supports_model_v2", parser.parse)  # early 10.x lack the first
        if ask(model):
            return ""
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return next(filter(None, map(_reason_text, reasons)), "refused without a reason")

    # Building

    def build(
        self, request: BuildRequest, progress: Progress | None, cancelled: threading.Event
    ) -> BuildResult:
        """See :meth:`trt_native.backends.base.Backend.build`."""
        started = time.perf_counter()
        if request.calibration is not None and not self.capabilities.int8_calibrator:
            raise UnsupportedError(
                f"{self.product} {self.version} has no INT8 calibrator: put Q/DQ nodes into the"
                " ONNX model and build that"
            )
        builder = self._builder()
        network = self._network(request, builder)
        parsed = time.perf_counter()
        config = builder.create_builder_config()
        self._configure(request, network, config)
        self._add_profiles(request, builder, config)
        with self._calibrating(request, builder, config, progress, cancelled):
            output = request.output if self.capabilities.streams_plans else None
            data, sha256 = self._serialize(builder, network, config, progress, cancelled, output)
        self._save_timing_cache(request, config)
        seconds = {"parse": parsed - started, "build": time.perf_counter() - parsed}
        tensors = self._tensors(network, request.config.tensor_formats())
        return BuildResult(data, sha256, tensors, seconds)

    def parse(self, request: BuildRequest) -> None:
        """See :meth:`trt_native.backends.base.Backend.parse`."""
        self._network(request, self._builder())

    def _network(self, request: BuildRequest, builder: Any) -> Any:
        self.load_plugins(request.config.plugins)
        flags = self._network_flags(strongly_typed=request.strongly_typed)
        with self._log.collect_errors() as errors:
            network = builder.create_network(flags | self._plugin_flags(request))
        if network is None:
            raise BuildError(
                f"{self.product} {self.version} could not create a network", _relevant(errors)
            )
        self._parse(request, network)
        self._decompose_attention(network)
        self._fix_shapes(request, network)
        self._check_interface(request, network)
        self._check_caches(request, network)
        self._set_formats(request, network)
        self._mark_weights(request, network)
        self._mark_debug_tensors(request, network)
        return network

    def _plugin_flags(self, request: BuildRequest) -> int:
        """Take the kernels of Python plugins that are compiled ahead of time, where both are there.

        The plan has these inside; others run Python in every inference.
        """
        flags = self._trt.NetworkDefinitionCreationFlag
        ahead = getattr(flags, "PREFER_AOT_PYTHON_PLUGINS", None)
        has_python = any(map(is_python_plugin, request.config.plugins))
        return 1 << int(ahead) if has_python and ahead is not None else 0

    def _parse(self, request: BuildRequest, network: Any) -> None:
        with self._log.collect_errors() as errors:
            parser = self._trt.OnnxParser(network, self._log.tensorrt_logger)
            if parser.parse_from_file(os.fsencode(request.onnx)):
                self._check_operators(request)
                return
            lines = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        missing = {
            operator: node
            for operator, node in request.operators.items()
            if not parser.supports_operator(operator.rpartition("::")[2])
        }
        product, name = f"{self.product} {self.version}", request.onnx.name
        from trt_native.backends.parser_support import refusal_lines, refused_in_file

        named = {parser.get_error(i).node_name() for i in range(parser.num_errors)}
        if problems := refusal_lines(refused_in_file(request.onnx, named, self), missing, self):
            for line in lines:
                _LOGGER.info("%s", line)
            raise BuildError(
                f"{product} does not support these operators of {name}:",
                [_PLUGIN_HINT if self._takes_plugins else _HINT],
                problems=problems,
            )
        raise BuildError(f"{product} cannot parse {name}", (lines or _relevant(errors))[:20])

    def _check_operators(self, request: BuildRequest) -> None:
        """Refuse operators that are parsed, and of which no layer can be built."""
        elsewhere = self.capabilities.operators_elsewhere
        unknown = {name: node for name, node in request.operators.items() if name in elsewhere}
        if unknown:
            from trt_native.backends.parser_support import refusal_lines

            raise BuildError(
                f"{self.product} {self.version} does not support these operators of"
                f" {request.onnx.name}:",
                [_HINT],
                problems=refusal_lines({}, unknown, self),
            )

    def _decompose_attention(self, network: Any) -> None:
        """Let TensorRT compute attention without a fused kernel, where it has none."""
        if not self.capabilities.attention_layer:
            return
        for layer in (network.get_layer(i) for i in range(network.num_layers)):
            if layer.type == self._trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = self._trt.IAttentionInputLayer
                _decompose(layer)

    def _fix_shapes(self, request: BuildRequest, network: Any) -> None:
        """Set the extents that never vary: TensorRT optimizes more than for min = max."""
        for tensor in self._inputs(network):
            extents = request.fixed.get(tensor.name)
            if extents is not None:
                tensor.shape = tuple(
                    present if extent is None else extent
                    for extent, present in zip(extents, tensor.shape, strict=True)
                )

    def _check_interface(self, request: BuildRequest, network: Any) -> None:
        """Refuse a network whose inputs or outputs are not those of the model."""
        if request.interface is None:
            return
        from trt_native.backends.interface import interface_problems

        with self._log.collect_errors() as errors:
            problems = interface_problems(network, request.interface)
        if problems:
            raise UnsupportedError(
                f"{self.product} {self.version} parses {request.onnx.name} into a network with"
                " another interface:",
                _relevant(errors),
                problems=problems,
            )

    def _set_formats(self, request: BuildRequest, network: Any) -> None:
        """Give inputs and outputs the layouts that were asked for.

        Raises:
            SpecError: the model has no tensor of that name.
            UnsupportedError: TensorRT lays out tensors of its type in another way.
        """
        outputs = (network.get_output(i) for i in range(network.num_outputs))
        tensors = {str(t.name): t for t in (*self._inputs(network), *outputs)}
        for name, layout in request.config.tensor_formats().items():
            if name not in tensors:
                raise SpecError(
                    f"I/O format of {name!r}: {request.onnx.name} has no such input or output, but"
                    f" {', '.join(tensors)}",
                    options=("io_formats",),
                )
            dtype = NUMPY_DTYPES[tensors[name].dtype.name]
            if (layout, dtype) in OTHER_LAYOUTS:
                raise UnsupportedError(
                    f"I/O format of {name!r}: in {dtype} the memory of {layout.lower()} is not as"
                    " TensorRT documents it; use another one",
                    options=("io_formats",),
                )
            member = getattr(self._trt.TensorFormat, layout)
            tensors[name].allowed_formats = 1 << int(member)

    def _check_caches(self, request: BuildRequest, network: Any) -> None:
        """Refuse a network that updates a cache elsewhere than asked for: in an input's memory."""
        inputs = {str(tensor.name) for tensor in self._inputs(network)}
        lost = sorted(set(self._updated_caches(network).values()) - inputs)
        if lost:
            raise UnsupportedError(
                f"{self.product} {self.version} does not update these caches of"
                f" {request.onnx.name} in place, as they are not its inputs:",
                problems=[repr(name) for name in lost],
                options=("in_place_caches",),
            )

    def _mark_weights(self, request: BuildRequest, network: Any) -> None:
        """Make some weights replaceable."""
        with self._log.collect_errors() as errors:
            wanted = sorted(request.refit_weights or ())
            refused = [name for name in wanted if not network.mark_weights_refittable(name)]
        if refused:
            raise UnsupportedError(
                f"{self.product} {self.version} cannot make single weights of {request.onnx.name}"
                " replaceable that its parser merges with others; choose other weights, or make all"
                " replaceable:",
                _relevant(errors),
                problems=[repr(name) for name in refused],
                options=("refit_weights", "refit"),
            )

    def _mark_debug_tensors(self, request: BuildRequest, network: Any) -> None:
        """Mark what is not fused away: marks of single tensors would prevent fusions."""
        if not request.debug_tensors:
            return
        with self._log.collect_errors() as errors:
            marked = network.mark_unfused_tensors_as_debug_tensors()
        if not marked:
            raise BuildError(
                f"{self.product} {self.version} marked no debug tensors", _relevant(errors)
            )

    def _configure(self, request: BuildRequest, network: Any, config: Any) -> None:
        """Set every option; TensorRT only logs what it does not take, so its log decides."""
        trt, wanted = self._trt, request.config
        with self._log.collect_errors() as errors:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
            for option, flag in _BUILDER_FLAGS.items():
                if getattr(wanted, option):
                    config.set_flag(getattr(trt.BuilderFlag, flag))
            if wanted.serialize_plugins:
                libraries = [p for p in wanted.plugins if not is_python_plugin(p)]
                config.plugins_to_serialize = list(map(os.path.realpath, libraries))
            if wanted.refit:
                only = request.refit_weights is not None
                flags = trt.BuilderFlag
                config.set_flag(flags.REFIT_INDIVIDUAL if only else flags.REFIT)
            if wanted.allows_tf32:
                config.set_flag(trt.BuilderFlag.TF32)
            else:
                config.clear_flag(trt.BuilderFlag.TF32)
            if wanted.optimization_level is not None:
                config.builder_optimization_level = wanted.optimization_level
            if wanted.max_aux_streams is not None:
                config.max_aux_streams = wanted.max_aux_streams
            config.profiling_verbosity = getattr(
                trt.ProfilingVerbosity, wanted.profiling_verbosity.value.upper()
            )
            if "hardware_compatibility" not in self.capabilities.unsupported_options:
                config.hardware_compatibility_level = getattr(
                    trt.HardwareCompatibilityLevel, wanted.hardware_compatibility.value.upper()
                )
            if wanted.runtime_platform is not RuntimePlatform.SAME_AS_BUILD:
                self._set_platform(wanted.runtime_platform, config)
            self._set_targets(request, config)
            self._set_precision(request, network, config)
        if errors:
            raise BuildError(f"{self.product} {self.version} rejected a build option", errors)
        self._load_timing_cache(request, config)

    def _set_platform(self, platform: RuntimePlatform, config: Any) -> None:
        platforms = getattr(self._trt, "RuntimePlatform", None)  # 10.3 has none
        if platforms is None:
            raise UnsupportedError(
                f"{self.product} {self.version} builds for the system that it runs on alone",
                options=("runtime_platform",),
            )
        config.runtime_platform = getattr(platforms, platform.value.upper())

    def _add_profiles(self, request: BuildRequest, builder: Any, config: Any) -> None:
        for number, profile in enumerate(request.profiles):
            native = builder.create_optimization_profile()
            with self._log.collect_errors() as errors:
                try:
                    for name, shapes in profile.shapes.items():
                        native.set_shape(name, shapes.min, shapes.opt, shapes.max)
                    for name, values in profile.values.items():
                        native.set_shape_input(name, values.min, values.opt, values.max)
                except (RuntimeError, TypeError) as error:
                    raise BuildError(
                        f"{self.product} rejected optimization profile {number}: {error}", errors
                    ) from None
                index = config.add_optimization_profile(native)
            if index < 0 or errors:
                raise BuildError(f"{self.product} rejected optimization profile {number}", errors)

    def _tensors(self, network: Any, formats: Mapping[str, str]) -> tuple[PlanTensor, ...]:
        outputs = (network.get_output(i) for i in range(network.num_outputs))
        modes = [("input", tensor) for tensor in self._inputs(network)]
        modes += [("output", tensor) for tensor in outputs]
        updated = self._updated_caches(network)
        return tuple(
            PlanTensor(
                name=str(tensor.name),
                mode=mode,
                dtype=NUMPY_DTYPES[tensor.dtype.name],
                shape=tuple(int(extent) for extent in tensor.shape),
                alias=updated.get(str(tensor.name)) if mode == "output" else None,
                format=formats.get(str(tensor.name)),
            )
            for mode, tensor in modes
        )

    def _updated_caches(self, network: Any) -> dict[str, str]:
        """Each updated cache, and the cache in whose memory it is."""
        kind = getattr(self._trt.LayerType, "KV_CACHE_UPDATE", None)
        layers = (network.get_layer(i) for i in range(network.num_layers)) if kind else ()
        return {
            str(layer.get_output(0).name): str(layer.get_input(0).name)
            for layer in layers
            if layer.type == kind
        }

    def _inputs(self, network: Any) -> Iterator[Any]:
        return (network.get_input(i) for i in range(network.num_inputs))

    def _serialize(
        self,
        builder: Any,
        network: Any,
        config: Any,
        progress: Progress | None,
        cancelled: threading.Event,
        output: PlanFile | None,
    ) -> tuple[memoryview, str]:
        """Build the plan, in a file if there is one; its bytes and their SHA-256."""
        monitor = make_monitor(self._trt, progress, cancelled)
        config.progress_monitor = monitor
        write = output.write if output is not None else None
        writer = make_stream_writer(self._trt, write, cancelled) if write is not None else None
        with self._log.collect_errors(also=BUDGET_LINE) as errors:
            if writer is None:
                built = builder.build_serialized_network(network, config)
            else:
                built = builder.build_serialized_network_to_stream(network, config, writer)
        failures = [one.failure for one in (monitor, writer) if one is not None]
        for failure in filter(None, failures):
            raise failure
        if cancelled.is_set():
            raise BuildError("the build was cancelled")
        if built is None or built is False:
            raise self._build_error(
                errors, config.get_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE)
            )
        if output is not None:
            return self._written(output), output.sha256
        data = memoryview(built).cast("B")
        return data, sha256(data).hexdigest()

    def _written(self, output: PlanFile) -> memoryview:
        """The plan in its file, which TensorRT says that it has written."""
        data = output.content()
        try:
            declared = PlanHeader.parse(data).declared_bytes
        except PlanError as error:
            raise BuildError(
                f"{self.product} {self.version} wrote something else than a plan: {error.message}"
            ) from None
        if declared not in (None, len(data)):
            raise BuildError(
                f"{self.product} {self.version} wrote {len(data)} bytes of a plan of {declared}"
            )
        return data

    def _build_error(self, lines: list[str], workspace_bytes: int) -> BuildError:
        message = f"{self.product} {self.version} failed to build the network"
        shortage = find_shortage(lines)
        if shortage is None:
            return BuildError(message, _relevant(lines))
        larger = format_bytes(shortage.larger_workspace(workspace_bytes))
        return BuildError(
            f"{message}: {shortage}, the limit is {format_bytes(workspace_bytes)}; allow {larger},"
            " or lower the maxima of the profiles",
            _relevant(lines),
            options=("workspace_bytes",),
        )

    # Timing cache

    def _load_timing_cache(self, request: BuildRequest, config: Any) -> None:
        path = request.timing_cache
        if path is None:
            return
        try:
            content = _content(path) if path.exists() else b""
        except OSError as error:
            raise SpecError(f"timing cache {path}: cannot be read: {error.strerror}") from None
        with self._log.collect_errors() as errors:
            cache = config.create_timing_cache(content)
            usable = cache is not None and config.set_timing_cache(cache, False)
        if usable and not errors:
            return
        problem = f"not one that {self.product} {self.version} can use on this GPU"
        if request.config.timing_cache is not None:
            raise SpecError(
                f"timing cache {path}: {problem}; name another file, or delete it",
                _relevant(errors),
            )
        _LOGGER.warning("timing cache %s: %s; starting a new one", path, problem)
        config.set_timing_cache(config.create_timing_cache(b""), False)

    def _save_timing_cache(self, request: BuildRequest, config: Any) -> None:
        path = request.timing_cache
        if path is None:
            return
        try:
            with _locked(path.parent):
                timings = self._merged_timings(path, config)
                with atomic_write(path) as file:
                    file.write(timings)
        except OSError as error:  # the plan is good all the same
            _LOGGER.warning("timing cache %s was not written: %s", path, error.strerror)

    def _merged_timings(self, path: Path, config: Any) -> memoryview:
        """The timings of this build, and those that other builds have added to the file."""
        timings = config.get_timing_cache()
        if path.exists():
            with self._log.collect_errors():  # what cannot be merged is replaced
                others = config.create_timing_cache(_content(path))
                if others is not None:
                    timings.combine(others, False)
        return memoryview(timings.serialize())

    # Loading

    def deserialize(
        self,
        content: bytes | memoryview | StoredContent,
        host_code: HostCode,
        *,
        defer_weights: bool = False,
    ) -> Any:
        """See :meth:`trt_native.backends.base.Backend.deserialize`."""
        if isinstance(content, StoredContent) and not self.capabilities.loads_streams:
            content = content.read()
        self.load_plugins(())
        with self._log.collect_errors() as errors:
            runtime = self._runtime(host_code, errors)
            unsupported = self._load_error(runtime, content)
            if defer_weights and hasattr(runtime, "defer_weights_loading"):
                runtime.defer_weights_loading = True  # of the next plan
            engine = self._deserialize(runtime, content)
        if engine is None and any(_HOST_CODE_REFUSED in line for line in errors):
            raise PlanError(
                "the plan carries the lean runtime of the TensorRT that built it, code that would"
                " run in this process: allow that for a plan that you trust",
                _relevant(errors),
                options=("allow_host_code",),
            )
        if engine is None and any("plugin" in line.lower() for line in errors):
            raise PlanError(
                f"{self.product} {self.version} cannot load the plan, which needs plugins that it"
                " lacks; name their library",
                _relevant(errors),
                options=("plugins",),
            )
        if engine is None:
            raise PlanError(
                f"{self.product} {self.version} cannot load the plan:"
                f" {unsupported or 'it is damaged, or made for another GPU or version'};"
                " build it again on, or for, this machine",
                _relevant(errors),
            )
        if unsupported is not None:  # it runs on more than it officially supports
            _LOGGER.info(
                "%s %s loaded a plan that it does not officially support: %s",
                self.product,
                self.version,
                unsupported,
            )
        return engine

    def load_weights(
        self, engine: Any, content: bytes | memoryview | StoredContent, stream: int | None
    ) -> None:
        """See :meth:`trt_native.backends.base.Backend.load_weights`."""
        with self._log.collect_errors() as errors:
            loaded = self._load_weights(engine, content, stream)
        if not loaded:
            raise PlanError(
                f"{self.product} {self.version} did not load the weights of the plan",
                _relevant(errors),
            )

    def _load_weights(
        self, engine: Any, content: bytes | memoryview | StoredContent, stream: int | None
    ) -> bool:
        if stream is None or not isinstance(content, StoredContent):
            load = getattr(engine, "load_weights", None)
            whole = content.read() if isinstance(content, StoredContent) else content
            return load is not None and bool(load(whole))
        load = getattr(engine, "load_weights_async", None)
        with content.open() as source:
            reader = make_stream_reader(self._trt, source)
            loaded = load is not None and load(reader, stream)
            if reader.failure is not None:
                raise reader.failure
        return bool(loaded)

    def _runtime(self, host_code: HostCode, errors: list[str]) -> Any:
        """A runtime for one plan, or the lean runtime that it needs, which stays loaded."""
        if host_code in self._lean_runtimes:
            return self._lean_runtimes[host_code][1]
        runtime = self._trt.Runtime(self._log.tensorrt_logger)
        runtime.engine_host_code_allowed = host_code.allowed
        if host_code.lean_runtime is None:
            return runtime
        product = f"{self.product} {self.version}"
        if "version_compatible" in self.capabilities.unsupported_options:
            raise UnsupportedError(
                f"{product}: lean runtime {host_code.lean_runtime}: it loads plans of its own"
                " version, without one; leave it out",
                options=("lean_runtime",),
            )
        lean = runtime.load_runtime(os.fspath(host_code.lean_runtime.absolute()))
        if lean is None:
            raise PlanError(
                f"{product} cannot load the lean runtime {host_code.lean_runtime}: it must be the"
                " library libnvinfer_lean of the version that built the plan",
                _relevant(errors),
                options=("lean_runtime",),
            )
        self._lean_runtimes[host_code] = runtime, lean
        return lean

    def _deserialize(self, runtime: Any, content: bytes | memoryview | StoredContent) -> Any:
        if not isinstance(content, StoredContent):
            return runtime.deserialize_cuda_engine(content)
        with content.open() as source:
            reader = make_stream_reader(self._trt, source)
            engine = runtime.deserialize_cuda_engine(reader)
            if reader.failure is not None:
                raise reader.failure
        return engine

    def contexts(
        self,
        engine: Any,
        cached: bytes,  # noqa: ARG002
        *,
        specialization: KernelSpecialization = KernelSpecialization.EAGER,  # noqa: ARG002
    ) -> ContextFactory:
        """See :meth:`trt_native.backends.base.Backend.contexts`."""
        return _StaticContextFactory(self._trt, engine)

    def profiler(self, report: Callable[[str, float], None]) -> Any:
        """See :meth:`trt_native.backends.base.Backend.profiler`."""
        return make_profiler(self._trt, report)

    def listen(self, context: Any, receive: Callable[[DebugTensor], None]) -> Any:
        """See :meth:`trt_native.backends.base.Backend.listen`."""
        listener = make_debug_listener(self._trt, receive)
        with self._log.collect_errors() as errors:
            taken = context.set_debug_listener(listener)
            context.unfused_tensors_debug_state = True
            if not (taken and context.unfused_tensors_debug_state):
                raise UnsupportedError(
                    f"{self.product} {self.version} gives out no debug tensors of this plan; build"
                    " it with debug tensors",
                    _relevant(errors),
                )
        return listener

    def refit(
        self, engine: Any, onnx: Path, *, changed: Collection[str], refittable: bool
    ) -> memoryview:
        """See :meth:`trt_native.backends.base.Backend.refit`."""
        with self._log.collect_errors() as errors:
            refitter = self._refitter(engine, errors)
            _check_reachable(changed, refitter.get_all_weights())
            parser = self._trt.OnnxParserRefitter(refitter, self._log.tensorrt_logger)
            taken = parser.refit_from_file(os.fspath(onnx))
            parser_errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
            missing = [f"no weights for {name!r}" for name in refitter.get_missing_weights()]
            if not taken or missing or not refitter.refit_cuda_engine():
                raise PlanError(
                    f"{self.product} {self.version} did not take the new weights",
                    [*missing, *parser_errors, *_relevant(errors)],
                )
            data = self._serialize_whole(engine, refittable)
        if data is None:
            raise PlanError(
                f"{self.product} {self.version} did not serialize the plan with its new weights",
                _relevant(errors),
            )
        return memoryview(data).cast("B")

    def stage_weights(
        self, engine: Any, weights: Mapping[str, WeightValues], stream: int
    ) -> StagedWeights:
        """See :meth:`trt_native.backends.base.Backend.stage_weights`."""
        with self._log.collect_errors() as errors:
            refitter = self._refitter(engine, errors)
            _check_reachable(weights, refitter.get_all_weights())
            staged = _StagedWeights(self._trt, refitter, self._log)
            refused = [name for name, new in weights.items() if not staged.set(name, new, stream)]
            if refused:
                raise PlanError(
                    f"{self.product} {self.version} did not take the new values of these weights:",
                    _relevant(errors),
                    problems=[repr(name) for name in refused],
                )
            missing = refitter.get_missing_weights()
        if missing:
            raise MergedWeightsError(
                f"{self.product} {self.version} has merged these weights with some that are"
                " replaced: give their values in the same call, too",
                problems=[repr(name) for name in sorted(missing)],
                options=("weights",),
            )
        return staged

    def _refitter(self, engine: Any, errors: list[str]) -> Any:
        try:
            return self._trt.Refitter(engine, self._log.tensorrt_logger)
        except Exception as error:  # pybind11 raises TypeError where the factory returns nothing
            raise PlanError(
                f"{self.product} {self.version} could not create a refitter: the weights of this"
                " plan cannot be replaced; build it again as refittable",
                _relevant(errors) or [" ".join(str(error).split())],
                options=("refit",),
            ) from None

    def _serialize_whole(self, engine: Any, refittable: bool) -> Any:
        """Serialize an engine, with its weights also where the plan it came from has none."""
        flags = self._trt.SerializationFlag
        config = engine.create_serialization_config()
        config.clear_flag(flags.EXCLUDE_WEIGHTS)
        stays = getattr(flags, "INCLUDE_REFIT", None)  # earlier versions let it stay refittable
        if refittable and stays is not None:
            config.set_flag(stays)
        return engine.serialize_with_config(config)

    def json_format(self) -> Any:
        """See :meth:`trt_native.backends.base.Backend.json_format`."""
        return self._trt.LayerInformationFormat.JSON

    def output_allocator(self, allocate: Callable[[str, int], int]) -> Any:
        """See :meth:`trt_native.backends.base.Backend.output_allocator`."""
        return make_output_allocator(self._trt, allocate)

    def collected_errors(self) -> contextlib.AbstractContextManager[list[str]]:
        """See :meth:`trt_native.backends.base.Backend.collected_errors`."""
        return self._log.collect_errors()


class _StagedWeights:
    """Values that a refitter has, and the memory of those that were copied for it."""

    def __init__(self, trt: Any, refitter: Any, log: Any) -> None:
        self._trt = trt
        self._refitter = refitter
        self._log = log
        self._copies: list[Array] = []

    def set(self, name: str, new: WeightValues, stream: int) -> bool:
        """Give the refitter the values of a weight; False if it refuses them."""
        locations = self._trt.TensorLocation
        if not new.on_device:
            return self._set(name, new, new.pointer, locations.HOST)
        if self._set(name, new, new.pointer, locations.DEVICE):
            return True
        # A library that takes values on the host alone.
        copy = np.empty(new.count, new.dtype)
        copy_to_host(copy.ctypes.data, new.pointer, copy.nbytes, stream)
        Stream.borrowed(stream).synchronize()
        self._copies.append(copy)
        return self._set(name, new, copy.ctypes.data, locations.HOST)

    def _set(self, name: str, new: WeightValues, pointer: int, location: Any) -> bool:
        dtype = getattr(self._trt.DataType, _DATA_TYPES[new.dtype])
        values = self._trt.Weights(dtype, pointer, new.count)
        return bool(self._refitter.set_named_weights(name, values, location))

    def apply(self, stream: int) -> None:
        """See :meth:`trt_native.backends.base.StagedWeights.apply`."""
        with self._log.collect_errors() as errors:
            if not self._refitter.refit_cuda_engine_async(stream):
                raise CudaError("TensorRT failed to replace the weights", _relevant(errors))
        self._copies.clear()


class _StaticContextFactory:
    def __init__(self, trt: Any, engine: Any) -> None:
        self._trt = trt
        self._engine = engine

    def create(self, *, user_managed: bool) -> Any:
        strategies = self._trt.ExecutionContextAllocationStrategy
        return self._engine.create_execution_context(
            strategies.USER_MANAGED if user_managed else strategies.STATIC
        )

    def cache(self) -> bytes:
        return b""


def _decompose(boundary: Any) -> None:
    boundary.attention.decomposable = True


def _check_reachable(changed: Collection[str], reachable: Collection[str]) -> None:
    lost = sorted(set(changed) - set(reachable))
    if lost:
        raise PlanError(
            "the plan cannot take all of the new weights: TensorRT has made these a fixed part of"
            " it, and they differ; build it again instead",
            [repr(name) for name in lost],
        )


def _content(path: Path) -> bytes:
    with open_regular_file(path) as file:
        return file.read()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold off other processes that do the same; without effect where folders cannot be locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _parser_error(error: Any) -> str:
    place = f"node {error.node()}"
    if error.node_name():
        place += f" {error.node_name()!r}"
    if error.node_operator():
        place += f" ({error.node_operator()})"
    return f"{place}: {error.desc()} [{error.code().name}]"


def _reason_text(description: str) -> str:
    """The parser's reason for people, without the places in its source."""
    if inner := _INNER_REASON.search(description):
        text = inner["reason"]
    elif (assertion := description.partition("Assertion failed: ")[2]) and ": " in assertion:
        text = assertion.partition(": ")[2]
    else:
        text = description.rpartition("&& ")[2]
    text = " ".join(text.replace('"', "").split()).rstrip(".!")
    return "not in this form" if text in ("", "false") else text


def _relevant(errors: list[str]) -> list[str]:
    """The errors without the driver complaint that follows each one on a machine without a GPU."""
    return [line for line in errors if "catchCudaError" not in line] or errors
