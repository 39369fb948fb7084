"""Deployment of plans to Triton's model repository, and to trtexec."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trt_native.arrays import Array
from trt_native.deploy.folders import new_folder, put_plan, write_file
from trt_native.errors import CudaError, PlanError, SpecError, UnsupportedError
from trt_native.plans.host_code import LEAN_RUNTIME
from trt_native.plans.manifest import PlanTensor
from trt_native.plans.plan import Plan
from trt_native.plans.plugins import is_python_plugin
from trt_native.runtime.engine import Engine
from trt_native.runtime.input_checks import check_inputs, count_profiles
from trt_native.shapes import Shape, format_shape

__all__ = [
    "TritonConfig",
    "TritonModel",
    "deploy_triton",
    "plan_tensors",
    "triton_config",
    "trtexec_command",
]

_TRITON_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
_MODEL_NAME = r"[^\s/\\.\x00-\x1f\ud800-\udfff][^/\\\x00-\x1f\ud800-\udfff]*"
_VERSION_COMPATIBLE = "--backend-config=tensorrt,version-compatible=true"
_VALUE_FORMATS = {"int32": "i", "int64": "q"}


def plan_tensors(plan: Plan) -> tuple[PlanTensor, ...]:
    """The inputs and outputs of a plan: from its manifest, else from the engine itself.

    Raises:
        PlanError: the plan has no manifest, and cannot be loaded here.
    """
    if plan.manifest is not None:
        return plan.manifest.tensors
    try:
        with Engine(plan) as engine:
            return engine.tensors
    except (CudaError, PlanError, UnsupportedError) as error:
        raise PlanError(
            "the plan has no manifest, so only the engine knows its tensors, and it cannot be"
            f" loaded here: {error.message}",
            error.details,
        ) from None


# Triton


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonConfig:
    """User-facing configuration of a model in Triton.

    Attributes:
        name: Name of the model, and of its folder in the repository.
        instances: Execution contexts on each GPU.
        max_batch: Largest batch that Triton may form. None: as many as the plan allows, if its
            first axis is a batch. 0: clients send every axis.
        profiles: Numbers of the optimization profiles that are served. Empty: all.
        batching_delay_us: How long a request may wait for others to share its batch, in
            microseconds. None leaves dynamic batching to Triton.
        warmup: Let Triton run each profile once, at its opt shapes, before the model is ready.
        warmup_inputs: Inputs that Triton runs once, too: arrays by name, in the plan's types. Where
            it forms batches it repeats the first entry of each.
        gpus: Numbers of the GPUs that have the instances. Empty: all that Triton sees.
        resources: What each run of an instance takes of the server's rate limiter, by name.
        priority: For the rate limiter: an instance of priority 2 runs half as often as one of 1,
            which is the highest. None: 1.
    """

    name: str
    instances: int = 1
    max_batch: int | None = None
    profiles: tuple[int, ...] = ()
    batching_delay_us: int | None = None
    warmup: bool = True
    warmup_inputs: Mapping[str, Array] = field(default_factory=dict)
    gpus: tuple[int, ...] = ()
    resources: Mapping[str, int] = field(default_factory=dict)
    priority: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(_MODEL_NAME, self.name):
            raise SpecError(
                f"model name {self.name!r}: it names a folder, so no '/' and no '.' first, and it"
                " is text; choose another",
                options=("name",),
            )
        if not 1 <= self.instances < 2**31:
            raise SpecError(f"{self.instances} instances: there must be at least 1")
        if self.max_batch is not None and not 0 <= self.max_batch < 2**31:
            raise SpecError(f"max batch {self.max_batch}: it cannot be negative; 0 is no batching")
        if self.batching_delay_us is not None and not 0 <= self.batching_delay_us < 2**63:
            raise SpecError(f"batching delay {self.batching_delay_us}: it cannot be negative")
        for gpu in self.gpus:
            if not 0 <= gpu < 2**31 or self.gpus.count(gpu) > 1:
                raise SpecError(f"GPU {gpu}: give the number of each GPU once, from 0 on")
        for name, count in self.resources.items():
            if not name or not 1 <= count < 2**32:
                raise SpecError(f"{count} of resource {name!r}: a run takes at least 1 of a name")
        if self.priority is not None and not 1 <= self.priority < 2**32:
            raise SpecError(f"priority {self.priority}: 1 is the highest, and there is none below")


@dataclass(frozen=True, slots=True)
class TritonModel:
    """A model's files in Triton's repository, apart from the plan.

    Attributes:
        config: Text of ``config.pbtxt``.
        warmup_files: Contents of the files in ``warmup/``, by name.
        max_batch_size: Largest batch that Triton will form; 0 where it forms none.
        no_batching: Reason why it forms none; None where it does, or where none was asked for.
    """

    config: str
    warmup_files: Mapping[str, bytes] = field(repr=False)
    max_batch_size: int
    no_batching: str | None


def triton_config(
    tensors: Sequence[PlanTensor], config: TritonConfig, *, comment: str = ""
) -> TritonModel:
    """Write a ``config.pbtxt`` for a plan with these tensors.

    The format is Triton's ``ModelConfig`` message (``model_config.proto``); further server
    requirements were read off its sources (``model_config_utils.cc`` of the core, and
    ``instance_state.cc`` of the TensorRT backend).

    Args:
        tensors: Inputs and outputs of the plan.
        config: The user's configuration.
        comment: A comment line at the top.

    Raises:
        UnsupportedError: a tensor has a type or shape that Triton does not support.
        SpecError: the batch or the profiles asked for are not those of the plan.
    """
    _check_tensors(tensors)
    profiles = _chosen_profiles(tensors, config.profiles)
    limit, why_not = _batch_limit(tensors, profiles)
    batch = limit if config.max_batch is None else config.max_batch
    if batch > limit:
        reason = why_not or f"the plan's profiles allow every batch only up to {limit}"
        raise SpecError(f"max batch {batch}: {reason}")
    inputs = [tensor for tensor in tensors if tensor.mode == "input"]
    outputs = [tensor for tensor in tensors if tensor.mode == "output"]
    fields: list[_Field] = [
        ("name", config.name),
        ("platform", "tensorrt_plan"),
        ("max_batch_size", batch),
        *(("input", _io_fields(tensor, batch)) for tensor in inputs),
        *(("output", _io_fields(tensor, batch)) for tensor in outputs),
        ("instance_group", _group_fields(config, profiles)),
    ]
    if config.batching_delay_us is not None:
        if not batch:
            reason = why_not or "the max batch is 0"
            raise SpecError(f"dynamic batching needs a batch, and there is none: {reason}")
        delay: list[_Field] = [("max_queue_delay_microseconds", config.batching_delay_us)]
        fields.append(("dynamic_batching", delay))
    files: dict[str, bytes] = {}
    if config.warmup:
        fields += [
            ("model_warmup", _warmup_fields(inputs, index, batch, files))
            for index in profiles or (0,)
        ]
    if config.warmup_inputs:
        _check_inputs(inputs, config.warmup_inputs, profiles, batch)
        fields.append(("model_warmup", _given_fields(inputs, config.warmup_inputs, batch, files)))
    text = f"# {' '.join(comment.split())}\n" if comment else ""
    unbatched = why_not if config.max_batch is None else None
    return TritonModel(
        text + "".join(_lines(fields)), files, batch, unbatched if not batch else None
    )


def deploy_triton(
    plan: Plan, repository: str | os.PathLike[str], config: TritonConfig, *, force: bool = False
) -> tuple[Path, TritonModel]:
    """Put a plan into a Triton model repository as ``NAME/1/model.plan``.

    The plan is hard linked where the file systems allow it, else copied; metadata in front of it
    stays behind. The model's folder appears complete or not at all.

    Args:
        plan: The plan.
        repository: The repository's folder; it is made where it is missing.
        config: The user's configuration.
        force: Replace a model of this name that differs.

    Returns:
        The model's folder, and the files written there next to the plan.

    Raises:
        UnsupportedError: Triton cannot load such a plan.
        SpecError: another model of this name is there, or the request does not fit the plan.
        PlanError: the repository cannot be written to, the plan's tensors are not known, or its
            weights were left out.
    """
    plan.check_complete()
    header = plan.header
    if header.product != "TensorRT":
        raise UnsupportedError(
            f"Triton's TensorRT backend loads plans of TensorRT (libnvinfer), this one is for"
            f" {header.product} {header.version_text}; build it with backend tensorrt"
        )
    version = plan.manifest.backend_version if plan.manifest else header.version_text
    comment = f"For a Triton server whose TensorRT is {version}."
    if _is_version_compatible(plan):
        comment = (
            f"For a Triton server whose TensorRT is {version} or later, started with"
            f" {_VERSION_COMPATIBLE}."
        )
    model = triton_config(plan_tensors(plan), config, comment=comment)
    parent = Path(repository)
    with new_folder(parent, config.name, force=force, replaced="warmup/profile") as folder:
        _write_model(plan, model, folder)
    return parent / config.name, model


def _is_version_compatible(plan: Plan) -> bool:
    said = plan.manifest is not None and bool(plan.manifest.options.get("version_compatible"))
    return said or LEAN_RUNTIME in (plan.host_code.carried or ())


def _check_tensors(tensors: Sequence[PlanTensor]) -> None:
    problems = []
    dynamic = any(
        -1 in tensor.shape or tensor.values for tensor in tensors if tensor.mode == "input"
    )
    for tensor in tensors:
        if tensor.alias is not None:
            problems.append(
                f"output {tensor.name!r} is written in the memory of input {tensor.alias!r}, where"
                " Triton gives each its own; build it without caches in place"
            )
        if tensor.dtype not in _TRITON_TYPES:
            problems.append(
                f"{tensor.mode} {tensor.name!r} is {tensor.dtype}, which Triton does not support"
            )
        if not tensor.shape:
            problems.append(
                f"{tensor.mode} {tensor.name!r} is a scalar, which Triton does not support;"
                " export it with the shape (1,)"
            )
        if 0 in tensor.shape:
            problems.append(f"{tensor.mode} {tensor.name!r} is empty, which Triton does not allow")
        if tensor.values and tensor.dtype not in _VALUE_FORMATS:
            problems.append(f"{tensor.name!r} is a shape, but of type {tensor.dtype}")
        if tensor.values and len(tensor.shape) > 1:
            problems.append(
                f"{tensor.name!r} is a shape of more than one axis, which Triton does not support"
            )
        if tensor.data_dependent or (
            tensor.mode == "output" and not dynamic and -1 in tensor.shape
        ):
            problems.append(
                f"the shape of output {tensor.name!r} depends on data, for which Triton allocates"
                " nothing; give it a fixed number of elements, such as those of a TopK"
            )
    if problems:
        raise UnsupportedError("Triton cannot serve this plan:", problems=problems)


def _profile_count(tensors: Sequence[PlanTensor]) -> int:
    return max((len(tensor.profiles or tensor.values) for tensor in tensors), default=0)


def _chosen_profiles(tensors: Sequence[PlanTensor], wanted: tuple[int, ...]) -> tuple[int, ...]:
    count = _profile_count(tensors)
    unknown = [index for index in wanted if not 0 <= index < max(count, 1)]
    if unknown:
        known = f"0 to {count - 1}" if count > 1 else "0 alone"
        raise SpecError(f"profile {unknown[0]}: the plan has {known}")
    return tuple(dict.fromkeys(wanted)) or tuple(range(count)) if count else ()


def _batch_limit(tensors: Sequence[PlanTensor], profiles: Sequence[int]) -> tuple[int, str | None]:
    """The largest batch so that the plan allows every batch up to it, or 0 and why there is none.

    Triton stacks requests along the first axis of every tensor, so all of them must be one and the
    same dynamic dimension, which occurs nowhere else.
    """
    for tensor in tensors:
        if tensor.values:
            return 0, f"{tensor.name!r} is itself a shape, which requests cannot be stacked with"
        if tensor.shape[0] != -1:
            return 0, f"the first axis of {tensor.name!r} is not dynamic"
    first = {tensor.dims[0] for tensor in tensors if tensor.dims and tensor.dims[0]}
    if len(first) > 1:
        return 0, f"the first axes differ: {', '.join(sorted(map(repr, first)))}"
    for name in first:
        for tensor in tensors:
            if any(
                re.search(rf"\b{re.escape(str(name))}\b", axis or "") for axis in tensor.dims[1:]
            ):
                return 0, f"{name!r} is not only the first axis of {tensor.name!r}"
    inputs = [tensor for tensor in tensors if tensor.mode == "input"]
    if not inputs:
        return 0, "the plan has no inputs"
    ranges = sorted(
        (max(t.profiles[i].min[0] for t in inputs), min(t.profiles[i].max[0] for t in inputs))
        for i in profiles
    )
    limit = 0
    for low, high in ranges:
        if low <= limit + 1:
            limit = max(limit, high)
    return limit, None if limit else "no profile allows a batch of 1"


# A field of a protobuf message: its name, and a number, a text, a name of an enum or a message.
_Field = tuple[str, object]


class _Name(str):
    """A name of an enum's member, which text format writes without quotes."""

    __slots__ = ()


