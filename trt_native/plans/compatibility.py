"""Check whether a machine can load a plan, before TensorRT reads its bytes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trt_native.plans.header import PlanHeader, version_numbers
from trt_native.plans.host_code import LEAN_RUNTIME, PLUGINS, HostCode
from trt_native.plans.manifest import Manifest
from trt_native.plans.plugins import missing_plugins
from trt_native.units import format_bytes

__all__ = ["NO_GPU", "CompatibilityReport", "Environment", "compatibility"]


NO_GPU = "loading a plan needs a GPU, and none is usable here"
"""The error on a machine without a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The libraries and the GPU of a machine that plans are to be loaded on.

    Attributes:
        libraries: Version of each TensorRT that imports, by product as in :class:`PlanHeader`.
        targets: For a product that names them, the compute capabilities it supports.
        gpu: Name of the GPU; None where there is none, and then the rest is None too.
        compute_capability: Such as ``8.9``.
        driver: CUDA version that the driver supports, such as ``13.0``.
        total_bytes: Size of the GPU's memory.
        free_bytes: How much of it is free.
    """

    libraries: Mapping[str, str]
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class CompatibilityReport:
    """Whether a plan will load.

    Attributes:
        errors: Reasons why it will not, most severe first; empty if it should.
        warnings: Problems that do not prevent loading but may affect running the plan.
        options: Names of the options of :meth:`~trt_native.plans.plan.Plan.open` that may help.
    """

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def loads(self) -> bool:
        """Whether nothing is known that prevents it."""
        return not self.errors


def compatibility(
    header: PlanHeader,
    manifest: Manifest | None,
    environment: Environment,
    host_code: HostCode | None = None,
    plugins: Sequence[str] = (),
) -> CompatibilityReport:
    """Check a plan by its header and manifest, before TensorRT reads its bytes.

    Args:
        header: The plan's header.
        manifest: The plan's manifest; None for a plan that came without one.
        environment: The machine that is to load it.
        host_code: Code that the plan carries, and whether it may run; None: it carries none.
        plugins: The plugins to load it with.
    """
    code = host_code or HostCode()
    library = _library_report(header, manifest, environment, code)
    errors, warnings, options = list(library.errors), list(library.warnings), library.options
    if manifest is not None:
        carried = PLUGINS in (code.carried or ())
        missing = list(missing_plugins(manifest.plugins, plugins, carried=carried))
        errors += missing
        options += ("plugins",) * bool(missing)
    if environment.gpu is None:
        errors.append(NO_GPU)
    elif manifest is None:
        warnings.append("there is no manifest, so the GPU that the plan is for is not known")
    else:
        for problem, severity in _gpu_report(header, manifest, environment):
            (errors if severity == "error" else warnings).append(problem)
    return CompatibilityReport(tuple(errors), tuple(warnings), options)


def _library_report(
    header: PlanHeader, manifest: Manifest | None, environment: Environment, host_code: HostCode
) -> CompatibilityReport:
    product = header.product
    version = environment.libraries.get(product)
    if version is None:
        package = "tensorrt-rtx" if header.backend == "rtx" else "tensorrt"
        present = " and ".join(f"{k} {v}" for k, v in environment.libraries.items())
        return _error(
            f"the plan needs {product} {header.version_text}, which is not installed"
            f" (found: {present or 'no TensorRT'}); pip install {package}=={header.version_text}"
        )
    mismatch = header.mismatch_exact(version)
    if mismatch and product == "TensorRT-RTX":
        return _error(mismatch)
    if host_code.carried and not host_code.allowed:
        return _error(
            f"it carries {' and '.join(host_code.carried)}, code that would run in this process:"
            " allow that for a plan that you trust",
            "allow_host_code",
        )
    carried = host_code.carried or ()
    warnings = (f"it carries {' and '.join(carried)}, whose code is run",) if carried else ()
    if mismatch is None:
        return CompatibilityReport((), warnings)
    if manifest is not None and not manifest.options.get("version_compatible"):
        return _error(mismatch)
    if version_numbers(version) < header.version:
        return _error(f"{mismatch}; version compatible plans load in later versions only")
    return _later_report(mismatch, manifest is not None, warnings, host_code)


def _later_report(
    mismatch: str, compatible: bool, warnings: tuple[str, ...], host_code: HostCode
) -> CompatibilityReport:
    """Whether a later version loads a plan that is version compatible, or may be."""
    if LEAN_RUNTIME in (host_code.carried or ()):
        return CompatibilityReport((), warnings)
    if host_code.lean_runtime is not None:
        unless = () if compatible else (f"{mismatch}, unless it was built version compatible",)
        return CompatibilityReport((), (*warnings, *unless))
    if host_code.carried is not None:
        without = "was" if compatible else "may have been"
        return _error(
            f"{mismatch}; it {without} built version compatible without its lean runtime, and then"
            " loads with the library of that",
            "lean_runtime",
        )
    if host_code.allowed:
        return CompatibilityReport((), (f"{mismatch}, unless it was built version compatible",))
    return _error(
        f"{mismatch}; if it was built version compatible, it carries code that runs in this"
        " process: allow that for a plan that you trust",
        "allow_host_code",
    )


def _error(text: str, *options: str) -> CompatibilityReport:
    return CompatibilityReport((text,), (), options)


def _gpu_report(
    header: PlanHeader, manifest: Manifest, environment: Environment
) -> Iterator[tuple[str, str]]:
    """Problems with the GPU, its driver and its memory, each with ``error`` or ``warning``."""
    if manifest.options.get("runtime_platform") == "windows_amd64" and sys.platform != "win32":
        yield "the plan was built for Windows on x86_64, and loads nowhere else", "error"
    gpu = f"{environment.gpu} (compute capability {environment.compute_capability})"
    here, built = environment.compute_capability, manifest.compute_capabilities
    if not targets_gpu(manifest, here or ""):
        yield (
            f"the plan is for compute capability {' and '.join(built)}, this GPU is {gpu};"
            " build it again for this one",
            "error",
        )
    targets = environment.targets.get(header.product, ())
    if header.product == "TensorRT-RTX":
        if targets and here not in targets:
            yield f"{header.product} does not officially support {gpu}", "warning"
    elif manifest.gpu not in (None, environment.gpu):
        yield f"it was built and tuned on {manifest.gpu}, and may be slower on {gpu}", "warning"
    if version_numbers(environment.driver or "") < version_numbers(manifest.driver or ""):
        yield (
            f"it was built under a driver for CUDA {manifest.driver}, here it is for CUDA"
            f" {environment.driver}",
            "warning",
        )
    if environment.total_bytes is not None and not manifest.options.get("weight_streaming"):
        need = f"the plan is {format_bytes(manifest.plan_bytes)}, the GPU has"
        if manifest.plan_bytes > environment.total_bytes:
            yield f"{need} {format_bytes(environment.total_bytes)} of memory", "error"
        elif manifest.plan_bytes > (environment.free_bytes or 0):
            yield f"{need} {format_bytes(environment.free_bytes or 0)} free", "warning"
    if manifest.options.get("strip_weights"):
        yield "its weights were left out: refit it before it is run (trt-native refit)", "warning"


def targets_gpu(manifest: Manifest, capability: str) -> bool:
    built = manifest.compute_capabilities
    if not built or capability in built:
        return True
    ampere_plus = manifest.options.get("hardware_compatibility") == "ampere_plus"
    return ampere_plus and version_numbers(capability) >= (8, 0)
