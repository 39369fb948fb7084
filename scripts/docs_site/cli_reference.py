"""The command line as Markdown, from the commands themselves."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from trt_native.cli.app import app

__all__ = ["cli_reference", "commands"]

_INTRODUCTION = """\
# Command line

Generated from the commands: `trt-native COMMAND --help` prints the same. Options may be given in
any order, before or after the arguments; one that is repeatable is given once for each value. See
also the [exit codes](exit_codes.md) and the [environment variables](environment.md).
"""
_TYPES = {Path: "PATH", str: "TEXT", int: "INTEGER", float: "FLOAT"}
_DEFAULT = re.compile(r"\s*\\?\[default: (.*?)\]")


def commands() -> dict[str, Any]:
    """Every command that does something, and every group, by what is typed after ``trt-native``."""
    return dict(_walk(get_command(app), ""))


def cli_reference() -> str:
    """The page: a section for each command."""
    parts = [_INTRODUCTION]
    for words, command in commands().items():
        title = f"trt-native {words}".strip()
        level = 2 + words.count(" ")
        parts.append(f"{'#' * level} `{title}` {{ #{_anchor(words)} }}\n")
        parts += _paragraphs(str(command.help or ""))
        if not hasattr(command, "commands"):
            parts.append(f"```\n{_usage(title, command)}\n```\n")
        parts += _options(words, command)
    return "\n".join(parts)


def _walk(command: Any, words: str) -> Iterator[tuple[str, Any]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _walk(inner, f"{words} {name}".strip())


def _anchor(words: str) -> str:
    return words.replace(" ", "-") or "trt-native"


def _paragraphs(text: str) -> Iterator[str]:
    """A help text without the marks that only a terminal reads; commands in it as code."""
    for paragraph in text.replace("\b\n", "").strip().split("\n\n"):
        if paragraph.lstrip().startswith("$ "):
            yield f"```console\n{textwrap.dedent(paragraph)}\n```\n"
        else:
            yield _escaped(paragraph) + "\n"


def _usage(title: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = [title, "[OPTIONS]"]
    for argument in arguments:
        name = _argument(argument)
        optional = not argument.required and not name.startswith("[")
        words.append(f"[{name}]" if optional else name)
    return " ".join(words)


def _options(words: str, command: Any) -> Iterator[str]:
    """A list of arguments, and of the options of each panel."""
    panels: dict[str, list[Any]] = {}
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
        panels.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(
            parameter
        )
    for panel, parameters in panels.items():
        yield f"**{panel}**\n"
        for parameter in parameters:
            anchor = f"{_anchor(words)}--{parameter.name}"
            yield f"{_name(parameter)} {{ #{anchor} }}\n:   {_text(parameter)}\n"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_argument(parameter)}`"
    value = "" if parameter.is_flag or parameter.count else f" {_value(parameter)}"
    forms = [*parameter.opts, *parameter.secondary_opts]
    return ", ".join(f"`{form}{value}`" for form in forms)


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _value(parameter: Any) -> str:
    """What stands for a value: its name, or its type in the words of ``--help``."""
    annotation = parameter.type_descriptor.annotation
    inner = getattr(annotation, "__args__", (annotation,))[0]
    return str(parameter.metavar or _TYPES[inner])


def _text(parameter: Any) -> str:
    """The help of a parameter, with its default and its environment variable at the end."""
    text = str(parameter.help or "")
    stated = _DEFAULT.search(text)
    text = _DEFAULT.sub("", text).strip()
    default = stated[1] if stated else _default(parameter)
    sentences = [_escaped(text)]
    if getattr(parameter, "required", False) and parameter.param_type_name == "option":
        sentences.append("Required.")
    if default:
        sentences.append(f"Default: {_escaped(default)}.")
    if parameter.envvar:
        sentences.append(f"Environment variable: `{parameter.envvar}`.")
    return " ".join(sentences)


def _default(parameter: Any) -> str:
    """The default, where help of a terminal shows it, too."""
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return f"`{shown}`"
    default = parameter.default
    if callable(default) or isinstance(default, bool) or default in (None, "", ()):
        return ""
    return "" if getattr(parameter, "count", False) else f"`{default}`"


def _escaped(text: str) -> str:
    """The text with what Markdown would read as a mark taken literally, code apart."""
    return re.sub(r"([*_<>\[\]|#])", r"\\\1", text)