def _io_fields(tensor: PlanTensor, batch: int) -> list[_Field]:
    dims = tensor.shape[1:] if batch else tensor.shape
    fields: list[_Field] = [
        ("name", tensor.name),
        ("data_type", _Name(_TRITON_TYPES[tensor.dtype])),
        *(("dims", extent) for extent in dims or (1,)),
    ]
    if not dims:  # Triton needs at least one axis besides the batch: it adds and removes this one
        fields.append(("reshape", []))
    if tensor.values:
        fields.append(("is_shape_tensor", True))
    if tensor.format is not None:
        fields.append(("is_non_linear_format_io", True))
    return fields


def _group_fields(config: TritonConfig, profiles: Sequence[int]) -> list[_Field]:
    limits: list[_Field] = [
        ("resources", [("name", name), ("count", count)])
        for name, count in config.resources.items()
    ]
    limits += [] if config.priority is None else [("priority", config.priority)]
    return [
        ("count", config.instances),
        ("kind", _Name("KIND_GPU")),
        *(("gpus", gpu) for gpu in config.gpus),
        *(("profile", str(index)) for index in profiles),
        *([("rate_limiter", limits)] if limits else []),
    ]


def _warmup_fields(
    inputs: Sequence[PlanTensor], profile: int, batch: int, files: dict[str, bytes]
) -> list[_Field]:
    """One request of zeros at a profile's opt shapes; an input that is a shape gets a file."""
    size = 1
    entries: list[_Field] = []
    for number, tensor in enumerate(inputs):
        shape = _opt_shape(tensor, profile)
        if batch:
            size = min(shape[0], batch)
            shape = shape[1:] or (1,)
        data: _Field = ("zero_data", True)
        if tensor.values:
            file = f"profile{profile}_input{number}"
            files[file] = _pack_values(tensor, tensor.values[profile].opt)
            data = ("input_data_file", file)
        entries.append(_warmup_input(tensor, shape, data))
    return [("name", f"profile {profile}"), ("batch_size", size), *entries]


