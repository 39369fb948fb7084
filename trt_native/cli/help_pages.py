"""The pages of ``--help``: names of options are whole at any width, and words, too."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from trt_native.cli.console import stdout

__all__ = [
    "PLACEHOLDERS",
    "CommandTree",
    "HelpCommand",
    "HelpGroup",
    "default_of",
    "description",
    "names_of",
    "paragraphs",
    "usage",
]

_WIDEST = 100  # characters of a line that is easy to read
_NAMES = 26  # columns of names that stand beside their text; longer ones stand above it
PLACEHOLDERS = {
    "--backend": "NAME",
    "--build-precision": "TYPE",
    "--cache-size": "SIZE",
    "--calibration-cache": "FILE",
    "--calibration-memory": "SIZE",
    "--calibration-method": "METHOD",
    "--calibration-runner": "RUNNER",
    "--checkpoint": "FILE",
    "--compute-capability": "M.N",
    "--config": "FILE|PRESET",
    "--fails": "HOW",
    "--floor": "X",
    "--format": "TYPE",
    "--hardware-compatibility": "LEVEL",
    "--html": "FILE",
    "--input": "[NAME=]FILE",
    "--instances": "N",
    "--io-precision": "TYPE",
    "--keep-fp32": "PATTERN",
    "--kernel-specialization": "WHEN",
    "--max-absolute-error": "X",
    "--max-aux-streams": "N",
    "--max-batch": "N",
    "--max-error": "X",
    "--max-relative-error": "X",
    "--measure": "WHERE",
    "--memory": "SIZE",
    "--min-cosine": "X",
    "--min-psnr": "DB",
    "--model": "MODEL.onnx",
    "--name": "NAME",
    "--opset": "N",
    "--optimization-level": "N",
    "--output": "FILE",
    "--percentile": "PERCENT",
    "--precision": "TYPE",
    "--profiling-verbosity": "LEVEL",
    "--quantize": "TYPE",
    "--quantize-block-size": "N",
    "--quantize-exclude": "PATTERN",
    "--quantize-min-coverage": "X",
    "--quantize-ops": "OP[,OP...]",
    "--quantize-preset": "PRESET",
    "--reference-runner": "RUNNER",
    "--runtime-platform": "PLATFORM",
    "--resolution": "PIXELS",
    "--save": "FILE.npz",
    "--shape": "NAME=SHAPE",
    "--times": "FILE.json",
    "--timing-cache": "FILE",
    "--trt-version": "VERSION",
    "--vae-config": "FILE|PRESET",
    "--vae-frames": "N",
    "--workspace": "SIZE",
}
"""What stands for the value of an option, the same in every command that has none of its own."""
_F = TypeVar("_F", bound=Callable[..., Any])
_DEFAULT = re.compile(r"\s*\\?\[default: (.*?)\]")


class HelpCommand(TyperCommand):
    """A command with a help page of this module."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Print the page."""
        _print_page(self, ctx)


class HelpGroup(TyperGroup):
    """A group of commands with a help page of this module.

    Attributes:
        panels: Title to names of its commands, in the order in which they are listed. Empty: all
            in one panel.
    """

    panels: ClassVar[Mapping[str, Sequence[str]]] = {}

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Print the page."""
        _print_page(self, ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands, in the order of the panels."""
        order = [name for names in self.panels.values() for name in names]
        names = super().list_commands(ctx)
        return sorted(names, key=lambda n: order.index(n) if n in order else len(order))


class CommandTree(typer.Typer):
    """A group whose commands have help pages of this module; alone, it prints its own."""

    def __init__(self, *, cls: type[HelpGroup] = HelpGroup, **options: Any) -> None:
        super().__init__(cls=cls, no_args_is_help=True, rich_markup_mode=None, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[_F], _F]:
        """As of Typer."""
        return super().command(name, cls=HelpCommand, **options)


def usage(title: str, command: Any) -> str:
    """The words of a command: ``trt-native build [OPTIONS] MODEL.onnx``."""
    words = [title, "[OPTIONS]"]
    for argument in command.params:
        if argument.param_type_name == "argument":
            name = _argument(argument)
            optional = not argument.required and not name.startswith("[")
            words.append(f"[{name}]" if optional else name)
    if hasattr(command, "commands"):
        words.append("COMMAND ...")
    return " ".join(words)


def paragraphs(command: Any) -> list[str]:
    """The paragraphs of a command's help text; those that begin with ``$`` are examples."""
    text = str(command.help or "").replace("\b\n", "").strip()
    return [textwrap.dedent(paragraph) for paragraph in text.split("\n\n") if paragraph]


