"""Layers of an engine, as reported by TensorRT's engine inspector."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Layer",
    "LayerTensor",
    "layer_records",
    "parse_layers",
    "precision_mix",
    "quantized_layers",
]

_PRECISIONS = (
    ("bf16", "bf16|bfloat16"),
    ("fp8", "fp8|e4m3"),
    ("fp4", "fp4|e2m1"),
    ("fp16", "fp16|half"),
    ("fp32", "fp32|float"),
    ("int4", "int4"),
    ("uint8", "uint8"),
    ("int8", "int8"),
    ("int64", "int64"),
    ("int32", "int32"),
    ("bool", "bool"),
)


@dataclass(frozen=True, slots=True)
class LayerTensor:
    """A tensor between layers.

    Attributes:
        name: Its name in the engine.
        precision: Such as ``fp16``; ``unknown`` where the inspector does not report it.
        shape: Extents, -1 where dynamic; None where the inspector does not report it.
    """

    name: str
    precision: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an engine, after TensorRT has fused what it could.

    Attributes:
        name: Its name, made of those of the ONNX nodes in it.
        kind: TensorRT's layer type; empty where the plan keeps only names.
        tactic: Name of the kernel, where the inspector reports it.
        inputs: What it reads.
        outputs: What it writes.
        nodes: Names of the ONNX nodes in it, where the plan records them.
        profile: Index of the optimization profile that it is for.
    """

    name: str
    kind: str = ""
    tactic: str | None = None
    inputs: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    nodes: tuple[str, ...] = ()
    profile: int = 0

    @property
    def precision(self) -> str:
        """Type of its first output."""
        return self.outputs[0].precision if self.outputs else "unknown"


def layer_records(text: Any) -> list[dict[str, Any]] | None:
    """Parse the inspector's JSON on an engine, or on one layer, into one mapping per layer.

    Returns:
        One mapping per layer; a layer of which only the name is known has only ``Name``. None where
        the text is not JSON, or does not list layers.
    """
    try:
        data = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    if isinstance(data, dict):
        data = data.get("Layers", [data] if "Name" in data else None)
    elif isinstance(data, str):
        data = [data]
    if not isinstance(data, list):
        return None
    return [dict(layer) if isinstance(layer, dict) else {"Name": str(layer)} for layer in data]


def parse_layers(layers: Iterable[Mapping[str, Any]]) -> tuple[Layer, ...]:
    """Read what the engine inspector writes as JSON, of any TensorRT; unknown keys are ignored."""
    return tuple(
        Layer(
            name=str(layer.get("Name", "")),
            kind=str(layer.get("LayerType", "")),
            tactic=str(layer["TacticName"]) if layer.get("TacticName") else None,
            inputs=_layer_tensors(layer.get("Inputs")),
            outputs=_layer_tensors(layer.get("Outputs")),
            nodes=tuple(dict.fromkeys(_NODES.findall(str(layer.get("Metadata") or "")))),
            profile=_profile(layer),
        )
        for layer in layers
    )


_NODES = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|$)")  # TensorRT's separators of names
_PROFILE = re.compile(r"\[profile (\d{1,3})\]")


def _profile(layer: Mapping[str, Any]) -> int:
    """The profile as it is stated, or as TensorRT writes it behind the name of a layer."""
    if isinstance(stated := layer.get("Profile"), int):
        return stated
    found = _PROFILE.search(str(layer.get("Name", "")))
    return int(found[1]) if found else 0


def _layer_tensors(tensors: Any) -> tuple[LayerTensor, ...]:
    if not isinstance(tensors, list):
        return ()
    return tuple(_layer_tensor(t if isinstance(t, Mapping) else {"Name": t}) for t in tensors)


def _layer_tensor(tensor: Mapping[str, Any]) -> LayerTensor:
    extents = tensor.get("Dimensions")
    known = isinstance(extents, list) and all(type(extent) is int for extent in extents)
    return LayerTensor(
        name=str(tensor.get("Name", "")),
        precision=_precision(str(tensor.get("Datatype") or tensor.get("Format/Datatype", ""))),
        shape=tuple(extents) if known and extents is not None else None,
    )


def _precision(text: str) -> str:
    for name, pattern in _PRECISIONS:
        if re.search(pattern, text, re.IGNORECASE):
            return name
    return "unknown"


def precision_mix(layers: Iterable[Layer]) -> dict[str, int]:
    """Count the layers of each precision, most frequent first."""
    return dict(Counter(layer.precision for layer in layers).most_common())


# Layers that only change a tensor's type or place, by the inspector's names for them.
_DATA_MOVEMENT = re.compile(
    r"reformat|quantize|cast|shuffle|noop|copy|constant|slice|concat", re.IGNORECASE
)
_QUANTIZED = ("int8", "fp8")


def quantized_layers(layers: Sequence[Layer]) -> dict[str, Any] | None:
    """Find the layers that compute in INT8 or FP8, in the form that the manifest records.

    A layer does if it reads a tensor of that type and is not there only to convert or to move it.
    Where TensorRT has fused a whole part of the network into one layer, what happens inside does
    not show.

    Returns:
        ``layers``: their number; ``outputs``: their number by the type of the first output;
        ``int8`` and ``fp8``: names of those that compute in it. None where the plan does not record
        types.
    """
    mix = precision_mix(layers)
    if not layers or set(mix) == {"unknown"}:
        return None
    computing = [layer for layer in layers if not _DATA_MOVEMENT.search(layer.kind)]
    found = {
        precision: [
            layer.name
            for layer in computing
            if any(tensor.precision == precision for tensor in layer.inputs)
        ]
        for precision in _QUANTIZED
    }
    return {"layers": len(layers), "outputs": mix, **found}