def _check_inputs(
    inputs: Sequence[PlanTensor], arrays: Mapping[str, Array], profiles: Sequence[int], batch: int
) -> None:
    """Refuse arrays that the plan, or a batch of Triton, does not take."""
    profile = check_inputs(tuple(inputs), count_profiles(inputs), arrays)
    problems = [
        f"{tensor.name!r} has the layout {tensor.format}, arrays have C order"
        for tensor in inputs
        if tensor.format is not None
    ]
    if profiles and profile not in profiles:
        problems.append(f"they are of profile {profile}, which is not served")
    for tensor in inputs:
        values = tuple(arrays[tensor.name].flat) if tensor.values else ()
        if tensor.values and not tensor.values[profile].contains(tuple(map(int, values))):
            problems.append(f"profile {profile} does not take {values} as {tensor.name!r}")
    size = max(len(array) for array in arrays.values()) if batch else 0
    if size > batch:
        problems.append(f"they are a batch of {size}, and Triton's largest is {batch}")
    if problems:
        raise SpecError("the inputs for the warm-up do not fit:", problems=problems)


def _given_fields(
    inputs: Sequence[PlanTensor], arrays: Mapping[str, Array], batch: int, files: dict[str, bytes]
) -> list[_Field]:
    """One request of given inputs, each with a file; of a batch Triton repeats the first entry."""
    entries: list[_Field] = []
    for number, tensor in enumerate(inputs):
        array = arrays[tensor.name]
        entry = array[0].reshape(array.shape[1:] or (1,)) if batch else array
        file = f"given_input{number}"
        files[file] = entry.tobytes()
        entries.append(_warmup_input(tensor, entry.shape, ("input_data_file", file)))
    size = len(arrays[inputs[0].name]) if batch else 1
    return [("name", "given inputs"), ("batch_size", size), *entries]