def names_of(parameter: Any) -> list[str]:
    """The forms of a parameter and the placeholder of its value: ``-o``, ``--output FILE``."""
    if parameter.param_type_name == "argument":
        return [_argument(parameter)]
    forms: list[str] = [*sorted(parameter.opts, key=len), *parameter.secondary_opts]
    last = forms.pop()
    if parameter.is_flag or parameter.count:
        return [*forms, last]
    return [*forms, f"{last} {parameter.metavar or PLACEHOLDERS[last]}"]


def description(parameter: Any) -> str:
    """The help of a parameter, without its default."""
    return _DEFAULT.sub("", str(parameter.help or "")).strip()


def default_of(parameter: Any) -> tuple[str, bool]:
    """The default of a parameter, and whether it is what one would type."""
    stated = _DEFAULT.search(str(getattr(parameter, "help", "") or ""))
    if stated:
        return stated[1], False
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return shown, True
    default = parameter.default
    if isinstance(default, bool):
        forms = parameter.opts if default else parameter.secondary_opts
        return (forms[0] if forms and parameter.secondary_opts else ""), True
    if callable(default) or default is None or default in ("", ()) or _counts(parameter):
        return "", False
    return str(default), True


def _counts(parameter: Any) -> bool:
    return bool(getattr(parameter, "count", False))


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _print_page(command: Any, ctx: Any) -> None:
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    stdout.print(Text("\n").join(_page(command, ctx, width)), highlight=False)


def _page(command: Any, ctx: Any, width: int) -> Iterator[Text]:
    for line in _wrapped(f"Usage: {usage(ctx.command_path, command)}", width, hanging=7):
        yield Text(line, "bold")
    for paragraph in paragraphs(command):
        yield Text()
        if paragraph.startswith("$ "):
            yield from (Text(f"  {line}", "green") for line in paragraph.splitlines())
        else:
            yield from map(Text, _wrapped(paragraph, width))
    for panel, parameters in _parameter_panels(command.get_params(ctx)).items():
        yield from _listed(panel, [(names_of(p), _sentences(p)) for p in parameters], width)
    for panel, names in _command_panels(command, ctx).items():
        summaries = [([name], _summary(command.get_command(ctx, name))) for name in names]
        yield from _listed(panel, summaries, width)


def _parameter_panels(parameters: Sequence[Any]) -> dict[str, list[Any]]:
    panels: dict[str, list[Any]] = {}
    for parameter in parameters:
        if not getattr(parameter, "hidden", False):
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panel = getattr(parameter, "rich_help_panel", None) or usual
            panels.setdefault(panel, []).append(parameter)
    return panels


def _command_panels(command: Any, ctx: Any) -> Mapping[str, Sequence[str]]:
    if not hasattr(command, "commands"):
        return {}
    return command.panels or {"Commands": command.list_commands(ctx)}


def _summary(command: Any) -> str:
    return paragraphs(command)[0] if paragraphs(command) else ""


def _sentences(parameter: Any) -> str:
    default, _ = default_of(parameter)
    variable = parameter.envvar if getattr(parameter, "show_envvar", False) else None
    required = parameter.required and parameter.param_type_name == "option"
    notes = (
        "[required]" if required else "",
        f"[default: {default}]" if default else "",
        f"[environment: {variable}]" if variable else "",
    )
    return " ".join(filter(None, (description(parameter), *notes)))


def _listed(panel: str, entries: Sequence[tuple[Sequence[str], str]], width: int) -> Iterator[Text]:
    """A heading, and names with their texts: beside them, or below where the names are long."""
    yield Text()
    yield Text(f"{panel}:", "bold")
    beside = width >= 2 * _NAMES + 20
    column = min(_NAMES, max(len(", ".join(names)) for names, _ in entries)) + 4 if beside else 6
    for names, text in entries:
        heads = _wrapped(", ".join(names), width - 2, hanging=2, separator=", ")
        lines = _wrapped(text, width - column) or [""]
        if beside and len(heads) == 1 and len(heads[0]) + 4 <= column:
            yield Text(f"  {heads[0]}".ljust(column), "cyan").append(lines.pop(0), "default")
        else:
            yield from (Text(f"  {head}", "cyan") for head in heads)
        yield from (Text(" " * column + line) for line in lines if line)


def _wrapped(text: str, width: int, hanging: int = 0, separator: str = " ") -> list[str]:
    """Lines of at most a width, or of one word that is longer; further ones begin with blanks."""
    lines: list[str] = []
    words = " ".join(text.split()).split(separator)
    for number, word in enumerate(words):
        word += separator.rstrip() if number < len(words) - 1 else ""
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(" " * (hanging if lines else 0) + word)
    return lines
