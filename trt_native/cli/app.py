"""The command tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import typer

from trt_native._version import __version__
from trt_native.cli.bench import bench
from trt_native.cli.build import build
from trt_native.cli.build_all import build_all
from trt_native.cli.build_latentsync import build_latentsync
from trt_native.cli.cache import cache_app
from trt_native.cli.calibrate import calibrate
from trt_native.cli.console import Verbose, flag_of, print_json_error, set_verbosity, stdout
from trt_native.cli.convert import convert
from trt_native.cli.debug import debug_app
from trt_native.cli.deploy import deploy_app
from trt_native.cli.diff import diff
from trt_native.cli.doctor import doctor
from trt_native.cli.export import export_app
from trt_native.cli.guide import guide_app
from trt_native.cli.help_pages import CommandTree, HelpGroup
from trt_native.cli.inspect import inspect
from trt_native.cli.quantize import quantize
from trt_native.cli.refit import refit
from trt_native.cli.run import run
from trt_native.cli.verify import verify

__all__ = ["app"]

_UsageError: Any = typer.BadParameter.__base__  # which Typer has from click, or of its own


class _Program(HelpGroup):
    """The command tree, which with ``--json`` also prints wrong usage as JSON."""

    panels: ClassVar[Mapping[str, Sequence[str]]] = {
        "Build plans": ("export", "build", "build-all", "build-latentsync"),
        "Change ONNX files": ("convert", "quantize", "calibrate"),
        "Examine and run": ("inspect", "run", "verify", "bench", "diff", "debug"),
        "Use and maintain": ("refit", "deploy", "cache", "doctor"),
    }
    _json = False

    def make_context(self, info_name: Any, args: Sequence[str], *rest: Any, **extra: Any) -> Any:
        self._json = "--json" in args
        with self._reporting():
            return super().make_context(info_name, list(args), *rest, **extra)

    def invoke(self, ctx: Any) -> Any:
        with self._reporting():
            return super().invoke(ctx)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except _UsageError as error:
            if self._json:
                parameter = getattr(error, "param", None)
                flag = flag_of(parameter) if parameter else getattr(error, "option_name", "")
                options = [flag] if flag else []
                print_json_error("UsageError", error.format_message(), options=options)
            raise


app = CommandTree(
    name="trt-native",
    cls=_Program,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        stdout.print(f"trt-native {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    verbose: Verbose = 0,
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Build native TensorRT plans from PyTorch and ONNX models, and run them.

    $ trt-native build net.onnx --dim batch=1:8:32
    $ trt-native inspect net.plan
    """
    set_verbosity(verbose)


for group in (export_app, guide_app, debug_app, deploy_app, cache_app):
    app.add_typer(group)
for command in (
    build,
    build_all,
    build_latentsync,
    convert,
    quantize,
    calibrate,
    inspect,
    run,
    verify,
    bench,
    diff,
    refit,
    doctor,
):
    app.command()(command)
