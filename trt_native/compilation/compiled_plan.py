"""From a module to its plan: found again by its content, or exported and built."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trt_native.backends.base import Backend
from trt_native.builder.build_plan import build_plan
from trt_native.builder.plan_cache import BuiltPlan, EngineCache
from trt_native.compilation.dynamic_axes import NamedAxes
from trt_native.compilation.module_content import code_files, digest_module
from trt_native.config import BuildConfig
from trt_native.export import ExportReport, export_module
from trt_native.export.structure import CallStructure
from trt_native.export.weight_names import WeightNames
from trt_native.files import sha256_of_file
from trt_native.plans.plan import Plan
from trt_native.progress import Progress, phase
from trt_native.scratch import scratch_folder

__all__ = ["CompiledPlan", "Recipe", "find_or_build"]


@dataclass(frozen=True)
class Recipe:
    """Everything that a plan is made of.

    Attributes:
        module: The module.
        call: The arguments of the example.
        tensors: Its tensors by name.
        axes: Its dynamic axes.
        config: Options of the build.
        backend: The TensorRT that builds.
        opset: ONNX operator-set version; None for the export's own.
    """

    module: torch.nn.Module
    call: CallStructure
    tensors: Mapping[str, torch.Tensor]
    axes: NamedAxes
    config: BuildConfig
    backend: Backend
    opset: int | None = None

    def export(self, path: Path, progress: Progress | None) -> ExportReport:
        """Write the module as an ONNX file.

        Raises:
            SpecError, ExportError, UnsupportedError: as :func:`trt_native.export.export_module`.
        """
        args, kwargs = self.call.rebuild(self.tensors)
        return export_module(
            self.module,
            args,
            kwargs,
            path=path,
            dynamic=self.axes,
            opset=self.opset,
            refittable=self.config.refit,
            progress=progress,
        )


@dataclass(frozen=True)
class CompiledPlan:
    """The plan of a module.

    Attributes:
        plan: The plan.
        outputs: Names of its outputs, in the order of the tensors that the module returns.
        weights: For each entry of the module's state dict the weights of the ONNX file that it is,
            for a plan that can be refitted.
        cached: Whether the plan was built before.
        exported: Whether the module was exported for it just now.
    """

    plan: Plan
    outputs: tuple[str, ...]
    weights: WeightNames
    cached: bool
    exported: bool


def find_or_build(
    recipe: Recipe, cache: EngineCache | None, progress: Progress | None, *, fresh: bool = False
) -> CompiledPlan:
    """Return the plan of a module from the cache, or else export the module and build it.

    Args:
        recipe: What to build.
        cache: Where built plans are kept; None builds in any case.
        progress: Receives progress callbacks.
        fresh: Export the module even if its plan is known.

    Raises:
        SpecError, ExportError, UnsupportedError, BuildError: as the export and the build.
    """
    request = None
    if cache is not None:
        with phase(progress, "Hashing the module"):
            request = _Request.of(recipe, cache)
        found = request and not fresh and request.find()
        if found:
            return found
    with scratch_folder() as folder:
        path = folder / f"{type(recipe.module).__name__}.onnx"
        report = recipe.export(path, progress)
        built = _build(recipe, path, cache, progress)
    outputs = tuple(spec.name for spec in report.outputs)
    if request is not None and built.key is not None:
        request.note(built.key, outputs, report.weights)
    return CompiledPlan(
        plan=_with_place(built.plan, cache, built.key),
        outputs=outputs,
        weights=report.weights,
        cached=built.cached,
        exported=True,
    )


def _build(
    recipe: Recipe, path: Path, cache: EngineCache | None, progress: Progress | None
) -> BuiltPlan:
    config, backend = recipe.config, recipe.backend
    if cache is None:
        return BuiltPlan(build_plan(path, config, backend=backend, progress=progress))
    return cache.build_plan(path, config, backend=backend, progress=progress)


def _with_place(plan: Plan, cache: EngineCache | None, key: str | None) -> Plan:
    """The plan with its file in the cache, next to which its compiled kernels are kept."""
    return plan if cache is None or key is None else replace(plan, path=cache.plan_path(key))


@dataclass(frozen=True)
class _Request:
    """A module in a cache of plans.

    Attributes:
        recipe: What is to be built.
        cache: The cache.
        key: A key of all that the export and the build depend on, but for the files of the code.
        modules: The Python modules that the code begins with.
    """

    recipe: Recipe
    cache: EngineCache
    key: str
    modules: frozenset[str]

    @classmethod
    def of(cls, recipe: Recipe, cache: EngineCache) -> _Request | None:
        """Hash a module; None where its content cannot be read."""
        digest = digest_module(recipe.module)
        if digest is None:
            return None
        content, modules = digest
        inputs = [
            [name, str(tensor.dtype), list(tensor.shape), tensor.device.type]
            for name, tensor in recipe.tensors.items()
        ]
        axes = [[n, [[axis, d] for axis, d in dims.items()]] for n, dims in recipe.axes.items()]
        key = cache.request_key(
            recipe.config,
            recipe.backend,
            module=content,
            call=recipe.call.describe(),
            inputs=inputs,
            axes=axes,
            opset=recipe.opset,
            versions=[sys.version, torch.__version__, *_exporter_versions()],
        )
        return None if key is None else cls(recipe, cache, key, modules)

    def note(self, plan: str, outputs: tuple[str, ...], weights: WeightNames) -> None:
        """Note the plan, unless the files of the code are not known."""
        files = code_files(self.modules)
        if files is not None:
            names = {name: None if made is None else list(made) for name, made in weights.items()}
            content = {"plan": plan, "outputs": list(outputs), "weights": names, "code": files}
            self.cache.write_note(self.key, content)

    def find(self) -> CompiledPlan | None:
        """The plan that was noted, if the code is as it was."""
        note = self.cache.read_note(self.key)
        try:
            if note is None or not _is_unchanged(note["code"], code_files(self.modules)):
                return None
            key, outputs = str(note["plan"]), tuple(map(str, note["outputs"]))
            weights = {
                n: made if made is None else tuple(made) for n, made in note["weights"].items()
            }
        except (LookupError, TypeError, ValueError, AttributeError):
            return None
        plan = self.cache.find_plan(key, self.recipe.config)
        if plan is None:
            return None
        plan = _with_place(plan, self.cache, key)
        return CompiledPlan(plan, outputs, weights, cached=True, exported=False)


def _is_unchanged(known: Mapping[str, str], now: Mapping[str, str] | None) -> bool:
    """Whether all files are as they were; some may not be in use yet."""
    if now is None or any(known.get(path) != sha256 for path, sha256 in now.items()):
        return False
    try:
        return all(sha256_of_file(Path(p)) == sha256 for p, sha256 in known.items() if p not in now)
    except OSError:
        return False


def _exporter_versions() -> list[str]:
    import onnx_ir
    import onnxscript

    return [onnxscript.__version__, onnx_ir.__version__]
