"""Deployment of plans to DeepStream's Gst-nvinfer plugin."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from trt_native.deploy import plan_tensors
from trt_native.deploy.folders import new_folder, put_plan, write_file
from trt_native.errors import SpecError, UnsupportedError
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan
from trt_native.shapes import format_shape

__all__ = [
    "DeepStreamConfig",
    "DeepStreamModel",
    "NetworkType",
    "deepstream_config",
    "deploy_deepstream",
]

_OUTPUT_TYPES = ("float32", "float16", "int8", "int32")
_COLORS = {"rgb": 0, "bgr": 1, "gray": 2}
_CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
_MOST_BATCH = 1024
_NETWORK_MODES = {"fp32": 0, "tf32": 0, "int8": 1, "fp16": 2}
_TEXT = r"[^\s\\;=\x00-\x1f](?:[^\\;=\x00-\x1f]*[^\s\\;=\x00-\x1f])?"


class NetworkType(Enum):
    """What a network's outputs mean to Gst-nvinfer."""

    DETECTOR = "detector"
    CLASSIFIER = "classifier"
    SEGMENTATION = "segmentation"
    INSTANCE_SEGMENTATION = "instance-segmentation"
    OTHER = "other"

    @property
    def number(self) -> int:
        """Its number in the configuration file."""
        return 100 if self is NetworkType.OTHER else list(NetworkType).index(self)

    @property
    def parse_key(self) -> str | None:
        """The property that names a function of its own to parse the outputs."""
        return {
            NetworkType.DETECTOR: "parse-bbox-func-name",
            NetworkType.CLASSIFIER: "parse-classifier-func-name",
            NetworkType.INSTANCE_SEGMENTATION: "parse-bbox-instance-mask-func-name",
        }.get(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepStreamConfig:
    """User-facing configuration of a model for Gst-nvinfer.

    Gst-nvinfer gives the network ``scale * (pixel - offset)`` of pixels from 0 to 255.

    Attributes:
        name: Name of the folder.
        network_type: What the outputs mean. ``OTHER``: nothing to Gst-nvinfer, which attaches them
            as they are.
        labels: Names of the classes, in their order. Empty: those in the metadata in front of the
            plan, if it has any.
        color: ``rgb``, ``bgr`` or ``gray``. None: RGB for three channels, gray for one.
        scale: Factor for pixels (``net-scale-factor``). None: 1/255 for a plan with Ultralytics'
            metadata, else 1.
        offsets: What is subtracted from each channel first.
        batch: Largest batch. None: the largest of the plan's first profile.
        size: Height and width of the input, in pixels. None: the plan's own, or the optimum of its
            first profile.
        tensor_meta: Attach the outputs to the buffers (``NvDsInferTensorMeta``).
        keep_aspect_ratio: Pad frames instead of stretching them.
        unique_id: Number of this inference in the pipeline, from 1 on.
        gpu: CUDA ordinal of the GPU.
        custom_library: Library with the function that parses the outputs; None for DeepStream's
            own.
        parse_function: Name of that function.
    """

    name: str
    network_type: NetworkType = NetworkType.OTHER
    labels: tuple[str, ...] = ()
    color: str | None = None
    scale: float | None = None
    offsets: tuple[float, ...] = ()
    batch: int | None = None
    size: tuple[int, int] | None = None
    tensor_meta: bool = True
    keep_aspect_ratio: bool = False
    unique_id: int = 1
    gpu: int = 0
    custom_library: Path | None = None
    parse_function: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^\s/\\.\x00-\x1f][^/\\\x00-\x1f]*", self.name):
            raise SpecError(f"name {self.name!r}: it names a folder, so no '/' and no '.' first")
        if self.color not in (None, *_COLORS):
            raise SpecError(f"color {self.color!r} is none of: {', '.join(_COLORS)}")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise SpecError(f"scale {self.scale}: it must be above 0")
        if not all(map(math.isfinite, self.offsets)):
            raise SpecError(f"offsets {self.offsets}: they must be finite")
        if not 1 <= self.unique_id < 2**32:
            raise SpecError(f"unique id {self.unique_id}: it counts from 1")
        if self.gpu < 0:
            raise SpecError(f"GPU {self.gpu}: it counts from 0")
        for label in self.labels:
            _check_text("label", label)
        if (self.custom_library is None) != (self.parse_function is None):
            raise SpecError("a parse function is one of a custom library: give both, or neither")
        if self.parse_function is not None:
            self._check_function(self.parse_function)

    def _check_function(self, name: str) -> None:
        if self.network_type.parse_key is None:
            raise SpecError(f"Gst-nvinfer calls no parse function for {self.network_type.value}")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise SpecError(f"parse function {name!r}: give the name of a C function")


@dataclass(frozen=True, slots=True)
class DeepStreamModel:
    """A model's files for Gst-nvinfer, apart from the plan.

    Attributes:
        config: Text of ``config_infer.txt``.
        labels: Text of ``labels.txt``; None where there are none.
        batch: ``batch-size``.
    """

    config: str = field(repr=False)
    labels: str | None
    batch: int


