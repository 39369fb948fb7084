"""Protection of every file that a command reads from every file that it writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from trt_native.errors import ModelError, SpecError
from trt_native.files import check_companion, check_writable, open_regular_file, source_file
from trt_native.plans.header import PlanHeader

__all__ = ["check_outputs"]

_DATA = (".bin", ".npy", ".npz", ".pt", ".safetensors")
_HEAD_BYTES = 4096
_DESCRIPTIONS = ("config.json", "manifest.json")


def check_outputs(
    outputs: Iterable[Path],
    *,
    reads: Iterable[str | Path | None] = (),
    models: Iterable[Path | None] = (),
    companions: Iterable[Path] = (),
) -> None:
    """Check before long work that files can be written, and that nothing of the input is lost.

    Args:
        outputs: Files to write, under names that the user gave. No two may be the same.
        reads: Files and folders that the work reads, or ``FILE.py:FUNCTION``. With a plan or a
            calibration cache goes the JSON next to it, with a folder the data in it.
        models: ONNX files that the work reads, with their external weights.
        companions: Further files to write, under names that follow from those of the outputs. What
            is there already must come from this package.

    Raises:
        SpecError: one cannot be written, or must not.
        ModelError: a model cannot be read.
    """
    read = [model for model in models if model is not None]
    for model in read:
        if model.is_dir():
            raise ModelError(f"{model}: is a folder, not an ONNX file")
    named, derived = list(outputs), list(companions)
    for output in named:
        check_writable(output)
    places = [path.absolute() for path in (*named, *derived)]
    if twice := next((path for path in places if places.count(path) > 1), None):
        raise SpecError(f"cannot write {twice}: two outputs have this name; name another")
    present = [path for path in (*named, *derived) if path.exists()]
    if present:
        protected = [file for source in reads if source is not None for file in _files_of(source)]
        protected += read
        if not all(map(_is_plan_or_manifest, present)):
            from trt_native.graph.onnx_file import model_files, read_model

            for model in read:
                protected += model_files(model, read_model(model))
        for path in (*named, *derived):
            check_writable(path, reads=protected)
    for path in derived:
        check_companion(path)


def _is_plan_or_manifest(path: Path) -> bool:
    """Whether a file is not the weights of a model, without reading the model."""
    try:
        with open_regular_file(path) as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return head.startswith(PlanHeader.tags()) or b'"producer": "trt-native ' in head


def _files_of(source: str | Path) -> Iterator[Path]:
    """The files that are read with one that is named."""
    path = source_file(source)
    yield path
    if path.is_dir():
        yield from (
            file for file in path.iterdir() if file.suffix in _DATA or file.name in _DESCRIPTIONS
        )
    else:
        for file in (path, path.resolve()):
            yield from (Path(f"{file}{suffix}") for suffix in (".json", ".cache"))
