"""The matrix of a build farm: models x precisions x profiles x targets."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_native.config import BuildConfig, QuantizationSpec
from trt_native.errors import SpecError, TrtNativeError, close_names
from trt_native.files import as_path, parse_yaml, read_text_file
from trt_native.shapes import ProfileSpec
from trt_native.units import parse_bytes, parse_duration

__all__ = ["Matrix", "MatrixBuild", "Target", "read_matrix"]

_LIMITS = ("timeout", "memory", "cpus")
_MATRIX = ("store", "models", "precisions", "profiles", "targets", "options", *_LIMITS)
_MODEL = ("file", "name", "precisions", "profiles", "targets", "options", *_LIMITS)
_TARGET = ("name", "backend", "gpu", "labels", "resources", "warm", "options", *_LIMITS)
_BACKENDS = ("auto", "tensorrt", "rtx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The GPUs that plans are for, and the nodes that can build them.

    Attributes:
        name: Its name in the matrix.
        backend: ``auto``, ``tensorrt`` or ``rtx``.
        gpu: Kind of the GPU that a build needs, as Ray names it (``H100``), or ``any``. None: a
            build needs no GPU, and sees none.
        labels: Labels that a node must have.
        resources: Custom resources that a build takes of a node, and their amounts.
        warm: Whether to compile the plan's kernels for that GPU, too.
    """

    name: str = "default"
    backend: str = "auto"
    gpu: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    warm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixBuild:
    """One build of a matrix.

    Attributes:
        model: Name of the model.
        precision: Name of the precision.
        profile: Name of the profile; empty for that of a static model.
        target: The target.
        file: The ONNX file.
        config: The configuration.
        timeout_s: Longest time in seconds; None for no limit.
        memory_bytes: Memory that is reserved on the node; None for no reservation.
        cpus: Number of CPUs that are reserved.
    """

    model: str
    precision: str
    profile: str
    target: Target
    file: Path
    config: BuildConfig
    timeout_s: float | None = None
    memory_bytes: int | None = None
    cpus: float = 1.0


@dataclass(frozen=True, slots=True)
class Matrix:
    """The builds of a matrix, in its order.

    Attributes:
        builds: The builds.
        store: Where their plans go; None where the matrix does not say.
    """

    builds: tuple[MatrixBuild, ...]
    store: str | None = None


def read_matrix(path: str | os.PathLike[str]) -> Matrix:
    """Read a matrix from a YAML file.

    Paths in it are relative to its folder. A model may have ``precisions``, ``profiles`` and
    ``targets`` of its own, in place of the matrix's. Of options and limits that are given several
    times those of the precision win, then of the target, of the model, and of the matrix.

    Args:
        path: The file.

    Raises:
        SpecError: it cannot be read, or something in it is unknown, missing or malformed. All
            problems are in one error.
    """
    source = as_path(path)
    try:
        data = parse_yaml(read_text_file(source).decode())
    except OSError as error:
        raise SpecError(f"{source}: cannot be read: {error.strerror}") from None
    except Exception as error:  # the parser has many kinds
        raise SpecError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    reader = _Reader(source.absolute().parent)
    matrix = reader.matrix(data)
    if reader.problems:
        raise SpecError(
            f"{source}: the matrix cannot be used:", problems=list(dict.fromkeys(reader.problems))
        )
    return matrix


