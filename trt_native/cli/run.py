"""``trt-native run``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import print_json, report_errors, stderr, table
from trt_native.cli.inputs import (
    INPUT_HELP,
    RANDOM_HELP,
    SHAPE_HELP,
    check_not_fixed,
    check_seed,
    fill_random,
    open_inputs,
    read_shapes,
    split_entry,
)
from trt_native.cli.options import (
    AllowHostCode,
    DeviceOption,
    IgnoreManifest,
    KernelSpecializationOption,
    LeanRuntime,
    PluginsOption,
    open_plan,
    select_device,
)
from trt_native.errors import SpecError
from trt_native.shapes import format_shape

if TYPE_CHECKING:
    import numpy as np

__all__ = ["run"]


@report_errors
def run(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan to run.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help=INPUT_HELP),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(metavar="SEED", help=RANDOM_HELP),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help=SHAPE_HELP),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the outputs to this .npz file.")
    ] = None,
    kernel_specialization: KernelSpecializationOption = None,
    device: DeviceOption = None,
    ignore_manifest: IgnoreManifest = False,
    allow_host_code: AllowHostCode = False,
    lean_runtime: LeanRuntime = None,
    plugins: PluginsOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    r"""Run a plan once on the GPU and print a summary of its outputs.

    $ trt-native run net.plan --random 0
    $ trt-native run net.plan --input image=image.npy \
        -o outputs.npz
    """
    select_device(device)
    import numpy as np

    from trt_native.arrays import save_arrays
    from trt_native.graph.outputs import check_outputs
    from trt_native.runtime import Session

    if output is not None:
        files = [file for _, file in map(split_entry, inputs or [])]
        check_outputs([output], reads=[plan, *files])
    with open_inputs(inputs or []) as given:
        shapes = read_shapes(shape or [])
        check_seed(random, shapes)
        if random is None and not given.names:
            raise SpecError("no inputs: give --input NAME=FILE.npy, or --random SEED")
        loaded = open_plan(plan, ignore_manifest, allow_host_code, lean_runtime, plugins)
        if loaded.manifest is not None:
            check_not_fixed(given.names, loaded.manifest.build_config().fixed_values())
            given.read(loaded.manifest.inputs)
        with Session(loaded, kernel_specialization=kernel_specialization) as session:
            arrays = given.read(session.engine.inputs)
            if random is not None:
                generator = np.random.default_rng(random)
                arrays = fill_random(session.engine.inputs, arrays, shapes, generator)
            results = session.run(arrays)
    if output is not None:
        save_arrays(output, results)
    _report(results, output, json)


def _report(results: dict[str, np.ndarray[Any, Any]], output: Path | None, json: bool) -> None:
    rows = [_describe(name, array) for name, array in results.items()]
    if json:
        print_json({"outputs": rows, "written": str(output) if output else None})
        return
    table(
        "Outputs",
        ("name", "dtype", "shape", "finite", "min", "mean", "max"),
        (
            (
                row["name"],
                row["dtype"],
                format_shape(row["shape"]),
                "yes" if row["finite"] else "NO",
                *(f"{row[key]:.4g}" for key in ("min", "mean", "max")),
            )
            for row in rows
        ),
    )
    if output is not None:
        stderr.print(f"written to {output}", markup=False, highlight=False)


def _describe(name: str, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    import numpy as np

    values = array.astype(np.float64)
    statistics = {
        "min": float(values.min()) if values.size else math.nan,
        "mean": float(values.mean()) if values.size else math.nan,
        "max": float(values.max()) if values.size else math.nan,
    }
    return {
        "name": name,
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "finite": bool(np.isfinite(values).all()),
        **statistics,
    }
