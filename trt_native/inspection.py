"""Inspection and comparison of plans."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_native.cuda import require_gpu
from trt_native.errors import CudaError, PlanError, SpecError, TrtNativeError
from trt_native.files import open_regular_file, read_text_file
from trt_native.plans.engine_layers import Layer, LayerTensor, parse_layers, precision_mix
from trt_native.plans.manifest import Manifest, PlanTensor
from trt_native.plans.plan import Plan
from trt_native.plans.prefix import is_plan_file
from trt_native.plans.stored_kernels import stored_kernels
from trt_native.runtime.engine import Engine

__all__ = [
    "Difference",
    "Layer",
    "LayerTensor",
    "PlanDiff",
    "PlanReport",
    "diff_plans",
    "inspect_plan",
    "parse_layers",
    "precision_mix",
    "read_layer_times",
    "read_report",
]

_TIMES = ("median_ms", "medianMs", "mean_ms", "averageMs")
_MOST_MS = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """Information about a plan.

    Attributes:
        path: Where it was read from.
        product: ``TensorRT`` or ``TensorRT-RTX``.
        version: Version of that library.
        plan_bytes: Length of the plan.
        sha256: Hash of the plan's bytes.
        manifest: Its manifest; None for a plan without one.
        tensors: Its inputs and outputs; None without a manifest and an engine.
        activation_bytes: Device memory that one execution context needs; None without the engine.
        raw_layers: The engine inspector's JSON on each layer; None without the engine.
        layers_error: Reason why the layers are not known.
        prefix: Metadata in front of the plan, as Ultralytics' exports have it; None without.
        carries: Code in the plan that runs in the process that loads it; None where that is not
            known.
        raw_kernels: What the plan itself lists of its kernels, in the form of ``raw_layers``; None
            where it lists none. Only plans of TensorRT-RTX do.
    """

    path: str
    product: str
    version: str
    plan_bytes: int
    sha256: str
    manifest: Manifest | None
    tensors: tuple[PlanTensor, ...] | None
    activation_bytes: int | None = None
    raw_layers: list[dict[str, Any]] | None = field(default=None, repr=False)
    layers_error: str | None = None
    prefix: dict[str, Any] | None = None
    carries: tuple[str, ...] | None = None
    raw_kernels: list[dict[str, Any]] | None = field(default=None, repr=False)

    @property
    def kernels(self) -> tuple[Layer, ...] | None:
        """The kernels that the plan lists, in their order; None where it lists none."""
        return None if self.raw_kernels is None else parse_layers(self.raw_kernels)

    @property
    def layers(self) -> tuple[Layer, ...] | None:
        """The layers in the order of their execution; None where they are not known."""
        return None if self.raw_layers is None else parse_layers(self.raw_layers)

    def to_json(self) -> dict[str, Any]:
        """As ``trt-native inspect --json`` prints it."""
        return {
            "kind": "plan",
            "path": self.path,
            "product": self.product,
            "version": self.version,
            "bytes": self.plan_bytes,
            "sha256": self.sha256,
            "manifest": self.manifest.to_json() if self.manifest else None,
            "tensors": [t.to_json() for t in self.tensors] if self.tensors is not None else None,
            "activation_bytes": self.activation_bytes,
            "layers": self.raw_layers,
            "layers_unreadable": self.layers_error,
            "prefix": self.prefix,
            "carries": None if self.carries is None else list(self.carries),
            "kernels": self.raw_kernels,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlanReport:
        """The inverse of :meth:`to_json`.

        Raises:
            PlanError: this is not such a report.
        """
        try:
            tensors = data["tensors"]
            layers, kernels = data["layers"], data.get("kernels")
            report = cls(
                path=str(data["path"]),
                product=str(data["product"]),
                version=str(data["version"]),
                plan_bytes=int(data["bytes"]),
                sha256=str(data["sha256"]),
                manifest=Manifest.from_json(data["manifest"]) if data["manifest"] else None,
                tensors=None if tensors is None else tuple(map(PlanTensor.from_json, tensors)),
                activation_bytes=data["activation_bytes"],
                raw_layers=None if layers is None else [dict(layer) for layer in layers],
                layers_error=data["layers_unreadable"],
                prefix=data.get("prefix"),
                carries=None if data.get("carries") is None else tuple(data["carries"]),
                raw_kernels=None if kernels is None else [dict(kernel) for kernel in kernels],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(f"not a report of trt-native inspect: {error}") from None
        return report


def inspect_plan(plan: Plan) -> PlanReport:
    """Collect information from the header, the manifest and, if the plan loads, the engine."""
    header, manifest = plan.header, plan.manifest
    tensors = manifest.tensors if manifest else None
    activation_bytes = layers = layers_error = None
    try:
        require_gpu()
        with Engine(plan) as engine:
            tensors = engine.tensors
            activation_bytes = engine.activation_bytes
            layers = engine.layers()
    except CudaError as error:
        layers_error = f"only a machine with a GPU can load a plan ({error.message})"
    except TrtNativeError as error:
        layers_error = error.message
    return PlanReport(
        path=str(plan.path or ""),
        product=header.product,
        version=manifest.backend_version if manifest else header.version_text,
        plan_bytes=plan.size,
        sha256=plan.sha256,
        manifest=manifest,
        tensors=tensors,
        activation_bytes=activation_bytes,
        raw_layers=layers,
        layers_error=layers_error,
        prefix=plan.prefix,
        carries=plan.host_code.carried,
        raw_kernels=stored_kernels(plan.content) if header.product == "TensorRT-RTX" else None,
    )


def read_report(path: Path, **options: Any) -> PlanReport:
    """Inspect a plan, or read what ``trt-native inspect --json`` printed elsewhere.

    Args:
        path: The plan, or the file that was printed.
        options: As for :meth:`~trt_native.plans.plan.Plan.open`.

    Raises:
        PlanError: the file is neither, or is damaged.
    """
    try:
        with open_regular_file(path) as file:
            is_json = file.peek(1)[:1] == b"{"
            is_plan = is_plan_file(file, os.fstat(file.fileno()).st_size)
        if is_plan or not is_json:
            return inspect_plan(Plan.open(path, **options))
        data = json.loads(read_text_file(path))
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path}: neither a plan nor JSON: {error}") from None
    try:
        return PlanReport.from_json(data)
    except PlanError as error:
        raise PlanError(f"{path}: {error.message}") from None


def read_layer_times(path: Path) -> dict[str, float]:
    """Read milliseconds by layer from a benchmark's JSON.

    Takes what ``trtexec --exportProfile`` writes, and any JSON object whose ``layers`` is a list of
    objects with ``name`` and one of ``median_ms``, ``medianMs``, ``mean_ms``, ``averageMs``.

    Raises:
        SpecError: the file cannot be read or contains no layer times.
    """
    try:
        data = json.loads(read_text_file(path))
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not JSON: {error}") from None
    entries = data.get("layers") if isinstance(data, dict) else data
    times: dict[str, float] = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            found = [entry[key] for key in _TIMES if isinstance(entry.get(key), (int, float))]
            if found and 0 <= found[0] < _MOST_MS:
                times[entry["name"]] = float(found[0])
    if not times:
        raise SpecError(f"{path}: contains no layer times; bench with the times of each layer")
    return times


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between two plans.

    Attributes:
        section: ``plan``, ``model``, ``options``, ``tensors``, ``layers`` or ``kernels``.
        name: The property that differs.
        left: How it is in the first plan; None where it is not there.
        right: How it is in the second plan; None where it is not there.
    """

    section: str
    name: str
    left: str | None
    right: str | None


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """Differences between two plans.

    Attributes:
        differences: The differences, section by section.
        not_compared: Sections that could not be compared, and why.
        same_bytes: Whether the plans are byte for byte the same.
    """

    differences: tuple[Difference, ...]
    not_compared: tuple[str, ...]
    same_bytes: bool


