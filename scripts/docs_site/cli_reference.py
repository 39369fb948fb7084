"""The command line as Markdown, from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from trt_native.cli.app import app
from trt_native.cli.help_pages import default_of, description, names_of, paragraphs, usage

__all__ = ["cli_reference", "commands"]

_INTRODUCTION = """\
# Command line

Generated from the commands: `trt-native COMMAND --help` prints the same. Options may be given in
any order, before or after the arguments; one that is repeatable is given once for each value. See
also the [exit codes](exit_codes.md) and the [environment variables](environment.md).
"""


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
        parts += map(_paragraph, paragraphs(command))
        if not hasattr(command, "commands"):
            parts.append(f"```\n{usage(title, command)}\n```\n")
        parts += _options(words, command)
    return "\n".join(parts)


def _walk(command: Any, words: str) -> Iterator[tuple[str, Any]]:
    yield words, command
    for name in command.list_commands(None) if hasattr(command, "commands") else ():
        inner = command.commands[name]
        if not inner.hidden:
            yield from _walk(inner, f"{words} {name}".strip())


def _anchor(words: str) -> str:
    return words.replace(" ", "-") or "trt-native"


def _paragraph(text: str) -> str:
    """A paragraph of a help text; commands as code."""
    return f"```console\n{text}\n```\n" if text.startswith("$ ") else f"{_escaped(text)}\n"


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
    return ", ".join(f"`{form}`" for form in names_of(parameter))


def _text(parameter: Any) -> str:
    """The help of a parameter, with its default and its environment variable at the end."""
    default, typed = default_of(parameter)
    sentences = [_escaped(description(parameter))]
    if getattr(parameter, "required", False) and parameter.param_type_name == "option":
        sentences.append("Required.")
    if default:
        sentences.append(f"Default: {f'`{default}`' if typed else _escaped(default)}.")
    if parameter.envvar:
        sentences.append(f"Environment variable: `{parameter.envvar}`.")
    return " ".join(sentences)


def _escaped(text: str) -> str:
    """The text with what Markdown would read as a mark taken literally, code apart."""
    return re.sub(r"([*_<>\[\]|#])", r"\\\1", text)
