"""Command-line options that several commands have, and those that fields declare."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from trt_native.builder.plan_cache import FOLDER_VARIABLE
from trt_native.config import BuildConfig, CommandOption, QuantizationSpec
from trt_native.errors import SpecError, TrtNativeError

if TYPE_CHECKING:
    from trt_native.plans.plan import Plan

__all__ = [
    "AllowHostCode",
    "AllowMismatch",
    "BackendOption",
    "CacheOption",
    "CheckpointArgument",
    "DeviceOption",
    "DimsOption",
    "FloatTimestep",
    "IgnoreManifest",
    "KernelSpecializationOption",
    "LeanRuntime",
    "NoCacheOption",
    "PluginsOption",
    "RandomWeights",
    "RetryOption",
    "TimeoutOption",
    "UNetConfigOption",
    "WarmOption",
    "check_weights",
    "complete_backend",
    "complete_precision",
    "completing",
    "flag_words",
    "open_plan",
    "read_fields",
    "select_device",
    "with_fields",
]


def open_plan(
    path: Path,
    ignore_manifest: bool,
    allow_host_code: bool,
    lean_runtime: Path | None,
    plugins: list[str] | None,
) -> Plan:
    """Open a plan with what the options :data:`IgnoreManifest` to :data:`PluginsOption` say.

    Raises:
        PlanError: as :meth:`~trt_native.plans.plan.Plan.open`.
    """
    from trt_native.plans.plan import Plan

    return Plan.open(
        path,
        ignore_manifest=ignore_manifest,
        allow_host_code=allow_host_code,
        lean_runtime=lean_runtime,
        plugins=plugins or (),
    )


def check_weights(given: Path | None, random_weights: int | None, name: str) -> None:
    """Check that the weights are given, or random ones are asked for, but not both.

    Raises:
        SpecError: they are not; it calls the argument with the weights ``name``.
    """
    if (given is None) == (random_weights is None):
        raise SpecError(f"give either {name} or --random-weights SEED")


def select_device(device: str | None) -> None:
    """Use the GPU of ``--device`` alone, if one is given, before anything else asks for one.

    Raises:
        SpecError, CudaError: as :func:`trt_native.cuda.select_gpu`.
    """
    if device is not None:
        from trt_native.cuda import select_gpu

        select_gpu(device)


def completing(*words: str) -> Callable[[str], list[str]]:
    """A completion of an option's value in the shell."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete.lower())]

    return complete


complete_backend = completing("auto", "tensorrt", "rtx")
complete_precision = completing("fp32", "fp16", "bf16")

BackendOption = Annotated[
    str,
    typer.Option(
        help="auto, tensorrt or rtx; auto reads TRT_NATIVE_BACKEND first.",
        autocompletion=complete_backend,
    ),
]
IgnoreManifest = Annotated[
    bool,
    typer.Option(
        "--no-manifest/--manifest",
        help="Ignore the manifest stored next to the plan, or use it.",
    ),
]
AllowHostCode = Annotated[
    bool,
    typer.Option(
        "--allow-host-code",
        help="Let code that the plan carries run in this process: the runtime in a version"
        " compatible plan of another tool. Only for a plan that you trust.",
    ),
]
LeanRuntime = Annotated[
    Path | None,
    typer.Option(
        "--lean-runtime",
        metavar="FILE",
        help="Library of the lean runtime (libnvinfer_lean) of the TensorRT that built a version"
        " compatible plan without it.",
    ),
]
PluginsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="LIB|FILE.py:FUNCTION",
        help="Library of plugins, or FILE.py:FUNCTION or package.module:FUNCTION that registers"
        " some. Repeatable.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="cuda:N",
        help="The GPU, cuda:N or N, among those of CUDA_VISIBLE_DEVICES.",
        show_default="cuda:0",
    ),
]
KernelSpecializationOption = Annotated[
    str | None,
    typer.Option(
        "--kernel-specialization",
        help="eager, lazy or none: kernels that TensorRT-RTX compiles for a shape in a profile's"
        " range when it is first run; in the background; or none but those of the whole range.",
        autocompletion=completing("eager", "lazy", "none"),
        show_default="eager",
    ),
]

_SHAPES, _PROCESS = "Shapes", "Process and cache"
DimsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dim",
        metavar="NAME=MIN:OPT:MAX",
        help="Range of a symbolic dimension: NAME=MIN:OPT:MAX, or NAME=N. Repeatable.",
        rich_help_panel=_SHAPES,
    ),
]
TimeoutOption = Annotated[
    str | None,
    typer.Option(
        "--timeout",
        metavar="DURATION",
        help="Stop a build that takes longer, such as 90s, 15m or 1h30m.",
        rich_help_panel=_PROCESS,
    ),
]
RetryOption = Annotated[
    bool,
    typer.Option(
        "--retry",
        help="Build again, at most three times: with a larger workspace where that was too"
        " small; where memory or an implementation is lacking, with a smaller one and a lower"
        " optimization level. Where there is a GPU, also run the plan once, and build again"
        " with a fusion broken that has no kernel there.",
        rich_help_panel=_PROCESS,
    ),
]
CacheOption = Annotated[
    str | None,
    typer.Option(
        envvar=FOLDER_VARIABLE,
        metavar="FOLDER",
        help="Folder of built plans and layer timings. \\[default: the user's cache folder]",
        show_envvar=True,
        rich_help_panel=_PROCESS,
    ),
]
NoCacheOption = Annotated[
    bool,
    typer.Option("--no-cache", help="Build even what is in the cache.", rich_help_panel=_PROCESS),
]
WarmOption = Annotated[
    bool,
    typer.Option(
        "--warm",
        help="After the build, compile the kernels of OPT and --fast-at shapes for this machine's"
        " GPU into PLAN.cache, which later processes read. Needs TensorRT-RTX and a GPU.",
        rich_help_panel=_PROCESS,
    ),
]