def _warmup_input(tensor: PlanTensor, shape: Shape, data: _Field) -> _Field:
    """An input of a warm-up request, with where its data comes from."""
    kind: _Field = ("data_type", _Name(_TRITON_TYPES[tensor.dtype]))
    value: list[_Field] = [kind, *(("dims", extent) for extent in shape), data]
    return "inputs", [("key", tensor.name), ("value", value)]


def _pack_values(tensor: PlanTensor, values: Shape) -> bytes:
    try:
        return struct.pack(f"<{len(values)}{_VALUE_FORMATS[tensor.dtype]}", *values)
    except struct.error:
        raise PlanError(f"{values} of {tensor.name!r} does not fit into {tensor.dtype}") from None


def _opt_shape(tensor: PlanTensor, profile: int) -> Shape:
    return tensor.profiles[profile].opt if tensor.profiles else tensor.shape


def _lines(fields: Iterable[_Field], indent: str = "") -> Iterator[str]:
    """Protobuf's text format."""
    for name, value in fields:
        if isinstance(value, list):
            yield f"{indent}{name} {{\n"
            yield from _lines(value, indent + "  ")
            yield f"{indent}}}\n"
        else:
            yield f"{indent}{name}: {_literal(value)}\n"


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, _Name):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\{ord(m[0]):03o}", escaped) + '"'
    return str(value)


