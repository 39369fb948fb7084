"""``trt-native deploy``: deployment with Triton, DeepStream or trtexec."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_native.cli.console import print_command, print_json, report_errors, stderr, table
from trt_native.cli.help_pages import CommandTree
from trt_native.cli.inputs import open_inputs, read_shapes
from trt_native.cli.options import (
    AllowHostCode,
    IgnoreManifest,
    LeanRuntime,
    PluginsOption,
    open_plan,
)
from trt_native.errors import SpecError

if TYPE_CHECKING:
    from trt_native.plans.plan import Plan

__all__ = ["deploy_app"]

deploy_app = CommandTree(
    name="deploy",
    help="Deploy a plan with Triton, DeepStream or trtexec.\n\n"
    "$ trt-native deploy trtexec net.plan",
)

_PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="The plan.")]


@deploy_app.command()
@report_errors
def triton(
    plan: _PlanArgument,
    repository: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Triton's model repository. Made if missing.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model. \\[default: the plan's file name]")
    ] = None,
    instances: Annotated[int, typer.Option(help="Execution contexts on each GPU.")] = 1,
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="Largest batch Triton may form; 0: none. \\[default: what the plan allows]"
        ),
    ] = None,
    profile: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="Number of a profile to serve. Repeatable. \\[default: all]"
        ),
    ] = None,
    batching_delay: Annotated[
        int | None,
        typer.Option(
            metavar="MICROSECONDS", help="Dynamic batching: how long a request may wait for others."
        ),
    ] = None,
    warmup: Annotated[
        bool, typer.Option(help="Run each profile once before the model is ready.")
    ] = True,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="Also run these inputs before the model is ready: NAME=FILE.npy, or an .npz file"
            " with all of them. Repeatable.",
        ),
    ] = None,
    gpu: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="Number of a GPU for the instances. Repeatable. \\[default: all]"
        ),
    ] = None,
    rate_resource: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COUNT",
            help="What a run takes of Triton's rate limiter. Repeatable.",
        ),
    ] = None,
    rate_priority: Annotated[
        int | None,
        typer.Option(metavar="N", help="Priority for the rate limiter; 1 is the highest."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a model of this name that differs.")
    ] = False,
    ignore_manifest: IgnoreManifest = False,
    allow_host_code: AllowHostCode = False,
    lean_runtime: LeanRuntime = None,
    plugins: PluginsOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    r"""Write NAME/1/model.plan and NAME/config.pbtxt into a Triton model repository.

    $ trt-native deploy triton net.plan \
        --repository models
    """
    from trt_native.deploy import TritonConfig, deploy_triton, plan_tensors

    loaded = open_plan(plan, ignore_manifest, allow_host_code, lean_runtime, plugins)
    with open_inputs(inputs or []) as given:
        tensors = plan_tensors(loaded) if given.names else ()
        arrays = given.read([tensor for tensor in tensors if tensor.mode == "input"])
    config = TritonConfig(
        name=_name_of(plan) if name is None else name,
        instances=instances,
        max_batch=max_batch,
        profiles=tuple(profile or ()),
        batching_delay_us=batching_delay,
        warmup=warmup,
        warmup_inputs=arrays,
        gpus=tuple(gpu or ()),
        resources=_read_resources(rate_resource or []),
        priority=rate_priority,
    )
    folder, model = deploy_triton(loaded, repository, config, force=force)
    linked = (folder / "1" / "model.plan").samefile(plan)
    needs = _needs(loaded)
    if config.resources or config.priority is not None:
        needs += ", started with --rate-limit=execution_count"
    if json:
        print_json(
            {
                "folder": str(folder),
                "linked": linked,
                "max_batch_size": model.max_batch_size,
                "no_batching": model.no_batching,
                "needs": needs,
                "config": model.config,
            }
        )
        return
    batch = str(model.max_batch_size)
    if model.no_batching:
        batch += f": {model.no_batching}"
    rows = [
        ("model", str(folder)),
        ("plan", "hard link" if linked else "copy"),
        ("max_batch_size", batch),
        ("needs", f"a Triton server with {needs}"),
    ]
    table("Deployed", ("", ""), rows)


@deploy_app.command()
@report_errors
def deepstream(
    plan: _PlanArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where to make the model's folder."),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the folder. \\[default: the plan's file name]")
    ] = None,
    network_type: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="What the outputs mean: detector, classifier, segmentation,"
            " instance-segmentation, or other, for none of these.",
        ),
    ] = "other",
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Names of the classes, one a line. \\[default: those in Ultralytics' metadata]",
        ),
    ] = None,
    color: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT", help="rgb, bgr or gray. \\[default: by the number of channels]"
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Factor for pixels from 0 to 255. \\[default: 1, or 1/255 with Ultralytics'"
            " metadata]",
        ),
    ] = None,
    offset: Annotated[
        list[float] | None,
        typer.Option(
            metavar="X", help="What to subtract of a channel first. Once for each channel."
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Largest batch. \\[default: what the plan allows]"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Size of the input. \\[default: the plan's optimum]"),
    ] = None,
    tensor_meta: Annotated[
        bool, typer.Option(help="Attach the outputs to the buffers, as tensor meta.")
    ] = True,
    keep_aspect_ratio: Annotated[
        bool, typer.Option("--keep-aspect-ratio", help="Pad frames instead of stretching them.")
    ] = False,
    unique_id: Annotated[
        int, typer.Option(metavar="N", help="Number of this inference in the pipeline.")
    ] = 1,
    gpu: Annotated[int, typer.Option(metavar="N", help="Number of the GPU.")] = 0,
    custom_library: Annotated[
        Path | None,
        typer.Option(metavar="LIB.so", help="Library with the function that parses the outputs."),
    ] = None,
    parse_function: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of that function.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a folder of this name that differs.")
    ] = False,
    ignore_manifest: IgnoreManifest = False,
    allow_host_code: AllowHostCode = False,
    lean_runtime: LeanRuntime = None,
    plugins: PluginsOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    r"""Write NAME/model.plan and NAME/config_infer.txt for DeepStream's Gst-nvinfer.

    $ trt-native deploy deepstream yolo.engine -o models \
        --keep-aspect-ratio
    """
    from trt_native.deploy.deepstream import DeepStreamConfig, NetworkType, deploy_deepstream

    known = {kind.value: kind for kind in NetworkType}
    if network_type not in known:
        raise SpecError(f"--network-type {network_type!r} is none of: {', '.join(known)}")
    loaded = open_plan(plan, ignore_manifest, allow_host_code, lean_runtime, plugins)
    config = DeepStreamConfig(
        name=_name_of(plan) if name is None else name,
        network_type=known[network_type],
        labels=() if labels is None else _read_labels(labels),
        color=color,
        scale=scale,
        offsets=tuple(offset or ()),
        batch=batch,
        size=None if size is None else _read_size(size),
        tensor_meta=tensor_meta,
        keep_aspect_ratio=keep_aspect_ratio,
        unique_id=unique_id,
        gpu=gpu,
        custom_library=custom_library,
        parse_function=parse_function,
    )
    folder, model = deploy_deepstream(loaded, output, config, force=force)
    linked = (folder / "model.plan").samefile(plan)
    needs = _needs(loaded)
    if json:
        print_json(
            {
                "folder": str(folder),
                "linked": linked,
                "batch_size": model.batch,
                "needs": needs,
                "config": model.config,
                "labels": model.labels,
            }
        )
        return
    rows = [
        ("configuration", str(folder / "config_infer.txt")),
        ("plan", "hard link" if linked else "copy"),
        ("batch-size", str(model.batch)),
        ("needs", f"a DeepStream with {needs}"),
    ]
    table("Deployed", ("", ""), rows)


@deploy_app.command()
@report_errors
def trtexec(
    plan: _PlanArgument,
    profile: Annotated[int, typer.Option(metavar="N", help="Number of the profile.")] = 0,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Shape of a dynamic input, NAME=1x3x8x8. \\[default: the profile's opt]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the plan to this file, without metadata in front as Ultralytics' exports"
            " have it, and print the command for that.",
        ),
    ] = None,
    ignore_manifest: IgnoreManifest = False,
    allow_host_code: AllowHostCode = False,
    lean_runtime: LeanRuntime = None,
    plugins: PluginsOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the command as JSON.")] = False,
) -> None:
    """Print the command that times a plan with trtexec, or with tensorrt_rtx.

    $ trt-native deploy trtexec net.plan
    $ trt-native deploy trtexec yolo.engine -o yolo.plan
    """
    from trt_native.deploy import trtexec_command
    from trt_native.graph.outputs import check_outputs

    loaded = open_plan(plan, ignore_manifest, allow_host_code, lean_runtime, plugins)
    file, shapes = plan, read_shapes(shape or [])
    if output is not None:
        check_outputs([output], reads=[plan])
        file, loaded = output, replace(loaded, prefix=None)
    words = trtexec_command(loaded, file, profile=profile, shapes=shapes)
    if output is not None:
        loaded.save(output)
    if json:
        print_json({"command": shlex.join(words), "words": words, "needs": _needs(loaded)})
        return
    print_command(shlex.join(words))
    stderr.print(f"for the {words[0]} of {_needs(loaded)}", markup=False, highlight=False)


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SpecError(f"cannot read {path}: {reason}", options=("labels",)) from None
    return tuple(line.strip() for line in lines if line.strip())


def _read_size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not (x and height.isascii() and height.isdigit() and width.isascii() and width.isdigit()):
        raise SpecError(f"--size {text!r}: write HxW, such as 640x640")
    return int(height), int(width)


def _read_resources(entries: list[str]) -> dict[str, int]:
    """The counts that ``--rate-resource`` gives.

    Raises:
        SpecError: an entry has another form, or a name is given twice.
    """
    found: dict[str, int] = {}
    for entry in entries:
        name, _, count = entry.rpartition("=")
        if not name or not count.isascii() or not count.isdigit() or name in found:
            raise SpecError(f"--rate-resource {entry!r}: write NAME=COUNT, each name once")
        found[name] = int(count)
    return found


def _name_of(plan: Path) -> str:
    return plan.name.removesuffix(".plan").removesuffix(".engine")


def _needs(plan: Plan) -> str:
    version = plan.manifest.backend_version if plan.manifest else plan.header.version_text
    return f"{plan.header.product} {version}"