class _Reader:
    """Reads the parts of a matrix, and collects problems."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.problems: list[str] = []

    def matrix(self, data: Any) -> Matrix:
        top = self._mapping(data, "the matrix", _MATRIX)
        profiles = self._profiles(top.get("profiles"), "profiles")
        targets = {one.name: (one, entry) for one, entry in self._targets(top.get("targets"))}
        models = self._models(top.get("models"))
        builds = [
            build
            for name, file, entry in models
            for build in self._builds(name, file, entry, top, profiles, targets)
        ]
        store = top.get("store")
        if store is not None and not (isinstance(store, str) and store):
            self.problems.append(f"store: not a folder or URL: {store!r}")
            store = None
        if store is not None and "://" not in store and "::" not in store:
            store = str(self._folder / store)
        return Matrix(tuple(builds), store)

    def _builds(
        self,
        model: str,
        file: Path,
        entry: Mapping[str, Any],
        top: Mapping[str, Any],
        profiles: Mapping[str, Any],
        targets: Mapping[str, tuple[Target, Mapping[str, Any]]],
    ) -> Iterator[MatrixBuild]:
        """The builds of one model."""
        place = f"model {model}"
        own = entry.get("profiles")
        if isinstance(own, Mapping):
            profiles = self._profiles(own, f"{place}: profiles")
        elif own is not None:
            profiles = self._chosen(own, profiles, f"{place}: profiles")
        chosen = self._chosen(entry.get("targets"), targets, f"{place}: targets")
        precisions = entry.get("precisions", top.get("precisions", ["auto"]))
        for precision, options in self._precisions(precisions, place):
            for profile, specs in profiles.items():
                for target, given in chosen.values():
                    layers = (top, entry, given)
                    where = ", ".join(filter(None, (model, precision, profile, target.name)))
                    config = self._config([*layers, {"options": options}], specs, where)
                    if config is not None:
                        yield MatrixBuild(
                            model=model, precision=precision, profile=profile, target=target,
                            file=file, config=config, **self._limits(layers),
                        )  # fmt: skip

    def _config(
        self, layers: Sequence[Mapping[str, Any]], profiles: Any, where: str
    ) -> BuildConfig | None:
        options: dict[str, Any] = {}
        for layer in layers:
            given = layer.get("options") or {}
            if not isinstance(given, Mapping):
                self.problems.append(f"{where}: options: not a mapping of options to values")
                return None
            options |= {str(name).replace("-", "_"): value for name, value in given.items()}
        try:
            config = BuildConfig(**{"profiles": profiles, **options})
        except TrtNativeError as error:
            self.problems += [f"{where}: {error.message}", *error.problems]
            return None
        if config.timing_cache is not None:
            self.problems.append(f"{where}: timing_cache: every node has its own; leave it out")
            return None
        return self._with_paths(config, where)

    def _with_paths(self, config: BuildConfig, where: str) -> BuildConfig:
        """The configuration with paths of calibration relative to the matrix's folder."""
        spec = config.quantization
        changed: dict[str, Any] = {}
        if spec.calibration_cache is not None:
            changed["calibration_cache"] = self._folder / spec.calibration_cache
        if spec.calibration_data is not None:
            changed["calibration_data"] = str(self._folder / spec.calibration_data)
        for name, path in changed.items():
            if not Path(path).exists():
                self.problems.append(f"{where}: {name}: {path}: no such file or folder")
        if not changed:
            return config
        quantization: QuantizationSpec = dataclasses.replace(spec, **changed)
        return dataclasses.replace(config, quantization=quantization)

    # Parts

    def _models(self, data: Any) -> list[tuple[str, Path, Mapping[str, Any]]]:
        if not isinstance(data, list) or not data:
            self.problems.append("models: give a list of ONNX files, or of mappings with 'file'")
            return []
        found: dict[str, tuple[str, Path, Mapping[str, Any]]] = {}
        for item in data:
            entry = {"file": item} if isinstance(item, str) else item
            entry = self._mapping(entry, "a model", _MODEL)
            pattern = entry.get("file")
            if not isinstance(pattern, str):
                self.problems.append(
                    f"a model: 'file' is not the path of an ONNX file: {pattern!r}"
                )
                continue
            files = self._files(pattern)
            if not files:
                self.problems.append(f"model {pattern}: no such file ({self._folder})")
            for file in files:
                name = str(entry.get("name", file.stem))
                if name in found:
                    self.problems.append(f"model {name}: there are two; give one another 'name'")
                found[name] = (name, file, entry)
        return list(found.values())

    def _files(self, pattern: str) -> list[Path]:
        path = self._folder / pattern
        if path.is_file():
            return [path]
        found = sorted(glob.glob(str(path), recursive=True))
        return [Path(name) for name in found if Path(name).is_file()]

    def _precisions(self, data: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Name and options of each precision."""
        if not isinstance(data, list) or not data:
            self.problems.append(f"{place}: precisions: give a list, such as [fp16, fp32]")
            return
        names = set()
        for item in data:
            options = {"precision": item} if isinstance(item, str) else item
            if not isinstance(options, Mapping):
                self.problems.append(f"{place}: precisions: neither a name nor options: {item!r}")
                continue
            options = {str(name): value for name, value in options.items()}
            name = str(options.pop("name", options.get("precision", "auto")))
            if name in names:
                self.problems.append(f"{place}: precision {name}: there are two; name them")
            names.add(name)
            yield name, options

    def _profiles(self, data: Any, place: str) -> dict[str, tuple[ProfileSpec, ...]]:
        """Profiles of plans by name, of which each may be several."""
        if data is None:
            return {"": ()}
        if not isinstance(data, Mapping) or not data:
            self.problems.append(f"{place}: give a mapping of names to profiles")
            return {}
        found = {}
        for name, entry in data.items():
            try:
                entries = entry if isinstance(entry, list) else [entry]
                found[str(name)] = tuple(ProfileSpec.from_mapping(one) for one in entries)
            except SpecError as error:
                self.problems += [
                    f"{place}: {name}: {text}" for text in (error.message, *error.problems)
                ]
        return found

    def _targets(self, data: Any) -> Iterator[tuple[Target, Mapping[str, Any]]]:
        if data is None:
            yield Target(), {}
            return
        if not isinstance(data, list) or not data:
            self.problems.append("targets: give a list of mappings with 'name'")
            return
        names = set()
        for item in data:
            entry = self._mapping(item, "a target", (*_TARGET, "compute_capabilities"))
            name = str(entry.get("name", ""))
            if not name or name in names:
                self.problems.append(f"target {name or item!r}: give each a 'name' of its own")
                continue
            names.add(name)
            yield self._target(name, entry), _target_options(entry)

    def _target(self, name: str, entry: Mapping[str, Any]) -> Target:
        place = f"target {name}"
        backend, warm = entry.get("backend", "auto"), entry.get("warm", False)
        if backend not in _BACKENDS:
            self.problems.append(f"{place}: backend {backend!r} is none of {', '.join(_BACKENDS)}")
        if not isinstance(warm, bool):
            self.problems.append(f"{place}: warm: neither true nor false: {warm!r}")
        gpu = entry.get("gpu")
        if gpu is not None and not (isinstance(gpu, str) and gpu):
            self.problems.append(f"{place}: gpu: give the kind, such as H100, or any: {gpu!r}")
        if warm and gpu is None:
            self.problems.append(f"{place}: warm needs a GPU: give its kind, as in gpu: L4")
        if backend == "tensorrt" and gpu is None:
            self.problems.append(
                f"{place}: TensorRT builds on the GPU: give its kind, as in gpu: H100"
            )
        labels, resources = (entry.get(key) or {} for key in ("labels", "resources"))
        if not isinstance(labels, Mapping) or not all(isinstance(v, str) for v in labels.values()):
            self.problems.append(f"{place}: labels: give a mapping of names to texts")
            labels = {}
        if not isinstance(resources, Mapping) or not all(map(_is_amount, resources.values())):
            self.problems.append(f"{place}: resources: give a mapping of names to amounts above 0")
            resources = {}
        return Target(
            name=name, backend=backend, gpu=gpu, labels=labels, resources=resources, warm=warm
        )

    def _limits(self, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged = {name: layer[name] for layer in layers for name in _LIMITS if name in layer}
        try:
            if merged.get("timeout") is not None:
                found["timeout_s"] = parse_duration(str(merged["timeout"]))
            if merged.get("memory") is not None:
                found["memory_bytes"] = parse_bytes(merged["memory"])
        except SpecError as error:
            self.problems.append(error.message)
        if "cpus" in merged:
            if _is_amount(merged["cpus"]):
                found["cpus"] = float(merged["cpus"])
            else:
                self.problems.append(f"cpus: not a number above 0: {merged['cpus']!r}")
        return found

    def _mapping(self, data: Any, place: str, known: Sequence[str]) -> dict[str, Any]:
        if not isinstance(data, Mapping):
            self.problems.append(f"{place}: expected a mapping, found {type(data).__name__}")
            return {}
        for key in data:
            if key not in known:
                close = close_names(str(key), known)
                meant = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                self.problems.append(f"{place}: unknown key {key!r}; {meant}")
        return {str(key): value for key, value in data.items()}

    def _chosen(self, names: Any, known: Mapping[str, Any], place: str) -> dict[str, Any]:
        """Those of the matrix that a model names; all where it names none."""
        if names is None:
            return dict(known)
        if not isinstance(names, list):
            self.problems.append(f"{place}: give a list of names")
            return {}
        for name in names:
            if name not in known:
                self.problems.append(
                    f"{place}: no {name!r}; there are {', '.join(known) or 'none'}"
                )
        return {name: known[name] for name in names if name in known}


def _target_options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a target says of a build's options and limits."""
    options = entry.get("options") or {}
    if isinstance(options, Mapping) and "compute_capabilities" in entry:
        options = {**options, "compute_capabilities": entry["compute_capabilities"]}
    return {**entry, "options": options}


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