def _write_model(plan: Plan, model: TritonModel, folder: Path) -> None:
    (folder / "1").mkdir()
    put_plan(plan, folder / "1" / "model.plan")
    if model.warmup_files:
        (folder / "warmup").mkdir()
        for name, content in model.warmup_files.items():
            write_file(folder / "warmup" / name, content)
    write_file(folder / "config.pbtxt", model.config.encode())


# trtexec


def trtexec_command(
    plan: Plan, path: Path, *, profile: int = 0, shapes: Mapping[str, Shape] | None = None
) -> list[str]:
    """Build the command line that times a plan with the tool of its own TensorRT.

    TensorRT 10 and 11 then time the same thing: kernels in a CUDA graph, without copies to and from
    the GPU, with a spinning host. That is what trtexec 11 does by default and trtexec 10 with
    options. ``tensorrt_rtx`` keeps its own defaults.

    Args:
        plan: The plan.
        path: Its file, as trtexec will find it.
        profile: Number of the optimization profile.
        shapes: Shapes of dynamic inputs instead of the profile's opt shapes.

    Raises:
        SpecError: the profile or a shape is not one of the plan's, or trtexec cannot express an
            input's name.
        PlanError: the plan's tensors are not known, or its weights were left out.
        UnsupportedError: in its file there is metadata in front of the plan.
    """
    plan.check_complete()
    if plan.prefix is not None:
        raise UnsupportedError(
            f"{path}: there is metadata in front of the plan, which trtexec does not read; write"
            " the plan to a file of its own",
            options=("output",),
        )
    tensors = [tensor for tensor in plan_tensors(plan) if tensor.mode == "input"]
    _chosen_profiles(tensors, (profile,))
    given = dict(shapes or {})
    entries = []
    for tensor in tensors:
        ranges = tensor.profiles or tensor.values
        if not ranges:
            continue
        shape = given.pop(tensor.name, ranges[profile].opt)
        if not ranges[profile].contains(shape):
            text = format_shape(shape)
            raise SpecError(
                f"{tensor.name}={text} is outside {ranges[profile]} of profile {profile}"
            )
        if "," in tensor.name or "'" in tensor.name:
            raise SpecError(f"trtexec cannot express the input name {tensor.name!r}")
        name = f"'{tensor.name}'" if ":" in tensor.name else tensor.name
        entries.append(f"{name}:{format_shape(shape)}")
    if given:
        known = ", ".join(t.name for t in tensors if t.profiles or t.values) or "none"
        raise SpecError(f"shape of {', '.join(given)}: the dynamic inputs are: {known}")
    rtx = plan.header.product == "TensorRT-RTX"
    words = ["tensorrt_rtx" if rtx else "trtexec", f"--loadEngine={path}"]
    words += [f"--shapes={','.join(entries)}"] if entries else []
    words += [f"--useProfile={profile}"] if profile else []
    if not rtx and plan.header.version[0] < 11:
        words += ["--useCudaGraph", "--noDataTransfers", "--useSpinWait"]
    host_code = plan.host_code
    if host_code.allowed and not rtx:
        words.append("--versionCompatible")
    if host_code.lean_runtime is not None:
        words.append(f"--leanDLLPath={host_code.lean_runtime}")
    words += [f"--staticPlugins={p}" for p in plan.plugins if not is_python_plugin(p)]
    return words
