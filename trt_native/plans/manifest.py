"""The manifest stored next to a plan: where the plan comes from and what it needs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trt_native.config import BuildConfig
from trt_native.errors import PlanError, SpecError
from trt_native.files import is_within, read_text_file, sha256_of_file
from trt_native.plans.schema_1 import from_schema_1
from trt_native.shapes import Shape, ShapeRange

__all__ = [
    "MANIFEST_SCHEMA",
    "Manifest",
    "PlanTensor",
    "find_model",
    "manifest_path",
    "read_manifest",
    "runtime_cache_path",
]
MANIFEST_SCHEMA = 3
"""Number of the manifest's newest layout; a change that would break readers raises it."""

_PLAIN_SCHEMA = 2
"""The layout where no tensor has one of the properties that came with the newest."""

_NONE = type(None)


_MANIFEST_TYPES: dict[str, tuple[type, ...]] = {
    "schema": (int,),
    "producer": (str,),
    "plan_sha256": (str,),
    "plan_bytes": (int,),
    "backend": (str,),
    "backend_version": (str,),
    "gpu": (str, _NONE),
    "compute_capabilities": (list,),
    "driver": (str, _NONE),
    "model": (dict,),
    "tensors": (list,),
    "precision": (dict,),
    "passes": (list,),
    "options": (dict,),
    "seconds": (dict,),
    "created": (str,),
}
_FILE_TYPES: dict[str, tuple[type, ...]] = {"file": (str,), "bytes": (int,), "sha256": (str,)}
_MODEL_TYPES = {**_FILE_TYPES, "external": (list,)}


_PASS_TYPES: dict[str, tuple[type, ...]] = {"name": (str,), "summary": (str,)}
_PRECISION_TYPES = {"requested": (str,), "applied": (str,)}


_REFIT_TYPES: dict[str, tuple[type, ...]] = {"structure": (str,), "weights": (dict,)}
_TENSOR_TYPES = {
    "name": (str,),
    "mode": (str,),
    "dtype": (str,),
    "shape": (list,),
    "dims": (list,),
    "profiles": (list,),
    "values": (list,),
}


