#!/usr/bin/env python3
"""Time to refit a plan, by a file or in place, against the time to build it again; needs a GPU."""

from __future__ import annotations

import json as json_module
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from trt_native.builder.build_plan import build_plan
from trt_native.builder.refit import refit_plan
from trt_native.cli.console import report_errors, stderr, table
from trt_native.config import BuildConfig, Precision
from trt_native.cuda import memory_info, require_gpu
from trt_native.errors import SpecError, TrtNativeError
from trt_native.graph.onnx_file import read_model
from trt_native.plans.plan import Plan
from trt_native.runtime import Session
from trt_native.shapes import ProfileSpec
from trt_native.units import format_bytes

_TURNS = 10
_WARM_UP = 20  # refits before the memory is looked at
_RUN_EVERY = 10
_UNET_DIMS = ("batch=1:2:2", "frames=1:2:4", "height=16:16:32", "width=16:16:32")


@report_errors
def compare(
    old: Annotated[Path | None, typer.Option(help="ONNX file the plan is built from.")] = None,
    new: Annotated[Path | None, typer.Option(help="The same with other weights.")] = None,
    preset: Annotated[str, typer.Option(help="U-Net to export twice without those.")] = "small",
    dim: Annotated[list[str] | None, typer.Option(help="As for trt-native build.")] = None,
    precision: str = "auto",
    limit: Annotated[float, typer.Option(help="Largest relative L2 difference.")] = 1e-6,
    loops: Annotated[int, typer.Option(help="Refits in place whose memory is watched.")] = 0,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Build, refit, strip; check that the outputs are those of a build; print the times."""
    gpu = require_gpu()
    if (old is None) != (new is None):
        raise SpecError("give both --old and --new, or neither")
    with tempfile.TemporaryDirectory() as name:
        if old is None or new is None:
            old, new = (_export(Path(name) / f"{seed}.onnx", preset, seed) for seed in (0, 1))
            dim = dim or list(_UNET_DIMS)
        profiles = (ProfileSpec.parse(dim),) if dim else ()
        config = BuildConfig(profiles=profiles, precision=Precision.parse(precision), refit=True)
        made, rows, figures = _measure(old, new, config, limit)
        in_place = _measure_in_place(made, old, new, limit)
        memory = _watch_memory(made["build OLD"], old, new, loops) if loops else []
    machine = f"{gpu.name}, driver for CUDA {gpu.driver}"
    table(machine, ("", "seconds", "size", "is"), rows)
    build = figures["build NEW"]["seconds"]
    table(
        "In place",
        ("", "seconds", "of a build"),
        [(name, f"{s:.4f}", f"1/{build / s:.0f}") for name, s in in_place.items()],
    )
    figures["in place"] = {name: round(seconds, 5) for name, seconds in in_place.items()}
    if loops:
        table(
            "Memory of refits in place",
            ("refits", "host", "GPU, used"),
            [(m["refits"], format_bytes(m["host"]), format_bytes(m["gpu"])) for m in memory],
        )
        figures["memory"] = memory
    if json is not None:
        figures |= {"gpu": gpu.name, "driver": gpu.driver, "dims": dim, "precision": precision}
        json.write_text(json_module.dumps(figures, indent=1) + "\n")


def _export(path: Path, preset: str, seed: int) -> Path:
    from trt_native.models.latentsync.export import export_latentsync

    with stderr.status(f"exporting {preset} with the weights of seed {seed}"):
        export_latentsync(path, config=preset, random_seed=seed)
    return path


def _measure(
    old: Path, new: Path, config: BuildConfig, limit: float
) -> tuple[dict[str, Plan], list[tuple[object, ...]], dict[str, Any]]:
    plain = replace(config, refit=False)
    stripped = replace(config, strip_weights=True)
    work: dict[str, Callable[[dict[str, Plan]], Plan]] = {
        "build, not refittable": lambda _: build_plan(new, plain),
        "build OLD": lambda _: build_plan(old, config),
        "build NEW": lambda _: build_plan(new, config),
        "refit OLD to NEW": lambda made: refit_plan(made["build OLD"], new),
        "build OLD, stripped": lambda _: build_plan(old, stripped),
        "refit stripped to NEW": lambda made: refit_plan(made["build OLD, stripped"], new),
    }
    made: dict[str, Plan] = {}
    rows: list[tuple[object, ...]] = []
    figures: dict[str, Any] = {}
    for name, step in work.items():
        with stderr.status(name):
            started = time.perf_counter()
            made[name] = step(made)
            seconds = time.perf_counter() - started
        stderr.print(f"{name}: {seconds:.2f} s")
        size = len(made[name].data)
        manifest = made[name].manifest
        parts = manifest.seconds if manifest else {}
        figures[name] = {"seconds": round(seconds, 3), "bytes": size, "parts": dict(parts)}
    expected = _outputs(made["build NEW"])
    for name in ("build, not refittable", "refit OLD to NEW", "refit stripped to NEW"):
        outputs = _outputs(made[name])
        figures[name]["difference"] = _difference(outputs, expected)
        if name.startswith("refit"):
            _check(name, outputs, expected, limit)
    for name, figure in figures.items():
        apart = figure.get("difference")
        text = "" if apart is None else f"{apart:.1e} from build NEW"
        rows.append((name, f"{figure['seconds']:.2f}", format_bytes(figure["bytes"]), text))
    return made, rows, figures


def _measure_in_place(
    made: Mapping[str, Plan], old: Path, new: Path, limit: float
) -> dict[str, float]:
    """Seconds of a refit of a loaded engine, after a check that it has the new weights."""
    expected = _outputs(made["build NEW"])
    seconds = {}
    with Session(made["build OLD"]) as session:
        engine = session.engine
        names = [spec.name for spec in engine.replaceable_weights]
        before = _run(session)
        for place, move in (("host", _as_it_is), ("GPU", _on_gpu)):
            weights = [_weights(path, names, move) for path in (new, old)]
            engine.refit(weights[0])
            _check(f"refit in place from the {place}", _run(session), expected, limit)
            times = []
            for turn in range(1, 2 * _TURNS + 1):
                started = time.perf_counter()
                engine.refit(weights[turn % 2])
                times.append(time.perf_counter() - started)
            seconds[f"refit of {len(names)} weights, from the {place}"] = float(np.median(times))
        engine.refit(weights[0])
        started = time.perf_counter()
        engine.restore()
        seconds["restore"] = time.perf_counter() - started
        _check("restore", _run(session), before, 0)
    return seconds


def _watch_memory(plan: Plan, old: Path, new: Path, loops: int) -> list[dict[str, int]]:
    """Memory of the process, now and then in many refits from the GPU and from the host."""
    found = []
    with Session(plan) as session:
        names = [spec.name for spec in session.engine.replaceable_weights]
        places = (_on_gpu, _as_it_is)
        weights = [_weights(path, names, move) for move in places for path in (new, old)]
        for turn in range(loops + _WARM_UP + 1):
            done = turn - _WARM_UP
            if done >= 0 and done % max(1, loops // 10) == 0:
                free, total = memory_info()
                found.append({"refits": done, "host": _resident_bytes(), "gpu": total - free})
                figures = f"{format_bytes(found[-1]['host'])}, GPU {format_bytes(total - free)}"
                stderr.print(f"{done} refits: host {figures}")
            session.engine.refit(weights[turn % len(weights)])
            if turn % _RUN_EVERY == 0:
                _run(session)
    return found


def _weights(path: Path, names: Iterable[str], move: Callable[[Any], Any]) -> dict[str, Any]:
    values = read_model(path).graph.initializers
    constants = {name: values[name].const_value for name in names if name in values}
    return {name: move(tensor.numpy()) for name, tensor in constants.items() if tensor is not None}


def _as_it_is(array: Any) -> Any:
    return array


def _on_gpu(array: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(array)).cuda()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _outputs(plan: Plan) -> list[np.ndarray[Any, np.dtype[Any]]]:
    with Session(plan) as session:
        return _run(session)


def _run(session: Session) -> list[np.ndarray[Any, np.dtype[Any]]]:
    generator = np.random.default_rng(0)
    inputs = {}
    for tensor in session.inputs:
        shape = tensor.profiles[0].opt if tensor.profiles else tensor.shape
        values = generator.standard_normal(shape, np.float32)
        integer = np.issubdtype(np.dtype(tensor.dtype), np.integer)
        inputs[tensor.name] = (values * 0 + 500 if integer else values).astype(tensor.dtype)
    return [output.astype(np.float64) for output in session.run(inputs).values()]


def _check(name: str, found: list[Any], expected: list[Any], limit: float) -> None:
    difference = _difference(found, expected)
    if not difference <= limit:
        raise TrtNativeError(f"{name}: its outputs differ by {difference:.1e} from the build's")
    stderr.print(f"{name}: {difference:.1e} from the expected outputs")


def _difference(found: list[Any], expected: list[Any]) -> float:
    """The largest relative L2 difference of an output."""
    return max(
        float(np.linalg.norm(f - e) / np.linalg.norm(e))
        for f, e in zip(found, expected, strict=True)
    )


if __name__ == "__main__":
    typer.run(compare)
