"""A folder of calibration batches: one ``.npz`` file for each, and a manifest.

The arrays of a batch are in its file under the names of the model's inputs. ``manifest.json`` says
which files there are, what is in them and where they come from; see ``calib_data/README.md``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_native.arrays import Array, Batch, member_of
from trt_native.errors import CalibrationError, SpecError
from trt_native.files import read_text_file
from trt_native.shapes import Shape, TensorSpec

__all__ = [
    "DATA_MANIFEST_SCHEMA",
    "MANIFEST_NAME",
    "DataManifest",
    "check_new_folder",
    "read_data_manifest",
    "write_batches",
]

MANIFEST_NAME = "manifest.json"
"""The file in a folder of batches that describes it."""

DATA_MANIFEST_SCHEMA = 1
"""Number of that file's layout; a change that would break readers raises it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataManifest:
    """Manifest of a folder of batches.

    Attributes:
        model: The model the data is for, in words.
        inputs: The arrays of every batch; an extent is None where batches differ in it.
        batches: One entry per batch, in order: its ``file``, and further facts about it, such
            as its ``timestep``.
        origin: Origin of the data: program, seed, and the like.
        schema: Number of this layout.
    """

    model: str
    inputs: tuple[TensorSpec, ...]
    batches: tuple[Mapping[str, Any], ...]
    origin: Mapping[str, Any]
    schema: int = DATA_MANIFEST_SCHEMA

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "schema": self.schema,
            "model": self.model,
            "inputs": [
                {"name": i.name, "dtype": i.dtype, "shape": i.shape and list(i.shape)}
                for i in self.inputs
            ],
            "batches": [dict(batch) for batch in self.batches],
            "origin": dict(self.origin),
        }

    @classmethod
    def from_json(cls, data: object) -> DataManifest:
        """The inverse of :meth:`to_json`.

        Raises:
            CalibrationError: another schema, or a field is missing or malformed.
        """
        if not isinstance(data, dict) or data.get("schema") != DATA_MANIFEST_SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise CalibrationError(
                f"manifest of schema {found!r}, this version reads {DATA_MANIFEST_SCHEMA}"
            )
        try:
            return cls(
                model=str(data["model"]),
                inputs=tuple(
                    TensorSpec(
                        str(item["name"]),
                        str(item["dtype"]),
                        None if item["shape"] is None else tuple(item["shape"]),
                    )
                    for item in data["inputs"]
                ),
                batches=tuple({**item, "file": _file_name(item)} for item in data["batches"]),
                origin=dict(data["origin"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CalibrationError(f"malformed manifest: {type(error).__name__}: {error}") from None


def _file_name(entry: Mapping[str, Any]) -> str:
    name = str(entry["file"])
    if Path(name).name != name or name in ("", "..") or "\0" in name:
        raise ValueError(f"{name!r} is not a file in its folder")
    return name


def read_data_manifest(folder: Path) -> DataManifest | None:
    """The manifest of a folder; None where it has none.

    Raises:
        CalibrationError: it cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        return DataManifest.from_json(json.loads(read_text_file(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CalibrationError(f"{path}: cannot be read: {reason}") from None
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}") from None


def check_new_folder(folder: Path) -> None:
    """Find out now, not after long work, whether a folder can be made at ``folder``.

    Raises:
        SpecError: something is there already, other than an empty folder, or nothing can be
            written there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"cannot write {folder}: it is there already; name a new folder")
    try:
        with tempfile.TemporaryFile(dir=folder.absolute().parent):
            pass
    except OSError as error:
        raise SpecError(f"cannot write {folder}: {error.strerror} ({folder.parent})") from None


def write_batches(
    folder: str | os.PathLike[str],
    batches: Iterable[Batch],
    *,
    model: str,
    origin: Mapping[str, Any] | None = None,
    notes: Sequence[Mapping[str, Any]] = (),
) -> DataManifest:
    """Write a folder of batches with its manifest; all of it, or nothing.

    The same batches give the same bytes. Types that ``.npy`` files do not know (bfloat16, float8)
    become float32.

    Args:
        folder: A folder that is not there yet, or is empty.
        batches: The batches to write; all need the same names and dtypes.
        model: The model the data is for, in words.
        origin: Origin of the data; as JSON can hold it.
        notes: Facts about each batch, such as its timestep; as JSON can hold it.

    Raises:
        SpecError: the folder is there already, or cannot be made.
        CalibrationError: there are no batches, they differ in names or dtypes, or they cannot be
            written.
    """
    target = Path(folder)
    check_new_folder(target)
    parts = target.absolute()
    temporary = parts.with_name(f".{parts.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        manifest = _write_files(temporary, batches, model, origin or {}, notes)
        temporary.replace(parts)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        left = f"; remove {temporary}" if temporary.exists() else "; no partial file was written"
        raise CalibrationError(f"cannot write {target}: {error.strerror or error}{left}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _write_files(
    folder: Path,
    batches: Iterable[Batch],
    model: str,
    origin: Mapping[str, Any],
    notes: Sequence[Mapping[str, Any]],
) -> DataManifest:
    entries = []
    types: dict[str, np.dtype[Any]] = {}
    shapes: dict[str, list[Shape]] = {}
    for number, batch in enumerate(batches):
        arrays = {name: _storable(array) for name, array in batch.items()}
        found = {name: array.dtype for name, array in arrays.items()}
        types = types or found
        if found != types:
            raise CalibrationError(
                f"batch {number} has {_listing(found)}, those before have {_listing(types)}"
            )
        for name, array in arrays.items():
            shapes.setdefault(name, []).append(array.shape)
        file = f"batch_{number:04d}.npz"
        _write_npz(folder / file, arrays)
        entries.append({"file": file, **(notes[number] if notes else {})})
    if not entries:
        raise CalibrationError("there are no batches to write")
    manifest = DataManifest(
        model=model,
        inputs=tuple(
            TensorSpec(name, str(dtype), _common(shapes[name])) for name, dtype in types.items()
        ),
        batches=tuple(entries),
        origin=origin,
    )
    text = json.dumps(manifest.to_json(), indent=1)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
    return manifest


def _storable(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _listing(types: Mapping[str, np.dtype[Any]]) -> str:
    return ", ".join(f"{name}: {dtype}" for name, dtype in types.items()) or "no arrays"


def _common(shapes: Sequence[Shape]) -> tuple[int | None, ...] | None:
    if len({len(shape) for shape in shapes}) > 1:
        return None
    return tuple(axis[0] if len(set(axis)) == 1 else None for axis in zip(*shapes, strict=True))


def _write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    # Not numpy.savez: it takes the names as keywords, so an input called "file" would not do.
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(member_of(name))
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
