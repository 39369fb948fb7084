"""Shared by the commands: the two consoles, error reports, logging, JSON, tables."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import logging
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, TypeVar

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trt_native.cli import interrupted
from trt_native.errors import TrtNativeError, on_one_line, shortened

__all__ = [
    "Verbose",
    "flag_of",
    "print_command",
    "print_json",
    "print_json_error",
    "printable",
    "report_errors",
    "set_verbosity",
    "stderr",
    "stdout",
    "table",
]


def printable(text: str) -> str:
    """The text as a terminal shows it, line ends apart: control characters are escaped.

    Names in a model, in a plan's manifest and of files may hold some, and may be very long: they
    are without their middle then, as what follows takes time for each character.
    """
    return "\n".join(shortened(on_one_line(line)) for line in text.split("\n"))


class _Console(Console):
    """A console on which strings are only text: no markup, no emoji for words between colons."""

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


stdout = _Console()
stderr = _Console(stderr=True)

_F = TypeVar("_F", bound=Callable[..., None])
Verbose = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, help="TensorRT's information; twice: everything."),
]
_verbosity = 0


def set_verbosity(level: int) -> None:
    """Show warnings (0), TensorRT's information too (1), or everything (2) on standard error."""
    from rich.logging import RichHandler

    global _verbosity
    _verbosity = level
    handler = RichHandler(console=stderr, show_path=False, show_time=False)
    handler.setFormatter(_Formatter("%(message)s"))
    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    logger = logging.getLogger("trt_native")
    for earlier in [h for h in logger.handlers if isinstance(h, RichHandler)]:
        logger.removeHandler(earlier)
    logger.addHandler(handler)
    logger.setLevel(levels[min(level, 2)])


def report_errors(command: _F) -> _F:
    """End a failing command with one clear message and exit code 1 instead of a traceback.

    With ``--json`` the error is also a JSON document on standard output. The command gets the
    option ``--verbose``, too, which may so stand behind it.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        # No parameters with defaults: Python 3.10 makes Optional of the type beside a None, and
        # Typer an argument of an Optional context.
        context, verbose = kwargs.pop("command_context", None), kwargs.pop("verbose", 0)
        fail = functools.partial(_fail, context=context, json=bool(kwargs.get("json")))
        if verbose:
            set_verbosity(max(verbose, _verbosity))
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt:
            interrupted()
        except TrtNativeError as error:
            fail(error)
        except BrokenPipeError:
            # The reader has gone; the interpreter must not try to flush to it again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except OSError as error:
            fail(TrtNativeError(f"{error.filename or 'input/output'}: {error.strerror or error}"))
        except MemoryError:
            fail(TrtNativeError("the machine has too little memory for this"))

    # Typer passes the context to a parameter of its type, whichever its name.
    added = {"command_context": typer.Context, "verbose": Verbose}
    own = inspect.signature(command, eval_str=True)
    run.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), *itertools.starmap(_keyword, added.items())]
    )
    run.__annotations__ = {**command.__annotations__, **added}
    return run  # type: ignore[return-value]


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    default = 0 if annotation is Verbose else inspect.Parameter.empty
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


def _flags(error: TrtNativeError, context: typer.Context | None) -> list[str]:
    """The flags that set an error's options in the running command."""
    known = context.command.params if context is not None else ()
    parameters = {parameter.name: parameter for parameter in known}
    flags = [flag_of(parameters[name]) for name in error.options if name in parameters]
    return list(filter(None, flags))


def flag_of(parameter: Any) -> str:
    """The flag that changes the default, such as ``--name``; empty for an argument."""
    if parameter.param_type_name != "option":
        return ""
    forms = [parameter.opts, parameter.secondary_opts if parameter.default is None else ()]
    return "/".join(max(flags, key=len) for flags in forms if flags)


