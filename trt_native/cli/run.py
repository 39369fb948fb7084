"""``trt-native run``."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_native.cli.console import guarded, print_json, stderr, table
from trt_native.errors import SpecError
from trt_native.spec import Shape, ShapeRange, parse_shape

if TYPE_CHECKING:
    import numpy as np

    from trt_native.plan import PlanTensor

__all__ = ["run"]


@guarded
def run(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan to run.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", help="NAME=FILE.npy, or FILE.npz with arrays by input name. Repeatable."
        ),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(metavar="SEED", help="Fill the inputs that are not given with random values."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Shape of a random input, NAME=1x3x8x8. \\[default: the profile's opt]"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the outputs to this .npz file.")
    ] = None,
    manifest: Annotated[
        bool,
        typer.Option("--manifest/--no-manifest", help="Heed the manifest beside the plan."),
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run a plan once on the GPU and tell what comes out."""
    from trt_native.plan import Plan, check_writable
    from trt_native.session import Session

    arrays = _read_inputs(inputs or [])
    shapes = _read_shapes(shape or [])
    if output is not None:
        check_writable(output)
    if random is None and not arrays:
        raise SpecError("no inputs: give --input NAME=FILE.npy, or --random SEED")
    if random is not None and random < 0:
        raise SpecError(f"--random {random}: a seed is not negative")
    with Session(Plan.load(plan, ignore_manifest=not manifest)) as session:
        if random is not None:
            arrays = _fill(session.engine.inputs, arrays, shapes, random)
        results = session.run(arrays)
    for name, array in arrays.items():
        if _is_float(array) and not _finite(array):
            stderr.print(f"warning: input {name!r} has NaN or infinite values", markup=False)
    if output is not None:
        _write(output, results)
    _report(results, output, json)


def _read_inputs(entries: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for entry in entries:
        name, _, file = entry.partition("=")
        if not (name and file) and not entry.endswith(".npz"):
            raise SpecError(f"--input {entry!r}: write NAME=FILE.npy, or name an .npz file")
        one = bool(name and file)
        loaded = _load(Path(file if one else entry))
        if isinstance(loaded, dict) == one:
            found = "several arrays" if one else "one array without a name"
            raise SpecError(
                f"--input {entry!r}: the file holds {found}; write NAME=FILE.npy for one array,"
                " or name an .npz file for arrays by name"
            )
        arrays.update({name: loaded} if one else loaded)
    return arrays


def _load(path: Path) -> Any:
    """One array, or arrays by name."""
    import numpy as np

    from trt_native.plan import open_regular

    try:
        with open_regular(path) as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # zipfile, zlib and NumPy have kinds of their own
        reason = " ".join(str(error).split())
        raise SpecError(f"{path}: not a NumPy file, or damaged ({reason})") from None
    for name, array in arrays.items() if isinstance(arrays, dict) else ():
        if not isinstance(array, np.ndarray):
            raise SpecError(f"{path}: {name!r} in it is no array")
    return arrays


def _read_shapes(entries: list[str]) -> dict[str, Shape]:
    shapes = {}
    for entry in entries:
        name, separator, text = entry.rpartition("=")
        if not separator:
            raise SpecError(f"--shape {entry!r}: write NAME=1x3x8x8")
        shapes[name] = parse_shape(text)
    return shapes


def _fill(
    tensors: tuple[PlanTensor, ...],
    given: dict[str, np.ndarray[Any, Any]],
    shapes: dict[str, Shape],
    seed: int,
) -> dict[str, np.ndarray[Any, Any]]:
    """Random values for inputs that were not given: normal for floats, 0 or 1 for the rest."""
    import numpy as np

    unknown = set(shapes) - {tensor.name for tensor in tensors}
    if unknown:
        names = ", ".join(tensor.name for tensor in tensors)
        raise SpecError(f"--shape {', '.join(sorted(unknown))}: the inputs are {names}")
    generator = np.random.default_rng(seed)
    filled = dict(given)
    for tensor in tensors:
        if tensor.name in given:
            continue
        if tensor.values:
            filled[tensor.name] = np.array(tensor.values[0].opt, tensor.dtype).reshape(tensor.shape)
            continue
        ranges = tensor.profiles or (ShapeRange(tensor.shape, tensor.shape, tensor.shape),)
        shape = shapes.get(tensor.name, ranges[0].opt)
        if not any(allowed.contains(shape) for allowed in ranges):
            listing = " or ".join(map(str, ranges))
            raise SpecError(f"--shape {tensor.name}={'x'.join(map(str, shape))}: outside {listing}")
        if np.issubdtype(np.dtype(tensor.dtype), np.integer) or tensor.dtype == "bool":
            filled[tensor.name] = generator.integers(0, 2, shape).astype(tensor.dtype)
        else:
            filled[tensor.name] = generator.standard_normal(shape, np.float32).astype(tensor.dtype)
    return filled


def _is_float(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind == "f" or "float" in array.dtype.name


def _finite(array: np.ndarray[Any, Any]) -> bool:
    import numpy as np

    return bool(np.isfinite(array.astype(np.float32)).all())


def _write(path: Path, results: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write an .npz; types that .npy files do not know (bfloat16, float8) become float32.

    ``numpy.savez`` takes the names as keywords, and so cannot write an output called ``file``.
    """
    import numpy as np

    from trt_native.plan import replacing

    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in results.items():
            known = array.astype(np.float32) if array.dtype.kind == "V" else array
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, known, allow_pickle=False)


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
                "x".join(map(str, row["shape"])) or "scalar",
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