def diff_plans(left: PlanReport, right: PlanReport) -> PlanDiff:
    """Compare two plans by all information available on both."""
    not_compared = []
    sections = {"plan": (_plan_facts(left), _plan_facts(right))}
    if left.manifest and right.manifest:
        sections["model"] = (_model_facts(left.manifest), _model_facts(right.manifest))
        sections["options"] = (_option_facts(left.manifest), _option_facts(right.manifest))
    else:
        not_compared.append("model and options: a manifest is missing")
    if left.tensors is not None and right.tensors is not None:
        sections["tensors"] = (_tensor_facts(left.tensors), _tensor_facts(right.tensors))
    else:
        not_compared.append("tensors: a manifest is missing, and the engine cannot be loaded")
    if left.layers is not None and right.layers is not None:
        sections["layers"] = (_layer_facts(left.layers), _layer_facts(right.layers))
    elif left.sha256 != right.sha256:
        not_compared.append(f"layers: {left.layers_error or right.layers_error}")
        if left.kernels is not None and right.kernels is not None:
            sections["kernels"] = (_kernel_facts(left.kernels), _kernel_facts(right.kernels))
    differences = [
        Difference(section, name, one.get(name), other.get(name))
        for section, (one, other) in sections.items()
        for name in dict.fromkeys((*one, *other))
        if one.get(name) != other.get(name)
    ]
    return PlanDiff(tuple(differences), tuple(not_compared), left.sha256 == right.sha256)


