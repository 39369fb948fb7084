"""TensorRT's calibration cache, and next to it a JSON file with the origin of the ranges.

A cache is text: a header such as ``TRT-101601-EntropyCalibration2``, then for each tensor its name,
``": "`` and the eight hexadecimal digits of its float32 scale, most significant byte first.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trt_native.errors import CalibrationError, SpecError
from trt_native.files import read_text_file, save_with_json
from trt_native.shapes import parse_shape

__all__ = [
    "LEVELS",
    "PROVENANCE_SCHEMA",
    "CalibrationCache",
    "Provenance",
    "TensorRange",
    "cache_header",
    "provenance_path",
]

LEVELS = 127
"""The largest INT8 value: a scale is a range divided by this."""

PROVENANCE_SCHEMA = 1
"""Number of the JSON file's layout; a change that would break readers raises it."""

_HEADER = re.compile(r"TRT-\d+-\w+", re.ASCII)
_EXAMPLE = "TRT-101601-EntropyCalibration2"
_SCALE = re.compile(r"[0-9a-f]{8}")
_LAST_MAJOR = 10


def cache_header(version: str, algorithm: str = "EntropyCalibration2") -> str:
    """The first line of a cache that this TensorRT accepts.

    Args:
        version: TensorRT's version, such as ``10.16.1``; further parts do not matter.
        algorithm: ``EntropyCalibration2`` or ``MinMaxCalibration``: the calibrator that reads it.

    Raises:
        SpecError: not a version of TensorRT that reads calibration caches.
    """
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:\.\d+)*", version)
    if match is None:
        raise SpecError(f"not a version of TensorRT: {version!r}; write for example 10.16.1")
    major, minor, patch = (int(part or 0) for part in match.groups())
    if major > _LAST_MAJOR:
        raise SpecError(
            f"TensorRT {version} reads no calibration caches, {_LAST_MAJOR} was the last to;"
            " name a version of that"
        )
    # The major version takes the digits above the thousands up to 9.x, the ten thousands since.
    number = major * (10000 if major == _LAST_MAJOR else 1000) + minor * 100 + patch
    return f"TRT-{number}-{algorithm}"


@dataclass(frozen=True, slots=True)
class TensorRange:
    """Range of one tensor, found by calibration.

    Attributes:
        amax: The largest absolute value seen.
        threshold: The absolute value that becomes the largest quantized one; the rest saturates.
    """

    amax: float
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Origin of the ranges of a cache.

    Attributes:
        producer: Program and version that calibrated.
        model: ``file``, ``sha256``, ``bytes`` of the ONNX file and the same for each file of
            ``external`` weights.
        method: Method that derives ranges from values, such as ``entropy`` or ``percentile 99.99``.
        runner: The program that ran the model, such as ``onnx.reference``.
        batches: Number of batches, the calibration's samples.
        shapes: For each input, the different shapes it had, such as ``1x3x8x8``.
        ranges: For each tensor of the cache, its range; empty where only scales are known.
        skipped: Tensors that were looked at and have no range, with the reason.
        created: UTC time in ISO 8601.
        schema: Number of this layout.
    """

    producer: str
    model: Mapping[str, Any]
    method: str
    runner: str
    batches: int
    shapes: Mapping[str, tuple[str, ...]]
    ranges: Mapping[str, TensorRange]
    skipped: Mapping[str, str]
    created: str
    schema: int = PROVENANCE_SCHEMA

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; ``schema`` comes first."""
        data = asdict(self)
        data["shapes"] = {name: list(shapes) for name, shapes in self.shapes.items()}
        return {"schema": data.pop("schema"), **data}

    @classmethod
    def from_json(cls, data: object) -> Provenance:
        """The inverse of :meth:`to_json`; further keys are ignored.

        Raises:
            CalibrationError: another schema, or a field is missing or malformed.
        """
        if not isinstance(data, dict) or data.get("schema") != PROVENANCE_SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise CalibrationError(
                f"provenance of schema {found!r}, this version reads {PROVENANCE_SCHEMA}"
            )
        try:
            fields = {name: data[name] for name in cls.__dataclass_fields__}
            _check_texts(data, ("producer", "method", "runner", "created"))
            for file in (data["model"], *data["model"]["external"]):
                _check_texts(file, ("file", "sha256"))
            _check_texts(data["skipped"], data["skipped"].keys())
            fields["batches"] = operator.index(data["batches"])
            fields["shapes"] = {name: _shapes(texts) for name, texts in data["shapes"].items()}
            fields["ranges"] = {
                name: TensorRange(_magnitude(entry["amax"]), _magnitude(entry["threshold"]))
                for name, entry in data["ranges"].items()
            }
            return cls(**fields)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CalibrationError(
                f"malformed provenance: {type(error).__name__}: {error}"
            ) from None