def deepstream_config(
    tensors: Sequence[PlanTensor], config: DeepStreamConfig, *, precision: str | None = None
) -> DeepStreamModel:
    """Write the configuration file of Gst-nvinfer for a plan with these tensors.

    Its properties are those of the table in DeepStream's documentation of Gst-nvinfer ("Property
    Group Supported Keys"), and further requirements were read off the public headers and sources
    of the plugin.

    Args:
        tensors: Inputs and outputs of the plan, in the engine's order.
        config: The user's configuration, with the labels and the scale that it should have.
        precision: The plan's precision, as its manifest says it.

    Raises:
        UnsupportedError: the network is not one of those that Gst-nvinfer runs.
        SpecError: the request does not fit the plan.
    """
    image = _image(tensors)
    channels, height, width = _dimensions(image, config)
    color = config.color or ("gray" if channels == 1 else "rgb")
    if channels != _CHANNELS[color]:
        raise SpecError(
            f"{color} has {_CHANNELS[color]} channels, and input {image.name!r} has {channels}"
        )
    if config.offsets and len(config.offsets) != channels:
        raise SpecError(f"{len(config.offsets)} offsets: there are {channels} channels")
    batch = _batch(image, config.batch)
    kind = config.network_type
    outputs = [tensor.name for tensor in tensors if tensor.mode == "output"]
    _check_meaning(outputs, config)
    lines: list[tuple[str, object]] = [
        ("gie-unique-id", config.unique_id),
        ("process-mode", 1),
        ("gpu-id", config.gpu),
        ("model-engine-file", "model.plan"),
        ("batch-size", batch),
        ("infer-dims", f"{channels};{height};{width}"),
        ("model-color-format", _COLORS[color]),
        ("net-scale-factor", repr(float(config.scale or 1))),
        *([("offsets", ";".join(map(repr, map(float, config.offsets))))] if config.offsets else []),
        ("maintain-aspect-ratio", int(config.keep_aspect_ratio)),
        ("network-type", kind.number),
        ("output-blob-names", ";".join(outputs)),
        ("output-tensor-meta", int(config.tensor_meta)),
    ]
    if precision in _NETWORK_MODES:
        lines.append(("network-mode", _NETWORK_MODES[precision]))
    if config.labels:
        lines.append(("labelfile-path", "labels.txt"))
        if kind is not NetworkType.CLASSIFIER:
            lines.append(("num-detected-classes", len(config.labels)))
    if config.custom_library is not None and kind.parse_key is not None:
        library = str(config.custom_library.absolute())
        _check_text("custom library", library)
        lines += [("custom-lib-path", library), (kind.parse_key, config.parse_function)]
    text = "".join(f"{key}={value}\n" for key, value in lines)
    separator = ";" if kind is NetworkType.CLASSIFIER else "\n"
    labels = separator.join(config.labels) + "\n" if config.labels else None
    return DeepStreamModel(f"[property]\n{text}", labels, batch)


def deploy_deepstream(
    plan: Plan, parent: str | os.PathLike[str], config: DeepStreamConfig, *, force: bool = False
) -> tuple[Path, DeepStreamModel]:
    """Put a plan and its configuration for Gst-nvinfer into a folder.

    It has ``model.plan`` (a hard link where the file systems allow it, without metadata in front),
    ``config_infer.txt`` and, with labels, ``labels.txt``, and appears complete or not at all.

    Args:
        plan: The plan.
        parent: The folder in which to make it; made where it is missing.
        config: The user's configuration.
        force: Replace a folder of this name that differs.

    Returns:
        The folder, and the files written there next to the plan.

    Raises:
        UnsupportedError: DeepStream cannot load such a plan, or Gst-nvinfer not run it.
        SpecError: another folder of this name is there, or the request does not fit the plan.
        PlanError: the folder cannot be written, the plan's tensors are not known, or its weights
            were left out.
    """
    plan.check_complete()
    header = plan.header
    if header.product != "TensorRT":
        raise UnsupportedError(
            f"Gst-nvinfer loads plans of TensorRT (libnvinfer), this one is for {header.product}"
            f" {header.version_text}; build it with backend tensorrt"
        )
    precision = None if plan.manifest is None else str(plan.manifest.precision.get("applied"))
    completed = _completed(plan, config)
    model = deepstream_config(plan_tensors(plan), completed, precision=precision)
    with new_folder(Path(parent), config.name, force=force) as folder:
        put_plan(plan, folder / "model.plan")
        write_file(folder / "config_infer.txt", model.config.encode())
        if model.labels is not None:
            write_file(folder / "labels.txt", model.labels.encode())
    return Path(parent) / config.name, model


