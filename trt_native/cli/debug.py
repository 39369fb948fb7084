"""``trt-native debug``: the part of a model that is at fault."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_json, report_errors, stderr, stdout
from trt_native.cli.debug_precision import precision
from trt_native.cli.help_pages import CommandTree
from trt_native.cli.options import (
    BackendOption,
    DimsOption,
    completing,
    flag_words,
    read_fields,
    with_fields,
)
from trt_native.config import BuildConfig, QuantizationSpec
from trt_native.errors import SpecError
from trt_native.files import atomic_write, with_ending
from trt_native.shapes import ProfileSpec
from trt_native.units import parse_duration

if TYPE_CHECKING:
    from trt_native.debug.checks import Check
    from trt_native.debug.reduce import Reduction
    from trt_native.debug.trials import Trial

__all__ = ["debug_app"]

debug_app = CommandTree(
    name="debug",
    help="Find the part of a model that is at fault.\n\n"
    "$ trt-native debug reduce net.onnx --fails build",
)

debug_app.command()(precision)
_FAILURE, _SHAPES = "Failure", "Shapes"
_FAILURES = ("build", "crash", "slow", "verify")
_REPORT = "report.md"


@debug_app.command()
@report_errors
@with_fields(BuildConfig, before="json")
def reduce(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model that fails.")],
    check: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="A command that ends with another exit code than 0 if a model fails, the same for"
            " parts of it; 125: no answer. {} stands for the model's path, which is appended"
            " where there is no {}.",
            rich_help_panel=_FAILURE,
        ),
    ] = None,
    fails: Annotated[
        str | None,
        typer.Option(
            help="build: the build fails, with the same error; crash: it crashes, with the same"
            " signal; slow: it takes longer than --slower-than; verify: the plan's results are"
            " wrong, which needs a GPU. \\[default: build, without --check]",
            autocompletion=completing(*_FAILURES),
            rich_help_panel=_FAILURE,
        ),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Output that matches this is the failure, whatever its kind or exit code.",
            rich_help_panel=_FAILURE,
        ),
    ] = None,
    slower_than: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="For --fails slow: what the build exceeds, such as 90s.",
            rich_help_panel=_FAILURE,
        ),
    ] = None,
    max_relative_error: Annotated[
        float | None,
        typer.Option(
            help="For --fails verify: largest relative L2 error of right results. \\[default: by"
            " precision, as for verify]",
            rich_help_panel=_FAILURE,
        ),
    ] = None,
    timeout_s: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            metavar="DURATION",
            help="Stop a check that takes longer; the model does not fail then. \\[default: five"
            " times what the whole model takes, at least 60s]",
            rich_help_panel=_FAILURE,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help=f"Folder for reduced.onnx, {_REPORT} and the outcomes of checks, from which the"
            " same command goes on after an interrupt. \\[default: MODEL.reduced]",
        ),
    ] = None,
    backend: BackendOption = "auto",
    dims: DimsOption = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="NAME=MIN:OPT:MAX",
            help="Range of an input's shape, as for build. Repeatable.",
            rich_help_panel=_SHAPES,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    **options: Any,
) -> None:
    """Find the smallest part of a model that still fails, and write a report of it.

    $ trt-native debug reduce net.onnx --precision fp16
    $ trt-native debug reduce net.onnx --fails crash
    """
    from trt_native.debug.reduce import reduce_model
    from trt_native.debug.report import environment, report

    folder = output or with_ending(model, ".reduced")
    profile = ProfileSpec.parse(dims or [], shapes or [])
    given = bool(dims or shapes)
    config = BuildConfig(
        profiles=(profile,) if given else (),
        quantization=QuantizationSpec(**read_fields(QuantizationSpec, options)),
        **read_fields(BuildConfig, options),
    )
    _check_options(check, fails, slower_than, max_relative_error, config)
    chosen, command = _checking(
        model, folder, check, fails, slower_than, max_relative_error, config, backend
    )
    try:
        reduction = reduce_model(
            model,
            folder,
            chosen,
            profile=profile if given else None,
            pattern=match,
            timeout_s=None if timeout_s is None else parse_duration(timeout_s),
            on_trial=_print_trial,
        )
    except KeyboardInterrupt:
        stderr.print("the same command goes on from here", highlight=False)
        raise
    machine = environment(backend)
    text = report(reduction, model.name, command(reduction.path), machine)
    with atomic_write(reduction.path.parent / _REPORT) as file:
        file.write(text.encode(errors="replace"))
    if json:
        print_json(_document(reduction, command(reduction.path), machine))
        return
    stdout.print(text, highlight=False)
    stderr.print(
        f"{reduction.nodes_before} nodes, and {reduction.nodes_after} after {reduction.checks}"
        f" checks in {reduction.seconds:.0f} s; written to {reduction.path.parent}",
        highlight=False,
    )


def _check_options(
    check: str | None,
    fails: str | None,
    slower_than: str | None,
    max_relative_error: float | None,
    config: BuildConfig,
) -> None:
    if check is not None and fails is not None:
        raise SpecError("give --check or --fails, not both")
    if fails is not None and fails not in _FAILURES:
        raise SpecError(f"--fails {fails}: choose from {', '.join(_FAILURES)}")
    if (slower_than is not None) != (fails == "slow"):
        raise SpecError("--fails slow and --slower-than DURATION go together")
    if max_relative_error is not None and fails != "verify":
        raise SpecError("--max-relative-error: no effect without --fails verify")
    if check is not None and (changed := _changed(config)):
        raise SpecError(
            f"{', '.join(word for word, *_ in changed)}: no effect with --check, whose command"
            " says what is done"
        )


def _checking(
    model: Path,
    folder: Path,
    check: str | None,
    fails: str | None,
    slower_than: str | None,
    max_relative_error: float | None,
    config: BuildConfig,
    backend: str,
) -> tuple[Check, Callable[[Path], str]]:
    """The check, and the command that shows the failure of the reduced model."""
    from trt_native.cuda import require_gpu
    from trt_native.debug.checks import BuildCheck, CommandCheck, VerifyCheck, config_for

    if check is not None:
        by_command = CommandCheck(check)
        return by_command, lambda reduced: by_command.line(Path(reduced.name))

    def command(reduced: Path) -> str:
        own = config_for(config, reduced)
        words = ["trt-native", "build", reduced.name, "--backend", backend, *_profile_words(own)]
        line = shlex.join([*words, *(word for part in _changed(own) for word in part)])
        if fails != "verify":
            return line
        plan = with_ending(reduced, ".plan").name
        verify = ["trt-native", "verify", plan, "--against", reduced.name, "--random", "0"]
        if max_relative_error is not None:
            verify += ["--max-relative-error", f"{max_relative_error:g}"]
        return f"{line} && {shlex.join(verify)}"

    if fails == "verify":
        require_gpu()
        return VerifyCheck(config, backend, model, folder, max_relative_error), command
    slow_s = None if slower_than is None else parse_duration(slower_than)
    return BuildCheck(config, backend, model, folder, fails or "build", slow_s), command


def _changed(config: BuildConfig) -> list[list[str]]:
    """The words of each option that has another value than its default."""
    found = []
    for given, default in ((config, BuildConfig()), (config.quantization, QuantizationSpec())):
        for field in fields(given):
            value = getattr(given, field.name)
            if "option" in field.metadata and value != getattr(default, field.name):
                found.append(flag_words(field.name, value))
    return found


def _profile_words(config: BuildConfig) -> list[str]:
    words = []
    for profile in config.profiles:
        words += [w for n, e in profile.dims.items() for w in ("--dim", f"{n}={e}")]
        words += [w for n, s in profile.shapes.items() for w in ("--shape", f"{n}={s}")]
    return words


def _print_trial(trial: Trial) -> None:
    outcome = "fails" if trial.fails else "does not fail"
    nodes = f"{trial.nodes} node{'' if trial.nodes == 1 else 's'}"
    stderr.print(
        f"check {trial.number}: {nodes}: {outcome} ({trial.seconds:.1f} s)", highlight=False
    )


def _document(reduction: Reduction, command: str, machine: dict[str, str]) -> dict[str, Any]:
    return {
        **asdict(reduction),
        "path": str(reduction.path),
        "form": reduction.form.value,
        "command": command,
        "machine": machine,
    }
