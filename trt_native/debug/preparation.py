"""Forms of a model in which parts can be cut out of it, the simplest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from trt_native.arrays import Array
from trt_native.debug.subgraphs import Subject
from trt_native.errors import SpecError, TrtNativeError
from trt_native.graph.dims import dimension_symbols, resolve_profiles
from trt_native.graph.folding import Folded, fold_constants
from trt_native.graph.functions import inline_functions
from trt_native.graph.inference import infer_values
from trt_native.graph.nodes import all_nodes
from trt_native.graph.onnx_file import read_model, tensor_specs
from trt_native.graph.set_dims import set_dims
from trt_native.shapes import ProfileSpec

__all__ = ["WEIGHTS", "Form", "prepare"]

WEIGHTS = "weights.bin"
"""The file with the larger weights of a prepared model, next to the models cut from it."""

_GUESSED_EXTENT = 2
_INLINE_BYTES = 1024


class Form(Enum):
    """What is done to a model before parts are cut out of it."""

    FOLDED = "functions inlined, dimensions fixed, constants folded"
    FIXED = "functions inlined, dimensions fixed"
    INLINED = "functions inlined"
    AS_IT_IS = "written again"


def prepare(path: Path, folder: Path, form: Form, profile: ProfileSpec | None) -> Subject | None:
    """Read a model, and write its weights to a folder.

    Args:
        path: The ONNX file.
        folder: Where the weights are written to; an earlier model's are replaced.
        form: What to do to it.
        profile: The optima of its ranges are the extents of fixed dimensions; those of others
            are 2.

    Returns:
        The model; None where it cannot have this form.

    Raises:
        ModelError: the file cannot be read.
    """
    model = read_model(path)
    constants: dict[str, onnx.TensorProto] = {}
    try:
        if form is not Form.AS_IT_IS:
            inline_functions(model)
        if form in (Form.FOLDED, Form.FIXED):
            set_dims(model, _extents(model, profile))
        infer_values(model)
        if form is Form.FOLDED:
            fold_constants(model)
    except TrtNativeError:
        if form is Form.AS_IT_IS:
            raise
        return None
    if form is Form.FIXED:
        constants = _known_values(model)
    written = folder / "whole.onnx"
    ir.save(model, written, external_data=WEIGHTS, size_threshold_bytes=_INLINE_BYTES)
    proto = onnx.load(written, load_external_data=False)
    written.unlink()
    types = {str(value.name): ir.serde.serialize_value(value).type for value in _values(model)}
    del proto.graph.value_info[:]
    return Subject(proto, types, constants)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for node in all_nodes(model.graph):
        yield from (value for value in node.outputs if value.name and value.type is not None)


def _extents(model: ir.Model, profile: ProfileSpec | None) -> dict[str, int]:
    """The extent of each dimension that the inputs name."""
    inputs, _ = tensor_specs(model)
    axes = [axis for tensor in inputs for axis in tensor.shape or () if isinstance(axis, str)]
    names = {name for axis in axes for name in dimension_symbols(axis)}
    if profile is None or not (profile.dims or profile.shapes):
        return dict.fromkeys(names, _GUESSED_EXTENT)
    (resolved,) = resolve_profiles(inputs, [profile]) or (None,)
    found: dict[str, int] = {name: extents.opt for name, extents in profile.dims.items()}
    for tensor in inputs if resolved else ():
        shapes = resolved.shapes.get(tensor.name) if resolved else None
        for axis, extent in zip(tensor.shape or (), shapes.opt if shapes else (), strict=False):
            if isinstance(axis, str) and axis in names:
                found.setdefault(axis, extent)
    if missing := names - found.keys():
        raise SpecError(f"no extent is known for {', '.join(sorted(missing))}")
    return {name: extent for name, extent in found.items() if name in names}


def _known_values(model: ir.Model) -> dict[str, onnx.TensorProto]:
    """Values that folding finds out, by name."""
    found: dict[str, Array] = {}

    def keep(node: ir.Node, results: Folded) -> None:  # noqa: ARG001
        if isinstance(results, Mapping):
            found.update(results)

    fold_constants(model.clone(), on_fold=keep)
    return {n: onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in found.items()}
