"""``trt-native doctor``."""

from __future__ import annotations

import contextlib
import platform
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_command, print_json, report_errors, stdout, table
from trt_native.cli.options import (
    AllowHostCode,
    DeviceOption,
    IgnoreManifest,
    LeanRuntime,
    PluginsOption,
    select_device,
)
from trt_native.installing import install_command

if TYPE_CHECKING:
    from trt_native.plans.compatibility import Environment

__all__ = ["doctor"]

_FLAGS = {
    "allow_host_code": "--allow-host-code",
    "lean_runtime": "--lean-runtime FILE",
    "plugins": "--plugin LIB",
}
_PACKAGES = ("numpy", "onnx", "onnx-ir", "cuda-core", "cuda-bindings", "torch", "onnxscript")


@report_errors
def doctor(
    plan: Annotated[
        Path | None, typer.Argument(metavar="[PLAN]", help="A plan to check: does it load here?")
    ] = None,
    device: DeviceOption = None,
    ignore_manifest: IgnoreManifest = False,
    allow_host_code: AllowHostCode = False,
    lean_runtime: LeanRuntime = None,
    plugins: PluginsOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Report this machine's GPU, driver and backends, or whether a plan will load here.

    $ trt-native doctor
    $ trt-native doctor net.plan
    """
    select_device(device)
    if plan is not None:
        reading = {
            "ignore_manifest": ignore_manifest,
            "allow_host_code": allow_host_code,
            "lean_runtime": lean_runtime,
            "plugins": plugins or (),
        }
        _check_plan(plan, reading, json)
        return
    findings = _examine()
    if json:
        print_json(findings)
        return
    packages = ((name, found or "not installed") for name, found in findings["packages"].items())
    table("Python", ("", ""), [("python", findings["python"]), *packages])
    gpu = findings["gpu"]
    rows = gpu.items() if gpu else [("GPU", f"none usable: {findings['gpu_error']}")]
    table("GPU", ("", ""), rows)
    table(
        "Backends",
        ("backend", "found", "good for", "to install"),
        (
            (
                name,
                tuple(filter(None, (b["version"], b["error"]))),
                b["note"],
                install_command(b["extra"]),
            )
            for name, b in findings["backends"].items()
        ),
    )
    stdout.print(findings["summary"], style="bold", markup=False, highlight=False)
    if not findings["can_build"]:
        raise typer.Exit(1)


def _check_plan(path: Path, reading: dict[str, Any], json: bool) -> None:
    """Report whether a plan will load here; exit with 1 if it will not."""
    findings = _findings(path, reading)
    if json:
        print_json(findings)
    else:
        _print_findings(path, findings)
    if not findings["loads"]:
        raise typer.Exit(1)


def _findings(path: Path, reading: dict[str, Any]) -> dict[str, Any]:
    from trt_native.cli.rebuild_command import rebuild_command
    from trt_native.errors import PlanError
    from trt_native.plans.compatibility import NO_GPU, compatibility
    from trt_native.plans.manifest import find_model, read_manifest
    from trt_native.plans.plan import Plan

    environment = _environment()
    known = None
    found: dict[str, Any] = {
        "plan": str(path),
        "made_by": None,
        "bytes": None,
        "prefix": None,
        "built_for": None,
    }
    errors, warnings, options = [], [], []
    try:
        plan = Plan.open(path, **reading)
        found.update(
            made_by=f"{plan.header.product} {plan.header.version_text}",
            bytes=plan.size,
            prefix=plan.prefix,
        )
        report = compatibility(
            plan.header, plan.manifest, environment, plan.host_code, plan.plugins
        )
        errors, warnings, known = list(report.errors), list(report.warnings), plan.manifest
        options = [_FLAGS[name] for name in report.options]
    except PlanError as error:
        if not path.is_file():
            raise
        errors = [error.message]
        with contextlib.suppress(PlanError):
            known = None if reading["ignore_manifest"] else read_manifest(path)
    rebuild = model = None
    if known is not None:
        found["built_for"] = list(known.compute_capabilities)
        try:
            if environment.gpu or errors != [NO_GPU]:  # else no other plan loads here either
                rebuild = rebuild_command(known, path, environment)
                model = find_model(known, path)[1]
        except PlanError as error:
            warnings.append(error.message)
    return {
        **found,
        "here": asdict(environment),
        "loads": not errors,
        "errors": errors,
        "warnings": warnings,
        "options": options,
        "rebuild": rebuild,
        "model": model,
    }


def _environment() -> Environment:
    from trt_native.backends.registry import BACKENDS, load_backend
    from trt_native.cuda import gpu_info
    from trt_native.errors import UnsupportedError
    from trt_native.runtime.engine import environment_of

    backends = []
    for name in BACKENDS:
        with contextlib.suppress(UnsupportedError):
            backends.append(load_backend(name))
    return environment_of(backends, gpu_info())


def _print_findings(path: Path, findings: dict[str, Any]) -> None:
    from trt_native.plans.compatibility import NO_GPU
    from trt_native.plans.prefix import describe_prefix
    from trt_native.units import format_bytes

    here = findings["here"]
    libraries = ", ".join(f"{name} {version}" for name, version in here["libraries"].items())
    rows = [("library here", libraries or "no TensorRT")]
    if findings["made_by"] is not None:
        rows.insert(0, ("size", format_bytes(findings["bytes"])))
        rows.insert(0, ("made by", findings["made_by"]))
    if findings["built_for"] is not None:
        targets = ", ".join(findings["built_for"]) or "every GPU that the backend supports"
        rows.append(("built for", targets))
    if here["gpu"]:
        rows.append(("GPU here", f"{here['gpu']}, compute capability {here['compute_capability']}"))
        free, total = format_bytes(here["free_bytes"]), format_bytes(here["total_bytes"])
        rows += [("driver here", f"CUDA {here['driver']}"), ("memory here", f"{free} of {total}")]
    else:
        rows.append(("GPU here", "none usable"))
    rows += describe_prefix(findings["prefix"])
    table(str(path), ("", ""), rows)
    stdout.print("Loads here." if findings["loads"] else "Does not load here:", style="bold")
    for line in findings["errors"]:
        stdout.print(f"- {line}", markup=False, highlight=False)
    if findings["options"]:
        stdout.print(f"- to load it: {' '.join(findings['options'])}", markup=False)
    for line in findings["warnings"]:
        stdout.print(f"- note: {line}", markup=False, highlight=False)
    if findings["loads"] or findings["errors"] == [NO_GPU]:
        return
    if findings["rebuild"]:
        stdout.print(f"To build it again here ({findings['model']}):", markup=False)
        print_command(f"  {findings['rebuild']}")
    else:
        stdout.print("How it was built is not recorded: build it again from its ONNX file.")


def _examine() -> dict[str, Any]:
    from trt_native.backends.registry import BACKENDS
    from trt_native.cuda import require_gpu
    from trt_native.errors import CudaError
    from trt_native.units import format_bytes

    gpu, gpu_error = None, None
    try:
        info = require_gpu()
        gpu = {
            "name": info.name,
            "compute capability": info.compute_capability,
            "driver": f"CUDA {info.driver}",
            "memory": f"{format_bytes(info.free_bytes)} free of {format_bytes(info.total_bytes)}",
        }
    except CudaError as error:
        gpu_error = error.message
    backends = {name: _try_backend(name) for name in BACKENDS}
    builders = [b["library"] for b in backends.values() if b["builds"]]
    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        "packages": {name: _version(name) for name in _PACKAGES},
        "gpu": gpu,
        "gpu_error": gpu_error,
        "backends": backends,
        "can_build": bool(builders),
        "can_run": bool(gpu and builders),
        "can_export": bool(_version("torch") and _version("onnxscript")),
        "summary": _summary(builders, gpu is not None),
    }


def _try_backend(name: str) -> dict[str, Any]:
    from trt_native.backends.registry import BACKENDS, load_backend
    from trt_native.config import BuildConfig
    from trt_native.errors import UnsupportedError

    prober = BACKENDS[name]
    found: dict[str, Any] = {
        "version": None,
        "library": None,
        "builds": False,
        "error": "not installed",
        "note": prober.note,
        "extra": prober.extra,
    }
    try:
        backend = load_backend(name)
        found.update(version=backend.version, library=f"{backend.product} {backend.version}")
        backend.check(BuildConfig())
        found.update(builds=True, error=None)
    except UnsupportedError as error:
        found["error"] = error.message if found["version"] else "not installed"
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _summary(builders: list[str], has_gpu: bool) -> str:
    if not builders:
        return f"Cannot build plans here: no TensorRT that works. {install_command('rtx')}"
    done = f"Builds plans with {' and '.join(builders)}"
    return f"{done}, and runs them." if has_gpu else f"{done}; running them needs a GPU."
