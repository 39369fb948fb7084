"""A deserialized plan: its tensors, profiles and layers."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from trt_native.backends.base import NUMPY_DTYPES, Backend
from trt_native.backends.missing_kernels import missing_kernel
from trt_native.backends.registry import load_backend
from trt_native.config import KernelSpecialization
from trt_native.cuda import GpuInfo, memory_info, require_gpu
from trt_native.errors import (
    ClosedError,
    CudaError,
    PlanError,
    SpecError,
    UnsupportedError,
    shortened,
)
from trt_native.io_formats import find_format
from trt_native.plans.compatibility import Environment, compatibility
from trt_native.plans.engine_layers import layer_records
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan
from trt_native.runtime.context_registry import ContextRegistry, PausableContext
from trt_native.runtime.runtime_cache import RuntimeCacheFile, save_runtime_cache_file
from trt_native.runtime.weight_updater import WeightUpdater
from trt_native.shapes import ShapeRange, TensorSpec
from trt_native.units import format_bytes

__all__ = ["Engine", "backend_for", "environment_of"]

_LOGGER = logging.getLogger(__name__)


class Engine:
    """A plan deserialized on a GPU, which creates execution contexts.

    Args:
        plan: A plan, or the path of one.
        backend: ``auto`` selects the library that the plan's header names.
        ordinal: CUDA ordinal of the GPU to load it on.
        weight_budget_bytes: GPU memory for the weights of a plan built with weight streaming; the
            rest is copied from the host in every run. ``auto``: what TensorRT finds right for the
            memory that is free. None: all of them.
        runtime_cache: Keep the kernels that TensorRT-RTX compiles in ``PLAN.cache`` next to the
            plan, so that the next process need not compile them. No effect with other backends,
            nor for a plan that is not a file.
        kernel_specialization: Kernels that TensorRT-RTX compiles for a shape in a profile's range,
            ``eager``, ``lazy`` or ``none``; see :class:`~trt_native.config.KernelSpecialization`.
            None: eager, with TensorRT-RTX. Runs go without CUDA graphs of a session where it is
            lazy: these would keep the slower kernels for good.
        defer_weights: Leave the weights out of GPU memory until :meth:`load_weights`. Sessions are
            made, and compile their kernels, before that; they run after it. TensorRT-RTX 1.6 and
            later, and not together with a weight budget.

    An engine may be shared by sessions in any number of threads.

    Attributes:
        plan: The plan.
        backend: The library that deserialized it.
        tensors: Inputs, then outputs, in the engine's order.
        profile_count: Number of optimization profiles; at least 1.
        ordinal: CUDA ordinal of the GPU it is on.
        kernel_specialization: The one it was given; None where the backend compiles no kernels.
        contexts: The execution contexts of its sessions.

    Raises:
        PlanError: the plan is damaged, or for another TensorRT or GPU.
        UnsupportedError: the TensorRT that the plan needs is not installed, or compiles no kernels
            for which a specialization could be chosen.
        CudaError: there is no GPU.
    """

    def __init__(
        self,
        plan: Plan | str | os.PathLike[str],
        *,
        backend: str | Backend = "auto",
        ordinal: int = 0,
        weight_budget_bytes: int | Literal["auto"] | None = None,
        runtime_cache: bool = True,
        kernel_specialization: KernelSpecialization | str | None = None,
        defer_weights: bool = False,
    ) -> None:
        self._native: Any = None
        self._offloaded: bytes | None = None  # its kernels, while it is offloaded
        self._deferred = False
        self._context_factory: Any = None
        self._finalizer: Any = None
        self._lock = threading.Lock()
        self.contexts = ContextRegistry()
        self.plan = plan if isinstance(plan, Plan) else Plan.open(plan)
        self.ordinal = ordinal
        self.backend = backend_for(self.plan, backend)
        self.kernel_specialization = _specialization(self.backend, kernel_specialization)
        gpu = require_gpu(ordinal)
        _check(self.plan, environment_of([self.backend], gpu))
        if defer_weights:
            self._check_deferring(weight_budget_bytes)
        self._weight_budget = weight_budget_bytes
        self._weights = WeightUpdater(self.plan, self.backend, ordinal)
        self._cache_file = (
            RuntimeCacheFile.of(self.plan, self.backend, gpu) if runtime_cache else None
        )
        kernels = self._cache_file.read() if self._cache_file else b""
        self._load(kernels, defer_weights=defer_weights)
        with self._readable():
            self.profile_count = max(1, int(self.native.num_optimization_profiles))
            self.tensors = self._read_tensors()

    def __repr__(self) -> str:
        absent = "closed, " if self._offloaded is None else "offloaded, "
        closed = absent if self._native is None else ""
        return f"Engine({closed}{self.plan!r}, {_listed(self.inputs)} -> {_listed(self.outputs)})"

    @property
    def native(self) -> Any:
        """TensorRT's own ``ICudaEngine``; not to be used after :meth:`close`."""
        self._check_open()
        return self._native

    def _check_open(self) -> None:
        if self._offloaded is not None:
            raise ClosedError("the engine is offloaded: call restore() before it is used")
        if self._native is None:
            raise ClosedError("the engine is closed")

    def check_runnable(self) -> None:
        """Check that the engine is open, and its weights are on the GPU.

        Raises:
            ClosedError: it is closed or offloaded, or its weights are still to be loaded.
        """
        self._check_open()
        if not self.weights_loaded:
            raise ClosedError("the engine has no weights yet: call load_weights() before a run")

    @property
    def inputs(self) -> tuple[PlanTensor, ...]:
        """The input tensors, in the engine's order."""
        return tuple(tensor for tensor in self.tensors if tensor.mode == "input")

    @property
    def outputs(self) -> tuple[PlanTensor, ...]:
        """The output tensors, in the engine's order."""
        return tuple(tensor for tensor in self.tensors if tensor.mode == "output")

    @property
    def activation_bytes(self) -> int:
        """Device memory that one execution context needs for the largest profile."""
        return int(self.native.device_memory_size_v2)

    def activation_bytes_of(self, profile: int) -> int:
        """Device memory that one execution context needs for the largest shapes of a profile.

        Args:
            profile: Number of the optimization profile.

        Raises:
            SpecError: the plan has no such profile.
        """
        if not 0 <= profile < self.profile_count:
            raise SpecError(f"profile {profile}: the plan has 0 to {self.profile_count - 1}")
        return int(self.native.get_device_memory_size_for_profile_v2(profile))

    @property
    def weight_budget_bytes(self) -> int | None:
        """GPU memory for the weights of a plan built with weight streaming; None for others."""
        native = self.native
        return int(native.weight_streaming_budget_v2) if native.streamable_weights_size else None

    def is_host_tensor(self, name: str) -> bool:
        """Whether TensorRT reads or writes the tensor in host memory, as it does with shapes."""
        return str(self.native.get_tensor_location(name).name) == "HOST"

    def create_context(self, *, user_managed: bool = False) -> Any:
        """Create an ``IExecutionContext``.

        Args:
            user_managed: Create it without device memory: the caller supplies
                :attr:`activation_bytes` before it runs.

        Raises:
            ClosedError: the engine was closed.
            PlanError: the plan's weights were left out.
            CudaError: TensorRT failed: too little memory, or no kernel for this GPU.
        """
        self._check_open()
        self.plan.check_complete()
        require_gpu(self.ordinal)
        self._weights.finish()
        with self._lock, self.backend.collected_errors() as errors:
            context = self._context_factory.create(user_managed=user_managed)
        if context is None:
            check_kernels(errors, self.backend.product)
            free, total = memory_info()
            raise CudaError(
                f"{self.backend.product} failed to create an execution context: too little"
                f" GPU memory ({format_bytes(self.activation_bytes)} are needed for activations,"
                f" {format_bytes(free)} of {format_bytes(total)} are free; build with smaller"
                " maximum shapes, or share activation_memory between sessions), or a kernel is"
                " missing for this GPU",
                errors,
            )
        return context

    def save_runtime_cache(self) -> None:
        """Write the kernels that TensorRT-RTX has compiled to the file next to the plan.

        The plan runs without: where that file cannot be written, there is none.
        """
        if self._native is not None:
            with self._lock:
                save_runtime_cache_file(self._context_factory, self._cache_file)

    def compiled_kernels(self) -> bytes:
        """The kernels that TensorRT-RTX has compiled, as a runtime cache holds them."""
        with self._lock:
            return b"" if self._context_factory is None else self._context_factory.cache()

    @property
    def replaceable_weights(self) -> tuple[TensorSpec, ...]:
        """The weights of the ONNX file that :meth:`refit` takes, in the types of the plan.

        TensorRT may have made some of them a fixed part of the plan, which a refit says.

        Raises:
            PlanError: the plan was not built with ``refit``, or has no manifest.
        """
        return self._weights.reader.replaceable()

    def refit(self, weights: Mapping[str, Any], *, stream: Any = None) -> None:
        """Replace weights in place, for all sessions of the engine.

        Runs that were started before have the old weights, and are waited for; those that are
        started later, on any stream, have the new ones. CUDA graphs that sessions have captured
        are dropped, and captured again as runs recur; one that the caller has captured must not be
        launched meanwhile, and must be captured again.

        A plan in FP16 or BF16 takes FP32 and rounds it as a build does. Which nodes compute in
        which type stays as it was decided for the plan's own weights. Nothing is changed in the
        plan that the engine was loaded from.

        Args:
            weights: New values by their names in the ONNX file: NumPy arrays, torch tensors, or
                objects with ``__cuda_array_interface__`` or ``__dlpack__``, of the shapes that the
                ONNX file has, in FP32, FP64 or the type of the plan. All may be given, or some;
                the others stay. Values on the GPU are converted and copied there, but those of
                neither PyTorch nor the plan's type and layout, which go through the host.
            stream: A stream (see :func:`trt_native.cuda.stream_handle`) in whose order the values
                are complete, and in which they may be changed or freed later. The call then
                returns before the GPU has copied them; to check those that are rounded, it waits
                until they are complete. Without one, values on the GPU are complete in the order
                of torch's current stream, and copied when the call returns.

        Raises:
            SpecError: names, types or shapes do not fit the plan, its type cannot hold the values,
                or values of weights that TensorRT has merged with these must be given, too; one
                error lists all problems, and the engine is as it was.
            PlanError: the plan was not built with ``refit``, or TensorRT has made some of these
                weights a fixed part of it; the engine is as it was.
            CudaError: TensorRT failed, and the plan's own weights were put back, or the engine
                closed where that failed, too; or the stream is being captured.
            ClosedError: the engine was closed.
        """
        self._check_open()
        require_gpu(self.ordinal)
        with self._weights.ordered(stream) as work:
            new = self._weights.reader.read(weights, work)
            with self.contexts.paused() as contexts:
                self.check_runnable()
                staged = self._weights.stage(self.native, new, work)
                self._refitted = True
                try:
                    staged.apply(work)
                except CudaError as error:
                    self._weights.keep(staged, work)
                    self._recover(contexts)
                    raise CudaError(
                        f"{error.message}; the plan's own were put back",
                        error.details,
                        code=error.code,
                    ) from None
                for context in contexts:
                    context.follow(work)
                held = [weight.owner for weight in new.values() if weight.held]
                self._weights.keep((staged, held), work)
                if stream is None:
                    self._weights.finish()

    @property
    def weights_loaded(self) -> bool:
        """Whether the weights are on the GPU, or streamed to it."""
        return self._native is not None and not self._deferred

    def load_weights(self, *, stream: Any = None) -> None:
        """Copy the weights of an engine to the GPU that was made with ``defer_weights``.

        They are read from the plan once more. Does nothing where they are loaded.

        Args:
            stream: A stream (see :func:`trt_native.cuda.stream_handle`) in whose order they are
                copied from the plan's file, while the GPU does other work. Runs that are started
                later, on any stream, wait for them on the GPU. Without one, and from a plan in
                memory, they are copied when the call returns.

        Raises:
            PlanError: the plan's file cannot be read, or has changed, or TensorRT did not take the
                weights; the engine is as it was.
            CudaError: the stream is being captured into a CUDA graph.
            ClosedError: the engine was closed, or is offloaded.
        """
        self._check_open()
        require_gpu(self.ordinal)
        with self._weights.ordered(stream) as work, self.contexts.paused() as contexts:
            if not self._deferred:
                return
            self.backend.load_weights(
                self.native, self.plan.content, None if stream is None else work
            )
            self._deferred = False
            for context in contexts:
                context.follow(work)

    def offload(self) -> None:
        """Free the engine's GPU memory: weights, execution contexts and their activations.

        Sessions stay, with their buffers for inputs and outputs, and cannot run until
        :meth:`restore`; neither can the engine be used. Runs that were started before are waited
        for. The plan stays where it is, in its file or in memory, and compiled kernels are kept in
        memory. Does nothing where the engine is offloaded.

        Raises:
            UnsupportedError: weights were replaced, which would be lost: call :meth:`restore`
                first.
            ClosedError: the engine was closed.
        """
        if self._offloaded is not None:
            return
        self._check_open()
        require_gpu(self.ordinal)
        with self.contexts.paused() as contexts:
            if self._refitted:
                raise UnsupportedError(
                    "the engine has weights that were replaced, and that no plan holds: call"
                    " restore() first, and refit it again after it was offloaded"
                )
            self._weights.finish()
            kernels = self._context_factory.cache()
            self._release(contexts)
            self._offloaded = kernels

    def restore(self) -> None:
        """Load the plan's own weights, after :meth:`offload` or :meth:`refit`; else do nothing.

        Sessions get new execution contexts, and are as before. After a refit the plan is loaded a
        second time before the first engine is freed, and runs that were started before are waited
        for.

        Raises:
            PlanError: the plan's file cannot be read, or has changed.
            CudaError: the GPU has too little memory. An engine that was offloaded still is; after
                a refit, sessions without a context are closed.
            ClosedError: the engine was closed.
        """
        if self._offloaded is None:
            self._check_open()
        require_gpu(self.ordinal)
        with self.contexts.paused() as contexts:
            if self._offloaded is not None:
                self._bring_back(contexts, self._offloaded)
            elif self._refitted:
                self._put_back(contexts)

    def _bring_back(self, contexts: Iterable[PausableContext], kernels: bytes) -> None:
        self._load(kernels)
        self._offloaded = None
        try:
            for context in contexts:
                context.recreate()
        except BaseException:
            self._release(contexts)
            self._offloaded = kernels
            raise

    def _release(self, contexts: Iterable[PausableContext]) -> None:
        """Free what TensorRT has on the GPU, and write the runtime cache."""
        for context in contexts:
            context.drop()
        self._finalizer()
        self._context_factory = None
        self._native = None

    def _recover(self, contexts: Iterable[PausableContext]) -> None:
        """Put the plan's own weights back; an engine with some of others is closed if that fails.

        Raises:
            PlanError, CudaError: as :meth:`restore`.
        """
        try:
            self._put_back(contexts)
        except BaseException:
            if self._refitted:
                for context in contexts:
                    context.drop()
                self.close()
            raise

    def _put_back(self, contexts: Iterable[PausableContext]) -> None:
        self._weights.finish()
        kernels = self._context_factory.cache()
        self._load(kernels)
        for context in contexts:
            context.drop()
        for context in contexts:
            context.recreate()

    def _check_deferring(self, budget: int | str | None) -> None:
        if not self.backend.capabilities.defers_weights:
            raise UnsupportedError(
                f"{self.backend.product} {self.backend.version} loads the weights of a plan with"
                " it; TensorRT-RTX can defer them from 1.6 on",
                options=("defer_weights",),
            )
        if budget is not None:
            raise SpecError(
                "weights that are streamed from the host are not deferred: give a weight budget,"
                " or defer all weights",
                options=("defer_weights", "weight_budget_bytes"),
            )

    def _load(self, kernels: bytes, *, defer_weights: bool = False) -> None:
        """Deserialize the plan, and make its execution contexts from now on."""
        self.backend.load_plugins(self.plan.plugins)
        native = self.backend.deserialize(
            self.plan.content, self.plan.host_code, defer_weights=defer_weights
        )
        if self._weight_budget is not None:
            self._limit_weights(native, self._weight_budget)
        contexts = self.backend.contexts(
            native,
            kernels,
            specialization=self.kernel_specialization or KernelSpecialization.EAGER,
        )
        if self._finalizer is not None:
            self._finalizer.detach()
        self._native, self._context_factory, self._refitted = native, contexts, False
        self._deferred = defer_weights
        self._finalizer = weakref.finalize(
            self, save_runtime_cache_file, contexts, self._cache_file
        )

    def _limit_weights(self, native: Any, budget: int | Literal["auto"]) -> None:
        streamable = int(native.streamable_weights_size)
        if not streamable:
            raise UnsupportedError(
                "this plan cannot stream its weights: build it with weight_streaming"
            )
        if budget == "auto":
            budget = int(native.get_weight_streaming_automatic_budget())
        if not isinstance(budget, int) or not 0 <= budget <= streamable:
            raise SpecError(
                f"weight budget of {budget} bytes: the plan's weights take 0 to {streamable} bytes;"
                " give a number of these, or auto"
            )
        native.weight_streaming_budget_v2 = budget

    def layers(self) -> list[dict[str, Any]]:
        """Return the engine inspector's record of each layer.

        Returns:
            One mapping per layer. With profiling verbosity ``detailed`` it has the layer's name,
            type, precision and tensors; with less, only ``Name``.

        Raises:
            PlanError: the runtime that loaded the plan has no inspector.
        """
        inspector, form = self.native.create_engine_inspector(), self.backend.json_format()
        if inspector is None:
            raise PlanError(
                f"{self.backend.product} lists no layers of this plan: its runtime has no inspector"
            )
        with self._readable():
            whole = layer_records(inspector.get_engine_information(form))
            if whole is not None:
                return whole
            count = int(self.native.num_layers)
            texts = [str(inspector.get_layer_information(i, form)) for i in range(count)]
        return [
            layer for text in texts for layer in layer_records(text) or [{"Name": text.strip()}]
        ]

    def close(self) -> None:
        """Free the engine's device memory, once its sessions are closed. Idempotent."""
        self._finalizer()
        self._weights.close()
        self._offloaded = self._context_factory = self._native = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn inconsistent engine metadata, such as names that are not UTF-8, into a PlanError.

        TensorRT does not detect all damage in the bytes of a plan, which may have no manifest.
        """
        try:
            yield
        except (IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PlanError(
                f"{self.backend.product} loaded the plan, but its engine metadata is inconsistent"
                f" ({reason}): the plan is damaged; copy or build it again"
            ) from error

    def _read_tensors(self) -> tuple[PlanTensor, ...]:
        known = {t.name: t for t in self.plan.manifest.tensors} if self.plan.manifest else {}
        count = int(self.native.num_io_tensors)
        tensors = [self._read_tensor(self.native.get_tensor_name(i), known) for i in range(count)]
        return tuple(sorted(tensors, key=lambda tensor: tensor.mode != "input"))

    def _read_tensor(self, name: str, known: dict[str, PlanTensor]) -> PlanTensor:
        engine = self.native
        dtype = NUMPY_DTYPES[engine.get_tensor_dtype(name).name]
        if dtype in ("int4", "float4_e2m1fn"):
            raise UnsupportedError(
                f"tensor {name!r} is {dtype}: packed types cannot be inputs or outputs"
            )
        is_input = engine.get_tensor_mode(name).name == "INPUT"
        shape = tuple(int(extent) for extent in engine.get_tensor_shape(name))
        host = is_input and self.is_host_tensor(name)
        profiles = range(self.profile_count) if is_input else ()
        return PlanTensor(
            name=name,
            mode="input" if is_input else "output",
            dtype=dtype,
            shape=shape,
            dims=known[name].dims if name in known else (None,) * len(shape),
            profiles=tuple(
                _range(engine.get_tensor_profile_shape(name, index))
                for index in profiles
                if -1 in shape
            ),
            values=tuple(
                _range(bounds)
                for index in profiles
                if host and (bounds := engine.get_tensor_profile_values(index, name))
            ),
            alias=None
            if is_input
            else self._alias(name) or getattr(known.get(name), "alias", None),
            format=None if host or self.is_host_tensor(name) else self._format(name, dtype, shape),
            data_dependent=getattr(known.get(name), "data_dependent", False),
        )

    def _format(self, name: str, dtype: str, shape: tuple[int, ...]) -> str | None:
        """The layout in memory that a tensor has in every profile; None for C order.

        Raises:
            UnsupportedError: it is not one that can be read and written here.
        """
        engine = self.native
        found = {
            find_format(
                name,
                engine.get_tensor_format(name, index).name,
                dtype,
                shape,
                components=int(engine.get_tensor_components_per_element(name, index)),
                axis=int(engine.get_tensor_vectorized_dim(name, index)),
            )
            for index in range(self.profile_count)
        }
        if len(found) > 1:
            raise UnsupportedError(
                f"tensor {name!r} has another format in each profile, which cannot be read and"
                " written here; build the plan with linear inputs and outputs"
            )
        layout = found.pop()
        if layout is not None and self._alias(name) is not None:
            raise UnsupportedError(
                f"output {name!r} of format {layout.name} is written in the memory of an input,"
                " which cannot be done here; build the plan with linear inputs and outputs"
            )
        return None if layout is None else layout.name

    def _alias(self, name: str) -> str | None:
        """The input in whose memory the engine writes an output."""
        find = getattr(self.native, "get_aliased_input_tensor", None)  # 10.3 has no such outputs
        return (str(find(name) or "") or None) if find is not None else None


def _listed(tensors: Iterable[PlanTensor]) -> str:
    return ", ".join(shortened(tensor.name) for tensor in tensors)


def check_kernels(errors: Sequence[str], product: str) -> None:
    """Raise an error of its own where TensorRT has no kernel for a fusion on this GPU.

    Raises:
        CudaError: lines of its log say so.
    """
    missing = missing_kernel(errors)
    if missing is not None:
        raise CudaError(
            f"{product} has no kernel on this GPU for the fusion {missing} in the plan; build the"
            " plan again without it: name a tensor inside it to break it at, or let a retry on this"
            " machine find one",
            errors,
            options=("break_fusions", "retry"),
        )


def environment_of(backends: Iterable[Backend], gpu: GpuInfo | None) -> Environment:
    """Describe installed libraries and a GPU, for compatibility checks of plans."""
    loaded = list(backends)
    return Environment(
        libraries={backend.product: backend.version for backend in loaded},
        targets={b.product: b.capabilities.targets for b in loaded if b.capabilities.targets},
        gpu=gpu.name if gpu else None,
        compute_capability=gpu.compute_capability if gpu else None,
        driver=gpu.driver if gpu else None,
        total_bytes=gpu.total_bytes if gpu else None,
        free_bytes=gpu.free_bytes if gpu else None,
    )


def _specialization(
    backend: Backend, asked: KernelSpecialization | str | None
) -> KernelSpecialization | None:
    if backend.capabilities.specializes_kernels:
        return KernelSpecialization.parse(asked or KernelSpecialization.EAGER)
    if asked is not None:
        raise UnsupportedError(
            f"{backend.product} {backend.version}: kernel specialization {asked}: it compiles no"
            " kernels where a plan runs; leave it out, or build the plan with TensorRT-RTX",
            options=("kernel_specialization",),
        )
    return None


def _check(plan: Plan, environment: Environment) -> None:
    """Reject a plan that is known not to load, before TensorRT reads its bytes."""
    host_code = plan.host_code
    report = compatibility(plan.header, plan.manifest, environment, host_code, plan.plugins)
    if not report.loads:
        raise PlanError(
            f"this plan cannot be loaded: {'; '.join(report.errors)}"
            " (trt-native doctor PLAN reports how to build it again)",
            options=report.options,
        )
    foreign = plan.allow_host_code and host_code.carried
    for warning in report.warnings:
        _LOGGER.log(
            logging.WARNING if foreign else logging.INFO, "%s: %s", plan.path or "plan", warning
        )


def _range(bounds: Any) -> ShapeRange:
    low, best, high = (tuple(int(extent) for extent in bound) for bound in bounds)
    return ShapeRange(low, best, high)


def backend_for(plan: Plan, backend: str | Backend) -> Backend:
    """Load a backend; ``auto`` is the one that the plan's header names.

    Raises:
        PlanError: the bytes are not a plan.
        UnsupportedError: no such library imports.
    """
    return load_backend(plan.header.backend if backend == "auto" else backend)