def _plan_facts(report: PlanReport) -> dict[str, str]:
    facts = {"made by": f"{report.product} {report.version}", "bytes": str(report.plan_bytes)}
    if report.activation_bytes is not None:
        facts["activation bytes"] = str(report.activation_bytes)
    facts |= {f"in front: {name}": json.dumps(v) for name, v in (report.prefix or {}).items()}
    return facts


def _model_facts(manifest: Manifest) -> dict[str, str]:
    files = [manifest.model, *manifest.model["external"]]
    return {"ONNX": " ".join(str(file["sha256"])[:16] for file in files)}


def _option_facts(manifest: Manifest) -> dict[str, str]:
    facts = {name: json.dumps(value) for name, value in manifest.options.items()}
    facts |= {n: "; ".join(lines) for n, lines in manifest.option_lines() if n == "profiles"}
    facts["precision applied"] = manifest.arithmetic
    facts["compute capabilities"] = ", ".join(manifest.compute_capabilities) or "all"
    return facts


def _tensor_facts(tensors: Iterable[PlanTensor]) -> dict[str, str]:
    return {
        f"{t.mode} {t.name}": " ".join(
            (t.describe_type(), t.describe_shape(), *map(str, t.profiles), *map(str, t.values))
        )
        for t in tensors
    }


def _kernel_facts(kernels: tuple[Layer, ...]) -> dict[str, str]:
    kinds = Counter(kernel.kind for kernel in kernels)
    return {
        "precision mix": _mix_text(kernels),
        "count": str(len(kernels)),
        **{f"kernels of type {kind}": str(count) for kind, count in sorted(kinds.items())},
    }


def _mix_text(layers: tuple[Layer, ...]) -> str:
    return ", ".join(f"{count} {name}" for name, count in precision_mix(layers).items())


def _layer_facts(layers: tuple[Layer, ...]) -> dict[str, str]:
    """The precision mix, then every layer; repeated names are numbered."""
    facts = {"precision mix": _mix_text(layers), "count": str(len(layers))}
    seen: Counter[str] = Counter()
    for layer in layers:
        seen[layer.name] += 1
        number = f" #{seen[layer.name]}" if seen[layer.name] > 1 else ""
        parts = (layer.kind, layer.precision, layer.tactic or "")
        facts[f"layer {layer.name}{number}"] = " ".join(filter(None, parts))
    return facts