def _completed(plan: Plan, config: DeepStreamConfig) -> DeepStreamConfig:
    """The configuration with what the metadata in front of a plan says."""
    metadata = plan.prefix or {}
    names = metadata.get("names")
    labels = config.labels
    if not labels and isinstance(names, dict):
        labels = tuple(str(names[key]) for key in sorted(names, key=int))
    scale = config.scale
    if scale is None and names is not None:
        scale = 1 / 255
    return replace(config, labels=labels, scale=scale)


def _image(tensors: Sequence[PlanTensor]) -> PlanTensor:
    """The input that gets the frames.

    Raises:
        UnsupportedError: the network is not one that Gst-nvinfer runs.
    """
    inputs = [tensor for tensor in tensors if tensor.mode == "input"]
    problems = list(_problems(inputs, [t for t in tensors if t.mode == "output"]))
    if problems:
        raise UnsupportedError("Gst-nvinfer cannot run this plan:", problems=problems)
    return inputs[0]


def _problems(inputs: Sequence[PlanTensor], outputs: Sequence[PlanTensor]) -> Iterator[str]:
    if len(inputs) != 1:
        yield f"it has {len(inputs)} inputs, and frames are the only one that Gst-nvinfer fills"
    for tensor in inputs[:1]:
        if len(tensor.shape) != 4:
            yield f"input {tensor.name!r} has {len(tensor.shape)} axes instead of NCHW's four"
        elif tensor.shape[1] not in (1, 3):
            yield (
                f"input {tensor.name!r} has {tensor.shape[1]} channels on its second axis; frames"
                " have 3 or 1, and are given as NCHW"
            )
        if tensor.dtype != "float32":
            yield (
                f"input {tensor.name!r} is {tensor.dtype}, and pixels are given in float32; build"
                " it with inputs in FP32"
            )
    for tensor in (*inputs, *outputs):
        if tensor.format is not None:
            yield f"{tensor.mode} {tensor.name!r} has the layout {tensor.format}; build it linear"
    is_dynamic = any(-1 in tensor.shape for tensor in inputs)
    for tensor in outputs:
        if tensor.dtype not in _OUTPUT_TYPES:
            yield f"output {tensor.name!r} is {tensor.dtype}, which NvDsInferDataType lacks"
        if tensor.alias is not None:
            yield f"output {tensor.name!r} is written in the memory of input {tensor.alias!r}"
        if tensor.data_dependent or (-1 in tensor.shape and not is_dynamic):
            yield f"the shape of output {tensor.name!r} depends on data"
        if not re.fullmatch(_TEXT, tensor.name):
            yield f"output {tensor.name!r} has a name that output-blob-names cannot express"


def _dimensions(image: PlanTensor, config: DeepStreamConfig) -> tuple[int, int, int]:
    _, channels, *size = image.profiles[0].opt if image.profiles else image.shape
    height, width = config.size or size
    bounds = image.profiles[0] if image.profiles else None
    low, high = (bounds.min, bounds.max) if bounds else (image.shape, image.shape)
    if not (low[2] <= height <= high[2] and low[3] <= width <= high[3]):
        raise SpecError(
            f"size {height}x{width}: the plan's first profile has {format_shape(low[2:])} to"
            f" {format_shape(high[2:])}"
        )
    return channels, height, width


def _batch(image: PlanTensor, wanted: int | None) -> int:
    bounds = image.profiles[0] if image.profiles else None
    low, high = (bounds.min[0], bounds.max[0]) if bounds else (image.shape[0],) * 2
    batch = min(high, _MOST_BATCH) if wanted is None else wanted
    if not low <= batch <= min(high, _MOST_BATCH):
        raise SpecError(
            f"batch {batch}: the plan's first profile has {low} to {high}, and Gst-nvinfer at most"
            f" {_MOST_BATCH}"
        )
    return batch


def _check_meaning(outputs: Sequence[str], config: DeepStreamConfig) -> None:
    """Refuse a type of network that lacks what Gst-nvinfer needs to understand its outputs."""
    kind = config.network_type
    if kind is NetworkType.OTHER:
        if not config.tensor_meta:
            raise SpecError("outputs of a network of type other reach nobody without tensor meta")
        return
    if not config.labels:
        raise SpecError(f"a {kind.value} needs labels: their number is that of its classes")
    own = kind is NetworkType.DETECTOR and all(
        any(part in name for name in outputs) for part in ("bbox", "cov")
    )
    needs = kind in (NetworkType.DETECTOR, NetworkType.INSTANCE_SEGMENTATION)
    if needs and not own and config.parse_function is None:
        raise SpecError(
            f"Gst-nvinfer has no parser of its own for the outputs of this {kind.value}"
            f" ({', '.join(outputs)}): give a custom library and its parse function, or the type"
            " other"
        )


def _check_text(what: str, text: str) -> None:
    if not re.fullmatch(_TEXT, text):
        raise SpecError(
            f"{what} {text!r}: it has a backslash, semicolon, equals sign or control character, or"
            " a space at an end, which the file cannot express"
        )