@dataclass(frozen=True, slots=True)
class CalibrationCache:
    """The scales of a model's tensors.

    Attributes:
        header: The first line: TensorRT's version and the algorithm.
        scales: Tensor to scale, a float32 above 0: the value that INT8 1 stands for. Names of
            tensors that a model does not have, such as ``(Unnamed Layer* 9) [Constant]_output``,
            occur in what TensorRT writes.
        provenance: Their origin; None for a cache without it.

    Raises:
        CalibrationError: no header, or a name or scale that a cache cannot hold.
    """

    header: str
    scales: Mapping[str, float]
    provenance: Provenance | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not _HEADER.fullmatch(self.header):
            raise CalibrationError(
                f"not a calibration cache's header: {self.header[:80]!r}; such as {_EXAMPLE}"
            )
        for name, scale in self.scales.items():
            if "\n" in name:
                raise CalibrationError(f"tensor {name!r}: a cache cannot hold line ends in a name")
            narrowed = None if _float32(scale) == scale else "not a float32"
            if problem := _scale_problem(scale) or narrowed:
                raise CalibrationError(f"scale of {name!r} is {scale}, which is {problem}")

    @classmethod
    def from_ranges(cls, header: str, provenance: Provenance) -> CalibrationCache:
        """A cache of the ranges that a calibration found.

        Raises:
            CalibrationError: a range is too large or too small for a float32 scale.
        """
        scales = {}
        for name, found in provenance.ranges.items():
            scale = _float32(found.threshold / LEVELS)
            if problem := _scale_problem(scale):
                raise CalibrationError(
                    f"the range of {name!r} is {found.threshold}, its scale {problem}"
                )
            scales[name] = scale
        return cls(header, scales, provenance)

    @classmethod
    def parse(cls, data: bytes) -> CalibrationCache:
        """Read a cache's bytes; :meth:`to_bytes` gives them back as they are.

        Only a missing line end after the last entry is added.

        Raises:
            CalibrationError: the bytes are not a calibration cache, or a line of it is damaged.
        """
        if not data:
            raise CalibrationError("not a calibration cache: it is empty; calibrate again")
        try:
            header, *lines = data.decode("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            raise CalibrationError("not a calibration cache: it is not text") from None
        if not _HEADER.fullmatch(header):
            raise CalibrationError(
                f"not a calibration cache: it starts with {header[:80]!r}, not with a header such"
                f" as {_EXAMPLE}"
            )
        scales: dict[str, float] = {}
        for number, line in enumerate(lines, 2):
            # A name may itself hold colons.
            name, separator, digits = line.rpartition(": ")
            if not separator or not _SCALE.fullmatch(digits):
                raise CalibrationError(
                    f"line {number}: {line[:80]!r} is not a name, ': ' and eight lowercase"
                    " hexadecimal digits; copy the cache again, or calibrate again"
                )
            (scale,) = struct.unpack(">f", bytes.fromhex(digits))
            if problem := _scale_problem(scale):
                raise CalibrationError(
                    f"line {number}: scale of {name!r} is {problem} ({digits}); calibrate again"
                )
            if name in scales:
                raise CalibrationError(f"line {number}: a second scale of {name!r}; delete one")
            scales[name] = scale
        return cls(header, scales)

    def to_bytes(self) -> bytes:
        """The cache as TensorRT reads it."""
        lines = (
            f"{name}: {struct.pack('>f', scale).hex()}\n" for name, scale in self.scales.items()
        )
        return f"{self.header}\n{''.join(lines)}".encode()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationCache:
        """Read a cache and, where ``path`` + ``.json`` exists, its provenance.

        The header may have been rewritten since; the entries must be those the JSON file describes.

        Raises:
            CalibrationError: the file is missing or no calibration cache, or its JSON file is
                damaged or belongs to other scales.
        """
        source = Path(path)
        try:
            data = read_text_file(source)
        except OSError as error:
            raise CalibrationError(f"cannot read {source}: {error.strerror}") from None
        try:
            cache = cls.parse(data)
        except CalibrationError as error:
            raise CalibrationError(f"{source}: {error}") from None
        return cls(cache.header, cache.scales, _read_provenance(source, cache))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the cache to ``path`` and its provenance to ``path`` + ``.json``.

        Both are complete on disk or not there at all; a file that was there before stays until
        both new ones are ready.

        Raises:
            CalibrationError: the folder cannot be written to, or the disk is full.
        """
        target = Path(path)
        try:
            document = None
            if self.provenance is not None:
                entries_sha256 = self._entries_sha256()
                document = {**self.provenance.to_json(), "entries_sha256": entries_sha256}
            save_with_json(target, self.to_bytes(), provenance_path(target), document)
        except OSError as error:
            raise CalibrationError(
                f"cannot write {target}: {error.strerror or error}; no partial file was written"
            ) from error
        return target

    def threshold(self, name: str) -> float:
        """The absolute value of tensor ``name`` that becomes INT8 127.

        Raises:
            KeyError: the cache has no such tensor.
        """
        return self.scales[name] * LEVELS

    def amax(self, name: str) -> float | None:
        """The largest absolute value that calibration saw in ``name``; None where not recorded."""
        recorded = self.provenance.ranges.get(name) if self.provenance else None
        return recorded.amax if recorded else None

    def check_model(self, files: Mapping[str, Any]) -> None:
        """Make sure that the ranges are those of this model, as far as the provenance records it.

        Args:
            files: The result of :func:`trt_native.graph.onnx_file.hash_files` for the model. File
                names do not matter, contents do.

        Raises:
            CalibrationError: they are another model's.
        """
        if self.provenance is None:
            return
        made_for = self.provenance.model
        if _contents(made_for) != _contents(files):
            raise CalibrationError(
                f"the calibration cache was made for another model: {made_for['file']}"
                f" (SHA-256 {made_for['sha256'][:16]}...), this is {files['file']}"
                f" ({files['sha256'][:16]}...), or their weights differ; calibrate this one"
            )

    def _entries_sha256(self) -> str:
        return hashlib.sha256(self.to_bytes().partition(b"\n")[2]).hexdigest()


def _scale_problem(scale: float) -> str | None:
    """The reason why a number is not a scale; None where it is one."""
    if math.isfinite(scale) and scale > 0:
        return None
    return "not finite" if not math.isfinite(scale) else "not above 0"


def _float32(value: float) -> float:
    try:
        rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.inf
    return rounded


def _contents(files: Mapping[str, Any]) -> list[str]:
    return [str(files["sha256"]), *(entry["sha256"] for entry in files["external"])]


def _check_texts(data: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if not isinstance(data[name], str):
            raise TypeError(f"{name} is {type(data[name]).__name__}")


def _shapes(texts: Any) -> tuple[str, ...]:
    """Texts such as ``1x3x8x8``; a SpecError is a ValueError."""
    if not isinstance(texts, list):
        raise TypeError(f"shapes are {type(texts).__name__}")
    for text in texts:
        parse_shape(text)
    return tuple(texts)


def _magnitude(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"a magnitude of {number}")
    return number


def provenance_path(cache: Path) -> Path:
    """The JSON file that goes with a cache."""
    return Path(f"{cache}.json")


def _read_provenance(source: Path, cache: CalibrationCache) -> Provenance | None:
    path = provenance_path(source)
    try:
        data = json.loads(read_text_file(path))
        provenance = Provenance.from_json(data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CalibrationError(
            f"{path}: cannot be read: {reason}; delete it or calibrate again"
        ) from None
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}; delete it or calibrate again") from None
    if data.get("entries_sha256") != cache._entries_sha256():
        raise CalibrationError(
            f"{source}: its scales are not those that {path.name} describes: one of the two was"
            " changed or replaced; copy both again, or delete the JSON file to go on without it"
        )
    return provenance