def _fail(error: TrtNativeError, context: typer.Context | None, json: bool) -> None:
    flags = _flags(error, context)
    listed = f" ({', '.join(flags)})" if flags else ""
    stderr.print("error: ", style="bold red", end="")
    stderr.print("\n  ".join((error.message + listed, *error.lines)), highlight=False)
    if json:
        print_json_error(
            type(error).__name__,
            error.message,
            problems=error.problems,
            details=error.details,
            options=flags,
        )
    if _verbosity >= 2:
        stderr.print(traceback.format_exc(), markup=False, highlight=False)
    raise typer.Exit(1) from None


def print_json_error(
    kind: str,
    message: str,
    *,
    problems: Sequence[str] = (),
    details: Sequence[str] = (),
    options: Sequence[str] = (),
) -> None:
    """Write the JSON document of an error to standard output; ``options`` are flags."""
    fields = {"problems": problems, "details": details, "options": options}
    print_json({"error": {"kind": kind, "message": message, **fields}})


def print_json(data: object) -> None:
    """Write one JSON document to standard output."""
    stdout.file.write(json.dumps(data, indent=1) + "\n")


def print_command(command: str) -> None:
    """Write a command to standard output, whole, so that it can be copied."""
    stdout.file.write(on_one_line(command) + "\n")


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table to standard output; as a list where the terminal is too narrow for its words.

    Args:
        title: Its heading.
        columns: Their names; no heads where all are empty.
        rows: Cells. One that is a tuple has several lines; a line end in a text is escaped.
    """
    names = list(columns)
    heads = [_text(name) for name in names]
    cells = [[_text(cell) for cell in row] for row in rows]
    if title:
        stdout.print(_text(title, "bold"))
    widths = _widths([heads, *cells], stdout.width - 3 * len(names) - 1)
    if widths is None:
        _print_records(heads, cells)
        return
    grid = Table(show_header=any(names))
    for head, width in zip(heads, widths, strict=True):
        grid.add_column(head, width=width, overflow="fold")
    for row in cells:
        grid.add_row(*row)
    stdout.print(grid)


def _widths(rows: Sequence[Sequence[Text]], available: int) -> list[int] | None:
    """Widths of columns, in which no word is broken; None where these are too wide."""
    columns = list(zip(*rows, strict=True))
    widths = [_longest(column, str.split) for column in columns]
    wanted = [_longest(column, str.splitlines) for column in columns]
    left = available - sum(widths)
    if left < 0:
        return None
    lacking = sorted(range(len(columns)), key=lambda i: wanted[i] - widths[i])
    for position, i in enumerate(lacking):
        given = min(wanted[i] - widths[i], left // (len(lacking) - position))
        widths[i] += given
        left -= given
    return widths


def _longest(column: Iterable[Text], split: Callable[[str], list[str]]) -> int:
    return max((cell_len(part) for text in column for part in split(text.plain)), default=0)


def _print_records(heads: Sequence[Text], rows: Iterable[Sequence[Text]]) -> None:
    """Print rows one below the other: each cell on lines of its own, with its column's name.

    Words stay whole. The terminal wraps one that is wider than it is, so that it can be copied.
    """
    for row in rows:
        for number, (head, cell) in enumerate(zip(heads, row, strict=True)):
            text = f"{head.plain}: {cell.plain}" if head.plain else cell.plain
            if number == 0:
                stdout.print(Text(text, "bold"))
            elif cell.plain:
                first, *others = text.split("\n")
                stdout.print(Text(_indented(first)))
                for line in others:  # deeper where a column's name is in front of the first
                    stdout.print(Text(_indented(line, "    " if head.plain else "  ")))


def _indented(line: str, indent: str = "  ") -> str:
    """A line with its words whole, in the terminal's width."""
    return textwrap.fill(
        line,
        stdout.width,
        initial_indent=indent,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _text(content: object, style: str = "") -> Text:
    lines = content if isinstance(content, tuple) else (content,)
    return Text("\n".join(shortened(on_one_line(str(line))) for line in lines), style)