@dataclass(frozen=True, slots=True)
class PlanTensor:
    """An input or output of a plan.

    Attributes:
        name: Name in the engine.
        mode: ``input`` or ``output``.
        dtype: Element type by its NumPy or ml_dtypes name.
        shape: Extents; -1 where the shape is dynamic.
        dims: Symbolic dimension of each axis as the ONNX file names it; None where it has none.
        profiles: For a dynamic input, its range in each optimization profile.
        values: For an input that is itself a shape, the range of its values in each profile.
        alias: For an output that the engine writes into the memory of an input, such as a cache
            that it updates, the name of that input. Both must have one address.
        format: TensorRT's name of the layout that the engine reads or writes, such as ``HWC8``;
            None where that is C order.
        data_dependent: For an output, whether its shape is known only after a run, as that of what
            NonZero returns is.
    """

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...]
    dims: tuple[str | None, ...] = ()
    profiles: tuple[ShapeRange, ...] = ()
    values: tuple[ShapeRange, ...] = ()
    alias: str | None = None
    format: str | None = None
    data_dependent: bool = False

    def __str__(self) -> str:
        ranges = ", ".join(map(str, self.profiles or self.values))
        return f"{self.name}: {self.describe_type()} {self.describe_shape()}" + (
            f" ({ranges})" * bool(ranges)
        )

    def describe_type(self) -> str:
        """Element type, with what else decides what must be given or taken."""
        notes = [] if self.format is None else [self.format]
        notes += [] if self.alias is None else [f"in {self.alias}"]
        notes += ["data-dependent shape"] if self.data_dependent else []
        return f"{self.dtype} ({', '.join(notes)})" if notes else self.dtype

    def can_have(self, shape: Shape) -> bool:
        """Whether a shape has this tensor's number of axes and its fixed extents."""
        return len(shape) == len(self.shape) and all(
            own in (-1, extent) for own, extent in zip(self.shape, shape, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, ranges as ``MIN:OPT:MAX``."""
        data = asdict(self)
        data["shape"] = list(self.shape)
        data["dims"] = list(self.dims)
        data["profiles"] = [str(item) for item in self.profiles]
        data["values"] = [str(item) for item in self.values]
        for name in ("alias", "format"):
            if data[name] is None:
                del data[name]
        if not self.data_dependent:
            del data["data_dependent"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlanTensor:
        """The inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or malformed.
        """
        _check_types(data, _TENSOR_TYPES, "tensor.")
        shape, dims = data["shape"], data["dims"]
        if data["mode"] not in ("input", "output"):
            raise ValueError(f"mode {data['mode']!r} of tensor {data['name']!r}")
        if not all(type(axis) is int and axis >= -1 for axis in shape):
            raise ValueError(f"shape {shape} of tensor {data['name']!r}")
        for optional in ("alias", "format"):
            if not isinstance(data.get(optional), str | None):
                raise TypeError(f"{optional} of tensor {data['name']!r}")
        if data.get("data_dependent", True) is not True:
            raise TypeError(f"data_dependent of tensor {data['name']!r}")
        if len(dims) not in (0, len(shape)) or not all(isinstance(d, (str, _NONE)) for d in dims):
            raise ValueError(f"dims {dims} of tensor {data['name']!r}")
        return cls(
            name=data["name"],
            mode=data["mode"],
            dtype=data["dtype"],
            shape=tuple(shape),
            dims=tuple(dims),
            profiles=tuple(ShapeRange.parse(text) for text in data["profiles"]),
            values=tuple(ShapeRange.parse(text) for text in data["values"]),
            alias=data.get("alias"),
            format=data.get("format"),
            data_dependent="data_dependent" in data,
        )

    def describe_shape(self) -> str:
        """The shape for a person: extents, and the symbolic name where an axis is dynamic."""
        names = self.dims or (None,) * len(self.shape)
        axes = [
            str(extent) if extent >= 0 else (name or "?")
            for extent, name in zip(self.shape, names, strict=True)
        ]
        return " x ".join(axes) or "scalar"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Manifest:
    """Origin and requirements of a plan.

    Attributes:
        producer: Program and version that wrote the plan.
        plan_sha256: Hash of the plan's bytes.
        plan_bytes: Length of the plan.
        backend: ``trt10``, ``trt11`` or ``rtx``.
        backend_version: Full version of the TensorRT library.
        gpu: Name of the GPU the plan was built on; None where it was built without one.
        compute_capabilities: GPUs the plan targets, as ``8.9``; empty means every GPU that the
            backend supports.
        driver: CUDA driver API version at the build, such as ``13.0``; None without a GPU.
        model: ``file``, ``sha256``, ``bytes`` of the ONNX file and the same for each file of
            ``external`` weights; ``metadata``, what our export noted in the ONNX file.
        tensors: Inputs, then outputs, in the engine's order.
        precision: The requested precision, and the applied one.
        passes: The passes that rewrote the graph, in order: ``name``, ``summary``, and what each
            of them did.
        options: Every build option that differs from its default.
        seconds: How long each part of the build took.
        created: UTC time in ISO 8601.
        refit: For a plan whose weights can be replaced, ``structure`` and ``weights`` of the graph
            that TensorRT parsed, as in :class:`~trt_native.graph.refit_signature.RefitSignature`.
        refitted_from: For a plan whose weights were replaced, ``plan_sha256`` of the plan they
            were replaced in, and ``model``, what that one was built from.
        plugins: The plugins that it was built with, ``file`` and ``sha256`` of each.
    """

    producer: str
    plan_sha256: str
    plan_bytes: int
    backend: str
    backend_version: str
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    driver: str | None
    model: Mapping[str, Any]
    tensors: tuple[PlanTensor, ...]
    precision: Mapping[str, Any]
    passes: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Any]
    seconds: Mapping[str, float]
    created: str
    refit: Mapping[str, Any] | None = None
    refitted_from: Mapping[str, Any] | None = None
    plugins: tuple[Mapping[str, Any], ...] = ()

    def __repr__(self) -> str:
        return f"Manifest({self.describe()})"

    def describe(self) -> str:
        """The model, the precision and the library on one line."""
        library = f"{self.backend} {self.backend_version}"
        return f"{self.model['file']}, {self.arithmetic}, {library}"

    @property
    def schema(self) -> int:
        """Number of this layout: an earlier one where that says all there is to say."""
        new = any(t.alias or t.format or t.data_dependent for t in self.tensors)
        return MANIFEST_SCHEMA if new else _PLAIN_SCHEMA

    @property
    def arithmetic(self) -> str:
        """The applied precision, with the types of the model's own Q/DQ nodes."""
        types = ", ".join(map(str, self.precision.get("quantized_in_model", ())))
        return f"{self.precision['applied']}" + f" with Q/DQ nodes of {types}" * bool(types)

    def option_lines(self) -> list[tuple[str, tuple[str, ...]]]:
        """Build options by name, as lines of text: of profiles one for each, with its ranges."""
        return [
            (name, tuple(map(_ranges, value)) if name == "profiles" else (str(value),))
            for name, value in self.options.items()
        ]

    @property
    def inputs(self) -> tuple[PlanTensor, ...]:
        """The tensors to be supplied."""
        return tuple(tensor for tensor in self.tensors if tensor.mode == "input")

    @property
    def outputs(self) -> tuple[PlanTensor, ...]:
        """The tensors that come back."""
        return tuple(tensor for tensor in self.tensors if tensor.mode == "output")

    @property
    def metadata(self) -> Mapping[str, str]:
        """Metadata that our export wrote to the ONNX file: entries that start ``trt_native.``."""
        noted: Mapping[str, str] = self.model.get("metadata", {})
        return noted

    def build_config(self) -> BuildConfig:
        """The configuration that the plan was built with.

        Raises:
            PlanError: the recorded options are not those of a build.
        """
        try:
            return BuildConfig.from_options(self.options)
        except SpecError as error:
            raise PlanError(f"malformed manifest: options: {error.message}") from None

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; ``schema`` comes first."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data["tensors"] = [tensor.to_json() for tensor in self.tensors]
        data["compute_capabilities"] = list(self.compute_capabilities)
        data["passes"] = [dict(record) for record in self.passes]
        for name in ("refit", "refitted_from"):
            if data[name] is None:
                del data[name]
        data["plugins"] = [dict(record) for record in self.plugins]
        if not self.plugins:
            del data["plugins"]
        return {"schema": self.schema, **data}

    @classmethod
    def from_json(cls, data: object) -> Manifest:
        """The inverse of :meth:`to_json`.

        Properties that this version does not know are ignored, as
        ``include/plan_manifest.schema.json`` asks of every reader.

        Raises:
            PlanError: another schema, or a field is missing or malformed.
        """
        schema = data.get("schema") if isinstance(data, dict) else type(data).__name__
        if not isinstance(data, dict) or schema not in range(1, MANIFEST_SCHEMA + 1):
            raise PlanError(
                f"manifest of schema {schema!r}, this version reads 1 to {MANIFEST_SCHEMA}"
            )
        try:
            if schema == 1:
                data = from_schema_1(data)
            _check_types(data, _MANIFEST_TYPES, "")
            _check_types(data["model"], _MODEL_TYPES, "model.")
            for item in data["model"]["external"]:
                _check_types(item, _FILE_TYPES, "model.external.")
            noted = data["model"].get("metadata", {})
            _check_types(noted, dict.fromkeys(noted, (str,)), "model.metadata.")
            _check_types(data["precision"], _PRECISION_TYPES, "precision.")
            if "quantized_in_model" in data["precision"]:
                _check_types(data["precision"], {"quantized_in_model": (list,)}, "precision.")
            if (found := data["precision"].get("engine_layers")) is not None:
                optional = {name: (list,) for name in ("int8", "fp8") if name in found}
                _check_types(found, {"layers": (int,), **optional}, "precision.engine_layers.")
            for item in data["passes"]:
                _check_types(item, _PASS_TYPES, "passes.")
            for item in data.get("plugins", ()):
                _check_types(item, {"file": (str,), "sha256": (str,)}, "plugins.")
            if "refit" in data:
                _check_types(data["refit"], _REFIT_TYPES, "refit.")
                weights = data["refit"]["weights"]
                _check_types(weights, dict.fromkeys(weights, (str,)), "refit.weights.")
            known = [name for name in cls.__dataclass_fields__ if name in data]
            fields = {name: data[name] for name in known}
            fields["tensors"] = tuple(PlanTensor.from_json(item) for item in data["tensors"])
            fields["passes"] = tuple(data["passes"])
            fields["plugins"] = tuple(data.get("plugins", ()))
            fields["compute_capabilities"] = tuple(map(str, data["compute_capabilities"]))
            json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair is not text
            _check_profiles(fields["tensors"])
            _check_aliases(fields["tensors"])
            return cls(**fields)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(f"malformed manifest: {type(error).__name__}: {error}") from None


def _ranges(profile: Mapping[str, Any]) -> str:
    ranges = {**profile.get("dims", {}), **profile.get("shapes", {})}
    return " ".join(f"{name}={text}" for name, text in ranges.items())


def find_model(manifest: Manifest, plan: Path) -> tuple[Path | None, str]:
    """Look for the ONNX file of a plan next to it, and nowhere else.

    Returns:
        The file, if it is there, and one line on whether it is the one the plan was built from.

    Raises:
        PlanError: the file is there and cannot be read.
    """
    name = str(manifest.model["file"])
    path = plan.parent / name
    try:
        if not is_within(path, plan.parent.resolve()):
            return None, f"{name!r} lies outside the plan's folder, which is not followed"
        if not path.is_file():
            digits = manifest.model["sha256"][:16]
            return None, f"{name} (SHA-256 {digits}...) is not next to the plan; put it there"
        same = path.stat().st_size == manifest.model["bytes"]
        same = same and sha256_of_file(path) == manifest.model["sha256"]
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null byte
        raise PlanError(f"cannot read {path}: {error}") from None
    if same:
        return path, f"{name} next to it is the file that it was built from"
    return path, f"{name} next to it has changed since the plan was built"


def _check_types(data: Any, types: Mapping[str, tuple[type, ...]], where: str) -> None:
    """Check the properties that readers rely on; the schema file is stricter than that.

    Raises:
        KeyError, TypeError: a property is missing, or of another type.
    """
    if not isinstance(data, dict):
        raise TypeError(f"{where.rstrip('.')} is not an object")
    for name, allowed in types.items():
        if name not in data:
            raise KeyError(f"{where}{name}")
        if not isinstance(data[name], allowed) or isinstance(data[name], bool):
            raise TypeError(f"{where}{name} is {type(data[name]).__name__}")


def _check_profiles(tensors: Iterable[PlanTensor]) -> None:
    """Check that every dynamic input has a range for each axis in each profile, and outputs none.

    Raises:
        ValueError: one has not.
    """
    tensors = tuple(tensors)
    count = max((len(t.profiles or t.values) for t in tensors if t.mode == "input"), default=0)
    for tensor in tensors:
        is_input = tensor.mode == "input"
        allowed = {count} if is_input and -1 in tensor.shape else {0, count if is_input else 0}
        for ranges in (tensor.profiles, tensor.values):
            if len(ranges) not in {*allowed, 0}:
                raise ValueError(f"{len(ranges)} profiles of tensor {tensor.name!r}")
        if not {len(tensor.profiles), len(tensor.values)} & allowed:
            raise ValueError(f"no profiles of tensor {tensor.name!r}")
        if any(len(shapes.min) != len(tensor.shape) for shapes in tensor.profiles):
            raise ValueError(f"profiles of tensor {tensor.name!r} have another rank")


def _check_aliases(tensors: Iterable[PlanTensor]) -> None:
    """Check that each alias is an input of the same type and shape, which no other output has.

    Raises:
        ValueError: one is not.
    """
    tensors = tuple(tensors)
    inputs = {t.name: t for t in tensors if t.mode == "input"}
    taken = set()
    for tensor in tensors:
        if tensor.alias is None:
            continue
        other = inputs.get(tensor.alias)
        if tensor.mode == "input" or other is None or tensor.alias in taken:
            raise ValueError(f"alias {tensor.alias!r} of tensor {tensor.name!r}")
        if (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
            raise ValueError(f"tensor {tensor.name!r} differs from its alias {tensor.alias!r}")
        taken.add(tensor.alias)


def manifest_path(plan: Path) -> Path:
    """Path of a plan's manifest, whether or not it exists."""
    return Path(f"{plan}.json")


def runtime_cache_path(plan: Path) -> Path:
    """Path of the kernels that TensorRT-RTX compiled for a plan, whether or not it exists."""
    return Path(f"{plan}.cache")


def read_manifest(plan: Path) -> Manifest | None:
    """Read the manifest next to a plan, without reading the plan; None if there is none.

    For a link without one, it is the manifest next to the file that the link leads to.

    Raises:
        PlanError: there is one, but it cannot be read.
    """
    path = manifest_path(plan)
    try:
        return Manifest.from_json(json.loads(read_text_file(path)))
    except FileNotFoundError:
        return read_manifest(plan.resolve()) if plan.is_symlink() else None
    except OSError as error:
        reason, advice = f"cannot be read: {error.strerror}", "delete it or build again"
    except (ValueError, RecursionError) as error:
        reason, advice = f"cannot be read: {error}", "delete it or build again"
    except PlanError as error:
        reason, advice = error.message, "build the plan again"
    raise PlanError(
        f"{path}: {reason}; {advice}, or ignore the manifest", options=("ignore_manifest",)
    )
