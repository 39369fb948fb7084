"""``trt-native export FILE.py:NAME``: any PyTorch module."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_json, report_errors, stderr
from trt_native.cli.export_unet import print_export
from trt_native.cli.help_pages import HelpGroup
from trt_native.cli.options import complete_precision
from trt_native.errors import ModelError, SpecError
from trt_native.graph.outputs import check_outputs
from trt_native.progress_bars import ProgressDisplay

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trt_native.progress import Progress

__all__ = ["ExportGroup", "module"]

_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class ExportGroup(HelpGroup):
    """The exports, of which that of any module needs no name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read a target in the place of a command as the argument of ``module``."""
        first = args[0] if args else "-h"
        is_option = first.startswith("-")
        named = first in self.commands or (is_option and any(a in self.commands for a in args))
        if not named and first not in ("--help", "-h"):
            args = ["module", *args]
        return super().parse_args(ctx, args)


@report_errors
def module(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py:NAME",
            help="Or package.module:NAME: a torch.nn.Module, or a class or function that makes"
            " one.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=SHAPE[:TYPE]",
            help="An input of forward by its parameter, such as x=1x3x224x224, ids=2x16:int64 or"
            " x=FILE.npy; or an .npz file with several. batch.image is the entry image of the"
            " dictionary batch, parts.0 the first of a list. Repeatable.",
        ),
    ] = None,
    constants: Annotated[
        list[str] | None,
        typer.Option(
            "--constant",
            metavar="NAME=VALUE",
            help="Another argument of forward, which becomes a constant. Repeatable.",
        ),
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=AXIS:DIMENSION[,...]",
            help="Axes of an input that stay dynamic, such as x=0:batch,2:height. Repeatable.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A .pt, .pth or .safetensors file with the module's state dict."
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Option(
            "--arg",
            metavar="NAME=VALUE",
            help="An argument of the class or function that makes the module. Repeatable.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16 or bf16: type of the module, and of inputs without one."
            " \\[default: the module's own]",
            autocompletion=complete_precision,
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(help="ONNX operator-set version. \\[default: 18, and 22 for bf16]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    r"""Export any PyTorch module, such as net.py:Net or torchvision.models:resnet50.

    The word "module" may be left out. It is loaded by Python: this is for your own code.

    $ trt-native export module net.py:Net -o net.onnx \
        --input x=1x3x224x224 --dynamic x=0:batch
    """
    from trt_native.export.module import check_opset, export_module, require_torch
    from trt_native.export.target import load_module, read_arguments, read_axes, read_example

    _check_target(target)
    kind = _kind(precision)
    axes = read_axes(dynamic or [])
    made_with = read_arguments(arguments or [], "arguments")
    fixed = read_arguments(constants or [], "constants")
    files = [entry.partition("=")[2] or entry for entry in inputs or []]
    reads = [Path(file) for file in files if file.endswith((".npy", ".npz"))]
    check_opset(opset)
    check_outputs([output], reads=[weights, target.rpartition(":")[0], *reads])
    require_torch()
    with ProgressDisplay(stderr) as progress:
        net = load_module(target, made_with)
        if weights is not None:
            _load_weights(net, weights, progress)
        if kind is not None:
            net = net.to(_torch_type(kind))
        args, kwargs = read_example(net, inputs or [], fixed)
        with contextlib.redirect_stdout(sys.stderr):
            report = export_module(
                net, args, kwargs, path=output, dynamic=axes, opset=opset, progress=progress
            )
    if json:
        print_json(report.to_dict())
    else:
        print_export(report)


def _check_target(target: str) -> None:
    if ":" not in target:
        raise SpecError(
            f"{target}: not an export that there is, and not FILE.py:NAME or package.module:NAME;"
            " trt-native export --help lists what there is",
        )


def _kind(precision: str | None) -> str | None:
    if precision is None:
        return None
    if precision.lower() not in _TYPES:
        raise SpecError(f"{precision!r} is none of: {', '.join(_TYPES)}", options=("precision",))
    return _TYPES[precision.lower()]


def _torch_type(kind: str) -> Any:
    import torch

    return getattr(torch, kind)


def _load_weights(net: nn.Module, path: Path, progress: Progress) -> None:
    """Put the weights of a file into a module, all of them.

    Raises:
        ModelError: they are not those of the module; all mismatches are in one error.
    """
    from trt_native.models.latentsync.checkpoint import check_fit, load_checkpoint

    state = _without_prefix(load_checkpoint(path, progress=progress).state_dict, net.state_dict())
    own = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    try:
        check_fit(own, {name: tuple(t.shape) for name, t in state.items()}, strict=True)
        net.load_state_dict(dict(state))
    except ModelError as error:
        reason = error.message.partition(": ")[2]
        raise ModelError(f"{path} does not fit {type(net).__name__}: {reason}") from None
    except RuntimeError as error:  # torch's, for tensors that it cannot copy
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path} does not fit {type(net).__name__}: {reason}") from None


def _without_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state without what is before the names of all entries, such as ``model.``."""
    first = next(iter(state))
    for name in own:
        prefix = first.removesuffix(name)
        if prefix != first and prefix.endswith(".") and all(n.startswith(prefix) for n in state):
            return {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state