# Of the U-Net of LatentSync
CheckpointArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CHECKPOINT]",
        help="latentsync_unet.pt, any other .pt of such weights, or .safetensors.",
    ),
]
RandomWeights = Annotated[
    int | None, typer.Option(metavar="SEED", help="Random weights instead of a file.")
]
UNetConfigOption = Annotated[
    str | None,
    typer.Option(
        help="The U-Net's YAML or JSON, or a preset: latentsync-1.6, latentsync-1.5,"
        " latentsync-1.0, small. \\[default: the checkpoint's own, else latentsync-1.6]"
    ),
]
FloatTimestep = Annotated[
    bool,
    typer.Option(
        "--float-timestep",
        help="Take the timestep in float32 instead of int64, for schedulers whose timesteps"
        " have fractions (Euler, Heun, KDPM2).",
    ),
]
AllowMismatch = Annotated[
    bool,
    typer.Option(
        "--allow-mismatch",
        help="Go on with a checkpoint that has missing or unexpected keys; missing ones get"
        " random values.",
    ),
]

_Declaring = type[BuildConfig] | type[QuantizationSpec]
_F = TypeVar("_F", bound=Callable[..., None])


def with_fields(
    declaring: _Declaring,
    *,
    before: str,
    flags: Mapping[str, str] | None = None,
    extra_help: Mapping[str, str] | None = None,
    panels: bool = True,
) -> Callable[[_F], _F]:
    """Give a command the options that the fields of a class declare, in place of ``**options``.

    Args:
        declaring: The class. ``BuildConfig`` includes the fields of ``QuantizationSpec``.
        before: Name of the command's own parameter that follows them.
        flags: Fields to take, and the flag of each, without dashes; empty for its own. None takes
            all.
        extra_help: Field to further text of its help.
        panels: Whether to list the options in their panels.
    """

    def decorate(command: _F) -> _F:
        own = inspect.signature(command, eval_str=True)
        parameters = [
            _parameter(
                name,
                default,
                option,
                flag=(flags or {}).get(name, ""),
                extra_help=(extra_help or {}).get(name, ""),
                panel=option.panel if panels else None,
            )
            for name, default, option in _declared(declaring)
            if flags is None or name in flags
        ]
        kept = []
        for parameter in own.parameters.values():
            if parameter.name == before:
                kept += parameters
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                kept.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        command.__signature__ = own.replace(parameters=kept)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in kept}
        return command

    return decorate


def _declared(declaring: _Declaring) -> Iterator[tuple[str, Any, CommandOption]]:
    """Name, default and option of each field that has one."""
    for field in fields(declaring):
        if "option" in field.metadata:
            yield field.name, field.default, field.metadata["option"]
        elif field.type == "QuantizationSpec":
            yield from _declared(QuantizationSpec)


def _parameter(
    name: str,
    default: Any,
    option: CommandOption,
    *,
    flag: str,
    extra_help: str,
    panel: str | None,
) -> inspect.Parameter:
    help_text = option.help + extra_help
    if option.default_text:
        help_text += f" \\[default: {option.default_text}]"
    if isinstance(default, Enum):
        default = default.value
    elif default == ():
        default = None
    word: Any = list[option.type] if option.repeatable else option.type  # type: ignore[name-defined]
    declared = typer.Option(
        _flag(name, option, flag),
        help=help_text,
        metavar=option.metavar or None,
        autocompletion=_completion(name, option),
        rich_help_panel=panel,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[word | None if default is None else word, declared],
    )


def _completion(name: str, option: CommandOption) -> Callable[[str], list[str]] | None:
    """The completion of a choice."""
    choices = getattr(option.parse, "__self__", None)
    if not isinstance(choices, type) or not issubclass(choices, Enum):
        return None
    further = ("best",) if name == "precision" else ()
    return completing(*(str(choice.value) for choice in choices), *further)


def _flag(name: str, option: CommandOption, flag: str = "") -> str:
    word = flag or option.flag or name.replace("_", "-")
    return f"--{word}/--no-{word}" if option.type is bool and option.negatable else f"--{word}"


def read_fields(declaring: _Declaring, words: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields of a class from the words of a command line; others keep their defaults.

    Raises:
        SpecError, UnsupportedError: a word cannot be read; the error names the field.
    """
    found = {}
    for field in fields(declaring):
        option = field.metadata.get("option")
        if option is not None and words.get(field.name) is not None:
            word = words[field.name]
            try:
                found[field.name] = word if option.parse is None else option.parse(word)
            except TrtNativeError as error:
                error.options = error.options or (field.name,)
                raise
    return found


def flag_words(name: str, value: Any) -> list[str]:
    """The words that give a field a value, as JSON holds it.

    Raises:
        KeyError: no field of that name has an option.
    """
    option = {field: found for field, _, found in _declared(BuildConfig)}[name]
    flag, _, negated = _flag(name, option).partition("/")
    if option.type is bool:
        return [flag if value else negated]
    if option.repeatable:
        return [word for item in value for word in (flag, str(item))]
    return [flag, option.separator.join(value) if option.separator else str(value)]
