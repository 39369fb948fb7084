"""A plan: TensorRT's serialized engine, and the manifest that tells what it is.

The ``.plan`` file holds TensorRT's bytes and nothing else, so that trtexec, Triton and C++ programs
load it as it is. What else must be known stands in ``NAME.plan.json`` beside it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import secrets
import shlex
import stat
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from trt_native.errors import PlanError, SpecError
from trt_native.spec import BuildConfig, ShapeRange, format_bytes

__all__ = [
    "MANIFEST_SCHEMA",
    "Environment",
    "Manifest",
    "Plan",
    "PlanHeader",
    "PlanTensor",
    "Verdict",
    "check_writable",
    "compatibility",
    "find_model",
    "is_within",
    "manifest_path",
    "open_regular",
    "read_manifest",
    "read_text_file",
    "rebuild_command",
    "remove_temporaries",
    "replacing",
    "set_run_token",
    "sha256_of_file",
]

MANIFEST_SCHEMA = 1
"""Number of the manifest's layout; a change that would break readers raises it."""

_HEADER_BYTES = 32
_MOST_TEXT_BYTES = 256 * 2**20
_CHUNK = 16 * 2**20
_PRODUCTS = {b"ftrt": "TensorRT", b"vtrt": "TensorRT-RTX"}

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
    "options": (dict,),
    "seconds": (dict,),
    "created": (str,),
}
_FILE_TYPES: dict[str, tuple[type, ...]] = {"file": (str,), "bytes": (int,), "sha256": (str,)}
_MODEL_TYPES = {**_FILE_TYPES, "external": (list,)}
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
class PlanHeader:
    """What the first bytes of a plan say.

    Attributes:
        product: ``TensorRT`` or ``TensorRT-RTX``.
        version: Version of that library: major, minor, patch, build (modulo 256 each).
        declared_bytes: Length of the whole plan as the header states it; None where the layout
            of the header is not known to hold it.
    """

    product: str
    version: tuple[int, int, int, int]
    declared_bytes: int | None

    @classmethod
    def parse(cls, data: bytes | memoryview) -> PlanHeader:
        """Read the header; ``data`` needs the first 32 bytes of a plan.

        The four tag bytes and the version at bytes 24 to 27 are what trtexec's
        ``--getPlanVersionOnly`` reads; the length at bytes 16 to 23 was read off the plans that
        TensorRT-RTX 1.4 to 1.7 write.

        Raises:
            PlanError: the data is too short or does not start with a plan's tag.
        """
        head = bytes(data[:_HEADER_BYTES])
        if len(head) < _HEADER_BYTES:
            raise PlanError(f"not a TensorRT plan: only {len(head)} bytes long")
        product = _PRODUCTS.get(head[:4])
        if product is None:
            raise PlanError(
                f"not a TensorRT plan: it starts with {head[:4]!r} instead of b'ftrt' or b'vtrt'"
            )
        (length,) = struct.unpack_from("<Q", head, 16)
        declared = length if product == "TensorRT-RTX" else None
        return cls(product, (head[24], head[25], head[26], head[27]), declared)

    @property
    def version_text(self) -> str:
        """The version as TensorRT writes it, such as ``1.6.1.120``."""
        return ".".join(map(str, self.version))

    def mismatch(self, product: str, version: str) -> str | None:
        """Why a library of this name and version will not load the plan; None if it should.

        TensorRT loads only plans of its own exact version, unless a plan was built to be version
        compatible, which its header does not tell: then only the major version decides here.
        """
        if product != self.product:
            return f"the plan is for {self.product} {self.version_text}, not for {product}"
        if self.product == "TensorRT-RTX":
            return self.mismatch_exact(version)
        return None if _numbers(version)[:1] == self.version[:1] else self.mismatch_exact(version)

    def mismatch_exact(self, version: str) -> str | None:
        """As :meth:`mismatch`, where only the plan's exact version will do."""
        wanted = tuple(number % 256 for number in _numbers(version)[:4])
        if wanted == self.version[: len(wanted)]:
            return None
        return (
            f"the plan was built by {self.product} {self.version_text}, here is {version};"
            " install that version or build the plan again"
        )


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
    """

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...]
    dims: tuple[str | None, ...] = ()
    profiles: tuple[ShapeRange, ...] = ()
    values: tuple[ShapeRange, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, ranges as ``MIN:OPT:MAX``."""
        data = asdict(self)
        data["shape"] = list(self.shape)
        data["dims"] = list(self.dims)
        data["profiles"] = [str(item) for item in self.profiles]
        data["values"] = [str(item) for item in self.values]
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
        )

    def describe_shape(self) -> str:
        """The shape for a person: extents, and the symbolic name where an axis is dynamic."""
        names = self.dims or (None,) * len(self.shape)
        axes = [
            str(extent) if extent >= 0 else (name or "?")
            for extent, name in zip(self.shape, names, strict=True)
        ]
        return " x ".join(axes) or "scalar"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Where a plan comes from and what it needs.

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
        precision: What was asked for and what was done.
        options: Every build option that differs from its default.
        seconds: How long each part of the build took.
        created: UTC time in ISO 8601.
        refit: For a plan whose weights can be replaced, ``structure`` and ``weights`` of the graph
            that TensorRT parsed, as in :class:`~trt_native.graph.fingerprint.Fingerprint`.
        refitted_from: For a plan whose weights were replaced, ``plan_sha256`` of the plan they
            were replaced in, and ``model``, what that one was built from.
        schema: Number of this layout.
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
    options: Mapping[str, Any]
    seconds: Mapping[str, float]
    created: str
    refit: Mapping[str, Any] | None = None
    refitted_from: Mapping[str, Any] | None = None
    schema: int = MANIFEST_SCHEMA

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
        """What our export noted in the ONNX file: entries whose names start ``trt_native.``."""
        noted: Mapping[str, str] = self.model.get("metadata", {})
        return noted

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; ``schema`` comes first."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data["tensors"] = [tensor.to_json() for tensor in self.tensors]
        data["compute_capabilities"] = list(self.compute_capabilities)
        for name in ("refit", "refitted_from"):
            if data[name] is None:
                del data[name]
        return {"schema": data.pop("schema"), **data}

    @classmethod
    def from_json(cls, data: object) -> Manifest:
        """The inverse of :meth:`to_json`.

        Properties that this version does not know are ignored, as
        ``include/plan_manifest.schema.json`` asks of every reader.

        Raises:
            PlanError: another schema, or a field is missing or malformed.
        """
        if not isinstance(data, dict) or data.get("schema") != MANIFEST_SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise PlanError(f"manifest of schema {found!r}, this version reads {MANIFEST_SCHEMA}")
        try:
            _check_types(data, _MANIFEST_TYPES, "")
            _check_types(data["model"], _MODEL_TYPES, "model.")
            for item in data["model"]["external"]:
                _check_types(item, _FILE_TYPES, "model.external.")
            noted = data["model"].get("metadata", {})
            _check_types(noted, dict.fromkeys(noted, (str,)), "model.metadata.")
            _check_types(data["precision"], _PRECISION_TYPES, "precision.")
            if "refit" in data:
                _check_types(data["refit"], _REFIT_TYPES, "refit.")
                weights = data["refit"]["weights"]
                _check_types(weights, dict.fromkeys(weights, (str,)), "refit.weights.")
            known = [name for name in cls.__dataclass_fields__ if name in data]
            fields = {name: data[name] for name in known}
            fields["tensors"] = tuple(PlanTensor.from_json(item) for item in data["tensors"])
            fields["compute_capabilities"] = tuple(map(str, data["compute_capabilities"]))
            json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair is no text
            _check_profiles(fields["tensors"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(f"malformed manifest: {type(error).__name__}: {error}") from None


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialized engine.

    Attributes:
        data: TensorRT's bytes. They may be memory that TensorRT owns; it lives as long as this.
        manifest: What is known of the plan; None for a plan that came without a manifest.
        path: Where it was loaded from, if it was.
    """

    data: bytes | memoryview = field(repr=False)
    manifest: Manifest | None = None
    path: Path | None = None

    @property
    def header(self) -> PlanHeader:
        """The plan's header.

        Raises:
            PlanError: the bytes are no plan.
        """
        return PlanHeader.parse(self.data)

    def check_complete(self) -> None:
        """Refuse a plan whose weights were left out, as far as its manifest tells.

        Raises:
            PlanError: they were.
        """
        if self.manifest is not None and self.manifest.options.get("strip_weights"):
            raise PlanError(
                f"{self.path or 'this plan'} cannot run: its weights were left out; put them in"
                " with 'trt-native refit PLAN --from MODEL.onnx -o FULL.plan'"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the plan to ``path`` and its manifest to ``path`` + ``.json``.

        Both are complete on disk or not there at all; a file that was there before stays until
        both new ones are ready.

        Raises:
            PlanError: the folder cannot be written to, or the disk is full.
        """
        target = Path(path)
        try:
            with contextlib.ExitStack() as files:
                files.enter_context(replacing(target)).write(self.data)
                if self.manifest is not None:
                    text = json.dumps(self.manifest.to_json(), indent=1)
                    json_file = files.enter_context(replacing(manifest_path(target)))
                    json_file.write(text.encode() + b"\n")
            if self.manifest is None:
                manifest_path(target).unlink(missing_ok=True)
        except OSError as error:
            needed = format_bytes(len(self.data))
            raise PlanError(
                f"cannot write {target} ({needed}): {error.strerror or error};"
                " nothing was left there"
            ) from error
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, ignore_manifest: bool = False) -> Plan:
        """Read a plan and, where one lies beside it, its manifest; check both.

        Args:
            path: The plan's file.
            ignore_manifest: Read the plan alone, as if it came from another tool.

        Raises:
            PlanError: the file is missing, is no plan, is truncated, or differs from what its
                manifest describes.
        """
        source = Path(path)
        try:
            with open_regular(source) as file:
                size = os.fstat(file.fileno()).st_size
                _check_header(source, file.read(_HEADER_BYTES), size)
                manifest = None if ignore_manifest else read_manifest(source)
                if manifest and manifest.plan_bytes != size:
                    raise _differs(source, f"{size} bytes instead of {manifest.plan_bytes}")
                file.seek(0)
                data, digest = _read_hashed(file, size, hashed=manifest is not None)
        except OSError as error:
            raise PlanError(f"cannot read {source}: {error.strerror}") from None
        if manifest and manifest.plan_sha256 != digest:
            raise _differs(source, "SHA-256 differs")
        return cls(data, manifest, source)


def _read_hashed(file: BufferedReader, size: int, *, hashed: bool) -> tuple[memoryview, str]:
    """A file's bytes and, if wanted, their SHA-256, which takes as long as reading: side by side.

    Raises:
        OSError: the file cannot be read, or is shorter now.
    """
    from concurrent.futures import ThreadPoolExecutor

    memory = memoryview(mmap.mmap(-1, size))  # unlike a bytearray it is not filled with zeros first
    digest = hashlib.sha256()
    chunks = [memory[start : start + _CHUNK] for start in range(0, size, _CHUNK)]
    with ThreadPoolExecutor(1) as reader:
        for chunk, read in zip(chunks, reader.map(file.readinto, chunks), strict=True):
            if read != len(chunk):
                raise OSError(errno.EIO, "became shorter while it was read")
            if hashed:
                digest.update(chunk)
    return memory.toreadonly(), digest.hexdigest()


def _check_header(path: Path, head: bytes, size: int) -> None:
    try:
        header = PlanHeader.parse(head)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None
    if header.declared_bytes not in (None, size):
        raise PlanError(
            f"{path}: damaged: its header says {header.declared_bytes} bytes,"
            f" the file has {size}; copy or build it again"
        )


def _differs(path: Path, difference: str) -> PlanError:
    return PlanError(
        f"{path}: its bytes are not those that {manifest_path(path).name} describes"
        f" ({difference}): the plan is damaged or was replaced; copy or build it again,"
        " or ignore the manifest (--no-manifest) if the plan came from another tool"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a machine has to load plans with.

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
class Verdict:
    """Whether a plan will load.

    Attributes:
        faults: Why it will not, gravest first; none if it should.
        doubts: What may still go wrong, or what loading alone does not give.
    """

    faults: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def loads(self) -> bool:
        """Whether nothing is known that prevents it."""
        return not self.faults


def compatibility(
    header: PlanHeader, manifest: Manifest | None, environment: Environment
) -> Verdict:
    """Judge a plan by its header and manifest, before TensorRT sees its bytes.

    Args:
        header: What the plan's first bytes say.
        manifest: What else is known; None for a plan that came without one.
        environment: The machine that is to load it.
    """
    faults, doubts = _library_verdict(header, manifest, environment)
    if environment.gpu is None:
        faults.append("loading a plan needs a GPU, and none is usable here")
        return Verdict(tuple(faults), tuple(doubts))
    if manifest is None:
        doubts.append("there is no manifest, so the GPU that the plan is for is not known")
        return Verdict(tuple(faults), tuple(doubts))
    for found, where in _gpu_verdict(header, manifest, environment):
        (faults if where == "fault" else doubts).append(found)
    return Verdict(tuple(faults), tuple(doubts))


def _library_verdict(
    header: PlanHeader, manifest: Manifest | None, environment: Environment
) -> tuple[list[str], list[str]]:
    product = header.product
    version = environment.libraries.get(product)
    if version is None:
        extra = "rtx" if product == "TensorRT-RTX" else "tensorrt"
        extra += "11" if extra == "tensorrt" and header.version[0] == 11 else ""
        present = " and ".join(f"{k} {v}" for k, v in environment.libraries.items())
        return [
            f"the plan needs {product} {header.version_text}, which is not installed"
            f" (found: {present or 'no TensorRT'}); pip install 'trt-native[{extra}]'"
        ], []
    exact = header.mismatch_exact(version)
    if exact is None:
        return [], []
    if product == "TensorRT-RTX" or (manifest is None and header.mismatch(product, version)):
        return [exact], []
    if manifest is None:
        return [], [f"{exact}, unless it was built version compatible"]
    if not manifest.options.get("version_compatible"):
        return [exact], []
    if _numbers(version) < header.version:
        return [f"{exact}; version compatible plans load in later versions only"], []
    return [], []


def _gpu_verdict(
    header: PlanHeader, manifest: Manifest, environment: Environment
) -> Iterator[tuple[str, str]]:
    """What the GPU, its driver and its memory mean for the plan: each a fault or a doubt."""
    gpu = f"{environment.gpu} (compute capability {environment.compute_capability})"
    here, built = environment.compute_capability, manifest.compute_capabilities
    if not _targets_gpu(manifest, here or ""):
        yield (
            f"the plan is for compute capability {' and '.join(built)}, this GPU is {gpu};"
            " build it again for this one",
            "fault",
        )
    targets = environment.targets.get(header.product, ())
    if header.product == "TensorRT-RTX":
        if targets and here not in targets:
            yield f"{header.product} does not officially support {gpu}", "doubt"
    elif manifest.gpu not in (None, environment.gpu):
        yield f"it was built and tuned on {manifest.gpu}, and may be slower on {gpu}", "doubt"
    if _numbers(environment.driver or "") < _numbers(manifest.driver or ""):
        yield (
            f"it was built under a driver for CUDA {manifest.driver}, here it is for CUDA"
            f" {environment.driver}",
            "doubt",
        )
    if environment.total_bytes is not None and not manifest.options.get("weight_streaming"):
        need = f"the plan is {format_bytes(manifest.plan_bytes)}, the GPU has"
        if manifest.plan_bytes > environment.total_bytes:
            yield f"{need} {format_bytes(environment.total_bytes)} of memory", "fault"
        elif manifest.plan_bytes > (environment.free_bytes or 0):
            yield f"{need} {format_bytes(environment.free_bytes or 0)} free", "doubt"
    if manifest.options.get("strip_weights"):
        yield "its weights were left out: refit it before it is run (trt-native refit)", "doubt"


def _targets_gpu(manifest: Manifest, capability: str) -> bool:
    built = manifest.compute_capabilities
    if not built or capability in built:
        return True
    ampere_plus = manifest.options.get("hardware_compatibility") == "ampere_plus"
    return ampere_plus and _numbers(capability) >= (8, 0)


def _numbers(version: str) -> tuple[int, ...]:
    # No part has more digits than Python converts.
    return tuple(int(part[:9]) for part in version.split(".") if part.isdecimal())


_OPTION_NAMES = {
    "workspace_bytes": "workspace",
    "compute_capabilities": "compute-capability",
    "calibration": "calib",
}
# Where timings are kept says nothing of the plan, and those of another GPU or version are refused.
_NOT_REPEATED = ("profiles", "timing_cache")


def rebuild_command(manifest: Manifest, plan: Path, environment: Environment | None = None) -> str:
    """The shell command that builds a plan again from what its manifest records.

    Args:
        manifest: The plan's manifest.
        plan: Where the plan shall be written; the ONNX file is taken to lie beside it.
        environment: The machine it shall load on; a plan that targets other GPUs is then built for
            this one. None repeats the build as it was.

    Raises:
        PlanError: the manifest's options are not those of a build.
    """
    try:
        return _rebuild_command(manifest, plan, environment)
    except (AttributeError, KeyError, TypeError) as error:
        raise PlanError(f"malformed manifest: options: {error}") from None


def _rebuild_command(manifest: Manifest, plan: Path, environment: Environment | None) -> str:
    model = plan.parent / Path(manifest.model["file"]).name
    words = ["trt-native", "build", str(model), "-o", str(plan)]
    words += ["--backend", "rtx" if manifest.backend == "rtx" else "tensorrt"]
    options = {k: v for k, v in manifest.options.items() if k not in _NOT_REPEATED}
    unknown = set(options) - set(BuildConfig.__dataclass_fields__)
    if unknown:
        raise PlanError(f"malformed manifest: no build options: {', '.join(sorted(unknown))}")
    for name, value in options.pop("quantization", {}).items():
        options[name] = ",".join(value) if name == "ops" else value
    here = environment.compute_capability if environment else None
    if here and options.get("compute_capabilities") and not _targets_gpu(manifest, here):
        options["compute_capabilities"] = [here]
    before, profile_words = _profile_words(manifest.options.get("profiles") or [], plan)
    words += profile_words
    for name, value in options.items():
        option = "--" + _OPTION_NAMES.get(name, name).replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            for item in value if isinstance(value, list) else [value]:
                words += [option, str(item)]
    return before + shlex.join(words)


def _profile_words(profiles: Any, plan: Path) -> tuple[str, list[str]]:
    """What must run before, and the words that give a build these profiles."""
    if len(profiles) > 1:
        file = str(plan.with_suffix(".profiles.json"))
        content = shlex.quote(json.dumps({"profiles": profiles}))
        return f"printf %s {content} > {shlex.quote(file)} && ", ["--profile", file]
    words = []
    for profile in profiles:
        for section, option in (("dims", "--dim"), ("shapes", "--shape")):
            for name, text in profile.get(section, {}).items():
                words += [option, f"{name}={text}"]
    return "", words


def find_model(manifest: Manifest, plan: Path) -> tuple[Path | None, str]:
    """Look for the ONNX file of a plan beside it, and nowhere else.

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
            return None, f"{name} (SHA-256 {digits}...) does not lie beside the plan; put it there"
        same = path.stat().st_size == manifest.model["bytes"]
        same = same and sha256_of_file(path) == manifest.model["sha256"]
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null byte
        raise PlanError(f"cannot read {path}: {error}") from None
    if same:
        return path, f"{name} beside it is the file that it was built from"
    return path, f"{name} beside it has changed since the plan was built"


def _check_types(data: Any, types: Mapping[str, tuple[type, ...]], where: str) -> None:
    """What the rest relies on; the schema file says more than a reader needs.

    Raises:
        KeyError, TypeError: a property is missing, or of another type.
    """
    if not isinstance(data, dict):
        raise TypeError(f"{where.rstrip('.')} is no object")
    for name, allowed in types.items():
        if name not in data:
            raise KeyError(f"{where}{name}")
        if not isinstance(data[name], allowed) or isinstance(data[name], bool):
            raise TypeError(f"{where}{name} is {type(data[name]).__name__}")


def _check_profiles(tensors: Iterable[PlanTensor]) -> None:
    """Every dynamic input has a range in each profile, for each of its axes; no output has any.

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


def manifest_path(plan: Path) -> Path:
    """Where the manifest of a plan lies, if it has one."""
    return plan.with_name(plan.name + ".json")


def read_manifest(plan: Path) -> Manifest | None:
    """Read the manifest beside a plan, without looking at the plan; None if there is none.

    Raises:
        PlanError: there is one, but it cannot be read.
    """
    path = manifest_path(plan)
    try:
        return Manifest.from_json(json.loads(read_text_file(path)))
    except FileNotFoundError:
        return None
    except OSError as error:
        reason, advice = f"cannot be read: {error.strerror}", "delete it or build again"
    except (ValueError, RecursionError) as error:
        reason, advice = f"cannot be read: {error}", "delete it or build again"
    except PlanError as error:
        reason, advice = error.message, "build the plan again"
    raise PlanError(f"{path}: {reason}; {advice}, or ignore it (--no-manifest)")


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path stays in a resolved folder, links followed; a loop of links does not.

    Raises:
        OSError, ValueError: it is too long, or no path.
    """
    try:
        return path.resolve().is_relative_to(folder)
    except RuntimeError:  # before Python 3.13, a loop
        return False


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading that is one: a pipe or a device might never end, or never begin.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "is a pipe or a device, not a file", str(path))


def read_text_file(path: Path) -> bytes:
    """Read a whole file of JSON or other text, of a size that such a file may have.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than 256 MiB.
    """
    with open_regular(path) as file:
        content = file.read(_MOST_TEXT_BYTES + 1)
    if len(content) > _MOST_TEXT_BYTES:
        raise OSError(errno.EFBIG, f"is larger than {format_bytes(_MOST_TEXT_BYTES)}", str(path))
    return content


_run_token = secrets.token_hex(4)


def set_run_token(token: str) -> None:
    """Give the temporary files of this process a mark by which another process can find them."""
    global _run_token
    _run_token = token


def remove_temporaries(folder: Path, token: str) -> None:
    """Remove the temporary files that a process with this mark left in ``folder`` when it died.

    There are none where the filesystem has files without a name; see :func:`replacing`.
    """
    for path in folder.glob(f".*.{token}-*"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` once the block ends, and only if it succeeds.

    Where the filesystem can do it, the file has no name until it is complete, so that nothing is
    left even of a process that is killed. Elsewhere (NFS, for one) it has a temporary name.

    Args:
        path: The file to be.
        durable: Wait until the content is on disk, so that it outlives a loss of power.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is a folder, a pipe or a device", str(path))
    temporary = path.with_name(f".{path.name[:50]}.{_run_token}-{secrets.token_hex(2)}")
    unnamed = _open_unnamed(path.parent)
    try:
        with unnamed or temporary.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if unnamed is not None:
                # A source directory, though unused, makes Python call linkat, which follows links.
                link = f"/proc/self/fd/{file.fileno()}"
                os.link(link, temporary, src_dir_fd=file.fileno(), follow_symlinks=True)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _open_unnamed(folder: Path) -> BinaryIO | None:
    """A file without a name in ``folder``; None where there is no such thing."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.fdopen(os.open(folder, flag | os.O_WRONLY, 0o666), "wb")
    except OSError:  # opening it by name will tell what is wrong, if anything is
        return None


def check_writable(path: Path, *, reads: Iterable[Path | None] = ()) -> None:
    """Find out now, not after long work, whether a file can be created at ``path``.

    Args:
        path: The file to be.
        reads: Files that the work reads, which must not be replaced by what it makes.

    Raises:
        SpecError: it cannot, or must not.
    """
    if any(_same_file(path, file) for file in reads if file is not None):
        raise SpecError(f"cannot write {path}: it is one of the files to read; name another")
    if path.is_dir():
        raise SpecError(f"cannot write {path}: it is a folder; name a file in it")
    try:
        if path.exists() and not path.is_file():
            raise SpecError(f"cannot write {path}: it is a pipe or a device; name a file")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SpecError(f"cannot write {path}: {error.strerror} ({path.parent})") from None


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one is not there
        return False


def sha256_of_file(path: Path, on_read: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's content as 64 hexadecimal digits.

    Args:
        path: The file.
        on_read: Told, again and again, how many bytes have been read.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if on_read is not None:
                on_read(file.tell())
    return digest.hexdigest()
